using System.Globalization;
using VirtBench.Analysis;
using VirtBench.Measurement;

namespace VirtBench.Reporting.Reports;

/// <summary>What engines that translate did, and what it is worth against the same guest trapped.</summary>
internal static class Translation
{
    /// <summary>Nothing where no strategy translated.</summary>
    public static IReadOnlyList<Block> Of(RunAnalysis run)
    {
        var cells = Cells(run);
        if (cells.Count == 0)
        {
            return [];
        }
        var blocks = new List<Block>
        {
            new Paragraph(
                "Translated code is made once, when it is first executed, and made again when it has been overwritten or its mapping "
                    + "has changed. The first table counts all of a virtual machine's life, boot and warm-up included, as a mean over "
                    + "the usable samples of a cell, and divides the time of translating (decoding, encoding, linking) by the guest "
                    + "instructions translated. The second counts the measured region only: what still leaves translated code there."
            ),
            Made(run, cells),
            Left(run, cells),
            new Paragraph(
                "Callouts are exits to the monitor, by the reasons of exits.csv. A link is a direct branch taken before its target was linked; "
                    + "a look-up that misses is an indirect branch or a return whose target the code cache had to be searched for. Both "
                    + "are served inside the engine. The hit rate is blank where hits were not counted: counting them costs time."
            ),
        };
        if (KindsOfCode(run, cells) is { Rows.Count: > 0 } kinds)
        {
            blocks.Add(kinds);
        }
        var pairs = Pairs(run, cells).ToList();
        if (pairs.Count > 0)
        {
            blocks.Add(AgainstTraps(run, pairs));
            blocks.AddRange(Explanations(pairs));
        }
        return blocks;
    }

    private static List<CellCounts> Cells(RunAnalysis run)
    {
        var usable = run
            .Contents.Samples.Where(sample => sample.Status == SampleStatus.Ok)
            .ToDictionary(sample => (sample.Round, sample.Cell));
        var records = run
            .Contents.Translations.Where(record => usable.ContainsKey((record.Round, record.Cell)))
            .ToLookup(record => record.Cell);
        var exits = run
            .Contents.Exits.Where(exit => usable.ContainsKey((exit.Round, exit.Cell)))
            .ToLookup(exit => exit.Cell);
        var units = usable.Values.ToLookup(sample => sample.Cell);
        return
        [
            .. run
                .Fits.SelectMany(fit =>
                    Ends(fit.Densities).Select(at => new Cell(fit.Strategy, fit.Workload, at.TrapsPerUnit))
                )
                .Where(records.Contains)
                .Select(cell => new CellCounts(
                    cell,
                    units[cell].Sum(sample => (double)sample.Units),
                    [.. records[cell].Where(record => record.Scope == TranslationScope.Run)],
                    [.. records[cell].Where(record => record.Scope == TranslationScope.Region)],
                    [
                        .. exits[cell]
                            .Where(exit => !EngineReasons.Contains(exit.Reason) && exit.Reason != "region-marker"),
                    ]
                )),
        ];
    }

    // What is between the least k and the greatest is between their numbers: translation-statistics.csv has every cell.
    private static IEnumerable<DensityPoint> Ends(IReadOnlyList<DensityPoint> densities) =>
        densities.Count > 2 ? [densities[0], densities[^1]] : densities;

    private static Table Made(RunAnalysis run, List<CellCounts> cells) =>
        new(
            "Translation over the whole life of a virtual machine, mean of the samples",
            [
                new("Workload"),
                new("Strategy"),
                new("k", true),
                new("Blocks", true),
                new("Guest instructions", true),
                new("Time translating", true),
                new("per instruction", true),
                new("Bytes out per byte in", true),
                new("Invalidations", true),
                new("Flushes", true),
            ],
            [
                .. cells
                    .Where(cell => cell.Run.Count > 0)
                    .Select(cell =>
                        (IReadOnlyList<string>)
                            [
                                cell.Cell.Workload,
                                run.Strategy(cell.Cell.Strategy).Label,
                                cell.Cell.TrapsPerUnit.ToString(CultureInfo.InvariantCulture),
                                Count(cell.RunMean(record => record.Statistics.Blocks)),
                                Count(cell.RunMean(record => record.Statistics.GuestInstructions)),
                                Quantity.Time(cell.TranslationNanoseconds),
                                cell.RunMean(record => record.Statistics.GuestInstructions) is > 0 and var instructions
                                    ? Quantity.Time(cell.TranslationNanoseconds / instructions)
                                    : "",
                                Expansion(cell),
                                Count(cell.RunMean(record => record.Statistics.Invalidations)),
                                Count(cell.RunMean(record => record.Statistics.Flushes)),
                            ]
                    ),
            ]
        );

    // A modelled translator makes no code: then there is nothing to divide.
    private static string Expansion(CellCounts cell) =>
        cell.RunMean(record => record.Statistics.HostBytes) is > 0 and var made
        && cell.RunMean(record => record.Statistics.GuestBytes) is > 0 and var read
            ? Quantity.Number(made / read)
            : "";

    private static Table Left(RunAnalysis run, List<CellCounts> cells) =>
        new(
            "What leaves translated code in the measured region, per unit of work",
            [
                new("Workload"),
                new("Strategy"),
                new("k", true),
                new("Callouts", true),
                new("by reason"),
                new("Blocks translated", true),
                new("Links", true),
                new("Look-ups that miss", true),
                new("Hit rate", true),
                new("Invalidations", true),
            ],
            [
                .. cells
                    .Where(cell => cell.Units > 0)
                    .Select(cell =>
                        (IReadOnlyList<string>)
                            [
                                cell.Cell.Workload,
                                run.Strategy(cell.Cell.Strategy).Label,
                                cell.Cell.TrapsPerUnit.ToString(CultureInfo.InvariantCulture),
                                Quantity.Number(cell.Callouts.Sum(exit => (double)exit.Count) / cell.Units),
                                string.Join(
                                    ", ",
                                    cell.Callouts.GroupBy(exit => exit.Reason)
                                        .Select(reason => (reason.Key, Count: reason.Sum(exit => (double)exit.Count)))
                                        .OrderByDescending(reason => reason.Count)
                                        .Select(reason => $"{reason.Key} {Quantity.Number(reason.Count / cell.Units)}")
                                ),
                                Quantity.Number(cell.RegionSum(record => record.Statistics.Blocks) / cell.Units),
                                Quantity.Number(cell.RegionSum(record => record.Statistics.Links) / cell.Units),
                                Quantity.Number(cell.RegionSum(record => record.Statistics.LookupMisses) / cell.Units),
                                HitRate(cell),
                                Quantity.Number(cell.RegionSum(record => record.Statistics.Invalidations) / cell.Units),
                            ]
                    ),
            ]
        );

    private static string HitRate(CellCounts cell)
    {
        if (cell.Region.Count == 0 || cell.Region.Any(record => record.Statistics.LookupHits is null))
        {
            return "";
        }
        var hits = cell.RegionSum(record => record.Statistics.LookupHits!.Value);
        var all = hits + cell.RegionSum(record => record.Statistics.LookupMisses);
        return all > 0 ? Quantity.Percent(hits / all) : "";
    }

    /// <summary>What translation makes of code in which nothing is sensitive: the s of its kind.</summary>
    private static Table KindsOfCode(RunAnalysis run, List<CellCounts> cells)
    {
        var translators = cells.Select(cell => cell.Cell.Strategy).ToHashSet();
        return new Table(
            "Kinds of code: s, the time of a unit translated over its time where the same code runs as it is",
            [
                new("Workload"),
                new("Translated by"),
                new("Against"),
                new("Unit, translated", true),
                new("Unit, as it is", true),
                new("s", true),
            ],
            [
                .. run
                    .Fits.Where(fit =>
                        translators.Contains(fit.Strategy)
                        && fit is { Densities.Count: 1, UntrappedUnitNanoseconds: not null }
                    )
                    .SelectMany(translated =>
                        run.Fits.Where(fit =>
                                fit.Workload == translated.Workload
                                && !translators.Contains(fit.Strategy)
                                && run.Strategy(fit.Strategy).IsComputed == run.Strategy(translated.Strategy).IsComputed
                                && !run.IsRingZeroEmulated(fit.Strategy)
                                && fit.UntrappedUnitNanoseconds is not null
                            )
                            .Select(direct =>
                                (IReadOnlyList<string>)
                                    [
                                        translated.Workload,
                                        run.Strategy(translated.Strategy).Label,
                                        run.Strategy(direct.Strategy).Label,
                                        Quantity.Time(translated.UntrappedUnitNanoseconds!.Value),
                                        Quantity.Time(direct.UntrappedUnitNanoseconds!.Value),
                                        translated.UntrappedUnitNanoseconds.Value.Over(
                                            direct.UntrappedUnitNanoseconds.Value
                                        )
                                            is { } s
                                            ? Quantity.Times(s)
                                            : "not certain",
                                    ]
                            )
                    ),
            ]
        );
    }

    /// <summary>Workloads that were measured both ways, times from the same kind of clock.</summary>
    private static IEnumerable<Pair> Pairs(RunAnalysis run, List<CellCounts> cells)
    {
        var translators = cells.Select(cell => cell.Cell.Strategy).ToHashSet();
        foreach (var translated in run.Fits.Where(fit => translators.Contains(fit.Strategy)))
        {
            var most = cells.Last(cell =>
                (cell.Cell.Strategy, cell.Cell.Workload) == (translated.Strategy, translated.Workload)
            );
            foreach (
                var trapped in run.Fits.Where(fit =>
                    fit.Workload == translated.Workload
                    && !translators.Contains(fit.Strategy)
                    && run.Strategy(fit.Strategy).IsComputed == run.Strategy(translated.Strategy).IsComputed
                    && !run.IsRingZeroEmulated(fit.Strategy)
                )
            )
            {
                if (BreakEven.Of(translated, trapped, most.TranslationNanoseconds) is { } breakEven)
                {
                    yield return new Pair(translated, trapped, most.Cell.TrapsPerUnit, breakEven);
                }
            }
        }
    }

    private static Table AgainstTraps(RunAnalysis run, List<Pair> pairs) =>
        new(
            "Against the same instruction where it is not translated, and from where on translation pays",
            [
                new("Workload"),
                new("Translated by"),
                new("Against"),
                new("s, unit without it", true),
                new("c, translated", true),
                new("Δt, not translated", true),
                new("Δt/c", true),
                new("Pays from k*", true),
                new("or traps per second, n*", true),
                new("Time translating, J", true),
                new("Units until repaid", true),
                new("at k", true),
            ],
            [
                .. pairs.Select(pair =>
                    (IReadOnlyList<string>)
                        [
                            pair.Translated.Workload,
                            run.Strategy(pair.Translated.Strategy).Label,
                            run.Strategy(pair.Trapped.Strategy).Label,
                            pair.BreakEven.Slowdown is { } slowdown ? Quantity.Times(slowdown) : "not certain",
                            .. run.Workload(pair.Translated.Workload).SensitiveInstruction is null
                                ? (string[])["", "", "", ""]
                                :
                                [
                                    Quantity.Time(pair.BreakEven.TranslatedInstructionNanoseconds),
                                    Quantity.Time(pair.BreakEven.TrapNanoseconds),
                                    pair.BreakEven.CostRatio is { } ratio ? Quantity.Times(ratio) : "c may be 0",
                                    FromWhere(pair.BreakEven),
                                ],
                            pair.BreakEven.TrapsPerSecond switch
                            {
                                null => "",
                                0 => pair.BreakEven.InstructionsPerUnit?.High is > 0 ? "" : "any",
                                { } rate => Quantity.PerSecond(rate),
                            },
                            Quantity.Time(pair.BreakEven.TranslationNanoseconds),
                            pair.BreakEven.UnitsToRepay(pair.TrapsPerUnit) switch
                            {
                                null => "inconclusive",
                                double.PositiveInfinity => "never",
                                { } units => Count(Math.Ceiling(units)),
                            },
                            pair.TrapsPerUnit.ToString(CultureInfo.InvariantCulture),
                        ]
                ),
            ]
        );

    private static string FromWhere(BreakEven breakEven) =>
        breakEven.InstructionsPerUnit switch
        {
            { High: <= 0 } or { Value: <= 0, Interval: null } => "the first",
            { Value: <= 0 } k => $"at most {Quantity.Number(k.High!.Value)}",
            { } k => Quantity.Number(k.Value)
                + (
                    k.Interval is { } interval
                        ? $" ({Quantity.Number(interval.Low)} to {Quantity.Number(interval.High)})"
                        : ""
                ),
            null
                when breakEven.TrapNanoseconds.Minus(breakEven.TranslatedInstructionNanoseconds)
                    is { Low: <= 0, High: >= 0 } => "inconclusive",
            null => "never",
        };

    private static IEnumerable<Paragraph> Explanations(List<Pair> pairs)
    {
        yield return new Paragraph(
            "Translation costs once, J, and then c for each sensitive instruction and the factor s on everything else; an exit costs "
                + "nothing until it happens, and then Δt. So k* = (s \u2212 1)·t0/(Δt \u2212 c) is the number of sensitive instructions in a unit "
                + "from which on translated code is the faster, n* the traps per wall-clock second that the guest then takes without "
                + "translation, and J/(t0 + k·Δt \u2212 s·t0 \u2212 k·c) the units until the translation is repaid. J is that of a whole virtual "
                + "machine at the largest k, its boot included. Intervals are Fieller's for ratios; the fits of two strategies are taken as independent."
        );
        if (pairs.Exists(pair => pair.Trapped.TrapNanoseconds is null))
        {
            yield return new Paragraph(
                "Where the instruction does not trap without translation, its cost stands in the place of Δt."
            );
        }
    }

    private static string Count(double count) =>
        count.ToString("N0", CultureInfo.InvariantCulture).Replace(",", "\u202f");

    private sealed record Pair(OverheadFit Translated, OverheadFit Trapped, int TrapsPerUnit, BreakEven BreakEven);

    /// <summary>Counts of one cell's usable samples.</summary>
    private sealed record CellCounts(
        Cell Cell,
        double Units,
        IReadOnlyList<TranslationRecord> Run,
        IReadOnlyList<TranslationRecord> Region,
        IReadOnlyList<ExitRecord> Callouts
    )
    {
        public double TranslationNanoseconds => RunMean(record => record.TranslateNanoseconds);

        public double RunMean(Func<TranslationRecord, double> of) => Run.Count > 0 ? Run.Average(of) : 0;

        public double RegionSum(Func<TranslationRecord, double> of) => Region.Sum(of);
    }
}
