using System.Text.Json.Nodes;
using VirtBench.Analysis;
using VirtBench.Reporting.Runs;

namespace VirtBench.Reporting.Figures;

/// <summary>The parts that all figures share, so that a strategy looks the same and an axis reads the same in each.</summary>
internal static class VegaLite
{
    public const string StrategyField = "strategy";

    /// <summary>A layer of fitted lines: one row for each end of each.</summary>
    public static JsonObject Lines(
        IEnumerable<JsonObject> rows,
        JsonObject x,
        JsonObject y,
        IReadOnlyList<LegendEntry> legend
    ) =>
        new()
        {
            ["data"] = Data(rows),
            ["mark"] = new JsonObject
            {
                ["type"] = "line",
                ["strokeWidth"] = 1.4,
                ["clip"] = true,
            },
            ["encoding"] = Merge(
                new JsonObject { ["x"] = x.DeepClone(), ["y"] = y.DeepClone() },
                Encoding(legend, "stroke", "strokeDash")
            ),
        };

    /// <summary>A layer of samples: one row for each point.</summary>
    public static JsonObject Samples(
        IEnumerable<JsonObject> rows,
        JsonObject x,
        JsonObject y,
        IReadOnlyList<LegendEntry> legend
    ) =>
        new()
        {
            ["data"] = Data(rows),
            ["mark"] = new JsonObject
            {
                ["type"] = "point",
                ["size"] = 34,
                ["strokeWidth"] = 1.2,
                ["opacity"] = 0.85,
            },
            ["encoding"] = Merge(
                new JsonObject { ["x"] = x.DeepClone(), ["y"] = y.DeepClone() },
                Encoding(legend, "stroke", "fill", "shape")
            ),
        };

    /// <summary>A whole specification around its views.</summary>
    public static JsonObject Document(string title, string subtitle, string description, JsonObject views)
    {
        var document = new JsonObject
        {
            ["$schema"] = "https://vega.github.io/schema/vega-lite/v6.json",
            ["description"] = description,
            ["background"] = "white",
            ["padding"] = 8,
            ["title"] = new JsonObject
            {
                ["text"] = title,
                ["subtitle"] = new JsonArray([.. Wrap(subtitle, 108).Select(line => JsonValue.Create(line))]),
                ["anchor"] = "start",
            },
        };
        foreach (var (name, value) in views)
        {
            document[name] = value?.DeepClone();
        }
        document["config"] = new JsonObject
        {
            ["aria"] = false,
            ["font"] = "Arial, 'Liberation Sans', Helvetica, sans-serif",
            ["title"] = new JsonObject
            {
                ["fontSize"] = 15,
                ["subtitleFontSize"] = 11,
                ["subtitleColor"] = "#444444",
                ["subtitlePadding"] = 5,
                ["offset"] = 12,
            },
            ["axis"] = new JsonObject
            {
                ["labelFontSize"] = 11,
                ["titleFontSize"] = 11.5,
                ["titleFontWeight"] = "normal",
                ["labelColor"] = "#222222",
                ["titleColor"] = "#111111",
                ["gridColor"] = "#e4e4e4",
                ["domainColor"] = "#666666",
                ["tickColor"] = "#666666",
                ["titlePadding"] = 8,
            },
            ["legend"] = new JsonObject
            {
                ["labelFontSize"] = 11.5,
                ["labelLimit"] = 0,
                ["symbolSize"] = 80,
                ["symbolStrokeWidth"] = 1.6,
                ["title"] = null,
                ["orient"] = "bottom",
                ["direction"] = "vertical",
                ["rowPadding"] = 3,
            },
            ["view"] = new JsonObject { ["stroke"] = "#bbbbbb" },
            ["header"] = new JsonObject { ["labelFontSize"] = 12, ["labelFontWeight"] = "bold" },
        };
        return document;
    }

    /// <summary>Colour, fill, shape and dashes by strategy, over the same list of legend labels in every view.</summary>
    public static JsonObject Encoding(IReadOnlyList<LegendEntry> legend, params ReadOnlySpan<string> channels)
    {
        var encoding = new JsonObject();
        foreach (var channel in channels)
        {
            encoding[channel] = new JsonObject
            {
                ["field"] = StrategyField,
                ["type"] = "nominal",
                ["scale"] = new JsonObject
                {
                    ["domain"] = new JsonArray([.. legend.Select(entry => JsonValue.Create(entry.Label))]),
                    ["range"] = new JsonArray([.. legend.Select(entry => Range(entry.Style, channel))]),
                },
                ["legend"] = new JsonObject { ["columns"] = legend.Count > 3 ? 2 : 1 },
            };
        }
        return encoding;
    }

    /// <summary>A quantitative channel with a title that names the unit.</summary>
    public static JsonObject Quantity(string field, string title, JsonObject? scale = null, JsonObject? axis = null)
    {
        var channelAxis = axis ?? new JsonObject();
        channelAxis["title"] = title;
        var channel = new JsonObject
        {
            ["field"] = field,
            ["type"] = "quantitative",
            ["axis"] = channelAxis,
        };
        if (scale is not null)
        {
            channel["scale"] = scale;
        }
        return channel;
    }

    public static JsonObject Domain(double low, double high) =>
        new()
        {
            ["domain"] = new JsonArray(low, high),
            ["nice"] = false,
            ["zero"] = false,
        };

    public static JsonObject Data(IEnumerable<JsonObject> rows) => new() { ["values"] = new JsonArray([.. rows]) };

    /// <summary>Copies channels into one encoding.</summary>
    public static JsonObject Merge(params ReadOnlySpan<JsonObject> parts)
    {
        var merged = new JsonObject();
        foreach (var part in parts)
        {
            foreach (var (name, value) in part)
            {
                merged[name] = value?.DeepClone();
            }
        }
        return merged;
    }

    /// <summary>An axis of rates: 200k, 1M, and a plain 0.</summary>
    public static JsonObject RateAxis() =>
        new() { ["tickCount"] = 5, ["labelExpr"] = "datum.value == 0 ? '0' : format(datum.value, '~s')" };

    /// <summary>Strategies of some fits as legend entries, in order of first appearance.</summary>
    public static IReadOnlyList<LegendEntry> Legend(RunAnalysis run, IEnumerable<OverheadFit> fits) =>
        [
            .. fits.GroupBy(fit => fit.Strategy)
                .Select(group =>
                    LegendEntry.Of(run.Strategy(group.Key), group.All(fit => fit.Verdict == FitVerdict.ZeroTraps))
                ),
        ];

    private static IEnumerable<string> Wrap(string text, int width)
    {
        var line = "";
        foreach (var word in text.Split(' '))
        {
            if (line.Length + 1 + word.Length > width)
            {
                yield return line;
                line = "";
            }
            line = line.Length == 0 ? word : line + " " + word;
        }
        yield return line;
    }

    private static JsonNode Range(StrategyStyle style, string channel) =>
        channel switch
        {
            "stroke" or "color" => style.Color,
            "fill" => style.Fill,
            "shape" => style.Shape,
            "strokeDash" => new JsonArray([.. style.Dash.Select(length => JsonValue.Create(length))]),
            _ => throw new ArgumentOutOfRangeException(nameof(channel), channel, "No strategy style has this channel."),
        };
}

/// <summary>A strategy in a legend.</summary>
/// <param name="Strategy">Strategy id.</param>
/// <param name="Label">Its label, whether its times are measured or computed, and whether it took no traps.</param>
/// <param name="Style">How it is drawn.</param>
internal sealed record LegendEntry(string Strategy, string Label, StrategyStyle Style)
{
    public static LegendEntry Of(StrategyEntry strategy, bool tookNoTraps) =>
        new(
            strategy.Id,
            $"{strategy.Label}, {(strategy.IsComputed ? "computed" : "measured")}{(tookNoTraps ? ", 0 traps" : "")}",
            StrategyStyle.Of(strategy.Id, strategy.IsComputed)
        );
}
