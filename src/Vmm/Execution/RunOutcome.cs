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

    /// <summary>
    /// The thread that ran the guest did not come back when it was kicked, and was given up with its VM. It may still
    /// occupy a CPU.
    /// </summary>
    Abandoned,
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
/// <param name="KernelStatistics">
/// What the host's kernel counted of the vCPU in this region, by <see cref="EngineCapabilities.KernelStatistics"/>; null where
/// it keeps no such account. One marker's exit is among its exits, as one is in <paramref name="Exits"/>: the difference of the
/// two is what the kernel handled without the VMM.
/// </param>
/// <param name="Translation">What the engine translated meanwhile; null for one that does not translate.</param>
public sealed record MeasuredRegion(
    uint Id,
    ulong Units,
    double ElapsedNanoseconds,
    ulong TscTicks,
    LedgerSnapshot Exits,
    KernelStatistics? KernelStatistics = null,
    TranslationStatistics? Translation = null
)
{
    /// <summary>Input and output meanwhile; null where nobody keeps the account.</summary>
    public IoStatistics? Io { get; init; }
}

/// <summary>Counters that the host's kernel keeps of a vCPU, at one moment or over a time.</summary>
/// <param name="Names">Their names, as the kernel gives them.</param>
/// <param name="Values">Their values.</param>
public sealed record KernelStatistics(IReadOnlyList<string> Names, IReadOnlyList<ulong> Values)
{
    /// <summary>Name of the counter of all VM exits, those handled inside the kernel included.</summary>
    public const string Exits = "exits";

    /// <summary>The value of a counter, or null when the kernel does not have it.</summary>
    public ulong? this[string name]
    {
        get
        {
            for (int i = 0; i < Names.Count; i++)
            {
                if (Names[i] == name)
                {
                    return Values[i];
                }
            }

            return null;
        }
    }

    /// <summary>What has been added since an earlier reading of the same counters.</summary>
    public KernelStatistics Since(KernelStatistics earlier) =>
        this with
        {
            Values = [.. Values.Zip(earlier.Values, (now, then) => now - then)],
        };
}

/// <summary>Ends the guest with one line for the user. Thrown by emulation and devices, caught by the run loop only.</summary>
public sealed class GuestFailureException(string message) : Exception(message);
