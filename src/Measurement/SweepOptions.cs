using VirtBench.Strategies;
using VirtBench.Workloads;

namespace VirtBench.Measurement;

/// <summary>What a sweep is asked to measure, and how.</summary>
public sealed record SweepOptions
{
    /// <summary>Strategies, available or not: what cannot be measured is listed as skipped.</summary>
    public required IReadOnlyList<Strategy> Strategies { get; init; }

    /// <summary>Workloads.</summary>
    public required IReadOnlyList<Workload> Workloads { get; init; }

    /// <summary>Sample time, rounds and densities.</summary>
    public SweepProfile Profile { get; init; } = SweepProfile.Quick;

    /// <summary>Seed of the order.</summary>
    public ulong Seed { get; init; }

    /// <summary>Filler instructions per unit; null for each workload's own default.</summary>
    public int? FillerInstructions { get; init; }

    /// <summary>RAM of each VM, in bytes.</summary>
    public ulong RamBytes { get; init; } = 64 << 20;

    /// <summary>Wall-clock limit of one sample.</summary>
    public TimeSpan SampleTimeout { get; init; } = TimeSpan.FromSeconds(30);

    /// <summary>End a guest that touches a port or an address that nothing answers.</summary>
    public bool Strict { get; init; }

    /// <summary>
    /// Units of a sample whose time is computed: every unit costs the same cycles, so few will do. What is left of the program
    /// around the markers is below 0.1 % of 200 units of 20,000 instructions.
    /// </summary>
    public long ComputedUnits { get; init; } = 200;

    /// <summary>
    /// CPU to pin the sweep's thread to (Linux only); null leaves it to the engine, which pins its vCPU threads where exits
    /// are hand-offs between cores.
    /// </summary>
    public int? PinToCpu { get; init; }
}

/// <summary>A sample that an earlier part of a sweep has taken.</summary>
/// <param name="Round">Round.</param>
/// <param name="Cell">Cell.</param>
/// <param name="Units">Its units: a resumed sweep goes on with as many. 0 for a failed sample.</param>
public readonly record struct CompletedSample(int Round, Cell Cell, long Units);

/// <summary>How a sweep came out.</summary>
/// <param name="Complete">False when it was cancelled before its last sample.</param>
/// <param name="Taken">Samples taken, failed ones included.</param>
/// <param name="NotTaken">Samples of later rounds given up because their cell had failed for good.</param>
/// <param name="Cells">Warm-up and units of every cell that was prepared.</param>
public sealed record SweepResult(bool Complete, int Taken, int NotTaken, IReadOnlyList<PreparedCell> Cells);

/// <summary>A cell after calibration.</summary>
/// <param name="Cell">Cell.</param>
/// <param name="WarmUpUnits">Units that each sample does before its region.</param>
/// <param name="Units">Units of each sample.</param>
public sealed record PreparedCell(Cell Cell, long WarmUpUnits, long Units);
