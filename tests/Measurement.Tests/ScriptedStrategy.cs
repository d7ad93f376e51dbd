using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using VirtBench.Workloads;

namespace VirtBench.Measurement.Tests;

/// <summary>A strategy that exists on paper: a sweep's runner is scripted, so no engine of it is ever created.</summary>
internal sealed class ScriptedStrategy(string id) : Strategy
{
    public override string Id => id;

    public override string Description => "scripted";

    public override string Label => id;

    public override bool IsSimulated => Capabilities.ComputedTime;

    public override bool RunsPrivilegedGuests => Capabilities.TrapsPrivilegedInstructions;

    public string? Unavailable { get; init; }

    public EngineCapabilities Capabilities { get; init; } =
        new()
        {
            TrapsPrivilegedInstructions = true,
            TrapsTimeStampCounter = true,
            TimeSource = "measured: scripted",
        };

    public static ScriptedStrategy Computed(string id) =>
        new(id)
        {
            Capabilities = new EngineCapabilities
            {
                TrapsPrivilegedInstructions = true,
                TrapsTimeStampCounter = true,
                ComputedTime = true,
                SwitchOutTicks = 700,
                SwitchInTicks = 800,
                TimeSource = "computed: scripted",
            },
        };

    public static ScriptedStrategy Native() =>
        new("native") { Capabilities = new EngineCapabilities { TimeSource = "measured: scripted" } };

    public bool Emulates { get; init; }

    public override bool EmulatesRingZero => Emulates;

    public override string? UnavailableReason() => Unavailable;

    public override IExecutionEngine CreateEngine(VirtualCpu cpu, GuestMemory memory) =>
        throw new InvalidOperationException("a scripted strategy has no engine");
}

/// <summary>One call of a scripted runner.</summary>
internal sealed record Call(ScriptedStrategy Strategy, Workload Workload, int TrapsPerUnit, long WarmUp, long Units);

/// <summary>
/// Plays VMs that behave as the model says, t = t0 + k·Δt, on a clock of 2 GHz; a test bends single runs by
/// <see cref="Bend"/>.
/// </summary>
internal sealed class ScriptedMachines
{
    public const double TicksPerSecond = 2e9;
    public const double UnitNanoseconds = 8_000;
    public const double TrapNanoseconds = 2_700;

    public List<Call> Calls { get; } = [];

    /// <summary>Changes what a call comes to.</summary>
    public Func<Call, SampleRun, SampleRun> Bend { get; init; } = (_, run) => run;

    public SampleRun Run(Strategy strategy, GuestImage image, long warmUp, long units, CancellationToken cancellation)
    {
        var scripted = (ScriptedStrategy)strategy;
        string[] name = image.Name.Split(", ");
        Workload workload = WorkloadCatalog.Find(name[0])!;
        int k = int.Parse(name[1]["k = ".Length..]);
        var call = new Call(scripted, workload, k, warmUp, units);
        Calls.Add(call);
        int exits = workload.ExitsUnder(scripted.Interface, scripted.Capabilities) ?? 1;
        long traps = exits > 0 ? k * units : 0;
        double elapsed = (units * UnitNanoseconds) + (traps * TrapNanoseconds) + 3_000;
        var run = new SampleRun(
            new RunOutcome(RunEnd.Exited, 0, null),
            [
                Region(
                    Workload.MeasuredRegionId,
                    (ulong)units,
                    elapsed,
                    workload.Operation(scripted.Interface).Trap,
                    traps * exits
                ),
            ],
            new WorkloadResult((ulong)((warmUp * 1_000_003) + units), (ulong)(elapsed * 2)),
            scripted.Capabilities,
            TicksPerSecond,
            new HostDisturbance(20e6, 3)
        );
        return Bend(call, run);
    }

    public static MeasuredRegion Region(uint id, ulong units, double elapsed, TrapReason? kind, long traps)
    {
        var ledger = new TrapLedger();
        LedgerSnapshot before = ledger.Snapshot();
        ledger.Record(TrapReason.RegionMarker, 10, 100);
        for (long i = 0; kind is { } reason && i < Math.Min(traps, 1); i++)
        {
            ledger.Record(reason, 20, 200);
        }

        LedgerSnapshot counted = ledger.Snapshot().Since(before);
        long[] counts = [.. counted.Counts];
        if (kind is { } trapped)
        {
            counts[(int)trapped] = traps;
        }

        return new MeasuredRegion(id, units, elapsed, 0, counted with { Counts = counts });
    }
}

/// <summary>Keeps what a sweep hands out.</summary>
internal sealed class RecordingObserver : ISweepObserver
{
    public List<Sample> Samples { get; } = [];

    public List<ExitRecord> Exits { get; } = [];

    public List<(int Done, int Total, TimeSpan? Remaining)> Steps { get; } = [];

    public Action<Sample>? OnSample { get; init; }

    public List<KernelStatisticRecord> KernelStatistics { get; } = [];

    public List<TranslationRecord> Translations { get; } = [];

    public void SampleTaken(Sample sample, SampleRecords records)
    {
        Samples.Add(sample);
        Exits.AddRange(records.Exits);
        KernelStatistics.AddRange(records.KernelStatistics);
        Translations.AddRange(records.Translations);
        OnSample?.Invoke(sample);
    }

    public void Progress(int done, int total, TimeSpan? remaining) => Steps.Add((done, total, remaining));
}
