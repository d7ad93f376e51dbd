using System.CommandLine;

namespace VirtBench.Cli;

/// <summary>Options that several commands have.</summary>
internal static class CommonOptions
{
    public static Option<bool> Json() => new("--json") { Description = "Print one JSON object instead of text" };

    public static Option<bool> Strict() =>
        new("--strict") { Description = "End a guest that touches a port or an address that nothing answers" };

    public static Argument<string> Run() =>
        new("run") { Description = "A run directory, e.g. results/20260101T000000Z-host" };

    /// <summary>A list that may be written <c>a,b</c> or <c>a b</c>.</summary>
    public static Option<string[]> List(string name, string description) =>
        new(name)
        {
            Description = description,
            AllowMultipleArgumentsPerToken = true,
            DefaultValueFactory = _ => [],
        };
}
