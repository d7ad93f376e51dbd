using System.Text;
using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;
using VirtBench.Workloads;

namespace VirtBench.Measurement.Tests;

/// <summary>Every workload, built for the paravirtual interface, against itself built for the native one.</summary>
public sealed class ParavirtualWorkloadTests
{
    private const long Units = 4;
    private const long WarmUp = 2;

    /// <summary>Has no holes, and runs everywhere.</summary>
    private const string Faithful = "simulated-binary-translation";

    public static TheoryData<string> Strategies => ParavirtualVariant.Ids;

    public static TheoryData<string, string> StrategiesAndWorkloads()
    {
        var data = new TheoryData<string, string>();
        foreach (string strategy in ParavirtualVariant.Ids.Select(row => row.Data))
        {
            foreach (Workload workload in WorkloadCatalog.All.Where(one => one.DependsOnDensity))
            {
                data.Add(strategy, workload.Id);
            }
        }

        return data;
    }

    [Theory]
    [MemberData(nameof(StrategiesAndWorkloads))]
    public void The_work_is_that_of_the_native_interface_and_the_traps_are_those_foretold(string id, string workloadId)
    {
        Strategy strategy = ParavirtualVariant.Get(id);
        Strategy reference = StrategiesUnderTest.Get(Faithful);
        Workload workload = WorkloadCatalog.Find(workloadId)!;
        Assert.SkipWhen(SweepPlan.WhyNotUnder(strategy, workload) is not null, "not a workload for this strategy");
        foreach (int k in (int[])[0, 1, 5, 16])
        {
            (SampleRun run, GuestImage _) = Run(strategy, workload, k);
            bool holes = k > 0 && workload.HolesUnder(strategy.Interface, run.Capabilities).Any();
            if (!holes)
            {
                Assert.Equal(Run(reference, workload, k).Run.Result.Checksum, run.Result.Checksum);
            }

            SensitiveOperation operation = workload.Operation(GuestInterface.Paravirtual);
            if (
                operation.Trap is { } kind
                && workload.ExitsUnder(GuestInterface.Paravirtual, run.Capabilities) is { } exits
            )
            {
                Assert.Equal(exits * k * Units, run.Regions[0].Exits[kind]);
            }
        }
    }

    /// <summary>Every exit of an operation, not only those of the kind that counts as its trap.</summary>
    [Theory]
    [InlineData("rdtsc", "rdtsc 1")]
    [InlineData("cr3-switch", "hidden-page-fault 9, hypercall 1")]
    [InlineData("interrupt-flag", "")]
    [InlineData("popf", "")]
    [InlineData("syscall", "syscall 1, hypercall 1")]
    [InlineData("page-fault", "guest-page-fault 1, hypercall 1")]
    [InlineData("pte-update", "hidden-page-fault 2, hypercall 1")]
    [InlineData("timer-interrupt", "rdtsc 1, hypercall 4")]
    public void An_operation_takes_these_exits_where_privileged_instructions_and_rdtsc_trap(string id, string exits)
    {
        const int k = 5;
        Strategy strategy = ParavirtualVariant.Get("simulated-trap-and-emulate, paravirtual guest");
        Workload workload = WorkloadCatalog.Find(id)!;
        LedgerSnapshot with = Run(strategy, workload, k).Run.Regions[0].Exits;
        LedgerSnapshot difference = with.Since(Run(strategy, workload, 0).Run.Regions[0].Exits);
        Assert.Equal(
            exits,
            string.Join(
                ", ",
                Enumerable
                    .Range(0, TrapReasons.Count)
                    .Where(i => difference.Counts[i] != 0)
                    .Select(i => $"{((TrapReason)i).Name()} {difference.Counts[i] / (double)(k * Units)}")
            )
        );
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void A_sweep_finds_nothing_wrong_with_a_paravirtual_guest(string id)
    {
        Strategy strategy = ParavirtualVariant.Get(id);
        var options = new SweepOptions
        {
            Strategies = [StrategiesUnderTest.Get(Faithful), strategy],
            Workloads =
            [
                .. WorkloadCatalog.All.Where(workload =>
                    workload.DependsOnDensity && workload.Id is not ("cpuid" or "descriptor-tables")
                ),
            ],
            Profile = new SweepProfile("test", TimeSpan.FromMilliseconds(1), 1, [0, 3]),
            FillerInstructions = 3_000,
            ComputedUnits = 10,
        };
        var observer = new RecordingObserver();
        Assert.True(new Sweep(options).Run(observer, cancellation: TestContext.Current.CancellationToken).Complete);
        Assert.All(
            observer.Samples.Where(sample => sample.Cell.Strategy == strategy.Id),
            sample =>
            {
                Assert.Equal((SampleStatus.Ok, sample.Mark?.ToString() ?? ""), (sample.Status, sample.Note));
                Assert.False(sample.IsWrong);
            }
        );
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Mini_os_says_the_same_and_counts_the_same_calls(string id)
    {
        GuestRunResult native = RunMiniOs(StrategiesUnderTest.Get(Faithful));
        GuestRunResult paravirtual = RunMiniOs(ParavirtualVariant.Get(id));
        Assert.Equal(
            (RunEnd.Exited, Encoding.ASCII.GetString(native.Console.Span)),
            (paravirtual.Outcome.End, Encoding.ASCII.GetString(paravirtual.Console.Span))
        );
        Assert.Equal(0, paravirtual.Outcome.Status);
        Assert.Equal(native.Exits["region-marker"], paravirtual.Exits["region-marker"]);
        Assert.True(paravirtual.Exits["hypercall"] > 0);
        Assert.DoesNotContain("interrupt-flag", paravirtual.Exits.Keys);
        Assert.DoesNotContain("cr3-switch", paravirtual.Exits.Keys);
    }

    private static GuestRunResult RunMiniOs(Strategy strategy) =>
        GuestRun.Execute(
            strategy,
            new MiniOs().Build(new WorkloadOptions(7, 5_000, strategy.Interface)),
            new GuestRunOptions
            {
                RamBytes = MiniOs.MinimumRam,
                Parameters = [3, 40],
                Timeout = TimeSpan.FromMinutes(1),
            },
            cancellation: TestContext.Current.CancellationToken
        );

    private static (SampleRun Run, GuestImage Image) Run(Strategy strategy, Workload workload, int k)
    {
        GuestImage image = workload.Build(new WorkloadOptions(k, 5_000, strategy.Interface));
        SampleRun run = new VirtualMachineRunner(new SweepOptions { Strategies = [], Workloads = [] }).Run(
            strategy,
            image,
            WarmUp,
            Units,
            TestContext.Current.CancellationToken
        );
        Assert.Equal((RunEnd.Exited, null), (run.Outcome.End, run.Outcome.Message));
        return (run, image);
    }
}
