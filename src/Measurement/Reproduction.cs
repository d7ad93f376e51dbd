using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Workloads;

namespace VirtBench.Measurement;

/// <summary>One published figure beside VirtBench's own.</summary>
/// <param name="Statement">What is stated, in one line.</param>
/// <param name="Source">Where it was published.</param>
/// <param name="Published">The published number.</param>
/// <param name="Own">VirtBench's number, or null when it could not be had.</param>
/// <param name="Unit">Unit of both.</param>
/// <param name="Origin">Where the own number comes from: computed or measured, by what.</param>
/// <param name="Agrees">
/// True when the own number, rounded to the digits published, is the published one; null where the two are not comparable.
/// </param>
/// <param name="Remark">Why they are not comparable or why there is no own number; empty otherwise.</param>
public sealed record ReproducedFigure(
    string Statement,
    string Source,
    double Published,
    double? Own,
    string Unit,
    string Origin,
    bool? Agrees,
    string Remark
);

/// <summary>
/// Runs the guests behind the published figures that VirtBench checks itself against. Nothing here is arithmetic on the
/// published numbers: each own figure is the time that a guest took under the VMM.
/// </summary>
public sealed class Reproduction
{
    private const string Seed =
        "\"Trap-and-emulate\" (course text, in Chinese), section \"The price of magic: performance overhead\"";

    /// <summary>The worked example: RDTSC and 40 cycles of work an iteration, an instruction of filler taking one cycle.</summary>
    private const int ExampleFiller = 40;

    /// <summary>Filler of 500 ns on the textbook profile's 3.4 GHz, so that one trap a unit makes 10^6 traps a second.</summary>
    private const int HalfThroughputFiller = 1700;

    private readonly IReadOnlyList<Strategy> _strategies;
    private readonly Workload _rdtsc;

    /// <summary>Takes the strategies to run under from the catalogue, by id.</summary>
    public Reproduction(IReadOnlyList<Strategy> strategies)
    {
        _strategies = strategies;
        _rdtsc = WorkloadCatalog.Find("rdtsc") ?? throw new InvalidOperationException("there is no workload rdtsc");
    }

    /// <summary>Runs every guest; a second or two.</summary>
    /// <exception cref="GuestFailureException">A guest did not end as it should.</exception>
    public IReadOnlyList<ReproducedFigure> Run()
    {
        Strategy native = Find("simulated-native");
        Strategy trapping = Find("simulated-trap-and-emulate");
        double clock = TicksPerSecond(trapping);
        double nativeCycles = NanosecondsPerUnit(native, 1, ExampleFiller) * clock / 1e9;
        double trappedCycles = NanosecondsPerUnit(trapping, 1, ExampleFiller) * clock / 1e9;

        double control = NanosecondsPerUnit(trapping, 0, HalfThroughputFiller);
        double loaded = NanosecondsPerUnit(trapping, 1, HalfThroughputFiller);
        double trapsPerSecond = 1e9 / loaded;
        const string computed = "computed: guest run under the VMM on the simulated CPU, cost profile textbook";
        return
        [
            Computed("RDTSC loop without virtualization, per iteration", 65, nativeCycles, "cycles", 0),
            Computed("the same loop, every RDTSC trapped and emulated", 1740, trappedCycles, "cycles", 0),
            Computed("slow-down of the loop", 26.8, trappedCycles / nativeCycles, "times", 1),
            Computed("typical penalty of one trap, Δt", 500, loaded - control, "ns", 0),
            Computed("traps per second of the next line's guest, n", 1e6, trapsPerSecond, "1/s", 0),
            Computed("throughput left at n = 10^6 traps per second and Δt = 500 ns", 0.5, control / loaded, "T/T0", 3),
            OnThisHost(trappedCycles / nativeCycles),
        ];

        static ReproducedFigure Computed(string statement, double published, double own, string unit, int digits) =>
            new(statement, Seed, published, own, unit, computed, Math.Round(own, digits) == published, "");
    }

    private ReproducedFigure OnThisHost(double computedRatio)
    {
        const string statement = "the same two loops on this host's CPU, slow-down";
        const string remark =
            "not comparable: this trap is a signal to a user process, not a VM exit, and one instruction is not one cycle";
        Strategy native = Find("native");
        Strategy trapping = Find("trap-and-emulate");
        string? reason = native.UnavailableReason() ?? trapping.UnavailableReason();
        double? ratio = reason is null
            ? NanosecondsPerUnit(trapping, 1, ExampleFiller) / NanosecondsPerUnit(native, 1, ExampleFiller)
            : null;
        return new ReproducedFigure(
            statement,
            Seed,
            Math.Round(computedRatio, 1),
            ratio,
            "times",
            reason is null ? "measured: this host, native and trap-and-emulate" : "not measured",
            null,
            reason is null ? remark : $"skipped: {reason}"
        );
    }

    private Strategy Find(string id) =>
        _strategies.FirstOrDefault(strategy => strategy.Id == id)
        ?? throw new InvalidOperationException($"there is no strategy {id}");

    private static double TicksPerSecond(Strategy strategy)
    {
        using var machine = new VirtualMachine(Vmm.Memory.GuestMemory.MinimumSize, strategy.CreateEngine);
        return machine.Clock.TicksPerSecond;
    }

    /// <summary>
    /// Time of one unit from two runs of different length: their difference holds units only, neither the region markers
    /// nor the way in and out.
    /// </summary>
    private double NanosecondsPerUnit(Strategy strategy, int trapsPerUnit, int filler)
    {
        const int few = 1_000;
        const int many = 11_000;
        GuestImage image = _rdtsc.Build(new WorkloadOptions(trapsPerUnit, filler));
        return (RegionNanoseconds(strategy, image, many) - RegionNanoseconds(strategy, image, few)) / (many - few);
    }

    private static double RegionNanoseconds(Strategy strategy, GuestImage image, ulong units)
    {
        using var machine = new VirtualMachine(64 << 20, strategy.CreateEngine);
        machine.Load(image, new BootOptions { Parameters = [units / 10, units] });
        RunOutcome outcome = machine.Run(TimeSpan.FromSeconds(30));
        return outcome.End == RunEnd.Exited && machine.Regions is [var region]
            ? region.ElapsedNanoseconds
            : throw new GuestFailureException(
                $"{image.Name} under {strategy.Id}: {outcome.Message ?? $"status {outcome.Status}, {machine.Regions.Count} regions"}"
            );
    }
}
