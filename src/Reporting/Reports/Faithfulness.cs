using VirtBench.Measurement;

namespace VirtBench.Reporting.Reports;

/// <summary>
/// Where a guest saw what it would see on the platform itself, and where a sensitive instruction went through its engine
/// unseen: by strategy and workload, with what the guest got instead.
/// </summary>
internal static class Faithfulness
{
    /// <summary>One sentence for the summary; null for a run without usable samples.</summary>
    public static Paragraph? Summary(RunAnalysis run)
    {
        var marked = Marked(run).ToList();
        var pairs = run.Fits.Count(fit => fit.Points > 0 || fit.Holes.Count > 0);
        if (pairs == 0)
        {
            return null;
        }
        if (marked.Count == 0)
        {
            return new Paragraph(
                "Faithfulness: no guest executed a sensitive instruction that its strategy lets through."
            );
        }
        var seen = marked.Count(pair => pair.Marks.Any(mark => mark.Seen));
        var names = marked
            .GroupBy(pair => pair.Workload)
            .Select(group =>
                $"{group.Key} ({string.Join(", ", group.Select(pair => run.Strategy(pair.Strategy).Label))})"
            );
        return new Paragraph(
            "Faithfulness: ",
            Span.Strong($"{marked.Count} of {pairs} pairs of workload and strategy are not faithful"),
            $", and in {seen} of them the guest saw it: {string.Join(", ", names)}. The section on faithfulness says what it got."
        );
    }

    public static IEnumerable<Block> Section(RunAnalysis run)
    {
        yield return new Paragraph(
            "A strategy runs a workload faithfully when the workload's sensitive instructions give the guest what the platform "
                + "gives. On x86-64 some of them do not trap in ring 3: an engine that runs guest ring 0 there lets them through, "
                + "and nothing tells the monitor. Times of such a pair are times of the untrapped instruction, and no cost of a "
                + "trap follows from them. Whether a guest saw it is known where its checksum can be compared with that of a "
                + "faithful strategy for the same work."
        );
        var strategies = run.Fits.Select(fit => fit.Strategy).Distinct().ToList();
        yield return new Table(
            "Faithful or not, by workload and strategy",
            [new("Workload"), .. strategies.Select(id => new Column(run.Strategy(id).Label))],
            [
                .. run.Workloads.Select(workload =>
                    (IReadOnlyList<string>)
                        [workload, .. strategies.Select(strategy => Verdict(run, strategy, workload))]
                ),
            ]
        );
        var rows = Marked(run)
            .SelectMany(pair =>
                pair.Marks.SelectMany(mark => mark.Holes)
                    .Distinct()
                    .Select(hole =>
                        (IReadOnlyList<string>)
                            [
                                pair.Workload,
                                run.Strategy(pair.Strategy).Label,
                                hole,
                                Effect(run, pair.Strategy, hole),
                                Evidence(pair.Marks),
                            ]
                    )
            )
            .ToList();
        if (rows.Count > 0)
        {
            yield return new Table(
                "What the guest got instead",
                [
                    new("Workload"),
                    new("Strategy"),
                    new("Instruction"),
                    new("What it does there"),
                    new("Did the guest see it?"),
                ],
                rows
            );
        }
    }

    private sealed record MarkedPair(string Workload, string Strategy, IReadOnlyList<FaithfulnessMark> Marks);

    private static IEnumerable<MarkedPair> Marked(RunAnalysis run) =>
        run
            .Fits.Where(fit => fit.Holes.Count > 0)
            .Select(fit => new MarkedPair(
                fit.Workload,
                fit.Strategy,
                [.. SamplesOf(run, fit.Strategy, fit.Workload).Select(sample => sample.Mark).OfType<FaithfulnessMark>()]
            ));

    private static IEnumerable<Sample> SamplesOf(RunAnalysis run, string strategy, string workload) =>
        run.Contents.Samples.Where(sample => sample.Cell.Strategy == strategy && sample.Cell.Workload == workload);

    private static string Verdict(RunAnalysis run, string strategy, string workload)
    {
        var fit = run.Fits.FirstOrDefault(fit => fit.Strategy == strategy && fit.Workload == workload);
        var samples = SamplesOf(run, strategy, workload).ToList();
        return fit is null ? "not run"
            : fit.Holes.Count > 0 ? $"not faithful: {string.Join(", ", fit.Holes)}"
            : samples.Exists(sample => sample.Status == SampleStatus.ChecksumMismatch) ? "another checksum, unexplained"
            : samples.Exists(sample => sample.Status == SampleStatus.TrapMismatch) ? "other traps than expected"
            : samples.TrueForAll(sample => sample.Status == SampleStatus.Failed) ? "failed"
            : "faithful";
    }

    private static string Effect(RunAnalysis run, string strategy, string hole) =>
        run.Strategy(strategy).Holes?.FirstOrDefault(entry => entry.Instruction == hole)?.Effect ?? "not recorded";

    private static string Evidence(IReadOnlyList<FaithfulnessMark> marks)
    {
        var telling =
            marks.FirstOrDefault(mark => mark.Seen) ?? marks.FirstOrDefault(mark => mark.Evidence is not null);
        return telling switch
        {
            null => "not known: no faithful strategy did the same work",
            { Seen: true } => $"yes: {telling.Evidence}",
            _ => $"not in its checksum: {telling.Evidence}",
        };
    }
}
