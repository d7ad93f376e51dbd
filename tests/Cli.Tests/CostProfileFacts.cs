using System.Globalization;
using VirtBench.Tests;

namespace VirtBench.Cli.Tests;

public sealed class CostProfileFacts
{
    private const string Cell =
        "--workload rdtsc --strategy simulated-trap-and-emulate --traps-per-unit 0,1,2 --seed 3";

    /// <summary>The textbook's file with exits that cost 3400 cycles, a microsecond, more.</summary>
    private static string DearExits() =>
        File.ReadAllText(
                Path.Combine(AppContext.BaseDirectory, "..", "..", "..", "..", "..")
                    + "/src/Strategies/Simulation/Profiles/textbook.json"
            )
            .Replace("\"name\": \"textbook\"", "\"name\": \"dear-exits\"", StringComparison.Ordinal)
            .Replace("\"exitCycles\": 750", "\"exitCycles\": 4150", StringComparison.Ordinal);

    private static double TrapNanoseconds(RunFolder run) =>
        double.Parse(run.Rows("fits.csv", RunFolder.FitsHeader)[0][5], CultureInfo.InvariantCulture);

    [Fact]
    public void A_profile_of_ones_own_sets_what_a_trap_costs_and_stays_with_the_run()
    {
        using var folder = new TemporaryFolder();
        string profile = folder.Write("dear exits.json", System.Text.Encoding.UTF8.GetBytes(DearExits()));
        Call call = Call.Of(["run", .. Cell.Split(' '), "--out", folder.At("results"), "--cost-profile", profile]);
        Assert.Equal("", call.ExitCode == 0 ? "" : call.Error);
        RunFolder run = RunFolder.In(folder.At("results"));
        Assert.Equal(1500, TrapNanoseconds(run), 1e-6);
        Assert.Equal(File.ReadAllBytes(profile), File.ReadAllBytes(run.At("cost-profile.json")));
        Assert.Contains("dear-exits", File.ReadAllText(run.At("manifest.json")));
        run.AssertSealed();

        // Resumed with all but the first sample gone, it goes on with the profile in its directory.
        string samples = File.ReadAllText(run.At("samples.csv"));
        string[] lines = samples.Split("\r\n");
        string manifest = File.ReadAllText(run.At("manifest.json"));
        int hashes = manifest.IndexOf("\"files\"", StringComparison.Ordinal);
        File.WriteAllText(run.At("manifest.json"), manifest[..hashes] + "\"files\": {}\n}\n");
        File.WriteAllText(run.At("samples.csv"), $"{lines[0]}\r\n{lines[1]}\r\n");
        File.Delete(profile);
        Call resumed = Call.Of(["run", "--resume", run.FullPath]);
        Assert.Equal("", resumed.ExitCode == 0 ? "" : resumed.Error);
        Assert.Equal(1500, TrapNanoseconds(run), 1e-6);
    }

    [Theory]
    [InlineData("{", "cost")]
    [InlineData("{}", "cost")]
    [InlineData(null, "cannot read")]
    public void A_bad_profile_is_one_line_and_measures_nothing(string? content, string message)
    {
        using var folder = new TemporaryFolder();
        string profile = folder.At("profile.json");
        if (content is not null)
        {
            File.WriteAllText(profile, content);
        }

        Call call = Call.Of(["run", .. Cell.Split(' '), "--out", folder.At("results"), "--cost-profile", profile]);
        Assert.Equal(2, call.ExitCode);
        Assert.Contains(message, call.Error);
        Assert.Single(call.Error.Trim().Split('\n'));
        Assert.False(Directory.Exists(folder.At("results")));
    }
}
