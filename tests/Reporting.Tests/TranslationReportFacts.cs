using VirtBench.Measurement;
using VirtBench.Reporting.Figures;
using VirtBench.Reporting.Runs;
using VirtBench.Vmm.Execution;

namespace VirtBench.Reporting.Tests;

/// <summary>Reports of runs with a strategy that translates. Nothing in them was ever measured.</summary>
public sealed class TranslationReportFacts
{
    private const long Units = 1000;
    private const int Rounds = 5;

    private static RunDescription Description()
    {
        RunDescription basis = SyntheticRun.Description(Rounds);
        return basis with
        {
            Strategies =
            [
                .. basis.Strategies,
                new("binary-translation", "Binary translation", false, "CLOCK_MONOTONIC_RAW"),
            ],
        };
    }

    /// <param name="hits">Look-ups that hit, where they were counted.</param>
    /// <param name="trapNoise">Scatter of the trapped guest's units, nanoseconds, other at each k.</param>
    private static SyntheticRun Run(long? hits = 30_000, double trapNoise = 0.1)
    {
        SyntheticRun run = SyntheticRun.Empty(description: Description());
        using SampleLog log = run.Directory.Append();
        var random = new Random(7);
        for (int round = 0; round < Rounds; round++)
        {
            foreach (int k in (int[])[0, 2, 8])
            {
                double noise = random.NextDouble();
                Add(
                    "trap-and-emulate",
                    round,
                    k,
                    1000 + (k * 2500) + (trapNoise * (((round * 7) + (k * 3)) % 5)),
                    k * Units,
                    []
                );
                var cell = new Cell("binary-translation", "rdtsc", k);
                Add(
                    "binary-translation",
                    round,
                    k,
                    1050 + (k * 25) + noise,
                    0,
                    [
                        new(
                            round,
                            cell,
                            TranslationScope.Region,
                            new(2, 20, 80, 320, 9000, 7, 10_000, hits, 3, 0),
                            3000
                        ),
                        new(
                            round,
                            cell,
                            TranslationScope.Run,
                            new(50, 500, 2000, 8000, 300_000, 90, 11, hits, 3, 1),
                            100_000
                        ),
                    ]
                );
            }
        }

        return run;

        void Add(string strategy, int round, int k, double unit, long traps, TranslationRecord[] translations)
        {
            var cell = new Cell(strategy, "rdtsc", k);
            log.SampleTaken(
                new Sample(round, cell, Units, traps, unit * Units, 1, 0, 0, OutlierLabel.None, SampleStatus.Ok, ""),
                new SampleRecords(
                    translations.Length == 0
                        ? [new(round, cell, "rdtsc", Math.Max(1, traps), null, 1, 1, null)]
                        :
                        [
                            new(round, cell, "hidden-page-fault", 500, null, 1, 1, null),
                            new(round, cell, "translate", 2, null, 0, 3000, null),
                            new(round, cell, "link", 7, null, 0, 0, null),
                            new(round, cell, "lookup-miss", 10_000, null, 0, 0, null),
                        ],
                    [],
                    translations
                )
            );
        }
    }

    private static string Report(SyntheticRun run)
    {
        ReportWriter.Write(run.Directory, new NoRenderer());
        return File.ReadAllText(run.Directory.At("report.md"));
    }

    private static string[] Row(string report, string begins, int which = 0) =>
        [
            .. report
                .Split('\n')
                .Where(line => line.StartsWith(begins, StringComparison.Ordinal))
                .ElementAt(which)
                .Split('|', StringSplitOptions.TrimEntries)[1..^1],
        ];

    [Fact]
    public void What_was_translated_stands_in_the_report()
    {
        using SyntheticRun run = Run();
        string report = Report(run);
        Assert.Contains("## Translation\n", report.ReplaceLineEndings("\n"));
        Assert.Equal(
            ["rdtsc", "Binary translation", "0", "50", "500", "100 µs", "200 ns", "4.00", "3", "1"],
            Row(report, "| rdtsc | Binary translation | 0 | 50 |")
        );
        Assert.Equal(
            [
                "rdtsc",
                "Binary translation",
                "8",
                "0.500",
                "hidden-page-fault 0.500",
                "0.00200",
                "0.00700",
                "10.0",
                "75 %",
                "0.00300",
            ],
            Row(report, "| rdtsc | Binary translation | 8 | 0.500 |")
        );
    }

    [Fact]
    public void A_hit_rate_that_was_not_counted_is_blank()
    {
        using SyntheticRun run = Run(hits: null);
        Assert.Equal("", Row(Report(run), "| rdtsc | Binary translation | 8 | 0.500 |")[8]);
    }

    [Fact]
    public void The_ratio_to_the_trapped_instruction_has_an_interval()
    {
        using SyntheticRun run = Run();
        string[] row = Row(Report(run), "| rdtsc | Binary translation | Trap and emulate |");
        Assert.StartsWith("1.05 × (", row[3]);
        Assert.Matches(@"^99\.\d × \(99\.\d to 99\.\d\)$", row[6]);
        Assert.StartsWith("0.0203 (", row[7]); // 50 and half a nanosecond of noise, over 2475
        Assert.Equal("100 µs", row[9]);
        Assert.Equal("6", row[10]); // 100 µs / (8 × 2475 − 50) ns
        Assert.Equal("8", row[11]);
    }

    [Fact]
    public void What_scatter_hides_is_inconclusive()
    {
        using SyntheticRun run = Run(trapNoise: 20_000);
        string[] row = Row(Report(run), "| rdtsc | Binary translation | Trap and emulate |");
        Assert.Equal("inconclusive", row[7]);
        Assert.Equal("inconclusive", row[10]);
    }

    [Fact]
    public void What_the_engine_serves_itself_is_no_exit()
    {
        using SyntheticRun run = Run();
        string report = Report(run);
        Assert.DoesNotContain("| translate |", report);
        Assert.DoesNotContain("lookup-miss", report);
        Assert.Contains("| hidden-page-fault |", report);
    }

    [Fact]
    public void A_run_without_translation_has_no_section_on_it()
    {
        using SyntheticRun run = SyntheticRun.Full(rounds: 3);
        Assert.DoesNotContain("## Translation", Report(run));
    }

    [Fact]
    public void Records_come_back_as_they_were_written()
    {
        using SyntheticRun run = Run(hits: null);
        IReadOnlyList<TranslationRecord> read = RunDirectory.Open(run.Directory.FullPath).Read().Translations;
        Assert.Equal(2 * 3 * Rounds, read.Count);
        Assert.Equal(
            new TranslationRecord(
                0,
                new Cell("binary-translation", "rdtsc", 0),
                TranslationScope.Region,
                new TranslationStatistics(2, 20, 80, 320, 9000, 7, 10_000, null, 3, 0),
                3000
            ),
            read[0]
        );
    }

    [Fact]
    public void A_run_from_before_there_were_translation_statistics_opens_and_goes_on()
    {
        using SyntheticRun run = SyntheticRun.Full(rounds: 2);
        File.Delete(run.Directory.At("translation-statistics.csv"));
        ReportWriter.Write(run.Directory, new NoRenderer());
        RunDirectory old = RunDirectory.Open(run.Directory.FullPath);
        Assert.DoesNotContain("translation-statistics.csv", old.Manifest.Files.Keys);
        Assert.Empty(old.Read().Translations);
        Assert.False(File.Exists(run.Directory.At("translation-statistics.csv")));

        var record = new TranslationRecord(
            9,
            new Cell("synthetic", "rdtsc", 1),
            TranslationScope.Run,
            new TranslationStatistics(1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
            1.5
        );
        using (SampleLog log = RunDirectory.Open(run.Directory.FullPath).Append())
        {
            log.SampleTaken(
                new Sample(9, record.Cell, 1, 0, 1, 1, 0, 0, OutlierLabel.None, SampleStatus.Ok, ""),
                new SampleRecords([], [], [record])
            );
        }

        Assert.Equal([record], RunDirectory.Open(run.Directory.FullPath).Read().Translations);
    }

    [Fact]
    public void Rows_of_a_sample_that_was_never_finished_are_dropped()
    {
        using SyntheticRun run = Run();
        string file = run.Directory.At("translation-statistics.csv");
        string whole = File.ReadAllText(file);
        File.AppendAllText(file, "77,binary-translation,rdtsc,0,run,1,1,1,1,1,1,0,0,,0,0\r\n77,binary");
        Assert.Equal(2 * 3 * Rounds, run.Directory.Read().Translations.Count);
        using (run.Directory.Append()) { }
        Assert.Equal(whole, File.ReadAllText(file));
    }

    [Fact]
    public void The_translation_statistics_of_a_finished_run_are_the_ones_that_were_counted()
    {
        using SyntheticRun run = Run();
        ReportWriter.WriteFits(run.Directory);
        string file = run.Directory.At("translation-statistics.csv");
        File.WriteAllText(file, File.ReadAllText(file).Replace(",run,50,", ",run,51,", StringComparison.Ordinal));
        Assert.Contains(
            "SHA-256",
            Assert.Throws<RunDirectoryException>(() => RunDirectory.Open(run.Directory.FullPath).Read()).Message
        );
    }

    [Fact]
    public void Simulated_translation_is_drawn_like_the_real_one_hollow_and_dashed()
    {
        StrategyStyle real = StrategyStyle.Of("binary-translation", isComputed: false);
        StrategyStyle simulated = StrategyStyle.Of("simulated-binary-translation", isComputed: true);
        Assert.Equal((real.Color, real.Shape), (simulated.Color, simulated.Shape));
        Assert.NotEqual(real.Fill, simulated.Fill);
        Assert.NotEqual(real.Dash, simulated.Dash);
        Assert.NotEqual(StrategyStyle.Of("unheard-of", isComputed: false).Color, real.Color);
    }
}
