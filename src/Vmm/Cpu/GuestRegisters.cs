using System.Runtime.InteropServices;

namespace VirtBench.Vmm.Cpu;

/// <summary>
/// The registers that every exit touches, laid out so that engines can copy them as one block and machine code can
/// reach them by offset. General registers stand in encoding order: RAX RCX RDX RBX RSP RBP RSI RDI R8 … R15
/// (Intel SDM vol. 2, table 2-2).
/// </summary>
[StructLayout(LayoutKind.Explicit, Size = Size)]
public unsafe struct GuestRegisters
{
    /// <summary>Bytes of the whole block; a multiple of 64.</summary>
    public const int Size = 768;

    /// <summary>Byte offset of the 512-byte FXSAVE image.</summary>
    public const int FxsaveOffset = 256;

    /// <summary>Byte offset of XMM0 in the block (160 into the FXSAVE image; SDM vol. 1, table 10-2).</summary>
    public const int XmmOffset = FxsaveOffset + 160;

    /// <summary>Byte offset of MXCSR in the block (24 into the FXSAVE image).</summary>
    public const int MxcsrOffset = FxsaveOffset + 24;

    /// <summary>The sixteen general registers in encoding order.</summary>
    [FieldOffset(0)]
    public fixed ulong Gpr[16];

    /// <summary>Instruction pointer: offset in the code segment, which has base 0 in 64-bit mode.</summary>
    [FieldOffset(128)]
    public ulong Rip;

    /// <summary>RFLAGS as the guest is entitled to see it: IF and IOPL here are the virtual ones.</summary>
    [FieldOffset(136)]
    public ulong Rflags;

    /// <summary>
    /// x87, MXCSR and XMM state as FXSAVE64 stores it. An engine may hold this part lazily: it is valid after
    /// <see cref="Execution.IExecutionEngine.SaveLazyState"/>.
    /// </summary>
    [FieldOffset(FxsaveOffset)]
    public fixed byte Fxsave[512];
}
