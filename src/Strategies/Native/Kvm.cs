using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace VirtBench.Strategies.Native;

/// <summary>
/// /dev/kvm of x86-64: request numbers, capabilities and the layouts of what is passed, from include/uapi/linux/kvm.h and
/// arch/x86/include/uapi/asm/kvm.h. Names are the header's, without their prefix.
/// </summary>
internal static unsafe partial class Kvm
{
    /// <summary>The only version of the API there has been since Linux 2.6.22.</summary>
    public const int ApiVersion = 12;

    // Requests. _IO(0xAE, n) is 0xAE00 + n; those with an argument carry its size and direction.
    public const uint GetApiVersion = 0xAE00;
    public const uint CreateVm = 0xAE01;
    public const uint CheckExtension = 0xAE03;
    public const uint GetVcpuMmapSize = 0xAE04;
    public const uint CreateVcpu = 0xAE41;
    public const uint SetUserMemoryRegion = 0x4020_AE46;
    public const uint SetTssAddr = 0xAE47;
    public const uint SetIdentityMapAddr = 0x4008_AE48;
    public const uint CreateIrqchip = 0xAE60;
    public const uint IrqLine = 0x4008_AE61;
    public const uint SetIrqfd = 0x4020_AE76;
    public const uint CreatePit2 = 0x4040_AE77;
    public const uint Run = 0xAE80;
    public const uint GetRegs = 0x8090_AE81;
    public const uint SetRegs = 0x4090_AE82;
    public const uint GetSregs = 0x8138_AE83;
    public const uint SetSregs = 0x4138_AE84;
    public const uint Interrupt = 0x4004_AE86;
    public const uint GetMsrs = 0xC008_AE88;
    public const uint SetMsrs = 0x4008_AE89;
    public const uint GetSupportedCpuid = 0xC008_AE05;
    public const uint SetCpuid2 = 0x4008_AE90;
    public const uint GetVcpuEvents = 0x8040_AE9F;
    public const uint SetVcpuEvents = 0x4040_AEA0;
    public const uint GetDebugregs = 0x8080_AEA1;
    public const uint SetDebugregs = 0x4080_AEA2;
    public const uint EnableCap = 0x4068_AEA3;
    public const uint GetXsave = 0x9000_AEA4;
    public const uint SetXsave = 0x5000_AEA5;
    public const uint X86SetMsrFilter = 0x4188_AEC6;
    public const uint GetStatsFd = 0xAECE;
    public const uint SetDeviceAttr = 0x4018_AEE1;
    public const uint GetDeviceAttr = 0x4018_AEE2;

    // Capabilities.
    public const int CapIrqchip = 0;
    public const int CapUserMemory = 3;
    public const int CapSetTssAddr = 4;
    public const int CapExtCpuid = 7;
    public const int CapIrqfd = 32;
    public const int CapPit2 = 33;
    public const int CapVcpuEvents = 41;
    public const int CapDebugregs = 50;
    public const int CapXsave = 55;
    public const int CapSyncRegs = 74;
    public const int CapImmediateExit = 136;
    public const int CapX86UserSpaceMsr = 188;
    public const int CapX86MsrFilter = 189;
    public const int CapBinaryStatsFd = 203;
    public const int CapExitOnEmulationFailure = 204;
    public const int CapDisableQuirks2 = 213;

    /// <summary>Bit of KVM_CAP_SYNC_REGS: struct kvm_regs travels in struct kvm_run.</summary>
    public const ulong SyncX86Regs = 1;

    // Reasons for which an MSR access goes to user space.
    public const ulong MsrExitReasonInval = 1;
    public const ulong MsrExitReasonUnknown = 2;
    public const ulong MsrExitReasonFilter = 4;

    public const uint MsrFilterDefaultDeny = 1;
    public const uint MsrFilterReadWrite = 3;

    // Quirks that can be turned off.
    public const ulong QuirkFixHypercallInsn = 1 << 5;
    public const ulong QuirkMwaitNeverUdFaults = 1 << 6;

    public const uint VcpuEventValidShadow = 4;
    public const byte ShadowOfMovSs = 1;
    public const byte ShadowOfSti = 2;

    // The vCPU's only device attribute: its TSC offset.
    public const uint VcpuTscCtrl = 0;
    public const ulong VcpuTscOffset = 0;

    // Exit reasons.
    public const uint ExitIo = 2;
    public const uint ExitHlt = 5;
    public const uint ExitMmio = 6;
    public const uint ExitIrqWindowOpen = 7;
    public const uint ExitShutdown = 8;
    public const uint ExitFailEntry = 9;
    public const uint ExitSetTpr = 11;
    public const uint ExitInternalError = 17;
    public const uint ExitX86Rdmsr = 29;
    public const uint ExitX86Wrmsr = 30;

    public const byte ExitIoOut = 1;

    public const uint InternalErrorEmulation = 1;
    public const uint InternalErrorDeliveryEvent = 3;

    /// <summary>struct kvm_run, as much of it as is used; the union of the exits' data lies at 32.</summary>
    [StructLayout(LayoutKind.Explicit)]
    public struct RunPage
    {
        [FieldOffset(0)]
        public byte RequestInterruptWindow;

        [FieldOffset(1)]
        public byte ImmediateExit;

        [FieldOffset(8)]
        public uint ExitReason;

        [FieldOffset(12)]
        public byte ReadyForInterruptInjection;

        [FieldOffset(16)]
        public ulong Cr8;

        [FieldOffset(32)]
        public IoExit Io;

        [FieldOffset(32)]
        public MmioExit Mmio;

        [FieldOffset(32)]
        public MsrExit Msr;

        [FieldOffset(32)]
        public InternalErrorExit InternalError;

        [FieldOffset(32)]
        public ulong HardwareExitReason;

        [FieldOffset(288)]
        public ulong ValidRegs;

        [FieldOffset(296)]
        public ulong DirtyRegs;

        [FieldOffset(304)]
        public Regs Regs;
    }

    [StructLayout(LayoutKind.Sequential)]
    public struct IoExit
    {
        public byte Direction;
        public byte Size;
        public ushort Port;
        public uint Count;
        public ulong DataOffset;
    }

    [StructLayout(LayoutKind.Sequential)]
    public struct MmioExit
    {
        public ulong PhysAddr;
        public fixed byte Data[8];
        public uint Len;
        public byte IsWrite;
    }

    [StructLayout(LayoutKind.Explicit)]
    public struct MsrExit
    {
        [FieldOffset(0)]
        public byte Error;

        [FieldOffset(12)]
        public uint Index;
    }

    [StructLayout(LayoutKind.Sequential)]
    public struct InternalErrorExit
    {
        public uint Suberror;
        public uint Ndata;
    }

    /// <summary>struct kvm_regs.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Regs
    {
        public ulong Rax,
            Rbx,
            Rcx,
            Rdx,
            Rsi,
            Rdi,
            Rsp,
            Rbp;

        /// <summary>R8 to R15, RIP, RFLAGS: in the order of <see cref="VirtBench.Vmm.Cpu.GuestRegisters"/>.</summary>
        public Tail R8ToRflags;

        [InlineArray(10)]
        public struct Tail
        {
            private ulong _first;
        }
    }

    /// <summary>struct kvm_segment.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Segment
    {
        public ulong Base;
        public uint Limit;
        public ushort Selector;
        public byte Type,
            Present,
            Dpl,
            Db,
            S,
            L,
            G,
            Avl,
            Unusable,
            Padding;
    }

    /// <summary>struct kvm_dtable.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Dtable
    {
        public ulong Base;
        public ushort Limit;
        public fixed ushort Padding[3];
    }

    /// <summary>struct kvm_sregs.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Sregs
    {
        public Segment Cs,
            Ds,
            Es,
            Fs,
            Gs,
            Ss,
            Tr,
            Ldt;
        public Dtable Gdt,
            Idt;
        public ulong Cr0,
            Cr2,
            Cr3,
            Cr4,
            Cr8,
            Efer,
            ApicBase;
        public fixed ulong InterruptBitmap[4];
    }

    /// <summary>struct kvm_xsave: the standard form of XSAVE, which begins with FXSAVE's.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Xsave
    {
        /// <summary>Of XSTATE_BV, which says of which parts there is state.</summary>
        public const int HeaderOffset = 512;
        public const ulong X87 = 1;
        public const ulong Sse = 2;

        public fixed byte Region[4096];
    }

    /// <summary>struct kvm_debugregs.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Debugregs
    {
        public fixed ulong Db[4];
        public ulong Dr6,
            Dr7,
            Flags;
        public fixed ulong Reserved[9];
    }

    /// <summary>struct kvm_vcpu_events.</summary>
    [StructLayout(LayoutKind.Explicit, Size = 64)]
    public struct VcpuEvents
    {
        [FieldOffset(0)]
        public byte ExceptionInjected;

        [FieldOffset(1)]
        public byte ExceptionNumber;

        [FieldOffset(2)]
        public byte ExceptionHasErrorCode;

        [FieldOffset(3)]
        public byte ExceptionPending;

        [FieldOffset(4)]
        public uint ExceptionErrorCode;

        [FieldOffset(8)]
        public byte InterruptInjected;

        [FieldOffset(9)]
        public byte InterruptNumber;

        [FieldOffset(10)]
        public byte InterruptSoft;

        [FieldOffset(11)]
        public byte InterruptShadow;

        [FieldOffset(20)]
        public uint Flags;
    }

    [StructLayout(LayoutKind.Sequential)]
    public struct MsrEntry
    {
        public uint Index,
            Reserved;
        public ulong Data;
    }

    [StructLayout(LayoutKind.Sequential)]
    public struct CpuidEntry2
    {
        public uint Function,
            Index,
            Flags,
            Eax,
            Ebx,
            Ecx,
            Edx;
        public fixed uint Padding[3];
    }

    [StructLayout(LayoutKind.Sequential)]
    public struct UserspaceMemoryRegion
    {
        public uint Slot,
            Flags;
        public ulong GuestPhysAddr,
            MemorySize,
            UserspaceAddr;
    }

    [StructLayout(LayoutKind.Sequential)]
    public struct EnableCapability
    {
        public uint Cap,
            Flags;
        public fixed ulong Args[4];
        public fixed byte Padding[64];
    }

    [StructLayout(LayoutKind.Sequential)]
    public struct MsrFilterRange
    {
        public uint Flags,
            Nmsrs,
            Base,
            Padding;
        public byte* Bitmap;
    }

    /// <summary>struct kvm_msr_filter.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct MsrFilter
    {
        public uint Flags,
            Padding;
        public RangeArray Ranges;

        [InlineArray(16)]
        public struct RangeArray
        {
            private MsrFilterRange _first;
        }
    }

    [StructLayout(LayoutKind.Sequential)]
    public struct DeviceAttr
    {
        public uint Flags,
            Group;
        public ulong Attr,
            Addr;
    }

    /// <summary>struct kvm_irq_level.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct IrqLevel
    {
        public uint Irq,
            Level;
    }

    /// <summary>struct kvm_irqfd.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Irqfd
    {
        public uint Fd,
            Gsi,
            Flags,
            Resamplefd;
        public fixed byte Padding[16];
    }

    /// <summary>struct kvm_pit_config.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct PitConfig
    {
        public uint Flags;
        public fixed uint Padding[15];
    }

    /// <summary>struct kvm_stats_header.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct StatsHeader
    {
        public uint Flags,
            NameSize,
            NumDesc,
            IdOffset,
            DescOffset,
            DataOffset;
    }

    /// <summary>struct kvm_stats_desc; the name follows.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct StatsDesc
    {
        public uint Flags;
        public short Exponent;
        public ushort Size;
        public uint Offset,
            BucketSize;
    }

    /// <summary>
    /// KVM_RUN and everything else: it may block, so the garbage collector must not wait for it. The result is −1 with the
    /// error in <see cref="Marshal.GetLastPInvokeError"/>.
    /// </summary>
    [LibraryImport("libc", EntryPoint = "ioctl", SetLastError = true)]
    public static partial int Ioctl(int fd, nuint request, void* argument);

    [LibraryImport("libc", EntryPoint = "open", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    public static partial int Open(string path, int flags);

    [LibraryImport("libc", EntryPoint = "pread", SetLastError = true)]
    public static partial nint Pread(int fd, void* buffer, nuint count, long offset);

    [LibraryImport("libc", EntryPoint = "sigaction", SetLastError = true)]
    public static partial int Sigaction(int signal, Sigactions* action, Sigactions* old);

    /// <summary>struct sigaction of the C library on x86-64 (not the kernel's).</summary>
    [StructLayout(LayoutKind.Explicit, Size = 152)]
    public struct Sigactions
    {
        [FieldOffset(0)]
        public nint Handler;

        [FieldOffset(136)]
        public int Flags;
    }
}
