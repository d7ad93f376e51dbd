using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Emulation;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Vmm.Execution;

/// <summary>Creates the engine of a VM. The engine is disposed with the VM.</summary>
public delegate IExecutionEngine EngineFactory(VirtualCpu cpu, GuestMemory memory);

/// <summary>
/// A virtual machine: CPU, memory, devices and the run loop, which is the only place that dispatches on an exit.
/// </summary>
public sealed partial class VirtualMachine : IDisposable
{
    private volatile IExecutionEngine _engine;
    private readonly InstructionEmulator _emulator;
    private readonly EventDelivery _delivery;
    private readonly ExitPort _exitPort = new();
    private readonly MeasurementPorts _measurement;
    private volatile bool _abandoned;
    private volatile bool _running;
    private Hypercalls? _hypercalls;
    private double _waitingNanoseconds;

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
        _measurement = new MeasurementPorts(Cpu, _engine, Ledger, IoStatistics);
        Ports.Attach(Serial, SerialPort.FirstPort, SerialPort.PortCount);
        Ports.Attach(_exitPort, ExitPort.Port, 1);
        Ports.Attach(_measurement, MeasurementPorts.Begin, MeasurementPorts.PortCount);
        Interrupts = new InterruptController();
        Timer = new IntervalTimer(_engine.Clock, Interrupts);
        Serial.InterruptChanged = up =>
        {
            if (_engine.KernelInterrupts is { } kernel)
            {
                kernel.SetLine(SerialPort.Line, up);
            }
            else
            {
                Interrupts.SetLine(SerialPort.Line, up);
            }
        };
        Ports.Attach(Interrupts, InterruptController.MasterPort, InterruptController.PortCount);
        Ports.Attach(Interrupts, InterruptController.SlavePort, InterruptController.PortCount);
        Ports.Attach(Timer, IntervalTimer.FirstPort, IntervalTimer.PortCount);
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

    /// <summary>The two 8259A.</summary>
    public InterruptController Interrupts { get; }

    /// <summary>The 8254.</summary>
    public IntervalTimer Timer { get; }

    /// <summary>The account of exits.</summary>
    public TrapLedger Ledger { get; } = new();

    /// <summary>The engine's capabilities.</summary>
    public EngineCapabilities Capabilities => _engine.Capabilities;

    /// <summary>The engine's clock.</summary>
    public IEngineClock Clock => _engine.Clock;

    /// <summary>Regions that the guest has measured so far.</summary>
    public IReadOnlyList<MeasuredRegion> Regions => _measurement.Regions;

    /// <summary>Puts an image and the boot tables into memory. The disk that the image needs is attached, when none is.</summary>
    /// <exception cref="GuestImageException">The image does not fit.</exception>
    public void Load(GuestImage image, BootOptions options)
    {
        // First, since the engine may have half an instruction of the guest before to get over with.
        _engine.LoadLazyState();
        _engineFailure = null;
        _exitPort.Reset();
        if (image.Disk is { } needed && _disk is null)
        {
            AttachDisk(needed.Create());
        }

        BootLoader.Load(image, options, Cpu, Memory, _engine.Clock.TicksPerSecond);
        if (_hypercalls is not null && !options.Paravirtual)
        {
            _ = _engine.ProvideParavirtualClock(0);
        }

        _hypercalls = options.Paravirtual ? new Hypercalls(Cpu, Memory, _emulator, Interrupts, Serial, _engine) : null;
        _emulator.Hypercalls = _hypercalls;
        _hypercalls?.Start();
        _posted?.Reconnect(_engine, _hypercalls);
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
        IExecutionEngine engine = _engine;
        using CancellationTokenSource? deadline = timeout is { } limit
            ? new CancellationTokenSource(Clamp(limit))
            : null;
        using CancellationTokenRegistration onDeadline = deadline?.Token.Register(engine.Kick) ?? default;
        using CancellationTokenRegistration onCancel = cancellation.Register(engine.Kick);
        engine.AttachThread();
        _hasRun = true;
        _running = true;
        try
        {
            DetachCompletePager();
            if (_userFaults?.Failure is { } lost)
            {
                return new RunOutcome(RunEnd.Failed, 0, lost);
            }

            return RunLoop(deadline?.Token ?? default, cancellation);
        }
        catch (GuestFailureException failure)
        {
            return new RunOutcome(RunEnd.Failed, 0, failure.Message);
        }
        finally
        {
            engine.SaveLazyState();
            engine.DetachThread();
            _running = false;
        }
    }

    // What a timer can be set to: from now to some 24 days.
    private static TimeSpan Clamp(TimeSpan limit) =>
        limit < TimeSpan.Zero ? TimeSpan.Zero
        : limit.TotalMilliseconds > int.MaxValue ? TimeSpan.FromMilliseconds(int.MaxValue)
        : limit;

    /// <summary>
    /// Gives the VM up while a thread is still in <see cref="Run"/> and does not come back: its memory and its engine stay as
    /// they are until the process ends, since that thread may go on using them. <see cref="Dispose"/> then does nothing.
    /// </summary>
    public void Abandon()
    {
        _abandoned = true;
        _disk?.Abandon();
    }

    /// <summary>
    /// What became of the interrupts so far; null when the guest has never initialized an interrupt controller of the core's, and no line has
    /// passed these by.
    /// </summary>
    public InterruptStatistics? InterruptStatistics()
    {
        var lines = new List<InterruptLineStatistics>();
        for (int line = 0; line < InterruptController.Lines; line++)
        {
            long past = _posted?.RequestsPast(line) ?? 0;
            if (Interrupts.Requests[line] + past > 0)
            {
                long taken = Interrupts.Acknowledgements[line] + past - (_posted?.IsWaiting(line) == true ? 1 : 0);
                lines.Add(new(line, Interrupts.Requests[line] + past, taken, _posted?.Direct(line) ?? 0));
            }
        }

        if (!Interrupts.IsUsed && lines.Count == 0)
        {
            return null;
        }

        return new InterruptStatistics(
            lines,
            Interrupts.Spurious,
            new TimerStatistics(Timer.Ticks, Timer.Late, Timer.Owed, Timer.Masked)
        );
    }

    /// <summary>How long the virtual CPU has slept so far, and what its disk has done.</summary>
    public IoStatistics IoStatistics() => new(_waitingNanoseconds + KernelHalts(), DiskStatistics());

    // Where the kernel serves HLT itself (KVM's binary statistics of a vCPU, Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD).
    private double KernelHalts() =>
        _engine.KernelStatistics() is { } kernel
            ? (kernel["halt_wait_ns"] ?? 0) + (kernel["halt_poll_success_ns"] ?? 0) + (kernel["halt_poll_fail_ns"] ?? 0)
            : 0;

    /// <summary>What the host's kernel has counted of the vCPU so far; null where it keeps no such account.</summary>
    public KernelStatistics? KernelStatistics() => _engine.KernelStatistics();

    /// <summary>What the engine has translated so far; null for one that does not translate.</summary>
    public TranslationStatistics? TranslationStatistics() => _engine.TranslationStatistics;

    /// <inheritdoc cref="IExecutionEngine.ObserveTranslation"/>
    public bool ObserveTranslation(ITranslationObserver? observer) => _engine.ObserveTranslation(observer);

    /// <inheritdoc/>
    public void Dispose()
    {
        if (_abandoned)
        {
            return;
        }

        _posted?.Close(); // whoever raises a line goes on doing so
        _disk?.Dispose(); // its thread writes guest memory
        _engine.Dispose();
        _userFaults?.Dispose();
        _transaction?.Dispose();
        Memory.Dispose();
        Cpu.Dispose();
    }
}
