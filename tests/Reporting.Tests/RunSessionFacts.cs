using VirtBench.Measurement;
using VirtBench.Reporting.Runs;

namespace VirtBench.Reporting.Tests;

public sealed class RunSessionFacts
{
    private static RunDescription Planned(params Cell[] order) =>
        SyntheticRun.Description(rounds: 1) with
        {
            Strategies = [new("simulated-native", "Simulated native", true, "a cost profile")],
            Workloads = [new("compute", null, "Arithmetic")],
            Skipped = [],
            GuestImages = [],
            Order = [order],
        };

    [Fact]
    public void A_resumed_run_keeps_seed_and_strictness()
    {
        using var run = SyntheticRun.Empty(
            description: Planned(new Cell("simulated-native", "compute", 0)) with
            {
                Strict = true,
                Seed = 77,
            }
        );
        RunSession session = RunSession.Resume(run.Directory.FullPath);
        Assert.True(session.Directory.Manifest.Run.Strict);
        Assert.Equal(1, session.PlannedSamples);
        SessionOutcome outcome = session.Run(null, TestContext.Current.CancellationToken);
        Assert.True(outcome.Sweep.Complete);
        Assert.Equal(SampleStatus.Ok, Assert.Single(outcome.Report.Analysis.Contents.Samples).Status);
    }

    [Fact]
    public void A_run_whose_strategy_has_become_available_is_not_resumed()
    {
        using var run = SyntheticRun.Empty(
            description: Planned(new Cell("simulated-native", "compute", 0)) with
            {
                Strategies =
                [
                    new("simulated-native", "Simulated native", true, "a cost profile"),
                    new("simulated-trap-and-emulate", "Simulated", true, "a cost profile"),
                ],
                Skipped = [new SkippedCell("simulated-trap-and-emulate", null, "not there yet")],
            }
        );
        var error = Assert.Throws<RunDirectoryException>(() => RunSession.Resume(run.Directory.FullPath));
        Assert.Contains("simulated-trap-and-emulate was not available when it began and now is", error.Message);
    }

    [Fact]
    public void A_run_of_other_cells_than_this_build_would_plan_is_not_resumed()
    {
        var cell = new Cell("simulated-native", "compute", 0);
        using var run = SyntheticRun.Empty(description: Planned(cell, cell with { TrapsPerUnit = 1 }, cell));
        var error = Assert.Throws<RunDirectoryException>(() => RunSession.Resume(run.Directory.FullPath));
        Assert.Contains("other cells or another order", error.Message);
    }
}
