using System.Globalization;
using VirtBench.Analysis;
using VirtBench.Measurement;
using VirtBench.Reporting.Runs;

namespace VirtBench.Reporting.Reports;

/// <summary>What the report of a run says. Every number is computed from the run's records.</summary>
internal sealed class RunReport
{
    private const int MostFailures = 50;

    /// <summary>Pairs of workload and strategy above which the summary has an item for each workload only.</summary>
    private const int MostFitSummaries = 20;

    /// <summary>Half an interval of Δt, as a share of it, above which a report advises a quieter host.</summary>
    private const double WideInterval = 0.1;

    private readonly RunAnalysis run;
    private readonly IReadOnlyList<FigureBlock> figures;
    private readonly IReadOnlyList<string> notices;

    private RunReport(RunAnalysis run, IReadOnlyList<FigureBlock> figures, IReadOnlyList<string> notices)
    {
        this.run = run;
        this.figures = figures;
        this.notices = notices;
    }

    /// <param name="run">The run.</param>
    /// <param name="figures">Its figures, with renderings where there are any.</param>
    /// <param name="notices">What the reader must know about how the report came about, a line each.</param>
    public static ReportDocument Of(
        RunAnalysis run,
        IReadOnlyList<FigureBlock> figures,
        IReadOnlyList<string> notices
    ) => new RunReport(run, figures, notices).Document();

    private ReportDocument Document()
    {
        var blocks = new List<Block>();
        blocks.Add(Provenance());
        blocks.AddRange(HardwareParagraph.Of(run));
        blocks.Add(new Heading("Summary", "summary"));
        blocks.AddRange(Summary());
        if (run.Fits.Count > 0)
        {
            blocks.Add(new Heading("Faithfulness", "faithfulness"));
            blocks.AddRange(Faithfulness.Section(run));
        }
        blocks.Add(new Heading("Figures", "figures"));
        blocks.AddRange(figures);
        if (figures.Count == 0)
        {
            blocks.Add(
                new Paragraph(
                    run.Contents.Samples.Count == 0
                        ? "No samples, no figures."
                        : "No strategy and workload has usable samples at two densities, so there is nothing to draw."
                )
            );
        }
        blocks.Add(new Heading("Results", "results"));
        blocks.AddRange(Operations.Of(run));
        blocks.AddRange(Results());
        if (InputAndOutput.Of(run) is { Count: > 0 } inputAndOutput)
        {
            blocks.Add(new Heading("Input and output", "input-and-output"));
            blocks.AddRange(inputAndOutput);
        }
        if (KernelExits.Of(run) is { Count: > 0 } kernelExits)
        {
            blocks.Add(new Heading("Exits that the kernel handled itself", "kernel-exits"));
            blocks.AddRange(kernelExits);
        }
        if (Translation.Of(run) is { Count: > 0 } translation)
        {
            blocks.Add(new Heading("Translation", "translation"));
            blocks.AddRange(translation);
        }
        blocks.Add(new Heading("Skipped and failed", "skipped"));
        blocks.AddRange(SkippedAndFailed());
        blocks.Add(new Heading("Method in short", "method"));
        blocks.AddRange(Method());
        blocks.Add(new Heading("Environment", "environment"));
        blocks.Add(EnvironmentTable.Of(run.Environment));
        blocks.Add(new Heading("To reproduce", "reproduce"));
        blocks.AddRange(Reproduction());
        blocks.Add(new Heading("References", "references"));
        blocks.Add(References());
        return new ReportDocument($"What traps cost on {run.Manifest.Host}", blocks);
    }

    private Paragraph Provenance() =>
        new(
            $"VirtBench {run.Manifest.Run.Version}, run of "
                + run.Manifest.StartedUtc.UtcDateTime.ToString("d MMMM yyyy, HH:mm", CultureInfo.InvariantCulture)
                + " UTC"
                + (run.Manifest.Run.Profile is { } profile ? $", profile {profile}." : ".")
        );

    private IEnumerable<Block> Summary()
    {
        var trapping = run.Fits.Where(fit => fit.TrapNanoseconds is { Value: > 0 }).ToList();
        var measured = trapping.Where(fit => !IsComputed(fit) && !run.IsRingZeroEmulated(fit.Strategy)).ToList();
        yield return Extremes(measured);
        var concluded = run.Fits.Where(fit => fit.Verdict != FitVerdict.TooFewPoints || fit.Holes.Count > 0).ToList();
        var items =
            concluded.Count > MostFitSummaries
                ? concluded.GroupBy(fit => fit.Workload).Select(WorkloadSummary).ToList()
                : concluded.Select(FitSummary).ToList();
        if (items.Count > 0)
        {
            yield return new BulletList(items);
        }
        yield return Certainty(measured);
        if (Faithfulness.Summary(run) is { } faithfulness)
        {
            yield return faithfulness;
        }
        if (run.Fits.Any(IsComputed))
        {
            yield return new Paragraph(
                "Numbers marked as computed come from a simulated processor with a cost profile, a list of what each kind of "
                    + "instruction and each trap costs. They repeat exactly, and they say nothing about the speed of this host."
            );
        }
        if (notices.Count > 0)
        {
            yield return new BulletList([.. notices.Select(notice => new Paragraph(notice))]);
        }
    }

    private Paragraph Extremes(List<OverheadFit> measured)
    {
        const string WhatATrapIs =
            "A trap is a guest instruction that the processor refuses, so that the virtual machine monitor must step in. ";
        // An operation of several exits says nothing about the cost of one.
        var certain = measured.Where(fit => fit.TrapNanoseconds!.Value.Low is not <= 0 && ExitsOf(fit) == 1).ToList();
        if (certain.Count == 0)
        {
            return new Paragraph(WhatATrapIs, WithoutCost());
        }
        var least = certain.MinBy(fit => fit.TrapNanoseconds!.Value.Value)!;
        var most = certain.MaxBy(fit => fit.TrapNanoseconds!.Value.Value)!;
        return ReferenceEquals(least, most)
            ? new Paragraph(
                WhatATrapIs,
                "On this host one costs ",
                Span.Strong(Quantity.Time(least.TrapNanoseconds!.Value)),
                $" ({least.Workload} under {Label(least)})."
            )
            : new Paragraph(
                WhatATrapIs,
                "On this host one costs from ",
                Span.Strong(Quantity.Time(least.TrapNanoseconds!.Value.Value)),
                $" ({least.Workload} under {Label(least)}) to ",
                Span.Strong(Quantity.Time(most.TrapNanoseconds!.Value.Value)),
                $" ({most.Workload} under {Label(most)})."
            );
    }

    /// <summary>What to say when no fit of a measured strategy has a cost per trap that is above 0 for sure.</summary>
    private string WithoutCost()
    {
        var ofThisHost = run
            .Contents.Samples.Where(sample =>
                !run.Strategy(sample.Cell.Strategy).IsComputed && !run.IsRingZeroEmulated(sample.Cell.Strategy)
            )
            .ToList();
        return ofThisHost.Count == 0 ? "No strategy that runs on this host's processor was measured in this run."
            : ofThisHost.TrueForAll(sample => sample.Status == SampleStatus.Failed)
                ? "No sample of a strategy that runs on this host's processor succeeded, so this run does not say what one costs here."
            : ofThisHost.Exists(sample => sample.Traps > 0)
                ? "Strategies that run on this host's processor took traps, but the samples do not suffice to say what one costs."
            : "No strategy that runs on this host's processor took a trap in this run.";
    }

    private Paragraph FitSummary(OverheadFit fit) =>
        new(
            Span.Strong($"{fit.Workload}, {Label(fit)}{(IsComputed(fit) ? ", computed" : "")}"),
            ": "
                + (fit.Holes.Count > 0 ? $"not faithful ({string.Join(", ", fit.Holes)}); " : "")
                + StrategySummary(fit)
        );

    private Paragraph WorkloadSummary(IGrouping<string, OverheadFit> fits) =>
        new(Span.Strong(fits.Key), ": " + string.Join("; ", fits.Select(InShort)) + ".");

    private string InShort(OverheadFit fit)
    {
        var text =
            fit.TrapNanoseconds is { } dt ? $"{Quantity.Time(dt)} per {OperationOf(fit)}"
            : fit.Verdict == FitVerdict.TooFewPoints ? "no slope"
            : run.Workload(fit.Workload).SensitiveInstruction is null ? Quantity.Time(fit.Densities[0].UnitNanoseconds)
            : "no traps";
        var doubt = fit.Verdict switch
        {
            FitVerdict.NotLinear => ", not linear",
            FitVerdict.Undecided => ", undecided",
            _ => "",
        };
        return LabelWithSource(fit)
            + " "
            + text
            + doubt
            + (fit.Holes.Count > 0 ? $", not faithful ({string.Join(", ", fit.Holes)})" : "");
    }

    /// <summary>What Δt is the time of.</summary>
    private string OperationOf(OverheadFit fit) =>
        ExitsOf(fit) is > 1 and var exits ? $"operation of {exits} exits" : "trap";

    private int ExitsOf(OverheadFit fit) => Math.Max(1, (int)Math.Round(run.ExitsPerOperation(fit) ?? 1));

    private string StrategySummary(OverheadFit fit)
    {
        if (fit.TrapNanoseconds is null && run.Workload(fit.Workload).SensitiveInstruction is null)
        {
            return $"nothing in it traps; a unit of work takes {Quantity.Time(fit.Densities[0].UnitNanoseconds)}.";
        }
        if (fit.Verdict == FitVerdict.ZeroTraps && run.KernelCounted.Contains(fit.Strategy))
        {
            return fit.UntrappedInstructionNanoseconds is { } spent && (fit.IsExact || spent.Low > 0)
                ? $"0 exits to user space; an instruction costs {Quantity.Time(spent)} without one, spent by the processor or in the kernel."
                : "0 exits to user space, and what the instruction costs without one cannot be told from 0.";
        }
        if (fit.Verdict == FitVerdict.ZeroTraps)
        {
            return (
                fit.UntrappedInstructionNanoseconds is { } cost && (fit.IsExact || cost.Low > 0)
                    ? $"no traps; the instruction itself takes {Quantity.Time(cost)}."
                    : "no traps, and the instruction's own cost cannot be told from 0."
            );
        }
        if (fit.TrapNanoseconds is not { } dt)
        {
            return fit.VerdictText + ".";
        }
        var text = $"{Quantity.Time(dt)} per {OperationOf(fit)}";
        var slow = fit.Densities.Where(at => at.TrapsPerUnit > 0 && at.Slowdown is not null).ToList();
        if (slow.Count > 0)
        {
            var parts = slow.Count == 1 ? slow : [slow[0], slow[^1]];
            text +=
                $"; a unit of work that takes {Quantity.Time(fit.Densities[0].UnitNanoseconds.Value)} without traps takes "
                + string.Join(
                    " and ",
                    parts.Select(at =>
                        $"{Quantity.Number(at.Slowdown!.Value.Value)} times as long with {at.TrapsPerUnit}"
                    )
                );
        }
        return fit.Verdict switch
        {
            FitVerdict.NotLinear => text + " (the linear model fails here, see the verdict).",
            FitVerdict.Undecided => text + " (whether the linear model holds is open, see the verdict).",
            _ => text + ".",
        };
    }

    private Paragraph Certainty(List<OverheadFit> measured)
    {
        var planned = run.Manifest.Run.Order.Sum(round => round.Count);
        var taken = run.Contents.Samples.Count;
        var bad = run.Contents.Samples.Count(sample => sample.Status != SampleStatus.Ok);
        var text = "How sure: ";
        if (measured.Count > 0)
        {
            var linear = measured.Count(fit => fit.Verdict == FitVerdict.Linear);
            var failing = measured.Count(fit => fit.Verdict == FitVerdict.NotLinear);
            text +=
                linear == measured.Count
                    ? $"the model of a constant cost per trap holds in {AllOf(measured.Count, "measured case")}. "
                    : $"the model of a constant cost per trap holds in {linear} of {measured.Count} measured cases, fails in "
                        + $"{failing}, and is undecided in {measured.Count - linear - failing}. ";
            var widths = measured.Select(fit => fit.TrapNanoseconds!.Value.RelativeHalfWidth).OfType<double>().ToList();
            text +=
                widths.Count > 0
                    ? $"The 95 % intervals of the cost per trap reach at most {Quantity.Percent(widths.Max())} to either side. "
                    : "There are no intervals: they take two or more complete rounds whose times differ. ";
            if (widths.Count > 0 && widths.Max() > WideInterval)
            {
                text += "That is wide: the host was busy or unsteady. virtbench doctor says what disturbs it. ";
            }
        }
        text +=
            planned > 0 && taken < planned ? $"{taken} of {planned} planned samples {WasOrWere(taken)} taken"
            : taken == 1 ? "1 sample was taken"
            : $"{taken} samples were taken";
        text +=
            taken == 0 ? "."
            : bad > 0 ? $", {bad} of them not usable."
            : taken == 1 ? ", and it is usable."
            : ", all of them usable.";
        return new Paragraph(text);

        static string WasOrWere(int count) => count == 1 ? "was" : "were";

        static string AllOf(int count, string what) => count == 1 ? $"the one {what}" : $"all {count} {what}s";
    }

    private IEnumerable<Block> Results()
    {
        if (run.Fits.Count == 0)
        {
            yield return new Paragraph("No sample was taken, so there are no results.");
            yield break;
        }
        yield return FitTable();
        if (SlowdownTable() is { Rows.Count: > 0 } slowdowns)
        {
            yield return slowdowns;
        }
        if (ExitTable() is { Rows.Count: > 0 } exits)
        {
            yield return exits;
            yield return new Paragraph(
                "Dispatch is the time from an exit being seen to its handler being known, emulate the time from there until the "
                    + "guest can be entered again. World switches are blank where the monitor cannot see them: the clock it "
                    + "reads is its own, and the switch out ends, and the switch in begins, before and after it runs. What is "
                    + "left of Δt after dispatch and emulate is then the two switches together."
            );
        }
        var mild = run.Contents.Samples.Count(sample => sample.Outlier == OutlierLabel.Mild);
        var extreme = run.Contents.Samples.Count(sample => sample.Outlier == OutlierLabel.Extreme);
        yield return new Paragraph(
            $"Outliers (Tukey's fences within each cell): {mild} mild, {extreme} extreme. They are labelled in samples.csv and "
                + "stay in every fit."
        );
    }

    private Table FitTable() =>
        new(
            "Fits of time per unit on k; 95 % intervals in parentheses",
            [
                new("Workload"),
                new("Strategy"),
                new("t0", true),
                new("Δt per trap", true),
                new("Δt, Theil–Sen", true),
                new("R²", true),
                new("Lack of fit, p", true),
                new("Most traps, 1/Δt", true),
                new("Samples", true),
                new("Verdict"),
            ],
            [
                .. run.Fits.Select(fit =>
                    (IReadOnlyList<string>)
                        [
                            fit.Workload,
                            LabelWithSource(fit),
                            fit.UntrappedUnitNanoseconds is { } t0 ? Quantity.Time(t0) : "",
                            fit.TrapNanoseconds is { } dt ? Quantity.Time(dt) : "",
                            fit.TheilSenTrapNanoseconds is { } theilSen ? Quantity.Time(theilSen) : "",
                            fit.RSquared is { } r2 ? r2.ToString("0.00000", CultureInfo.InvariantCulture) : "",
                            fit.LackOfFitP is { } p ? Quantity.Probability(p) : "",
                            fit.TrapNanoseconds is { Value: > 0 } slope ? Quantity.PerSecond(1e9 / slope.Value) : "",
                            fit.Points.ToString(CultureInfo.InvariantCulture),
                            fit.VerdictText,
                        ]
                ),
            ]
        );

    private Table SlowdownTable()
    {
        var densities = run
            .Fits.SelectMany(fit => fit.Densities)
            .Select(at => at.TrapsPerUnit)
            .Distinct()
            .Order()
            .ToList();
        return new Table(
            "Slow-down: time per unit at k over time per unit at k = 0 of the same strategy",
            [
                new("Workload"),
                new("Strategy"),
                new("Unit at k = 0", true),
                .. densities.Where(k => k > 0).Select(k => new Column($"k = {k}", true)),
            ],
            [
                .. run
                    .Fits.Where(fit => fit.Densities.Any(at => at is { TrapsPerUnit: > 0, Slowdown: not null }))
                    .Select(fit =>
                        (IReadOnlyList<string>)
                            [
                                fit.Workload,
                                LabelWithSource(fit),
                                Quantity.Time(fit.Densities[0].UnitNanoseconds),
                                .. densities
                                    .Where(k => k > 0)
                                    .Select(k =>
                                        fit.Densities.FirstOrDefault(at => at.TrapsPerUnit == k)?.Slowdown
                                            is { } slowdown
                                            ? Quantity.Times(slowdown)
                                            : ""
                                    ),
                            ]
                    ),
            ]
        );
    }

    private Table ExitTable()
    {
        var usable = run
            .Contents.Samples.Where(sample => sample.Status == SampleStatus.Ok)
            .Select(sample => (sample.Round, sample.Cell))
            .ToHashSet();
        var rows = new List<IReadOnlyList<string>>();
        foreach (var fit in run.Fits)
        {
            var exits = run
                .Contents.Exits.Where(exit =>
                    exit.Cell.Strategy == fit.Strategy
                    && exit.Cell.Workload == fit.Workload
                    && usable.Contains((exit.Round, exit.Cell))
                    && !EngineReasons.Contains(exit.Reason)
                )
                .ToList();
            var total = exits.Sum(exit => (double)exit.Count);
            foreach (
                var reason in exits.GroupBy(exit => exit.Reason).OrderByDescending(group => group.Sum(e => e.Count))
            )
            {
                var count = reason.Sum(exit => (double)exit.Count);
                if (count == 0)
                {
                    continue;
                }
                var dispatch = reason.Sum(exit => exit.DispatchNanoseconds) / count;
                var emulate = reason.Sum(exit => exit.EmulateNanoseconds) / count;
                // Δt is that of the workload's own traps: it can be taken apart only where nearly all exits are of one reason,
                // and each of them is a trap of its own.
                var traps = run.UsableSamples(fit).Sum(sample => (double)sample.Traps);
                var rest = traps > 0.99 * count ? fit.TrapNanoseconds?.Value - dispatch - emulate : null;
                rows.Add([
                    fit.Workload,
                    LabelWithSource(fit),
                    reason.Key,
                    count.ToString("N0", CultureInfo.InvariantCulture).Replace(",", "\u202f"),
                    PerExit(reason.Select(exit => exit.SwitchOutNanoseconds), count),
                    Quantity.Time(dispatch),
                    Quantity.Time(emulate),
                    PerExit(reason.Select(exit => exit.SwitchInNanoseconds), count),
                    rest is { } left && count > 0.99 * total ? Quantity.Time(left) : "",
                ]);
            }
        }
        return new Table(
            "Exits by reason: mean time per exit over all usable samples",
            [
                new("Workload"),
                new("Strategy"),
                new("Reason"),
                new("Exits", true),
                new("Switch out", true),
                new("Dispatch", true),
                new("Emulate", true),
                new("Switch in", true),
                new("Rest of Δt", true),
            ],
            rows
        );
    }

    private static string PerExit(IEnumerable<double?> totals, double count)
    {
        double sum = 0;
        foreach (var total in totals)
        {
            if (total is not { } value)
            {
                return "";
            }
            sum += value;
        }
        return Quantity.Time(sum / count);
    }

    private IEnumerable<Block> SkippedAndFailed()
    {
        var skipped = run.Manifest.Run.Skipped;
        yield return skipped.Count == 0
            ? new Paragraph("Nothing was skipped.")
            : new Table(
                "Skipped",
                [new("Strategy"), new("Workload"), new("Why")],
                [.. skipped.Select(cell => (IReadOnlyList<string>)[cell.Strategy, cell.Workload ?? "all", cell.Reason])]
            );
        var failed = run.Contents.Samples.Where(sample => sample.Status != SampleStatus.Ok).ToList();
        yield return failed.Count == 0
            ? new Paragraph(run.Contents.Samples.Count == 0 ? "No sample was taken." : "No sample failed.")
            : new Table(
                "Samples that no fit uses"
                    + (failed.Count > MostFailures ? $" (the first {MostFailures} of {failed.Count})" : ""),
                [new("Round", true), new("Strategy"), new("Workload"), new("k", true), new("Status"), new("Note")],
                [
                    .. failed
                        .Take(MostFailures)
                        .Select(sample =>
                            (IReadOnlyList<string>)
                                [
                                    sample.Round.ToString(CultureInfo.InvariantCulture),
                                    sample.Cell.Strategy,
                                    sample.Cell.Workload,
                                    sample.Cell.TrapsPerUnit.ToString(CultureInfo.InvariantCulture),
                                    Runs.Words.Of(sample.Status),
                                    sample.Note,
                                ]
                        ),
                ]
            );
        var noted = run
            .Contents.Samples.Where(sample =>
                sample.Status == SampleStatus.Ok && sample.Note.Length > 0 && sample.Note != sample.Mark?.ToString()
            )
            .GroupBy(sample => (sample.Cell.Strategy, sample.Note))
            .ToList();
        if (noted.Count > 0)
        {
            yield return new Table(
                "Notes on samples that fits do use",
                [new("Samples", true), new("Strategy"), new("Note")],
                [
                    .. noted.Select(group =>
                        (IReadOnlyList<string>)
                            [group.Count().ToString(CultureInfo.InvariantCulture), group.Key.Strategy, group.Key.Note]
                    ),
                ]
            );
        }
    }

    private IEnumerable<Block> Method()
    {
        yield return new Table(
            "Where the times come from",
            [new("Strategy"), new("Times are"), new("Source")],
            [
                .. run.Manifest.Run.Strategies.Select(strategy =>
                    (IReadOnlyList<string>)
                        [strategy.Label, strategy.IsComputed ? "computed" : "measured", strategy.TimeSource]
                ),
            ]
        );
        bool paravirtual = run.Manifest.Run.GuestImages.Any(image => image.Interface != GuestImageEntry.Native);
        yield return new Table(
            "Workloads",
            [
                new("Workload"),
                new("Sensitive instruction"),
                .. paravirtual ? [new Column("In a paravirtual guest")] : (IReadOnlyList<Column>)[],
                new("What it does"),
            ],
            [
                .. run.Manifest.Run.Workloads.Select(workload =>
                    (IReadOnlyList<string>)
                        [
                            workload.Id,
                            workload.SensitiveInstruction ?? "none",
                            .. paravirtual ? [workload.ParavirtualOperation ?? "none"] : (IReadOnlyList<string>)[],
                            workload.Description,
                        ]
                ),
            ]
        );
        yield return new Paragraph(
            "A workload repeats a unit of work that holds k sensitive operations and is otherwise the same for every k. An operation "
                + "is one instruction, or what a guest kernel does in one go, a system call for instance: then several of its "
                + "exits count as one trap, and Δt is the time of all of it. If each of them traps and costs Δt in full, a unit takes t(k) = t0 + k·Δt. With n = k·T traps per second of "
                + "wall-clock time that is T(n) = T0·(1 − n·Δt), a straight line from T0 = 1/t0 to n = 1/Δt. n counts seconds "
                + "on the clock on the wall; in traps per second of guest work, n′ = k·T0, the same law reads "
                + "T = T0/(1 + n′·Δt)."
        );
        yield return new Paragraph(
            "The fit is one of time per unit against k, because k is set and free of error. Throughput against the observed n "
                + "would carry the error of T on both axes. Each round takes every cell once in a shuffled order, so that "
                + "drift of the host hits all alike. Intervals come from resampling whole rounds ("
                + new FitOptions(run.Manifest.Run.Seed).Resamples.ToString("N0", CultureInfo.InvariantCulture)
                + " times, seeded), with Student's t for the number of rounds."
        );
        yield return new Paragraph(
            "A fit is called linear when no k lies off the line by more than "
                + Quantity.Percent(new FitOptions(0).LinearTolerance)
                + " of its time, or when scatter explains why it does (p of the F test for lack of fit, and the interval of "
                + "that k's own deviation). Failed samples and samples with other traps or another checksum than expected are "
                + "left out of fits; outliers are not."
        );
    }

    private IEnumerable<Block> Reproduction()
    {
        yield return new CodeBlock(run.Manifest.Run.Command);
        yield return new BulletList([
            new Paragraph($"Seed {run.Manifest.Run.Seed}, {run.Manifest.Run.Rounds} rounds planned."),
            new Paragraph("Commit ", Span.Code(run.Manifest.Run.Commit ?? "not known"), "."),
            new Paragraph(
                "Order of cells, hashes of the guest images and of every file: ",
                Span.Code(Runs.RunDirectory.ManifestFile),
                ". Fits and this report again from the samples: ",
                Span.Code("virtbench report RUN"),
                "."
            ),
        ]);
    }

    private static BulletList References() =>
        new([
            Reference(
                "G. J. Popek and R. P. Goldberg: Formal requirements for virtualizable third generation architectures. "
                    + "Communications of the ACM 17(7), 1974",
                "https://doi.org/10.1145/361011.361073"
            ),
            Reference(
                "K. Adams and O. Agesen: A comparison of software and hardware techniques for x86 virtualization. ASPLOS 2006",
                "https://doi.org/10.1145/1168857.1168860"
            ),
            Reference(
                "P. K. Sen: Estimates of the regression coefficient based on Kendall's tau. Journal of the American "
                    + "Statistical Association 63(324), 1968",
                "https://doi.org/10.1080/01621459.1968.10480934"
            ),
            Reference(
                "B. Efron: Bootstrap methods: another look at the jackknife. The Annals of Statistics 7(1), 1979",
                "https://doi.org/10.1214/aos/1176344552"
            ),
            new Paragraph("J. W. Tukey: Exploratory Data Analysis. Addison-Wesley, 1977."),
        ]);

    private static Paragraph Reference(string text, string address) => new(text + ". ", Span.Link(address, address));

    private bool IsComputed(OverheadFit fit) => run.Strategy(fit.Strategy).IsComputed;

    private string Label(OverheadFit fit) => run.Strategy(fit.Strategy).Label;

    private string LabelWithSource(OverheadFit fit) => Label(fit) + (IsComputed(fit) ? ", computed" : "");
}
