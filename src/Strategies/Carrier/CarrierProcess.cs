using System.ComponentModel;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;
using System.Runtime.Versioning;
using VirtBench.Strategies.Native;
using VirtBench.Vmm.Execution;

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
    private readonly VcpuMemory? _ownMemory;
    private readonly int _pid;
    private readonly int _spin;
    private readonly long _kickGraceMilliseconds;
    private int _batchCount;
    private (long Number, ulong Start, ulong Length) _lastQueued; // here, since the batch is in memory that the guest can write
    private bool _kickUnanswered;
    private bool _killedForSilence;
    private bool _disposed;

    /// <summary>Starts a carrier that shares its memory with no other.</summary>
    /// <inheritdoc cref="CarrierProcess(VcpuMemory, int, int, CarrierOptions)"/>
    public CarrierProcess(int ramFd, CarrierOptions options)
        : this(new VcpuMemory(), 0, ramFd, options, owner: true) { }

    /// <summary>Starts a carrier over guest RAM, sets it up and confines it.</summary>
    /// <param name="vcpu">What the carriers of a vCPU share; outlives this one.</param>
    /// <param name="slot">Which control area is this one's; no other carrier has it now.</param>
    /// <param name="ramFd">Guest RAM.</param>
    /// <param name="options">How it is set up.</param>
    /// <exception cref="Win32Exception">The kernel refuses one of the steps.</exception>
    /// <exception cref="CarrierException">The process died on the way.</exception>
    public CarrierProcess(VcpuMemory vcpu, int slot, int ramFd, CarrierOptions options)
        : this(vcpu, slot, ramFd, options, owner: false) { }

    private CarrierProcess(VcpuMemory vcpu, int slot, int ramFd, CarrierOptions options, bool owner)
    {
        _ownMemory = owner ? vcpu : null;
        Slot = slot;
        _spin = CarrierPlacement.AllowedCpus.Count > 1 ? SpinCount : 0; // with one CPU spinning only delays the other side
        _kickGraceMilliseconds = (long)options.KickGrace.TotalMilliseconds;
        PidFd = -1;
        try
        {
            byte* control = vcpu.ControlArea(slot);
            new Span<byte>(control, (int)CarrierLayout.ControlSize).Clear(); // a carrier before this one may have used it
            Control = (ControlPage*)control;
            RegisterFile = vcpu.RegisterFile;
            Control->Magic = ControlPage.MagicValue;
            Control->SpinCount = (uint)_spin;
            Control->ReturnByIret = options.ReturnByIret ? 1u : 0;
            Control->Ucontext = vcpu.AddressOf(vcpu.FirstFrame);
            _pid = CarrierSpawner.Spawn(vcpu.FileDescriptor, slot, vcpu.CodeCacheSize, ramFd);
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
            SetUp(options, vcpu.CodeCacheSize);
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>Which of the vCPU's control areas is this carrier's.</summary>
    public int Slot { get; }

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

    /// <summary>
    /// The guest goes on in another carrier: this one wakes it, on the core that they share, and sleeps. When it sleeps already, the
    /// other is woken from here.
    /// </summary>
    /// <param name="next">The other carrier.</param>
    /// <param name="state">What it is told.</param>
    private void SwitchTo(CarrierProcess next, uint state)
    {
        if (Volatile.Read(ref Control->CarrierSleeps) != 0 || Volatile.Read(ref _dead))
        {
            next.Post(state);
            return;
        }

        _ = Interlocked.Exchange(ref next.Control->State, state);
        ulong word = CarrierLayout.Peers + ((ulong)next.Slot * CarrierLayout.ControlSize);
        Control->Peer = Volatile.Read(ref next.Control->CarrierSleeps) != 0 ? word : 0;
        Post(CarrierState.Switch);
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

        _ = SleepUntilExit(control, ulong.MaxValue);
    }

    /// <summary>As <see cref="WaitForExit()"/>, but not beyond a time.</summary>
    /// <param name="deadline">In ticks of <see cref="HostClock"/>.</param>
    /// <returns>False when the time is over and the carrier has not stopped.</returns>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public bool WaitForExit(ulong deadline)
    {
        ControlPage* control = Control;
        for (int i = _spin; i >= 0; i--)
        {
            if (Volatile.Read(ref control->State) == CarrierState.Exited)
            {
                return true;
            }

            if (HostClock.Instance.Ticks >= deadline)
            {
                return false;
            }

            X86Base.Pause();
        }

        return SleepUntilExit(control, deadline);
    }

    // Whether the carrier lives is for the watcher to say: State lies in memory that the guest can write.
    private bool SleepUntilExit(ControlPage* control, ulong deadline)
    {
        const long slice = WaitMilliseconds * 1_000_000L;
        long silentSince = -1;
        for (; ; )
        {
            _ = Interlocked.Exchange(ref control->VmmSleeps, 1);
            uint seen = Volatile.Read(ref control->State);
            if (seen == CarrierState.Exited)
            {
                Volatile.Write(ref control->VmmSleeps, 0);
                return true;
            }

            if (Volatile.Read(ref _dead))
            {
                throw new CarrierException(DescribeDeath());
            }

            long left = deadline == ulong.MaxValue ? slice : NanosecondsUntil(deadline);
            if (left <= 0)
            {
                Volatile.Write(ref control->VmmSleeps, 0);
                return false;
            }

            Linux.Timespec timeout = new() { Nanoseconds = Math.Min(left, slice) };
            long result = Linux.Syscall(Linux.SysFutex, (long)&control->State, Linux.FutexWait, seen, (long)&timeout);
            if (result == -Linux.Etimedout && left >= slice && Volatile.Read(ref control->CarrierSleeps) != 0)
            {
                // Its peer may have died before it could wake it.
                Linux.SyscallIgnored(Linux.SysFutex, (long)&control->State, Linux.FutexWake, 1);
            }

            if (Volatile.Read(ref _kickUnanswered))
            {
                KillWhenSilent(ref silentSince);
            }
        }
    }

    /// <summary>Nanoseconds until the host's clock shows so many ticks; at most some hours, 0 or less when it has.</summary>
    public static long NanosecondsUntil(ulong deadline)
    {
        const long longest = 10_000L * 1_000_000_000;
        long ticks = (long)Math.Min(deadline, long.MaxValue) - (long)HostClock.Instance.Ticks;
        return ticks <= 0 ? 0 : (long)Math.Clamp(ticks * (1e9 / HostClock.Instance.TicksPerSecond), 1, longest);
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
        _lastQueued = (number, a0, a1);
        entry->Number = number;
        entry->A0 = a0;
        entry->A1 = a1;
        entry->A2 = a2;
        entry->A3 = a3;
        entry->A4 = a4;
        entry->A5 = a5;
        entry->Result = 0;
    }

    /// <summary>
    /// Lets the call queued last, when it unmaps the neighbourhood, unmap this too: for a guest that changes one page-table entry after
    /// the other.
    /// </summary>
    /// <returns>False when that is not what was queued last.</returns>
    public bool TryExtendUnmap(ulong start, ulong end)
    {
        if (_batchCount == 0 || _lastQueued.Number != Linux.SysMunmap)
        {
            return false;
        }

        ulong first = _lastQueued.Start;
        ulong behind = first + _lastQueued.Length;
        if (end != first && start != behind)
        {
            return false;
        }

        _batchCount--;
        Queue(Linux.SysMunmap, Math.Min(first, start), behind - first + (end - start));
        return true;
    }

    /// <summary>Resumes the guest, making the queued calls first.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Resume()
    {
        Post(TakeRunCommand());
    }

    /// <summary>As <see cref="Resume()"/>, when another carrier of the vCPU has run the guest until now.</summary>
    public void ResumeAfter(CarrierProcess last) => last.SwitchTo(this, TakeRunCommand());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private uint TakeRunCommand()
    {
        if (_batchCount == 0)
        {
            return CarrierState.Run;
        }

        Control->BatchCount = _batchCount;
        _batchCount = 0;
        return CarrierState.BatchThenRun;
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

    private void SetUp(CarrierOptions options, int codeCacheSize)
    {
        // A process group of its own: a terminal's Ctrl-C is for the VMM, which may want the guest to go on for a while.
        Call(Linux.SysSetpgid);

        // No descriptor but guest RAM's, no core dump of guest memory, nothing mapped but the window.
        Call(Linux.SysCloseRange, CarrierLayout.RamFd + 1, uint.MaxValue);
        Call(Linux.SysCloseRange, 0, CarrierLayout.ControlFd);
        SetLimit(Linux.RlimitCore, 0);
        SetLimit(Linux.RlimitAs, AddressSpaceLimit);
        UnmapBelowWindow(codeCacheSize);
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
        Call(Linux.SysRtSigprocmask, Linux.SigSetmask, ScratchAddress, 0, 8);
        if (options.TrapTimeStampCounter)
        {
            Call(Linux.SysPrctl, Linux.PrSetTsc, Linux.PrTscSigsegv);
        }

        DispatchSystemCalls();
        Confine();
    }

    private void UnmapBelowWindow(int codeCacheSize)
    {
        if (codeCacheSize == 0)
        {
            Call(Linux.SysMunmap, 0, CarrierLayout.Window);
            return;
        }

        const ulong lookupEnd = CarrierLayout.LookupTable + CarrierLayout.LookupTableSize;
        ulong codeEnd = CarrierLayout.CodeCache + (ulong)codeCacheSize;
        Call(Linux.SysMunmap, 0, CarrierLayout.CodeCache);
        Call(Linux.SysMunmap, codeEnd, CarrierLayout.LookupTable - codeEnd);
        Call(Linux.SysMunmap, lookupEnd, CarrierLayout.Window - lookupEnd);
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

        _ownMemory?.Dispose();
    }
}
