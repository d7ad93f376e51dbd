using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// POPF that sets the interrupt flag and POPF that clears it, in turns. After the region each of the two is done once more, and
/// an interrupt is let come: the guest must get the first and not the second. Where POPF leaves the flag as it was, silently,
/// it gets neither, and the checksum is another one.
/// </summary>
/// <remarks>
/// Two images of RFLAGS lie one after the other. RSP points at the next one for the length of the POPF, which moves it on by 8
/// in the slots that have one.
/// </remarks>
public sealed class Popf : SlottedWorkload
{
    private const ulong FlagsWithInterrupts = Rflags.AlwaysSet | Rflags.If;
    private const ulong FlagsWithout = Rflags.AlwaysSet;

    /// <summary>The two images; bit 4 of the address is clear, and set behind the second.</summary>
    private const ulong Images = SystemArea.Data + 0x800;

    /// <inheritdoc/>
    public override string Id => "popf";

    /// <inheritdoc/>
    public override string Description =>
        "pops RFLAGS with the interrupt flag set and clear in turns, k times per unit; at the end interrupts show which way it stands";

    /// <inheritdoc/>
    public override string? SensitiveInstruction => "popfq";

    /// <inheritdoc/>
    public override IReadOnlyList<string> SensitiveNames => ["popf"];

    /// <inheritdoc/>
    public override TrapReason? ExpectedTrap => TrapReason.InterruptFlag;

    /// <summary>Ring 3 may execute POPF: that is the hole.</summary>
    public override bool NeedsPrivilege => false;

    /// <inheritdoc/>
    public override int DefaultFiller => 20_000;

    /// <inheritdoc/>
    protected override int SlotInstructions => 5;

    internal override IReadOnlyList<InterruptGate> EmitSystemCode(Assembler a) => [TimerInterruptSource.EmitHandler(a)];

    /// <summary>No line is requested before the end, so that no frame is pushed where RSP points meanwhile.</summary>
    protected override void EmitSetup(Assembler a) => TimerInterruptSource.EmitSetup(a);

    /// <summary>rsi = the image to pop next. Clobbers rsi.</summary>
    protected override void LoadOperands(Assembler a) => a.mov(esi, (uint)Images);

    /// <summary>rdi = the stack. Clobbers rdi.</summary>
    protected override void EmitBefore(Assembler a)
    {
        a.mov(rdi, rsp);
        a.mov(rsp, rsi);
    }

    /// <summary>Clobbers flags.</summary>
    protected override void EmitSensitive(Assembler a, int index) => a.popfq();

    /// <summary>rsi = the other image, if this one has been popped; the stack is back. Clobbers flags.</summary>
    protected override void EmitAfter(Assembler a)
    {
        a.mov(rsi, rsp);
        a.and(esi, ~0x10);
        a.mov(rsp, rdi);
    }

    /// <summary>Clobbers rax, r8, r9 and flags.</summary>
    protected override void FoldIntoChecksum(Assembler a, bool afterSensitive)
    {
        foreach (ulong flags in (ulong[])[FlagsWithInterrupts, FlagsWithout])
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
    protected override IEnumerable<ImageSegment> DataSegments()
    {
        byte[] data = new byte[0x1000];
        SystemArea.Write(data, (int)(Images - SystemArea.Data), FlagsWithInterrupts);
        SystemArea.Write(data, (int)(Images - SystemArea.Data) + 8, FlagsWithout);
        yield return new ImageSegment(SystemArea.Data, data, (ulong)data.Length, Executable: false);
    }
}
