using System.Runtime.Versioning;
using VirtBench.Measurement.Benchmarks;
using VirtBench.Strategies;
using VirtBench.Strategies.TrapAndEmulate;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Workloads;

namespace VirtBench.Measurement.Tests;

/// <summary>How the benchmarks of translation get from samples to tables. Nothing here is timed: samples are scripted.</summary>
public sealed class TranslationBenchmarkTests
{
    private const string Direct = "trap-and-emulate";
    private const string Translating = "binary-translation";

    private static readonly KernelGoal Goal = new("call-return", "calls", Goal: 1.4, Stretch: 1.25);

    private static readonly ScriptedStrategy DirectStrategy = new(Direct);
    private static readonly ScriptedStrategy TranslatingStrategy = new(Translating);

    private static KernelTimes Measure(Func<Call, SampleRun, SampleRun> bend, int rounds = 8)
    {
        var machines = new ScriptedMachines { Bend = bend };
        return Assert.Single(
            new KernelComparison(DirectStrategy, TranslatingStrategy, machines.Run).Measure([Goal], rounds)
        );
    }

    private static SampleRun Longer(SampleRun run, double factor) =>
        run with
        {
            Regions = [run.Regions[0] with { ElapsedNanoseconds = run.Regions[0].ElapsedNanoseconds * factor }],
        };

    private static string Table(KernelTimes times)
    {
        var output = new StringWriter();
        KernelComparison.Print(output, DirectStrategy, TranslatingStrategy, [times], 8);
        return output.ToString().TrimEnd().Split('\n')[^1];
    }

    [Theory]
    [InlineData(1.2, "stretch")]
    [InlineData(1.254, "stretch")]
    [InlineData(1.256, "goal")]
    [InlineData(1.404, "goal")]
    [InlineData(1.406, "above")]
    [InlineData(1.5, "above")]
    public void The_slow_down_is_the_ratio_of_the_two_and_is_held_against_the_goals(double factor, string verdict)
    {
        KernelTimes times = Measure((call, run) => Longer(run, call.Strategy.Id == Translating ? factor : 1));
        Assert.Null(times.Failure);
        Assert.Equal(8, times.SlowDown.Length);
        Assert.All(times.SlowDown, ratio => Assert.Equal(factor, ratio, 9));
        Assert.All(times.Noise, ratio => Assert.Equal(1, ratio, 9));
        Assert.Equal(ScriptedMachines.UnitNanoseconds, times.Direct[0], 10.0);
        Assert.Equal(verdict, times.Verdict);
        Assert.EndsWith($"| 1.40 | 1.25 | {verdict} |", Table(times), StringComparison.Ordinal);
    }

    [Fact]
    public void A_host_that_becomes_slower_and_slower_changes_no_slow_down()
    {
        double speed = 1;
        KernelTimes times = Measure(
            (call, run) => Longer(run, (speed += 0.001) * (call.Strategy.Id == Translating ? 1.3 : 1))
        );
        Assert.All(times.SlowDown, ratio => Assert.Equal(1.3, ratio, 5));
        Assert.All(times.Noise, ratio => Assert.NotEqual(1, ratio));
    }

    [Fact]
    public void Each_round_has_two_samples_of_each_strategy_inside_one_another()
    {
        var order = new List<string>();
        Measure(
            (call, run) =>
            {
                order.Add(call.Strategy.Id == Direct ? "A" : "B");
                return run;
            },
            rounds: 3
        );
        Assert.EndsWith("ABBABAABABBA", string.Concat(order), StringComparison.Ordinal);
        Assert.DoesNotContain("B", string.Concat(order)[..^12], StringComparison.Ordinal); // calibration
    }

    [Fact]
    public void Another_checksum_is_a_failure_and_no_time()
    {
        KernelTimes times = Measure(
            (call, run) => call.Strategy.Id == Translating ? run with { Result = new WorkloadResult(0xBAD, 1) } : run
        );
        Assert.Contains("under binary-translation it left checksum 0x0000000000000BAD", times.Failure);
        Assert.Empty(times.SlowDown);
        Assert.Contains("failed: under binary-translation", Table(times), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(Direct)]
    [InlineData(Translating)]
    public void A_guest_that_fails_costs_its_row_only(string failing)
    {
        var machines = new ScriptedMachines
        {
            Bend = (call, run) =>
                call.Strategy.Id == failing && call.Workload.Id == Goal.Workload
                    ? run with
                    {
                        Outcome = new RunOutcome(RunEnd.Failed, 0, "no such luck"),
                    }
                    : run,
        };
        var other = new KernelGoal("compute", "loop", 1.02, 1);
        IReadOnlyList<KernelTimes> times = new KernelComparison(
            DirectStrategy,
            TranslatingStrategy,
            machines.Run
        ).Measure([Goal, other], rounds: 2);
        Assert.Equal($"under {failing} the guest ended: no such luck", times[0].Failure);
        Assert.Null(times[1].Failure);
        Assert.Equal(2, times[1].SlowDown.Length);
    }

    [Fact]
    public void Every_kernel_and_the_alu_loop_have_a_goal() =>
        Assert.Equal(
            WorkloadCatalog.All.Where(one => one is CodeKernel or Compute).Select(one => one.Id).Order(),
            KernelGoal.All.Select(goal => goal.Workload).Order()
        );

    [Fact]
    public void Cold_code_is_one_program_that_engines_agree_on()
    {
        GuestImage image = ColdCode.Build(3_000, 7).Image;
        Assert.Equal(image.Segments[0].Content.ToArray(), ColdCode.Build(3_000, 7).Image.Segments[0].Content.ToArray());
        Assert.NotEqual(
            image.Segments[0].Content.ToArray(),
            ColdCode.Build(3_000, 8).Image.Segments[0].Content.ToArray()
        );
        ulong[] checksums =
        [
            .. StrategiesUnderTest.Available().Select(strategy => Run(strategy, image).Result.Checksum),
        ];
        Assert.NotEmpty(checksums);
        Assert.Single(checksums.Distinct());
        Assert.NotEqual(0UL, checksums[0]);
    }

    [Fact]
    public void Most_of_cold_code_is_executed_and_once_only()
    {
        const int instructions = 20_000;
        SampleRun run = Run(StrategiesUnderTest.Get("simulated-native"), ColdCode.Build(instructions, 5).Image);
        double executed = run.Regions[0].ElapsedNanoseconds * run.TicksPerSecond / 1e9; // a cycle an instruction
        Assert.InRange(executed, 0.6 * instructions, 1.2 * instructions); // functions may be called a few times
    }

    [Fact]
    public void The_cost_of_translation_is_the_engine_s_account_per_guest_instruction()
    {
        var statistics = new TranslationStatistics(100, 600, 2400, 3600, 360_000, 90, 9, null, 0, 0);
        string text = Cost(
            (call, run) =>
                call.Id == Direct
                    ? run
                    : run with
                    {
                        Regions = [run.Regions[0] with { ElapsedNanoseconds = 250_000, Translation = statistics }],
                    }
        );
        int program = ColdCode.Build(500, 5).Instructions;
        Assert.InRange(program, 500, 520);
        string each = (180_000.0 / program).ToString("F0"); // 360,000 ticks of 0.5 ns
        string more = (150_000.0 / program).ToString("F0"); // 250 µs against 100 µs
        Assert.Contains("600 instructions of 2400 bytes translated, into 100 blocks; 1.50 bytes out per byte in", text);
        Assert.Contains($"translation, first VM of the comparison, ns per instruction: {each}", text);
        Assert.Matches("the same, per translated one +median +300 ", text);
        Assert.Matches($"more than directly, ns per instruction +median +{more} ", text);
        Assert.Contains("goal 350 per instruction of the program, stretch 200: goal missed", text);
    }

    [Fact]
    public void An_engine_without_an_account_of_its_translations_has_no_cost() =>
        Assert.Contains("failed: binary-translation keeps no account of what it translates", Cost((_, run) => run));

    [Fact]
    public void Cold_code_is_executed_as_many_turns_as_it_is_asked_for()
    {
        Strategy strategy = StrategiesUnderTest.Get("simulated-native");
        MeasuredRegion once = Run(strategy, ColdCode.Build(3_000, 7).Image).Regions[0];
        MeasuredRegion often = Run(strategy, ColdCode.Build(3_000, 7, turns: 9).Image).Regions[0];
        Assert.Equal((1UL, 9UL), (once.Units, often.Units));
        Assert.InRange(often.ElapsedNanoseconds / once.ElapsedNanoseconds, 8, 10);
    }

    [Theory]
    [InlineData(0, false, "two, ms +median +0.02 ")] // 100 µs in 5 turns
    [InlineData(1, false, "two: failed: it left another checksum than one")]
    [InlineData(0, true, "two: failed: out of luck")]
    public void Sizes_of_the_code_cache_are_compared_where_they_compute_the_same(
        int checksumError,
        bool fails,
        string line
    )
    {
        var output = new StringWriter();
        CodeCacheComparison.Print(
            output,
            [("one", DirectStrategy), ("two", TranslatingStrategy)],
            (strategy, _, _, _, _) =>
                new SampleRun(
                    fails && strategy == TranslatingStrategy
                        ? new RunOutcome(RunEnd.Failed, 0, "out of luck")
                        : new RunOutcome(RunEnd.Exited, 0, null),
                    [ScriptedMachines.Region(1, 5, 100_000, null, 0)],
                    new WorkloadResult(strategy == DirectStrategy ? 1 : 1 + (ulong)checksumError, 0),
                    DirectStrategy.Capabilities,
                    ScriptedMachines.TicksPerSecond,
                    default
                ),
            instructions: 500,
            rounds: 3
        );
        Assert.Matches(line, output.ToString());
    }

    private static string Cost(Func<Strategy, SampleRun, SampleRun> bend)
    {
        var output = new StringWriter();
        TranslationCost.Print(
            output,
            DirectStrategy,
            TranslatingStrategy,
            (strategy, _, _, _, _) =>
                bend(
                    strategy,
                    new SampleRun(
                        new RunOutcome(RunEnd.Exited, 0, null),
                        [ScriptedMachines.Region(1, 1, 100_000, null, 0)],
                        new WorkloadResult(1, 0),
                        DirectStrategy.Capabilities,
                        ScriptedMachines.TicksPerSecond,
                        default
                    )
                ),
            instructions: 500,
            rounds: 3
        );
        return output.ToString();
    }

    [Fact]
    public void Each_sensitive_instruction_s_loop_holds_it_eight_times_and_its_control_never()
    {
        var strategy = new TrapAndEmulateStrategy();
        Assert.SkipWhen(strategy.UnavailableReason() is not null, strategy.UnavailableReason() ?? "");
        if (!OperatingSystem.IsLinux())
        {
            return; // not reached: the strategy is available on Linux only
        }

        const int loops = 3;
        foreach (SensitiveInstruction instruction in SensitiveInstruction.All)
        {
            bool trapped = instruction.Name is "sti, cli" or "rdtsc" or "mov cr0, rax" or "in al, 0x80";
            int expected = trapped ? loops * SensitiveInstruction.PerLoop * instruction.Instructions : 0;
            Assert.Equal(expected, Exits(instruction, strategy, loops, control: false));
            Assert.Equal(0, Exits(instruction, strategy, loops, control: true));
        }
    }

    /// <summary>Exits of one run of the loops, the halt at their end left out.</summary>
    [SupportedOSPlatform("linux")]
    private static long Exits(SensitiveInstruction instruction, Strategy strategy, int loops, bool control)
    {
        using RepeatingGuest guest = instruction.Guest(strategy, loops, control);
        guest.Run(); // faults its pages in
        LedgerSnapshot before = guest.Ledger.Snapshot();
        guest.Run();
        LedgerSnapshot exits = guest.Ledger.Snapshot().Since(before);
        return exits.Counts.Sum() - exits[TrapReason.Halt];
    }

    private static SampleRun Run(Strategy strategy, GuestImage image)
    {
        SampleRun run = new VirtualMachineRunner(new SweepOptions { Strategies = [], Workloads = [] }).Run(
            strategy,
            image,
            warmUp: 0,
            units: 1,
            TestContext.Current.CancellationToken
        );
        Assert.Equal(new RunOutcome(RunEnd.Exited, 0, null), run.Outcome);
        return run;
    }
}
