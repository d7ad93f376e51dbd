using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;

namespace VirtBench.Vmm.Tests;

/// <summary>When the run loop takes interrupts, and what it does about time; driven by a scripted engine.</summary>
public sealed class InterruptLoopTests : IDisposable
{
    private const ulong Code = 0x10_0000;
    private const ulong Handler = 0x10_0800;
    private const ulong Idt = 0x14_0000;
    private const byte Vector0 = 0x20;

    private ScriptedEngine _engine = null!;
    private VirtualMachine? _vm;

    public void Dispose() => _vm?.Dispose();

    private static readonly EngineCapabilities Delivering = new()
    {
        TimeSource = "computed: script",
        DeliversEvents = true,
    };

    // Code and, for the vectors of both controllers, the handler "out 0xF4, al" with AL as it is.
    private VirtualMachine Boot(byte[] code, EngineCapabilities? capabilities = null)
    {
        _vm = new VirtualMachine(
            4 << 20,
            (cpu, _) =>
                _engine = new ScriptedEngine(cpu)
                {
                    Capabilities = capabilities ?? new EngineCapabilities { TimeSource = "computed: script" },
                }
        );
        byte[] all = new byte[0x1000];
        code.CopyTo(all, 0);
        ((byte[])[0xE6, 0xF4]).CopyTo(all, (int)(Handler - Code));
        _vm.Load(new GuestImage("test", Code, [new ImageSegment(Code, all, 0x1000, true)]), new BootOptions());
        for (ulong vector = 0; vector < 0x30; vector++)
        {
            _vm.Memory.Write(
                Idt + (16 * vector),
                (Handler & 0xFFFF) | (8UL << 16) | (0x8EUL << 40) | (Handler >> 16 << 48)
            );
            _vm.Memory.Write(Idt + (16 * vector) + 8, 0UL);
        }

        _vm.Cpu.Idtr = new DescriptorTable(Idt, 0x2FF);
        _vm.Cpu.Rsp = 0x18_0000;
        foreach ((ushort port, uint value) in ((ushort, uint)[])[(0x20, 0x11), (0x21, Vector0), (0x21, 4), (0x21, 1)])
        {
            _vm.Ports.Write(port, 1, value, 0);
        }

        return _vm;
    }

    private void StartTimer(int mode, int count)
    {
        _vm!.Ports.Write(0x43, 1, (uint)(0x30 | (mode << 1)), 0);
        _vm.Ports.Write(0x40, 1, (uint)count & 0xFF, 0);
        _vm.Ports.Write(0x40, 1, (uint)count >> 8, 0);
    }

    private RunOutcome Run(TimeSpan? timeout = null) =>
        _vm!.Run(timeout ?? TimeSpan.FromSeconds(30), TestContext.Current.CancellationToken);

    // The guest exits in the handler: with what, and where it was interrupted.
    private (RunEnd End, ulong At) Interrupted()
    {
        RunOutcome outcome = Run();
        return (outcome.End, _vm!.Cpu.Rip >= Handler ? _vm.Memory.Read<ulong>(_vm.Cpu.Rsp) : 0);
    }

    [Fact]
    public void An_interrupt_waits_while_the_flag_is_off_and_comes_behind_the_instruction_after_STI()
    {
        VirtualMachine vm = Boot([0xFA, 0xFA, 0xFB, 0xFA, 0xFB, 0xFB]); // cli; cli; sti; cli; sti; sti
        vm.Interrupts.Pulse(3);

        // CLI in the shadow of the first STI: the flag is off again when the shadow is over. The second's is over behind STI.
        Assert.Equal((RunEnd.Exited, Code + 6), Interrupted());
        Assert.Equal([Vector0 + 3], Frames(vm));
        Assert.Equal(2, _engine.Calls.Count(call => call == "step"));
    }

    // The vectors of the interrupts that have been delivered: their lines by the controller's account.
    private static IEnumerable<int> Frames(VirtualMachine vm) =>
        Enumerable
            .Range(0, InterruptController.Lines)
            .SelectMany(line => Enumerable.Repeat(Vector0 + line, (int)vm.Interrupts.Acknowledgements[line]));

    [Fact]
    public void In_an_interrupt_shadow_one_instruction_is_stepped()
    {
        VirtualMachine vm = Boot([0x90, 0x90]);
        vm.Cpu.Rflags |= Rflags.If;
        vm.Cpu.InterruptShadow = true;
        vm.Interrupts.Pulse(0);
        _engine.Script.Enqueue(cpu =>
        {
            cpu.Rip++;
            return new VmExit(VmExitReason.Stepped);
        });
        Assert.Equal((RunEnd.Exited, Code + 1), Interrupted());
        Assert.Equal(1, vm.Ledger.Count(TrapReason.SingleStep));
        Assert.Equal("step", _engine.Calls.First(call => call is "step" or "run"));
    }

    [Fact]
    public void A_kick_before_the_step_leaves_the_shadow_as_it_is()
    {
        VirtualMachine vm = Boot([0x90, 0x90]);
        vm.Cpu.Rflags |= Rflags.If;
        vm.Cpu.InterruptShadow = true;
        vm.Interrupts.Pulse(0);
        _engine.Script.Enqueue(_ => new VmExit(VmExitReason.Interrupted));
        _engine.Script.Enqueue(cpu =>
        {
            cpu.Rip++;
            return new VmExit(VmExitReason.Stepped);
        });
        Assert.Equal((RunEnd.Exited, Code + 1), Interrupted());
        Assert.Equal(2, _engine.Calls.Count(call => call == "step"));
    }

    [Fact]
    public void An_exception_is_delivered_before_an_interrupt_and_its_gate_holds_that_back()
    {
        VirtualMachine vm = Boot([0x90]);
        vm.Cpu.Rflags |= Rflags.If;
        vm.Interrupts.Pulse(0);
        vm.Cpu.PendingEvent = GuestEvent.PageFault(0x1234_5000, 0);
        Assert.Equal(RunEnd.Exited, Run().End);
        Assert.Equal((0x1234_5000UL, 0), (vm.Cpu.Cr2, vm.Interrupts.Acknowledgements[0]));
        Assert.Equal(0UL, vm.Memory.Read<ulong>(vm.Cpu.Rsp)); // its error code on top
    }

    [Fact]
    public void Interrupts_are_taken_in_the_order_of_their_priority()
    {
        VirtualMachine vm = Boot([0x90], Delivering);
        vm.Cpu.Rflags |= Rflags.If;
        vm.Ports.Write(0x20, 1, 0x11, 0);
        vm.Ports.Write(0x21, 1, Vector0, 0);
        vm.Ports.Write(0x21, 1, 4, 0);
        vm.Ports.Write(0x21, 1, 3, 0); // automatic EOI
        vm.Interrupts.Pulse(6);
        vm.Interrupts.Pulse(1);
        vm.Interrupts.Pulse(3);
        _engine.Script.Enqueue(_ => new VmExit(VmExitReason.Interrupted));
        _engine.Script.Enqueue(_ => new VmExit(VmExitReason.Interrupted));
        _engine.Script.Enqueue(_ => new VmExit(VmExitReason.Failed, Message: "the end"));
        Assert.Equal("the end", Run().Message);
        Assert.Equal([0x21, 0x23, 0x26], _engine.Injected.Select(injected => (int)injected.Number));
        Assert.All(_engine.Injected, injected => Assert.Equal(GuestEventKind.Interrupt, injected.Kind));
    }

    [Fact]
    public void An_engine_that_does_not_accept_interrupts_is_asked_for_a_window_and_gets_it_then()
    {
        VirtualMachine vm = Boot([0x90], Delivering);
        vm.Interrupts.Pulse(0);
        _engine.AcceptsInterrupt = false;
        _engine.Script.Enqueue(_ => new VmExit(VmExitReason.Interrupted));
        _engine.Script.Enqueue(_ =>
        {
            Assert.Empty(_engine.Injected);
            _engine.AcceptsInterrupt = true;
            return new VmExit(VmExitReason.InterruptWindow);
        });
        _engine.Script.Enqueue(_ => new VmExit(VmExitReason.Failed, Message: "the end"));
        Assert.Equal("the end", Run().Message);
        Assert.Equal(2, _engine.Calls.Count(call => call == "window"));
        Assert.Equal(GuestEvent.Interrupt(Vector0), Assert.Single(_engine.Injected));
        Assert.Equal(1, vm.Ledger.Count(TrapReason.InterruptWindow));
    }

    [Fact]
    public void Nothing_is_asked_of_an_engine_while_no_interrupt_waits()
    {
        _ = Boot([0x90], Delivering);
        _engine.AcceptsInterrupt = false;
        _engine.Script.Enqueue(_ => new VmExit(VmExitReason.Failed, Message: "the end"));
        _ = Run();
        Assert.DoesNotContain("window", _engine.Calls);
        Assert.Empty(_engine.Deadlines);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_halted_cpu_idles_until_the_timer_and_goes_on_behind_HLT(bool delivers)
    {
        VirtualMachine vm = Boot([0xF4, 0x90], delivers ? Delivering : null);
        vm.Cpu.Rflags |= Rflags.If;
        ulong before = _engine.Ticks;
        StartTimer(mode: 0, 1000);
        if (delivers)
        {
            _engine.AcceptsInterrupt = false; // of the last exit: a halted CPU takes it all the same
            _engine.Script.Enqueue(cpu =>
            {
                cpu.Rip++;
                return new VmExit(VmExitReason.Halt);
            });
            _engine.Script.Enqueue(_ => new VmExit(VmExitReason.Failed, Message: "the end"));
            Assert.Equal("the end", Run().Message);
            Assert.Equal(GuestEvent.Interrupt(Vector0), Assert.Single(_engine.Injected));
        }
        else
        {
            Assert.Equal((RunEnd.Exited, Code + 1), Interrupted());
        }

        Assert.False(vm.Cpu.Halted);
        Assert.Equal(1, _engine.Calls.Count(call => call == "idle"));
        Assert.Equal(1, vm.Ledger.Count(TrapReason.Halt));
        ulong due = before + (ulong)Math.Ceiling(1001 * 2e9 / IntervalTimer.Hertz);
        Assert.InRange(_engine.Deadlines[0], due - 2, due + 2);
        Assert.InRange(_engine.Ticks, due - 2, due + 100);
    }

    [Fact]
    public void STI_before_HLT_does_not_make_the_shadow_outlast_the_halt()
    {
        VirtualMachine vm = Boot([0xFB, 0xF4, 0x90]);
        vm.Interrupts.Pulse(5);
        Assert.Equal((RunEnd.Exited, Code + 2), Interrupted());
        Assert.DoesNotContain("idle", _engine.Calls);
    }

    private static readonly Dictionary<string, (Action<InterruptLoopTests> Prepare, string Why)> Asleep = new()
    {
        ["off"] = (_ => { }, "interrupts are off"),
        ["no timer"] = (test => test._vm!.Cpu.Rflags |= Rflags.If, "no device of it can raise an interrupt to wake it"),
        ["masked"] = (
            test =>
            {
                test._vm!.Cpu.Rflags |= Rflags.If;
                test.StartTimer(2, 1000);
                test._vm.Ports.Write(0x21, 1, 1, 0);
            },
            "the timer's interrupt, the only one to come, is masked"
        ),
        ["no EOI"] = (
            test =>
            {
                test._vm!.Cpu.Rflags |= Rflags.If;
                test._vm.Interrupts.Pulse(0);
                _ = test._vm.Interrupts.Acknowledge();
                test.StartTimer(2, 1000);
            },
            "the timer's interrupt waits for one in service that the guest has not ended (EOI)"
        ),
    };

    public static TheoryData<string> Reasons => [.. Asleep.Keys];

    [Theory]
    [MemberData(nameof(Reasons))]
    public void A_guest_that_nothing_will_wake_ends_with_a_line_that_says_why(string reason)
    {
        VirtualMachine vm = Boot([0xF4]);
        Asleep[reason].Prepare(this);
        string expected = $"the guest executed HLT before RIP 0x{Code + 1:X} and {Asleep[reason].Why}";
        Assert.Equal(new RunOutcome(RunEnd.Failed, 0, expected), Run());
        Assert.Equal(new RunOutcome(RunEnd.Failed, 0, expected), Run()); // and stays so
        Assert.True(vm.Cpu.Halted);
    }

    [Fact]
    public void A_guest_that_only_sleeps_is_stopped_by_its_time_limit_and_sleeps_on()
    {
        VirtualMachine vm = Boot([0xF4]);
        vm.Cpu.Rflags |= Rflags.If;
        StartTimer(mode: 0, 0);
        Assert.Equal(RunEnd.TimedOut, Run(TimeSpan.Zero).End);
        Assert.Equal((RunEnd.Exited, Code + 1), Interrupted());
    }

    [Fact]
    public void A_cancelled_guest_that_sleeps_is_cancelled()
    {
        VirtualMachine vm = Boot([0xF4]);
        vm.Cpu.Rflags |= Rflags.If;
        StartTimer(mode: 0, 0);
        Assert.Equal(RunEnd.Cancelled, _vm!.Run(null, new CancellationToken(canceled: true)).End);
    }

    [Fact]
    public void A_storm_of_ticks_lets_the_guest_get_on_between_them()
    {
        // The handler is the guest: sti; nop-like CLIs; every entry is one exit of 10 ticks, a period is 2 pulses of 1676.
        VirtualMachine vm = Boot([0xFB, 0xFA, 0xEB, 0xFC]);
        StartTimer(mode: 2, 2);
        for (int i = 0; i < 1000; i++)
        {
            _engine.Script.Enqueue(_ =>
            {
                _engine.Ticks += 10_000; // six periods late, each time
                return new VmExit(VmExitReason.Interrupted);
            });
        }

        _engine.Script.Enqueue(_ => new VmExit(VmExitReason.Failed, Message: "the end"));
        Assert.Equal("the end", Run().Message);
        Assert.Equal(ulong.MaxValue, _engine.Deadline); // one waits, and until it is taken there is nothing to come
        _ = vm.Ports.Read(0x40, 1, 0);
        Assert.InRange(vm.Timer.Ticks, 2900, 3000);
        Assert.Equal(vm.Timer.Ticks - 1, vm.Timer.Owed);
        Assert.Equal(1, _engine.Deadlines.Count(deadline => deadline != ulong.MaxValue));
    }

    [Fact]
    public void The_account_of_interrupts_is_there_once_a_controller_is_initialized()
    {
        using var fresh = new VirtualMachine(4 << 20, (cpu, _) => new ScriptedEngine(cpu));
        Assert.Null(fresh.InterruptStatistics());
        VirtualMachine vm = Boot([0x90]);
        StartTimer(mode: 2, 100);
        vm.Interrupts.Pulse(5);
        vm.Interrupts.Pulse(5);
        _ = vm.Interrupts.Acknowledge();
        _engine.Ticks += 2_000_000_000 / IntervalTimer.Hertz * 360;
        _ = vm.Ports.Read(0x40, 1, 0);
        InterruptStatistics statistics = vm.InterruptStatistics()!;
        Assert.Equal([new(0, 1, 0), new(5, 2, 1)], statistics.Lines);
        Assert.Equal((0, new TimerStatistics(3, 2, 2, 0)), (statistics.Spurious, statistics.Timer));
    }
}
