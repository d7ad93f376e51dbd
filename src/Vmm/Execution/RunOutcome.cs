namespace VirtBench.Vmm.Execution;

/// <summary>How a run of a VM ended.</summary>
public enum RunEnd
{
    /// <summary>The guest wrote the exit port.</summary>
    Exited,

    /// <summary>The time allowed was over.</summary>
    TimedOut,

    /// <summary>The caller cancelled.</summary>
    Cancelled,

    /// <summary>The guest cannot go on: <see cref="RunOutcome.Message"/> says why.</summary>
    Failed,
}

/// <summary>How a run of a VM ended.</summary>
/// <param name="End">Exited, timed out, cancelled or failed.</param>
/// <param name="Status">Exited: the byte written to the exit port.</param>
/// <param name="Message">Otherwise: one line for the user.</param>
public sealed record RunOutcome(RunEnd End, byte Status, string? Message);

/// <summary>One measured region of a guest: from <c>out 0xB0</c> to <c>out 0xB4</c>.</summary>
/// <param name="Id">The id the guest gave at the beginning.</param>
/// <param name="Units">Work units the guest says it has done.</param>
/// <param name="ElapsedNanoseconds">Engine time between the markers.</param>
/// <param name="TscTicks">Guest TSC ticks between the markers.</param>
/// <param name="Exits">The ledger's accounts of this region; the markers' own exits stand under <see cref="TrapReason.RegionMarker"/>.</param>
public sealed record MeasuredRegion(
    uint Id,
    ulong Units,
    double ElapsedNanoseconds,
    ulong TscTicks,
    LedgerSnapshot Exits
);

/// <summary>Ends the guest with one line for the user. Thrown by emulation and devices, caught by the run loop only.</summary>
public sealed class GuestFailureException(string message) : Exception(message);
