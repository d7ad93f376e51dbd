using System.Text;
using Iced.Intel;
using VirtBench.Strategies;
using VirtBench.Tests;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Workloads;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Measurement.Tests;

public sealed class GuestRunTests
{
    private static GuestImage Image(Action<Assembler> write)
    {
        var a = new Assembler(64);
        write(a);
        using var code = new MemoryStream();
        a.Assemble(new StreamCodeWriter(code), 0x100000);
        byte[] content = code.ToArray();
        return new GuestImage("test", 0x100000, [new ImageSegment(0x100000, content, (ulong)content.Length, true)]);
    }

    /// <summary>Writes "ab" and then its first parameter times "x" to the console, and ends with status 7.</summary>
    private static GuestImage Talker() =>
        Image(a =>
        {
            Label more = a.CreateLabel();
            a.mov(rcx, __[rdi + BootInformation.ParametersOffset]);
            a.mov(edx, 0x3F8);
            a.mov(eax, 'a');
            a.@out(dx, al);
            a.mov(eax, 'b');
            a.@out(dx, al);
            a.mov(eax, 'x');
            a.Label(ref more);
            a.@out(dx, al);
            a.dec(rcx);
            a.jnz(more);
            a.mov(eax, 7);
            a.@out(0xF4, al);
        });

    public static TheoryData<string> Strategies() => [.. StrategiesUnderTest.Privileged];

    [Theory]
    [MemberData(nameof(Strategies))]
    public void The_console_is_passed_on_as_it_comes_and_kept_up_to_the_limit(string id)
    {
        var heard = new StringBuilder();
        GuestRunResult result = GuestRun.Execute(
            StrategiesUnderTest.Get(id),
            Talker(),
            new GuestRunOptions { Parameters = [20], ConsoleLimit = 10 },
            value => heard.Append((char)value),
            TestContext.Current.CancellationToken
        );
        Assert.Equal((RunEnd.Exited, (byte)7), (result.Outcome.End, result.Outcome.Status));
        Assert.Equal("ab" + new string('x', 20), heard.ToString());
        Assert.Equal("abxxxxxxxx", Encoding.ASCII.GetString(result.Console.Span));
        Assert.Equal(22, result.ConsoleBytes);
        Assert.Equal("the console's first 10 of 22 bytes were kept", Assert.Single(result.Notes));
        Assert.True(result.Faithful);
        Assert.Equal(23, result.Exits["port-io"]); // the exit port's too
        Assert.True(result.ElapsedNanoseconds > 0);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void A_guest_that_loops_for_ever_is_stopped(string id)
    {
        GuestImage image = Image(a =>
        {
            Label self = a.CreateLabel();
            a.Label(ref self);
            a.jmp(self);
        });
        GuestRunResult result = GuestRun.Execute(
            StrategiesUnderTest.Get(id),
            image,
            new GuestRunOptions { Timeout = TimeSpan.FromMilliseconds(20) },
            cancellation: TestContext.Current.CancellationToken
        );
        Assert.Equal(RunEnd.TimedOut, result.Outcome.End);
        Assert.Contains("0x100000", result.Outcome.Message, StringComparison.Ordinal);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void A_guest_is_kicked_out_when_the_caller_cancels(string id)
    {
        GuestImage image = Image(a =>
        {
            Label self = a.CreateLabel();
            a.mov(edx, 0x3F8);
            a.mov(eax, 'a');
            a.@out(dx, al);
            a.Label(ref self);
            a.jmp(self);
        });
        using var stop = CancellationTokenSource.CreateLinkedTokenSource(TestContext.Current.CancellationToken);
        GuestRunResult result = GuestRun.Execute(
            StrategiesUnderTest.Get(id),
            image,
            new GuestRunOptions(),
            _ => stop.Cancel(),
            stop.Token
        );
        Assert.Equal(RunEnd.Cancelled, result.Outcome.End);
        Assert.Equal(1, result.ConsoleBytes);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Accesses_to_nothing_are_counted_or_when_strict_refused(string id)
    {
        GuestImage image = Image(a =>
        {
            a.@in(al, 0x77);
            a.@out(0x77, al);
            a.mov(eax, 0x2000_0000); // identity-mapped, beyond RAM
            a.mov(ecx, __[rax]);
            a.mov(eax, 0);
            a.@out(0xF4, al);
        });
        CancellationToken cancellation = TestContext.Current.CancellationToken;
        Strategy strategy = StrategiesUnderTest.Get(id);
        GuestRunResult lenient = GuestRun.Execute(strategy, image, new GuestRunOptions(), null, cancellation);
        Assert.Equal(RunEnd.Exited, lenient.Outcome.End);
        Assert.Equal(["accesses to ports without a device: 2", "accesses to addresses without RAM: 1"], lenient.Notes);
        GuestRunResult strict = GuestRun.Execute(
            strategy,
            image,
            new GuestRunOptions { Strict = true },
            null,
            cancellation
        );
        Assert.Equal(RunEnd.Failed, strict.Outcome.End);
        Assert.Contains("port 0x77", strict.Outcome.Message, StringComparison.Ordinal);
    }

    /// <summary>Strategies whose guests' ring 0 is the host's ring 3, instruction by instruction.</summary>
    public static TheoryData<string> Deprivileged() =>
        [
            .. StrategiesUnderTest.Privileged.Where(id =>
                !id.StartsWith("hardware", StringComparison.Ordinal)
                && !id.EndsWith("binary-translation", StringComparison.Ordinal)
            ),
        ];

    [Theory]
    [MemberData(nameof(Deprivileged))]
    public void A_guest_that_asks_for_its_cpuid_is_not_run_faithfully_in_ring_3(string id)
    {
        GuestImage image = Image(a =>
        {
            a.mov(eax, 0);
            a.cpuid();
            a.mov(eax, 0);
            a.@out(0xF4, al);
        });
        GuestRunResult result = GuestRun.Execute(
            StrategiesUnderTest.Get(id),
            image,
            new GuestRunOptions(),
            null,
            TestContext.Current.CancellationToken
        );
        Assert.Equal(RunEnd.Exited, result.Outcome.End);
        Assert.False(result.Faithful);
        Assert.Equal(2, result.Notes.Count);
        Assert.Equal("not faithful: cpuid", result.Notes[0]);
        Assert.StartsWith($"cpuid at 0x100005 is not trapped under {id}: ", result.Notes[1], StringComparison.Ordinal);
    }

    /// <summary>The host's descriptor table holds other selectors, so a deprivileged guest would see 0.</summary>
    [Fact]
    public void A_modelled_translator_asks_the_guests_descriptor_table()
    {
        GuestRunResult result = GuestRun.Execute(
            StrategiesUnderTest.Get("simulated-binary-translation"),
            Image(a =>
            {
                a.mov(eax, 0x10);
                a.verr(ax);
                a.setz(al);
                a.@out(0xF4, al);
            }),
            new GuestRunOptions(),
            null,
            TestContext.Current.CancellationToken
        );
        Assert.Equal((RunEnd.Exited, 1), (result.Outcome.End, result.Outcome.Status));
        Assert.True(result.Faithful);
        Assert.Equal(1, result.Exits["descriptor-table"]);
        Assert.Equal((2, 4), (result.Translation!.Blocks, result.Translation.GuestInstructions)); // a callout ends a block
    }

    [Fact]
    public void What_the_kernel_counted_is_told_in_all_and_by_region()
    {
        GuestRunResult result = GuestRun.Execute(
            CountedStrategy.Create(),
            Talker(),
            new GuestRunOptions(),
            null,
            TestContext.Current.CancellationToken
        );
        Assert.Equal((RunEnd.Exited, (byte)3), (result.Outcome.End, result.Outcome.Status));
        Assert.Equal(
            new Dictionary<string, ulong> { ["exits"] = 44, ["insn_emulation"] = 40_002 },
            result.KernelStatistics
        );
        Assert.Equal(42UL, Assert.Single(result.Regions).KernelStatistics!["exits"]);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Regions_are_told_with_their_traps(string id)
    {
        GuestImage image = new PortIo().Build(new WorkloadOptions(3, 1000));
        GuestRunResult result = GuestRun.Execute(
            StrategiesUnderTest.Get(id),
            image,
            new GuestRunOptions { Parameters = [1, 5] },
            null,
            TestContext.Current.CancellationToken
        );
        MeasuredRegion region = Assert.Single(result.Regions);
        Assert.Equal((1u, 5UL), (region.Id, region.Units));
        Assert.Equal(15, GuestRunResult.TrapsIn(region));
    }
}
