using System.Diagnostics;
using System.Runtime.CompilerServices;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Emulation;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Execution;

/// <summary>Creates the engine of a VM. The engine is disposed with the VM.</summary>
public delegate IExecutionEngine EngineFactory(VirtualCpu cpu, GuestMemory memory);

/// <summary>
/// A virtual machine: CPU, memory, devices and the run loop, which is the only place that dispatches on an exit.
/// </summary>
public sealed class VirtualMachine : IDisposable
{
    private readonly IExecutionEngine _engine;
    private readonly InstructionEmulator _emulator;
    private readonly EventDelivery _delivery;
    private readonly ExitPort _exitPort = new();
    private readonly MeasurementPorts _measurement;
    private volatile bool _abandoned;

    /// <summary>Creates a VM with empty memory and the CPU in its boot state.</summary>
    /// <param name="ramBytes">RAM: 1 MiB to 16 GiB in whole pages.</param>
    /// <param name="createEngine">The strategy's engine.</param>
    /// <param name="strict">End the guest when it touches a port or address that nothing answers.</param>
    public VirtualMachine(ulong ramBytes, EngineFactory createEngine, bool strict = false)
    {
        Memory = new GuestMemory(ramBytes);
        Cpu = new VirtualCpu();
        try
        {
            _engine = createEngine(Cpu, Memory);
        }
        catch
        {
            Cpu.Dispose();
            Memory.Dispose();
            throw;
        }

        Ports = new IoBus { Strict = strict };
        AbsentMemory = new PhysicalBus { Strict = strict };
        Serial = new SerialPort();
        _measurement = new MeasurementPorts(Cpu, _engine, Ledger);
        Ports.Attach(Serial, SerialPort.FirstPort, SerialPort.PortCount);
        Ports.Attach(_exitPort, ExitPort.Port, 1);
        Ports.Attach(_measurement, MeasurementPorts.Begin, MeasurementPorts.PortCount);
        _emulator = new InstructionEmulator(Cpu, Memory, Ports, _engine, AbsentMemory);
        _delivery = new EventDelivery(Cpu, Memory, AbsentMemory, _emulator.DescribeNext);
    }

    /// <summary>The virtual CPU.</summary>
    public VirtualCpu Cpu { get; }

    /// <summary>Guest RAM.</summary>
    public GuestMemory Memory { get; }

    /// <summary>The I/O ports.</summary>
    public IoBus Ports { get; }

    /// <summary>Guest-physical addresses without RAM.</summary>
    public PhysicalBus AbsentMemory { get; }

    /// <summary>The console.</summary>
    public SerialPort Serial { get; }

    /// <summary>The account of exits.</summary>
    public TrapLedger Ledger { get; } = new();

    /// <summary>The engine's capabilities.</summary>
    public EngineCapabilities Capabilities => _engine.Capabilities;

    /// <summary>The engine's clock.</summary>
    public IEngineClock Clock => _engine.Clock;

    /// <summary>Regions that the guest has measured so far.</summary>
    public IReadOnlyList<MeasuredRegion> Regions => _measurement.Regions;

    /// <summary>Puts an image and the boot tables into memory.</summary>
    /// <exception cref="GuestImageException">The image does not fit.</exception>
    public void Load(GuestImage image, BootOptions options)
    {
        // First, since the engine may have half an instruction of the guest before to get over with.
        _engine.LoadLazyState();
        BootLoader.Load(image, options, Cpu, Memory, _engine.Clock.TicksPerSecond);
        _engine.SwitchAddressSpace();
    }

    /// <summary>
    /// Runs the guest until it ends, fails, or the time is over. Runs on the calling thread; a later call goes on where a
    /// timed-out or cancelled one stopped.
    /// </summary>
    /// <param name="timeout">Wall-clock limit; null for none.</param>
    /// <param name="cancellation">Kicks the guest out when signalled.</param>
    public RunOutcome Run(TimeSpan? timeout = null, CancellationToken cancellation = default)
    {
        using CancellationTokenSource? deadline = timeout is { } limit
            ? new CancellationTokenSource(Clamp(limit))
            : null;
        using CancellationTokenRegistration onDeadline = deadline?.Token.Register(_engine.Kick) ?? default;
        using CancellationTokenRegistration onCancel = cancellation.Register(_engine.Kick);
        _engine.AttachThread();
        try
        {
            return RunLoop(deadline?.Token ?? default, cancellation);
        }
        catch (GuestFailureException failure)
        {
            return new RunOutcome(RunEnd.Failed, 0, failure.Message);
        }
        finally
        {
            _engine.SaveLazyState();
            _engine.DetachThread();
        }
    }

    // What a timer can be set to: from now to some 24 days.
    private static TimeSpan Clamp(TimeSpan limit) =>
        limit < TimeSpan.Zero ? TimeSpan.Zero
        : limit.TotalMilliseconds > int.MaxValue ? TimeSpan.FromMilliseconds(int.MaxValue)
        : limit;

    // It runs as long as the guest: compiled ahead of time it would never be compiled again, better, for this CPU.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private RunOutcome RunLoop(CancellationToken deadline, CancellationToken cancellation)
    {
        IEngineClock clock = _engine.Clock;
        while (_exitPort.Status is null)
        {
            if (Cpu.PendingEvent.Kind != GuestEventKind.None)
            {
                GuestEvent pending = Cpu.PendingEvent;
                Cpu.PendingEvent = default;
                if (_engine.Capabilities.DeliversEvents)
                {
                    _engine.Inject(pending);
                }
                else
                {
                    _delivery.Deliver(pending);
                }
            }

            if (Cpu.Halted)
            {
                return new RunOutcome(
                    RunEnd.Failed,
                    0,
                    $"the guest executed HLT before RIP 0x{Cpu.Rip:X} and no device of it can raise an interrupt to wake it"
                );
            }

            VmExit exit = _engine.Run();
            ulong seen = clock.Ticks;
            TrapReason reason;
            ulong dispatched;
            switch (exit.Reason)
            {
                case VmExitReason.PrivilegedInstruction:
                    reason = HandlePrivilegedInstruction(clock, out dispatched);
                    break;

                case VmExitReason.PageFault:
                    reason = HandlePageFault(exit, clock, out dispatched);
                    break;

                case VmExitReason.Exception:
                    reason = TrapReason.GuestException;
                    dispatched = clock.Ticks;
                    Cpu.PendingEvent = exit.Vector is Vector.Breakpoint or Vector.Overflow
                        ? TrapGate(exit.Vector)
                        : GuestEvent.Exception(exit.Vector, exit.ErrorCode);
                    break;

                case VmExitReason.SystemCall:
                    reason = TrapReason.SystemCall;
                    dispatched = clock.Ticks;
                    SystemCalls.Enter(Cpu);
                    break;

                case VmExitReason.PortIo:
                    reason = HandlePortIo(exit, clock, out dispatched);
                    break;

                case VmExitReason.Mmio:
                    reason = HandleMmio(exit, clock, out dispatched);
                    break;

                case VmExitReason.ModelSpecificRegister:
                    reason = TrapReason.Msr;
                    dispatched = clock.Ticks;
                    break;

                case VmExitReason.TaskPriority:
                    reason = TrapReason.ControlRegister;
                    dispatched = clock.Ticks;
                    break;

                case VmExitReason.Halt:
                    reason = TrapReason.Halt;
                    dispatched = clock.Ticks;
                    Cpu.Halted = true;
                    break;

                case VmExitReason.Interrupted:
                    reason = TrapReason.Kick;
                    dispatched = clock.Ticks;
                    break;

                case VmExitReason.Failed:
                    return new RunOutcome(RunEnd.Failed, 0, exit.Message);

                default:
                    throw new UnreachableException($"exit reason {exit.Reason}");
            }

            clock.ChargeEmulation(reason);
            Ledger.Record(reason, dispatched - seen, clock.Ticks - dispatched);
            if (reason == TrapReason.Kick && Stopped(deadline, cancellation) is { } outcome)
            {
                return outcome;
            }
        }

        return new RunOutcome(RunEnd.Exited, _exitPort.Status.Value, null);
    }

    // Asked after a kick only: a guest is never stopped at a point where a kick would not have stopped it.
    private RunOutcome? Stopped(CancellationToken deadline, CancellationToken cancellation) =>
        cancellation.IsCancellationRequested ? new RunOutcome(RunEnd.Cancelled, 0, "cancelled")
        : deadline.IsCancellationRequested
            ? new RunOutcome(RunEnd.TimedOut, 0, $"the guest did not end in time; RIP was 0x{Cpu.Rip:X}")
        : null;

    private TrapReason HandlePrivilegedInstruction(IEngineClock clock, out ulong dispatched)
    {
        if (!_emulator.TryDecode(out TrapReason reason, out GuestEvent fetchFault))
        {
            dispatched = clock.Ticks;
            Cpu.PendingEvent = fetchFault;
            return TrapReason.GuestException;
        }

        dispatched = clock.Ticks;
        Complete(_emulator.Emulate(out GuestEvent guestEvent), guestEvent);
        return reason;
    }

    /// <summary>
    /// #BP and #OF come from an instruction that the host lets ring 3 execute, with RIP behind it. The guest's own gate
    /// decides whether it may, so RIP goes back to it: one byte for INT3, two for INT n.
    /// </summary>
    private GuestEvent TrapGate(byte vector)
    {
        const byte int3 = 0xCC;
        bool isInt3 =
            vector == Vector.Breakpoint
            && PageWalker.IsCanonical(Cpu.Rip - 1)
            && PageWalker.Walk(Cpu, Memory, Cpu.Rip - 1, PageAccess.Execute, commit: false) is { Fault: false } code
            && Memory.Contains(code.PhysicalAddress, 1)
            && Memory.Read<byte>(code.PhysicalAddress) == int3;
        int length = isInt3 ? 1 : 2;
        Cpu.Rip -= (ulong)length;
        return GuestEvent.SoftwareInterrupt(vector, length);
    }

    private void Complete(EmulationResult result, in GuestEvent guestEvent)
    {
        switch (result)
        {
            case EmulationResult.Event:
                Cpu.PendingEvent = guestEvent;
                break;
            case EmulationResult.Halted:
                Cpu.Halted = true;
                break;
        }
    }

    /// <summary>The hardware has decoded the instruction and checked that the guest may execute it.</summary>
    private unsafe TrapReason HandlePortIo(in VmExit exit, IEngineClock clock, out ulong dispatched)
    {
        ushort port = (ushort)exit.Address;
        bool writes = (exit.Access & PageAccess.Write) != 0;
        dispatched = clock.Ticks;
        byte* item = (byte*)exit.Data;
        for (uint i = 0; i < exit.Count; i++, item += exit.Size)
        {
            if (writes)
            {
                uint value = exit.Size switch
                {
                    1 => *item,
                    2 => *(ushort*)item,
                    _ => *(uint*)item,
                };
                Ports.Write(port, exit.Size, value, Cpu.Rip);
            }
            else
            {
                uint value = Ports.Read(port, exit.Size, Cpu.Rip);
                new ReadOnlySpan<byte>(&value, exit.Size).CopyTo(new Span<byte>(item, exit.Size));
            }
        }

        return writes && MeasurementPorts.IsMeasurementPort(port) ? TrapReason.RegionMarker : TrapReason.PortIo;
    }

    private unsafe TrapReason HandleMmio(in VmExit exit, IEngineClock clock, out ulong dispatched)
    {
        dispatched = clock.Ticks;
        var data = new Span<byte>((void*)exit.Data, exit.Size);
        if ((exit.Access & PageAccess.Write) != 0)
        {
            AbsentMemory.Write(exit.Address, data, Cpu.Rip);
        }
        else
        {
            AbsentMemory.Read(exit.Address, data, Cpu.Rip);
        }

        return TrapReason.Mmio;
    }

    /// <summary>Hidden fault, true fault or an address without RAM: the guest's own tables decide.</summary>
    private TrapReason HandlePageFault(in VmExit exit, IEngineClock clock, out ulong dispatched)
    {
        PageAccess access = exit.Access | (Cpu.Cpl == 3 ? PageAccess.User : 0);
        if (!PageWalker.IsCanonical(exit.Address))
        {
            dispatched = clock.Ticks;
            Cpu.PendingEvent = GuestEvent.Exception(Vector.GeneralProtection);
            return TrapReason.GuestException;
        }

        Translation translation = PageWalker.Walk(Cpu, Memory, exit.Address, access);
        if (translation.Fault)
        {
            dispatched = clock.Ticks;
            Cpu.PendingEvent = GuestEvent.PageFault(exit.Address, translation.ErrorCode);
            return TrapReason.GuestPageFault;
        }

        if (!Memory.Contains(translation.PhysicalAddress, 1))
        {
            return HandleAbsentMemory(exit, translation.PhysicalAddress, clock, out dispatched);
        }

        dispatched = clock.Ticks;
        ulong length = 1UL << translation.PageShift;
        ulong offset = exit.Address & (length - 1);
        bool supervisorWritesReadOnly = Cpu.Cpl != 3 && (Cpu.Cr0 & Cr0.Wp) == 0;
        bool writable =
            translation.Dirty && ((translation.Permissions & PageAccess.Write) != 0 || supervisorWritesReadOnly);
        string? refusal = _engine.Map(
            new ShadowPage(
                exit.Address,
                exit.Address - offset,
                translation.PhysicalAddress - offset,
                length,
                (translation.Permissions & ~PageAccess.Write) | (writable ? PageAccess.Write : 0)
            )
        );
        return refusal is null ? TrapReason.HiddenPageFault : throw new GuestFailureException(refusal);
    }

    private TrapReason HandleAbsentMemory(in VmExit exit, ulong physical, IEngineClock clock, out ulong dispatched)
    {
        if ((exit.Access & PageAccess.Execute) != 0)
        {
            throw new GuestFailureException(
                $"the guest fetches an instruction at 0x{exit.Address:X}, guest-physical 0x{physical:X}, where there is no RAM"
            );
        }

        if (!_emulator.TryDecode(out _, out GuestEvent fetchFault))
        {
            dispatched = clock.Ticks;
            Cpu.PendingEvent = fetchFault;
            return TrapReason.GuestException;
        }

        dispatched = clock.Ticks;
        Complete(_emulator.EmulateDataAccess(out GuestEvent guestEvent), guestEvent);
        return TrapReason.Mmio;
    }

    /// <summary>
    /// Gives the VM up while a thread is still in <see cref="Run"/> and does not come back: its memory and its engine stay as
    /// they are until the process ends, since that thread may go on using them. <see cref="Dispose"/> then does nothing.
    /// </summary>
    public void Abandon() => _abandoned = true;

    /// <summary>What the host's kernel has counted of the vCPU so far; null where it keeps no such account.</summary>
    public KernelStatistics? KernelStatistics() => _engine.KernelStatistics();

    /// <inheritdoc/>
    public void Dispose()
    {
        if (_abandoned)
        {
            return;
        }

        _engine.Dispose();
        Memory.Dispose();
        Cpu.Dispose();
    }
}
