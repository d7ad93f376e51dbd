using System.Text.Json.Nodes;
using VirtBench.Analysis;

namespace VirtBench.Reporting.Figures;

/// <summary>Time per unit against k of one workload: what the fit sees.</summary>
internal static class UnitTimeFigure
{
    public static Figure? Of(RunAnalysis run, string workload)
    {
        var fits = RunFigures.FitsOf(run, workload);
        if (!fits.Exists(fit => fit.Densities.Count > 1))
        {
            return null;
        }
        var legend = VegaLite.Legend(run, fits);
        var labels = legend.ToDictionary(entry => entry.Strategy, entry => entry.Label);
        var title = $"Time per unit of work: {RunFigures.InstructionOf(run, workload)}";
        const string Subtitle =
            "Each point is one sample, each line a least-squares fit: it starts at t0 and rises by Δt per trap "
            + "(where nothing traps, by what the instruction costs without an exit to the VMM).";
        var description =
            "Time per work unit against k, the sensitive instructions per unit. "
            + string.Join(" ", fits.Select(fit => $"{run.Strategy(fit.Strategy).Label}: {fit.VerdictText}."));
        var views = RunFigures.Panels(run, fits, (group, width) => Panel(run, group, legend, labels, width));
        return new Figure(
            "time-per-unit-" + workload,
            title,
            description,
            "Time per unit against the number of sensitive instructions in a unit, which the experimenter sets.",
            VegaLite.Document(title, Subtitle, description, views)
        );
    }

    private static JsonObject Panel(
        RunAnalysis run,
        IReadOnlyList<OverheadFit> fits,
        IReadOnlyList<LegendEntry> legend,
        Dictionary<string, string> labels,
        int width
    )
    {
        var samples = fits.SelectMany(fit => run.UsableSamples(fit).Select(sample => (fit.Strategy, Sample: sample)))
            .ToList();
        var highest = samples.Max(at => at.Sample.NanosecondsPerUnit);
        var (factor, unit) = highest switch
        {
            < 2e3 => (1, "ns"),
            < 2e6 => (1e-3, "µs"),
            < 2e9 => (1e-6, "ms"),
            _ => (1e-9, "s"),
        };
        var largestK = samples.Max(at => at.Sample.Cell.TrapsPerUnit);
        var x = VegaLite.Quantity(
            "k",
            "Sensitive instructions per work unit, k",
            VegaLite.Domain(-0.02 * largestK, Math.Max(1, largestK * 1.04)),
            new JsonObject { ["tickCount"] = 6, ["tickMinStep"] = 1 }
        );
        var y = VegaLite.Quantity(
            "time_per_unit",
            $"Time per work unit ({unit})",
            VegaLite.Domain(0, highest * factor * 1.06),
            new JsonObject { ["format"] = "~r", ["tickCount"] = 6 }
        );
        var lines = fits.Where(fit => fit.Densities.Count > 1).ToList();
        var layers = new JsonArray();
        if (lines.Count > 0)
        {
            layers.Add(
                VegaLite.Lines(
                    lines.SelectMany(fit =>
                        new[] { 0, fit.Densities[^1].TrapsPerUnit }.Select(k => new JsonObject
                        {
                            [VegaLite.StrategyField] = labels[fit.Strategy],
                            ["k"] = k,
                            ["time_per_unit"] = fit.UnitNanosecondsAt(k)!.Value.Value * factor,
                        })
                    ),
                    x,
                    y,
                    legend
                )
            );
        }
        layers.Add(
            VegaLite.Samples(
                samples.Select(at => new JsonObject
                {
                    [VegaLite.StrategyField] = labels[at.Strategy],
                    ["k"] = at.Sample.Cell.TrapsPerUnit,
                    ["time_per_unit"] = at.Sample.NanosecondsPerUnit * factor,
                }),
                x,
                y,
                legend
            )
        );
        return new JsonObject
        {
            ["width"] = width,
            ["height"] = 260,
            ["layer"] = layers,
        };
    }
}
