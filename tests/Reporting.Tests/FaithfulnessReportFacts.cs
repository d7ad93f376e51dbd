using VirtBench.Measurement;
using VirtBench.Reporting.Runs;

namespace VirtBench.Reporting.Tests;

/// <summary>What a report says of guests that were shown something untrue, on samples that are made up.</summary>
public sealed class FaithfulnessReportFacts
{
    private const string Seen = "not faithful: popf; another checksum than under hardware";
    private const string NotCompared = "not faithful: popf";
    private const string Ended = "not faithful: sysretq; the guest ended: triple fault";

    private static SyntheticRun Run(string popfNote)
    {
        var run = SyntheticRun.Empty(
            description: SyntheticRun.Description(rounds: 2) with
            {
                Strategies =
                [
                    new(
                        "trap-and-emulate",
                        "Trap and emulate",
                        false,
                        "measured: made up; shadow page tables flush",
                        [new HoleEntry("popf", "leaves the flag as it was")]
                    ),
                    new("hardware", "Hardware", false, "measured: made up", [new HoleEntry("sysretq", "ends it")]),
                ],
                Workloads =
                [
                    new("popf", "popfq", "Pops the flags"),
                    new("syscall", "syscall; sysretq", "Calls the kernel"),
                ],
                Shadow = "flush",
                Skipped = [],
            }
        );
        using var log = run.Directory.Append();
        foreach (var strategy in new[] { "trap-and-emulate", "hardware" })
        {
            foreach (var workload in new[] { "popf", "syscall" })
            {
                foreach (var (round, k) in new[] { (0, 0), (0, 1), (0, 4), (1, 0), (1, 1), (1, 4) })
                {
                    Take(log, strategy, workload, round, k, popfNote);
                }
            }
        }
        return run;
    }

    private static void Take(ISweepObserver log, string strategy, string workload, int round, int k, string popfNote)
    {
        const long Units = 1000;
        var hole = k > 0 && (strategy, workload) == ("trap-and-emulate", "popf");
        var ends = k > 0 && (strategy, workload) == ("hardware", "syscall");
        if (ends && round > 0)
        {
            return;
        }
        var traps = (strategy, workload) == ("trap-and-emulate", "syscall") ? k * Units : 0;
        var cell = new Cell(strategy, workload, k);
        log.SampleTaken(
            new Sample(
                round,
                cell,
                ends ? 0 : Units,
                traps,
                ends ? 0 : (5000 + round + (k * (traps > 0 ? 4000 : 3))) * Units,
                1,
                0,
                0,
                OutlierLabel.None,
                ends ? SampleStatus.Failed : SampleStatus.Ok,
                hole ? popfNote
                    : ends ? Ended
                    : ""
            ),
            new SampleRecords(
                traps > 0
                    ? [new ExitRecord(round, cell, "syscall", 2 * traps, null, 80.0 * traps, 120.0 * traps, null)]
                    : [],
                [],
                []
            )
        );
    }

    private static string Report(SyntheticRun run)
    {
        ReportWriter.Write(run.Directory, new NoRenderer());
        return File.ReadAllText(run.Directory.At(RunDirectory.MarkdownReportFile));
    }

    [Fact]
    public void Every_pair_is_faithful_or_marked_with_its_hole()
    {
        using var run = Run(Seen);
        var report = Report(run);
        Assert.Contains("| popf | not faithful: popf | faithful |", report);
        Assert.Contains("| syscall | faithful | not faithful: sysretq |", report);
        Assert.Contains("2 of 4 pairs of workload and strategy are not faithful", report);
        Assert.Contains("in 2 of them the guest saw it", report);
    }

    [Theory]
    [InlineData(Seen, "yes: another checksum than under hardware")]
    [InlineData(
        "not faithful: popf; the same checksum as under hardware",
        "not in its checksum: the same checksum as under"
    )]
    [InlineData(NotCompared, "not known: no faithful strategy did the same work")]
    public void The_hole_is_explained_and_whether_the_guest_saw_it(string note, string evidence)
    {
        using var run = Run(note);
        var report = Report(run);
        Assert.Contains($"| popf | Trap and emulate | popf | leaves the flag as it was | {evidence}", report);
        Assert.Contains("| syscall | Hardware | sysretq | ends it | yes: the guest ended: triple fault |", report);
    }

    [Fact]
    public void A_fit_of_a_hole_claims_no_cost_of_a_trap()
    {
        using var run = Run(Seen);
        Report(run);
        var fit = RunAnalysis
            .Of(run.Directory)
            .Fits.Single(fit => fit is { Workload: "popf", Strategy: "trap-and-emulate" });
        Assert.Null(fit.TrapNanoseconds);
        Assert.Equal(["popf"], fit.Holes);
        Assert.StartsWith("not faithful: popf: 0 traps: no Δt; ", fit.VerdictText);
        Assert.Contains("not faithful: popf: 0 traps", File.ReadAllText(run.Directory.At(RunDirectory.FitsFile)));
    }

    [Fact]
    public void A_guest_that_its_hole_has_ended_leaves_the_control()
    {
        using var run = Run(Seen);
        Report(run);
        var fit = RunAnalysis
            .Of(run.Directory)
            .Fits.Single(fit => fit is { Workload: "syscall", Strategy: "hardware" });
        Assert.StartsWith("not faithful: sysretq: too few points: only k = 0", fit.VerdictText);
        Assert.DoesNotContain(run.Directory.Read().Samples, sample => sample.IsWrong);
    }

    [Fact]
    public void An_operation_of_two_exits_is_called_one()
    {
        using var run = Run(Seen);
        var report = Report(run);
        Assert.Contains("per operation of 2 exits", report);
        var fits = RunAnalysis.Of(run.Directory);
        Assert.Equal(2, fits.ExitsPerOperation(fits.Fits.Single(fit => fit.TrapNanoseconds is not null))!.Value, 9);
    }

    [Fact]
    public void The_policy_of_shadow_paging_is_in_manifest_and_report()
    {
        using var run = Run(Seen);
        Assert.Contains("shadow page tables flush", Report(run));
        Assert.Equal("flush", RunDirectory.Open(run.Directory.FullPath).Manifest.Run.Shadow);
    }

    [Fact]
    public void A_run_of_an_earlier_version_has_no_holes_and_is_read()
    {
        using var run = SyntheticRun.Full();
        var report = Report(run);
        Assert.Contains("no guest executed a sensitive instruction that its strategy lets through", report);
        Assert.Contains("| rdtsc | faithful |", report);
    }
}
