using System.Runtime.InteropServices;

namespace VirtBench.Vmm.Paravirtual;

/// <summary>
/// The shared info page, at a guest-physical address that the boot information gives and that a guest keeps mapped one to one. The guest
/// may write every field: to the VMM each is input.
/// </summary>
/// <remarks>
/// An interrupt is delivered when RFLAGS.IF is set and <see cref="InterruptMask"/> is 0. A guest starts with IF set and the mask set, and
/// from then on masks and unmasks by plain writes: <c>mov [mask], 1</c>; <c>mov [mask], 0</c>, then a look at <see cref="Pending"/>.
/// </remarks>
[StructLayout(LayoutKind.Explicit, Size = 4096)]
public struct SharedInformation
{
    /// <summary>Not 0: interrupts are held back. The guest's virtual interrupt flag, inverted.</summary>
    [FieldOffset(0x00)]
    public ulong InterruptMask;

    /// <summary>
    /// What a guest that unmasks has to look at: <see cref="PendingInVmm"/> calls for <see cref="HypercallNumber.Yield"/>,
    /// <see cref="PendingDirectly"/> for a look at <see cref="DirectLines"/>. Changed by locked instructions on both sides.
    /// </summary>
    [FieldOffset(0x08)]
    public ulong Pending;

    /// <summary>
    /// A bit for every interrupt line that a device has raised without an exit; the guest takes them by XCHG with 0. They pass the
    /// interrupt controllers by, so no end of interrupt follows.
    /// </summary>
    [FieldOffset(0x10)]
    public ulong DirectLines;

    /// <summary>The vCPU sleeps in <see cref="HypercallNumber.Block"/>; the VMM's, to know whether a device has to wake it.</summary>
    [FieldOffset(0x18)]
    public ulong Blocked;

    /// <summary>The paravirtual clock.</summary>
    [FieldOffset(0x40)]
    public ParavirtualClock Clock;

    /// <summary>CR2 at the last page fault that the VMM has delivered. Where hardware delivers it, CR2 is only in CR2.</summary>
    [FieldOffset(0x80)]
    public ulong FaultAddress;

    /// <summary>Bit of <see cref="Pending"/>: an interrupt waits in the VMM.</summary>
    public const ulong PendingInVmm = 1;

    /// <summary>Bit of <see cref="Pending"/>: <see cref="DirectLines"/> is not empty.</summary>
    public const ulong PendingDirectly = 2;
}

/// <summary>
/// struct pvclock_vcpu_time_info of KVM and Xen (Linux, arch/x86/include/asm/pvclock-abi.h; Documentation/virt/kvm/x86/msr.rst, MSR_KVM_SYSTEM_TIME_NEW):
/// nanoseconds = <see cref="SystemTime"/> + (((TSC − <see cref="TscTimestamp"/>) shifted by <see cref="TscShift"/>) ·
/// <see cref="TscToSystemMultiplier"/> &gt;&gt; 32). An odd <see cref="Version"/> says that it is being written; a reader reads again
/// when the version has changed.
/// </summary>
[StructLayout(LayoutKind.Sequential, Pack = 1)]
public struct ParavirtualClock
{
    /// <summary>Odd while being written.</summary>
    public uint Version;

    /// <summary>Nothing.</summary>
    public uint Padding;

    /// <summary>What RDTSC gave the guest at <see cref="SystemTime"/>.</summary>
    public ulong TscTimestamp;

    /// <summary>Nanoseconds.</summary>
    public ulong SystemTime;

    /// <summary>Nanoseconds per tick after the shift, as a fraction of 2^32.</summary>
    public uint TscToSystemMultiplier;

    /// <summary>Left shift of the ticks; right when negative.</summary>
    public sbyte TscShift;

    /// <summary>Bit 0: readings are monotonic across vCPUs.</summary>
    public byte Flags;

    /// <summary>Nothing.</summary>
    public ushort Padding2;

    /// <summary><see cref="Flags"/>: monotonic across vCPUs (PVCLOCK_TSC_STABLE_BIT).</summary>
    public const byte TscStable = 1;

    /// <summary>Shift and multiplier for a frequency: the multiplier uses all its 32 bits.</summary>
    /// <param name="ticksPerSecond">Frequency of the TSC, above 0.</param>
    public static (sbyte Shift, uint Multiplier) ScaleOf(double ticksPerSecond)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(ticksPerSecond);
        double perTick = 1e9 / ticksPerSecond;
        int shift = 0;
        while (perTick >= 1)
        {
            perTick /= 2;
            shift++;
        }

        while (perTick < 0.5)
        {
            perTick *= 2;
            shift--;
        }

        double multiplier = Math.Round(perTick * (1UL << 32));
        return multiplier >= 1UL << 32 ? ((sbyte)(shift + 1), 1u << 31) : ((sbyte)shift, (uint)multiplier);
    }

    /// <summary>What a guest makes of a reading of its TSC.</summary>
    public readonly ulong Nanoseconds(ulong tsc)
    {
        ulong ticks = tsc - TscTimestamp;
        ticks = TscShift >= 0 ? ticks << TscShift : ticks >> -TscShift;
        return SystemTime + (ulong)(((UInt128)ticks * TscToSystemMultiplier) >> 32);
    }
}

/// <summary>A record of <see cref="HypercallNumber.UpdatePageTables"/>.</summary>
/// <param name="Entry">Guest-physical address of the entry: a multiple of 8, in RAM.</param>
/// <param name="Value">What to write there.</param>
public readonly record struct PageTableUpdate(ulong Entry, ulong Value);

/// <summary>A record of <see cref="HypercallNumber.Multicall"/>: number, four arguments, and the result that the VMM leaves.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct MulticallEntry
{
    /// <summary>A <see cref="HypercallNumber"/> other than Multicall, Block, InterruptReturn and Yield.</summary>
    public ulong Number;

    /// <summary>RDI.</summary>
    public ulong First;

    /// <summary>RSI.</summary>
    public ulong Second;

    /// <summary>RDX.</summary>
    public ulong Third;

    /// <summary>R10.</summary>
    public ulong Fourth;

    /// <summary>RAX.</summary>
    public long Result;
}
