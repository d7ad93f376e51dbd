using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Tests.Interrupts;

/// <summary>
/// A guest in ring 0 with a handler for each line, which counts, and a thread outside that raises one line, each time when the guest has counted the
/// one before.
/// </summary>
internal sealed class InterruptGuest : IDisposable
{
    public const ulong Code = 0x10_0000;
    public const ulong Data = 0x20_0000;

    /// <summary>Quadword a line: interrupts that its handler has seen.</summary>
    public const ulong Counts = 0x21_0000;

    public const ulong Idt = 0x22_0000;
    public const ulong Stack = 0x28_0000;
    public const int Line = 5;
    public const byte FirstVector = 0x20;
    public const byte Spurious = 0xEE;
    public static readonly TimeSpan Ample = TimeSpan.FromSeconds(30);

    private const ulong Ready = Counts + 0x100;
    private const ulong Handlers = 0x18_0000;
    private const ulong HandlerSize = 256;
    private const ulong IdtPointer = 0x22_8000;

    /// <param name="strategy">Id.</param>
    /// <param name="delivery">How interrupts get to it.</param>
    /// <param name="program">The program, interrupts off, all lines masked but <see cref="Line"/>.</param>
    /// <param name="inHandler">At the beginning of the line's handler, RAX free.</param>
    /// <param name="behindEoi">At its end.</param>
    public InterruptGuest(
        string strategy,
        InterruptDelivery delivery,
        Action<Assembler> program,
        Action<Assembler>? inHandler = null,
        Action<Assembler>? behindEoi = null
    )
    {
        Strategy found = StrategyCatalog.Find(strategy)!;
        string? reason = found.UnavailableReason() ?? found.WhyNotDelivered(delivery);
        Assert.SkipWhen(reason is not null, reason ?? "");
        IExecutionEngine engine = null!;
        Machine = new VirtualMachine(16 << 20, (cpu, memory) => engine = found.CreateEngine(cpu, memory, delivery));
        Engine = engine;
        Source = Machine.ConnectInterrupt(Line, delivery);
        var a = new Assembler(64);
        a.mov(rsp, Stack);
        a.lidt(__[IdtPointer]);
        foreach (
            (ushort port, byte value) in new (ushort, byte)[]
            {
                (InterruptController.MasterPort, 0x11),
                (InterruptController.MasterPort + 1, FirstVector),
                (InterruptController.MasterPort + 1, 4),
                (InterruptController.MasterPort + 1, 1),
                (InterruptController.MasterPort + 1, unchecked((byte)~(1 << Line))),
            }
        )
        {
            a.mov(al, value);
            a.@out((byte)port, al);
        }

        a.mov(__qword_ptr[Ready], 1); // an interrupt that came before would be forgotten
        program(a);
        byte[] code = MachineCode.Assemble(a, Code);
        byte[] handlers = new byte[8 * HandlerSize];
        for (int line = 0; line < 8; line++)
        {
            ulong at = Handlers + ((ulong)line * HandlerSize);
            var h = new Assembler(64);
            h.push(rax);
            if (line == Line)
            {
                inHandler?.Invoke(h);
            }

            h.inc(__qword_ptr[Counts + (8 * (ulong)line)]);
            h.mov(al, 0x20);
            h.@out((byte)InterruptController.MasterPort, al);
            if (line == Line)
            {
                behindEoi?.Invoke(h);
            }

            h.pop(rax);
            h.iretq();
            MachineCode.Assemble(h, at).CopyTo(handlers, (int)(at - Handlers));
        }

        Machine.Load(
            new GuestImage(
                "test",
                Code,
                [
                    new ImageSegment(Code, code, (ulong)code.Length, Executable: true),
                    new ImageSegment(Handlers, handlers, (ulong)handlers.Length, Executable: true),
                ]
            ),
            new BootOptions()
        );
        for (int line = 0; line < 8; line++)
        {
            SetGate(FirstVector + line, Handlers + ((ulong)line * HandlerSize));
        }

        Machine.Memory.Write(IdtPointer, (ushort)0xFFF);
        Machine.Memory.Write(IdtPointer + 2, Idt);
    }

    public VirtualMachine Machine { get; }

    public IExecutionEngine Engine { get; }

    public InterruptSource Source { get; }

    public ulong Count(int line = Line) => Volatile.Read(ref Reference(Counts + (8 * (ulong)line)));

    public unsafe ref ulong Reference(ulong address) => ref *(ulong*)Machine.Memory.Touch(address);

    public void SetGate(int vector, ulong handler, byte type = 0x8E)
    {
        ulong gate = Idt + (16 * (ulong)vector);
        Machine.Memory.Write(
            gate,
            (handler & 0xFFFF) | (8UL << 16) | ((ulong)type << 40) | ((handler & 0xFFFF_0000) << 32)
        );
        Machine.Memory.Write(gate + 8, handler >> 32);
    }

    /// <summary>Waits in a loop that only memory gets it out of, interrupts on.</summary>
    public static void SpinUntil(Assembler a, ulong count)
    {
        Label again = a.CreateLabel();
        a.sti();
        a.mov(rbx, count);
        a.Label(ref again);
        a.cmp(__qword_ptr[Counts + (8 * Line)], rbx);
        a.jb(again);
        a.cli();
    }

    public static void Exit(Assembler a, byte status = 0)
    {
        a.mov(al, status);
        a.@out((byte)ExitPort.Port, al);
    }

    public RunOutcome Run() => Machine.Run(Ample, CancellationToken.None);

    /// <summary>Runs it while interrupts come, so many one after the other.</summary>
    public RunOutcome Run(ulong pulses)
    {
        var device = new Thread(() =>
        {
            WaitUntilReady();
            for (ulong i = 0; i < pulses && !_ended; i++)
            {
                Source.Pulse();
                while (Count() <= i && !_ended)
                {
                    _ = Thread.Yield();
                }
            }
        });
        device.Start();
        RunOutcome outcome = Run();
        _ended = true;
        device.Join();
        return outcome;
    }

    /// <summary>Until the guest has set its interrupt controllers up.</summary>
    public void WaitUntilReady()
    {
        while (Volatile.Read(ref Reference(Ready)) == 0 && !_ended)
        {
            _ = Thread.Yield();
        }
    }

    private volatile bool _ended;

    public void RunToExit(ulong pulses)
    {
        RunOutcome outcome = Run(pulses);
        Assert.Equal((RunEnd.Exited, null, 0), (outcome.End, outcome.Message, outcome.Status));
    }

    public InterruptLineStatistics Statistics =>
        Assert.Single(Machine.InterruptStatistics()!.Lines, line => line.Line == Line);

    public void Dispose()
    {
        Machine.Dispose();
        Source.Dispose();
    }
}
