using MathNet.Numerics.Distributions;
using VirtBench.Measurement;
using VirtBench.Reporting.Runs;

namespace VirtBench.Reporting.Tests;

/// <summary>
/// A run made of a known model and seeded noise, in a temporary folder that goes with it. Nothing in it was ever measured, and
/// every name in it says so.
/// </summary>
internal sealed class SyntheticRun : IDisposable
{
    public static readonly int[] Densities = [0, 1, 2, 4, 8, 16];

    public static readonly DateTimeOffset Started = new(2031, 2, 3, 4, 5, 6, TimeSpan.Zero);

    private SyntheticRun(string folder, RunDirectory directory)
    {
        Folder = folder;
        Directory = directory;
    }

    public string Folder { get; }

    public RunDirectory Directory { get; }

    public static string NewFolder() => System.IO.Directory.CreateTempSubdirectory("virtbench-synthetic-").FullName;

    public static RunDescription Description(int rounds = 6) =>
        new()
        {
            Command = "virtbench run --profile quick --seed 42",
            Profile = "quick",
            Seed = 42,
            Rounds = rounds,
            Commit = "0123456789abcdef0123456789abcdef01234567",
            Version = "0.1.0-synthetic",
            Strategies =
            [
                new("native", "Native", false, "CLOCK_MONOTONIC_RAW"),
                new("trap-and-emulate", "Trap and emulate", false, "CLOCK_MONOTONIC_RAW"),
                new("simulated-trap-and-emulate", "Simulated trap and emulate", true, "cost profile textbook"),
            ],
            Workloads =
            [
                new("compute", null, "Arithmetic without any sensitive instruction"),
                new("rdtsc", "rdtsc", "Reads the time-stamp counter"),
                new("port-io", "out dx, al", "Writes to an I/O port"),
                new("cr3-switch", "mov cr3, rax", "Switches address spaces"),
            ],
            Skipped =
            [
                new("hardware", null, "/dev/kvm is missing: load kvm_intel or kvm_amd"),
                new("native", "port-io", "the instruction needs ring 0"),
                new("native", "cr3-switch", "the instruction needs ring 0"),
            ],
            Order =
            [
                [new("native", "rdtsc", 0), new("trap-and-emulate", "rdtsc", 16)],
            ],
            GuestImages = [new("rdtsc", 16, new string('a', 64))],
        };

    public static object EnvironmentRecord() =>
        new
        {
            Note = "synthetic: no such machine exists",
            Cpu = new
            {
                Model = "Imaginary CPU 3000",
                Cores = 2,
                InvariantTsc = true,
                FrequencyMhz = 2999.5,
            },
            Kernel = "Linux 0.0.0-synthetic",
            Mitigations = new Dictionary<string, string>
            {
                ["spectre_v2"] = "Mitigation: none <script>alert(1)</script>",
            },
            Governor = (string?)null,
            CpusAllowed = new[] { 0, 1 },
        };

    /// <summary>A run directory without samples.</summary>
    public static SyntheticRun Empty(
        string host = "synthetic-host",
        RunDescription? description = null,
        object? environment = null
    )
    {
        var folder = NewFolder();
        return new SyntheticRun(
            folder,
            RunDirectory.Create(folder, host, Started, description ?? Description(), environment ?? EnvironmentRecord())
        );
    }

    /// <summary>A run directory with all samples; one of them failed, one is an outlier, one took other traps.</summary>
    public static SyntheticRun Full(int rounds = 6)
    {
        var run = Empty(description: Description(rounds));
        using (var log = run.Directory.Append())
        {
            foreach (var (sample, exits) in Samples(rounds))
            {
                log.SampleTaken(sample, new SampleRecords(exits, [], []));
            }
        }
        return run;
    }

    public static IEnumerable<(Sample Sample, IReadOnlyList<ExitRecord> Exits)> Samples(int rounds)
    {
        var random = new Random(42);
        var noise = new Normal(0, 1, random);
        for (var round = 0; round < rounds; round++)
        {
            var drift = 0.01 * noise.Sample();
            foreach (var (strategy, workload, t0, dt, traps) in Laws())
            {
                foreach (var k in workload == "compute" ? [0] : Densities)
                {
                    var simulated = strategy.StartsWith("simulated", StringComparison.Ordinal);
                    var share = simulated ? 0 : drift + 0.006 * noise.Sample();
                    const long Units = 20_000;
                    var cell = new Cell(strategy, workload, k);
                    var elapsed = (t0 + k * dt) * (1 + share) * Units;
                    var status = SampleStatus.Ok;
                    var note = "";
                    var units = Units;
                    if ((round, strategy, workload, k) == (2, "trap-and-emulate", "port-io", 4))
                    {
                        (status, note, units, elapsed) = (SampleStatus.Failed, "timed out, \"after\" 5 s", 0, 0);
                    }
                    if ((round, strategy, workload, k) == (3, "trap-and-emulate", "rdtsc", 8))
                    {
                        elapsed *= 1.4;
                    }
                    if ((round, strategy, workload, k) == (4, "trap-and-emulate", "cr3-switch", 1))
                    {
                        (status, note) = (SampleStatus.TrapMismatch, "20003 traps instead of 20000");
                    }
                    var sample = new Sample(
                        round,
                        cell,
                        units,
                        traps ? k * units : 0,
                        elapsed,
                        (ulong)(elapsed * 3),
                        simulated ? 0 : 1234.5,
                        simulated ? 0 : 2,
                        OutlierLabel.None,
                        status,
                        note
                    );
                    IReadOnlyList<ExitRecord> exits =
                        !traps || k == 0 || units == 0
                            ? []
                            :
                            [
                                new ExitRecord(
                                    round,
                                    cell,
                                    workload,
                                    k * units,
                                    simulated ? 0.5 * k * units : null,
                                    40.25 * k * units,
                                    61.5 * k * units,
                                    simulated ? 0.5 * k * units : null
                                ),
                                new ExitRecord(round, cell, "kick", 1, null, 40, 900, null),
                            ];
                    yield return (sample, exits);
                }
            }
        }
    }

    public void Dispose() => System.IO.Directory.Delete(Folder, recursive: true);

    private static IEnumerable<(string Strategy, string Workload, double T0, double Dt, bool Traps)> Laws() =>
        [
            ("native", "compute", 3000, 0, false),
            ("native", "rdtsc", 3000, 9, false),
            ("trap-and-emulate", "compute", 3050, 0, false),
            ("trap-and-emulate", "rdtsc", 3060, 2550, true),
            ("trap-and-emulate", "port-io", 3050, 2700, true),
            ("trap-and-emulate", "cr3-switch", 3100, 17_500, true),
            ("simulated-trap-and-emulate", "compute", 1000, 0, false),
            ("simulated-trap-and-emulate", "rdtsc", 1000, 1675, true),
            ("simulated-trap-and-emulate", "port-io", 1000, 1699, true),
            ("simulated-trap-and-emulate", "cr3-switch", 1000, 1700, true),
        ];
}
