namespace VirtBench.Vmm.Interrupts;

/// <summary>What became of the interrupts of a VM so far.</summary>
/// <param name="Lines">Lines that have requested anything, lowest first.</param>
/// <param name="Spurious">Times that the CPU was given the vector of line 7 or 15 for nothing.</param>
/// <param name="Timer">Ticks of the 8254's channel 0.</param>
public sealed record InterruptStatistics(
    IReadOnlyList<InterruptLineStatistics> Lines,
    long Spurious,
    TimerStatistics Timer
);

/// <summary>One line of the 8259A pair.</summary>
/// <param name="Line">0–15.</param>
/// <param name="Requests">Rising edges, or levels that became active.</param>
/// <param name="Taken">
/// Of these, how many the CPU has taken, or the guest by polling. What has gone into the host's kernel counts as taken: it does not tell.
/// </param>
/// <param name="Direct">Of these, how many needed no exit: they were not delivered by the VMM.</param>
public sealed record InterruptLineStatistics(int Line, long Requests, long Taken, long Direct = 0);

/// <summary>Where the ticks of the 8254's channel 0 are: each is requested at once, late, owed, or dropped.</summary>
/// <param name="Ticks">Rising edges of its output: periods that are over, and one-shots.</param>
/// <param name="Late">How many came while the one before still waited to be taken, and were to be requested after it.</param>
/// <param name="Owed">How many of the late ones are yet to be requested.</param>
/// <param name="Masked">How many came while the one before waited behind the guest's mask, and were dropped.</param>
public sealed record TimerStatistics(long Ticks, long Late, long Owed, long Masked);
