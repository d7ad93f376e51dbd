namespace VirtBench.Vmm.Memory;

/// <summary>
/// Knows which frames of guest RAM are on this host, and brings in those that are not: the rest of a VM that has moved here
/// without its memory, for instance. A frame goes from absent to present and never back.
/// </summary>
/// <remarks>Called from any thread, from several at a time.</remarks>
public interface IGuestPager
{
    /// <summary>Every frame is present, for good: nobody needs to ask any more.</summary>
    bool IsComplete => false;

    /// <summary>Whether the frame (guest-physical address divided by the page size) can be read and written.</summary>
    bool IsPresent(ulong frame);

    /// <summary>
    /// Asked when the VMM touches a frame for the first time in a transaction. False makes the transaction roll back and start
    /// again after <see cref="Fetch"/>: so a pager can do to a frame that is present what it does to an absent one.
    /// </summary>
    bool MayTouch(ulong frame) => IsPresent(frame);

    /// <summary>Brings a frame in and returns when it is present; does nothing to one that is.</summary>
    /// <exception cref="Execution.GuestFailureException">It cannot be had: one line for the user.</exception>
    void Fetch(ulong frame);
}

/// <summary>
/// The VMM has touched a frame that is absent. Thrown inside a <see cref="MemoryTransaction"/> only, and caught by who has
/// begun it.
/// </summary>
/// <param name="frame">The frame to fetch before the transaction starts again.</param>
public sealed class HostPageAbsentException(ulong frame) : Exception($"guest frame 0x{frame:X} is absent")
{
    /// <summary>The frame.</summary>
    public ulong Frame { get; } = frame;
}
