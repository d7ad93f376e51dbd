using VirtBench.Reporting.Figures;

namespace VirtBench.Reporting.Tests;

public sealed class FigureFacts
{
    [Fact]
    public void Figures_render_to_svg()
    {
        Assert.SkipWhen(NodeFigureRenderer.FindFolder() is null, "Vega is not installed: npm ci did not run.");
        using var run = SyntheticRun.Full();
        var paths = new List<string>();
        foreach (var figure in RunFigures.Of(RunAnalysis.Of(run.Directory)))
        {
            var path = run.Directory.At($"figures/{figure.Id}.vl.json");
            run.Directory.Write(
                $"figures/{figure.Id}.vl.json",
                System.Text.Json.JsonSerializer.SerializeToUtf8Bytes(figure.Specification)
            );
            paths.Add(path);
        }

        var problems = new NodeFigureRenderer().Render(paths);
        if (Environment.GetEnvironmentVariable("KEEP_FIGURES") is { } keep)
        {
            foreach (var path in Directory.GetFiles(run.Directory.At("figures")))
            {
                File.Copy(path, Path.Combine(keep, Path.GetFileName(path)), true);
            }
        }
        Assert.Empty(problems);
    }
}
