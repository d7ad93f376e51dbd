using System.Text.Json.Nodes;
using VirtBench.Analysis;

namespace VirtBench.Reporting.Figures;

/// <summary>Δt of every workload and strategy, with intervals, on a logarithmic axis.</summary>
internal static class TrapCostFigure
{
    public static Figure? Of(RunAnalysis run)
    {
        var fits = run.Fits.Where(fit => fit.TrapNanoseconds is { Value: > 0 }).ToList();
        if (fits.Count == 0)
        {
            return null;
        }
        var legend = VegaLite.Legend(run, fits);
        var labels = legend.ToDictionary(entry => entry.Strategy, entry => entry.Label);
        const string Title = "What one trap costs";
        const string Subtitle =
            "Δt, the time that one trapped operation adds to a unit of work, from the fit of time per unit on k; "
            + "bars are 95 % intervals (often narrower than the mark).";
        var description =
            "Δt by workload and strategy on a logarithmic axis. "
            + string.Join(
                " ",
                fits.Select(fit =>
                    $"{fit.Workload}, {run.Strategy(fit.Strategy).Label}: {Quantity.Time(fit.TrapNanoseconds!.Value)}."
                )
            );
        var rows = fits.Select(fit => new JsonObject
            {
                [VegaLite.StrategyField] = labels[fit.Strategy],
                ["workload"] = fit.Workload,
                ["dt_ns"] = fit.TrapNanoseconds!.Value.Value,
                // A logarithmic axis has no place for an end at or below 0.
                ["low_ns"] = fit.TrapNanoseconds.Value.Low is > 0 and var low ? low : fit.TrapNanoseconds.Value.Value,
                ["high_ns"] = fit.TrapNanoseconds.Value.High ?? fit.TrapNanoseconds.Value.Value,
            })
            .ToList();
        var first = (int)Math.Floor(Math.Log10(rows.Min(row => row["low_ns"]!.GetValue<double>()) / 1.15));
        var last = (int)Math.Ceiling(Math.Log10(rows.Max(row => row["high_ns"]!.GetValue<double>()) * 1.15));
        // Labels at 1, 2 and 5 as long as they have room.
        int[] steps = last - first <= 3 ? [1, 2, 5] : [1];
        var ticks = Enumerable
            .Range(first, last - first + 1)
            .SelectMany(power => steps.Select(step => step * Math.Pow(10, power)))
            .Where(tick => tick <= Math.Pow(10, last))
            .Select(tick => (JsonNode)tick)
            .ToArray();
        var x = VegaLite.Quantity(
            "dt_ns",
            "Time per trap, Δt (logarithmic)",
            new JsonObject
            {
                ["type"] = "log",
                ["domain"] = new JsonArray(Math.Pow(10, first), Math.Pow(10, last)),
                ["nice"] = false,
            },
            new JsonObject
            {
                ["values"] = new JsonArray(ticks),
                ["labelFlush"] = false,
                ["labelExpr"] =
                    "datum.value < 1e3 ? format(datum.value, '~r') + ' ns' : datum.value < 1e6 ? "
                    + "format(datum.value / 1e3, '~r') + ' µs' : format(datum.value / 1e6, '~r') + ' ms'",
            }
        );
        var workloads = fits.Select(fit => fit.Workload).Distinct().ToList();
        var crowded = workloads.Count > 6;
        var y = new JsonObject
        {
            ["field"] = "workload",
            ["type"] = "nominal",
            ["sort"] = new JsonArray([.. workloads.Select(id => JsonValue.Create(id))]),
            ["axis"] = new JsonObject
            {
                ["title"] = "Workload",
                ["grid"] = true,
                ["tickBand"] = "extent",
                ["labelLimit"] = 0,
            },
        };
        var offset = new JsonObject
        {
            ["field"] = VegaLite.StrategyField,
            ["type"] = "nominal",
            ["sort"] = new JsonArray([.. legend.Select(entry => JsonValue.Create(entry.Label))]),
            ["scale"] = new JsonObject { ["paddingOuter"] = crowded ? 0.3 : 0.6 },
        };
        var low = x.DeepClone().AsObject();
        low["field"] = "low_ns";
        var views = new JsonObject
        {
            ["width"] = 520,
            ["height"] = new JsonObject { ["step"] = crowded ? 15 : 22, ["for"] = "offset" },
            ["data"] = VegaLite.Data(rows),
            ["layer"] = new JsonArray(
                new JsonObject
                {
                    ["mark"] = new JsonObject { ["type"] = "rule", ["strokeWidth"] = 2 },
                    ["encoding"] = VegaLite.Merge(
                        new JsonObject
                        {
                            ["x"] = low,
                            ["x2"] = new JsonObject { ["field"] = "high_ns" },
                            ["y"] = y.DeepClone(),
                            ["yOffset"] = offset.DeepClone(),
                        },
                        VegaLite.Encoding(legend, "stroke")
                    ),
                },
                new JsonObject
                {
                    ["mark"] = new JsonObject
                    {
                        ["type"] = "point",
                        ["size"] = 60,
                        ["strokeWidth"] = 1.6,
                        ["opacity"] = 1,
                    },
                    ["encoding"] = VegaLite.Merge(
                        new JsonObject
                        {
                            ["x"] = x,
                            ["y"] = y,
                            ["yOffset"] = offset,
                        },
                        VegaLite.Encoding(legend, "stroke", "fill", "shape")
                    ),
                }
            ),
        };
        return new Figure(
            "trap-cost",
            Title,
            description,
            "Time that one trap adds, or one operation of several exits. Where nothing trapped there is no Δt and no mark.",
            VegaLite.Document(Title, Subtitle, description, views)
        );
    }
}
