using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// OUT to the scratch register of the 16550, which has no effect but to be read back. It is read once after the region into
/// the checksum, which is therefore equal for every k ≥ 1 and another one for k = 0, where the register keeps its reset value.
/// </summary>
public sealed class PortIo : SlottedWorkload
{
    /// <summary>The 16550's scratch register is its last port.</summary>
    private const ushort ScratchRegister = SerialPort.FirstPort + 7;

    private const byte Pattern = 0x5A;

    /// <inheritdoc/>
    public override string Id => "port-io";

    /// <inheritdoc/>
    public override string Description => "writes the serial port's scratch register k times per unit";

    /// <inheritdoc/>
    public override SensitiveOperation Operation(GuestInterface guestInterface) => new("out dx, al", TrapReason.PortIo);

    /// <inheritdoc/>
    public override bool NeedsPrivilege => true;

    /// <inheritdoc/>
    public override int DefaultFiller => 20_000;

    /// <summary>Clobbers rax and rdx.</summary>
    protected override void LoadOperands(GuestAssembler a)
    {
        a.mov(edx, ScratchRegister);
        a.mov(eax, Pattern);
    }

    /// <summary>Clobbers nothing.</summary>
    protected override void EmitSensitive(GuestAssembler a, int index) => a.@out(dx, al);

    /// <summary>Clobbers rax, rdx and flags.</summary>
    protected override void FoldIntoChecksum(GuestAssembler a, bool afterSensitive)
    {
        a.mov(edx, ScratchRegister);
        a.xor(eax, eax);
        a.@in(al, dx);
        a.add(r14, rax);
    }
}
