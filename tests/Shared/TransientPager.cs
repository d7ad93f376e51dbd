using VirtBench.Vmm.Memory;

namespace VirtBench.Tests;

/// <summary>
/// Every frame is present, but the VMM may find one to be absent at the moment it touches it: a fault injected at one of the
/// host's accesses. Counts the first touches of all transactions.
/// </summary>
internal sealed class TransientPager : IGuestPager
{
    /// <summary>The touch that finds its frame absent, counting from 0; −1 for none.</summary>
    public long RefuseAt { get; init; } = -1;

    /// <summary>Touches so far.</summary>
    public long Touches { get; private set; }

    /// <summary>Faults injected so far.</summary>
    public long Fetches { get; private set; }

    public bool IsPresent(ulong frame) => true;

    public bool MayTouch(ulong frame) => Touches++ != RefuseAt;

    public void Fetch(ulong frame) => Fetches++;
}
