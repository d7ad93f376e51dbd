using System.Text.Json.Nodes;
using VirtBench.Analysis;

namespace VirtBench.Reporting.Figures;

/// <summary>T(n) of one workload: every sample, the fitted line and its interval.</summary>
internal static class ThroughputFigure
{
    private const int BandSteps = 24;

    public static Figure? Of(RunAnalysis run, string workload)
    {
        var fits = RunFigures.FitsOf(run, workload);
        if (!fits.Exists(fit => fit.TrapNanoseconds is not null))
        {
            return null;
        }
        var legend = VegaLite.Legend(run, fits);
        var labels = legend.ToDictionary(entry => entry.Strategy, entry => entry.Label);
        var title = $"Throughput against traps: {RunFigures.InstructionOf(run, workload)}";
        var subtitle =
            "Each point is one sample. Lines are T0·(1 − n·Δt) from the fit of time per unit on k, bands their 95 % "
            + "intervals; a line meets the axis at n = 1/Δt, where traps take all time."
            + (
                fits.Exists(fit => fit.Verdict == FitVerdict.ZeroTraps)
                    ? " Strategies that took no traps lie at n = 0."
                    : ""
            );
        var description =
            "T(n): work units per second against traps per second of wall-clock time. " + Results(run, fits);
        var views = RunFigures.Panels(run, fits, (group, width) => Panel(run, group, legend, labels, width));
        return new Figure(
            "throughput-" + workload,
            title,
            description,
            "Every sample with the line that the fit of time per unit on k predicts. n counts traps per second of wall-clock time.",
            VegaLite.Document(title, subtitle, description, views)
        );
    }

    private static string Results(RunAnalysis run, IEnumerable<OverheadFit> fits) =>
        string.Join(
            " ",
            fits.Select(fit =>
                fit.TrapNanoseconds is { } dt
                    ? $"{run.Strategy(fit.Strategy).Label}: Δt {Quantity.Time(dt)}."
                    : $"{run.Strategy(fit.Strategy).Label}: {(fit.Verdict == FitVerdict.ZeroTraps ? "0 traps" : "no line")}."
            )
        );

    private static JsonObject Panel(
        RunAnalysis run,
        IReadOnlyList<OverheadFit> fits,
        IReadOnlyList<LegendEntry> legend,
        Dictionary<string, string> labels,
        int width
    )
    {
        var points = fits.SelectMany(fit =>
                run.UsableSamples(fit)
                    .Select(sample => new JsonObject
                    {
                        [VegaLite.StrategyField] = labels[fit.Strategy],
                        ["k"] = sample.Cell.TrapsPerUnit,
                        ["n"] = RunFigures.TrapsPerWallSecond(sample),
                        ["units_per_second"] = RunFigures.UnitsPerSecond(sample),
                    })
            )
            .ToList();
        var lines = fits.Where(fit => fit.TrapNanoseconds is { Value: > 0 } && fit.Model is not null).ToList();
        var highest = Math.Max(
            points.Max(point => point["units_per_second"]!.GetValue<double>()),
            lines.Count == 0 ? 0 : lines.Max(fit => fit.Model!.Value.UntrappedUnitsPerSecond)
        );
        var farthest = Math.Max(
            points.Max(point => point["n"]!.GetValue<double>()),
            lines.Count == 0 ? 0 : lines.Max(fit => fit.Model!.Value.MaximumTrapsPerWallSecond)
        );
        var x = VegaLite.Quantity(
            "n",
            "Traps per second of wall-clock time, n (1/s)",
            farthest > 0 ? VegaLite.Domain(-0.015 * farthest, farthest * 1.03) : VegaLite.Domain(-0.015, 1),
            VegaLite.RateAxis()
        );
        var y = VegaLite.Quantity(
            "units_per_second",
            "Throughput, T (work units/s)",
            VegaLite.Domain(0, highest * 1.06),
            VegaLite.RateAxis()
        );
        var layers = new JsonArray();
        foreach (var fit in lines.Where(fit => fit.TrapNanoseconds?.Interval is not null))
        {
            layers.Add(Band(fit, legend.First(entry => entry.Strategy == fit.Strategy).Style, x, y, highest));
        }
        if (lines.Count > 0)
        {
            layers.Add(
                VegaLite.Lines(
                    lines.SelectMany(fit =>
                    {
                        var model = fit.Model!.Value;
                        return new[] { 0, model.MaximumTrapsPerWallSecond }.Select(n => new JsonObject
                        {
                            [VegaLite.StrategyField] = labels[fit.Strategy],
                            ["n"] = n,
                            ["units_per_second"] = model.UnitsPerSecondAtWallRate(n),
                        });
                    }),
                    x,
                    y,
                    legend
                )
            );
        }
        layers.Add(VegaLite.Samples(points, x, y, legend));
        return new JsonObject
        {
            ["width"] = width,
            ["height"] = 260,
            ["layer"] = layers,
        };
    }

    /// <summary>A layer of its own for each strategy: a band that shared the points' scale would fade their legend.</summary>
    private static JsonObject Band(OverheadFit fit, StrategyStyle style, JsonObject x, JsonObject y, double highest)
    {
        var low = y.DeepClone().AsObject();
        low["field"] = "low";
        return new JsonObject
        {
            ["data"] = VegaLite.Data(
                Enumerable
                    .Range(0, BandSteps + 1)
                    .Select(step => fit.Model!.Value.MaximumTrapsPerWallSecond * step / BandSteps)
                    .Select(n => (N: n, Interval: fit.UnitsPerSecondAtWallRate(n)!.Value.Interval))
                    .Where(at => at.Interval is not null)
                    .Select(at => new JsonObject
                    {
                        ["n"] = at.N,
                        ["low"] = Math.Clamp(at.Interval!.Value.Low, 0, 2 * highest),
                        ["high"] = Math.Clamp(at.Interval.Value.High, 0, 2 * highest),
                    })
            ),
            ["mark"] = new JsonObject
            {
                ["type"] = "area",
                ["color"] = style.Color,
                ["opacity"] = 0.18,
                ["clip"] = true,
            },
            ["encoding"] = new JsonObject
            {
                ["x"] = x.DeepClone(),
                ["y"] = low,
                ["y2"] = new JsonObject { ["field"] = "high" },
            },
        };
    }
}
