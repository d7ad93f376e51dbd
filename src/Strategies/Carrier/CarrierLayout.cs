using System.Runtime.InteropServices;

namespace VirtBench.Strategies.Carrier;

/// <summary>
/// Addresses that the VMM and the carrier agree on. The monitor window at the top of the user half holds everything of
/// the carrier that is not the guest's; all below it belongs to the guest.
/// </summary>
internal static class CarrierLayout
{
    /// <summary>Where the boot program is linked: clear of wherever ASLR puts stack, vDSO and mmap area.</summary>
    public const ulong BootBase = 0x7000_0000_0000;

    /// <summary>First address that user space cannot map (47-bit, less the guard page).</summary>
    public const ulong TaskEnd = 0x7FFF_FFFF_F000;

    /// <summary>
    /// First address a guest cannot map. 4 GiB below it would do for the window; another 4 GiB because the seccomp filter
    /// adds the high halves of address and length only.
    /// </summary>
    public const ulong GuestLimit = 0x7FFD_0000_0000;

    /// <summary>The monitor window.</summary>
    public const ulong Window = 0x7FFF_FFC0_0000;

    /// <summary>The stub, read-execute.</summary>
    public const ulong Stub = Window;

    /// <summary>Bytes of the stub's page.</summary>
    public const ulong StubSize = 0x1000;

    /// <summary>The control page, batch and scratch, read-write.</summary>
    public const ulong Control = Window + 0x1000;

    /// <summary>Bytes of the control area.</summary>
    public const ulong ControlSize = 0x8000;

    /// <summary>
    /// The register file: a hand-made frame, a stack of each carrier's own, and the top of the signal stack, where the kernel
    /// puts the guest's frame. All carriers of a vCPU share the first and the last of these, at the same address, so that a
    /// vCPU moves from one to the other with its frame where it is.
    /// </summary>
    public const ulong RegisterFile = Window + 0x10000;

    /// <summary>Bytes of the register file.</summary>
    public const ulong RegisterFileSize = 0x20000;

    /// <summary>Offset in the register file of the hand-made ucontext.</summary>
    public const ulong FirstFrameOffset = 0x1000;

    /// <summary>Offset in the register file of the hand-made frame's XSAVE image; 64-byte aligned.</summary>
    public const ulong FirstFpuOffset = 0x1400;

    /// <summary>Offset in the register file of the signal stack, which reaches to the end.</summary>
    public const ulong SignalStackOffset = 0x2000;

    /// <summary>
    /// Offset in the register file of the end of the carrier's own part of the signal stack, which begins where the signal stack does. A
    /// carrier that waits has its stack pointer here, so that a kick which finds it waiting puts its frame into memory that
    /// is no other carrier's.
    /// </summary>
    public const ulong OwnStackEnd = 0x10000;

    /// <summary>
    /// Bytes of the kernel's frame that a kick may put below the guest's: 11 KiB on a CPU with AMX. The guest's frame needs as much.
    /// </summary>
    public const ulong FrameSpace = RegisterFileSize - OwnStackEnd;

    /// <summary>Control areas of all carriers of the vCPU, one after the other, read-only: futexes to wake each other by.</summary>
    public const ulong Peers = RegisterFile + RegisterFileSize;

    /// <summary>Most carriers a vCPU can have.</summary>
    public const int MaximumCarriers = 16;

    /// <summary>End of the window.</summary>
    public const ulong WindowEnd = Peers + (MaximumCarriers * ControlSize);

    /// <summary>
    /// Where an indirect branch of translated code finds its target: 65,536 host addresses, indexed by the low 16 bits of the guest's.
    /// Read-only. Aligned to its own size, so that an address in it is formed from the index without arithmetic.
    /// </summary>
    public const ulong LookupTable = Window - 0x10_0000;

    /// <summary>Entries of the lookup table.</summary>
    public const int LookupEntries = 1 << 16;

    /// <summary>Bytes of the lookup table.</summary>
    public const ulong LookupTableSize = LookupEntries * sizeof(ulong);

    /// <summary>Translated code, read-execute: at most 64 MiB, all of it within 2 GiB of the control page.</summary>
    public const ulong CodeCache = Window - 0x800_0000;

    /// <summary>Most bytes of a carrier's code cache.</summary>
    public const int MaximumCodeCacheSize = 64 << 20;

    /// <summary>Offsets of the areas in the vCPU's memfd, and its size. Each carrier has a control area of its own.</summary>
    public const long StubFileOffset = 0,
        RegisterFileFileOffset = 0x10000,
        ControlFileOffset = RegisterFileFileOffset + (long)RegisterFileSize,
        ControlFileSize = ControlFileOffset + (MaximumCarriers * (long)ControlSize);

    /// <summary>Where a carrier's lookup table, and behind it its code cache, lie in the memfd of a vCPU whose code is translated.</summary>
    public static long TranslationFileOffset(int slot, int codeCacheSize) =>
        ControlFileSize + (slot * ((long)LookupTableSize + codeCacheSize));

    /// <summary>Descriptor of the control memfd in the carrier.</summary>
    public const int ControlFd = 3;

    /// <summary>Descriptor of guest RAM in the carrier.</summary>
    public const int RamFd = 4;

    /// <summary>Offset of the system-call batch from the control page.</summary>
    public const int BatchOffset = 0x1000;

    /// <summary>Entries the batch has room for.</summary>
    public const int BatchCapacity = 256;

    /// <summary>Linux's ring-3 64-bit code selector (__USER_CS).</summary>
    public const ushort UserCodeSelector = 0x33;

    /// <summary>Linux's ring-3 data selector (__USER_DS).</summary>
    public const ushort UserDataSelector = 0x2B;

    /// <summary>Bytes that the kernel maps around a read fault in page cache (fault_around_bytes, by default 64 KiB).</summary>
    public const int FaultAround = 0x1_0000;

    /// <summary>Offset of the scratch area for system-call arguments from the control page.</summary>
    public const int ScratchOffset = 0x5000;

    /// <summary>Bytes of scratch.</summary>
    public const int ScratchSize = 0x3000;
}

/// <summary>
/// The handshake word. Who may write which value: the VMM everything but <see cref="Exited"/>, the stub only that, the
/// watcher only <see cref="Dead"/>.
/// </summary>
internal static class CarrierState
{
    /// <summary>Resume the guest.</summary>
    public const uint Run = 0;

    /// <summary>The carrier has stopped and says why in the control page.</summary>
    public const uint Exited = 1;

    /// <summary>Make the batch's system calls and report.</summary>
    public const uint Batch = 2;

    /// <summary>Make the batch's system calls, then resume the guest; report only when one fails.</summary>
    public const uint BatchThenRun = 3;

    /// <summary>The carrier process is gone.</summary>
    public const uint Dead = 4;

    /// <summary>After a callout: store x87 and SSE state into the hand-made frame, FS and GS base, and report.</summary>
    public const uint SaveFpu = 6;

    /// <summary>Wake the carrier at <see cref="ControlPage.Peer"/> and sleep: it runs the guest now.</summary>
    public const uint Switch = 5;
}

/// <summary>
/// What the stub and the VMM say to each other. The guest can write this page too: on the VMM's side every field is input.
/// Words that the two sides spin on have a cache line of their own.
/// </summary>
[StructLayout(LayoutKind.Explicit, Size = 0x1000)]
internal unsafe struct ControlPage
{
    /// <summary>The handshake word and futex.</summary>
    [FieldOffset(0x00)]
    public uint State;

    /// <summary>The VMM sleeps in a futex on <see cref="State"/>.</summary>
    [FieldOffset(0x04)]
    public uint VmmSleeps;

    /// <summary>The carrier sleeps in a futex on <see cref="State"/>.</summary>
    [FieldOffset(0x08)]
    public uint CarrierSleeps;

    /// <summary>The signal that stopped the guest, or one of <see cref="CarrierReport"/>.</summary>
    [FieldOffset(0x0C)]
    public int Signal;

    /// <summary>RAX at a hypercall through the gate and at the entry that follows, as the next five fields.</summary>
    [FieldOffset(0x10)]
    public ulong CallRax;

    /// <summary>RDI.</summary>
    [FieldOffset(0x18)]
    public ulong CallRdi;

    /// <summary>RSI.</summary>
    [FieldOffset(0x20)]
    public ulong CallRsi;

    /// <summary>RSP.</summary>
    [FieldOffset(0x28)]
    public ulong CallRsp;

    /// <summary>RIP.</summary>
    [FieldOffset(0x30)]
    public ulong CallRip;

    /// <summary>RFLAGS.</summary>
    [FieldOffset(0x38)]
    public ulong CallFlags;

    /// <summary>Address of the ucontext of the guest's frame, in the carrier.</summary>
    [FieldOffset(0x40)]
    public ulong Ucontext;

    /// <summary>Address of the siginfo, in the carrier.</summary>
    [FieldOffset(0x48)]
    public ulong Siginfo;

    /// <summary>FS base: the kernel's frame does not hold it.</summary>
    [FieldOffset(0x58)]
    public ulong FsBase;

    /// <summary>GS base.</summary>
    [FieldOffset(0x60)]
    public ulong GsBase;

    /// <summary>Must be <see cref="MagicValue"/> at every exit: a guest that overwrites this page is found out by it.</summary>
    [FieldOffset(0x68)]
    public ulong Magic;

    /// <summary>System calls in the batch.</summary>
    [FieldOffset(0x80)]
    public int BatchCount;

    /// <summary>How often the stub looks at <see cref="State"/> before it sleeps.</summary>
    [FieldOffset(0x84)]
    public uint SpinCount;

    /// <summary>Load FS and GS base before resuming.</summary>
    [FieldOffset(0x88)]
    public uint LoadBases;

    /// <summary>Return by XRSTOR and IRETQ instead of rt_sigreturn.</summary>
    [FieldOffset(0x8C)]
    public uint ReturnByIret;

    /// <summary>Set by the kick handler when the guest was not running: the next resume reports at once.</summary>
    [FieldOffset(0x90)]
    public uint KickPending;

    /// <summary>
    /// The kick handler has stopped the guest, so the kick signal is still blocked: to be unblocked once the exit is published.
    /// </summary>
    [FieldOffset(0x94)]
    public uint KickBlocked;

    /// <summary>
    /// For <see cref="CarrierState.Switch"/>: address of the other carrier's <see cref="State"/> under <see cref="CarrierLayout.Peers"/>, or 0 when that
    /// one does not sleep.
    /// </summary>
    [FieldOffset(0xA0)]
    public ulong Peer;

    /// <summary>An empty signal mask, for rt_sigprocmask.</summary>
    [FieldOffset(0xA8)]
    public ulong EmptyMask;

    /// <summary>For the calibration handler: bytes to skip.</summary>
    [FieldOffset(0x98)]
    public ulong SkipLength;

    /// <summary>
    /// The guest's general registers in encoding order, at a callout and at the entry that follows it. After a hypercall those of
    /// <see cref="KeptInCall"/>, and for the entry RCX and R11.
    /// </summary>
    [FieldOffset(0x100)]
    public fixed ulong Registers[16];

    /// <summary>RFLAGS at a callout from translated code, and at the entry that follows any.</summary>
    [FieldOffset(0x180)]
    public ulong Flags;

    /// <summary>Where that entry goes on: in the code cache, or in the guest's own code.</summary>
    [FieldOffset(0x188)]
    public ulong Target;

    /// <summary>One of <see cref="EntryBy"/>.</summary>
    [FieldOffset(0x190)]
    public uint ByRegisters;

    /// <summary>Code has been changed that may have been executed before: enter by a serializing instruction.</summary>
    [FieldOffset(0x194)]
    public uint Serialize;

    /// <summary>Which exit of the translated code led to the callout.</summary>
    [FieldOffset(0x198)]
    public uint Site;

    /// <summary>Number of the indirect branch that is being looked up.</summary>
    [FieldOffset(0x19C)]
    public uint Branch;

    /// <summary>The guest's RCX while translated code uses the register for something else.</summary>
    [FieldOffset(0x1C0)]
    public ulong SavedRcx;

    /// <summary>The guest's RAX, likewise.</summary>
    [FieldOffset(0x1C8)]
    public ulong SavedRax;

    /// <summary>The guest's R11, likewise.</summary>
    [FieldOffset(0x1F8)]
    public ulong SavedR11;

    /// <summary>Another register of the guest's, likewise.</summary>
    [FieldOffset(0x1D0)]
    public ulong SavedOther;

    /// <summary>Guest address that a lookup did not find.</summary>
    [FieldOffset(0x1D8)]
    public ulong LookupTarget;

    /// <summary>The guest's RFLAGS without the bits that the host's RFLAGS hold: IF, IOPL, NT, AC and the like.</summary>
    [FieldOffset(0x1E0)]
    public ulong VirtualFlags;

    /// <summary>An interrupt waits for the virtual interrupt flag to be set.</summary>
    [FieldOffset(0x1E8)]
    public uint WindowWanted;

    /// <summary>Scratch of a sequence that needs a quadword in memory.</summary>
    [FieldOffset(0x1F0)]
    public ulong Scratch;

    /// <summary>Indirect branches that have found their target inline, where they are counted.</summary>
    [FieldOffset(0x1A0)]
    public ulong LookupHits;

    /// <summary>What SGDT, SIDT, SLDT, STR, SMSW, MOV from CR and MOV from a segment register read.</summary>
    [FieldOffset(0x200)]
    public VirtualState Virtual;

    /// <summary>
    /// 0: an interrupt waits that ring-0 code delivers by itself, by what follows. Has a cache line of its own: the guest looks at it again and again.
    /// </summary>
    [FieldOffset(0x2C0)]
    public byte NothingWanted;

    /// <summary>Linear address of its gate.</summary>
    [FieldOffset(0x300)]
    public ulong GateAddress;

    /// <summary>The gate's halves, as long as it is the one that <see cref="Handler"/> was taken from.</summary>
    [FieldOffset(0x308)]
    public ulong GateLow;

    /// <inheritdoc cref="GateLow"/>
    [FieldOffset(0x310)]
    public ulong GateHigh;

    /// <summary>Linear address of the handler.</summary>
    [FieldOffset(0x318)]
    public ulong Handler;

    /// <summary>Its line plus 1.</summary>
    [FieldOffset(0x320)]
    public uint InlineLine;

    /// <summary>That of the interrupt that has been delivered; 0 for none.</summary>
    [FieldOffset(0x324)]
    public uint InlineTaken;

    /// <summary>The guest's stack pointer at the handler's first instruction.</summary>
    [FieldOffset(0x328)]
    public ulong HandlerStack;

    /// <summary>
    /// Registers that a hypercall leaves where they are, by their encoding: all but RAX, RDI, RSI and RSP, which serve it, and RCX and R11, which it
    /// clobbers.
    /// </summary>
    public static ReadOnlySpan<int> KeptInCall => [2, 3, 5, 8, 9, 10, 12, 13, 14, 15];

    /// <summary>"VBCTRL01" as a little-endian number.</summary>
    public const ulong MagicValue = 0x3130_4C52_5443_4256;
}

/// <summary>Values of <see cref="ControlPage.ByRegisters"/>: where an entry takes the guest's registers from.</summary>
internal static class EntryBy
{
    /// <summary>The signal's frame.</summary>
    public const uint Frame = 0;

    /// <summary><see cref="ControlPage.Registers"/>, <see cref="ControlPage.Flags"/> and <see cref="ControlPage.Target"/>.</summary>
    public const uint Registers = 1;

    /// <summary>
    /// <see cref="ControlPage.CallRax"/> and what follows it, and <see cref="ControlPage.Registers"/> for what is not there.
    /// </summary>
    public const uint Call = 2;
}

/// <summary>State of the virtual CPU that translated code reads. Selectors stand in encoding order: ES CS SS DS FS GS.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct VirtualState
{
    public ulong GdtLimit;
    public ulong GdtBase;
    public ulong IdtLimit;
    public ulong IdtBase;
    public ulong Ldtr;
    public ulong Tr;
    public ulong Cr0;
    public ulong Cr2;
    public ulong Cr3;
    public ulong Cr4;
    public ulong TscAux;
    public ulong TscOffset;
    public fixed ulong Selectors[6];
}

/// <summary>Values of <see cref="ControlPage.Signal"/> that are not signals.</summary>
internal static class CarrierReport
{
    /// <summary>The stub has started or a batch is done.</summary>
    public const int Ready = 0;

    /// <summary>A system call of the batch failed.</summary>
    public const int BatchFailed = -1;

    /// <summary>Translated code has called out; the guest's registers are in the control page, its x87 and SSE state in the CPU.</summary>
    public const int Callout = -3;

    /// <summary>
    /// Directly executed code has come to the gate: as <see cref="Callout"/>, but most registers have stayed in the carrier.
    /// </summary>
    public const int Hypercall = -4;

    /// <summary>A kick has come before the guest was entered: it has executed nothing since the last exit.</summary>
    public const int NotEntered = -2;
}

/// <summary>One system call of a batch, or with number <see cref="Touch"/> a range to fault in.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct BatchEntry
{
    /// <summary>
    /// Not a system call: read one byte of every fault-around window from A0 to A1, so that the kernel maps the window's
    /// 16 pages at once. Costs a third less than MAP_POPULATE, which visits every page.
    /// </summary>
    public const long Touch = -1;

    public long Number;
    public ulong A0;
    public ulong A1;
    public ulong A2;
    public ulong A3;
    public ulong A4;
    public ulong A5;
    public long Result;
}

/// <summary>
/// struct ucontext with struct sigcontext in it, as the x86-64 kernel lays it into the signal frame
/// (arch/x86/include/uapi/asm/ucontext.h, sigcontext.h).
/// </summary>
[StructLayout(LayoutKind.Explicit, Size = 304)]
internal struct SignalContext
{
    [FieldOffset(0)]
    public ulong Flags;

    [FieldOffset(16)]
    public ulong StackPointer;

    [FieldOffset(24)]
    public uint StackFlags;

    [FieldOffset(32)]
    public ulong StackSize;

    [FieldOffset(40)]
    public ulong R8;

    [FieldOffset(48)]
    public ulong R9;

    [FieldOffset(56)]
    public ulong R10;

    [FieldOffset(64)]
    public ulong R11;

    [FieldOffset(72)]
    public ulong R12;

    [FieldOffset(80)]
    public ulong R13;

    [FieldOffset(88)]
    public ulong R14;

    [FieldOffset(96)]
    public ulong R15;

    [FieldOffset(104)]
    public ulong Rdi;

    [FieldOffset(112)]
    public ulong Rsi;

    [FieldOffset(120)]
    public ulong Rbp;

    [FieldOffset(128)]
    public ulong Rbx;

    [FieldOffset(136)]
    public ulong Rdx;

    [FieldOffset(144)]
    public ulong Rax;

    [FieldOffset(152)]
    public ulong Rcx;

    [FieldOffset(160)]
    public ulong Rsp;

    [FieldOffset(168)]
    public ulong Rip;

    [FieldOffset(176)]
    public ulong Eflags;

    [FieldOffset(184)]
    public ushort Cs;

    [FieldOffset(186)]
    public ushort Gs;

    [FieldOffset(188)]
    public ushort Fs;

    [FieldOffset(190)]
    public ushort Ss;

    [FieldOffset(192)]
    public ulong ErrorCode;

    [FieldOffset(200)]
    public ulong TrapNumber;

    [FieldOffset(208)]
    public ulong OldMask;

    [FieldOffset(216)]
    public ulong Cr2;

    [FieldOffset(224)]
    public ulong FpuState;

    [FieldOffset(296)]
    public ulong SignalMask;
}

/// <summary>Offsets in the FPU part of the frame (struct _fpstate_64 and _fpx_sw_bytes, sigcontext.h).</summary>
internal static class FpuFrame
{
    /// <summary>Low half of the feature mask that XRSTOR is to restore (sw_reserved.xfeatures).</summary>
    public const int FeaturesLow = 472;

    /// <summary>High half.</summary>
    public const int FeaturesHigh = 476;

    /// <summary>Offset of MXCSR.</summary>
    public const int Mxcsr = 24;

    /// <summary>Bits of MXCSR that no CPU reserves; restoring others raises #GP.</summary>
    public const uint MxcsrDefined = 0xFFFF;

    /// <summary>End of what FXSAVE64 writes; behind it are the kernel's words: which features, which sizes.</summary>
    public const int RegistersEnd = 416;

    /// <summary>Bytes of the legacy (FXSAVE) part; the XSAVE header follows.</summary>
    public const int LegacySize = 512;

    /// <summary>Bytes of legacy part and XSAVE header.</summary>
    public const int HeaderEnd = 576;

    /// <summary>XSAVE features 0 (x87) and 1 (SSE): what the FXSAVE image holds.</summary>
    public const uint X87AndSse = 3;
}
