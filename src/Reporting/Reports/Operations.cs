using System.Globalization;
using VirtBench.Analysis;

namespace VirtBench.Reporting.Reports;

/// <summary>One row for each operation, one column for each strategy: what the operation costs, its exits, and the slow-down.</summary>
internal static class Operations
{
    /// <summary>A table for measured times and one for computed ones; nothing where only one strategy was measured.</summary>
    public static IReadOnlyList<Block> Of(RunAnalysis run)
    {
        var blocks = new List<Block>();
        foreach (bool computed in (bool[])[false, true])
        {
            var fits = run
                .Fits.Where(fit =>
                    run.Strategy(fit.Strategy).IsComputed == computed
                    && fit.Densities is [{ TrapsPerUnit: 0 }, .., { TrapsPerUnit: > 0 }]
                    && run.Workload(fit.Workload).SensitiveInstruction is not null
                )
                .ToList();
            if (fits.Select(fit => fit.Strategy).Distinct().Count() > 1)
            {
                blocks.Add(Table(run, fits, computed));
            }
        }
        if (blocks.Count > 0)
        {
            blocks.Insert(
                0,
                new Paragraph(
                    "Each cell: the time that one operation adds to a unit of work; the exits to the monitor that it takes; "
                        + "how many times as long a unit takes with as many operations as the row says. A dash stands "
                        + "for what was not measured, an asterisk for an operation that the strategy lets through, so that its guest "
                        + "saw something untrue. Strategies of the paravirtual interface run the same program with each operation lowered "
                        + "to that interface."
                )
            );
        }
        return blocks;
    }

    private static Table Table(RunAnalysis run, List<OverheadFit> fits, bool computed)
    {
        var strategies = fits.Select(fit => fit.Strategy).Distinct().ToList();
        var order = run.Manifest.Run.Strategies.Select(strategy => strategy.Id).ToList();
        strategies.Sort((a, b) => order.IndexOf(a).CompareTo(order.IndexOf(b)));
        return new Table(
            $"Per operation, {(computed ? "computed" : "measured")}: cost, exits, slow-down",
            [
                new("Workload"),
                new("k", true),
                .. strategies.Select(strategy => new Column(run.Strategy(strategy).Label, true)),
            ],
            [
                .. fits.GroupBy(fit => fit.Workload)
                    .Select(row =>
                    {
                        int k = row.Min(fit => fit.Densities[^1].TrapsPerUnit);
                        return (IReadOnlyList<string>)
                            [
                                row.Key,
                                k.ToString(CultureInfo.InvariantCulture),
                                .. strategies.Select(strategy =>
                                    row.FirstOrDefault(fit => fit.Strategy == strategy) is { } fit
                                        ? Cell(run, fit, k)
                                        : "\u2013"
                                ),
                            ];
                    }),
            ]
        );
    }

    private static string Cell(RunAnalysis run, OverheadFit fit, int k)
    {
        var cost = fit.TrapNanoseconds ?? fit.UntrappedInstructionNanoseconds;
        var slowdown = fit.Densities.FirstOrDefault(at => at.TrapsPerUnit == k)?.Slowdown;
        var parts = new[]
        {
            cost is { } time
                ? !fit.IsExact && time is { Low: <= 0, High: >= 0 }
                    ? "below noise"
                    : Quantity.Time(time.Value)
                : null,
            run.ExitsBeyondControl(fit) is { } exits ? Exits(exits) : null,
            slowdown is { } factor ? Quantity.Number(factor.Value) + " ×" : null,
        };
        return string.Join(", ", parts.OfType<string>()) + (fit.Holes.Count > 0 ? " *" : "");
    }

    private static string Exits(double exits)
    {
        const double unseen = 0.005; // a page fault or two in a whole sample
        return exits < unseen ? "0 exits"
            : Math.Abs(exits - 1) < unseen ? "1 exit"
            : $"{Quantity.Number(Math.Round(exits, 2))} exits";
    }
}
