using System.ComponentModel;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;
using System.Runtime.Versioning;
using VirtBench.Strategies.Carrier;
using VirtBench.Strategies.Native;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.TrapAndEmulate;

/// <summary>How direct execution is set up.</summary>
internal sealed record DirectExecutionOptions
{
    /// <summary>Make RDTSC and RDTSCP trap.</summary>
    public required bool TrapTimeStampCounter { get; init; }

    /// <summary>Return to the guest by XRSTOR and IRETQ instead of rt_sigreturn.</summary>
    public required bool ReturnByIret { get; init; }

    /// <summary>See <see cref="EngineCapabilities.TimeSource"/>.</summary>
    public required string TimeSource { get; init; }

    /// <summary>How the shadow page tables follow the guest's.</summary>
    public ShadowPaging Shadow { get; init; } = ShadowPaging.Cached;

    /// <summary>Policy cached: how many carriers there may be, 1 to <see cref="CarrierLayout.MaximumCarriers"/>.</summary>
    public int MaximumCarriers { get; init; } = CarrierLayout.MaximumCarriers;

    /// <summary>See <see cref="CarrierOptions.KickGrace"/>; null for its default.</summary>
    public TimeSpan? KickGrace { get; init; }
}

/// <summary>
/// Ring-deprivileged direct execution: guest code runs as it is in a carrier process, in the host's ring 3. Privileged
/// instructions fault there, the kernel turns the fault into a signal, and the stub hands its frame to the VMM: that is the
/// VM exit. The frame is the guest's register file; returning from the signal is the VM entry.
/// </summary>
[SupportedOSPlatform("linux")]
internal sealed unsafe partial class DirectExecutionEngine : IExecutionEngine, IMemoryWriteObserver
{
    // What the guest may set in the real RFLAGS. IF, IOPL and the VME bits are virtual; AC would raise #AC in ring 3,
    // which ring 0 never sees: one that POPF has set is taken away at the first #AC. RF is left out because every fault sets it in the image that the CPU saves.
    private const ulong GuestFlags = Rflags.Arithmetic | Rflags.Tf | Rflags.Df | Rflags.Nt | Rflags.Id;

    private readonly VirtualCpu _cpu;
    private readonly GuestMemory _memory;
    private readonly ShadowPageTable _shadow;
    private readonly GuestAddressSpace _space;
    private readonly CarrierPool _pool;
    private bool _loadLazyState = true;
    private VmExit? _failure;

    public DirectExecutionEngine(VirtualCpu cpu, GuestMemory memory, DirectExecutionOptions options)
    {
        _cpu = cpu;
        _memory = memory;
        _space = new GuestAddressSpace(cpu, memory);
        Capabilities = new EngineCapabilities
        {
            Holes = Ring3Holes.All(options.TrapTimeStampCounter),
            TrapsTimeStampCounter = options.TrapTimeStampCounter,
            TrapsPrivilegedInstructions = true,
            LowestAddress = HostLimits.LowestAddress,
            AddressLimit = CarrierLayout.GuestLimit,
            TimeSource = options.TimeSource,
        };
        _pool = new CarrierPool(
            memory.FileDescriptor,
            new CarrierOptions
            {
                TrapTimeStampCounter = options.TrapTimeStampCounter,
                ReturnByIret = options.ReturnByIret,
                KickGrace = options.KickGrace ?? CarrierOptions.DefaultKickGrace,
            }
        );
        ulong lowest = Capabilities.LowestAddress;
        ulong limit = Capabilities.AddressLimit;
        if (options.Shadow == ShadowPaging.Cached)
        {
            _shadow = new CachedShadow(cpu, memory, lowest, limit, SinkOf, options.MaximumCarriers);
            memory.WriteObserver = this;
        }
        else
        {
            _shadow = new FlushedShadow(cpu, memory, lowest, limit, SinkOf);
        }
    }

    /// <inheritdoc/>
    public EngineCapabilities Capabilities { get; }

    /// <inheritdoc/>
    public IEngineClock Clock => HostClock.Instance;

    /// <summary>The carrier that runs the guest, once it has run; for tests.</summary>
    internal CarrierProcess? Carrier => _pool.Current;

    /// <summary>All carriers; for tests.</summary>
    internal CarrierPool Pool => _pool;

    /// <summary>What is mapped in the carrier that runs the guest; for tests.</summary>
    internal IReadOnlyList<MappedRun> Mapped => _shadow.Current?.All ?? [];

    /// <summary>The shadow page tables; for tests.</summary>
    internal ShadowPageTable Shadow => _shadow;

    // ------------------------------------------------------------------------------------------------ run and step

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public VmExit Run()
    {
        if (_stepping is not Stepping.No)
        {
            EndSteps();
        }

        return Enter();
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private VmExit Enter()
    {
        if (TakeKick())
        {
            return new VmExit(VmExitReason.Interrupted);
        }

        try
        {
            if (_foreignWrites is not null)
            {
                ApplyForeignWrites();
            }

            if (!_shadow.IsSelected || _pool.Current is null)
            {
                _ = _pool.Select(_shadow.Select());
                if (TakeKick())
                {
                    return new VmExit(VmExitReason.Interrupted); // it may have gone to the carrier before
                }
            }

            if (_failure is { } failure)
            {
                return failure;
            }

            CarrierProcess carrier = _pool.Current!;
            SignalContext* frame = _pool.Frame;
            EnterFrame(carrier, frame);
            _pool.Resume();
            if (Deadline == ulong.MaxValue)
            {
                carrier.WaitForExit();
            }
            else
            {
                WaitUntilDeadline(carrier);
            }

            Prefetch(frame);
            return Leave(carrier);
        }
        catch (Exception e) when (e is CarrierException or Win32Exception)
        {
            return Fail(e);
        }
    }

    private VmExit Fail(Exception e) =>
        Fail(e is CarrierException ? $"{e.Message}; RIP was last seen at 0x{_cpu.Rip:X}" : e.Message);

    private VmExit Fail(string message)
    {
        var exit = new VmExit(VmExitReason.Failed, Message: message);
        _failure = exit;
        return exit;
    }

    // ------------------------------------------------------------------------------------------------ entry and exit

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void EnterFrame(CarrierProcess carrier, SignalContext* frame)
    {
        if (_loadLazyState)
        {
            StoreLazyState(carrier, frame);
        }

        GuestRegisters* r = _cpu.Registers;
        frame->Rax = r->Gpr[Gpr.Rax];
        frame->Rcx = r->Gpr[Gpr.Rcx];
        frame->Rdx = r->Gpr[Gpr.Rdx];
        frame->Rbx = r->Gpr[Gpr.Rbx];
        frame->Rsp = r->Gpr[Gpr.Rsp];
        frame->Rbp = r->Gpr[Gpr.Rbp];
        frame->Rsi = r->Gpr[Gpr.Rsi];
        frame->Rdi = r->Gpr[Gpr.Rdi];
        frame->R8 = r->Gpr[Gpr.R8];
        frame->R9 = r->Gpr[Gpr.R8 + 1];
        frame->R10 = r->Gpr[Gpr.R8 + 2];
        frame->R11 = r->Gpr[Gpr.R8 + 3];
        frame->R12 = r->Gpr[Gpr.R8 + 4];
        frame->R13 = r->Gpr[Gpr.R8 + 5];
        frame->R14 = r->Gpr[Gpr.R8 + 6];
        frame->R15 = r->Gpr[Gpr.R8 + 7];
        frame->Rip = r->Rip;
        frame->Eflags = (r->Rflags & GuestFlags) | Rflags.AlwaysSet | Rflags.If;
        if (_stepping is Stepping.Ours)
        {
            frame->Eflags |= Rflags.Tf;
        }
    }

    // The frame's lines come from the other core. The kernel puts each frame where the last one was, so they are asked for
    // before the control page has said where it is: one trip between the cores instead of two.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Prefetch(SignalContext* frame)
    {
        const int line = 64;
        for (int offset = 0; offset < sizeof(SignalContext); offset += line)
        {
            Sse.Prefetch0((byte*)frame + offset);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private VmExit Leave(CarrierProcess carrier)
    {
        int signal = Volatile.Read(ref carrier.Control->Signal);
        if (carrier.Control->Magic != ControlPage.MagicValue || !_pool.TryTakeFrame())
        {
            return Corrupted();
        }

        SignalContext* frame = _pool.Frame;

        if (signal == CarrierReport.BatchFailed)
        {
            throw carrier.BatchFailure();
        }

        GuestRegisters* r = _cpu.Registers;
        ulong rip = frame->Rip;
        if (
            rip - CarrierLayout.Window < CarrierLayout.WindowEnd - CarrierLayout.Window
            || signal == CarrierReport.Ready
        )
        {
            return Fail($"the guest jumped into the monitor window at 0x{CarrierLayout.Window:X}, RIP 0x{rip:X}");
        }

        r->Gpr[Gpr.Rax] = frame->Rax;
        r->Gpr[Gpr.Rcx] = frame->Rcx;
        r->Gpr[Gpr.Rdx] = frame->Rdx;
        r->Gpr[Gpr.Rbx] = frame->Rbx;
        r->Gpr[Gpr.Rsp] = frame->Rsp;
        r->Gpr[Gpr.Rbp] = frame->Rbp;
        r->Gpr[Gpr.Rsi] = frame->Rsi;
        r->Gpr[Gpr.Rdi] = frame->Rdi;
        r->Gpr[Gpr.R8] = frame->R8;
        r->Gpr[Gpr.R8 + 1] = frame->R9;
        r->Gpr[Gpr.R8 + 2] = frame->R10;
        r->Gpr[Gpr.R8 + 3] = frame->R11;
        r->Gpr[Gpr.R8 + 4] = frame->R12;
        r->Gpr[Gpr.R8 + 5] = frame->R13;
        r->Gpr[Gpr.R8 + 6] = frame->R14;
        r->Gpr[Gpr.R8 + 7] = frame->R15;
        r->Rip = rip;
        r->Rflags = (r->Rflags & ~GuestFlags) | (frame->Eflags & GuestFlags) | Rflags.AlwaysSet;

        if (signal != CarrierReport.NotEntered && carrier.Control->LoadBases != 0)
        {
            carrier.Control->LoadBases = 0; // the guest has run with the bases it was given
        }

        VmExit exit = Classify(carrier, signal, frame);
        return _stepping is Stepping.No ? exit : EndStep(exit);
    }

    // The kernel's trapno is the CPU's vector. It is stale where the kernel raises a signal without an exception.
    private VmExit Classify(CarrierProcess carrier, int signal, SignalContext* frame)
    {
        switch (signal)
        {
            case Linux.SigUsr1 or CarrierReport.NotEntered:
                carrier.KickAnswered();
                _ = TakeKick();
                return new VmExit(VmExitReason.Interrupted);
            case Linux.SigSys:
                return ClassifySystemCall(carrier);
            case Linux.SigIll:
                return new VmExit(VmExitReason.Exception, Vector.InvalidOpcode);
        }

        ulong error = frame->ErrorCode;
        ulong vector = frame->TrapNumber;
        switch (vector)
        {
            case Vector.GeneralProtection:
                return new VmExit(VmExitReason.PrivilegedInstruction, Vector.GeneralProtection, (uint)error);

            case Vector.PageFault when signal == Linux.SigBus:
                return Fail($"the host has no memory for the guest's page at 0x{frame->Cr2:X} (SIGBUS)");

            case Vector.PageFault:
                // The P bit speaks of the host's mapping, not of the guest's tables: the core walks those itself.
                PageAccess access =
                    (error & PageFaultError.Fetch) != 0 ? PageAccess.Execute
                    : (error & PageFaultError.Write) != 0 ? PageAccess.Write
                    : PageAccess.Read;
                _faultAddress = frame->Cr2;
                _faultWrites = access == PageAccess.Write;
                return new VmExit(VmExitReason.PageFault, Address: frame->Cr2, Access: access);

            case Vector.Debug:
                return ClassifyDebug(carrier);

            case Vector.Breakpoint:
                // Back to the instruction, for the core to check the gate: INT3 or the two bytes of INT 3.
                return SoftwareInterrupt(CodeByteIs(_cpu.Rip - 1, 0xCC) ? 1u : 2u);

            case Vector.Overflow:
                return SoftwareInterrupt(2); // INT 4: there is no INTO in 64-bit mode

            case Vector.AlignmentCheck when _cpu.Cpl != 3 || (_cpu.Cr0 & Cr0.Am) == 0:
                return new VmExit(VmExitReason.Interrupted); // the next entry clears AC

            case < 32:
                return new VmExit(
                    VmExitReason.Exception,
                    (byte)vector,
                    Vector.HasErrorCode((byte)vector) ? (uint)error : 0
                );

            default:
                return Corrupted();
        }
    }

    private VmExit SoftwareInterrupt(uint length)
    {
        _cpu.Rip -= length;
        return new VmExit(VmExitReason.PrivilegedInstruction, Vector.GeneralProtection);
    }

    private bool CodeByteIs(ulong address, byte value) =>
        _space.TryRead(address, PageAccess.Execute, out byte found, out _) && found == value;

    // Single step, or ICEBP, after which some hypervisors leave RIP at the instruction.
    private VmExit ClassifyDebug(CarrierProcess carrier)
    {
        const int codeOffset = 8; // siginfo_t.si_code
        const int trapTrace = 2; // TRAP_TRACE
        const byte icebp = 0xF1;
        if (!TryFindSignal(carrier, out byte* siginfo))
        {
            return Corrupted();
        }

        if (*(int*)(siginfo + codeOffset) != trapTrace)
        {
            if (CodeByteIs(_cpu.Rip - 1, icebp))
            {
                return SoftwareInterrupt(1);
            }

            if (CodeByteIs(_cpu.Rip, icebp))
            {
                return SoftwareInterrupt(0);
            }
        }

        if (_stepping is Stepping.Ours)
        {
            return new VmExit(VmExitReason.Stepped);
        }

        _cpu.Dr6 |= 1 << 14; // BS
        return new VmExit(VmExitReason.Exception, Vector.Debug);
    }

    // RIP is behind the instruction. INT 0x80 arrives as an i386 system call; to the guest it is a software interrupt. A
    // jump into the host's vsyscall page arrives as a system call from there that has returned: to the guest it is a fetch.
    private VmExit ClassifySystemCall(CarrierProcess carrier)
    {
        const int callAddressOffset = 16; // siginfo_t.si_call_addr
        const int architectureOffset = 28; // siginfo_t.si_arch
        const uint i386 = 0x4000_0003; // AUDIT_ARCH_I386
        const ulong vsyscallPage = 0xFFFF_FFFF_FF60_0000;
        if (!TryFindSignal(carrier, out byte* siginfo))
        {
            return Corrupted();
        }

        if (*(uint*)(siginfo + architectureOffset) == i386)
        {
            return SoftwareInterrupt(2);
        }

        ulong from = *(ulong*)(siginfo + callAddressOffset);
        if (from - vsyscallPage < GuestMemory.PageSize)
        {
            _cpu.Rip = from;
            _cpu.Rsp -= 8;
            return new VmExit(VmExitReason.PageFault, Address: from, Access: PageAccess.Execute);
        }

        return new VmExit(VmExitReason.SystemCall);
    }

    private bool TryFindSignal(CarrierProcess carrier, out byte* siginfo)
    {
        const ulong size = 128; // sizeof(siginfo_t)
        siginfo = _pool.Find(Volatile.Read(ref carrier.Control->Siginfo), size);
        return siginfo is not null;
    }

    private VmExit Corrupted() =>
        Fail(
            "the guest overwrote the carrier's control memory in the monitor window at "
                + $"0x{CarrierLayout.Window:X}; RIP was last seen at 0x{_cpu.Rip:X}"
        );

    // ------------------------------------------------------------------------------------------------ lazy state

    /// <inheritdoc/>
    public void SaveLazyState()
    {
        // Nothing newer than the core's own copy: the guest has not run since, or its carrier is beyond asking.
        if (_loadLazyState || _failure is not null || _pool.Current is not { } carrier)
        {
            return;
        }

        if (!TryFindFpu(_pool.Frame, out byte* fpu))
        {
            return;
        }

        new ReadOnlySpan<byte>(fpu, FpuFrame.RegistersEnd).CopyTo(
            new Span<byte>(_cpu.Registers->Fxsave, FpuFrame.RegistersEnd)
        );
        _cpu.Fs = _cpu.Fs with { Base = carrier.Control->FsBase };
        _cpu.Gs = _cpu.Gs with { Base = carrier.Control->GsBase };
    }

    /// <inheritdoc/>
    public void LoadLazyState() => _loadLazyState = true;

    // Into the frame: the return path loads it from there, whichever it is.
    private void StoreLazyState(CarrierProcess carrier, SignalContext* frame)
    {
        _loadLazyState = false;
        carrier.Control->FsBase = _cpu.Fs.Base;
        carrier.Control->GsBase = _cpu.Gs.Base;
        carrier.Control->LoadBases = 1;
        if (TryFindFpu(frame, out byte* fpu))
        {
            new ReadOnlySpan<byte>(_cpu.Registers->Fxsave, FpuFrame.RegistersEnd).CopyTo(
                new Span<byte>(fpu, FpuFrame.RegistersEnd)
            );
            *(uint*)(fpu + FpuFrame.Mxcsr) &= FpuFrame.MxcsrDefined; // a guest could have forged the image it came from
            *(ulong*)(fpu + FpuFrame.LegacySize) |= FpuFrame.X87AndSse; // XSTATE_BV: these two are not in their initial state
        }
    }

    private bool TryFindFpu(SignalContext* frame, out byte* fpu)
    {
        fpu = _pool.Find(frame->FpuState, FpuFrame.HeaderEnd);
        return fpu is not null;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (_memory.WriteObserver == this)
        {
            _memory.WriteObserver = null;
        }

        _pool.Dispose();
    }
}
