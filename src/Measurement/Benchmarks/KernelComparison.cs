using System.Globalization;
using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Workloads;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>A kind of code, and the slow-down against direct execution that the project has set itself for it.</summary>
/// <param name="Workload">Id of the workload.</param>
/// <param name="Name">What the table calls it.</param>
/// <param name="Goal">Slow-down that is to be met.</param>
/// <param name="Stretch">Slow-down that is worth trying for.</param>
internal sealed record KernelGoal(string Workload, string Name, double Goal, double Stretch)
{
    /// <summary>
    /// The project's own goals, chosen below what published translators reach on kernels of these kinds. They judge
    /// nothing: the table says whether they are met.
    /// </summary>
    public static IReadOnlyList<KernelGoal> All { get; } =
    [
        new("compute", "tight ALU loop", 1.02, 1.00),
        new("compute-hash", "SHA-256 and CRC", 1.05, 1.02),
        new("compute-mix", "list, matrix and state machine mix", 1.15, 1.08),
        new("call-return", "recursive calls (fib)", 1.4, 1.25),
        new("compute-bytecode", "bytecode switch", 1.4, 1.3),
        new("indirect-branch", "indirect calls, long period", 1.3, 1.2),
        new("indirect-branch-short", "indirect calls, short period", 1.12, 1.08),
        new("compute-stream", "memory streaming", 1.02, 1.00),
        new("compute-sse2", "SSE2 arithmetic", 1.02, 1.00),
    ];
}

/// <summary>What came out for one kernel; times in nanoseconds per unit, a value per round, sorted.</summary>
/// <param name="Kernel">The kernel and its goals.</param>
/// <param name="Direct">Time of direct execution.</param>
/// <param name="Compared">Time under the other strategy.</param>
/// <param name="SlowDown">Their ratio, round by round.</param>
/// <param name="Noise">Second sample of direct execution over the first, round by round: 1 on a quiet host.</param>
/// <param name="Failure">Why there are no times, in one line; null when there are.</param>
internal sealed record KernelTimes(
    KernelGoal Kernel,
    double[] Direct,
    double[] Compared,
    double[] SlowDown,
    double[] Noise,
    string? Failure
)
{
    /// <summary>The median slow-down against the goals, in one word, to the two decimals that these have.</summary>
    public string Verdict =>
        Math.Round(Quantiles.At(SlowDown, 0.5), 2) is var median && median <= Kernel.Stretch ? "stretch"
        : median <= Kernel.Goal ? "goal"
        : "above";
}

/// <summary>
/// Slow-down of a strategy against direct execution, kernel by kernel. In each round every kernel has its turn, with four samples: direct,
/// other, other, direct, the next round the other way about. The slow-down is taken round by round from the two and two, and of rounds the
/// median. A sample is a fresh VM, so that no placement of memory lasts; both strategies run as many units, and must leave the same
/// checksum.
/// </summary>
internal sealed class KernelComparison
{
    /// <summary>Time that a sample of direct execution is calibrated to last.</summary>
    private const double SampleNanoseconds = 8e6;

    private const int Rounds = 40;
    private const int FirstUnits = 4;

    private static readonly TimeSpan Timeout = TimeSpan.FromSeconds(30);

    private readonly SampleRunner _run;
    private readonly Strategy _direct;
    private readonly Strategy _compared;

    /// <summary>Compares two strategies by real samples.</summary>
    public KernelComparison(Strategy direct, Strategy compared)
        : this(
            direct,
            compared,
            new VirtualMachineRunner(
                new SweepOptions
                {
                    Strategies = [],
                    Workloads = [],
                    SampleTimeout = Timeout,
                }
            ).Run
        ) { }

    internal KernelComparison(Strategy direct, Strategy compared, SampleRunner run)
    {
        _direct = direct;
        _compared = compared;
        _run = run;
    }

    /// <summary>Measures and prints the table.</summary>
    public static void Print(TextWriter output, Strategy direct, Strategy compared)
    {
        IReadOnlyList<KernelTimes> times = new KernelComparison(direct, compared).Measure(KernelGoal.All, Rounds);
        Print(output, direct, compared, times, Rounds);
    }

    internal static void Print(
        TextWriter output,
        Strategy direct,
        Strategy compared,
        IReadOnlyList<KernelTimes> times,
        int rounds
    )
    {
        output.WriteLine(
            $"{compared.Id} against {direct.Id}, {rounds} rounds in turns, this host; medians, quartiles of the ratio:"
        );
        output.WriteLine(
            "| kernel | direct, ns/unit | translated, ns/unit | slow-down | quartiles | direct twice | goal | stretch | met |"
        );
        output.WriteLine("|---|---:|---:|---:|---:|---:|---:|---:|---|");
        foreach (KernelTimes one in times)
        {
            output.WriteLine(
                one.Failure is { } failure
                    ? $"| {one.Kernel.Name} | failed: {failure} |"
                    : string.Create(
                        CultureInfo.InvariantCulture,
                        $"| {one.Kernel.Name} | {Median(one.Direct):F0} | {Median(one.Compared):F0} | {Median(one.SlowDown):F3} | {Quartiles(one.SlowDown)} | {Quartiles(one.Noise)} | {one.Kernel.Goal:F2} | {one.Kernel.Stretch:F2} | {one.Verdict} |"
                    )
            );
        }
    }

    /// <summary>Measures so many rounds of all kernels.</summary>
    public IReadOnlyList<KernelTimes> Measure(IReadOnlyList<KernelGoal> kernels, int rounds)
    {
        Pair[] pairs = [.. kernels.Select(kernel => new Pair(kernel, this))];
        for (int round = 0; round < rounds; round++)
        {
            foreach (Pair pair in pairs)
            {
                pair.Take(directFirst: round % 2 == 0);
            }
        }

        return [.. pairs.Select(pair => pair.Result())];
    }

    private static double Median(double[] sorted) => Quantiles.At(sorted, 0.5);

    private static string Quartiles(double[] sorted) =>
        string.Create(
            CultureInfo.InvariantCulture,
            $"{Quantiles.At(sorted, 0.25):F3} to {Quantiles.At(sorted, 0.75):F3}"
        );

    /// <summary>One kernel under the two strategies.</summary>
    private sealed class Pair
    {
        private readonly KernelComparison _comparison;
        private readonly KernelGoal _kernel;
        private readonly GuestImage _image;
        private readonly List<double> _direct = [];
        private readonly List<double> _compared = [];
        private readonly List<double> _slowDown = [];
        private readonly List<double> _noise = [];
        private readonly long _units;
        private ulong? _checksum;
        private string? _failure;

        public Pair(KernelGoal kernel, KernelComparison comparison)
        {
            _comparison = comparison;
            _kernel = kernel;
            Workload workload =
                WorkloadCatalog.Find(kernel.Workload)
                ?? throw new InvalidOperationException($"there is no workload {kernel.Workload}");
            _image = workload.Build(new WorkloadOptions(0, workload.DefaultFiller));
            _units =
                Calibration.Units(SampleNanoseconds, FirstUnits, units => Run(comparison._direct, units, check: false))
                ?? FirstUnits;
        }

        public void Take(bool directFirst)
        {
            (Strategy outer, Strategy inner) = directFirst
                ? (_comparison._direct, _comparison._compared)
                : (_comparison._compared, _comparison._direct);
            if (
                Sample(outer) is not { } first
                || Sample(inner) is not { } second
                || Sample(inner) is not { } third
                || Sample(outer) is not { } last
            )
            {
                return;
            }

            (double before, double after) = directFirst ? (first, last) : (second, third);
            double direct = (before + after) / 2;
            double compared = ((first + second + third + last) / 2) - direct;
            _direct.Add(direct / _units);
            _compared.Add(compared / _units);
            _slowDown.Add(compared / direct);
            _noise.Add(after / before);
        }

        public KernelTimes Result() =>
            new(
                _kernel,
                [.. _direct.Order()],
                [.. _compared.Order()],
                [.. _slowDown.Order()],
                [.. _noise.Order()],
                _failure
            );

        private double? Sample(Strategy strategy) => _failure is null ? Run(strategy, _units, check: true) : null;

        private double? Run(Strategy strategy, long units, bool check)
        {
            SampleRun run = _comparison._run(strategy, _image, Math.Max(2, units / 10), units, CancellationToken.None);
            MeasuredRegion? region = run.Regions.FirstOrDefault(one => one.Id == Workload.MeasuredRegionId);
            if (run.Outcome is not { End: RunEnd.Exited, Status: 0 } || region is null)
            {
                _failure = $"under {strategy.Id} the guest ended: {run.Outcome.Message ?? run.Outcome.End.ToString()}";
                return null;
            }

            if (check && (_checksum ??= run.Result.Checksum) != run.Result.Checksum)
            {
                _failure =
                    $"under {strategy.Id} it left checksum 0x{run.Result.Checksum:X16}, and 0x{_checksum:X16} before";
                return null;
            }

            return region.ElapsedNanoseconds;
        }
    }
}
