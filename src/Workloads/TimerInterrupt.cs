using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// A timer interrupt from programming to the end of its handler: the 8254, or the paravirtual timer, comes once, the guest sleeps until the
/// interrupt comes through the 8259A, the handler counts it, ends it and returns. Δt is the time of all of that, the countdown
/// of some 21 µs included; the count gets into the checksum, so an interrupt that is lost or comes twice shows.
/// </summary>
/// <remarks>
/// However late a host is, the interrupt comes: if it is due before HLT, the interrupt shadow of STI keeps it until HLT is done, and the
/// paravirtual interface lets interrupts in and sleeps in one. Interrupts
/// are off everywhere else, and one is asked for at a time, so a unit takes exactly k.
/// </remarks>
public sealed class TimerInterrupt : SlottedWorkload
{
    /// <summary>Countdown in pulses of 838 ns: longer than the way to HLT takes, so that the guest does sleep.</summary>
    private const byte Pulses = 24;

    /// <inheritdoc/>
    public override string Id => "timer-interrupt";

    /// <inheritdoc/>
    public override string Description =>
        "lets the timer interrupt after 21 µs and sleeps until then, k times per unit; the handler ends the interrupt";

    /// <inheritdoc/>
    public override SensitiveOperation Operation(GuestInterface guestInterface) =>
        guestInterface == GuestInterface.Native
            ? new("out ×2; sti; hlt; cli", TrapReason.Halt) { Names = ["hlt", "sti", "cli", "iretq"] }
            : new("hypercalls: set timer, block, end of interrupt, iret", TrapReason.Hypercall)
            {
                Exits = 4,
                ExitsWithOwnRing0 = 2, // block and iret are its own
            };

    /// <inheritdoc/>
    public override bool NeedsPrivilege => true;

    /// <inheritdoc/>
    public override int MaximumTrapsPerUnit => 16;

    /// <inheritdoc/>
    public override int DefaultFiller => 20_000;

    /// <summary>The routine that the units call, first, and the handler. The routine clobbers rax, rcx, rdx, rdi, r8, r11 and flags.</summary>
    internal override IReadOnlyList<InterruptGate> EmitSystemCode(GuestAssembler a)
    {
        a.SetOneShotTimer(Pulses);
        a.WaitForInterrupt();
        a.ret();
        return [TimerInterruptSource.EmitHandler(a)];
    }

    /// <summary>Clobbers rax.</summary>
    protected override void EmitSetup(GuestAssembler a) => TimerInterruptSource.EmitSetup(a);

    /// <summary>Clobbers rsi.</summary>
    protected override void LoadOperands(GuestAssembler a) => a.mov(esi, (uint)SystemArea.Code);

    /// <summary>Clobbers rax, rcx, rdx, rdi, r8, r11 and flags; the handler clobbers nothing.</summary>
    protected override void EmitSensitive(GuestAssembler a, int index) => a.call(rsi);

    /// <summary>Clobbers flags.</summary>
    protected override void FoldIntoChecksum(GuestAssembler a, bool afterSensitive) =>
        a.add(r14, __qword_ptr[TimerInterruptSource.Counter]);

    /// <inheritdoc/>
    protected override IEnumerable<ImageSegment> DataSegments(GuestInterface guestInterface) =>
        [SystemArea.EmptyData()];
}
