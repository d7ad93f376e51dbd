using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Workloads;

/// <summary>
/// Lets interrupts in and holds them back in turns, letting in first. After the region an interrupt is let come: whether the guest gets it tells what the last of
/// them has left, so the checksum differs between odd k, which ends with them let in, and even k.
/// </summary>
public sealed class InterruptFlag : SlottedWorkload
{
    /// <inheritdoc/>
    public override string Id => "interrupt-flag";

    /// <inheritdoc/>
    public override string Description =>
        "sets and clears the interrupt flag in turns, k times per unit; at the end an interrupt shows which way it stands";

    /// <inheritdoc/>
    public override SensitiveOperation Operation(GuestInterface guestInterface) =>
        guestInterface == GuestInterface.Native
            ? new("sti, cli", TrapReason.InterruptFlag) { Names = ["sti", "cli"] }
            : new("mov [mask], 0; cmp [pending], 0, mov [mask], 1", TrapReason.Hypercall) { Exits = 0 };

    /// <inheritdoc/>
    public override bool NeedsPrivilege => true;

    /// <inheritdoc/>
    public override int DefaultFiller => 20_000;

    internal override IReadOnlyList<InterruptGate> EmitSystemCode(GuestAssembler a) =>
        [TimerInterruptSource.EmitHandler(a)];

    /// <summary>No line is requested before the end: nothing interrupts the units.</summary>
    protected override void EmitSetup(GuestAssembler a) => TimerInterruptSource.EmitSetup(a);

    /// <summary>Clobbers flags.</summary>
    protected override void EmitSensitive(GuestAssembler a, int index)
    {
        if (index % 2 == 0)
        {
            a.EnableInterrupts();
        }
        else
        {
            a.DisableInterrupts();
        }
    }

    /// <summary>Clobbers rax, rcx, rdx, rdi, r8 to r11 and flags.</summary>
    protected override void FoldIntoChecksum(GuestAssembler a, bool afterSensitive) =>
        TimerInterruptSource.EmitProbeOfInterruptFlag(a);

    /// <inheritdoc/>
    protected override IEnumerable<ImageSegment> DataSegments(GuestInterface guestInterface) =>
        [SystemArea.EmptyData()];
}
