using System.Text.Json.Nodes;
using VirtBench.Analysis;
using VirtBench.Measurement;

namespace VirtBench.Reporting.Figures;

/// <summary>All figures of a run, in the order a report shows them.</summary>
public static class RunFigures
{
    /// <summary>The figures that the run has data for.</summary>
    public static IReadOnlyList<Figure> Of(RunAnalysis run)
    {
        var figures = new List<Figure>();
        Add(TrapCostFigure.Of(run));
        foreach (var workload in run.Workloads)
        {
            Add(ThroughputFigure.Of(run, workload));
        }
        Add(WaitingFigure.Of(run));
        Add(ModelCheckFigure.Of(run));
        foreach (var workload in run.Workloads)
        {
            Add(UnitTimeFigure.Of(run, workload));
        }
        return figures;

        void Add(Figure? figure)
        {
            if (figure is not null)
            {
                figures.Add(figure);
            }
        }
    }

    /// <summary>
    /// Side-by-side panels, one for measured and one for computed times: a second of the host and a second of the cost
    /// profile are different seconds, and one axis for both would compare them. Times through a module that emulates guest
    /// ring 0 have a panel of their own for the same reason.
    /// </summary>
    internal static JsonObject Panels(
        RunAnalysis run,
        IReadOnlyList<OverheadFit> fits,
        Func<IReadOnlyList<OverheadFit>, int, JsonObject> panel
    )
    {
        var groups = fits.GroupBy(fit => Origin(run, fit.Strategy)).OrderBy(group => group.Key).ToList();
        var width = groups.Count switch
        {
            1 => 560,
            2 => 290,
            _ => 230,
        };
        var views = groups
            .Select(group =>
            {
                var view = panel([.. group], width);
                view["title"] = new JsonObject
                {
                    ["text"] = group.Key switch
                    {
                        TimeOrigin.Host => "Measured on this host",
                        TimeOrigin.RingZeroEmulator => "Measured, ring 0 emulated",
                        _ => "Computed from a cost profile",
                    },
                    ["fontSize"] = 12,
                    ["anchor"] = "middle",
                    ["offset"] = 6,
                };
                return (JsonNode)view;
            })
            .ToArray();
        return new JsonObject
        {
            ["hconcat"] = new JsonArray(views),
            ["spacing"] = 28,
            ["resolve"] = new JsonObject
            {
                ["scale"] = new JsonObject
                {
                    ["stroke"] = "shared",
                    ["fill"] = "shared",
                    ["shape"] = "shared",
                    ["strokeDash"] = "shared",
                },
            },
        };
    }

    private enum TimeOrigin
    {
        Host,
        RingZeroEmulator,
        CostProfile,
    }

    private static TimeOrigin Origin(RunAnalysis run, string strategy) =>
        run.Strategy(strategy).IsComputed ? TimeOrigin.CostProfile
        : run.IsRingZeroEmulated(strategy) ? TimeOrigin.RingZeroEmulator
        : TimeOrigin.Host;

    /// <summary>The fits of a workload that have something to draw.</summary>
    internal static List<OverheadFit> FitsOf(RunAnalysis run, string workload) =>
        [.. run.Fits.Where(fit => fit.Workload == workload && fit.Densities.Count > 0)];

    internal static string InstructionOf(RunAnalysis run, string workload) =>
        run.Workload(workload).SensitiveInstruction is { } instruction && instruction != workload
            ? $"{workload} ({instruction})"
            : workload;

    internal static double TrapsPerWallSecond(Sample sample) => sample.Traps / sample.ElapsedNanoseconds * 1e9;

    internal static double UnitsPerSecond(Sample sample) => 1e9 / sample.NanosecondsPerUnit;
}
