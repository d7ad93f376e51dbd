using VirtBench.Vmm.Memory;

namespace VirtBench.Workloads;

/// <summary>
/// Where mini-os has what. Kernel addresses are guest-physical and linear alike; a process's own lie in the second gigabyte.
/// All lie above 64 KiB and in the lower half, as direct execution wants it.
/// <code>
/// physical and kernel-linear                       linear, ring 3
/// 0x01_0000  boot information, parameters          0x4000_0000  program, read-only, shared
/// 0x03_0000  result block                          0x4001_0000  its constants, read-only, shared
/// 0x03_1000  statistics                            0x4020_0000  heap: from here to the break, on demand
/// 0x10_0000  kernel code                           0x407F_C000  stack, 16 KiB, on demand
/// 0x20_0000  GDT, TSS, IDT, variables, processes
/// 0x20_6000  nothing: the kernel stack's guard page
/// 0x20_7000  kernel stack, 16 KiB
/// 0x20_C000  nothing: the fault stack's guard page
/// 0x20_D000  fault stack, 4 KiB
/// 0x21_0000  free frames, a stack of addresses
/// 0x22_0000  page tables of the kernel, and the one of the program
/// 0x23_0000  the program and its constants
/// 0x25_0000  the disk driver's memory, 16 KiB, and a buffer, 4 KiB
/// 0x40_0000  frames: all other page tables, heaps and stacks
/// 0x80_0000  end
/// </code>
/// </summary>
internal static class MiniOsLayout
{
    /// <summary>RAM that it needs, in bytes.</summary>
    public const ulong RamBytes = FramesEnd;

    public const ulong KernelCode = 0x10_0000;
    public const ulong Gdt = 0x20_0000;
    public const ulong Tss = 0x20_0100;
    public const ulong DescriptorPointers = 0x20_0200;
    public const ulong KernelText = 0x20_0300;
    public const ulong Idt = 0x20_1000;
    public const ulong Variables = 0x20_2000;
    public const ulong Processes = 0x20_3000;
    public const ulong KernelStackGuard = 0x20_6000;
    public const ulong KernelStackTop = 0x20_B000;
    public const ulong FaultStackGuard = 0x20_C000;
    public const ulong FaultStackTop = 0x20_E000;
    public const ulong FreeFrames = 0x21_0000;
    public const ulong KernelTables = 0x22_0000;
    public const ulong ProgramImage = 0x23_0000;
    public const ulong ConstantsImage = ProgramImage + (Constants - Program);
    public const ulong DiskDriver = 0x25_0000;
    public const ulong DiskBuffer = DiskDriver + Workloads.DiskDriver.MemoryBytes;
    public const ulong FramesStart = 0x40_0000;
    public const ulong FramesEnd = 0x80_0000;

    /// <summary>Linear addresses of a process.</summary>
    public const ulong UserBase = 0x4000_0000;
    public const ulong Program = UserBase;
    public const ulong Constants = UserBase + 0x1_0000;

    /// <summary>Pages that the shared table maps, the program's and its constants'.</summary>
    public const int ProgramPages = 17;
    public const ulong Heap = UserBase + 0x20_0000;

    /// <summary>What one page table maps.</summary>
    public const ulong HeapLimit = Heap + 0x20_0000;
    public const ulong StackTop = UserBase + 0x80_0000;
    public const ulong StackBottom = StackTop - (StackPages * GuestMemory.PageSize);
    public const ulong StackPages = 4;

    // The four tables of the kernel, in the order of the walk, and the one that maps the program in every process.
    public const ulong KernelPml4 = KernelTables;
    public const ulong KernelPointers = KernelTables + 0x1000;
    public const ulong KernelDirectory = KernelTables + 0x2000;
    public const ulong KernelTable = KernelTables + 0x3000;
    public const ulong ProgramTable = KernelTables + 0x4000;
    public const int KernelTablePages = 5;

    public const ushort KernelCodeSelector = 0x08;
    public const ushort KernelDataSelector = 0x10;
    public const ushort UserDataSelector = 0x18 | 3;
    public const ushort UserCodeSelector = 0x20 | 3;
    public const ushort TssSelector = 0x28;

    /// <summary>Where the 8259A pair is programmed to: behind the 32 vectors of exceptions.</summary>
    public const byte FirstInterrupt = 0x20;
    public const byte TimerInterrupt = FirstInterrupt;
    public const byte MasterSpurious = FirstInterrupt + 7;
    public const byte SlaveSpurious = FirstInterrupt + 15;

    /// <summary>Gates of the IDT: exceptions and both 8259A.</summary>
    public const int Gates = FirstInterrupt + 16;

    /// <summary>The stack of the TSS's list that a double fault uses: the one it had is what failed.</summary>
    public const byte FaultStackIndex = 1;
}

/// <summary>The kernel's variables: offsets from <see cref="MiniOsLayout.Variables"/>, 8 bytes each.</summary>
internal enum KernelVariable : ulong
{
    /// <summary>The process whose page tables and XMM registers are loaded; 0 when it has ended.</summary>
    Loaded = 0x00,

    /// <summary>The end of its register frame: where SYSCALL's entry puts the stack pointer.</summary>
    FrameEnd = 0x08,

    /// <summary>RSP of the process, for the few instructions in which SYSCALL's entry has no stack.</summary>
    CallerStack = 0x10,

    /// <summary>The process that ran last: the round robin goes on behind it.</summary>
    Last = 0x18,
    QuantumLeft = 0x20,
    FreeFrames = 0x28,
    Living = 0x30,

    /// <summary>Processes that wait at the rendezvous, and how many of these there have been.</summary>
    Arrived = 0x38,
    Rendezvous = 0x40,
    RegionStart = 0x48,

    // From the boot parameters, or their defaults.
    WarmUp = 0x50,
    Units = 0x58,
    Quantum = 0x60,
    RunTicks = 0x68,
    RestTicks = 0x70,
    Misbehaviour = 0x78,
    RegionTicks = 0x80,

    /// <summary>Capacity of the disk; 0 when there is none.</summary>
    DiskSectors = 0x88,
    ResultsSector = 0x90,
}

/// <summary>
/// A process, 1 KiB: offsets. Its registers come first, so that the stack pointer of the TSS can be their end: an event in
/// ring 3 is then saved where it belongs by the very pushes that save it.
/// </summary>
internal static class ProcessBlock
{
    public const int Size = 0x400;
    public const int Maximum = 8;

    // Pushed by the entries, R15 last; the last five by the processor.
    public const int R15 = 0x00;
    public const int R11 = 0x20;
    public const int R10 = 0x28;
    public const int R9 = 0x30;
    public const int R8 = 0x38;
    public const int Rdi = 0x40;
    public const int Rsi = 0x48;
    public const int Rcx = 0x68;
    public const int Rax = 0x70;
    public const int Vector = 0x78;
    public const int ErrorCode = 0x80;
    public const int Rip = 0x88;
    public const int Cs = 0x90;
    public const int Rflags = 0x98;
    public const int Rsp = 0xA0;
    public const int Ss = 0xA8;
    public const int FrameEnd = 0xB0;

    /// <summary>XMM0 to XMM15; processes leave MXCSR and the x87 as they are.</summary>
    public const int Xmm = 0xB0;
    public const int Cr3 = 0x1B0;
    public const int State = 0x1B8;
    public const int WakeAt = 0x1C0;
    public const int Break = 0x1C8;
    public const int Result = 0x1D0;
    public const int FirstResult = 0x1D8;
    public const int Rounds = 0x1E0;
    public const int Units = 0x1E8;

    /// <summary>What the process has written: a length, and at <see cref="Output"/> the bytes, as a string of the kernel's.</summary>
    public const int OutputLength = 0x1F8;
    public const int Output = 0x200;
    public const int OutputCapacity = 0x200;
}

/// <summary>What a process is waiting for.</summary>
internal enum ProcessState
{
    Ended = 0,
    Ready = 1,
    Sleeping = 2,
    AtRendezvous = 3,
}

/// <summary>
/// System calls, by SYSCALL: number in RAX, arguments in RDI and RSI, result in RAX (all ones when refused). RCX and R11 are
/// lost, as the instruction has it.
/// </summary>
public enum MiniOsCall
{
    /// <summary>Lets the next process run.</summary>
    Yield,

    /// <summary>Gives the timer ticks so far.</summary>
    Ticks,

    /// <summary>Gives the frame of the heap page at RDI back; the page reads as zeros again.</summary>
    Discard,

    /// <summary>Moves the break, the end of the heap, to RDI; frames beyond it are given back.</summary>
    Break,

    /// <summary>Sleeps for RDI timer ticks.</summary>
    Sleep,

    /// <summary>
    /// Writes the byte in RDI. It goes to the console when all processes have ended, in their order; after 512 bytes it is refused.
    /// </summary>
    Write,

    /// <summary>Hands in the checksum of a round, RDI, of RSI units: every round's must be the first's.</summary>
    Round,

    /// <summary>Ends the process with the result RDI.</summary>
    Exit,
}

/// <summary>What a process or the kernel does wrong on purpose, for tests.</summary>
public enum MiniOsMisbehaviour
{
    /// <summary>Nothing.</summary>
    None,

    /// <summary>A process reads a page of the kernel's.</summary>
    ReadKernel,

    /// <summary>A process executes CLI.</summary>
    Privileged,

    /// <summary>A process writes to its own code.</summary>
    WriteCode,

    /// <summary>A process reads beyond its heap's end.</summary>
    BeyondHeap,

    /// <summary>The kernel calls itself until its stack is full.</summary>
    KernelStack,
}
