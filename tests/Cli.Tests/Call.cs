using System.Text;

namespace VirtBench.Cli.Tests;

/// <summary>A call of the command line in this process, with what it wrote.</summary>
/// <param name="ExitCode">What it returned.</param>
/// <param name="Output">Standard output, a guest's console among it.</param>
/// <param name="Error">Standard error.</param>
internal sealed record Call(int ExitCode, string Output, string Error)
{
    public static Call Of(params string[] arguments) => Of(terminal => CommandLine.Run(arguments, terminal));

    /// <summary>A call of a part of it.</summary>
    public static Call Of(Func<Terminal, int> run)
    {
        using var bytes = new MemoryStream();
        using var output = new StreamWriter(bytes, new UTF8Encoding(false)) { AutoFlush = true };
        using var error = new StringWriter { NewLine = "\n" };
        int code = run(new Terminal(output, error, bytes, IsInteractive: false));
        return new Call(code, Encoding.UTF8.GetString(bytes.ToArray()), error.ToString());
    }

    /// <summary>Asserts the exit code and one clear line on stderr.</summary>
    public void AssertFails(int exitCode, string says)
    {
        Assert.True(exitCode == ExitCode, $"exit code {ExitCode}: {Error}{Output}");
        string line = Assert.Single(Error.Split('\n', StringSplitOptions.RemoveEmptyEntries));
        Assert.StartsWith("virtbench: ", line);
        Assert.Contains(says, line);
    }

    /// <summary>Asserts success in silence.</summary>
    public Call Succeeded()
    {
        Assert.Equal("", Error);
        Assert.Equal(0, ExitCode);
        return this;
    }
}
