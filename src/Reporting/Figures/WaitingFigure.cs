using System.Text.Json.Nodes;
using VirtBench.Analysis;

namespace VirtBench.Reporting.Figures;

/// <summary>Throughput lost against the share of time that the CPU slept: what a slow device hides.</summary>
internal static class WaitingFigure
{
    public static Figure? Of(RunAnalysis run)
    {
        var cells = DiskCell.Of(run).Where(cell => cell.Share is not null).ToList();
        var fits = run
            .Fits.Where(fit =>
                cells.Exists(cell => (cell.Cell.Strategy, cell.Cell.Workload) == (fit.Strategy, fit.Workload))
            )
            .ToList();
        if (fits.Count == 0)
        {
            return null;
        }
        var legend = fits.GroupBy(fit => fit.Strategy)
            .Select(group => LegendEntry.Of(run.Strategy(group.Key), tookNoTraps: false))
            .ToList();
        var labels = legend.ToDictionary(entry => entry.Strategy, entry => entry.Label);
        const string Title = "Throughput lost against time spent waiting";
        const string Subtitle =
            "Each point is one workload under one strategy at one k. On the left the CPU is the limit and virtualization "
            + "shows in full; on the right the CPU waits for the device and the same traps are hidden.";
        var description =
            "Throughput lost against the share of time that the virtual CPU slept. "
            + string.Join(
                " ",
                cells
                    .GroupBy(cell => (cell.Cell.Strategy, cell.Cell.Workload))
                    .Select(group => group.Last())
                    .Select(cell =>
                        $"{cell.Cell.Workload}, {run.Strategy(cell.Cell.Strategy).Label}: waiting "
                        + $"{Quantity.Percent(cell.Share!.Value.WaitingShare)}, lost {Quantity.Percent(cell.Share.Value.ThroughputLost)}."
                    )
            );
        var views = RunFigures.Panels(run, fits, (group, width) => Panel(cells, group, legend, labels, width));
        return new Figure(
            "throughput-lost-waiting",
            Title,
            description,
            "Throughput lost to virtualization, against how much of the time the virtual CPU slept.",
            VegaLite.Document(Title, Subtitle, description, views)
        );
    }

    private static JsonObject Panel(
        List<DiskCell> cells,
        IReadOnlyList<OverheadFit> fits,
        IReadOnlyList<LegendEntry> legend,
        Dictionary<string, string> labels,
        int width
    )
    {
        var shown = cells
            .Where(cell => fits.Any(fit => (fit.Strategy, fit.Workload) == (cell.Cell.Strategy, cell.Cell.Workload)))
            .ToList();
        var x = VegaLite.Quantity(
            "waiting",
            "Time spent waiting (% of wall time)",
            VegaLite.Domain(-3, 103),
            new JsonObject { ["tickCount"] = 5 }
        );
        var lowest = Math.Min(0, shown.Min(cell => cell.Share!.Value.ThroughputLost * 100));
        var y = VegaLite.Quantity(
            "lost",
            "Throughput lost (%)",
            VegaLite.Domain(lowest - 3, 103),
            new JsonObject { ["tickCount"] = 5 }
        );
        return new JsonObject
        {
            ["width"] = width,
            ["height"] = 280,
            ["layer"] = new JsonArray(
                VegaLite.Samples(shown.Select(Row), x, y, legend),
                new JsonObject
                {
                    ["data"] = VegaLite.Data(
                        shown
                            .GroupBy(cell => cell.Cell.Workload)
                            .Select(group => new JsonObject
                            {
                                ["workload"] = group.Key,
                                ["waiting"] = group.Average(cell => cell.Share!.Value.WaitingShare) * 100,
                                ["lost"] = Math.Min(
                                    97,
                                    (group.Max(cell => cell.Share!.Value.ThroughputLost) * 100) + 5
                                ),
                            })
                    ),
                    ["mark"] = new JsonObject
                    {
                        ["type"] = "text",
                        ["fontSize"] = 11,
                        ["color"] = "#333333",
                    },
                    ["encoding"] = new JsonObject
                    {
                        ["x"] = x.DeepClone(),
                        ["y"] = y.DeepClone(),
                        ["text"] = new JsonObject { ["field"] = "workload" },
                    },
                }
            ),
        };

        JsonObject Row(DiskCell cell) =>
            new()
            {
                [VegaLite.StrategyField] = labels[cell.Cell.Strategy],
                ["workload"] = cell.Cell.Workload,
                ["k"] = cell.Cell.TrapsPerUnit,
                ["waiting"] = cell.Share!.Value.WaitingShare * 100,
                ["lost"] = cell.Share.Value.ThroughputLost * 100,
            };
    }
}
