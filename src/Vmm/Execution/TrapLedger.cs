using System.Runtime.CompilerServices;

namespace VirtBench.Vmm.Execution;

/// <summary>
/// The account of every exit: how many of which kind, and how long the VMM dispatched and emulated. Counting allocates
/// nothing; a snapshot does.
/// </summary>
public sealed class TrapLedger
{
    private readonly long[] _count = new long[TrapReasons.Count];
    private readonly ulong[] _dispatchTicks = new ulong[TrapReasons.Count];
    private readonly ulong[] _emulateTicks = new ulong[TrapReasons.Count];

    /// <summary>Enters one exit.</summary>
    /// <param name="reason">What it was for.</param>
    /// <param name="dispatchTicks">Clock ticks from the exit being seen to the handler being known.</param>
    /// <param name="emulateTicks">Clock ticks from there to the VM being ready for entry.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Record(TrapReason reason, ulong dispatchTicks, ulong emulateTicks)
    {
        _count[(int)reason]++;
        _dispatchTicks[(int)reason] += dispatchTicks;
        _emulateTicks[(int)reason] += emulateTicks;
    }

    /// <summary>Exits of one kind so far.</summary>
    public long Count(TrapReason reason) => _count[(int)reason];

    /// <summary>All accounts at this moment.</summary>
    public LedgerSnapshot Snapshot() =>
        new((long[])_count.Clone(), (ulong[])_dispatchTicks.Clone(), (ulong[])_emulateTicks.Clone());
}

/// <summary>The ledger's accounts at one moment, or the difference of two; indexed by <see cref="TrapReason"/>.</summary>
/// <param name="Counts">Exits.</param>
/// <param name="DispatchTicks">Clock ticks of dispatch.</param>
/// <param name="EmulateTicks">Clock ticks of emulation.</param>
public sealed record LedgerSnapshot(
    IReadOnlyList<long> Counts,
    IReadOnlyList<ulong> DispatchTicks,
    IReadOnlyList<ulong> EmulateTicks
)
{
    /// <summary>Exits of one kind.</summary>
    public long this[TrapReason reason] => Counts[(int)reason];

    /// <summary>What has been added since an earlier snapshot.</summary>
    public LedgerSnapshot Since(LedgerSnapshot earlier) =>
        new(
            [.. Counts.Zip(earlier.Counts, (now, then) => now - then)],
            [.. DispatchTicks.Zip(earlier.DispatchTicks, (now, then) => now - then)],
            [.. EmulateTicks.Zip(earlier.EmulateTicks, (now, then) => now - then)]
        );
}
