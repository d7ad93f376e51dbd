namespace VirtBench.Vmm.Execution;

/// <summary>
/// The time an engine lives in: the host's, or the cycles of a cost model. Guest TSC, ledger stamps and region times all
/// come from here, so that measured and computed runs take the same path.
/// </summary>
public interface IEngineClock
{
    /// <summary>Time-stamp counter before the guest's offset.</summary>
    ulong Ticks { get; }

    /// <summary>Ticks per second.</summary>
    double TicksPerSecond { get; }

    /// <summary>Nanoseconds since an arbitrary start; differences are what counts.</summary>
    double Nanoseconds { get; }

    /// <summary>
    /// The core has emulated one exit. A host clock has run meanwhile and ignores this; a computed clock adds what its
    /// cost model says.
    /// </summary>
    void ChargeEmulation(TrapReason reason);
}
