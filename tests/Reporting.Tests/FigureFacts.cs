using System.Text.Json;
using System.Text.Json.Nodes;
using VirtBench.Reporting.Figures;

namespace VirtBench.Reporting.Tests;

public sealed class FigureFacts
{
    private static readonly string[] Expected =
    [
        "trap-cost",
        "throughput-rdtsc",
        "throughput-port-io",
        "throughput-cr3-switch",
        "model-check",
        "time-per-unit-rdtsc",
        "time-per-unit-port-io",
        "time-per-unit-cr3-switch",
    ];

    [Fact]
    public void A_run_has_the_figures_it_has_data_for()
    {
        using var run = SyntheticRun.Full(rounds: 3);

        Assert.Equal(Expected, RunFigures.Of(RunAnalysis.Of(run.Directory)).Select(figure => figure.Id));
    }

    [Fact]
    public void Every_axis_has_a_title_and_every_figure_says_what_it_shows()
    {
        using var run = SyntheticRun.Full(rounds: 3);
        foreach (var figure in RunFigures.Of(RunAnalysis.Of(run.Directory)))
        {
            Assert.NotEmpty(figure.Alternative);
            Assert.NotEmpty(figure.Caption);
            Assert.Equal("white", figure.Specification["background"]!.GetValue<string>());
            var axes = Objects(figure.Specification)
                .Select(o => o["axis"])
                .OfType<JsonObject>()
                .Where(a => a.Count > 0);
            Assert.All(
                axes.Where(axis => axis.ContainsKey("title")),
                axis => Assert.NotEmpty(axis["title"]!.GetValue<string>())
            );
            foreach (var channel in Objects(figure.Specification).Where(o => o.ContainsKey("encoding")))
            {
                foreach (var name in new[] { "x", "y" })
                {
                    Assert.NotNull(channel["encoding"]![name]!["axis"]!["title"]);
                }
            }
        }
    }

    [Fact]
    public void A_strategy_looks_the_same_in_every_figure()
    {
        using var run = SyntheticRun.Full(rounds: 3);
        var seen = new Dictionary<(string Channel, string Strategy), string>();
        foreach (var figure in RunFigures.Of(RunAnalysis.Of(run.Directory)))
        {
            foreach (var encoding in Objects(figure.Specification).Select(o => o["encoding"]).OfType<JsonObject>())
            {
                foreach (var channel in new[] { "stroke", "fill", "shape", "strokeDash" })
                {
                    if (encoding[channel]?["scale"] is not { } scale)
                    {
                        continue;
                    }
                    foreach (var (label, value) in scale["domain"]!.AsArray().Zip(scale["range"]!.AsArray()))
                    {
                        var strategy = label!.GetValue<string>().Split(", ")[0];
                        var look = value!.ToJsonString();
                        Assert.Equal(seen.GetValueOrDefault((channel, strategy), look), look);
                        seen[(channel, strategy)] = look;
                    }
                }
            }
        }

        Assert.Equal("\"#0072B2\"", seen[("stroke", "Trap and emulate")]);
        Assert.Equal("\"#0072B2\"", seen[("stroke", "Simulated trap and emulate")]);
        Assert.Equal("\"#FFFFFF\"", seen[("fill", "Simulated trap and emulate")]);
    }

    [Fact]
    public void No_two_strategies_share_color_and_shape()
    {
        string[] ids =
        [
            "native",
            "trap-and-emulate",
            "binary-translation",
            "paravirtual",
            "hardware",
            "hardware-paravirtual",
        ];
        var styles = ids.Select(id => StrategyStyle.Of(id, isComputed: false)).ToList();

        Assert.Equal(ids.Length, styles.Select(style => style.Color).Distinct().Count());
        Assert.Equal(ids.Length, styles.Select(style => style.Shape).Distinct().Count());
        Assert.All(
            ids,
            id => Assert.NotEqual(StrategyStyle.Of(id, false).Fill, StrategyStyle.Of("simulated-" + id, true).Fill)
        );
    }

    [Fact]
    public void The_throughput_line_runs_from_t0_to_the_most_traps()
    {
        using var run = SyntheticRun.Full(rounds: 3);
        var analysis = RunAnalysis.Of(run.Directory);
        var model = analysis.Fits.First(fit => fit is { Strategy: "trap-and-emulate", Workload: "rdtsc" }).Model!.Value;
        var figure = RunFigures.Of(analysis).First(figure => figure.Id == "throughput-rdtsc");
        var measured = figure.Specification["hconcat"]![0]!;
        var line = measured["layer"]!.AsArray().First(layer => layer!["mark"]!["type"]!.GetValue<string>() == "line")![
            "data"
        ]!["values"]!.AsArray();

        Assert.Equal("Measured on this host", measured["title"]!["text"]!.GetValue<string>());
        Assert.Equal(model.UntrappedUnitsPerSecond, line[0]!["units_per_second"]!.GetValue<double>(), 1e-6);
        Assert.Equal(model.MaximumTrapsPerWallSecond, line[1]!["n"]!.GetValue<double>(), 1e-6);
        Assert.Equal(0, line[1]!["units_per_second"]!.GetValue<double>(), 1e-6);
    }

    [Fact]
    public void Figures_render_to_svg()
    {
        Assert.SkipWhen(NodeFigureRenderer.FindFolder() is null, "Vega is not installed: npm ci did not run.");
        using var run = SyntheticRun.Full();
        var paths = Write(run);

        Assert.Empty(new NodeFigureRenderer().Render(paths));
        Assert.All(paths, path => Assert.StartsWith("<svg", File.ReadAllText(path.Replace(".vl.json", ".svg"))));
    }

    [Theory]
    [InlineData("{}", "$schema")]
    [InlineData("not json", "JSON")]
    [InlineData("""{"$schema":"https://vega.github.io/schema/vega-lite/v6.json"}""", "no mark")]
    [InlineData(
        """{"$schema":"https://vega.github.io/schema/vega-lite/v6.json","mark":"point","data":{"values":[]}}""",
        "no data"
    )]
    [InlineData(
        """{"$schema":"https://vega.github.io/schema/vega-lite/v6.json","mark":"point","data":{"values":[{"a":1}]},"encoding":{"x":{"field":"b","type":"quantitative"}}}""",
        "which no row has"
    )]
    [InlineData(
        """{"$schema":"https://vega.github.io/schema/vega-lite/v6.json","mark":"point","data":{"url":"http://example.invalid/x.csv"}}""",
        "no data"
    )]
    public void A_specification_that_is_wrong_is_refused_and_named(string text, string what)
    {
        Assert.SkipWhen(NodeFigureRenderer.FindFolder() is null, "Vega is not installed: npm ci did not run.");
        using var run = SyntheticRun.Empty();
        var path = run.Directory.At("wrong.vl.json");
        File.WriteAllText(path, text);

        var problem = Assert.Single(new NodeFigureRenderer().Render([path]));
        Assert.Contains("wrong.vl.json", problem);
        Assert.Contains(what, problem);
    }

    private static List<string> Write(SyntheticRun run)
    {
        var paths = new List<string>();
        foreach (var figure in RunFigures.Of(RunAnalysis.Of(run.Directory)))
        {
            var name = $"figures/{figure.Id}.vl.json";
            run.Directory.Write(name, JsonSerializer.SerializeToUtf8Bytes(figure.Specification));
            paths.Add(run.Directory.At(name));
        }
        return paths;
    }

    private static IEnumerable<JsonObject> Objects(JsonNode? node)
    {
        switch (node)
        {
            case JsonObject parts:
                yield return parts;
                foreach (var inner in parts.SelectMany(part => Objects(part.Value)))
                {
                    yield return inner;
                }
                break;
            case JsonArray items:
                foreach (var inner in items.SelectMany(Objects))
                {
                    yield return inner;
                }
                break;
            default:
                break;
        }
    }
}
