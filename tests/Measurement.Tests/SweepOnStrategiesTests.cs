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
        var options = new SweepOptions
        {
            Strategies = [StrategiesUnderTest.Get(id)],
            Workloads = WorkloadCatalog.All,
            Profile = new SweepProfile("test", TimeSpan.FromMilliseconds(2), 2, [0, 1, 3, 16]),
            ComputedUnits = 10,
        };
        var observer = new RecordingObserver();
        var sweep = new Sweep(options);
        SweepResult result = sweep.Run(observer, cancellation: TestContext.Current.CancellationToken);
        Assert.True(result.Complete);
        Assert.Equal(sweep.Plan.Order.Count, observer.Samples.Count);
        Assert.All(observer.Samples, sample => Assert.Equal((SampleStatus.Ok, ""), (sample.Status, sample.Note)));
        Assert.All(observer.Samples, sample => Assert.True(sample.ElapsedNanoseconds > 0));
    }

    [Fact]
    public void Checksums_are_those_of_every_other_strategy()
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
                        .Where(strategy => strategy.RunsPrivilegedGuests || !workload.NeedsPrivilege)
                        .Select(strategy => Checksum(strategy, image)),
                ];
                Assert.Single(checksums.Distinct());
            }
        }
    }

    private static ulong Checksum(Strategy strategy, GuestImage image)
    {
        SampleRun run = new VirtualMachineRunner(new SweepOptions { Strategies = [], Workloads = [] }).Run(
            strategy,
            image,
            warmUp: 3,
            units: 7,
            TestContext.Current.CancellationToken
        );
        Assert.Equal(RunEnd.Exited, run.Outcome.End);
        return run.Result.Checksum;
    }
}
