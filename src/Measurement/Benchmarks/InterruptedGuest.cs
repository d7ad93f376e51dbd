using System.Runtime.Versioning;
using Iced.Intel;
using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Paravirtual;
using VirtBench.Workloads;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>
/// A guest in ring 0 that computes or sleeps and counts the interrupts of one line, on a thread of its own; whoever has it raises that line.
/// </summary>
[SupportedOSPlatform("linux")]
internal sealed unsafe class InterruptedGuest : IDisposable
{
    private const ulong Entry = 0x10_0000;
    private const ulong HandlerAddress = 0x11_0000;
    private const ulong Words = 0x20_0000;
    private const ulong Idt = 0x21_0000;
    private const ulong IdtPointer = 0x22_0000;
    private const ulong Stack = 0x28_0000;
    private const int Line = 5;
    private const byte FirstVector = 0x20;
    private const double LongestNanoseconds = 20e9; // so that an interrupt that is lost does not hang the suite

    private readonly VirtualMachine _machine;
    private readonly InterruptSource _source;
    private readonly CancellationTokenSource _ended = new();
    private readonly Thread _vcpu;
    private readonly bool _asleep;
    private readonly ulong* _words; // interrupts so far, and rounds of the program
    private RunOutcome? _outcome;

    /// <summary>Boots the guest and waits until it is ready for interrupts.</summary>
    /// <param name="strategy">Its way of delivery is the guest's.</param>
    /// <param name="asleep">The guest sleeps between interrupts; otherwise it runs a short loop.</param>
    /// <exception cref="PlatformNotSupportedException">This host cannot run the strategy; the message says why.</exception>
    public InterruptedGuest(Strategy strategy, bool asleep)
    {
        _asleep = asleep;
        if (strategy.UnavailableReason() is { } reason)
        {
            throw new PlatformNotSupportedException(reason);
        }

        _machine = new VirtualMachine(16 << 20, strategy.CreateEngine);
        byte[] code = Program(strategy.Interface, asleep);
        byte[] handler = Handler(strategy.Interface);
        _machine.Load(
            new GuestImage(
                "interrupts",
                Entry,
                [
                    new ImageSegment(Entry, code, (ulong)code.Length, Executable: true),
                    new ImageSegment(HandlerAddress, handler, (ulong)handler.Length, Executable: true),
                ]
            ),
            new BootOptions { Paravirtual = strategy.Interface == GuestInterface.Paravirtual }
        );
        const ulong presentInterruptGate = 0x8E00_0000_0000;
        const ulong gateSize = 16;
        _machine.Memory.Write(
            Idt + ((FirstVector + Line) * gateSize),
            presentInterruptGate | (0x08UL << 16) | (HandlerAddress & 0xFFFF) | ((HandlerAddress & 0xFFFF_0000) << 32)
        );
        _machine.Memory.Write(IdtPointer, (ushort)0xFFF);
        _machine.Memory.Write(IdtPointer + 2, Idt);
        _words = (ulong*)_machine.Memory.Touch(Words);
        _source = _machine.ConnectInterrupt(Line, strategy.Delivery);
        _vcpu = new Thread(() => _outcome = _machine.Run(null, _ended.Token)) { IsBackground = true };
        _vcpu.Start();
        SpinUntil(() => Rounds > 0);
    }

    /// <summary>Interrupts that the guest has counted.</summary>
    public ulong Count => Volatile.Read(ref *_words);

    /// <summary>The account of the line.</summary>
    public InterruptLineStatistics Statistics =>
        _machine.InterruptStatistics()!.Lines.Single(line => line.Line == Line);

    /// <summary>Exits so far; of a guest that runs roughly.</summary>
    public long Exits => Enum.GetValues<TrapReason>().Sum(_machine.Ledger.Count);

    private ulong Rounds => Volatile.Read(ref _words[1]);

    /// <summary>
    /// Raises the line, and waits until the handler has counted that, and then until the guest has got on with its program or, asleep, so
    /// long that it sleeps again.
    /// </summary>
    /// <returns>Nanoseconds from before the one to behind the other.</returns>
    public double Interrupt()
    {
        ulong before = Count;
        ulong rounds = Rounds;
        ulong start = HostClock.Instance.Ticks;
        _source.Pulse();
        SpinUntil(() => Count != before);
        ulong end = HostClock.Instance.Ticks;
        ulong wanted = (_asleep ? rounds : Rounds) + 2; // one behind the sleep, one before the next
        SpinUntil(() => Rounds >= wanted);
        return (end - start) * (1e9 / HostClock.Instance.TicksPerSecond);
    }

    /// <summary>Raises the line and waits until the handler has counted that.</summary>
    public void Pulse()
    {
        ulong before = Count;
        _source.Pulse();
        SpinUntil(() => Count != before);
    }

    /// <summary>Stops the guest.</summary>
    /// <returns>How it ended: cancelled, if all went well.</returns>
    public RunOutcome? Stop()
    {
        _ended.Cancel();
        _vcpu.Join();
        return _outcome;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _ = Stop();
        _machine.Dispose();
        _source.Dispose();
        _ended.Dispose();
    }

    // The one who waits needs its core where there are two for three.
    private void SpinUntil(Func<bool> reached)
    {
        const int turns = 50;
        double latest = HostClock.Instance.Nanoseconds + LongestNanoseconds;
        for (int i = 0; !reached(); i++)
        {
            if (i % turns == turns - 1)
            {
                _ = Thread.Yield();
                if (HostClock.Instance.Nanoseconds > latest)
                {
                    throw new InvalidOperationException(
                        $"an interrupt does not get to the guest, which has counted {Count}"
                    );
                }
            }

            if (_outcome is { } outcome)
            {
                throw new InvalidOperationException(
                    $"the guest has ended: {outcome.Message ?? outcome.End.ToString()}"
                );
            }
        }
    }

    private static byte[] Handler(GuestInterface guestInterface)
    {
        var a = new GuestAssembler(guestInterface);
        foreach (AssemblerRegister64 register in a.ClobberedByEndOfInterrupt)
        {
            a.push(register);
        }

        a.inc(__qword_ptr[Words]);
        a.EndOfInterrupt(Line);
        foreach (AssemblerRegister64 register in a.ClobberedByEndOfInterrupt.Reverse())
        {
            a.pop(register);
        }

        a.InterruptReturn();
        return MachineCode.Assemble(a, HandlerAddress);
    }

    private static byte[] Program(GuestInterface guestInterface, bool asleep)
    {
        var a = new GuestAssembler(guestInterface);
        Label again = a.CreateLabel();
        Label service = a.CreateLabel();
        Label start = a.CreateLabel();
        a.ServeDirectLine(Line, service);
        a.jmp(start);
        a.Label(ref service);
        a.inc(__qword_ptr[Words]);
        a.ret();

        a.Label(ref start);
        a.mov(rsp, Stack);
        a.lidt(__[IdtPointer]);
        foreach (
            (ushort port, byte value) in new (ushort, byte)[]
            {
                (InterruptController.MasterPort, 0x11), // ICW1: edges, cascaded, ICW4 follows
                (InterruptController.MasterPort + 1, FirstVector),
                (InterruptController.MasterPort + 1, 4), // ICW3: the slave is behind line 2
                (InterruptController.MasterPort + 1, 1), // ICW4: 8086 mode
                (InterruptController.MasterPort + 1, unchecked((byte)~(1 << Line))),
            }
        )
        {
            a.mov(al, value);
            a.@out((byte)port, al);
        }

        if (!asleep)
        {
            a.EnableInterrupts();
            a.nop();
        }

        a.Label(ref again);
        a.inc(__qword_ptr[Words + 8]);
        if (asleep)
        {
            a.WaitForInterrupt();
            a.inc(__qword_ptr[Words + 8]);
        }
        else
        {
            a.PollInterrupts();
        }

        a.jmp(again);
        a.EmitOutOfLine();
        return MachineCode.Assemble(a, Entry);
    }
}
