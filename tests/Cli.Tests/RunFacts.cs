using System.Text.Json;
using VirtBench.Tests;

namespace VirtBench.Cli.Tests;

/// <summary>One small run on the simulated CPU, computed once and looked at from all sides.</summary>
public sealed class SmallRun : IDisposable
{
    internal const string Options =
        "--rounds 2 --traps-per-unit 0,1,2,4,8 --workload rdtsc --strategy simulated-trap-and-emulate,simulated-native --seed 7";

    private readonly TemporaryFolder _folder = new();

    public SmallRun()
    {
        Call = Start("first");
        Run = RunFolder.In(At("first"));
    }

    internal Call Call { get; }

    internal RunFolder Run { get; }

    internal string At(string name) => _folder.At(name);

    internal Call Start(string folder) => Call.Of(["run", .. Options.Split(' '), "--out", At(folder)]);

    public void Dispose() => _folder.Dispose();
}

public sealed class RunFacts(SmallRun small) : IClassFixture<SmallRun>
{
    [Fact]
    public void A_run_succeeds_and_names_its_report()
    {
        Assert.Equal(0, small.Call.ExitCode);
        Assert.Contains("report.html", small.Call.Output);
        Assert.Contains("10 of 10 samples", small.Call.Error);
    }

    [Fact]
    public void A_run_directory_has_every_file()
    {
        string[] files =
        [
            "manifest.json",
            "environment.json",
            "samples.csv",
            "exits.csv",
            "kernel-statistics.csv",
            "translation-statistics.csv",
            "io-statistics.csv",
            "fits.csv",
            "report.html",
            "report.md",
        ];
        Assert.All(files, file => Assert.True(new FileInfo(small.Run.At(file)).Length > 0, file));
        string[] figures = Directory.GetFiles(small.Run.At("figures"));
        Assert.Contains(figures, figure => figure.EndsWith(".vl.json", StringComparison.Ordinal));
        if (!small.Call.Error.Contains("note: ", StringComparison.Ordinal)) // a note says why where Node is missing
        {
            Assert.Equal(
                figures.Where(figure => figure.EndsWith(".vl.json", StringComparison.Ordinal)).Order(),
                figures
                    .Where(figure => figure.EndsWith(".svg", StringComparison.Ordinal))
                    .Select(figure => figure.Replace(".svg", ".vl.json", StringComparison.Ordinal))
                    .Order()
            );
        }
    }

    [Fact]
    public void Its_manifest_vouches_for_every_file() => small.Run.AssertSealed();

    [Fact]
    public void Its_manifest_says_how_to_measure_it_again()
    {
        using var manifest = JsonDocument.Parse(File.ReadAllBytes(small.Run.At("manifest.json")));
        JsonElement run = manifest.RootElement.GetProperty("run");
        Assert.Equal(7, run.GetProperty("seed").GetInt32());
        foreach (string option in SmallRun.Options.Split(" --"))
        {
            Assert.Contains(option, run.GetProperty("command").GetString());
        }

        Assert.All(
            run.GetProperty("guest_images").EnumerateArray(),
            image => Assert.Matches("^[0-9a-f]{64}$", image.GetProperty("sha256").GetString())
        );
        Assert.Equal(5, run.GetProperty("guest_images").GetArrayLength());
        Assert.Equal(
            run.GetProperty("order").EnumerateArray().SelectMany(round => round.EnumerateArray()).Select(Text),
            small.Run.Samples.Select(row => $"{row[1]}/{row[2]}/{row[3]}")
        );

        static string Text(JsonElement cell) => cell.GetString()!;
    }

    [Fact]
    public void Its_tables_have_exactly_the_columns_of_interfaces()
    {
        string[][] samples = small.Run.Samples;
        Assert.Equal(10, samples.Length); // two strategies, five densities; what is computed is computed once
        Assert.All(samples, row => Assert.Equal(("ok", ""), (row[11], row[12])));
        Assert.All(
            samples.Where(row => row[1] == "simulated-trap-and-emulate"),
            row => Assert.Equal(long.Parse(row[3]) * long.Parse(row[4]), long.Parse(row[5]))
        );
        Assert.All(samples.Where(row => row[1] == "simulated-native"), row => Assert.Equal("0", row[5]));
        Assert.NotEmpty(small.Run.Rows("exits.csv", RunFolder.ExitsHeader));
        Assert.Empty(small.Run.Rows("kernel-statistics.csv", RunFolder.KernelStatisticsHeader)); // no kernel runs a guest
        Assert.Equal(2, small.Run.Rows("fits.csv", RunFolder.FitsHeader).Length);
    }

    [Fact]
    public void The_same_seed_measures_in_the_same_order_and_computes_the_same()
    {
        Assert.Equal(0, small.Start("again").ExitCode);
        var again = RunFolder.In(small.At("again"));
        // All but what the host did meanwhile: steal and involuntary switches.
        Assert.Equal(small.Run.Samples.Select(Computed), again.Samples.Select(Computed));
        Assert.Equal(File.ReadAllText(small.Run.At("fits.csv")), File.ReadAllText(again.At("fits.csv")));
        static string Computed(string[] row) => string.Join(',', [.. row[..8], .. row[10..]]);
    }

    [Fact]
    public void Fitting_again_gives_the_same_fits_here_and_in_a_copy()
    {
        string fits = File.ReadAllText(small.Run.At("fits.csv"));
        RunFolder copy = small.Run.CopyTo(small.At("copy of a run"));
        File.Delete(copy.At("fits.csv"));
        for (int i = 0; i < 2; i++)
        {
            Call.Of("fit", small.Run.FullPath).Succeeded();
            Call.Of("fit", copy.FullPath).Succeeded();
            Assert.Equal(fits, File.ReadAllText(small.Run.At("fits.csv")));
            Assert.Equal(fits, File.ReadAllText(copy.At("fits.csv")));
        }

        copy.AssertSealed();
    }

    [Fact]
    public void Reporting_again_leaves_a_sealed_run()
    {
        RunFolder copy = small.Run.CopyTo(small.At("reported"));
        File.Delete(copy.At("report.html"));
        Directory.Delete(copy.At("figures"), recursive: true);
        Assert.Equal(0, Call.Of("report", copy.FullPath).ExitCode);
        Assert.True(File.Exists(copy.At("report.html")));
        Assert.Equal(small.Run.Samples, copy.Samples);
        copy.AssertSealed();
    }

    [Fact]
    public void Resuming_a_complete_run_measures_nothing_more()
    {
        RunFolder copy = small.Run.CopyTo(small.At("resumed"));
        Call call = Call.Of("run", "--resume", copy.FullPath);
        Assert.Equal(0, call.ExitCode);
        Assert.Equal(small.Run.Samples, copy.Samples);
        copy.AssertSealed();
    }

    [Theory]
    [InlineData("fit")]
    [InlineData("report")]
    [InlineData("run --resume")]
    public void Edited_samples_are_refused(string command)
    {
        RunFolder copy = small.Run.CopyTo(small.At($"edited {command}"));
        string samples = File.ReadAllText(copy.At("samples.csv"));
        string edited = samples.Replace(",ok,", ",failed,", StringComparison.Ordinal);
        File.WriteAllText(copy.At("samples.csv"), edited);
        Call.Of([.. command.Split(' '), copy.FullPath])
            .AssertFails(ExitCode.Failed, "is not the file that was measured");
        Assert.Equal(edited, File.ReadAllText(copy.At("samples.csv")));
    }

    [Theory]
    [InlineData("manifest.json", "")]
    [InlineData("manifest.json", "{}")]
    [InlineData("manifest.json", "[1, 2")]
    [InlineData("manifest.json", "null")]
    [InlineData("manifest.json", "{\"schema_version\": 99}")]
    [InlineData("manifest.json", "{\"schema_version\": 1}")]
    [InlineData("manifest.json", "{\"schema_version\": \"one\"}")]
    [InlineData("samples.csv", "")]
    [InlineData("samples.csv", "a,b,c\r\n1,2,3\r\n")]
    [InlineData("exits.csv", "\u0000\u0001\u0002")]
    [InlineData("kernel-statistics.csv", "")]
    public void A_broken_file_gives_one_clear_line(string file, string content)
    {
        RunFolder copy = small.Run.CopyTo(small.At(Guid.NewGuid().ToString()));
        File.WriteAllText(copy.At(file), content);
        foreach (string command in (string[])["fit", "report", "run --resume"])
        {
            Call.Of([.. command.Split(' '), copy.FullPath]).AssertFails(ExitCode.Failed, copy.FullPath);
        }
    }

    [Theory]
    [InlineData("samples.csv")]
    [InlineData("exits.csv")]
    [InlineData("kernel-statistics.csv")]
    public void A_missing_file_gives_one_clear_line(string file)
    {
        RunFolder copy = small.Run.CopyTo(small.At(Guid.NewGuid().ToString()));
        File.Delete(copy.At(file));
        foreach (string command in (string[])["fit", "report", "run --resume"])
        {
            Call.Of([.. command.Split(' '), copy.FullPath]).AssertFails(ExitCode.Failed, file);
        }
    }

    [Theory]
    [InlineData("fit")]
    [InlineData("report")]
    [InlineData("run --resume")]
    public void What_is_no_run_is_refused(string command)
    {
        string[] words = command.Split(' ');
        using var folder = new TemporaryFolder();
        Call.Of([.. words, folder.FullPath]).AssertFails(ExitCode.Failed, "it has no manifest.json");
        Call.Of([.. words, folder.At("missing")]).AssertFails(ExitCode.Failed, "There is no folder");
        Call.Of([.. words, folder.Write("file", [1])]).AssertFails(ExitCode.Failed, "There is no folder");
        Call.Of([.. words, ""]).AssertFails(ExitCode.Usage, "is empty: give a path");
    }

    [Theory]
    [InlineData("--traps-per-unit -1", "'-1' is not a number of traps per unit")]
    [InlineData("--traps-per-unit 1,two", "'two' is not a number of traps per unit")]
    [InlineData("--traps-per-unit 1.5", "'1.5' is not a number of traps per unit")]
    [InlineData("--traps-per-unit ,", "--traps-per-unit names no number")]
    [InlineData(
        "--interrupt-delivery never",
        "--interrupt-delivery never: give some of exit, coalesced, direct, or all"
    )]
    [InlineData(
        "--interrupt-delivery ,",
        "--interrupt-delivery names none; give some of exit, coalesced, direct, or all"
    )]
    [InlineData("--traps-per-unit 99999999999999", "is not a number of traps per unit")]
    [InlineData("--traps-per-unit 1000 --workload rdtsc", "--traps-per-unit 1000: a unit of rdtsc has room for")]
    [InlineData("--workload unheard-of", "there is no workload 'unheard-of'; the workloads are compute")]
    [InlineData("--workload ,", "--workload names none")]
    [InlineData("--strategy unheard-of", "there is no strategy 'unheard-of'; the strategies are native")]
    [InlineData("--strategy ,", "--strategy names none")]
    [InlineData("--profile hasty", "there is no profile 'hasty'; the profiles are quick, standard, thorough")]
    [InlineData("--rounds 0", "--rounds 0: give 1 to 10000")]
    [InlineData("--rounds -3", "--rounds -3: give 1 to 10000")]
    [InlineData("--rounds 10001", "--rounds 10001: give 1 to 10000")]
    [InlineData("--rounds many", "--rounds many: give 1 to 10000")]
    [InlineData("--rounds 1.5", "--rounds 1.5: give 1 to 10000")]
    [InlineData("--seed -1", "--seed -1: give a whole number")]
    [InlineData("--seed x", "--seed x: give a whole number")]
    [InlineData("--seed 18446744073709551616", "--seed 18446744073709551616: give a whole number")]
    [InlineData("--resume here --seed 3", "--seed cannot be given with --resume")]
    [InlineData("--resume here --out there", "--out cannot be given with --resume")]
    [InlineData("--shadow often", "--shadow often: give flush or cached")]
    [InlineData("--shadow flush --strategy native,hardware", "only trap-and-emulate has these policies")]
    [InlineData("--resume here --shadow flush", "--shadow cannot be given with --resume")]
    [InlineData("--tarps-per-unit 1", "there is no '--tarps-per-unit' here")]
    public void A_senseless_option_is_bad_usage_and_creates_nothing(string options, string says)
    {
        using var folder = new TemporaryFolder();
        string[] words = options.Split(' ');
        string[] output = words.Contains("--resume") ? [] : ["--out", folder.FullPath];
        Call.Of(["run", .. words, .. output]).AssertFails(ExitCode.Usage, says);
        Assert.Empty(Directory.EnumerateFileSystemEntries(folder.FullPath));
    }

    [Fact]
    public void An_output_folder_that_cannot_be_is_one_clear_line()
    {
        using var folder = new TemporaryFolder();
        string file = folder.Write("file", [1]);
        string[] words = ["run", .. SmallRun.Options.Split(' '), "--out"];
        Call.Of([.. words, file]).AssertFails(ExitCode.Failed, file);
        Call.Of([.. words, Path.Combine(file, "below")]).AssertFails(ExitCode.Failed, file);
        Call.Of([.. words, "/proc/virtbench"]).AssertFails(ExitCode.Failed, "--out");
        Call.Of([.. words, ""]).AssertFails(ExitCode.Usage, "--out is empty");
    }
}
