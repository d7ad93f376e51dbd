using System.ComponentModel;
using System.Diagnostics;
using System.Text.Json;

namespace VirtBench.Reporting.Figures;

/// <summary>
/// Renders with Vega in one Node process for all figures: <c>figure-renderer/render.mjs</c> beside the assembly, or the
/// sources' own copy where the packages were restored later than the build.
/// </summary>
/// <param name="node">The Node executable: a path, or a name to look up on PATH.</param>
/// <param name="folder">The folder of render.mjs; null to look for it.</param>
public sealed class NodeFigureRenderer(string node = "node", string? folder = null) : IFigureRenderer
{
    private const string Script = "render.mjs";

    private static readonly TimeSpan Patience = TimeSpan.FromMinutes(2);

    private sealed record Outcome(string File, string? Error);

    /// <inheritdoc />
    public IReadOnlyList<string> Render(IReadOnlyList<string> specifications)
    {
        if (specifications.Count == 0)
        {
            return [];
        }
        if ((folder ?? FindFolder()) is not { } renderer || !IsRestored(renderer))
        {
            return
            [
                "Figures are kept as specifications (.vl.json): Vega is not installed; build VirtBench where npm is, or open them "
                    + "in a Vega editor.",
            ];
        }
        try
        {
            return Run(renderer, specifications);
        }
        catch (Exception error) when (error is Win32Exception or IOException)
        {
            return
            [
                $"Figures are kept as specifications (.vl.json): Node ({node}) could not be started; install it and run "
                    + "virtbench report again.",
            ];
        }
    }

    /// <summary>Where render.mjs is with its packages beside it; null when there is no such place.</summary>
    public static string? FindFolder()
    {
        var places = new List<string> { Path.Combine(AppContext.BaseDirectory, "figure-renderer") };
        for (var up = new DirectoryInfo(AppContext.BaseDirectory); up is not null; up = up.Parent)
        {
            places.Add(Path.Combine(up.FullName, "src", "Reporting", "Figures", "render"));
        }
        return places.Find(IsRestored);
    }

    private static bool IsRestored(string place) =>
        File.Exists(Path.Combine(place, Script))
        && File.Exists(Path.Combine(place, "node_modules", "vega", "build", "vega.min.js"))
        && File.Exists(Path.Combine(place, "node_modules", "vega-lite", "build", "vega-lite.min.js"));

    private List<string> Run(string renderer, IReadOnlyList<string> specifications)
    {
        var start = new ProcessStartInfo(node)
        {
            RedirectStandardOutput = true,
            RedirectStandardError = true,
            UseShellExecute = false,
        };
        start.ArgumentList.Add(Path.Combine(renderer, Script));
        foreach (var specification in specifications)
        {
            start.ArgumentList.Add(specification);
        }
        using var process = Process.Start(start) ?? throw new IOException("No process was started.");
        var output = process.StandardOutput.ReadToEndAsync();
        var errors = process.StandardError.ReadToEndAsync();
        if (!process.WaitForExit(Patience))
        {
            process.Kill(entireProcessTree: true);
            return ["Figures are kept as specifications (.vl.json): Vega did not end in two minutes."];
        }
        var outcomes = Outcomes(output.GetAwaiter().GetResult());
        var problems = outcomes
            .Where(outcome => outcome.Error is not null)
            .Select(outcome => $"Figure {Path.GetFileName(outcome.File)} was not rendered: {outcome.Error}")
            .ToList();
        if (outcomes.Count < specifications.Count)
        {
            var firstLine = errors
                .GetAwaiter()
                .GetResult()
                .Split('\n')
                .FirstOrDefault(line => line.Contains("Error", StringComparison.Ordinal));
            problems.Add(
                $"{specifications.Count - outcomes.Count} figures were not rendered: Node ended with code "
                    + $"{process.ExitCode} ({firstLine?.Trim() ?? "no message"})."
            );
        }
        return problems;
    }

    private static List<Outcome> Outcomes(string output)
    {
        var outcomes = new List<Outcome>();
        foreach (var line in output.Split('\n', StringSplitOptions.RemoveEmptyEntries))
        {
            try
            {
                if (JsonSerializer.Deserialize<Outcome>(line, JsonSerializerOptions.Web) is { File: not null } outcome)
                {
                    outcomes.Add(outcome);
                }
            }
            catch (JsonException)
            {
                // Not one of the script's own lines.
            }
        }
        return outcomes;
    }
}
