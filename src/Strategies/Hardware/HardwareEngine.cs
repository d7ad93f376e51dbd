using System.ComponentModel;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using System.Runtime.Versioning;
using VirtBench.Strategies.Native;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;

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
    private readonly KernelInterrupts? _kernelInterrupts;
    private readonly Lock _kickGate = new();
    private readonly string _module;
    private readonly int[] _kickWord = GC.AllocateArray<int>(16, pinned: true);
    private readonly int* _kicked; // into it: a futex, which Idle waits on
    private int _thread;
    private int _timerSlack;
    private VcpuTimer? _timer;
    private ulong _deadline = ulong.MaxValue;
    private ulong _timerSet = ulong.MaxValue; // what the timer was last set to and will still fire for
    private long _grace = FirstGrace;
    private bool _loadState = true;
    private bool _completes;
    private bool _disposed;
    private bool _dropTranslations;
    private bool _entered;
    private readonly bool _nestedPaging;
    private ulong _clock; // guest-physical address of the paravirtual clock that KVM is to keep; 0 for none
    private (ulong Address, ulong TscOffset) _clockKept;
    private GuestEvent _injected;
    private readonly HashSet<ulong> _hypercallEnds = []; // empty where the guest is not offered the interface
    private readonly bool _keepsClock;
    private VmExit? _held;
    private VmExit? _failure;

    /// <summary>Creates the VM.</summary>
    /// <param name="cpu">The CPU.</param>
    /// <param name="memory">Guest RAM.</param>
    /// <param name="module">The module's name, for messages.</param>
    /// <param name="capabilities">What to say of the engine; the counters' names are put in here.</param>
    /// <param name="keepsClock">KVM may keep the paravirtual clock of a guest.</param>
    /// <param name="without">For tests: takes away from what /dev/kvm offers.</param>
    /// <param name="kernelInterrupts">Interrupt controllers and timer are the kernel's, see <see cref="KernelInterrupts"/>.</param>
    /// <param name="nestedPaging">KVM is known to keep no shadow page tables.</param>
    /// <exception cref="Win32Exception">The kernel refuses.</exception>
    public HardwareEngine(
        VirtualCpu cpu,
        GuestMemory memory,
        string module,
        EngineCapabilities capabilities,
        bool keepsClock = false,
        Func<KvmCapabilities, KvmCapabilities>? without = null,
        bool kernelInterrupts = false,
        bool nestedPaging = false
    )
    {
        _cpu = cpu;
        _memory = memory;
        _module = module;
        _keepsClock = keepsClock;
        _nestedPaging = nestedPaging;
        _kicked = (int*)Unsafe.AsPointer(ref MemoryMarshal.GetArrayDataReference(_kickWord));
        KickSignal.Install();
        _machine = new KvmMachine(memory, without, kernelInterrupts);
        _kernelInterrupts = kernelInterrupts ? new KernelInterrupts(_machine) : null;
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
    public IKernelInterrupts? KernelInterrupts => _kernelInterrupts;

    /// <inheritdoc/>
    public void AttachThread()
    {
        lock (_kickGate)
        {
            _thread = KickSignal.CurrentThread();
        }

        // How late a wait may end, which is 50 µs unless one asks for less.
        _timerSlack = (int)Linux.Syscall(Linux.SysPrctl, PrGetTimerslack);
        _ = Linux.Syscall(Linux.SysPrctl, PrSetTimerslack, 1);
    }

    /// <inheritdoc/>
    public void DetachThread()
    {
        _timer?.Dispose();
        _timer = null;
        _timerSet = ulong.MaxValue;
        if (_timerSlack > 0)
        {
            _ = Linux.Syscall(Linux.SysPrctl, PrSetTimerslack, _timerSlack);
        }

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
                if (_deadline < _timerSet)
                {
                    SetTimer();
                }

                int error = _machine.Enter();
                switch (error)
                {
                    case 0:
                        _completes = false;
                        _machine.Run->RequestInterruptWindow = 0;
                        LeaveRegisters();
                        return Classify();

                    case Linux.Eintr:
                        _completes = false;
                        if (TakeKick() || Clock.Ticks >= _deadline)
                        {
                            _machine.Run->RequestInterruptWindow = 0;
                            LeaveRegisters();
                            return new VmExit(VmExitReason.Interrupted);
                        }

                        break; // a signal of somebody else's, or of a deadline that has been moved

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
        if (Interlocked.Exchange(ref _kickWord[0], 1) != 0)
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

            Linux.SyscallIgnored(Linux.SysFutex, (long)_kicked, FutexWakePrivate, 1);
        }
    }

    /// <inheritdoc/>
    public MapResult Map(in ShadowPage page) =>
        throw new NotSupportedException("guest page tables are the hardware's here");

    /// <inheritdoc/>
    public ulong Deadline
    {
        get => _deadline;
        set
        {
            _deadline = value;
            _grace = FirstGrace;
        }
    }

    /// <inheritdoc/>
    public void Idle()
    {
        while (!TakeKick())
        {
            ulong now = Clock.Ticks;
            if (now >= _deadline)
            {
                return;
            }

            // A kick of meanwhile has changed the word, so that there is nothing to wait for.
            Linux.Timespec wait = VcpuTimer.ToTimespec(NanosecondsTo(_deadline, now));
            _ = Linux.Syscall(
                Linux.SysFutex,
                (long)_kicked,
                FutexWaitPrivate,
                0,
                _deadline == ulong.MaxValue ? 0 : (long)&wait
            );
        }
    }

    /// <inheritdoc/>
    public bool AcceptsInterrupt
    {
        get
        {
            if (_failure is not null || _injected.Kind != GuestEventKind.None)
            {
                return false;
            }

            if (_loadState)
            {
                return (_cpu.Rflags & Rflags.If) != 0 && !_cpu.InterruptShadow;
            }

            // Not in the middle of an instruction, which may yet fault and so take the place of the interrupt.
            if (Complete())
            {
                LeaveRegisters();
            }

            return _held is null && _machine.Run->ReadyForInterruptInjection != 0;
        }
    }

    /// <inheritdoc/>
    public void RequestInterruptWindow() => _machine.Run->RequestInterruptWindow = 1;

    // The guest's own writes of CR3 and INVLPG are the hardware's. These are a hypercall's, or a loader's.

    /// <inheritdoc/>
    public void SwitchAddressSpace() => _dropTranslations = true;

    /// <inheritdoc/>
    public void InvalidatePage(ulong address) => _dropTranslations = true;

    /// <inheritdoc/>
    /// <remarks>
    /// OUT to a port. A VMCALL would not do: KVM answers that itself. From now on a write to the port, which is an ordinary one otherwise, is
    /// a hypercall.
    /// </remarks>
    public int EncodeHypercall(Span<byte> code, ulong end)
    {
        ReadOnlySpan<byte> outEax = [0xE7, (byte)Hypercalls.Port];
        outEax.CopyTo(code);
        _hypercallEnds.Add(end);
        return outEax.Length;
    }

    /// <inheritdoc/>
    public bool ProvideParavirtualClock(ulong address)
    {
        if (address == 0)
        {
            _hypercallEnds.Clear();
        }

        _clock = _keepsClock ? address : 0;
        return _clock != 0;
    }

    /// <inheritdoc/>
    public void Inject(in GuestEvent guestEvent)
    {
        switch (guestEvent.Kind)
        {
            case GuestEventKind.Exception:
            case GuestEventKind.Interrupt:
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
            _timer?.Dispose();
            _statistics?.Dispose();
            _kernelInterrupts?.Dispose();
            _machine.Dispose();
        }
    }

    // Before the first entry nothing is derived from the guest's page tables.
    private void DropTranslations()
    {
        if (_entered && !_nestedPaging)
        {
            _machine.RenewMemory();
        }
        else if (_entered)
        {
            KvmState.DropTranslations(_machine);
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

        if (_dropTranslations)
        {
            _dropTranslations = false;
            DropTranslations();
        }

        _entered = true;

        if (_clockKept != (_clock, _cpu.TscOffset) && (_clock | _clockKept.Address) != 0)
        {
            KvmState.KeepClock(_clock, _machine);
            _clockKept = (_clock, _cpu.TscOffset);
        }

        if (_injected.Kind != GuestEventKind.None)
        {
            Discard();
            if (_injected.Kind == GuestEventKind.Interrupt)
            {
                KvmState.Interrupt(_injected.Number, _machine);
            }
            else
            {
                KvmState.Inject(_injected, _machine);
            }

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
        _timerSet = ulong.MaxValue; // its signal may have been in that
        Interlocked.MemoryBarrier();
        if (Volatile.Read(ref *_kicked) != 0)
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
        if (Volatile.Read(ref *_kicked) == 0 && Volatile.Read(ref _machine.Run->ImmediateExit) == 0)
        {
            return false;
        }

        Volatile.Write(ref _machine.Run->ImmediateExit, 0);
        _timerSet = ulong.MaxValue; // its signal may have been in that
        return Interlocked.Exchange(ref *_kicked, 0) != 0;
    }

    // An entry whose deadline is over has this long at least; longer each time that one deadline has not sufficed to get the
    // guest anywhere, since what comes before its first instruction may take longer than that.
    private const long FirstGrace = 5_000;
    private const long LongestGrace = 10_000_000;

    private const int PrSetTimerslack = 29;
    private const int PrGetTimerslack = 30;
    private const int FutexWaitPrivate = 128;
    private const int FutexWakePrivate = 129;

    /// <summary>Has the guest left at the deadline, if a thread is attached that can be signalled.</summary>
    private void SetTimer()
    {
        if (_thread == 0)
        {
            return;
        }

        _timer ??= new VcpuTimer(_machine.Run);
        ulong now = Clock.Ticks;
        long wait = NanosecondsTo(_deadline, now);
        if (wait <= 0)
        {
            wait = _grace;
            _grace = Math.Min(2 * _grace, LongestGrace);
        }

        _timerSet = _deadline;
        _timer.Set(wait);
    }

    // Rounded up, and no longer than a timer can be set to be: it is set again when it fires too early.
    private long NanosecondsTo(ulong ticks, ulong now)
    {
        const double longest = 1e18;
        return ticks <= now ? 0 : (long)Math.Min(longest, Math.Ceiling((ticks - now) * (1e9 / Clock.TicksPerSecond)));
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
                if (_hypercallEnds.Count > 0 && IsHypercall(run))
                {
                    return LeaveByHypercall();
                }

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

            case Kvm.ExitIrqWindowOpen:
                return new VmExit(VmExitReason.InterruptWindow);

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

    private static bool IsHypercall(Kvm.RunPage* run) =>
        run->Io is { Port: Hypercalls.Port, Direction: Kvm.ExitIoOut, Size: sizeof(uint), Count: 1 };

    // The core goes by the CPL that it knows, which is brought up to date where ring 3 could be behind this: the port is closed to it unless
    // the guest opens it, and the hypercall page is not mapped for it unless the guest does that too.
    private VmExit LeaveByHypercall()
    {
        _ = Complete();
        LeaveRegisters();
        bool certain = _cpu.Cpl == 0 && _hypercallEnds.Contains(_cpu.Rip) && (_cpu.Rflags & Rflags.Iopl) != Rflags.Iopl;
        if (!certain)
        {
            KvmState.Save(_cpu, _machine);
        }

        return new VmExit(VmExitReason.Hypercall);
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
