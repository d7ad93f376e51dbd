using Iced.Intel;
using VirtBench.Strategies;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Hardware.Tests;

/// <summary>
/// External interrupts reach a guest as the processor delivers them, under every strategy: the guests are the same, the 8259A
/// and the 8254 are the core's.
/// </summary>
public sealed class InterruptTests
{
    private const byte TimerVector = 0x20;
    private const byte OtherVector = 0x21; // line 1

    private const ulong TimerHandler = 0x50_0000;
    private const ulong OtherHandler = 0x51_0000;
    private const ulong FaultHandler = 0x52_0000;
    private const ulong OtherStack = 0x5F_0000;

    // Counters of the handlers, and what they note.
    private const ulong Ticks = HardwareGuest.Results;
    private const ulong Others = HardwareGuest.Results + 8;
    private const int Frame = 2; // RIP, CS, RFLAGS, RSP, SS, and RSP within
    private const int Noted = 8;

    private const ushort PulsePort = 0x500;

    /// <summary>
    /// Pulses of the 8254 in a period that leaves every engine time for the guest beside its handlers: a tenth of a millisecond of
    /// computed time, a millisecond, and 25 ms on the emulated machines of the lab.
    /// </summary>
    private static int Period(string strategy) =>
        strategy == HardwareGuest.Simulated ? 119
        : EmulatedMachine.IsQemu || EmulatedMachine.IsBochs ? 29_830
        : 1193;

    public static TheoryData<string> Strategies =>
        [HardwareGuest.Hardware, HardwareGuest.Simulated, HardwareGuest.TrapAndEmulate];

    /// <summary>Any access raises line 1, once for each item.</summary>
    private sealed class Pulser(InterruptController controller) : IIoDevice
    {
        public uint Read(ushort port, int size)
        {
            controller.Pulse(1);
            return 0x5A5A_5A5A;
        }

        public void Write(ushort port, int size, uint value) => controller.Pulse(1);
    }

    // The controller with nothing masked, and handlers: both count, note what they found and end the interrupt.
    private static HardwareGuest Guest(
        string strategy,
        Action<Assembler> program,
        Action<Assembler>? timer = null,
        Action<Assembler>? other = null,
        bool ringThree = false
    )
    {
        var guest = new HardwareGuest(program, strategy);
        if (ringThree)
        {
            guest.EnterInRingThree();
            guest.Cpu.Rflags |= Rflags.If;
            guest.Cpu.Rsp = HardwareGuest.Data + 0x8000;
        }
        else
        {
            guest.InstallHandlers();
            guest.InstallUserSegments();
            guest.Cpu.Idtr = new DescriptorTable(0x30_0000, 0xFFF);
            guest.Cpu.Tr = new Segment(HardwareGuest.TaskSelector, HardwareGuest.TaskState, 0x67, 0x8B);
        }

        guest.AnyEngine.LoadLazyState();
        IoBus ports = guest.Machine.Ports;
        ports.Attach(new Pulser(guest.Machine.Interrupts), PulsePort, 1);
        foreach (ushort chip in (ushort[])[InterruptController.MasterPort, InterruptController.SlavePort])
        {
            bool master = chip == InterruptController.MasterPort;
            ports.Write(chip, 1, 0x11, 0);
            ports.Write((ushort)(chip + 1), 1, master ? 0x20u : 0x28, 0);
            ports.Write((ushort)(chip + 1), 1, master ? 4u : 2, 0);
            ports.Write((ushort)(chip + 1), 1, 1, 0);
        }

        SetHandler(guest, TimerVector, TimerHandler, timer ?? (a => Count(a, Ticks)));
        SetHandler(guest, OtherVector, OtherHandler, other ?? (a => Count(a, Others)));
        return guest;
    }

    private static void SetHandler(
        HardwareGuest guest,
        byte vector,
        ulong at,
        Action<Assembler> body,
        ulong type = HardwareGuest.InterruptGate,
        ulong stack = 0
    )
    {
        var a = new Assembler(64);
        body(a);
        guest.Memory.Write(at, MachineCode.Assemble(a, at));
        guest.SetGate(vector, at, type, stack);
    }

    private static void Count(Assembler a, ulong counter)
    {
        a.push(rax);
        a.inc(__qword_ptr[counter]);
        EndOfInterrupt(a);
        a.pop(rax);
        a.iretq();
    }

    private static void EndOfInterrupt(Assembler a)
    {
        a.mov(al, 0x20);
        a.@out((byte)InterruptController.MasterPort, al);
    }

    // Copies the frame (RSP at its start) and RSP. Clobbers rax.
    private static void NoteFrame(Assembler a)
    {
        for (int i = 0; i < 5; i++)
        {
            a.mov(rax, __qword_ptr[rsp + (8 * i)]);
            a.Store(Frame + i, rax);
        }

        a.mov(rax, rsp);
        a.Store(Frame + 5, rax);
    }

    private static void SetTimer(HardwareGuest guest, int mode, int count)
    {
        IoBus ports = guest.Machine.Ports;
        ports.Write(IntervalTimer.FirstPort + 3, 1, (uint)(0x30 | (mode << 1)), 0);
        ports.Write(IntervalTimer.FirstPort, 1, (uint)count & 0xFF, 0);
        ports.Write(IntervalTimer.FirstPort, 1, (uint)count >> 8, 0);
    }

    private static void WaitFor(Assembler a, ulong counter, int count)
    {
        Label again = a.CreateLabel();
        a.Label(ref again);
        a.cmp(__qword_ptr[counter], count);
        a.jb(again);
    }

    private static long Handled(HardwareGuest guest, ulong counter) => guest.Memory.Read<long>(counter);

    // Every tick is with the guest, owed, behind the mask, or the one that waits.
    private static void AssertNoTickIsLostOrDoubled(HardwareGuest guest)
    {
        InterruptController pic = guest.Machine.Interrupts;
        IntervalTimer timer = guest.Machine.Timer;
        Assert.Equal(
            timer.Ticks,
            pic.Acknowledgements[0] + timer.Owed + timer.Masked + (pic.IsPending(IntervalTimer.Line) ? 1 : 0)
        );
        // The last one may have been taken and not counted yet: on its way, or in the handler's first instructions.
        Assert.InRange(pic.Acknowledgements[0] - Handled(guest, Ticks), 0, 1);
        Assert.Equal(0, pic.Spurious);
    }

    // ------------------------------------------------------------------------------------------ the timer

    [Theory]
    [MemberData(nameof(Strategies))]
    public void The_timer_ticks_in_ring_zero(string strategy)
    {
        using HardwareGuest guest = Guest(
            strategy,
            a =>
            {
                a.sti();
                WaitFor(a, Ticks, 20);
                a.cli();
                a.Exit(7);
            }
        );
        SetTimer(guest, mode: 2, Period(strategy));
        Assert.Equal(7, guest.RunToExit());
        AssertNoTickIsLostOrDoubled(guest);
        Assert.Equal(Handled(guest, Ticks), guest.Machine.Interrupts.Acknowledgements[0]);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void The_timer_ticks_in_ring_three_by_way_of_the_stack_in_the_tss(string strategy)
    {
        using HardwareGuest guest = Guest(
            strategy,
            a => a.LoopForEver(),
            timer: a =>
            {
                Label last = a.CreateLabel();
                NoteFrame(a);
                a.inc(__qword_ptr[Ticks]);
                EndOfInterrupt(a);
                a.cmp(__qword_ptr[Ticks], 20);
                a.je(last);
                a.iretq();
                a.Label(ref last);
                a.Exit(8);
            },
            ringThree: true
        );
        SetTimer(guest, mode: 3, Period(strategy));
        Assert.Equal(8, guest.RunToExit());
        Assert.Equal(20, Handled(guest, Ticks));
        Assert.Equal(HardwareGuest.Code, guest.Result(Frame));
        Assert.Equal(HardwareGuest.UserCode, (ushort)guest.Result(Frame + 1));
        Assert.Equal(
            Rflags.If | Rflags.AlwaysSet,
            guest.Result(Frame + 2) & (Rflags.If | Rflags.Iopl | Rflags.AlwaysSet)
        );
        Assert.Equal(HardwareGuest.Data + 0x8000, guest.Result(Frame + 3));
        Assert.Equal(HardwareGuest.UserData, (ushort)guest.Result(Frame + 4));
        Assert.Equal(HardwareGuest.RingZeroStack - 40, guest.Result(Frame + 5));
        AssertNoTickIsLostOrDoubled(guest);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void A_halted_guest_is_woken_and_goes_on_behind_HLT(string strategy)
    {
        using HardwareGuest guest = Guest(
            strategy,
            a =>
            {
                Label again = a.CreateLabel();
                a.xor(ebx, ebx);
                a.sti();
                a.Label(ref again);
                a.hlt();
                a.inc(rbx);
                a.cmp(rbx, 25);
                a.jb(again);
                a.cli();
                a.Store(Noted, rbx);
                a.Exit();
            },
            timer: a =>
            {
                a.push(rax);
                a.mov(rax, __qword_ptr[rsp + 8]);
                a.Store(Frame, rax);
                a.pop(rax);
                Count(a, Ticks);
            }
        );
        SetTimer(guest, mode: 2, Period(strategy));
        guest.RunToExit();
        Assert.Equal(25UL, guest.Result(Noted));
        Assert.InRange(guest.Exits(TrapReason.Halt), 1, 25);
        Assert.InRange(Handled(guest, Ticks), 25, 1000); // a busy host: some ticks may be late and so come at once
        AssertNoTickIsLostOrDoubled(guest);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void A_one_shot_wakes_once_and_then_nothing_will(string strategy)
    {
        using HardwareGuest guest = Guest(
            strategy,
            a =>
            {
                Label again = a.CreateLabel();
                a.sti();
                a.Label(ref again);
                a.hlt();
                a.jmp(again);
            }
        );
        SetTimer(guest, mode: 0, Period(strategy));
        Assert.Contains("no device of it can raise an interrupt", guest.RunToFailure(), StringComparison.Ordinal);
        Assert.Equal(1, Handled(guest, Ticks));
        Assert.Equal((1, ulong.MaxValue), (guest.Machine.Timer.Ticks, guest.Machine.Timer.NextEvent));
        Assert.Equal(2, guest.Exits(TrapReason.Halt));
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void There_are_as_many_ticks_as_periods_of_the_engines_clock(string strategy)
    {
        using HardwareGuest guest = Guest(
            strategy,
            a =>
            {
                a.sti();
                WaitFor(a, Ticks, 50);
                a.Exit();
            }
        );
        IEngineClock clock = guest.Machine.Clock;
        ulong before = clock.Ticks;
        SetTimer(guest, mode: 2, Period(strategy));
        ulong after = clock.Ticks;
        guest.RunToExit();
        ulong first = clock.Ticks;
        _ = guest.Machine.Ports.Read(IntervalTimer.FirstPort, 1, 0); // counts the periods up to now
        ulong last = clock.Ticks;
        double perPeriod = clock.TicksPerSecond * Period(strategy) / IntervalTimer.Hertz;

        // The first period begins with the pulse after the write; each bound is off by less than two pulses.
        Assert.InRange(
            guest.Machine.Timer.Ticks,
            (long)Math.Floor(((first - after) / perPeriod) - 0.01),
            (long)Math.Floor(((last - before) / perPeriod) + 0.01)
        );
        AssertNoTickIsLostOrDoubled(guest);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Stopping_and_going_on_neither_loses_nor_doubles_a_tick(string strategy)
    {
        using HardwareGuest guest = Guest(
            strategy,
            a =>
            {
                a.sti();
                WaitFor(a, Ticks, 100);
                a.cli();
                a.Exit();
            }
        );
        SetTimer(guest, mode: 2, Period(strategy) / 4);
        RunOutcome outcome;
        int stops = 0;
        TimeSpan limit = TimeSpan.FromMilliseconds(1);
        do
        {
            outcome = guest.Run(limit);
            stops++;
            limit *= 1.02; // on a slow host the first is over before the guest has begun
        } while (outcome.End == RunEnd.TimedOut);

        Assert.Equal(RunEnd.Exited, outcome.End);
        Assert.True(stops > 1 || strategy == HardwareGuest.Simulated);
        AssertNoTickIsLostOrDoubled(guest);
        Assert.Equal(Handled(guest, Ticks), guest.Machine.Interrupts.Acknowledgements[0]);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Kicks_neither_lose_nor_double_an_interrupt(string strategy)
    {
        using HardwareGuest guest = Guest(
            strategy,
            a =>
            {
                Label again = a.CreateLabel();
                a.sti();
                a.mov(dx, PulsePort);
                a.mov(r15d, 2000);
                a.Label(ref again);
                a.@in(al, dx);
                a.dec(r15d);
                a.jnz(again);
                a.cli();
                a.Exit();
            }
        );
        using var done = new CancellationTokenSource();
        CancellationToken stop = done.Token;
        IExecutionEngine engine = guest.AnyEngine;
        var kicker = new Thread(() =>
        {
            // Not before the guest has got on since the last kick: on a single CPU it would do nothing but be kicked.
            long seen = -1;
            while (!stop.IsCancellationRequested)
            {
                long taken = guest.Machine.Interrupts.Acknowledgements[1];
                if (taken != seen)
                {
                    seen = taken;
                    engine.Kick();
                }

                Thread.Yield();
            }
        });
        kicker.Start();
        guest.RunToExit();
        done.Cancel();
        kicker.Join();
        Assert.Equal((2000, 2000), (Handled(guest, Others), guest.Machine.Interrupts.Acknowledgements[1]));
    }

    // Ticks into straight-line code with string instructions and into HLT; what the clock shows at the end.
    private static (ulong Ticks, long Kicks) SimulatedTime(bool kicks)
    {
        using HardwareGuest guest = Guest(
            HardwareGuest.Simulated,
            a =>
            {
                Label again = a.CreateLabel();
                a.mov(r15d, 30);
                a.sti();
                a.Label(ref again);
                a.mov(rdi, HardwareGuest.Data);
                a.mov(ecx, 100_000);
                a.rep.stosb();
                for (int i = 0; i < 100; i++)
                {
                    a.inc(rbx);
                }

                a.hlt();
                a.dec(r15d);
                a.jnz(again);
                a.Exit();
            }
        );
        SetTimer(guest, mode: 2, 21);
        using var done = new CancellationTokenSource();
        CancellationToken stop = done.Token;
        IExecutionEngine engine = guest.AnyEngine;
        var kicker = new Thread(() =>
        {
            while (kicks && !stop.IsCancellationRequested)
            {
                engine.Kick();
                Thread.SpinWait(50);
            }
        });
        kicker.Start();
        guest.RunToExit();
        done.Cancel();
        kicker.Join();
        return (engine.Clock.Ticks, guest.Exits(TrapReason.Kick));
    }

    [Fact]
    public void When_the_host_kicks_does_not_show_in_the_time_of_a_simulated_guest_that_takes_interrupts()
    {
        (ulong ticks, long exits) = SimulatedTime(kicks: false);
        Assert.Equal((ticks, exits), SimulatedTime(kicks: false));
        Assert.Equal(ticks, SimulatedTime(kicks: true).Ticks);
        Assert.True(exits > 0);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void A_storm_of_interrupts_is_ended_by_the_time_limit_in_one_line(string strategy)
    {
        using HardwareGuest guest = Guest(
            strategy,
            a =>
            {
                a.sti();
                a.LoopForEver();
            }
        );
        SetTimer(guest, mode: 2, 2); // 600 000 a second
        RunOutcome outcome = guest.Run(TimeSpan.FromMilliseconds(200));
        Assert.Equal(RunEnd.TimedOut, outcome.End);
        Assert.DoesNotContain('\n', outcome.Message!);
        Assert.True(Handled(guest, Ticks) > 10, $"{Handled(guest, Ticks)} ticks");
        AssertNoTickIsLostOrDoubled(guest);
    }

    // ------------------------------------------------------------------------------------------ when they are taken

    // Its exits are batches of emulated instructions.
    private static void SkipUnderPvm(string strategy)
    {
        if (strategy == HardwareGuest.Hardware)
        {
            HardwareGuest.SkipUnderPvm("looks for interrupts only once in about a thousand instructions of ring 0");
        }
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void An_interrupt_waits_for_as_long_as_interrupts_are_off(string strategy)
    {
        using HardwareGuest guest = Guest(
            strategy,
            a =>
            {
                Label again = a.CreateLabel();
                a.mov(dx, PulsePort);
                a.@out(dx, al);
                a.mov(ecx, 5000);
                a.Label(ref again);
                a.dec(ecx);
                a.jnz(again);
                a.@out(0x80, al);
                a.mov(rax, __qword_ptr[Others]);
                a.Store(Noted, rax);
                a.sti();
                WaitFor(a, Others, 1);
                a.cli();
                a.Exit();
            }
        );
        guest.RunToExit();
        Assert.Equal((0UL, 1), (guest.Result(Noted), Handled(guest, Others)));
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void An_interrupt_comes_one_instruction_after_STI(string strategy)
    {
        SkipUnderPvm(strategy);
        using HardwareGuest guest = Guest(
            strategy,
            a =>
            {
                a.mov(dx, PulsePort);
                a.@out(dx, al);
                a.xor(ebx, ebx);
                a.sti();
                a.inc(rbx);
                a.inc(rbx);
                a.inc(rbx);
                a.cli();
                a.Exit();
            },
            other: a =>
            {
                NoteFrame(a);
                a.Store(Noted, rbx);
                Count(a, Others);
            }
        );
        ulong expected = AddressBehind(guest, [0xFB, 0x48, 0xFF, 0xC3]);
        guest.RunToExit();
        Assert.Equal(1UL, guest.Result(Noted));
        Assert.Equal(expected, guest.Result(Frame));
        Assert.Equal(0x08UL, guest.Result(Frame + 1) & 0xFFFF);
        Assert.NotEqual(0UL, guest.Result(Frame + 2) & Rflags.If);
        Assert.Equal(1, Handled(guest, Others));
    }

    // Address behind a sequence of code bytes that is there once.
    private static ulong AddressBehind(HardwareGuest guest, ReadOnlySpan<byte> sequence)
    {
        byte[] code = new byte[512];
        guest.Memory.Read(HardwareGuest.Code, code);
        int at = code.AsSpan().IndexOf(sequence);
        Assert.True(at >= 0);
        return HardwareGuest.Code + (ulong)(at + sequence.Length);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void STI_and_HLT_do_not_miss_an_interrupt_that_is_there_already(string strategy)
    {
        using HardwareGuest guest = Guest(
            strategy,
            a =>
            {
                a.mov(dx, PulsePort);
                a.@out(dx, al);
                a.sti();
                a.hlt(); // in the shadow: it halts and is woken at once
                a.cli();
                a.Exit();
            },
            other: a =>
            {
                NoteFrame(a);
                Count(a, Others);
            }
        );
        ulong behind = AddressBehind(guest, [0xFB, 0xF4]);
        guest.RunToExit();
        Assert.Equal((1, behind), (Handled(guest, Others), guest.Result(Frame)));
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Loading_SS_holds_interrupts_off_for_one_instruction(string strategy)
    {
        SkipUnderPvm(strategy);
        using HardwareGuest guest = Guest(
            strategy,
            a =>
            {
                a.xor(ebx, ebx);
                a.mov(ecx, 0x10);
                a.mov(dx, PulsePort);
                a.sti();
                a.nop();
                a.@out(dx, al); // taken behind this
                a.inc(rbx);
                a.mov(ss, ecx);
                a.inc(rbx);
                a.cli();
                a.Exit();
            },
            other: a =>
            {
                a.Store(Noted, rbx);
                Count(a, Others);
            }
        );
        guest.RunToExit();
        Assert.Equal((1, 0UL, 2UL), (Handled(guest, Others), guest.Result(Noted), guest.Cpu[Gpr.Rbx]));
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Interrupts_nest_by_priority_and_the_lower_waits_for_the_EOI(string strategy)
    {
        // Line 1's handler lets interrupts in: the timer's comes; line 1's own, raised within, does not before the EOI.
        using HardwareGuest guest = Guest(
            strategy,
            a =>
            {
                a.mov(dx, PulsePort);
                a.sti();
                a.nop();
                a.@out(dx, al);
                WaitFor(a, Others, 2);
                a.cli();
                a.Exit();
            },
            other: a =>
            {
                Label second = a.CreateLabel();
                a.push(rax);
                a.push(rdx);
                a.cmp(__qword_ptr[Others], 1);
                a.jae(second);
                a.mov(dx, PulsePort);
                a.@out(dx, al);
                a.sti();
                WaitFor(a, Ticks, 3); // nested in this handler
                a.cli();
                a.mov(rax, __qword_ptr[Others]);
                a.Store(Noted, rax); // none of its own kind so far
                a.Label(ref second);
                a.pop(rdx);
                a.pop(rax);
                Count(a, Others);
            }
        );
        SetTimer(guest, mode: 2, Period(strategy));
        guest.RunToExit();
        Assert.Equal((0UL, 2), (guest.Result(Noted), Handled(guest, Others)));
        Assert.True(Handled(guest, Ticks) >= 3);
        AssertNoTickIsLostOrDoubled(guest);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Of_two_that_wait_the_higher_priority_comes_first(string strategy)
    {
        using HardwareGuest guest = Guest(
            strategy,
            a =>
            {
                a.sti();
                WaitFor(a, Others, 1);
                a.cli();
                a.Exit();
            },
            timer: a => Count(a, Ticks),
            other: a =>
            {
                a.push(rax);
                a.mov(rax, __qword_ptr[Ticks]);
                a.Store(Noted, rax);
                a.pop(rax);
                Count(a, Others);
            }
        );
        guest.Machine.Interrupts.Pulse(1);
        guest.Machine.Interrupts.Pulse(0);
        guest.RunToExit();
        Assert.Equal((1UL, 1, 1), (guest.Result(Noted), Handled(guest, Ticks), Handled(guest, Others)));
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void An_interrupt_gate_with_a_stack_of_its_own_switches_to_it_in_ring_zero_too(string strategy)
    {
        using HardwareGuest guest = Guest(
            strategy,
            a =>
            {
                a.mov(rsp, HardwareGuest.Data + 0x8008); // not aligned: the frame is pushed from the IST's all the same
                a.sti();
                WaitFor(a, Others, 1);
                a.cli();
                a.Exit();
            }
        );
        guest.Memory.Write(HardwareGuest.TaskState + 36 + 16, OtherStack); // IST3
        SetHandler(
            guest,
            OtherVector,
            OtherHandler,
            a =>
            {
                NoteFrame(a);
                Count(a, Others);
            },
            stack: 3
        );
        guest.Machine.Interrupts.Pulse(1);
        guest.RunToExit();
        Assert.Equal(
            (HardwareGuest.Data + 0x8008, OtherStack - 40),
            (guest.Result(Frame + 3), guest.Result(Frame + 5))
        );
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void An_interrupt_comes_behind_each_of_many_accesses_to_a_device(string strategy)
    {
        const int times = 500;
        using HardwareGuest guest = Guest(
            strategy,
            a =>
            {
                Label again = a.CreateLabel();
                a.mov(dx, PulsePort);
                a.xor(r14d, r14d);
                a.mov(r15d, times);
                a.sti();
                a.Label(ref again);
                a.mov(eax, 0x11);
                a.@in(al, dx); // the value arrives before the interrupt
                a.movzx(eax, al);
                a.add(r14, rax);
                a.dec(r15d);
                a.jnz(again);
                a.cli();
                a.Store(Noted, r14);
                a.Exit();
            }
        );
        guest.RunToExit();
        Assert.Equal((times, times * 0x5AUL), (Handled(guest, Others), guest.Result(Noted)));
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void String_input_that_raises_interrupts_loses_no_byte(string strategy)
    {
        const int bytes = 5000;
        using HardwareGuest guest = Guest(
            strategy,
            a =>
            {
                a.mov(dx, PulsePort);
                a.mov(rdi, HardwareGuest.Data + 0xF80); // over several pages
                a.mov(ecx, bytes);
                a.sti();
                a.rep.insb();
                a.nop();
                a.cli();
                a.Store(Noted, rdi);
                a.Store(Noted + 1, rcx);
                a.Exit();
            }
        );
        guest.RunToExit();
        Assert.Equal((HardwareGuest.Data + 0xF80 + bytes, 0UL), (guest.Result(Noted), guest.Result(Noted + 1)));
        byte[] read = new byte[bytes + 1];
        guest.Memory.Read(HardwareGuest.Data + 0xF80, read);
        Assert.Equal(bytes, read.AsSpan().IndexOfAnyExcept((byte)0x5A));
        Assert.Equal(Handled(guest, Others), guest.Machine.Interrupts.Acknowledgements[1]);
        Assert.InRange(Handled(guest, Others), 1, bytes);
    }

    // ------------------------------------------------------------------------------------------ together with exceptions

    [Theory]
    [MemberData(nameof(Strategies))]
    public void A_page_fault_that_waits_goes_before_an_interrupt_and_its_gate_holds_that_back(string strategy)
    {
        using HardwareGuest guest = Guest(strategy, a => a.ud2());
        SetHandler(
            guest,
            Vector.PageFault,
            FaultHandler,
            a =>
            {
                a.mov(rax, __qword_ptr[Others]);
                a.Store(Noted, rax);
                a.mov(rax, cr2);
                a.Store(Noted + 1, rax);
                a.mov(rax, __qword_ptr[rsp]);
                a.Store(Noted + 2, rax);
                a.sti();
                WaitFor(a, Others, 1);
                a.cli();
                a.Exit(3);
            }
        );
        Prepare(guest);
        Assert.Equal(3, guest.RunToExit());
        Assert.Equal(
            (0UL, 0x1234_5000UL, 4UL),
            (guest.Result(Noted), guest.Result(Noted + 1), guest.Result(Noted + 2))
        );
        Assert.Equal(1, Handled(guest, Others));
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Through_a_trap_gate_the_interrupt_comes_before_the_fault_handlers_first_instruction(string strategy)
    {
        SkipUnderPvm(strategy);
        using HardwareGuest guest = Guest(
            strategy,
            a => a.ud2(),
            other: a =>
            {
                NoteFrame(a);
                Count(a, Others);
            }
        );
        SetHandler(
            guest,
            Vector.PageFault,
            FaultHandler,
            a =>
            {
                a.mov(rax, __qword_ptr[Others]);
                a.Store(Noted, rax);
                a.cli();
                a.Exit(4);
            },
            HardwareGuest.TrapGate
        );
        Prepare(guest);
        Assert.Equal(4, guest.RunToExit());
        Assert.Equal((1UL, FaultHandler), (guest.Result(Noted), guest.Result(Frame)));
    }

    // A #PF that is pending while line 1 is up and interrupts are on.
    private static void Prepare(HardwareGuest guest)
    {
        guest.Cpu.Rflags |= Rflags.If;
        guest.Cpu.PendingEvent = GuestEvent.PageFault(0x1234_5000, 4);
        guest.Machine.Interrupts.Pulse(1);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void A_halted_guest_whose_handler_never_ended_the_interrupt_is_told_so(string strategy)
    {
        using HardwareGuest guest = Guest(
            strategy,
            a =>
            {
                Label again = a.CreateLabel();
                a.sti();
                a.Label(ref again);
                a.hlt();
                a.jmp(again);
            },
            timer: a =>
            {
                a.inc(__qword_ptr[Ticks]);
                a.iretq();
            }
        );
        SetTimer(guest, mode: 2, Period(strategy));
        Assert.EndsWith("(EOI)", guest.RunToFailure(), StringComparison.Ordinal);
        Assert.Equal(1, Handled(guest, Ticks));
    }
}
