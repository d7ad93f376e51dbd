using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using VirtBench.Vmm.Cpu;

namespace VirtBench.Strategies.Simulation;

/// <summary>
/// The simulated CPU's working state in fixed native memory. Handlers reach registers by byte offset from its start, so
/// AH is the byte at offset 1 and no operand needs a branch on its kind. Little-endian hosts only.
/// </summary>
/// <remarks>
/// The arithmetic flags are lazy. ZF is <see cref="ZeroResult"/> == 0; SF and PF come from <see cref="SignResult"/> (the
/// sign-extended result); <see cref="Carries"/> is the vector of carries out of each bit, moved up so that the operand's
/// top bit is bit 63: CF is bit 63, OF is bit 63 xor bit 62, AF stays at bit 3.
/// </remarks>
[StructLayout(LayoutKind.Explicit, Size = Size)]
internal unsafe struct Machine
{
    public const int Size = 1024;

    public const int ZeroOffset = 136;
    public const int TempOffset = 144;
    public const int FsBaseOffset = 152;
    public const int GsBaseOffset = 160;
    public const int XmmOffset = 256;
    public const int BounceOffset = 576;

    [FieldOffset(0)]
    public fixed ulong Gpr[16];

    [FieldOffset(128)]
    public ulong Rip;

    /// <summary>Always 0: the base or index of an address that has none.</summary>
    [FieldOffset(ZeroOffset)]
    public ulong Zero;

    /// <summary>Base computed by an address prefix op, for forms with a segment base or 32-bit addressing.</summary>
    [FieldOffset(TempOffset)]
    public ulong Temp;

    [FieldOffset(FsBaseOffset)]
    public ulong FsBase;

    [FieldOffset(GsBaseOffset)]
    public ulong GsBase;

    [FieldOffset(168)]
    public ulong ZeroResult;

    [FieldOffset(176)]
    public ulong SignResult;

    [FieldOffset(184)]
    public ulong Carries;

    /// <summary>Cycles spent so far: complete at block ends; within a block, add the op's <see cref="Op.Before"/>.</summary>
    [FieldOffset(192)]
    public ulong Cycles;

    /// <summary>
    /// What block links must carry to be followed. 0, which no link has, while a kick is pending: one comparison at every
    /// block end sees both changed mappings and kicks.
    /// </summary>
    [FieldOffset(200)]
    public ulong LiveEpoch;

    [FieldOffset(208)]
    public TlbEntry* ReadTlb;

    [FieldOffset(216)]
    public TlbEntry* WriteTlb;

    [FieldOffset(224)]
    public JumpEntry* JumpCache;

    /// <summary>RFLAGS without the arithmetic flags.</summary>
    [FieldOffset(232)]
    public ulong OtherFlags;

    /// <summary>
    /// <see cref="Cycles"/> at which the guest is to be left: compared at block ends and between the iterations of a string
    /// instruction, where a kick is looked for as well.
    /// </summary>
    [FieldOffset(240)]
    public ulong Deadline;

    [FieldOffset(248)]
    public uint Mxcsr;

    [FieldOffset(XmmOffset)]
    public fixed byte Xmm[256];

    /// <summary>Guest-physical addresses of a page-crossing write that waits in <see cref="Bounce"/>.</summary>
    [FieldOffset(512)]
    public byte* BounceFirst;

    [FieldOffset(520)]
    public byte* BounceSecond;

    [FieldOffset(528)]
    public int BounceFirstLength;

    [FieldOffset(532)]
    public int BounceSecondLength;

    [FieldOffset(536)]
    public ulong TscOffset;

    [FieldOffset(544)]
    public ulong TscAux;

    [FieldOffset(552)]
    public byte* ExitPending;

    /// <summary>Holds an access that crosses a page boundary; at most 64 bytes.</summary>
    [FieldOffset(BounceOffset)]
    public fixed byte Bounce[64];

    [FieldOffset(640)]
    public ExitRecord Exit;

    [FieldOffset(704)]
    public HostSelectors Host;

    /// <summary>Condition of the engine that string instructions poll: nonzero after a kick.</summary>
    [FieldOffset(768)]
    public int KickRequested;

    /// <summary>Nonzero while one instruction is to be executed: every jump and every further iteration leaves.</summary>
    [FieldOffset(772)]
    public int Stepping;

    /// <summary>Handle of the engine, for slow paths.</summary>
    [FieldOffset(776)]
    public nint EngineHandle;

    /// <summary>Translated: the guest's privilege level.</summary>
    [FieldOffset(784)]
    public int Cpl;

    /// <summary>Translated: the guest may not read the time-stamp counter (CR4.TSD outside ring 0).</summary>
    [FieldOffset(788)]
    public int HidesTimeStampCounter;

    /// <summary>Translated: the guest is to be left when it can take an interrupt.</summary>
    [FieldOffset(792)]
    public int WindowWanted;

    /// <summary>Translated: an STI has begun an interrupt shadow, and the instruction in it is not over.</summary>
    [FieldOffset(796)]
    public int Shadow;

    /// <summary>The STI of <see cref="Shadow"/>.</summary>
    [FieldOffset(800)]
    public ulong ShadowRip;

    /// <summary>Its cycles.</summary>
    [FieldOffset(808)]
    public uint ShadowCost;

    /// <summary>Translated: what SSE instructions raise as CR0 and CR4 stand; 0 for nothing.</summary>
    [FieldOffset(812)]
    public byte SseVector;

    /// <summary>Translated: what FXSAVE and FXRSTOR raise; 0 for nothing.</summary>
    [FieldOffset(813)]
    public byte FxsaveVector;

    /// <summary>The arithmetic flags as RFLAGS bits.</summary>
    public ulong ArithmeticFlags
    {
        get
        {
            ulong flags = Carries >> 63;
            flags |= ParityOf(SignResult);
            flags |= (Carries & 8) << 1;
            flags |= ZeroResult == 0 ? Rflags.Zf : 0;
            flags |= (SignResult >> 63) << 7;
            flags |= ((Carries ^ (Carries << 1)) >> 63) << 11;
            return flags;
        }
        set
        {
            ulong sf = (value >> 7) & 1;
            ulong cf = value & 1;
            ulong of = (value >> 11) & 1;
            ZeroResult = (value & Rflags.Zf) != 0 ? 0UL : 1UL;
            // a low byte of 1 has odd parity, of 0 even
            SignResult = (sf << 63) | ((value & Rflags.Pf) != 0 ? 0UL : 1UL);
            Carries = (cf << 63) | ((cf ^ of) << 62) | ((value >> 1) & 8);
        }
    }

    public readonly bool Cf
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => (long)Carries < 0;
    }

    /// <summary>Carry as 0 or 1.</summary>
    public readonly ulong CarryIn
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => Carries >> 63;
    }

    public readonly bool Of
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => (long)(Carries ^ (Carries << 1)) < 0;
    }

    public readonly bool Zf
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => ZeroResult == 0;
    }

    public readonly bool Sf
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => (long)SignResult < 0;
    }

    public readonly bool Pf => ParityOf(SignResult) != 0;

    /// <summary>SF xor OF.</summary>
    public readonly bool Less
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => (long)(SignResult ^ Carries ^ (Carries << 1)) < 0;
    }

    /// <summary>Sets CF and OF and leaves AF, as rotates do.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void SetCarryAndOverflow(ulong cf, ulong of) => Carries = (Carries & 8) | (cf << 63) | ((cf ^ of) << 62);

    private static ulong ParityOf(ulong value) =>
        // 0x9669 holds the even-parity bit of each nibble; PF is bit 2
        ((0x9669UL >> (int)((value ^ (value >> 4)) & 0xF)) & 1) << 2;
}

/// <summary>One mapping of a software TLB: host = linear + Addend.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct TlbEntry
{
    public const int Count = 512;

    /// <summary>Tag that no page has.</summary>
    public const ulong Empty = 1;

    public ulong Tag;
    public ulong Addend;
}

/// <summary>One entry of the cache of indirect-jump targets.</summary>
[StructLayout(LayoutKind.Sequential, Size = 32)]
internal unsafe struct JumpEntry
{
    public const int Count = 4096;

    public ulong Rip;
    public ulong Epoch;
    public Op* Target;
}

/// <summary>Why the machine has stopped; the engine turns it into a VmExit.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct ExitRecord
{
    public byte Reason;
    public byte Vector;
    public byte Access;
    public byte FreeMarker;

    /// <summary>Interrupted: the deadline was over, whether or not there was a kick too.</summary>
    public byte Due;

    /// <summary>The guest goes on at RIP without leaving: RFLAGS.TF has been set, which blocks know nothing of.</summary>
    public byte Restart;
    public uint ErrorCode;
    public ulong Address;
}

/// <summary>
/// What is shown to a guest that asks (MOV r, sreg; SGDT; SMSW …): the simulated host's ring 3, or under translation the
/// guest's own state as it was at the entry, which only a callout changes.
/// </summary>
[StructLayout(LayoutKind.Sequential)]
internal struct HostSelectors
{
    public ushort Es;
    public ushort Cs;
    public ushort Ss;
    public ushort Ds;
    public ushort Fs;
    public ushort Gs;
    public ushort Ldt;
    public ushort Tr;
    public ushort GdtLimit;
    public ushort IdtLimit;
    public uint MachineStatus;
    public ulong GdtBase;
    public ulong IdtBase;
}
