using VirtBench.Measurement;
using VirtBench.Reporting.Figures;
using VirtBench.Reporting.Runs;
using VirtBench.Vmm.Disks;
using VirtBench.Vmm.Execution;

namespace VirtBench.Reporting.Tests;

/// <summary>Reports of runs whose guests used a disk. Nothing in them was ever measured.</summary>
public sealed class DiskReportFacts
{
    private const long Units = 100;
    private const int Rounds = 4;
    private const double Idle = 20_000;
    private const double Service = 1_000_000;

    private static SyntheticRun Run(double late = 0, params string[] strategies)
    {
        string[] measured = strategies.Length > 0 ? strategies : ["trap-and-emulate"];
        SyntheticRun run = SyntheticRun.Empty(
            description: SyntheticRun.Description(Rounds) with
            {
                Strategies = [.. measured.Select(id => new StrategyEntry(id, id.ToUpperInvariant(), false, "clock"))],
                Workloads =
                [
                    new("disk-stream", "read", "streams") { DiskServiceNanoseconds = 0 },
                    new("disk-io", "read", "waits") { DiskServiceNanoseconds = Service },
                ],
            }
        );
        using SampleLog log = run.Directory.Append();
        for (int round = 0; round < Rounds; round++)
        {
            foreach (string strategy in measured)
            {
                bool direct = strategy.EndsWith("+direct", StringComparison.Ordinal);
                foreach (int k in (int[])[0, 2, 4])
                {
                    double overhead = direct ? 25_000 : 40_000;
                    Add("disk-stream", strategy, round, k, Idle + (k * overhead), k * 5000, 0, direct);
                    Add(
                        "disk-io",
                        strategy,
                        round,
                        k,
                        Idle + (k * (Service + overhead + late)),
                        k * (Service + late),
                        Service + late,
                        direct
                    );
                }
            }
        }

        return run;

        void Add(
            string workload,
            string strategy,
            int round,
            int k,
            double unit,
            double waiting,
            double latency,
            bool direct
        )
        {
            var cell = new Cell(strategy, workload, k);
            long requests = k * Units;
            log.SampleTaken(
                new Sample(
                    round,
                    cell,
                    Units,
                    requests,
                    (unit + round) * Units,
                    1,
                    0,
                    0,
                    OutlierLabel.None,
                    SampleStatus.Ok,
                    ""
                ),
                new SampleRecords(
                    requests == 0
                        ? []
                        :
                        [
                            new(round, cell, "port-io", 10 * requests, null, 1, 1, null),
                            .. direct
                                ? Array.Empty<ExitRecord>()
                                : [new ExitRecord(round, cell, "kick", requests, null, 1, 1, null)],
                        ],
                    [],
                    [],
                    requests == 0
                        ? null
                        : new IoRecord(
                            round,
                            cell,
                            new IoStatistics(
                                waiting * Units,
                                new DiskStatistics(
                                    requests,
                                    requests,
                                    0,
                                    4096 * requests,
                                    0,
                                    0,
                                    requests,
                                    latency * requests,
                                    latency
                                )
                            )
                        )
                )
            );
        }
    }

    private static string Report(SyntheticRun run)
    {
        ReportWriter.Write(run.Directory, new NoRenderer());
        return File.ReadAllText(run.Directory.At("report.md"));
    }

    private static string[] Row(string report, string begins) =>
        [
            .. report
                .Split('\n')
                .First(line => line.StartsWith(begins, StringComparison.Ordinal))
                .Split('|', StringSplitOptions.TrimEntries)[1..^1],
        ];

    [Fact]
    public void Wall_time_CPU_time_and_waiting_stand_apart()
    {
        using SyntheticRun run = Run();
        string report = Report(run);
        // 180 µs, of them 20 waiting; 20 µs would be ideal.
        Assert.Equal(
            ["disk-stream", "TRAP-AND-EMULATE", "4", "180 µs", "160 µs", "11 %", "89 %", "11.0", "1.00", "0 ns"],
            Row(report, "| disk-stream | TRAP-AND-EMULATE | 4 | 180")
        );
        Assert.Equal(
            ["disk-io", "TRAP-AND-EMULATE", "4", "4.18 ms", "180 µs", "96 %", "3.8 %", "11.0", "1.00", "1.00 ms"],
            Row(report, "| disk-io | TRAP-AND-EMULATE | 4 | 4.18")
        );
    }

    [Fact]
    public void What_streaming_loses_and_waiting_hides_is_said_in_words()
    {
        using SyntheticRun run = Run();
        Assert.Contains(
            "disk-stream loses 89 % of its throughput, disk-io 3.8 % while waiting 96 % of the time.",
            Report(run),
            StringComparison.Ordinal
        );
    }

    [Fact]
    public void A_loss_that_waiting_does_not_hide_is_explained()
    {
        using SyntheticRun run = Run(late: 60_000);
        Assert.Contains(
            "a request takes 100 µs longer than its service, of which the device itself was late by 60.0 µs and exits, "
                + "wake-ups and the guest's driver took 40.0 µs",
            Report(run),
            StringComparison.Ordinal
        );
    }

    [Fact]
    public void Exits_saved_by_another_delivery_are_those_against_exits()
    {
        using SyntheticRun run = Run(0, "hardware", "hardware+direct");
        string report = Report(run);
        Assert.Equal(
            ["disk-stream", "HARDWARE+DIRECT", "4", "1.00", "10.0", "1.00", "0", "30.0 µs"],
            Row(report, "| disk-stream | HARDWARE+DIRECT | 4 | 1.00")
        );
        Assert.Equal("", Row(report, "| disk-stream | HARDWARE | 4 | 1.00")[5]);
    }

    [Fact]
    public void A_figure_sets_the_loss_against_the_waiting()
    {
        using SyntheticRun run = Run();
        Figure figure = Assert.Single(
            RunFigures.Of(RunAnalysis.Of(run.Directory)),
            figure => figure.Id == "throughput-lost-waiting"
        );
        Assert.Contains(
            "disk-io, TRAP-AND-EMULATE: waiting 96 %, lost 3.8 %.",
            figure.Alternative,
            StringComparison.Ordinal
        );
    }

    [Fact]
    public void The_account_is_kept_and_read_again()
    {
        using SyntheticRun run = Run();
        RunContents contents = RunDirectory.Open(run.Directory.FullPath).Read();
        Assert.Equal(Rounds * 2 * 2, contents.Io.Count);
        IoRecord record = contents.Io.First(io => io.Cell == new Cell("trap-and-emulate", "disk-io", 4));
        Assert.Equal(4 * Service * Units, record.Statistics.WaitingNanoseconds);
        Assert.Equal(4 * Units, record.Statistics.Disk!.Completions);
    }

    [Fact]
    public void A_run_without_disks_says_nothing_of_them()
    {
        using SyntheticRun run = SyntheticRun.Full();
        Assert.DoesNotContain("## Input and output", Report(run), StringComparison.Ordinal);
    }

    [Fact]
    public void Operations_stand_side_by_side_with_cost_exits_and_slow_down()
    {
        using SyntheticRun run = SyntheticRun.Full();
        string[] row = Row(Report(run), "| rdtsc | 16 |");
        Assert.Matches("^\\d\\.\\d\\d ns, 0 exits, 1\\.0\\d ×$", row[2]);
        Assert.Matches("^2\\.5\\d µs, 1 exit, 14\\.\\d ×$", row[3]);
    }
}
