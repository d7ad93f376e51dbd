using System.Buffers.Binary;
using System.ComponentModel;
using System.Runtime.CompilerServices;
using System.Runtime.Versioning;
using VirtBench.Strategies.Carrier;
using VirtBench.Strategies.Native;
using VirtBench.Strategies.Shadow;
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
internal sealed unsafe partial class DirectExecutionEngine : CarrierEngine, IExecutionEngine
{
    // What the guest may set in the real RFLAGS. IF, IOPL and the VME bits are virtual; AC would raise #AC in ring 3,
    // which ring 0 never sees: one that POPF has set is taken away at the first #AC. RF is left out because every fault sets it in the image that the CPU saves.
    private const ulong GuestFlags = Rflags.Arithmetic | Rflags.Tf | Rflags.Df | Rflags.Nt | Rflags.Id;

    public DirectExecutionEngine(VirtualCpu cpu, GuestMemory memory, DirectExecutionOptions options)
        : base(
            cpu,
            memory,
            new EngineCapabilities
            {
                Holes = Ring3Holes.All(options.TrapTimeStampCounter),
                TrapsTimeStampCounter = options.TrapTimeStampCounter,
                TrapsPrivilegedInstructions = true,
                LowestAddress = HostLimits.LowestAddress,
                AddressLimit = CarrierLayout.GuestLimit,
                TimeSource = options.TimeSource,
            },
            new CarrierOptions
            {
                TrapTimeStampCounter = options.TrapTimeStampCounter,
                ReturnByIret = options.ReturnByIret,
                KickGrace = options.KickGrace ?? CarrierOptions.DefaultKickGrace,
            },
            options.Shadow,
            options.MaximumCarriers
        ) { }

    // ------------------------------------------------------------------------------------------------ run and step

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public override VmExit Run()
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
            // The trap flag can be set only together with the guest's RIP.
            if (!SelectCarrier(byFrame: _stepping is not Stepping.No || (Cpu.Rflags & Rflags.Tf) != 0))
            {
                return new VmExit(VmExitReason.Interrupted);
            }

            if (Failure is { } failure)
            {
                return failure;
            }

            CarrierProcess carrier = Pool.Current!;
            SignalContext* frame = Pool.Frame;
            if (InCallout)
            {
                EnterByCall(carrier);
            }
            else
            {
                EnterFrame(carrier, frame);
            }

            ResumeAndWait(carrier);
            Prefetch(frame);
            return Leave(carrier);
        }
        catch (Exception e) when (e is CarrierException or Win32Exception)
        {
            return Fail(e);
        }
    }

    // ------------------------------------------------------------------------------------------------ entry and exit

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void EnterFrame(CarrierProcess carrier, SignalContext* frame)
    {
        EnterByFrame(carrier);
        StoreRegisters(carrier, frame);
        frame->Rip = Cpu.Rip;
        frame->Eflags = HostFlags;
        if (_stepping is Stepping.Ours)
        {
            frame->Eflags |= Rflags.Tf;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private VmExit Leave(CarrierProcess carrier)
    {
        int signal = Volatile.Read(ref carrier.Control->Signal);
        if (carrier.Control->Magic != ControlPage.MagicValue)
        {
            return Corrupted();
        }

        if (signal == CarrierReport.Hypercall)
        {
            return LeaveByGate(carrier);
        }

        if (signal == CarrierReport.NotEntered && InCallout)
        {
            return Kicked(carrier); // the registers are where they were
        }

        if (!Pool.TryTakeFrame())
        {
            return Corrupted();
        }

        SignalContext* frame = Pool.Frame;

        if (signal == CarrierReport.BatchFailed)
        {
            throw carrier.BatchFailure();
        }

        ulong rip = frame->Rip;
        bool atGate = rip == CarrierStub.Instance.GateAddress && signal == Linux.SigTrap;
        if (
            !atGate && rip - CarrierLayout.Window < CarrierLayout.WindowEnd - CarrierLayout.Window
            || signal == CarrierReport.Ready
        )
        {
            return Fail($"the guest jumped into the monitor window at 0x{CarrierLayout.Window:X}, RIP 0x{rip:X}");
        }

        TakeRegisters(frame);
        Cpu.Rip = rip;
        TakeFlags(frame->Eflags);
        if (signal != CarrierReport.NotEntered)
        {
            InCallout = false;
            GuestRan(carrier);
        }

        // A step has ended with the jump to the gate: nothing of that has happened yet but for its one effect.
        VmExit exit = atGate ? Hypercall() : Classify(carrier, signal, frame);
        return _stepping is Stepping.No ? exit : EndStep(exit);
    }

    private ulong HostFlags
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => (Cpu.Rflags & GuestFlags) | Rflags.AlwaysSet | Rflags.If;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void TakeFlags(ulong host) =>
        Cpu.Rflags = (Cpu.Rflags & ~GuestFlags) | (host & GuestFlags) | Rflags.AlwaysSet;

    private VmExit Classify(CarrierProcess carrier, int signal, SignalContext* frame)
    {
        switch (signal)
        {
            case Linux.SigUsr1 or CarrierReport.NotEntered:
                return Kicked(carrier);
            case Linux.SigSys:
                return ClassifySystemCall(carrier);
            case Linux.SigIll:
                return ClassifyFault(signal, frame);
        }

        switch (frame->TrapNumber)
        {
            case Vector.Debug:
                return ClassifyDebug(carrier);

            case Vector.Breakpoint:
                // Back to the instruction, for the core to check the gate: INT3 or the two bytes of INT 3.
                return SoftwareInterrupt(CodeByteIs(Cpu.Rip - 1, 0xCC) ? 1u : 2u);

            case Vector.Overflow:
                return SoftwareInterrupt(2); // INT 4: there is no INTO in 64-bit mode

            default:
                return ClassifyFault(signal, frame);
        }
    }

    private VmExit SoftwareInterrupt(uint length)
    {
        Cpu.Rip -= length;
        return new VmExit(VmExitReason.PrivilegedInstruction, Vector.GeneralProtection);
    }

    private bool CodeByteIs(ulong address, byte value) =>
        Space.TryRead(address, PageAccess.Execute, out byte found, out _) && found == value;

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
            if (CodeByteIs(Cpu.Rip - 1, icebp))
            {
                return SoftwareInterrupt(1);
            }

            if (CodeByteIs(Cpu.Rip, icebp))
            {
                return SoftwareInterrupt(0);
            }
        }

        if (_stepping is Stepping.Ours)
        {
            return new VmExit(VmExitReason.Stepped);
        }

        Cpu.Dr6 |= 1 << 14; // BS
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
            Cpu.Rip = from;
            Cpu.Rsp -= 8;
            return new VmExit(VmExitReason.PageFault, Address: from, Access: PageAccess.Execute);
        }

        return new VmExit(VmExitReason.SystemCall);
    }

    private bool TryFindSignal(CarrierProcess carrier, out byte* siginfo)
    {
        const ulong size = 128; // sizeof(siginfo_t)
        siginfo = Pool.Find(Volatile.Read(ref carrier.Control->Siginfo), size);
        return siginfo is not null;
    }

    // ------------------------------------------------------------------------------------------------ the gate

    /// <inheritdoc/>
    /// <remarks>A jump to the gate beside the stub, which hands over without a signal. RCX says where the guest goes on.</remarks>
    public int EncodeHypercall(Span<byte> code, ulong end)
    {
        // LEA RCX, [RIP + …]; MOV R11, gate; JMP R11 (Intel SDM vol. 2, LEA, MOV, JMP).
        const int length = 20;
        const int leaLength = 7;
        ReadOnlySpan<byte> lea = [0x48, 0x8D, 0x0D];
        ReadOnlySpan<byte> mov = [0x49, 0xBB];
        ReadOnlySpan<byte> jmp = [0x41, 0xFF, 0xE3];
        lea.CopyTo(code);
        BinaryPrimitives.WriteInt32LittleEndian(code[lea.Length..], length - leaLength);
        mov.CopyTo(code[leaLength..]);
        BinaryPrimitives.WriteUInt64LittleEndian(code[(leaLength + mov.Length)..], CarrierStub.Instance.GateAddress);
        jmp.CopyTo(code[(length - jmp.Length)..]);
        return length;
    }

    // Registers that a hypercall neither takes nor gives are left in the carrier, where the next entry finds them. They are fetched when
    // something else than that comes next: a frame has to be made then.
    private VmExit LeaveByGate(CarrierProcess carrier)
    {
        ControlPage* control = carrier.Control;
        InCallout = true;
        GuestRan(carrier);
        Cpu.Rax = control->CallRax;
        Cpu[Gpr.Rdi] = control->CallRdi;
        Cpu[Gpr.Rsi] = control->CallRsi;
        Cpu.Rsp = control->CallRsp;
        Cpu[Gpr.Rcx] = control->CallRip;
        TakeFlags(control->CallFlags);
        Cpu[R11] = Cpu.Rflags;
        _called = (Cpu[Gpr.Rcx], Cpu[R11], Cpu[Gpr.Rcx]);
        return Hypercall();
    }

    // What the guest has in the two registers that a hypercall clobbers does not matter where it only returns from one.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void EnterByCall(CarrierProcess carrier)
    {
        ControlPage* control = carrier.Control;
        if (_called != (Cpu[Gpr.Rcx], Cpu[R11], Cpu.Rip))
        {
            control->Registers[Gpr.Rcx] = Cpu[Gpr.Rcx];
            control->Registers[R11] = Cpu[R11];
        }

        if (control->ByRegisters != EntryBy.Call)
        {
            control->ByRegisters = EntryBy.Call;
        }

        control->CallRax = Cpu.Rax;
        control->CallRdi = Cpu[Gpr.Rdi];
        control->CallRsi = Cpu[Gpr.Rsi];
        control->CallRsp = Cpu.Rsp;
        control->CallRip = Cpu.Rip;
        control->CallFlags = HostFlags;
    }

    /// <inheritdoc/>
    protected override void FetchRegisters()
    {
        ulong* registers = Pool.Current!.Control->Registers;
        foreach (int kept in ControlPage.KeptInCall)
        {
            Cpu[kept] = registers[kept];
        }
    }

    private const int R11 = Gpr.R8 + 3;

    private (ulong Rcx, ulong R11, ulong Rip) _called; // as the last hypercall has left them

    // Any code can jump to the gate with anything in RCX. Where the guest could not go on, it faults as it would have by jumping there
    // itself, and makes no hypercall.
    private VmExit Hypercall()
    {
        ulong rip = Cpu[Gpr.Rcx];
        Cpu.Rip = rip;
        return rip < CarrierLayout.GuestLimit ? new VmExit(VmExitReason.Hypercall)
            : PageWalker.IsCanonical(rip) ? PageFaultAt(rip, PageAccess.Execute)
            : new VmExit(VmExitReason.Exception, Vector.GeneralProtection);
    }
}
