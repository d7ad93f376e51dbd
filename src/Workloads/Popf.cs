using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// POPF that sets the interrupt flag and POPF that clears it, in turns; or the same with the paravirtual interface's mask. After the region each of the two is done once more, and
/// an interrupt is let come: the guest must get the first and not the second. Where POPF leaves the flag as it was, silently,
/// it gets neither, and the checksum is another one.
/// </summary>
/// <remarks>
/// Two images of RFLAGS, or of the mask, lie one after the other. RSP points at the next one for the length of the POPF, which moves it on by 8
/// in the slots that have one.
/// </remarks>
public sealed class Popf : SlottedWorkload
{
    /// <summary>The two images; bit 4 of the address is clear, and set behind the second.</summary>
    private const ulong Images = SystemArea.Data + 0x800;

    /// <inheritdoc/>
    public override string Id => "popf";

    /// <inheritdoc/>
    public override string Description =>
        "pops RFLAGS with the interrupt flag set and clear in turns, k times per unit; at the end interrupts show which way it stands";

    /// <inheritdoc/>
    public override SensitiveOperation Operation(GuestInterface guestInterface) =>
        guestInterface == GuestInterface.Native
            ? new("popfq", TrapReason.InterruptFlag) { Names = ["popf"] }
            : new("pop [mask]; cmp [pending], 0", TrapReason.Hypercall) { Exits = 0 };

    /// <summary>Ring 3 may execute POPF: that is the hole.</summary>
    public override bool NeedsPrivilege => false;

    /// <inheritdoc/>
    public override int DefaultFiller => 20_000;

    /// <inheritdoc/>
    protected override int SlotInstructions => 5;

    internal override IReadOnlyList<InterruptGate> EmitSystemCode(GuestAssembler a) =>
        [TimerInterruptSource.EmitHandler(a)];

    /// <summary>No line is requested before the end, so that no frame is pushed where RSP points meanwhile.</summary>
    protected override void EmitSetup(GuestAssembler a) => TimerInterruptSource.EmitSetup(a);

    /// <summary>rsi = the image to pop next. Clobbers rsi.</summary>
    protected override void LoadOperands(GuestAssembler a) => a.mov(esi, (uint)Images);

    /// <summary>rdi = the stack. Clobbers rdi.</summary>
    protected override void EmitBefore(GuestAssembler a)
    {
        a.mov(rdi, rsp);
        a.mov(rsp, rsi);
    }

    /// <summary>Clobbers flags.</summary>
    protected override void EmitSensitive(GuestAssembler a, int index) => a.RestoreInterruptFlag();

    /// <summary>rsi = the other image, if this one has been popped; the stack is back. Clobbers flags.</summary>
    protected override void EmitAfter(GuestAssembler a)
    {
        a.mov(rsi, rsp);
        a.and(esi, ~0x10);
        a.mov(rsp, rdi);
    }

    /// <summary>Clobbers rax, rcx, rdx, rdi, r8 to r11 and flags.</summary>
    protected override void FoldIntoChecksum(GuestAssembler a, bool afterSensitive)
    {
        foreach (ulong flags in FlagImages(a.Interface))
        {
            if (afterSensitive)
            {
                a.push((int)flags);
                EmitSensitive(a, 0);
            }

            TimerInterruptSource.EmitProbeOfInterruptFlag(a);
        }
    }

    /// <inheritdoc/>
    protected override IEnumerable<ImageSegment> DataSegments(GuestInterface guestInterface)
    {
        byte[] data = new byte[0x1000];
        ulong[] images = FlagImages(guestInterface);
        SystemArea.Write(data, (int)(Images - SystemArea.Data), images[0]);
        SystemArea.Write(data, (int)(Images - SystemArea.Data) + 8, images[1]);
        yield return new ImageSegment(SystemArea.Data, data, (ulong)data.Length, Executable: false);
    }

    /// <summary>What lets interrupts in, and what holds them back.</summary>
    private static ulong[] FlagImages(GuestInterface guestInterface) =>
        guestInterface == GuestInterface.Native ? [Rflags.AlwaysSet | Rflags.If, Rflags.AlwaysSet] : [0, 1];
}
