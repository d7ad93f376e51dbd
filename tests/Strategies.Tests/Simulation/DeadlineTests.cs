using Iced.Intel;
using VirtBench.Strategies.Simulation;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Tests.Simulation;

/// <summary>Deadlines, idling and single steps of the simulated CPU. The textbook profile: 1 cycle an instruction.</summary>
public sealed class DeadlineTests
{
    private static readonly CostProfile Costs = CostProfile.Textbook;

    private static void Endless(Assembler a, int instructions)
    {
        Label loop = a.CreateLabel();
        a.Label(ref loop);
        for (int i = 0; i < instructions - 1; i++)
        {
            a.inc(rax);
        }

        a.jmp(loop);
    }

    // Past the hidden page faults of code and stack, so that nothing but the guest's own code takes cycles.
    private static SimulatedGuest Warm(Action<Assembler> write)
    {
        var guest = new SimulatedGuest();
        guest.Load(write);
        guest.Engine.Deadline = 0;
        Assert.Equal(VmExitReason.Interrupted, guest.Run().Reason);
        guest.Engine.Deadline = ulong.MaxValue;
        return guest;
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(9)]
    [InlineData(10)]
    [InlineData(11)]
    [InlineData(12_345)]
    public void A_guest_is_left_at_the_first_block_end_at_or_after_the_deadline(int ahead)
    {
        const int block = 10;
        using SimulatedGuest guest = Warm(a => Endless(a, block));
        ulong entry = guest.Engine.Clock.Ticks + (ulong)Costs.EntryCycles;
        guest.Engine.Deadline = entry + (ulong)ahead;
        Assert.Equal(VmExitReason.Interrupted, guest.Engine.Run().Reason);
        int executed = Math.Max(block, (ahead + block - 1) / block * block);
        Assert.Equal(entry + (ulong)(executed + Costs.ExitCycles), guest.Engine.Clock.Ticks);
    }

    [Fact]
    public void Every_entry_gets_on_though_the_deadline_is_over()
    {
        using SimulatedGuest guest = Warm(a => Endless(a, 5));
        guest.Engine.Deadline = 0;
        ulong before = guest.Cpu.Rax;
        for (int i = 0; i < 100; i++)
        {
            Assert.Equal(VmExitReason.Interrupted, guest.Engine.Run().Reason);
        }

        Assert.Equal(before + 400, guest.Cpu.Rax);
    }

    [Fact]
    public void A_deadline_stops_a_string_instruction_between_two_iterations()
    {
        using var guest = new SimulatedGuest();
        guest.Load(a =>
        {
            a.rep.stosb();
            a.hlt();
        });
        guest.Cpu[Gpr.Rdi] = SimulatedGuest.DataStart;
        guest.Cpu[Gpr.Rcx] = 1_000_000;
        guest.Engine.Deadline = 0;
        Assert.Equal(VmExitReason.Interrupted, guest.Run().Reason); // brings the page in
        ulong left = guest.Cpu[Gpr.Rcx];
        guest.Engine.Deadline = guest.Engine.Clock.Ticks + (ulong)Costs.EntryCycles + 1000;
        Assert.Equal(VmExitReason.Interrupted, guest.Engine.Run().Reason);
        Assert.Equal(left - 1000, guest.Cpu[Gpr.Rcx]);
        Assert.Equal(SimulatedGuest.CodeStart, guest.Cpu.Rip);
    }

    // Kicks fall into string instructions in the middle of straight-line code; deadlines come all 1000 cycles.
    private static List<(ulong Ticks, ulong Rip)> Deadlines(int kicks)
    {
        using SimulatedGuest guest = Warm(a =>
        {
            Label loop = a.CreateLabel();
            a.Label(ref loop);
            for (int i = 0; i < 30; i++)
            {
                a.inc(rax);
            }

            a.mov(rdi, SimulatedGuest.DataStart);
            a.mov(ecx, 5000);
            a.rep.stosb();
            for (int i = 0; i < 100; i++)
            {
                a.inc(rbx);
            }

            a.jmp(loop);
        });
        // The data page too; afterwards the guest's way is a matter of cycles only.
        guest.Engine.Deadline = guest.Engine.Clock.Ticks + 50_000;
        Assert.Equal(VmExitReason.Interrupted, guest.Run().Reason);
        guest.Engine.Clock.ChargeEmulation(TrapReason.Kick);
        var found = new List<(ulong, ulong)>();
        ulong period = guest.Engine.Deadline;
        for (int i = 0; i < 200; i++)
        {
            period += 10_007;
            guest.Engine.Deadline = period;
            using Kicker kicker = new(guest.Engine, kicks);
            while (guest.Engine.Clock.Ticks < period)
            {
                Assert.Equal(VmExitReason.Interrupted, guest.Engine.Run().Reason);
                guest.Engine.Clock.ChargeEmulation(TrapReason.Kick);
                kicker.Next();
            }

            found.Add((guest.Engine.Clock.Ticks, guest.Cpu.Rip));
        }

        return found;
    }

    // Kicks from another thread for as long as the guest is under way, a number of times.
    private sealed class Kicker : IDisposable
    {
        private readonly IExecutionEngine _engine;
        private readonly Thread _thread;
        private volatile bool _stopped;

        public Kicker(IExecutionEngine engine, int kicks)
        {
            _engine = engine;
            _thread = new Thread(() =>
            {
                for (int i = 0; i < kicks && !_stopped; i++)
                {
                    _engine.Kick();
                    Thread.SpinWait(1 + (i * 7919 % 500));
                }
            });
            _thread.Start();
        }

        public void Next() => Thread.Yield();

        public void Dispose()
        {
            _stopped = true;
            _thread.Join();
        }
    }

    [Fact]
    public void When_the_host_kicks_does_not_move_the_guests_deadlines() =>
        Assert.Equal(Deadlines(kicks: 0), Deadlines(kicks: 200));

    [Fact]
    public void A_deadline_costs_an_exit_and_a_kick_costs_nothing()
    {
        using SimulatedGuest guest = Warm(a => Endless(a, 10));
        IExecutionEngine engine = guest.Engine;
        engine.Clock.ChargeEmulation(TrapReason.Kick);
        ulong before = engine.Clock.Ticks;
        engine.Kick();
        Assert.Equal(VmExitReason.Interrupted, engine.Run().Reason);
        engine.Clock.ChargeEmulation(TrapReason.Kick);
        Assert.Equal(before + (ulong)Costs.EntryCycles, engine.Clock.Ticks); // of the entry to come, which is free now

        engine.Deadline = 0;
        Assert.Equal(VmExitReason.Interrupted, engine.Run().Reason);
        engine.Clock.ChargeEmulation(TrapReason.Kick);
        Assert.Equal(
            before + (ulong)(Costs.EntryCycles + 10 + Costs.ExitCycles + Costs.EmulationCycles),
            engine.Clock.Ticks
        );
    }

    [Fact]
    public void Idling_takes_until_the_deadline_and_no_host_time()
    {
        using var guest = new SimulatedGuest();
        guest.Engine.Deadline = ulong.MaxValue / 2; // 86 years
        guest.Engine.Idle();
        Assert.Equal(ulong.MaxValue / 2, guest.Engine.Clock.Ticks);
        guest.Engine.Deadline = 5;
        guest.Engine.Idle();
        Assert.Equal(ulong.MaxValue / 2, guest.Engine.Clock.Ticks);
    }

    [Fact]
    public void A_kick_ends_idling_where_it_is_and_is_taken_by_it()
    {
        using SimulatedGuest guest = Warm(a => Endless(a, 10));
        ulong before = guest.Engine.Clock.Ticks;
        guest.Engine.Deadline = before + 1_000_000;
        guest.Engine.Kick();
        guest.Engine.Idle();
        Assert.Equal(before, guest.Engine.Clock.Ticks);
        guest.Engine.Idle();
        Assert.Equal(before + 1_000_000, guest.Engine.Clock.Ticks);
    }

    [Fact]
    public void A_kick_from_another_thread_ends_idling_for_ever()
    {
        using var guest = new SimulatedGuest();
        var kicker = new Thread(guest.Engine.Kick);
        kicker.Start();
        guest.Engine.Idle();
        Assert.Equal(0UL, guest.Engine.Clock.Ticks);
        kicker.Join();
    }

    [Fact]
    public void A_step_is_one_instruction_also_in_the_middle_of_a_block()
    {
        using SimulatedGuest guest = Warm(a => Endless(a, 10));
        guest.Cpu.Rip = SimulatedGuest.CodeStart;
        for (ulong i = 1; i < 9; i++)
        {
            ulong rax = guest.Cpu.Rax;
            ulong ticks = guest.Engine.Clock.Ticks;
            Assert.Equal(VmExitReason.Stepped, guest.Engine.Step().Reason);
            Assert.Equal((SimulatedGuest.CodeStart + (3 * i), rax + 1), (guest.Cpu.Rip, guest.Cpu.Rax));
            Assert.InRange(
                guest.Engine.Clock.Ticks - ticks,
                1UL + (ulong)Costs.ExitCycles,
                1UL + (ulong)(Costs.ExitCycles + Costs.EntryCycles)
            );
        }
    }

    [Fact]
    public void Steps_follow_jumps_calls_and_returns()
    {
        using var guest = new SimulatedGuest();
        guest.Load(a =>
        {
            Label function = a.CreateLabel();
            Label over = a.CreateLabel();
            a.call(function);
            a.jmp(over);
            a.Label(ref function);
            a.lea(rbx, __[over]);
            a.ret();
            a.ud2();
            a.Label(ref over);
            a.jmp(rbx);
        });
        var lengths = new List<ulong>();
        for (int i = 0; i < 8; i++)
        {
            Assert.Equal(VmExitReason.Stepped, guest.Step().Reason);
            lengths.Add(guest.Cpu.Rip - SimulatedGuest.CodeStart);
        }

        Assert.Equal([7UL, 14, 5, 17, 17, 17, 17, 17], lengths);
    }

    [Fact]
    public void A_step_of_an_instruction_that_exits_does_nothing_of_it()
    {
        using SimulatedGuest guest = Warm(a => Endless(a, 10));
        guest.Load(a => a.cli());
        guest.Cpu.Rip = SimulatedGuest.CodeStart;
        Assert.Equal(VmExitReason.PrivilegedInstruction, guest.Engine.Step().Reason);
        Assert.Equal(SimulatedGuest.CodeStart, guest.Cpu.Rip);
    }

    [Fact]
    public void A_step_of_a_repeated_string_instruction_is_one_iteration()
    {
        using var guest = new SimulatedGuest();
        guest.Load(a => a.rep.stosb());
        guest.Cpu[Gpr.Rdi] = SimulatedGuest.DataStart;
        guest.Cpu[Gpr.Rcx] = 2;
        Assert.Equal(VmExitReason.Stepped, guest.Step().Reason);
        Assert.Equal((1UL, SimulatedGuest.CodeStart), (guest.Cpu[Gpr.Rcx], guest.Cpu.Rip));
        Assert.Equal(VmExitReason.Stepped, guest.Step().Reason);
        Assert.Equal((0UL, SimulatedGuest.CodeStart + 2), (guest.Cpu[Gpr.Rcx], guest.Cpu.Rip));
    }

    [Fact]
    public void A_step_executes_code_that_the_step_before_has_written()
    {
        using var guest = new SimulatedGuest();
        guest.Load(a =>
        {
            a.mov(__byte_ptr[SimulatedGuest.CodeStart + 8], 0x90);
            a.hlt();
        });
        Assert.Equal(VmExitReason.Stepped, guest.Step().Reason);
        Assert.Equal(VmExitReason.Stepped, guest.Step().Reason);
        Assert.Equal(SimulatedGuest.CodeStart + 9, guest.Cpu.Rip);
    }

    [Fact]
    public void A_kick_comes_before_a_step()
    {
        using SimulatedGuest guest = Warm(a => Endless(a, 10));
        ulong rip = guest.Cpu.Rip;
        guest.Engine.Kick();
        Assert.Equal(VmExitReason.Interrupted, guest.Engine.Step().Reason);
        Assert.Equal(rip, guest.Cpu.Rip);
        Assert.Equal(VmExitReason.Stepped, guest.Engine.Step().Reason);
    }
}
