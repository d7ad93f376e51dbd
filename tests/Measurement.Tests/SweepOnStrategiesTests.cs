using Iced.Intel;
using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Workloads;

namespace VirtBench.Measurement.Tests;

/// <summary>Whole samples through real engines. Nothing here is timed: only counts and checksums are judged.</summary>
public sealed class SweepOnStrategiesTests
{
    public static TheoryData<string> Strategies() => [.. StrategiesUnderTest.All];

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Every_workload_takes_exactly_k_traps_a_unit(string id)
    {
        Strategy strategy = StrategiesUnderTest.Get(id);
        var options = new SweepOptions
        {
            Strategies = [strategy],
            Workloads = WorkloadCatalog.All,
            Profile = new SweepProfile("test", TimeSpan.FromMilliseconds(2), 2, [0, 1, 3, 16]),
            FillerInstructions = 3_000,
            ComputedUnits = 10,
        };
        var observer = new RecordingObserver();
        var sweep = new Sweep(options);
        SweepResult result = sweep.Run(observer, cancellation: TestContext.Current.CancellationToken);
        Assert.True(result.Complete);
        Assert.Equal(sweep.Plan.Order.Count, observer.Samples.Count + result.NotTaken);
        using var machine = new VirtualMachine(1 << 20, strategy.CreateEngine);
        EngineCapabilities capabilities = machine.Capabilities;
        Assert.All(
            observer.Samples,
            sample =>
            {
                Workload workload = WorkloadCatalog.Find(sample.Cell.Workload)!;
                VirtualizationHole[] holes =
                    sample.Cell.TrapsPerUnit == 0 ? [] : [.. workload.HolesUnder(strategy.Interface, capabilities)];
                bool ends = holes.Any(hole => hole.EndsGuest);
                Assert.Equal(ends ? SampleStatus.Failed : SampleStatus.Ok, sample.Status);
                Assert.False(sample.IsWrong, sample.Note);
                Assert.Subset(
                    holes.Select(hole => hole.Instruction).ToHashSet(),
                    (sample.Mark?.Holes ?? []).ToHashSet()
                );
                Assert.Equal(holes.Length > 0, sample.Mark is not null);
                Assert.Equal(sample.Note, ends ? sample.Note : sample.Mark?.ToString() ?? "");
                Assert.True(ends || sample.ElapsedNanoseconds > 0);
                if (workload.ExitsUnder(strategy.Interface, capabilities) is not { } exits)
                {
                    Assert.True(sample.Traps > 0 == sample.Cell.TrapsPerUnit > 0); // not predicted
                    return;
                }

                Assert.Equal(exits > 0 && !ends ? sample.Cell.TrapsPerUnit * sample.Units : 0, sample.Traps);
            }
        );
    }

    /// <summary>Every exit of an operation, not only those of the kind that counts as its trap.</summary>
    [Theory]
    [InlineData("interrupt-flag", "interrupt-flag 1")]
    [InlineData("syscall", "syscall 2")]
    [InlineData("page-fault", "control-register 1, segment-or-return 1, guest-page-fault 1")]
    [InlineData("pte-update", "tlb-or-cache 1, hidden-page-fault 1")]
    [InlineData("timer-interrupt", "port-io 3, interrupt-flag 2, halt 1, segment-or-return 1")]
    [InlineData("popf", "")]
    [InlineData("cpuid", "")]
    [InlineData("descriptor-tables", "")]
    [InlineData("self-modifying", "")]
    public void An_operation_takes_these_exits_on_the_simulated_cpu(string id, string exits)
    {
        const int k = 5;
        const long units = 4;
        GuestImage image = WorkloadCatalog.Find(id)!.Build(new WorkloadOptions(k, 5_000));
        GuestImage control = WorkloadCatalog.Find(id)!.Build(new WorkloadOptions(0, 5_000));
        LedgerSnapshot with = Run(StrategiesUnderTest.Get("simulated-trap-and-emulate"), image, units).Regions[0].Exits;
        LedgerSnapshot without = Run(StrategiesUnderTest.Get("simulated-trap-and-emulate"), control, units)
            .Regions[0]
            .Exits;
        LedgerSnapshot difference = with.Since(without);
        Assert.Equal(
            exits,
            string.Join(
                ", ",
                Enumerable
                    .Range(0, TrapReasons.Count)
                    .Where(i => difference.Counts[i] != 0)
                    .Select(i => $"{((TrapReason)i).Name()} {difference.Counts[i] / (double)(k * units)}")
            )
        );
    }

    [Fact]
    public void The_unit_holds_no_instruction_that_an_engine_lets_through_but_the_workload_s_own()
    {
        foreach (Strategy strategy in StrategiesUnderTest.Available())
        {
            using var machine = new VirtualMachine(1 << 20, strategy.CreateEngine);
            foreach (SlottedWorkload workload in WorkloadCatalog.All.OfType<SlottedWorkload>())
            {
                GuestImage image = workload.Build(new WorkloadOptions(2, workload.DefaultFiller, strategy.Interface));
                Assert.All(
                    HoleScan.Find(image, machine.Capabilities.Holes).Where(one => one.Address < EndOfUnit(image)),
                    one => Assert.Contains(one.Hole.Names, workload.Operation(strategy.Interface).Names.Contains)
                );
            }
        }
    }

    [Fact]
    public void Densities_without_room_are_skipped_with_the_reason_and_the_rest_is_measured()
    {
        var options = new SweepOptions
        {
            Strategies = [StrategiesUnderTest.Get("simulated-trap-and-emulate")],
            Workloads = [WorkloadCatalog.Find("cr3-switch")!, WorkloadCatalog.Find("rdtsc")!],
            Profile = SweepProfile.Thorough,
            ComputedUnits = 2,
        };
        var observer = new RecordingObserver();
        var sweep = new Sweep(options);
        SkippedCell skipped = Assert.Single(sweep.Plan.Skipped);
        Assert.Equal("cr3-switch", skipped.Workload);
        Assert.Equal("k = 24, 32, 48, 64: a unit of cr3-switch has room for 16 traps", skipped.Reason);
        Assert.True(sweep.Run(observer, cancellation: TestContext.Current.CancellationToken).Complete);
        Assert.All(observer.Samples, sample => Assert.Equal((SampleStatus.Ok, ""), (sample.Status, sample.Note)));
        Assert.Equal(16, observer.Samples.Where(s => s.Cell.Workload == "cr3-switch").Max(s => s.Cell.TrapsPerUnit));
        Assert.Equal(64, observer.Samples.Where(s => s.Cell.Workload == "rdtsc").Max(s => s.Cell.TrapsPerUnit));
    }

    [Fact]
    public void Exits_that_cost_the_simulated_guest_nothing_are_recorded_at_no_cost()
    {
        var options = new SweepOptions
        {
            Strategies = [StrategiesUnderTest.Get("simulated-trap-and-emulate")],
            Workloads = [WorkloadCatalog.Find("rdtsc")!],
            Profile = new SweepProfile("test", TimeSpan.FromMilliseconds(2), 1, [0, 4]),
            ComputedUnits = 10,
        };
        var observer = new RecordingObserver();
        _ = new Sweep(options).Run(observer, cancellation: TestContext.Current.CancellationToken);
        ExitRecord[] markers = [.. observer.Exits.Where(exit => exit.Reason == "region-marker")];
        Assert.NotEmpty(markers);
        Assert.All(markers, exit => Assert.Equal((0.0, 0.0), (exit.SwitchOutNanoseconds, exit.SwitchInNanoseconds)));
        Assert.Contains(observer.Exits, exit => exit is { Reason: "rdtsc", SwitchOutNanoseconds: > 0 });
    }

    [Fact]
    public void Checksums_are_those_of_every_other_faithful_strategy()
    {
        Strategy[] strategies = [.. StrategiesUnderTest.Available()];
        Assert.SkipWhen(strategies.Length < 2, "fewer than two strategies are available here");
        foreach (Workload workload in WorkloadCatalog.All)
        {
            foreach (int k in (int[])[0, 1, 5, 16])
            {
                GuestImage image = workload.Build(new WorkloadOptions(k, 5_000));
                ulong[] checksums =
                [
                    .. strategies
                        .Where(strategy => SweepPlan.WhyNotUnder(strategy, workload) is null)
                        .Where(strategy => k == 0 || IsFaithful(strategy, workload))
                        .Select(strategy => Checksum(strategy, image)),
                ];
                Assert.True(checksums.Distinct().Count() <= 1, $"{workload.Id}, k = {k}");
            }
        }
    }

    /// <summary>
    /// 25 cycles for RDTSC and 1 for each of 40 instructions; trapped, 1500 for exit and entry and 200 for emulation. Taken
    /// from two runs that differ by a thousand units, so that the markers' own exits cancel.
    /// </summary>
    [Theory]
    [InlineData("simulated-native", 65)]
    [InlineData("simulated-trap-and-emulate", 1740)]
    public void The_worked_example_comes_out_of_the_vmm(string id, int cycles) =>
        Assert.Equal(cycles, CyclesPerUnit(id, "rdtsc", k: 1, filler: 40), 9);

    [Theory]
    [InlineData("compute", 0, 20_000, 20_000)]
    [InlineData("compute", 16, 20_000, 20_000)]
    [InlineData("rdtsc", 0, 20_000, 20_000)]
    [InlineData("rdtsc", 16, 20_000, 20_000 + (16 * 1700))]
    [InlineData("port-io", 0, 777, 777)]
    [InlineData("port-io", 64, 777, 777 + (64 * 1700))]
    [InlineData("cr3-switch", 0, 3_000, 3_000)]
    [InlineData("interrupt-flag", 3, 3_000, 3_000 + (3 * 1700))]
    [InlineData("popf", 3, 3_000, 3_003)]
    [InlineData("syscall", 3, 3_000, 3_000 + (3 * (1 + (2 * 1700))))]
    [InlineData("page-fault", 3, 3_000, 3_000 + (3 * (4 + (3 * 1700))))]
    [InlineData("pte-update", 3, 3_000, 3_000 + (3 * (1 + (2 * 1700))))]
    public void A_unit_costs_its_instructions_and_its_traps(string workload, int k, int filler, int cycles) =>
        Assert.Equal(cycles, CyclesPerUnit("simulated-trap-and-emulate", workload, k, filler), 9);

    /// <summary>Once all is translated: what is inline costs its own, what calls out 500 + 200, what faults 1500 + 200.</summary>
    [Theory]
    [InlineData("compute", 16, 20_000, 20_000)]
    [InlineData("rdtsc", 16, 20_000, 20_000 + (16 * 28))]
    [InlineData("interrupt-flag", 3, 3_000, 3_000 + (3 * 3))]
    [InlineData("popf", 3, 3_000, 3_000 + (3 * 10))]
    [InlineData("cpuid", 3, 3_000, 3_000 + (3 * 50))]
    [InlineData("port-io", 64, 777, 777 + (64 * 700))]
    [InlineData("syscall", 3, 3_000, 3_000 + (3 * (1 + (2 * 700))))]
    [InlineData("pte-update", 3, 3_000, 3_000 + (3 * (1 + 700 + 1700)))]
    public void A_translated_unit_costs_its_instructions_and_its_callouts(
        string workload,
        int k,
        int filler,
        int cycles
    ) => Assert.Equal(cycles, CyclesPerUnit("simulated-binary-translation", workload, k, filler), 9);

    [Fact]
    public void What_was_translated_is_recorded_for_the_region_and_the_whole_run_and_what_left_the_code_in_exits()
    {
        var options = new SweepOptions
        {
            Strategies =
            [
                StrategiesUnderTest.Get("simulated-trap-and-emulate"),
                StrategiesUnderTest.Get("simulated-binary-translation"),
            ],
            Workloads = [WorkloadCatalog.Find("self-modifying")!],
            Profile = new SweepProfile("test", TimeSpan.FromMilliseconds(2), 1, [0, 4]),
            ComputedUnits = 10,
        };
        var observer = new RecordingObserver();
        _ = new Sweep(options).Run(observer, cancellation: TestContext.Current.CancellationToken);
        Assert.All(observer.Translations, one => Assert.Equal("simulated-binary-translation", one.Cell.Strategy));
        foreach (int k in (int[])[0, 4])
        {
            TranslationRecord region = Of(k, TranslationScope.Region);
            TranslationRecord run = Of(k, TranslationScope.Run);
            Assert.True(region.Statistics.Blocks < run.Statistics.Blocks);
            // Each store is into a translated block, which is translated again.
            Assert.True(k == 0 ? region.Statistics.Invalidations == 0 : region.Statistics.Invalidations >= 10 * k);
            Assert.Equal(run.Statistics.GuestInstructions * 1000 / 3.4, run.TranslateNanoseconds, 6);
            ExitRecord translate = observer.Exits.Single(exit =>
                exit.Reason == EngineReasons.Translate && exit.Cell.TrapsPerUnit == k
            );
            Assert.Equal(region.Statistics.Blocks, translate.Count);
            Assert.Equal(region.TranslateNanoseconds, translate.EmulateNanoseconds, 6);
        }

        TranslationRecord Of(int k, TranslationScope scope) =>
            observer.Translations.Single(one => one.Cell.TrapsPerUnit == k && one.Scope == scope);
    }

    private static ulong EndOfUnit(GuestImage image)
    {
        ImageSegment code = image.Segments[0];
        var decoder = Decoder.Create(64, code.Content.ToArray(), code.PhysicalAddress);
        return decoder.First(instruction => instruction.Mnemonic == Mnemonic.Ret).IP;
    }

    private static bool IsFaithful(Strategy strategy, Workload workload)
    {
        using var machine = new VirtualMachine(1 << 20, strategy.CreateEngine);
        return !workload.HolesUnder(strategy.Interface, machine.Capabilities).Any();
    }

    private static double CyclesPerUnit(string strategy, string workload, int k, int filler)
    {
        const long more = 1000;
        GuestImage image = WorkloadCatalog.Find(workload)!.Build(new WorkloadOptions(k, filler));
        SampleRun few = Run(StrategiesUnderTest.Get(strategy), image, 1);
        SampleRun many = Run(StrategiesUnderTest.Get(strategy), image, 1 + more);
        double nanoseconds = many.Regions[0].ElapsedNanoseconds - few.Regions[0].ElapsedNanoseconds;
        return Math.Round(nanoseconds * few.TicksPerSecond / 1e9, 3) / more;
    }

    private static ulong Checksum(Strategy strategy, GuestImage image) => Run(strategy, image, 7).Result.Checksum;

    private static SampleRun Run(Strategy strategy, GuestImage image, long units)
    {
        var options = new SweepOptions { Strategies = [], Workloads = [] };
        SampleRun run = new VirtualMachineRunner(options).Run(
            strategy,
            image,
            warmUp: 3,
            units,
            TestContext.Current.CancellationToken
        );
        Assert.Equal(RunEnd.Exited, run.Outcome.End);
        return run;
    }
}
