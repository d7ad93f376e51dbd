using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;
using System.Numerics;

namespace VirtBench.Cli;

/// <summary>Options that several commands have.</summary>
internal static class CommonOptions
{
    public static Option<bool> Json() => new("--json") { Description = "Print one JSON object instead of text" };

    public static Option<string> CostProfile() =>
        Path("--cost-profile", "Cost profile of the simulated strategies; textbook when left out", "FILE.json");

    public static Option<bool> Strict() =>
        new("--strict") { Description = "End a guest that touches a port or an address that nothing answers" };

    public static Option<string> Shadow() =>
        new("--shadow")
        {
            Description = "Shadow paging of trap-and-emulate: cached (kept over CR3 writes) or flush",
            HelpName = "flush|cached",
        };

    public static Argument<string> Run()
    {
        var run = new Argument<string>("run") { Description = "A run directory, e.g. results/20260101T000000Z-host" };
        run.Validators.Add(result => RefuseEmpty(result, "RUN"));
        return run;
    }

    /// <summary>An option that names a file or folder.</summary>
    public static Option<string> Path(string name, string description, string helpName)
    {
        var option = new Option<string>(name) { Description = description, HelpName = helpName };
        option.Validators.Add(result => RefuseEmpty(result, name));
        return option;
    }

    /// <summary>An option with a number; what is none is refused in words of the user's.</summary>
    public static Option<T> Number<T>(string name, string description, string expected)
        where T : INumberBase<T> =>
        new(name)
        {
            Description = description,
            CustomParser = result =>
            {
                string word = result.Tokens[0].Value;
                if (T.TryParse(word, NumberStyles.Float, CultureInfo.InvariantCulture, out T? value))
                {
                    return value;
                }

                result.AddError($"{name} {word}: give {expected}.");
                return default;
            },
        };

    /// <summary>A list that may be written <c>a,b</c> or <c>a b</c>.</summary>
    public static Option<string[]> List(string name, string description) =>
        new(name)
        {
            Description = description,
            AllowMultipleArgumentsPerToken = true,
            DefaultValueFactory = _ => [],
        };

    private static void RefuseEmpty(SymbolResult result, string name)
    {
        if (result.Tokens is [{ Value.Length: 0 }, ..])
        {
            result.AddError($"{name} is empty: give a path.");
        }
    }
}
