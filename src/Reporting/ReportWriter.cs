using System.Text;
using System.Text.Json;
using VirtBench.Reporting.Figures;
using VirtBench.Reporting.Reports;
using VirtBench.Reporting.Runs;

namespace VirtBench.Reporting;

/// <summary>What a report came to.</summary>
/// <param name="Analysis">The run as it was read, with its fits.</param>
/// <param name="Notices">What to tell the user: files cut off by a crash, figures not rendered. A line each.</param>
public sealed record ReportOutcome(RunAnalysis Analysis, IReadOnlyList<string> Notices);

/// <summary>
/// Makes everything in a run directory that follows from its samples. It reads all it needs from the directory, so that a run
/// can be fitted and reported again wherever its files are.
/// </summary>
public static class ReportWriter
{
    /// <summary>Labels outliers and writes fits.csv: <c>virtbench fit</c>.</summary>
    /// <exception cref="RunDirectoryException">A file cannot be read, is malformed, or cannot be written.</exception>
    public static ReportOutcome WriteFits(RunDirectory run)
    {
        // Notices before the outlier pass, which removes what they are about.
        var notices = run.Read().Notices;
        run.LabelOutliers();
        var analysis = RunAnalysis.Of(run);
        run.WriteFits(analysis.Fits);
        run.Seal();
        return new ReportOutcome(analysis, notices);
    }

    /// <summary>
    /// Fits, figures, report.html and report.md, then the hashes in manifest.json: <c>virtbench report</c>, and the end of
    /// <c>virtbench run</c>. A run that was interrupted gets the report of what it has.
    /// </summary>
    /// <param name="run">The run.</param>
    /// <param name="renderer">Makes the pictures; null for Node with Vega.</param>
    /// <exception cref="RunDirectoryException">A file cannot be read, is malformed, or cannot be written.</exception>
    public static ReportOutcome Write(RunDirectory run, IFigureRenderer? renderer = null)
    {
        var (analysis, fileNotices) = WriteFits(run);
        var figures = RunFigures.Of(analysis);
        ClearFigures(run);
        foreach (var figure in figures)
        {
            run.Write(
                Specification(figure),
                JsonSerializer.SerializeToUtf8Bytes(figure.Specification, RunJson.Options)
            );
        }
        var renderNotices = (renderer ?? new NodeFigureRenderer()).Render([
            .. figures.Select(figure => run.At(Specification(figure))),
        ]);
        IReadOnlyList<string> notices = [.. fileNotices, .. renderNotices];
        var blocks = figures.Select(figure => new FigureBlock(figure, Rendering(run, figure))).ToList();
        var report = RunReport.Of(analysis, blocks, notices);
        run.Write(RunDirectory.HtmlReportFile, Encoding.UTF8.GetBytes(HtmlReport.Write(report)));
        run.Write(RunDirectory.MarkdownReportFile, Encoding.UTF8.GetBytes(MarkdownReport.Write(report)));
        run.Seal();
        return new ReportOutcome(analysis, notices);
    }

    private static string Specification(Figure figure) => $"{RunDirectory.FiguresFolder}/{figure.Id}.vl.json";

    private static string? Rendering(RunDirectory run, Figure figure)
    {
        var path = run.At($"{RunDirectory.FiguresFolder}/{figure.Id}.svg");
        return File.Exists(path) ? Encoding.UTF8.GetString(RunFiles.Read(path)) : null;
    }

    /// <summary>Pictures of an earlier report must not pass for this one's.</summary>
    private static void ClearFigures(RunDirectory run) =>
        RunFiles.Writing(
            run.At(RunDirectory.FiguresFolder),
            0,
            static (folder, _) =>
            {
                if (!Directory.Exists(folder))
                {
                    return;
                }
                foreach (var file in Directory.GetFiles(folder))
                {
                    if (
                        file.EndsWith(".vl.json", StringComparison.Ordinal)
                        || file.EndsWith(".svg", StringComparison.Ordinal)
                    )
                    {
                        File.Delete(file);
                    }
                }
            }
        );
}
