using VirtBench.Strategies;
using VirtBench.Vmm.Interrupts;
using VirtBench.Workloads;

namespace VirtBench.Measurement;

/// <summary>One sample to be taken.</summary>
/// <param name="Round">Round, from 0.</param>
/// <param name="Cell">Strategy, workload and k.</param>
public readonly record struct PlannedSample(int Round, Cell Cell);

/// <summary>
/// What a sweep measures and in which order: a function of the seed and the cells alone, so that a resumed sweep goes on in
/// the order of the first. Each round holds every cell once, shuffled; drift of the host then hits all cells alike.
/// </summary>
public sealed class SweepPlan
{
    private SweepPlan(
        ulong seed,
        IReadOnlyList<Cell> cells,
        IReadOnlyList<SkippedCell> skipped,
        IReadOnlyList<PlannedSample> order
    )
    {
        Seed = seed;
        Cells = cells;
        Skipped = skipped;
        Order = order;
    }

    /// <summary>The seed of the order.</summary>
    public ulong Seed { get; }

    /// <summary>The cells, by strategy, workload and k as they were asked for.</summary>
    public IReadOnlyList<Cell> Cells { get; }

    /// <summary>What was asked for and cannot be measured here, with the reason.</summary>
    public IReadOnlyList<SkippedCell> Skipped { get; }

    /// <summary>
    /// The samples in order. Cells of simulated strategies appear in round 0 only: their times are computed, and another
    /// round would only repeat the number. Cells of a strategy that emulates guest ring 0 appear in a third of the rounds.
    /// </summary>
    public IReadOnlyList<PlannedSample> Order { get; }

    /// <summary>Plans a sweep.</summary>
    /// <param name="strategies">Strategies, available or not.</param>
    /// <param name="workloads">Workloads.</param>
    /// <param name="densities">
    /// Traps per unit; duplicates count once. A workload in which nothing depends on them (<see cref="Workload.DependsOnDensity"/>)
    /// is measured at the least only: t0 is all that there is to know of it.
    /// </param>
    /// <param name="rounds">Rounds, at least 1.</param>
    /// <param name="seed">Seed of the order.</param>
    public static SweepPlan Create(
        IReadOnlyList<Strategy> strategies,
        IReadOnlyList<Workload> workloads,
        IReadOnlyList<int> densities,
        int rounds,
        ulong seed
    )
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(rounds, 1);
        var cells = new List<Cell>();
        var roundsOf = new Dictionary<string, int>();
        var skipped = new List<SkippedCell>();
        foreach (Strategy strategy in strategies)
        {
            if (strategy.UnavailableReason() is { } reason)
            {
                skipped.Add(new SkippedCell(strategy.Id, null, reason));
                continue;
            }

            roundsOf[strategy.Id] = RoundsOf(strategy, rounds);
            foreach (Workload workload in workloads)
            {
                AddCells(strategy, workload, densities, cells, skipped);
            }
        }

        return new SweepPlan(seed, cells, skipped, Interleave(cells, roundsOf, rounds, seed));
    }

    /// <summary>Why no sweep measures a workload under a strategy that is available, in one line; null when it does.</summary>
    public static string? WhyNotUnder(Strategy strategy, Workload workload) =>
        workload.NeedsPrivilege && !strategy.RunsPrivilegedGuests
            ? $"the measured region needs a ring 0 ({workload.Operation(strategy.Interface).Instruction}), and {strategy.Id} has none"
        : workload.NeedsVectorUnit && strategy.EmulatesRingZero
            ? $"the measured region executes SSE2 in ring 0, which {strategy.Id} emulates on this host without SSE2"
        : null;

    /// <summary>
    /// In how many of a sweep's rounds a strategy takes part. An emulator of ring 0 takes a thousand times as long for a unit as the
    /// processor, and its times are its own: a third, but two where there are two, so that there is some scatter to see.
    /// </summary>
    internal static int RoundsOf(Strategy strategy, int rounds) =>
        strategy.IsSimulated ? 1
        : strategy.EmulatesRingZero ? Math.Max(Math.Min(2, rounds), (rounds + 2) / 3)
        : rounds;

    private static void AddCells(
        Strategy strategy,
        Workload workload,
        IReadOnlyList<int> densities,
        List<Cell> cells,
        List<SkippedCell> skipped
    )
    {
        if (strategy.Delivery != InterruptDelivery.Exit && !workload.UsesDeviceInterrupts)
        {
            return; // it would be the strategy itself once more
        }

        if (WhyNotUnder(strategy, workload) is { } reason)
        {
            skipped.Add(new SkippedCell(strategy.Id, workload.Id, reason));
            return;
        }

        int[] wanted = [.. densities.Distinct().Order()];
        int[] tooMany = [.. wanted.Where(k => k > workload.MaximumTrapsPerUnit)];
        if (tooMany.Length > 0)
        {
            skipped.Add(
                new SkippedCell(
                    strategy.Id,
                    workload.Id,
                    $"k = {string.Join(", ", tooMany)}: a unit of {workload.Id} has room for {workload.MaximumTrapsPerUnit} traps"
                )
            );
        }

        int measured = workload.DependsOnDensity ? wanted.Length : 1;
        cells.AddRange(wanted.Except(tooMany).Take(measured).Select(k => new Cell(strategy.Id, workload.Id, k)));
    }

    private static List<PlannedSample> Interleave(
        List<Cell> cells,
        Dictionary<string, int> roundsOf,
        int rounds,
        ulong seed
    )
    {
        var seeds = new SplitMix64(seed);
        var order = new List<PlannedSample>();
        for (int round = 0; round < rounds; round++)
        {
            // A seed for each round: a sweep of more rounds begins with the same ones.
            var random = new SplitMix64(seeds.Next());
            Cell[] shuffled = [.. cells.Where(cell => round < roundsOf[cell.Strategy])];
            random.Shuffle(shuffled.AsSpan());
            order.AddRange(shuffled.Select(cell => new PlannedSample(round, cell)));
        }

        return order;
    }
}
