using VirtBench.Vmm.Execution;
using VirtBench.Workloads;

namespace VirtBench.Measurement.Tests;

/// <summary>The soak, for a fraction of a second of guest time.</summary>
public sealed class SoakTests
{
    public static TheoryData<string> Strategies() => [.. StrategiesUnderTest.Privileged];

    private static readonly SoakOptions Short = new()
    {
        Duration = TimeSpan.FromSeconds(0.3),
        UnitsPerRound = 5,
        RestTicks = 2,
        RamBytes = MiniOs.MinimumRam,
    };

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Every_count_is_what_it_must_be(string id)
    {
        SoakResult result = Soak.Run(
            StrategiesUnderTest.Get(id),
            Short,
            cancellation: TestContext.Current.CancellationToken
        );
        // What the process holds depends on the tests beside this one.
        SoakCheck[] own = [.. result.Checks.Where(check => !check.Name.EndsWith(" leaked", StringComparison.Ordinal))];
        Assert.All(own, check => Assert.True(check.Holds, $"{check.Name}: {check.Detail}"));
        Assert.Equal(StrategiesUnderTest.Get(id).IsSimulated ? 8 : 9, own.Length);
        Assert.True(result.GuestNanoseconds >= 0.3e9);
        Assert.True(result.Statistics.Rounds >= 4);
        Assert.Equal((long)result.Statistics.Ticks, result.TicksTaken);
    }

    [Fact]
    public void A_guest_that_is_stopped_has_not_ended_by_itself()
    {
        using var cancellation = new CancellationTokenSource();
        cancellation.Cancel();
        SoakResult result = Soak.Run(
            StrategiesUnderTest.Get("simulated-trap-and-emulate"),
            Short,
            cancellation: cancellation.Token
        );
        Assert.Equal(RunEnd.Cancelled, result.Outcome.End);
        Assert.False(result.Holds);
        Assert.Contains(result.Checks, check => check is { Name: "the guest ended by itself", Holds: false });
    }

    [Fact]
    public void Progress_is_told_in_ticks()
    {
        long last = 0;
        long all = 0;
        Soak.Run(
            StrategiesUnderTest.Get("simulated-trap-and-emulate"),
            Short,
            (done, total) => (last, all) = (done, total),
            TestContext.Current.CancellationToken
        );
        Assert.Equal((76, 76), (last, all)); // 0.3 s at 250.04 Hz, the nearest that the 8254 has
    }

    [Theory]
    [InlineData("every tick taken was counted", 99L, 100L, 0L, 100L)]
    [InlineData("no tick was lost", 101L, 100L, 0L, 101L)]
    [InlineData("as many ticks as time has passed", 100L, 100L, 0L, 102L)]
    public void A_count_that_is_off_is_found(string name, long made, long counted, long owed, long expected)
    {
        // Of a guest that has counted what the second figure says; its other counts are those of a block of zeros.
        using var memory = new Vmm.Memory.GuestMemory(1 << 20);
        memory.Write(MiniOsStatistics.TicksAddress, (ulong)counted);
        long taken = name == "every tick taken was counted" ? made : counted;
        SoakCheck[] checks =
        [
            .. Soak.Judge(
                [],
                MiniOsStatistics.Read(memory),
                new Soak.TimerAccount(made, taken, 0, owed, expected, expected)
            ),
        ];
        Assert.False(Assert.Single(checks, check => check.Name == name).Holds);
        string[] fine = ["no spurious interrupt"];
        Assert.All(checks.Where(check => fine.Contains(check.Name)), check => Assert.True(check.Holds));
        string[] empty = ["no frame was lost", "every round had the same result", "all work was accounted for"];
        Assert.All(checks.Where(check => empty.Contains(check.Name)), check => Assert.False(check.Holds));
    }

    [Theory]
    [InlineData(600.0, 600.5, true)]
    [InlineData(600.0, 598.0, false)]
    [InlineData(598.0, 600.0, false)]
    public void A_clock_that_drifts_is_found(double engineSeconds, double hostSeconds, bool holds) =>
        Assert.Equal(holds, Soak.Drift(engineSeconds * 1e9, hostSeconds * 1e9).Holds);

    [Fact]
    public void Fields_of_a_status_file_are_found_by_their_whole_name()
    {
        const string status = "Name:\tx\nRssAnonX:\t1 kB\nRssAnon:\t  1234 kB\nThreads:\t7\nBad:\tword\n";
        Assert.Equal(1234, ProcessMemory.Field(status, "RssAnon"));
        Assert.Equal(7, ProcessMemory.Field(status, "Threads"));
        Assert.Equal(0, ProcessMemory.Field(status, "Bad"));
        Assert.Equal(0, ProcessMemory.Field(status, "PPid"));
    }
}
