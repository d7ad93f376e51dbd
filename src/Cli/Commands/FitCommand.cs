using System.CommandLine;
using VirtBench.Reporting;
using VirtBench.Reporting.Runs;

namespace VirtBench.Cli.Commands;

/// <summary><c>virtbench fit RUN</c>: fits again from the stored samples.</summary>
internal static class FitCommand
{
    public static Command Create(Terminal terminal)
    {
        Argument<string> run = CommonOptions.Run();
        var command = new Command("fit", "Fit again from a run's stored samples, and write fits.csv") { run };
        command.SetAction(parsed =>
            StoredRun.With(
                terminal,
                parsed.GetValue(run)!,
                directory =>
                {
                    ReportOutcome outcome = ReportWriter.WriteFits(directory);
                    FitTable.Print(terminal, outcome.Analysis.Fits);
                    return outcome.Notices;
                }
            )
        );
        return command;
    }
}

/// <summary><c>virtbench report RUN</c>: figures and report again from the stored samples.</summary>
internal static class ReportCommand
{
    public static Command Create(Terminal terminal)
    {
        Argument<string> run = CommonOptions.Run();
        var command = new Command("report", "Write figures and report again from a run's stored samples") { run };
        command.SetAction(parsed =>
            StoredRun.With(
                terminal,
                parsed.GetValue(run)!,
                directory =>
                {
                    ReportOutcome outcome = ReportWriter.Write(directory);
                    terminal.Output.WriteLine($"Report: {directory.At(RunDirectory.HtmlReportFile)}");
                    return outcome.Notices;
                }
            )
        );
        return command;
    }
}

/// <summary>Opens a stored run for a command and prints what there is to note.</summary>
internal static class StoredRun
{
    public static int With(Terminal terminal, string path, Func<RunDirectory, IReadOnlyList<string>> work)
    {
        try
        {
            foreach (string notice in work(RunDirectory.Open(path)))
            {
                terminal.Error.WriteLine($"note: {notice}");
            }

            return ExitCode.Success;
        }
        catch (RunDirectoryException e)
        {
            throw new JobException(e.Message);
        }
    }
}
