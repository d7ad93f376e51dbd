using System.ComponentModel;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Versioning;
using VirtBench.Strategies.Native;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Hardware;

/// <summary>
/// Hardware assist: guest code of every ring runs in the CPU's guest mode, entered by KVM_RUN. What is sensitive is the
/// hardware's and the kernel's to handle; only port I/O, accesses without RAM, HLT and MSRs that the platform lacks come to
/// the core, already decoded.
/// </summary>
/// <remarks>
/// The CPU's state lives in the kernel while the guest runs. Only the general registers, RIP and RFLAGS are copied at each
/// exit; everything else when the VM is loaded and when it stops.
/// </remarks>
[SupportedOSPlatform("linux")]
internal sealed unsafe class HardwareEngine : IExecutionEngine
{
    private readonly VirtualCpu _cpu;
    private readonly GuestMemory _memory;
    private readonly KvmMachine _machine;
    private readonly KvmStatistics? _statistics;
    private readonly Lock _kickGate = new();
    private readonly string _module;
    private int _kicked;
    private int _thread;
    private bool _loadState = true;
    private bool _completes;
    private bool _disposed;
    private GuestEvent _injected;
    private VmExit? _held;
    private VmExit? _failure;

    /// <summary>Creates the VM.</summary>
    /// <param name="cpu">The CPU.</param>
    /// <param name="memory">Guest RAM.</param>
    /// <param name="module">The module's name, for messages.</param>
    /// <param name="capabilities">What to say of the engine; the counters' names are put in here.</param>
    /// <param name="without">For tests: takes away from what /dev/kvm offers.</param>
    /// <exception cref="Win32Exception">The kernel refuses.</exception>
    public HardwareEngine(
        VirtualCpu cpu,
        GuestMemory memory,
        string module,
        EngineCapabilities capabilities,
        Func<KvmCapabilities, KvmCapabilities>? without = null
    )
    {
        _cpu = cpu;
        _memory = memory;
        _module = module;
        KickSignal.Install();
        _machine = new KvmMachine(memory, without);
        try
        {
            _statistics = KvmStatistics.Open(_machine);
        }
        catch
        {
            _machine.Dispose();
            throw;
        }

        Capabilities = capabilities with { KernelStatistics = _statistics?.Names ?? [] };
    }

    /// <inheritdoc/>
    public EngineCapabilities Capabilities { get; }

    /// <inheritdoc/>
    public IEngineClock Clock => HostClock.Instance;

    /// <inheritdoc/>
    public void AttachThread()
    {
        lock (_kickGate)
        {
            _thread = KickSignal.CurrentThread();
        }
    }

    /// <inheritdoc/>
    public void DetachThread()
    {
        lock (_kickGate)
        {
            _thread = 0;
        }
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public VmExit Run()
    {
        if (_failure is { } failure)
        {
            return failure;
        }

        if (TakeKick())
        {
            return new VmExit(VmExitReason.Interrupted);
        }

        if (_held is { } held)
        {
            _held = null;
            return held;
        }

        try
        {
            Prepare();
            while (true)
            {
                int error = _machine.Enter();
                switch (error)
                {
                    case 0:
                        _completes = false;
                        LeaveRegisters();
                        return Classify();

                    case Linux.Eintr:
                        _completes = false;
                        if (TakeKick())
                        {
                            LeaveRegisters();
                            return new VmExit(VmExitReason.Interrupted);
                        }

                        break; // a signal of somebody else's

                    case Linux.Eagain:
                        break;

                    default:
                        return Fail(EntryRefused(error));
                }
            }
        }
        catch (Win32Exception e)
        {
            return Fail(e.Message);
        }
    }

    /// <inheritdoc/>
    public void Kick()
    {
        if (Interlocked.Exchange(ref _kicked, 1) != 0)
        {
            return;
        }

        lock (_kickGate)
        {
            if (_disposed)
            {
                return;
            }

            // Before the signal: it stops an entry that is about to happen, the signal one that has.
            Volatile.Write(ref _machine.Run->ImmediateExit, 1);
            if (_thread != 0)
            {
                KickSignal.Send(_thread);
            }
        }
    }

    /// <inheritdoc/>
    public MapResult Map(in ShadowPage page) =>
        throw new NotSupportedException("guest page tables are the hardware's here");

    /// <inheritdoc/>
    public ulong Deadline { get; set; } = ulong.MaxValue;

    /// <inheritdoc/>
    public void Idle() => throw new NotSupportedException();

    /// <inheritdoc/>
    public void SwitchAddressSpace() { }

    /// <inheritdoc/>
    public void InvalidatePage(ulong address) { }

    /// <inheritdoc/>
    public void Inject(in GuestEvent guestEvent)
    {
        switch (guestEvent.Kind)
        {
            case GuestEventKind.Exception:
                _injected = guestEvent;
                break;
            case GuestEventKind.SoftwareInterrupt:
                break; // RIP is at the instruction, which the hardware executes itself
            default:
                throw new NotSupportedException($"{guestEvent.Kind} events are not injected");
        }
    }

    /// <inheritdoc/>
    public void SaveLazyState()
    {
        if (_injected.Kind != GuestEventKind.None)
        {
            _cpu.PendingEvent = _injected; // a kick came before the entry
            _injected = default;
        }

        if (_loadState || _failure is not null)
        {
            return; // the core's is the newest there is
        }

        try
        {
            if (Complete())
            {
                LeaveRegisters();
            }

            KvmState.Save(_cpu, _machine);
        }
        catch (Win32Exception e)
        {
            _ = Fail(e.Message);
        }
    }

    /// <inheritdoc/>
    public void LoadLazyState()
    {
        Discard();
        _loadState = true;
        _failure = null;
    }

    /// <inheritdoc/>
    public void ReadKernelStatistics(Span<ulong> values) => _statistics?.Read(values);

    /// <inheritdoc/>
    public void Dispose()
    {
        lock (_kickGate)
        {
            if (_disposed)
            {
                return;
            }

            _disposed = true;
            _statistics?.Dispose();
            _machine.Dispose();
        }
    }

    // ------------------------------------------------------------------------------------------------ entry

    /// <summary>Everything that the core has changed goes to the kernel; usually nothing.</summary>
    private void Prepare()
    {
        if (_loadState)
        {
            KvmState.Load(_cpu, _machine);
            EnterRegisters();
            _loadState = false;
        }
        else if (RegistersChanged())
        {
            Discard();
            EnterRegisters();
        }

        if (_injected.Kind != GuestEventKind.None)
        {
            Discard();
            KvmState.Inject(_injected, _machine);
            _injected = default;
        }
    }

    /// <summary>
    /// Finishes the instruction whose I/O the core has done, without entering the guest: KVM does that at the next entry, and
    /// until then registers are in between. What the instruction has still to do is held back for the next <see cref="Run"/>.
    /// </summary>
    /// <returns>Whether there was something to finish.</returns>
    private bool Complete()
    {
        if (!_completes || _held is not null)
        {
            return false;
        }

        _completes = false;
        Volatile.Write(ref _machine.Run->ImmediateExit, 1);
        int error = _machine.Enter();
        Volatile.Write(ref _machine.Run->ImmediateExit, 0);
        Interlocked.MemoryBarrier();
        if (Volatile.Read(ref _kicked) != 0)
        {
            Volatile.Write(ref _machine.Run->ImmediateExit, 1); // a kick of meanwhile: its own may be overwritten
        }

        if (error == 0)
        {
            _held = Classify(); // the instruction has more to do
        }

        return true;
    }

    /// <summary>Gets the instruction that the guest is in over with, whatever it does: the core has other plans for the guest.</summary>
    private void Discard()
    {
        do
        {
            _held = null;
        } while (Complete());
    }

    /// <summary>
    /// Whether there was a kick since the last time. A kick first notes itself and then asks for an immediate exit; here it is
    /// the other way round, so that one that comes in between is seen here or at the next entry.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool TakeKick()
    {
        if (Volatile.Read(ref _kicked) == 0 && Volatile.Read(ref _machine.Run->ImmediateExit) == 0)
        {
            return false;
        }

        Volatile.Write(ref _machine.Run->ImmediateExit, 0);
        return Interlocked.Exchange(ref _kicked, 0) != 0;
    }

    // struct kvm_regs has its first eight registers in another order than GuestRegisters; from R8 on, RIP and RFLAGS
    // included, the two are the same.
    private const int Reordered = 8;
    private const int RegisterCount = 18;

    /// <summary>
    /// Compares with what the last exit left in the shared page: KVM reads that only when told that it is dirty.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool RegistersChanged()
    {
        ulong* ours = (ulong*)_cpu.Registers;
        Kvm.Regs* shared = &_machine.Run->Regs;
        ulong differs =
            (ours[Gpr.Rax] ^ shared->Rax)
            | (ours[Gpr.Rcx] ^ shared->Rcx)
            | (ours[Gpr.Rdx] ^ shared->Rdx)
            | (ours[Gpr.Rbx] ^ shared->Rbx)
            | (ours[Gpr.Rsp] ^ shared->Rsp)
            | (ours[Gpr.Rbp] ^ shared->Rbp)
            | (ours[Gpr.Rsi] ^ shared->Rsi)
            | (ours[Gpr.Rdi] ^ shared->Rdi);
        Vector128<ulong> rest = Vector128<ulong>.Zero;
        for (int i = Reordered; i < RegisterCount; i += Vector128<ulong>.Count)
        {
            rest |= Vector128.Load(ours + i) ^ Vector128.Load((ulong*)shared + i);
        }

        return differs != 0 || rest != Vector128<ulong>.Zero;
    }

    private void EnterRegisters()
    {
        ulong* ours = (ulong*)_cpu.Registers;
        Kvm.Regs* shared = &_machine.Run->Regs;
        shared->Rax = ours[Gpr.Rax];
        shared->Rcx = ours[Gpr.Rcx];
        shared->Rdx = ours[Gpr.Rdx];
        shared->Rbx = ours[Gpr.Rbx];
        shared->Rsp = ours[Gpr.Rsp];
        shared->Rbp = ours[Gpr.Rbp];
        shared->Rsi = ours[Gpr.Rsi];
        shared->Rdi = ours[Gpr.Rdi];
        for (int i = Reordered; i < RegisterCount; i += Vector128<ulong>.Count)
        {
            Vector128.Store(Vector128.Load(ours + i), (ulong*)shared + i);
        }

        if (_machine.Capabilities.SyncRegs)
        {
            _machine.Run->DirtyRegs = Kvm.SyncX86Regs;
        }
        else
        {
            _machine.Vcpu(Kvm.SetRegs, ref *shared, "KVM_SET_REGS");
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void LeaveRegisters()
    {
        ulong* ours = (ulong*)_cpu.Registers;
        Kvm.Regs* shared = &_machine.Run->Regs;
        if (!_machine.Capabilities.SyncRegs)
        {
            _machine.Vcpu(Kvm.GetRegs, ref *shared, "KVM_GET_REGS");
        }

        ours[Gpr.Rax] = shared->Rax;
        ours[Gpr.Rcx] = shared->Rcx;
        ours[Gpr.Rdx] = shared->Rdx;
        ours[Gpr.Rbx] = shared->Rbx;
        ours[Gpr.Rsp] = shared->Rsp;
        ours[Gpr.Rbp] = shared->Rbp;
        ours[Gpr.Rsi] = shared->Rsi;
        ours[Gpr.Rdi] = shared->Rdi;
        for (int i = Reordered; i < RegisterCount; i += Vector128<ulong>.Count)
        {
            Vector128.Store(Vector128.Load((ulong*)shared + i), ours + i);
        }
    }

    // ------------------------------------------------------------------------------------------------ exit

    private VmExit Classify()
    {
        Kvm.RunPage* run = _machine.Run;
        switch (run->ExitReason)
        {
            case Kvm.ExitIo:
                _completes = true;
                return new VmExit(
                    VmExitReason.PortIo,
                    Address: run->Io.Port,
                    Access: run->Io.Direction == Kvm.ExitIoOut ? PageAccess.Write : PageAccess.Read,
                    Size: run->Io.Size,
                    Count: run->Io.Count,
                    Data: (nint)run + (nint)run->Io.DataOffset
                );

            case Kvm.ExitMmio:
                _completes = true;
                return new VmExit(
                    VmExitReason.Mmio,
                    Address: run->Mmio.PhysAddr,
                    Access: run->Mmio.IsWrite != 0 ? PageAccess.Write : PageAccess.Read,
                    Size: (byte)run->Mmio.Len,
                    Data: (nint)run->Mmio.Data
                );

            case Kvm.ExitX86Rdmsr
            or Kvm.ExitX86Wrmsr:
                _completes = true;
                run->Msr.Error = 1; // #GP(0): the platform does not have it
                return new VmExit(
                    VmExitReason.ModelSpecificRegister,
                    Address: run->Msr.Index,
                    Access: run->ExitReason == Kvm.ExitX86Wrmsr ? PageAccess.Write : PageAccess.Read
                );

            case Kvm.ExitHlt:
                return new VmExit(VmExitReason.Halt);

            case Kvm.ExitSetTpr:
                return new VmExit(VmExitReason.TaskPriority);

            case Kvm.ExitShutdown:
                return Fail(KvmFailure.Shutdown(_cpu));

            case Kvm.ExitInternalError:
                KvmState.Save(_cpu, _machine);
                return Fail(KvmFailure.InternalError(run->InternalError.Suberror, _cpu, _memory, _module));

            case Kvm.ExitFailEntry:
                return Fail(
                    $"{_module} could not enter the guest at RIP 0x{_cpu.Rip:X}: hardware reason 0x{run->HardwareExitReason:X}"
                );

            default:
                return Fail(
                    $"{_module} came back with exit reason {run->ExitReason}, which is not handled; RIP 0x{_cpu.Rip:X}"
                );
        }
    }

    private static string EntryRefused(int error) =>
        error == Linux.Efault
            ? "the host has no memory for a page of the guest (KVM_RUN: EFAULT)"
            : $"KVM_RUN: {new Win32Exception(error).Message}";

    private VmExit Fail(string message)
    {
        var exit = new VmExit(VmExitReason.Failed, Message: message);
        _failure = exit;
        return exit;
    }
}
