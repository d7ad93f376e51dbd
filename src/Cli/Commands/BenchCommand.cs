using System.CommandLine;
using VirtBench.Measurement.Benchmarks;

namespace VirtBench.Cli.Commands;

/// <summary><c>virtbench bench</c>: the BenchmarkDotNet suites.</summary>
internal static class BenchCommand
{
    public static Command Create()
    {
        var arguments = new Argument<string[]>("arguments")
        {
            Description =
                "BenchmarkDotNet's own arguments, e.g. --filter '*Trap*' or --list flat; all suites when left out",
            Arity = ArgumentArity.ZeroOrMore,
            CaptureRemainingTokens = true,
        };
        var command = new Command(
            "bench",
            "BenchmarkDotNet suites: what a trap, a CR3 switch and an interpreted instruction cost"
        )
        {
            arguments,
        };
        command.TreatUnmatchedTokensAsErrors = false;
        command.SetAction(parsed =>
        {
            string[] given = [.. parsed.GetValue(arguments) ?? [], .. parsed.UnmatchedTokens];
            return BenchmarkSuites.Run(given.Length > 0 ? given : ["--filter", "*"])
                ? ExitCode.Success
                : ExitCode.Failed;
        });
        return command;
    }
}
