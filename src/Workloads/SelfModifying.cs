using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// A store into the immediate of the instruction that follows, which is then executed. The immediate is half of the checksum as
/// it stands and gets into the other half, so an engine that executes what stood there before gets another checksum; it differs from k
/// to k. Slots without the store execute the same instruction as it was assembled.
/// </summary>
public sealed class SelfModifying : SlottedWorkload
{
    /// <summary>Bytes from the end of the store to the immediate of ADD r14, imm32: its prefix, opcode and ModRM.</summary>
    private const int ImmediateOffset = 3;

    private const int Assembled = 0x5EED_C0DE;

    /// <inheritdoc/>
    public override string Id => "self-modifying";

    /// <inheritdoc/>
    public override string Description =>
        "rewrites an instruction's immediate k times per unit and executes the instruction";

    /// <inheritdoc/>
    public override SensitiveOperation Operation(GuestInterface guestInterface) => new("mov [rip+3], ebx", null);

    /// <inheritdoc/>
    public override bool NeedsPrivilege => false;

    /// <inheritdoc/>
    public override int DefaultFiller => 20_000;

    /// <inheritdoc/>
    protected override int SlotInstructions => 1;

    /// <summary>MOV [RIP+disp32], EBX, byte by byte: the same wherever it stands. Clobbers nothing.</summary>
    protected override void EmitSensitive(GuestAssembler a, int index) => a.db(0x89, 0x1D, ImmediateOffset, 0, 0, 0);

    /// <summary>Clobbers flags.</summary>
    protected override void EmitAfter(GuestAssembler a) => a.add(r14, Assembled);
}
