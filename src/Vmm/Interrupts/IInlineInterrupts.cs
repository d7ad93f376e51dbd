namespace VirtBench.Vmm.Interrupts;

/// <summary>
/// An engine whose guest code looks for interrupts itself, and delivers one where it finds it. It does so only for lines that the core has
/// armed: everything about such an interrupt but the moment is known before.
/// </summary>
public interface IInlineInterrupts
{
    /// <summary>
    /// vCPU thread, between two runs: the lines whose interrupts may be delivered in the next <see cref="Execution.IExecutionEngine.Run"/>,
    /// of all of them one. Until then none is.
    /// </summary>
    void Arm(ReadOnlySpan<InlineGate> gates);

    /// <summary>
    /// From any thread, one at a time: a line has been raised.
    /// </summary>
    /// <returns>False when the guest has to be brought out of its code instead: the line is not armed, or another is on its way.</returns>
    bool TryRaise(int line);

    /// <summary>
    /// vCPU thread, after each run, never at once with <see cref="TryRaise"/>: disarms all lines.
    /// </summary>
    /// <returns>The line whose interrupt has been delivered; −1 for none. What was raised and not delivered is forgotten here.</returns>
    int Disarm();
}

/// <summary>What the delivery of one line's interrupt needs, as 64-bit mode has it (Intel SDM vol. 3A, section 6.14).</summary>
/// <param name="Line">0–15.</param>
/// <param name="Vector">What the 8259A would give the CPU.</param>
/// <param name="Handler">Linear address, canonical.</param>
/// <param name="Address">Linear address of the gate, which lies in one page. The guest may write it at any time.</param>
/// <param name="Low">The gate's first eight bytes when it was looked at: it is good only as long as it says so.</param>
/// <param name="High">The other eight.</param>
public readonly record struct InlineGate(int Line, byte Vector, ulong Handler, ulong Address, ulong Low, ulong High);
