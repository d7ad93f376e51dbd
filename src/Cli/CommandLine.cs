using System.CommandLine;
using VirtBench.Cli.Commands;

namespace VirtBench.Cli;

/// <summary>The commands of <c>virtbench</c>, and what becomes of their errors.</summary>
internal static class CommandLine
{
    /// <summary>Parses, runs and returns the exit code.</summary>
    public static int Run(string[] args, Terminal terminal)
    {
        RootCommand root = Create(terminal);
        ParseResult parsed = root.Parse(args);
        if (parsed.Errors.Count > 0)
        {
            string command = string.Join(' ', CommandPath(parsed.CommandResult).Prepend("virtbench"));
            string what = parsed.UnmatchedTokens is [var token, ..]
                ? $"there is no '{token}' here."
                : OneLine(parsed.Errors[0].Message);
            terminal.Error.WriteLine($"virtbench: {what} See '{command} --help'.");
            return ExitCode.Usage;
        }

        try
        {
            return parsed.Invoke(
                new InvocationConfiguration
                {
                    Output = terminal.Output,
                    Error = terminal.Error,
                    EnableDefaultExceptionHandler = false,
                    ProcessTerminationTimeout = null, // commands handle Ctrl-C: it must not lose what was measured
                }
            );
        }
        catch (UsageException e)
        {
            terminal.Error.WriteLine($"virtbench: {OneLine(e.Message)}");
            return ExitCode.Usage;
        }
        catch (JobException e)
        {
            terminal.Error.WriteLine($"virtbench: {OneLine(e.Message)}");
            return e.ExitCode;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            terminal.Error.WriteLine($"virtbench: {OneLine(e.Message)}");
            return OwnError(parsed);
        }
        catch (Exception e)
        {
            // A mistake of the tool's own. The user can do nothing with its stack; whoever mends it asks for it.
            bool withStack = Environment.GetEnvironmentVariable("VIRTBENCH_STACK") == "1";
            terminal.Error.WriteLine(
                withStack
                    ? $"virtbench: internal error: {e}"
                    : $"virtbench: internal error: {e.GetType().Name}: {OneLine(e.Message)} (VIRTBENCH_STACK=1 shows where)"
            );
            return OwnError(parsed);
        }
    }

    // The small exit codes of exec are its guest's.
    private static int OwnError(ParseResult parsed) =>
        parsed.CommandResult.Command.Name == "exec" ? ExitCode.GuestNotRun : ExitCode.Failed;

    private static RootCommand Create(Terminal terminal) =>
        new(
            "VirtBench compares virtualization strategies: one VMM core runs the same guests under each of them, measures "
                + "what a trap costs and how throughput falls with the trap rate, and reports it."
        )
        {
            RunCommand.Create(terminal),
            ListCommand.Create(terminal),
            DoctorCommand.Create(terminal),
            ExecCommand.Create(terminal),
            SoakCommand.Create(terminal),
            FitCommand.Create(terminal),
            ReportCommand.Create(terminal),
            ReproduceCommand.Create(terminal),
            BenchCommand.Create(),
        };

    private static IEnumerable<string> CommandPath(System.CommandLine.Parsing.CommandResult result)
    {
        var names = new Stack<string>();
        for (System.CommandLine.Parsing.SymbolResult? at = result; at is not null; at = at.Parent)
        {
            if (at is System.CommandLine.Parsing.CommandResult { Command: not RootCommand } command)
            {
                names.Push(command.Command.Name);
            }
        }

        return names;
    }

    private static string OneLine(string message) =>
        string.Join(' ', message.Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries));
}
