using System.ComponentModel;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;
using System.Runtime.Versioning;
using VirtBench.Strategies.Native;

namespace VirtBench.Strategies.Carrier;

/// <summary>The carrier has died or its control page makes no sense; the message is one line.</summary>
internal sealed class CarrierException(string message) : Exception(message);

/// <summary>How a carrier is set up.</summary>
internal sealed record CarrierOptions
{
    /// <summary>Make RDTSC fault (PR_SET_TSC).</summary>
    public required bool TrapTimeStampCounter { get; init; }

    /// <summary>Return to the guest by XRSTOR and IRETQ instead of rt_sigreturn.</summary>
    public required bool ReturnByIret { get; init; }

    /// <summary>
    /// Calibration only: let the handler of SIGSEGV skip this many bytes and return without telling the VMM; 0 for no.
    /// </summary>
    public int SkipInstructionLength { get; init; }

    /// <summary>
    /// How long a kicked guest may keep the CPU before its carrier is killed. A guest in its own code stops within
    /// microseconds; one that loops in the stub or has blocked the signal by a forged rt_sigreturn never does.
    /// </summary>
    public TimeSpan KickGrace { get; init; } = DefaultKickGrace;

    /// <summary>Long enough for a host that is out of memory and CPU.</summary>
    public static TimeSpan DefaultKickGrace { get; } = TimeSpan.FromSeconds(5);
}

/// <summary>
/// The VMM's side of one carrier process: spawn, hand-off, batches, kick, death. One thread owns it; only
/// <see cref="Kick"/> and <see cref="ReportDeath"/> come from others.
/// </summary>
[SupportedOSPlatform("linux")]
internal sealed unsafe class CarrierProcess : IDisposable
{
    // About 40 µs of PAUSE on current CPUs: longer than any exit is served, shorter than a scheduler tick.
    private const int SpinCount = 2000;

    // A sleeping VMM looks around this often. No exit needs it; it bounds what a guest that forges the handshake words
    // can make the VMM miss.
    private const int WaitMilliseconds = 100;

    private static readonly int[] SynchronousSignals =
    [
        Linux.SigSegv,
        Linux.SigIll,
        Linux.SigTrap,
        Linux.SigFpe,
        Linux.SigBus,
        Linux.SigSys,
    ];

    private readonly Lock _gate = new();
    private readonly int _controlFd;
    private readonly int _pid;
    private readonly byte* _shared;
    private readonly int _spin;
    private readonly long _kickGraceMilliseconds;
    private int _batchCount;
    private bool _kickUnanswered;
    private bool _killedForSilence;
    private bool _disposed;

    /// <summary>Starts a carrier over guest RAM, sets it up and confines it.</summary>
    /// <exception cref="Win32Exception">The kernel refuses one of the steps.</exception>
    /// <exception cref="CarrierException">The process died on the way.</exception>
    public CarrierProcess(int ramFd, CarrierOptions options)
    {
        _spin = CarrierPlacement.AllowedCpus.Count > 1 ? SpinCount : 0; // with one CPU spinning only delays the other side
        _kickGraceMilliseconds = (long)options.KickGrace.TotalMilliseconds;
        PidFd = -1;
        _controlFd = Linux.CreateSealedMemfd("virtbench-control", CarrierLayout.ControlFileSize);
        try
        {
            _shared = Linux.MapSharedMemory(_controlFd, CarrierLayout.ControlFileSize, "the carrier's control memory");
            CarrierStub.Instance.Code.CopyTo(new Span<byte>(_shared, (int)CarrierLayout.StubSize));
            Control = (ControlPage*)(_shared + CarrierLayout.ControlFileOffset);
            RegisterFile = _shared + CarrierLayout.RegisterFileFileOffset;
            Control->Magic = ControlPage.MagicValue;
            Control->SpinCount = (uint)_spin;
            Control->ReturnByIret = options.ReturnByIret ? 1u : 0;
            _pid = CarrierSpawner.Spawn(_controlFd, ramFd);
            PidFd = (int)Linux.Syscall(Linux.SysPidfdOpen, _pid);
            if (PidFd < 0)
            {
                int error = -PidFd;
                throw new Win32Exception(error, $"pidfd_open: {new Win32Exception(error).Message}");
            }

            CarrierWatcher.Add(this);
            if (CarrierPlacement.CarrierCpu >= 0)
            {
                CarrierPlacement.Pin(_pid, CarrierPlacement.CarrierCpu);
            }

            WaitForExit();
            SetUp(options);
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>The control page.</summary>
    public ControlPage* Control { get; }

    /// <summary>The register file: hand-made frame and signal stack.</summary>
    public byte* RegisterFile { get; }

    /// <summary>Descriptor that becomes readable when the process ends.</summary>
    public int PidFd { get; private set; }

    /// <summary>Process id, for tests and messages.</summary>
    public int ProcessId => _pid;

    // ------------------------------------------------------------------------------------------------ hand-off

    /// <summary>Hands over to the carrier. The exchange is the full fence that orders it before the look at CarrierSleeps.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Post(uint state)
    {
        _ = Interlocked.Exchange(ref Control->State, state);
        if (Volatile.Read(ref Control->CarrierSleeps) != 0)
        {
            Linux.SyscallIgnored(Linux.SysFutex, (long)&Control->State, Linux.FutexWake, 1);
        }
    }

    /// <summary>Waits until the carrier has stopped: spins, then sleeps.</summary>
    /// <exception cref="CarrierException">The process is gone.</exception>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public void WaitForExit()
    {
        ControlPage* control = Control;
        for (int i = _spin; i >= 0; i--)
        {
            if (Volatile.Read(ref control->State) == CarrierState.Exited)
            {
                return;
            }

            X86Base.Pause();
        }

        SleepUntilExit(control);
    }

    // Whether the carrier lives is for the watcher to say: State lies in memory that the guest can write.
    private void SleepUntilExit(ControlPage* control)
    {
        long silentSince = -1;
        Linux.Timespec timeout = new() { Nanoseconds = WaitMilliseconds * 1_000_000L };
        for (; ; )
        {
            _ = Interlocked.Exchange(ref control->VmmSleeps, 1);
            uint seen = Volatile.Read(ref control->State);
            if (seen == CarrierState.Exited)
            {
                Volatile.Write(ref control->VmmSleeps, 0);
                return;
            }

            if (Volatile.Read(ref _dead))
            {
                throw new CarrierException(DescribeDeath());
            }

            _ = Linux.Syscall(Linux.SysFutex, (long)&control->State, Linux.FutexWait, seen, (long)&timeout);
            if (Volatile.Read(ref _kickUnanswered))
            {
                KillWhenSilent(ref silentSince);
            }
        }
    }

    private void KillWhenSilent(ref long since)
    {
        long now = Environment.TickCount64;
        if (since < 0)
        {
            since = now;
        }
        else if (now - since >= _kickGraceMilliseconds && !_killedForSilence)
        {
            _killedForSilence = true;
            _ = Linux.Syscall(Linux.SysPidfdSendSignal, PidFd, Linux.SigKill);
        }
    }

    /// <summary>Stops a running guest soon, or makes its next resume come straight back. Any thread.</summary>
    public void Kick()
    {
        lock (_gate)
        {
            if (!_disposed)
            {
                Volatile.Write(ref _kickUnanswered, true);
                _ = Linux.Syscall(Linux.SysPidfdSendSignal, PidFd, Linux.SigUsr1);
            }
        }
    }

    /// <summary>The VMM has seen the exit that a kick leads to.</summary>
    public void KickAnswered() => Volatile.Write(ref _kickUnanswered, false);

    // ------------------------------------------------------------------------------------------------ batches

    /// <summary>System calls queued for the carrier.</summary>
    public int PendingCalls => _batchCount;

    /// <summary>Queues a system call. The caller keeps below <see cref="CarrierLayout.BatchCapacity"/>.</summary>
    public void Queue(long number, ulong a0 = 0, ulong a1 = 0, ulong a2 = 0, ulong a3 = 0, ulong a4 = 0, ulong a5 = 0)
    {
        var entry = (BatchEntry*)((byte*)Control + CarrierLayout.BatchOffset) + _batchCount++;
        entry->Number = number;
        entry->A0 = a0;
        entry->A1 = a1;
        entry->A2 = a2;
        entry->A3 = a3;
        entry->A4 = a4;
        entry->A5 = a5;
        entry->Result = 0;
    }

    /// <summary>Resumes the guest, making the queued calls first.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Resume()
    {
        if (_batchCount == 0)
        {
            Post(CarrierState.Run);
            return;
        }

        Control->BatchCount = _batchCount;
        _batchCount = 0;
        Post(CarrierState.BatchThenRun);
    }

    /// <summary>Makes the queued calls and comes back.</summary>
    /// <exception cref="Win32Exception">One of them failed.</exception>
    public void Flush()
    {
        Control->BatchCount = _batchCount;
        _batchCount = 0;
        Post(CarrierState.Batch);
        WaitForExit();
        if (Control->Signal == CarrierReport.BatchFailed)
        {
            throw BatchFailure();
        }
    }

    /// <summary>Which call of the last batch failed, and why.</summary>
    public Win32Exception BatchFailure()
    {
        var entry = (BatchEntry*)((byte*)Control + CarrierLayout.BatchOffset);
        int count = Math.Clamp(Control->BatchCount, 0, CarrierLayout.BatchCapacity);
        for (int i = 0; i < count; i++)
        {
            if (entry[i].Result is < 0 and > -4096)
            {
                int error = (int)-entry[i].Result;
                return new Win32Exception(
                    error,
                    $"the carrier's system call {entry[i].Number} on 0x{entry[i].A0:X} failed: {new Win32Exception(error).Message}"
                );
            }
        }

        return new Win32Exception("a system call of the carrier failed");
    }

    private void Call(long number, ulong a0 = 0, ulong a1 = 0, ulong a2 = 0, ulong a3 = 0, ulong a4 = 0, ulong a5 = 0)
    {
        Queue(number, a0, a1, a2, a3, a4, a5);
        Flush();
    }

    // ------------------------------------------------------------------------------------------------ set-up

    // What the page tables of RAM that is mapped over and over may cost the host: 1/512 of it.
    private const ulong AddressSpaceLimit = 1UL << 40;

    private static ulong ScratchAddress => CarrierLayout.Control + CarrierLayout.ScratchOffset;

    private byte* Scratch => (byte*)Control + CarrierLayout.ScratchOffset;

    private void SetUp(CarrierOptions options)
    {
        // A process group of its own: a terminal's Ctrl-C is for the VMM, which may want the guest to go on for a while.
        Call(Linux.SysSetpgid);

        // No descriptor but guest RAM's, no core dump of guest memory, nothing mapped but the window.
        Call(Linux.SysCloseRange, CarrierLayout.RamFd + 1, uint.MaxValue);
        Call(Linux.SysCloseRange, 0, CarrierLayout.ControlFd);
        SetLimit(Linux.RlimitCore, 0);
        SetLimit(Linux.RlimitAs, AddressSpaceLimit);
        Call(Linux.SysMunmap, 0, CarrierLayout.Window);
        Call(Linux.SysMunmap, CarrierLayout.WindowEnd, CarrierLayout.TaskEnd - CarrierLayout.WindowEnd);

        SetSignalStack();
        foreach (int signal in SynchronousSignals)
        {
            SetHandler(signal, CarrierStub.Instance.HandlerAddress, Linux.SaNodefer);
        }

        if (options.SkipInstructionLength != 0)
        {
            Control->SkipLength = (ulong)options.SkipInstructionLength;
            CarrierStub stub = CarrierStub.Instance;
            SetHandler(
                Linux.SigSegv,
                options.ReturnByIret ? stub.SkipByIretAddress : stub.SkipAddress,
                Linux.SaNodefer
            );
        }

        SetHandler(Linux.SigUsr1, CarrierStub.Instance.KickAddress, flags: 0);
        *(ulong*)Scratch = 0;
        Call(
            Linux.SysRtSigprocmask,
            2 /* SIG_SETMASK */
            ,
            ScratchAddress,
            0,
            8
        );
        if (options.TrapTimeStampCounter)
        {
            Call(Linux.SysPrctl, Linux.PrSetTsc, Linux.PrTscSigsegv);
        }

        BuildFirstFrame();
        DispatchSystemCalls();
        Confine();
    }

    // struct rlimit64 { soft, hard }
    private void SetLimit(int resource, ulong limit)
    {
        var limits = (ulong*)Scratch;
        limits[0] = limits[1] = limit;
        Call(Linux.SysPrlimit64, 0, (ulong)resource, ScratchAddress);
    }

    // stack_t { void *ss_sp; int ss_flags; size_t ss_size }. No SS_AUTODISARM: the return by IRETQ could not re-arm it.
    private void SetSignalStack()
    {
        var stack = (ulong*)Scratch;
        stack[0] = CarrierLayout.RegisterFile + CarrierLayout.SignalStackOffset;
        stack[1] = 0;
        stack[2] = CarrierLayout.RegisterFileSize - CarrierLayout.SignalStackOffset;
        Call(Linux.SysSigaltstack, ScratchAddress);
    }

    // struct kernel_sigaction { handler, flags, restorer, mask }. The mask is empty and the synchronous signals are not
    // deferred: nothing on the way back by IRETQ would restore another mask. The kick handler sees to its own.
    private void SetHandler(int signal, ulong handler, ulong flags)
    {
        var action = (ulong*)Scratch;
        action[0] = handler;
        action[1] = Linux.SaSiginfo | Linux.SaOnstack | Linux.SaRestorer | flags;
        action[2] = CarrierStub.Instance.SignalReturnAddress;
        action[3] = 0;
        Call(Linux.SysRtSigaction, (ulong)signal, ScratchAddress, 0, 8);
    }

    // Nothing has trapped yet, so the frame that the first resume returns from is made by hand.
    private void BuildFirstFrame()
    {
        new Span<byte>(RegisterFile, (int)CarrierLayout.SignalStackOffset).Clear();
        var context = (SignalContext*)(RegisterFile + CarrierLayout.FirstFrameOffset);
        context->Flags = 6; // UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
        context->StackPointer = CarrierLayout.RegisterFile + CarrierLayout.SignalStackOffset;
        context->StackSize = CarrierLayout.RegisterFileSize - CarrierLayout.SignalStackOffset;
        context->Eflags = 0x202;
        context->Cs = UserCodeSelector;
        context->Ss = UserDataSelector;
        context->FpuState = CarrierLayout.RegisterFile + CarrierLayout.FirstFpuOffset;

        byte* fpu = RegisterFile + CarrierLayout.FirstFpuOffset;
        *(ushort*)fpu = 0x37F;
        *(uint*)(fpu + 24) = 0x1F80;
        *(uint*)(fpu + FpuFrame.FeaturesLow) = FpuFrame.X87AndSse;
        *(ulong*)(fpu + FpuFrame.LegacySize) = FpuFrame.X87AndSse; // XSTATE_BV
        Control->Ucontext = CarrierLayout.RegisterFile + CarrierLayout.FirstFrameOffset;
    }

    /// <summary>Linux's ring-3 64-bit code selector (__USER_CS).</summary>
    public const ushort UserCodeSelector = 0x33;

    /// <summary>Linux's ring-3 data selector (__USER_DS).</summary>
    public const ushort UserDataSelector = 0x2B;

    // System calls from outside the stub raise SIGSYS. The seccomp filter would see to that alone, but it is not asked about
    // uretprobe and uprobe (Linux 6.14 and later). Syscall user dispatch exists since Linux 5.11; without it there are no
    // such calls either, so that it fails does not matter.
    private void DispatchSystemCalls()
    {
        Queue(
            Linux.SysPrctl,
            Linux.PrSetSyscallUserDispatch,
            Linux.PrSysDispatchOn,
            CarrierLayout.Stub,
            CarrierLayout.StubSize
        );
        Control->BatchCount = _batchCount;
        _batchCount = 0;
        Post(CarrierState.Batch);
        WaitForExit();
    }

    // struct sock_fprog { unsigned short len; struct sock_filter *filter }
    private void Confine()
    {
        IReadOnlyList<BpfInstruction> program = SeccompFilter.Program;
        *(ulong*)Scratch = (ulong)program.Count;
        *(ulong*)(Scratch + 8) = ScratchAddress + 16;
        for (int i = 0; i < program.Count; i++)
        {
            ((BpfInstruction*)(Scratch + 16))[i] = program[i];
        }

        Call(Linux.SysPrctl, Linux.PrSetNoNewPrivs, 1);
        Call(Linux.SysSeccomp, Linux.SeccompSetModeFilter, Linux.SeccompFilterFlagSpecAllow, ScratchAddress);
    }

    // ------------------------------------------------------------------------------------------------ death

    private bool _dead;

    /// <summary>True when the process has ended; does not wait.</summary>
    public bool HasEnded()
    {
        Linux.PollFd poll = new() { Fd = PidFd, Events = Linux.PollIn };
        return Linux.Poll(&poll, 1, 0) == 1;
    }

    /// <summary>Called by the watcher: ends a wait that would otherwise never end.</summary>
    public void ReportDeath()
    {
        Volatile.Write(ref _dead, true);
        _ = Interlocked.Exchange(ref Control->State, CarrierState.Dead);
        Linux.SyscallIgnored(Linux.SysFutex, (long)&Control->State, Linux.FutexWake, 1);
    }

    private string DescribeDeath()
    {
        int status = Reap();
        int signal = status & 0x7F;
        return _killedForSilence
                ? "the guest did not stop when it was interrupted and its carrier process was killed: it ran in the monitor "
                    + $"window at 0x{CarrierLayout.Window:X} or blocked the interruption there"
            : signal != 0 ? $"the carrier process was killed by signal {signal}"
            : $"the carrier process ended by itself with status {(status >> 8) & 0xFF}";
    }

    private bool _reaped;
    private int _waitStatus;

    private int Reap()
    {
        if (!_reaped)
        {
            int status = 0;
            while (Linux.Waitpid(_pid, &status, 0) < 0)
            {
                if (System.Runtime.InteropServices.Marshal.GetLastPInvokeError() != Linux.Eintr)
                {
                    break;
                }
            }

            _waitStatus = status;
            _reaped = true;
        }

        return _waitStatus;
    }

    /// <summary>Kills the process, reaps it and gives its memory back.</summary>
    public void Dispose()
    {
        lock (_gate)
        {
            if (_disposed)
            {
                return;
            }

            _disposed = true;
        }

        if (PidFd >= 0)
        {
            CarrierWatcher.Remove(this);
        }

        if (_pid > 0 && !_reaped)
        {
            // Not reaped, so the number is still this child's.
            _ = Linux.Syscall(Linux.SysKill, _pid, Linux.SigKill);
            _ = Reap();
        }

        if (PidFd >= 0)
        {
            _ = Linux.Close(PidFd);
        }

        if (_shared is not null)
        {
            _ = Linux.Munmap((nint)_shared, (nuint)CarrierLayout.ControlFileSize);
        }

        _ = Linux.Close(_controlFd);
    }
}
