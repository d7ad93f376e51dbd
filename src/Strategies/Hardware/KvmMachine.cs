using System.ComponentModel;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Versioning;
using VirtBench.Strategies.Native;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Hardware;

/// <summary>
/// One VM of /dev/kvm with one vCPU: file descriptors, the memory slot, the shared run page. A thin wrapper: what it means
/// for a guest is <see cref="HardwareEngine"/>'s to know.
/// </summary>
[SupportedOSPlatform("linux")]
internal sealed unsafe class KvmMachine : IDisposable
{
    /// <summary>
    /// Where kvm_intel may put a TSS and a page table for guests in real mode: below the firmware's place under 4 GiB, as is
    /// usual. Guests of VirtBench are never in real mode; CPUs without unrestricted guest want the addresses all the same.
    /// </summary>
    private const ulong TssAddress = 0xFFFB_D000;
    private const ulong IdentityMapAddress = TssAddress - GuestMemory.PageSize;

    private readonly GuestMemory _memory;
    private int _vm = -1;
    private readonly int _runBytes;
    private int _vcpu = -1;

    /// <summary>Creates the VM with guest RAM at guest-physical 0, and its vCPU with the platform's CPUID.</summary>
    /// <param name="memory">Guest RAM.</param>
    /// <param name="without">For tests: takes away from what the device offers.</param>
    /// <param name="kernelInterrupts">Interrupt controllers and timer are the kernel's.</param>
    /// <exception cref="Win32Exception">The kernel refuses; the message names the request.</exception>
    public KvmMachine(
        GuestMemory memory,
        Func<KvmCapabilities, KvmCapabilities>? without = null,
        bool kernelInterrupts = false
    )
    {
        _memory = memory;
        int kvm = OpenDevice();
        try
        {
            KvmCapabilities offered = KvmCapabilities.Read(kvm);
            Capabilities = without is null ? offered : without(offered);
            _vm = Required(Kvm.Ioctl(kvm, Kvm.CreateVm, null), "KVM_CREATE_VM");
            try
            {
                SetUp(memory);
                if (kernelInterrupts)
                {
                    CreateInterruptControllers();
                }

                _vcpu = Required(Kvm.Ioctl(_vm, Kvm.CreateVcpu, null), "KVM_CREATE_VCPU");
                SetCpuid();
                _runBytes = Required(Kvm.Ioctl(kvm, Kvm.GetVcpuMmapSize, null), "KVM_GET_VCPU_MMAP_SIZE");
                Run = (Kvm.RunPage*)Linux.MapSharedMemory(_vcpu, _runBytes, "the run page of a vCPU");
                if (Capabilities.SyncRegs)
                {
                    Run->ValidRegs = Kvm.SyncX86Regs;
                }
            }
            catch
            {
                CloseAll();
                throw;
            }
        }
        finally
        {
            _ = Linux.Close(kvm);
        }
    }

    /// <summary>What the module offers.</summary>
    public KvmCapabilities Capabilities { get; }

    /// <summary>The page shared with the kernel. The guest cannot reach it.</summary>
    public Kvm.RunPage* Run { get; private set; }

    /// <summary>Opens the device.</summary>
    /// <exception cref="Win32Exception">It cannot be opened.</exception>
    public static int OpenDevice()
    {
        const int readWriteCloexec = 0x8_0002; // O_RDWR | O_CLOEXEC
        return Required(Kvm.Open("/dev/kvm", readWriteCloexec), "opening /dev/kvm");
    }

    /// <summary>KVM_GET_API_VERSION of an open device.</summary>
    public static int ApiVersion(int kvm) => Kvm.Ioctl(kvm, Kvm.GetApiVersion, null);

    /// <summary>
    /// EAX of KVM's own CPUID leaf, a bit for each of its paravirtual features (Linux, Documentation/virt/kvm/x86/cpuid.rst); 0 where it has
    /// none.
    /// </summary>
    public static uint ParavirtualFeatures(int kvm)
    {
        const int capacity = 256;
        const uint leaf = 0x4000_0001; // KVM_CPUID_FEATURES
        int bytes = 8 + (capacity * sizeof(Kvm.CpuidEntry2));
        byte* buffer = stackalloc byte[bytes];
        new Span<byte>(buffer, bytes).Clear();
        *(uint*)buffer = capacity;
        if (Kvm.Ioctl(kvm, Kvm.GetSupportedCpuid, buffer) < 0)
        {
            return 0;
        }

        var entries = new ReadOnlySpan<Kvm.CpuidEntry2>(buffer + 8, (int)Math.Min(*(uint*)buffer, capacity));
        foreach (ref readonly Kvm.CpuidEntry2 entry in entries)
        {
            if (entry.Function == leaf)
            {
                return entry.Eax;
            }
        }

        return 0;
    }

    /// <summary>KVM_CHECK_EXTENSION of an open device.</summary>
    public static bool Offers(int kvm, int capability) => Kvm.Ioctl(kvm, Kvm.CheckExtension, (void*)capability) > 0;

    /// <summary>KVM_IRQ_LINE.</summary>
    /// <exception cref="Win32Exception">The kernel refuses.</exception>
    public void SetInterruptLine(Kvm.IrqLevel level) =>
        _ = Required(Kvm.Ioctl(_vm, Kvm.IrqLine, &level), "KVM_IRQ_LINE");

    /// <summary>KVM_IRQFD.</summary>
    /// <exception cref="Win32Exception">The kernel refuses.</exception>
    public void ConnectInterrupt(Kvm.Irqfd irqfd) => _ = Required(Kvm.Ioctl(_vm, Kvm.SetIrqfd, &irqfd), "KVM_IRQFD");

    // Before the vCPU, which gets its local APIC with them.
    private void CreateInterruptControllers()
    {
        _ = Required(Kvm.Ioctl(_vm, Kvm.CreateIrqchip, null), "KVM_CREATE_IRQCHIP");
        Kvm.PitConfig timer = default;
        _ = Required(Kvm.Ioctl(_vm, Kvm.CreatePit2, &timer), "KVM_CREATE_PIT2");
    }

    /// <summary>KVM_RUN: 0, or the error number.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public int Enter() => -(int)_entry(_vcpu, Kvm.Run, 0);

    /// <summary>A request without an argument: its result, or the negative error number.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int BareIoctl(int fd, nuint request) => (int)SystemCallEntry(fd, request, 0);

    /// <summary>
    /// ioctl(2) without the C library: the error comes back as the result and nothing has to be kept in thread-local
    /// storage, which each exit would pay for.
    /// </summary>
    private static readonly delegate* unmanaged<long, ulong, ulong, long> SystemCallEntry = CreateSystemCallEntry();

    // A copy: in a method that is compiled once and for all, each use of the static one would ask whether it is there yet.
    private readonly delegate* unmanaged<long, ulong, ulong, long> _entry = SystemCallEntry;

    private static delegate* unmanaged<long, ulong, ulong, long> CreateSystemCallEntry()
    {
        // mov eax, __NR_ioctl; syscall; ret. The arguments are in the kernel's registers already.
        ReadOnlySpan<byte> code = [0xB8, 0x10, 0x00, 0x00, 0x00, 0x0F, 0x05, 0xC3];
        const int page = 4096;
        byte* memory = Linux.MapAnonymous(page);
        code.CopyTo(new Span<byte>(memory, page));
        Linux.MakeExecutable(memory, page);
        return (delegate* unmanaged<long, ulong, ulong, long>)memory;
    }

    /// <summary>A request to the vCPU that fills or takes a structure.</summary>
    /// <exception cref="Win32Exception">The kernel refuses.</exception>
    public void Vcpu<T>(nuint request, ref T structure, string name)
        where T : unmanaged
    {
        fixed (T* p = &structure)
        {
            _ = Required(Kvm.Ioctl(_vcpu, request, p), name);
        }
    }

    /// <summary>KVM_GET_MSRS or KVM_SET_MSRS.</summary>
    /// <exception cref="Win32Exception">The kernel refuses one of them; the message names it.</exception>
    public void Msrs(nuint request, Span<Kvm.MsrEntry> entries, string name)
    {
        byte* buffer = stackalloc byte[8 + (entries.Length * sizeof(Kvm.MsrEntry))];
        *(ulong*)buffer = (uint)entries.Length;
        var inside = new Span<Kvm.MsrEntry>(buffer + 8, entries.Length);
        entries.CopyTo(inside);
        int done = Required(Kvm.Ioctl(_vcpu, request, buffer), name);
        if (done < entries.Length)
        {
            throw new Win32Exception(Linux.Einval, $"{name}: the module refuses MSR 0x{entries[done].Index:X}");
        }

        inside.CopyTo(entries);
    }

    /// <summary>The offset from the host's time-stamp counter to the guest's; null where the kernel cannot tell it.</summary>
    public ulong? TscOffset
    {
        get
        {
            ulong value;
            var attribute = TscAttribute(&value);
            return Kvm.Ioctl(_vcpu, Kvm.GetDeviceAttr, &attribute) == 0 ? value : null;
        }
    }

    /// <summary>
    /// Takes guest RAM away and gives it back: KVM then forgets all that it has derived from it, shadow page tables included, which it otherwise
    /// keeps as long as the guest does not write to the tables that they follow. That the VMM has written to those it does not notice.
    /// </summary>
    /// <exception cref="Win32Exception">The kernel refuses.</exception>
    public void RenewMemory()
    {
        SetMemory(0);
        SetMemory(_memory.Size);
    }

    /// <summary>Sets the offset; false where the kernel cannot.</summary>
    public bool TrySetTscOffset(ulong offset)
    {
        var attribute = TscAttribute(&offset);
        return Kvm.Ioctl(_vcpu, Kvm.SetDeviceAttr, &attribute) == 0;
    }

    /// <summary>A descriptor for the vCPU's counters, the caller's to close; −1 where there are none.</summary>
    public int OpenStatistics() => Capabilities.BinaryStats ? Kvm.Ioctl(_vcpu, Kvm.GetStatsFd, null) : -1;

    private static Kvm.DeviceAttr TscAttribute(ulong* value) =>
        new()
        {
            Group = Kvm.VcpuTscCtrl,
            Attr = Kvm.VcpuTscOffset,
            Addr = (ulong)value,
        };

    private void SetUp(GuestMemory memory)
    {
        Enable(Kvm.CapDisableQuirks2, Capabilities.Quirks & (Kvm.QuirkFixHypercallInsn | Kvm.QuirkMwaitNeverUdFaults));
        Enable(Kvm.CapExitOnEmulationFailure, Capabilities.ExitOnEmulationFailure ? 1u : 0);
        if (Capabilities.UserSpaceMsr)
        {
            ulong filtered = Capabilities.MsrFilter ? Kvm.MsrExitReasonFilter : 0;
            Enable(Kvm.CapX86UserSpaceMsr, Kvm.MsrExitReasonInval | Kvm.MsrExitReasonUnknown | filtered);
        }

        if (Capabilities.UserSpaceMsr && Capabilities.MsrFilter)
        {
            FilterMsrs();
        }

        if (Capabilities.SetTssAddress && memory.Size <= IdentityMapAddress)
        {
            ulong identityMap = IdentityMapAddress;
            _ = Required(Kvm.Ioctl(_vm, Kvm.SetIdentityMapAddr, &identityMap), "KVM_SET_IDENTITY_MAP_ADDR");
            _ = Required(Kvm.Ioctl(_vm, Kvm.SetTssAddr, (void*)TssAddress), "KVM_SET_TSS_ADDR");
        }

        SetMemory(memory.Size);
    }

    private void SetMemory(ulong size)
    {
        var slot = new Kvm.UserspaceMemoryRegion { MemorySize = size, UserspaceAddr = (ulong)_memory.Base };
        _ = Required(Kvm.Ioctl(_vm, Kvm.SetUserMemoryRegion, &slot), "KVM_SET_USER_MEMORY_REGION");
    }

    private void Enable(int capability, ulong argument)
    {
        if (argument == 0)
        {
            return;
        }

        var enable = new Kvm.EnableCapability { Cap = (uint)capability };
        enable.Args[0] = argument;
        _ = Required(Kvm.Ioctl(_vm, Kvm.EnableCap, &enable), $"KVM_ENABLE_CAP {capability}");
    }

    // Those that the platform has stay with KVM; of all others user space hears. KVM takes the x2APIC's out of any filter, and
    // without an APIC in the kernel they raise #GP anyhow.
    private void FilterMsrs()
    {
        ReadOnlySpan<(uint First, uint Count)> kept =
        [
            (Msr.TimeStampCounter, 1),
            (Msr.Pat, 1),
            (Msr.Efer, Msr.Fmask - Msr.Efer + 1),
            (Msr.FsBase, Msr.TscAux - Msr.FsBase + 1),
        ];
        ulong allowed = 0xFF; // the kernel reads bitmaps by words
        var filter = new Kvm.MsrFilter { Flags = Kvm.MsrFilterDefaultDeny };
        for (int i = 0; i < kept.Length; i++)
        {
            filter.Ranges[i] = new Kvm.MsrFilterRange
            {
                Flags = Kvm.MsrFilterReadWrite,
                Base = kept[i].First,
                Nmsrs = kept[i].Count,
                Bitmap = (byte*)&allowed,
            };
        }

        _ = Required(Kvm.Ioctl(_vm, Kvm.X86SetMsrFilter, &filter), "KVM_X86_SET_MSR_FILTER");
    }

    private void SetCpuid()
    {
        IReadOnlyList<uint> leaves = PlatformCpuid.Leaves;
        int bytes = 8 + (leaves.Count * sizeof(Kvm.CpuidEntry2));
        byte* buffer = stackalloc byte[bytes];
        new Span<byte>(buffer, bytes).Clear();
        *(uint*)buffer = (uint)leaves.Count;
        var entries = (Kvm.CpuidEntry2*)(buffer + 8);
        for (int i = 0; i < leaves.Count; i++)
        {
            CpuidResult result = PlatformCpuid.Query(leaves[i]);
            entries[i].Function = leaves[i];
            entries[i].Eax = result.Eax;
            entries[i].Ebx = result.Ebx;
            entries[i].Ecx = result.Ecx;
            entries[i].Edx = result.Edx;
        }

        _ = Required(Kvm.Ioctl(_vcpu, Kvm.SetCpuid2, buffer), "KVM_SET_CPUID2");
    }

    private static int Required(int result, string name)
    {
        if (result >= 0)
        {
            return result;
        }

        int error = Marshal.GetLastPInvokeError();
        throw new Win32Exception(error, $"{name}: {new Win32Exception(error).Message}");
    }

    private void CloseAll()
    {
        if (Run is not null)
        {
            _ = Linux.Munmap((nint)Run, (nuint)_runBytes);
            Run = null;
        }

        if (_vcpu >= 0)
        {
            _ = Linux.Close(_vcpu);
            _vcpu = -1;
        }

        if (_vm >= 0)
        {
            _ = Linux.Close(_vm);
            _vm = -1;
        }
    }

    /// <inheritdoc/>
    public void Dispose() => CloseAll();
}
