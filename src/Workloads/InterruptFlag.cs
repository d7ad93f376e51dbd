using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;

namespace VirtBench.Workloads;

/// <summary>
/// STI and CLI in turns, an STI first. After the region an interrupt is let come: whether the guest gets it tells what the last of
/// them has left, so the checksum differs between odd k, which ends with STI, and even k.
/// </summary>
public sealed class InterruptFlag : SlottedWorkload
{
    /// <inheritdoc/>
    public override string Id => "interrupt-flag";

    /// <inheritdoc/>
    public override string Description =>
        "sets and clears the interrupt flag in turns, k times per unit; at the end an interrupt shows which way it stands";

    /// <inheritdoc/>
    public override string? SensitiveInstruction => "sti, cli";

    /// <inheritdoc/>
    public override IReadOnlyList<string> SensitiveNames => ["sti", "cli"];

    /// <inheritdoc/>
    public override TrapReason? ExpectedTrap => TrapReason.InterruptFlag;

    /// <inheritdoc/>
    public override bool NeedsPrivilege => true;

    /// <inheritdoc/>
    public override int DefaultFiller => 20_000;

    internal override IReadOnlyList<InterruptGate> EmitSystemCode(Assembler a) => [TimerInterruptSource.EmitHandler(a)];

    /// <summary>No line is requested before the end: nothing interrupts the units.</summary>
    protected override void EmitSetup(Assembler a) => TimerInterruptSource.EmitSetup(a);

    /// <summary>Clobbers nothing.</summary>
    protected override void EmitSensitive(Assembler a, int index)
    {
        if (index % 2 == 0)
        {
            a.sti();
        }
        else
        {
            a.cli();
        }
    }

    /// <summary>Clobbers rax, r8, r9 and flags.</summary>
    protected override void FoldIntoChecksum(Assembler a, bool afterSensitive) =>
        TimerInterruptSource.EmitProbeOfInterruptFlag(a);

    /// <inheritdoc/>
    protected override IEnumerable<ImageSegment> DataSegments() => [SystemArea.EmptyData()];
}
