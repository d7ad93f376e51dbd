using System.Text;
using System.Text.Json.Nodes;
using VirtBench.Measurement;
using VirtBench.Reporting.Runs;

namespace VirtBench.Reporting.Tests;

public sealed class RunDirectoryFacts
{
    private const string Header =
        "round,strategy,workload,traps_per_unit,units,traps,elapsed_ns,guest_tsc,steal_ns,involuntary_switches,outlier,status,note\r\n";

    [Fact]
    public void A_folder_is_named_by_utc_time_and_host()
    {
        using var run = SyntheticRun.Empty("Büro/../host name.example");

        Assert.Equal("20310203T040506Z-B-ro----host-name-example", Path.GetFileName(run.Directory.FullPath));
    }

    [Theory]
    [InlineData("", "host")]
    [InlineData("...", "host")]
    [InlineData("con\0\n<b>", "con---b")]
    [InlineData("plain-1", "plain-1")]
    public void Strange_host_names_become_file_names(string host, string expected) =>
        Assert.Equal(expected, RunDirectory.HostPart(host));

    [Fact]
    public void Two_runs_in_one_second_have_two_folders()
    {
        using var run = SyntheticRun.Empty();
        var second = RunDirectory.Create(
            run.Folder,
            "synthetic-host",
            SyntheticRun.Started,
            SyntheticRun.Description(),
            SyntheticRun.EnvironmentRecord()
        );

        Assert.NotEqual(run.Directory.FullPath, second.FullPath);
    }

    [Fact]
    public void Samples_and_exits_come_back_as_they_were()
    {
        using var run = SyntheticRun.Full(rounds: 2);
        var expected = SyntheticRun.Samples(2).ToList();
        var contents = RunDirectory.Open(run.Directory.FullPath).Read();

        Assert.Equal(expected.Select(at => at.Sample), contents.Samples);
        Assert.Equal(expected.SelectMany(at => at.Exits), contents.Exits);
        Assert.Empty(contents.Notices);
    }

    [Theory]
    [InlineData(0.1)]
    [InlineData(1e-300)]
    [InlineData(123456789.123456789)]
    [InlineData(5e15 / 3)]
    [InlineData(double.MaxValue)]
    public void Times_keep_every_digit(double elapsed)
    {
        using var run = SyntheticRun.Empty();
        Take(run.Directory, Sample(0, 1) with { ElapsedNanoseconds = elapsed });

        Assert.Equal(elapsed, run.Directory.Read().Samples[0].ElapsedNanoseconds);
    }

    [Fact]
    public void The_columns_are_those_of_the_interface()
    {
        using var run = SyntheticRun.Full(rounds: 2);
        ReportWriter.WriteFits(run.Directory);

        Assert.StartsWith(Header, Text(run, "samples.csv"));
        Assert.StartsWith(
            "round,strategy,workload,traps_per_unit,reason,count,switch_out_ns,dispatch_ns,emulate_ns,switch_in_ns\r\n",
            Text(run, "exits.csv")
        );
        Assert.Equal("round,strategy,workload,traps_per_unit,statistic,count\r\n", Text(run, "kernel-statistics.csv"));
        Assert.StartsWith(
            "strategy,workload,t0_ns,t0_ci_low_ns,t0_ci_high_ns,dt_ns,dt_ci_low_ns,dt_ci_high_ns,theil_sen_dt_ns,r2,lack_of_fit_p,verdict,points\r\n",
            Text(run, "fits.csv")
        );
    }

    [Theory]
    [InlineData("plain")]
    [InlineData("comma, \"quotes\" and ; more")]
    [InlineData("")]
    [InlineData("=1+1 Δt µs")]
    public void Notes_survive_quoting(string note)
    {
        using var run = SyntheticRun.Empty();
        Take(run.Directory, Sample(0, 1) with { Note = note });

        Assert.Equal(note, run.Directory.Read().Samples[0].Note);
    }

    [Fact]
    public void A_note_of_several_lines_stays_one_row_of_one_line()
    {
        using var run = SyntheticRun.Empty();
        Take(run.Directory, Sample(0, 1) with { Note = "first\r\nsecond\nthird" });

        Assert.Equal("first second third", run.Directory.Read().Samples[0].Note);
        Assert.Equal(2, Text(run, "samples.csv").Count(c => c == '\n'));
    }

    [Fact]
    public void A_sample_is_on_disk_before_the_next_is_taken()
    {
        using var run = SyntheticRun.Empty();
        using var log = run.Directory.Append();
        log.SampleTaken(Sample(0, 1), new SampleRecords([], [], []));

        Assert.Single(RunDirectory.Open(run.Directory.FullPath).Read().Samples);
    }

    [Fact]
    public void A_resumed_run_knows_what_is_done_and_appends()
    {
        using var run = SyntheticRun.Empty();
        Take(run.Directory, Sample(0, 1), Sample(0, 2));
        using (var log = RunDirectory.Open(run.Directory.FullPath).Append())
        {
            Assert.True(log.IsDone(0, Sample(0, 2).Cell));
            Assert.False(log.IsDone(1, Sample(0, 2).Cell));
            Assert.Equal(2, log.Earlier.Count);
            log.SampleTaken(Sample(1, 2), new SampleRecords([], [], []));
            Assert.True(log.IsDone(1, Sample(0, 2).Cell));
        }

        Assert.Equal(3, run.Directory.Read().Samples.Count);
    }

    [Fact]
    public void A_cut_off_last_line_is_dropped_and_nothing_else()
    {
        using var run = SyntheticRun.Empty();
        Take(run.Directory, Sample(0, 1), Sample(0, 2));
        var whole = Text(run, "samples.csv");
        File.AppendAllText(run.Directory.At("samples.csv"), "1,synthetic,rdtsc,2,100,20");

        var contents = run.Directory.Read();
        Assert.Equal(2, contents.Samples.Count);
        Assert.Contains("cut off", Assert.Single(contents.Notices));
        using (var log = run.Directory.Append())
        {
            Assert.Single(log.Notices);
        }
        Assert.Equal(whole, Text(run, "samples.csv"));
    }

    [Fact]
    public void Exits_of_a_sample_that_was_never_finished_are_dropped()
    {
        using var run = SyntheticRun.Empty();
        using (var log = run.Directory.Append())
        {
            log.SampleTaken(Sample(0, 1), new SampleRecords([Exit(0, 1)], [Counter(0, 1)], []));
        }
        File.AppendAllText(run.Directory.At("exits.csv"), "0,synthetic,rdtsc,2,rdtsc,200,,1,1,\r\n");
        File.AppendAllText(run.Directory.At("kernel-statistics.csv"), "0,synthetic,rdtsc,2,exits,200\r\n0,syn");

        Assert.Single(run.Directory.Read().Exits);
        Assert.Equal([Counter(0, 1)], run.Directory.Read().KernelStatistics);
        using (run.Directory.Append()) { }
        Assert.DoesNotContain("200", Text(run, "exits.csv"));
        Assert.Equal(
            "round,strategy,workload,traps_per_unit,statistic,count\r\n0,synthetic,rdtsc,1,exits,18446744073709551615\r\n",
            Text(run, "kernel-statistics.csv")
        );
    }

    [Fact]
    public void A_run_from_before_there_were_kernel_statistics_opens_and_goes_on()
    {
        using var run = SyntheticRun.Full(rounds: 2);
        File.Delete(run.Directory.At("kernel-statistics.csv"));
        ReportWriter.Write(run.Directory, new NoRenderer());
        var old = RunDirectory.Open(run.Directory.FullPath);
        Assert.DoesNotContain("kernel-statistics.csv", old.Manifest.Files.Keys);
        ReportWriter.Write(old, new NoRenderer());
        Assert.Empty(old.Read().KernelStatistics);
        Assert.False(File.Exists(run.Directory.At("kernel-statistics.csv")));

        using (var log = RunDirectory.Open(run.Directory.FullPath).Append())
        {
            log.SampleTaken(Sample(9, 1), new SampleRecords([], [Counter(9, 1)], []));
        }
        Assert.Equal([Counter(9, 1)], RunDirectory.Open(run.Directory.FullPath).Read().KernelStatistics);
    }

    [Fact]
    public void Kernel_statistics_of_a_finished_run_are_the_ones_that_were_counted()
    {
        using var run = SyntheticRun.Empty();
        using (var log = run.Directory.Append())
        {
            log.SampleTaken(Sample(0, 1), new SampleRecords([], [Counter(0, 1)], []));
        }
        ReportWriter.WriteFits(run.Directory);
        var path = run.Directory.At("kernel-statistics.csv");
        var whole = File.ReadAllText(path);
        File.WriteAllText(path, whole.Replace("18446744073709551615", "0"));
        Assert.Contains("SHA-256", Refusal());
        File.Delete(path);
        Assert.Contains("kernel-statistics.csv is missing", Refusal());

        string Refusal() =>
            Assert.Throws<RunDirectoryException>(() => RunDirectory.Open(run.Directory.FullPath).Read()).Message;
    }

    [Fact]
    public void Kernel_statistics_that_come_later_are_refused()
    {
        using var run = SyntheticRun.Full(rounds: 2);
        File.Delete(run.Directory.At("kernel-statistics.csv"));
        ReportWriter.WriteFits(run.Directory);
        File.WriteAllText(
            run.Directory.At("kernel-statistics.csv"),
            "round,strategy,workload,traps_per_unit,statistic,count\r\n"
        );
        var error = Assert.Throws<RunDirectoryException>(() => RunDirectory.Open(run.Directory.FullPath).Read());
        Assert.Contains("was not there when the run ended", error.Message);
    }

    [Fact]
    public void The_outlier_pass_changes_one_column_only()
    {
        using var run = SyntheticRun.Full();
        var before = Text(run, "samples.csv").Split("\r\n");
        run.Directory.LabelOutliers();
        var after = Text(run, "samples.csv").Split("\r\n");

        Assert.Equal(before.Length, after.Length);
        var labelled = Enumerable.Range(0, before.Length).Where(i => before[i] != after[i]).ToList();
        Assert.NotEmpty(labelled);
        Assert.All(labelled, i => Assert.Equal(before[i], after[i].Replace(",mild,", ",,").Replace(",extreme,", ",,")));
        Assert.Contains(run.Directory.Read().Samples, sample => sample.Outlier == OutlierLabel.Extreme);
        Assert.Empty(Directory.GetFiles(run.Directory.FullPath, "*.tmp"));
    }

    public static TheoryData<string, string, string> BadSamples() =>
        new()
        {
            { "", "samples.csv", "has no header row" },
            { "round,strategy\r\n", "samples.csv", "edited" },
            { Header + "0,synthetic,rdtsc,1,100\r\n", "line 2", "edited" },
            { Header + Row() + Row().Replace("ok", "fine"), "line 3", "'fine' is no status" },
            { Header + Row().Replace("5000", "soon"), "line 2", "edited" },
            { Header + Row().Replace("5000", "NaN"), "line 2", "elapsed_ns" },
            { Header + Row().Replace("5000", "-1"), "line 2", "elapsed_ns" },
            { Header + Row() + Row(), "line 3", "same round and cell" },
            { Header + Row().Replace("100,100", "-100,100"), "line 2", "below 0" },
            { Header + Row().Replace("rdtsc", "../../x"), "line 2", "no id" },
            { Header + Row().Replace(",,ok", ",odd,ok"), "line 2", "'odd' is no outlier label" },
            { Header + "0,\"synthetic,rdtsc\r\n", "line 2", "edited" },
            { Header + "\0\u0001\u0002\r\n", "line 2", "edited" },
        };

    [Theory]
    [MemberData(nameof(BadSamples))]
    public void Malformed_samples_are_refused_in_one_line(string text, string where, string what)
    {
        using var run = SyntheticRun.Empty();
        File.WriteAllText(run.Directory.At("samples.csv"), text);

        var error = Assert.Throws<RunDirectoryException>(() => run.Directory.Read());
        Assert.Contains(where, error.Message);
        Assert.Contains(what, error.Message);
        Assert.DoesNotContain('\n', error.Message);
    }

    [Fact]
    public void Edited_samples_of_a_finished_run_are_refused()
    {
        using var run = SyntheticRun.Full(rounds: 2);
        ReportWriter.WriteFits(run.Directory);
        var path = run.Directory.At("samples.csv");
        File.WriteAllText(path, File.ReadAllText(path).Replace("rdtsc,1,20000", "rdtsc,1,20001"));

        var error = Assert.Throws<RunDirectoryException>(() => RunDirectory.Open(run.Directory.FullPath).Read());
        Assert.Contains("SHA-256", error.Message);
    }

    [Fact]
    public void A_finished_run_can_be_fitted_again_and_continued()
    {
        using var run = SyntheticRun.Full(rounds: 2);
        ReportWriter.WriteFits(run.Directory);
        var fits = Text(run, "fits.csv");
        ReportWriter.WriteFits(RunDirectory.Open(run.Directory.FullPath));
        Assert.Equal(fits, Text(run, "fits.csv"));

        using (var log = RunDirectory.Open(run.Directory.FullPath).Append())
        {
            log.SampleTaken(Sample(9, 3), new SampleRecords([], [], []));
        }
        var again = RunDirectory.Open(run.Directory.FullPath);
        Assert.Empty(again.Manifest.Files);
        Assert.Contains(again.Read().Samples, sample => sample.Round == 9);
    }

    [Fact]
    public void The_manifest_has_the_hash_of_every_other_file()
    {
        using var run = SyntheticRun.Full(rounds: 2);
        ReportWriter.Write(run.Directory, new NoRenderer());
        var manifest = RunDirectory.Open(run.Directory.FullPath).Manifest;

        var files = Directory
            .GetFiles(run.Directory.FullPath, "*", SearchOption.AllDirectories)
            .Select(path => Path.GetRelativePath(run.Directory.FullPath, path).Replace('\\', '/'))
            .Where(name => name != "manifest.json")
            .Order(StringComparer.Ordinal);
        Assert.Equal(files, manifest.Files.Keys);
        Assert.All(
            manifest.Files,
            file => Assert.Equal(file.Value, RunFiles.Sha256(File.ReadAllBytes(run.Directory.At(file.Key))))
        );
    }

    [Fact]
    public void The_manifest_comes_back_as_it_was()
    {
        using var run = SyntheticRun.Empty();
        var manifest = RunDirectory.Open(run.Directory.FullPath).Manifest;

        Assert.Equivalent(SyntheticRun.Description(), manifest.Run, strict: true);
        Assert.Equal(SyntheticRun.Started, manifest.StartedUtc);
        Assert.Contains("\"trap-and-emulate/rdtsc/16\"", Text(run, "manifest.json"));
        Assert.Contains("\"schema_version\": 1", Text(run, "manifest.json"));
    }

    [Fact]
    public void The_environment_is_written_in_snake_case()
    {
        using var run = SyntheticRun.Empty();

        Assert.Equal(2999.5, run.Directory.ReadEnvironment()["cpu"]!["frequency_mhz"]!.GetValue<double>());
    }

    [Fact]
    public void What_is_no_run_directory_is_refused()
    {
        using var run = SyntheticRun.Empty();
        var missing = Path.Combine(run.Folder, "nowhere");

        Assert.Contains("no folder", Assert.Throws<RunDirectoryException>(() => RunDirectory.Open(missing)).Message);
        Assert.Contains(
            "no run directory",
            Assert.Throws<RunDirectoryException>(() => RunDirectory.Open(run.Folder)).Message
        );
    }

    [Theory]
    [InlineData("{\"schema_version\": 99}", "format version 99")]
    [InlineData("{\"schema_version\": \"one\"}", "malformed")]
    [InlineData("{}", "no schema_version")]
    [InlineData("{\"schema_version\": 1}", "malformed")]
    [InlineData("not json", "malformed")]
    [InlineData("", "malformed")]
    [InlineData("[1]", "malformed")]
    public void Other_manifests_are_refused(string text, string what)
    {
        using var run = SyntheticRun.Empty();
        File.WriteAllText(run.Directory.At("manifest.json"), text);

        var error = Assert.Throws<RunDirectoryException>(() => RunDirectory.Open(run.Directory.FullPath));
        Assert.Contains(what, error.Message);
        Assert.DoesNotContain('\n', error.Message);
    }

    [Fact]
    public void An_unwritable_folder_is_refused_in_one_line()
    {
        using var run = SyntheticRun.Empty();
        var file = Path.Combine(run.Folder, "a-file");
        File.WriteAllText(file, "");

        var error = Assert.Throws<RunDirectoryException>(() =>
            RunDirectory.Create(file, "host", SyntheticRun.Started, SyntheticRun.Description(), new JsonObject())
        );
        Assert.Contains("--out", error.Message);
        Assert.DoesNotContain('\n', error.Message);
    }

    [Fact]
    public void A_missing_file_is_named()
    {
        using var run = SyntheticRun.Empty();
        File.Delete(run.Directory.At("exits.csv"));

        Assert.Contains("exits.csv", Assert.Throws<RunDirectoryException>(() => run.Directory.Read()).Message);
    }

    [Fact]
    public void Whoever_listens_hears_every_sample_and_the_progress()
    {
        using var run = SyntheticRun.Empty();
        var listener = new Listener();
        using (var log = run.Directory.Append(listener))
        {
            log.SampleTaken(Sample(0, 1), new SampleRecords([], [], []));
            log.Progress(1, 2, TimeSpan.FromSeconds(3));
        }

        Assert.Equal((1, 1, 2), (listener.Samples, listener.Done, listener.Total));
    }

    private static string Row() => "0,synthetic,rdtsc,1,100,100,5000,1,0,0,,ok,\r\n";

    private static Sample Sample(int round, int k) =>
        new(
            round,
            new Cell("synthetic", "rdtsc", k),
            100,
            100 * k,
            5000,
            1,
            0,
            0,
            OutlierLabel.None,
            SampleStatus.Ok,
            ""
        );

    private static KernelStatisticRecord Counter(int round, int k) =>
        new(round, new Cell("synthetic", "rdtsc", k), "exits", ulong.MaxValue);

    private static ExitRecord Exit(int round, int k) =>
        new(round, new Cell("synthetic", "rdtsc", k), "rdtsc", 100 * k, null, 1.5, 2.5, null);

    private static void Take(RunDirectory run, params Sample[] samples)
    {
        using var log = run.Append();
        foreach (var sample in samples)
        {
            log.SampleTaken(sample, new SampleRecords([], [], []));
        }
    }

    private static string Text(SyntheticRun run, string name) =>
        Encoding.UTF8.GetString(File.ReadAllBytes(run.Directory.At(name)));

    private sealed class Listener : ISweepObserver
    {
        public int Samples { get; private set; }

        public int Done { get; private set; }

        public int Total { get; private set; }

        public void SampleTaken(Sample sample, SampleRecords records) => Samples++;

        public void Progress(int done, int total, TimeSpan? remaining) => (Done, Total) = (done, total);
    }
}
