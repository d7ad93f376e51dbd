using System.Text.Json.Nodes;
using VirtBench.Analysis;

namespace VirtBench.Reporting.Figures;

/// <summary>T/T0 against n·Δt: scaled by its own fit, every strategy must lie on the one line 1 − n·Δt.</summary>
internal static class ModelCheckFigure
{
    /// <summary>A share of T0 or of time that only a fit which fails, or a very unsteady host, gives.</summary>
    private const double FarOff = 1.5;

    public static Figure? Of(RunAnalysis run)
    {
        var fits = run.Fits.Where(fit => fit.TrapNanoseconds is { Value: > 0 } && fit.Model is not null).ToList();
        if (fits.Count == 0)
        {
            return null;
        }
        var legend = VegaLite.Legend(run, fits);
        var labels = legend.ToDictionary(entry => entry.Strategy, entry => entry.Label);
        const string Title = "Does the linear law hold?";
        const string Subtitle =
            "Throughput as a share of T0 against the share of time that traps take, n·Δt, each strategy by its own fit. "
            + "Where the model holds, samples lie on the grey line 1 − n·Δt.";
        var rows = fits.SelectMany(fit =>
            {
                var model = fit.Model!.Value;
                return run.UsableSamples(fit)
                    .Select(sample => new JsonObject
                    {
                        [VegaLite.StrategyField] = labels[fit.Strategy],
                        ["workload"] = fit.Workload,
                        ["time_share"] = RunFigures.TrapsPerWallSecond(sample) / model.MaximumTrapsPerWallSecond,
                        ["throughput_share"] = RunFigures.UnitsPerSecond(sample) / model.UntrappedUnitsPerSecond,
                    });
            })
            .ToList();
        var linear = fits.Count(fit => fit.Verdict == FitVerdict.Linear);
        var description =
            $"T/T0 against n·Δt by workload. The verdict is linear for {linear} of {fits.Count} fits: "
            + string.Join(
                " ",
                fits.Select(fit => $"{fit.Workload}, {run.Strategy(fit.Strategy).Label}: {fit.VerdictText}.")
            );
        var highest = Math.Max(1, rows.Max(row => row["throughput_share"]!.GetValue<double>())) * 1.05;
        var farthest = Math.Max(1, rows.Max(row => row["time_share"]!.GetValue<double>())) * 1.03;
        // One workload far off the line must not flatten the others: then each has axes of its own.
        var ownAxes = highest > FarOff || farthest > FarOff;
        var percent = new JsonObject { ["format"] = ".0%", ["tickCount"] = 4 };
        var x = VegaLite.Quantity(
            "time_share",
            "Share of time that traps take, n·Δt",
            ownAxes ? new JsonObject { ["zero"] = true } : VegaLite.Domain(-0.02, farthest),
            percent.DeepClone().AsObject()
        );
        var y = VegaLite.Quantity(
            "throughput_share",
            "Throughput as a share of T0",
            ownAxes ? new JsonObject { ["zero"] = true } : VegaLite.Domain(0, highest),
            percent
        );
        // A line in every facet must come from that facet's own data: each workload brings its two ends.
        var workloads = fits.Select(fit => fit.Workload).Distinct().ToList();
        foreach (var workload in workloads)
        {
            rows.Add(LineEnd(workload, 0, 1));
            rows.Add(LineEnd(workload, 1, 0));
        }
        var views = new JsonObject
        {
            ["data"] = VegaLite.Data(rows),
            ["columns"] = Math.Min(3, workloads.Count),
            ["facet"] = new JsonObject
            {
                ["field"] = "workload",
                ["type"] = "nominal",
                ["sort"] = new JsonArray([.. workloads.Select(id => JsonValue.Create(id))]),
                ["header"] = new JsonObject { ["title"] = null },
            },
            // With shared axes the last row's would stand under facets that are not there.
            ["resolve"] = new JsonObject
            {
                ["axis"] = new JsonObject { ["x"] = "independent", ["y"] = "independent" },
                ["scale"] = new JsonObject
                {
                    ["x"] = ownAxes ? "independent" : "shared",
                    ["y"] = ownAxes ? "independent" : "shared",
                },
            },
            ["spec"] = new JsonObject
            {
                ["width"] = 215,
                ["height"] = 190,
                ["layer"] = new JsonArray(
                    new JsonObject
                    {
                        ["mark"] = new JsonObject
                        {
                            ["type"] = "line",
                            ["color"] = "#888888",
                            ["strokeWidth"] = 1.4,
                        },
                        ["encoding"] = new JsonObject
                        {
                            ["x"] = Other(x, "line_time_share"),
                            ["y"] = Other(y, "line_throughput_share"),
                        },
                    },
                    new JsonObject
                    {
                        ["transform"] = new JsonArray(
                            new JsonObject { ["filter"] = "isValid(datum.throughput_share)" }
                        ),
                        ["mark"] = new JsonObject
                        {
                            ["type"] = "point",
                            ["size"] = 34,
                            ["strokeWidth"] = 1.2,
                            ["opacity"] = 0.85,
                        },
                        ["encoding"] = VegaLite.Merge(
                            new JsonObject { ["x"] = x, ["y"] = y },
                            VegaLite.Encoding(legend, "stroke", "fill", "shape")
                        ),
                    }
                ),
            },
        };
        return new Figure(
            "model-check",
            Title,
            description,
            "Every sample scaled by the T0 and Δt of its own fit. Samples off the grey line are where the model fails.",
            VegaLite.Document(Title, Subtitle, description, views)
        );
    }

    private static JsonObject LineEnd(string workload, double timeShare, double throughputShare) =>
        new()
        {
            ["workload"] = workload,
            ["line_time_share"] = timeShare,
            ["line_throughput_share"] = throughputShare,
        };

    private static JsonObject Other(JsonObject channel, string field)
    {
        var other = channel.DeepClone().AsObject();
        other["field"] = field;
        return other;
    }
}
