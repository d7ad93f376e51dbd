using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Tests.Interrupts;

/// <summary>Interrupts that translated code delivers by itself.</summary>
public sealed class InlineDeliveryTests
{
    private const string Translation = "binary-translation";
    private const ulong Count = InterruptGuest.Counts + (8 * InterruptGuest.Line);
    private const ulong Pulses = 1_000;

    // All kinds of branches, values in all registers, flags that live across the ends of loops, data on the stack.
    private static void Mix(Assembler a, ulong pulses)
    {
        Label outer = a.CreateLabel();
        Label inner = a.CreateLabel();
        Label counted = a.CreateLabel();
        Label function = a.CreateLabel();
        Label recursion = a.CreateLabel();
        Label bottom = a.CreateLabel();
        Label behind = a.CreateLabel();
        Label first = a.CreateLabel();
        Label second = a.CreateLabel();
        Label joined = a.CreateLabel();
        Label carry = a.CreateLabel();
        Label masked = a.CreateLabel();
        AssemblerRegister64[] registers = [rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15];
        for (int i = 0; i < registers.Length; i++)
        {
            a.mov(registers[i], 0x9E37_79B9_7F4A_7C15ul * (ulong)(i + 1));
        }

        a.mov(__qword_ptr[InterruptGuest.Data + 0x100], 0); // rounds
        a.sti();
        a.Label(ref outer);

        // A carry through a loop's end that itself changes no flag.
        a.mov(rcx, 5);
        a.Label(ref carry);
        a.adc(rax, rbx);
        a.rcl(rdx, 3);
        a.loop(carry);

        // A conditional branch back, RCX alive.
        a.mov(r8, 7);
        a.Label(ref inner);
        a.lea(rcx, __[rcx + rax * 2 + 11]);
        a.xor(rdx, rcx);
        a.dec(r8);
        a.jne(inner);
        a.adc(rsi, 0);

        // JRCXZ and LOOPE back.
        a.mov(r9, rcx);
        a.mov(rcx, 4);
        a.Label(ref counted);
        a.add(rdi, rcx);
        a.cmp(rdi, rdi);
        a.loope(counted);
        a.mov(rcx, r9);

        // Calls and returns, recursion, and indirect branches to two places in turn.
        a.call(function);
        a.mov(r10, 6);
        a.call(recursion);
        a.lea(r11, __[first]);
        a.lea(r12, __[second]);
        a.test(rax, 1);
        a.cmove(r11, r12);
        a.stc();
        a.jmp(r11);
        a.Label(ref first);
        a.adc(rbp, 17);
        a.jmp(joined);
        a.Label(ref second);
        a.sbb(rbp, 5);
        a.Label(ref joined);

        // Interrupts off and on, by POPF too.
        a.cli();
        a.mov(r13, 3);
        a.Label(ref masked);
        a.add(r14, r13);
        a.dec(r13);
        a.jne(masked);
        a.pushfq();
        a.sti();
        a.add(r15, r14);
        a.popfq();
        a.sti();
        a.nop();
        a.std();
        a.cld();
        a.inc(__qword_ptr[InterruptGuest.Data + 0x100]);
        a.cmp(__qword_ptr[InterruptGuest.Data + 0x100], 20_000);
        a.jb(outer);
        a.cli();
        for (int i = 0; i < registers.Length; i++)
        {
            a.mov(__[InterruptGuest.Data + (8 * (ulong)i)], registers[i]);
        }

        a.mov(__[InterruptGuest.Data + 0xF8], rsp);
        InterruptGuest.SpinUntil(a, pulses);
        InterruptGuest.Exit(a);
        a.jmp(behind);

        a.Label(ref function);
        a.push(rax);
        a.xor(rax, r9);
        a.rol(rax, 9);
        a.add(rbx, rax);
        a.pop(rax);
        a.ret();

        a.Label(ref recursion);
        a.dec(r10);
        a.je(bottom);
        a.add(rsi, r10);
        a.call(recursion);
        a.xor(rsi, r10);
        a.Label(ref bottom);
        a.inc(r10);
        a.ret();
        a.Label(ref behind);
        a.ud2();
    }

    private static ulong[] Results(InterruptGuest guest) =>
        [.. Enumerable.Range(0, 32).Select(i => guest.Reference(InterruptGuest.Data + (8 * (ulong)i)))];

    [Fact]
    public void Registers_flags_and_stack_are_the_same_behind_an_interrupt_as_before_it()
    {
        ulong[] expected;
        using (var quiet = new InterruptGuest("simulated-native", InterruptDelivery.Exit, a => Mix(a, 0)))
        {
            quiet.RunToExit(0);
            expected = Results(quiet);
        }

        using var guest = new InterruptGuest(
            Translation,
            InterruptDelivery.Direct,
            a => Mix(a, Pulses),
            h =>
            {
                h.cmp(rsp, rax); // flags and registers of its own
                h.stc();
            }
        );
        guest.RunToExit(Pulses);
        Assert.Equal(expected, Results(guest));
        Assert.Equal(Pulses, guest.Count());
        Assert.True(guest.Statistics.Direct > (long)Pulses / 10, $"{guest.Statistics}");
    }

    [Fact]
    public void A_kick_at_any_moment_of_a_delivery_leaves_it_undone_or_done()
    {
        using var guest = new InterruptGuest(Translation, InterruptDelivery.Direct, a => Mix(a, Pulses));
        ulong[] expected;
        using (var quiet = new InterruptGuest("simulated-native", InterruptDelivery.Exit, a => Mix(a, 0)))
        {
            quiet.RunToExit(0);
            expected = Results(quiet);
        }

        bool ended = false;
        var kicker = new Thread(() =>
        {
            while (!Volatile.Read(ref ended))
            {
                guest.Engine.Kick();
                Thread.SpinWait(200);
            }
        });
        kicker.Start();
        RunOutcome outcome = guest.Run(Pulses);
        Volatile.Write(ref ended, true);
        kicker.Join();
        Assert.Equal((RunEnd.Exited, null, 0), (outcome.End, outcome.Message, outcome.Status));
        Assert.Equal(expected, Results(guest));
        Assert.Equal(Pulses, guest.Count());
    }

    [Fact]
    public void The_handler_finds_the_frame_that_the_processor_would_have_pushed()
    {
        // The guest spins with a stack pointer that is not aligned and with flags that it knows.
        const ulong frame = InterruptGuest.Data;
        const ulong stack = InterruptGuest.Stack - 0x1003;
        using var guest = new InterruptGuest(
            Translation,
            InterruptDelivery.Direct,
            a =>
            {
                Label again = a.CreateLabel();
                a.mov(rbx, Pulses);
                a.mov(rsp, stack);
                a.std();
                a.stc();
                a.sti();
                a.nop();
                a.Label(ref again);
                a.mov(rcx, __[Count]);
                a.not(rcx);
                a.lea(rcx, __[rcx + rbx + 1]); // 0 when it is time, and no flag changed
                Label done = a.CreateLabel();
                a.jrcxz(done);
                a.jmp(again);
                a.Label(ref done);
                a.cld();
                a.cli();
                InterruptGuest.Exit(a);
            },
            h =>
            {
                for (int i = 0; i < 5; i++)
                {
                    h.mov(rax, __[rsp + (8 * (i + 1))]); // behind the RAX that has been pushed
                    h.mov(__[frame + (8 * (ulong)i)], rax);
                }
            }
        );
        guest.RunToExit(Pulses);
        Assert.True(guest.Statistics.Direct > 0, $"{guest.Statistics}");
        ulong Field(int i) => guest.Reference(frame + (8 * (ulong)i));
        Assert.InRange(Field(0), InterruptGuest.Code, InterruptGuest.Code + 0x200);
        Assert.Equal(0x08ul, Field(1));
        Assert.Equal(
            Rflags.If | Rflags.AlwaysSet | Rflags.Df | 1,
            Field(2) & (Rflags.If | Rflags.AlwaysSet | Rflags.Df | 1 | Rflags.Tf | Rflags.Nt)
        );
        Assert.Equal(stack, Field(3));
        Assert.Equal(0x10ul, Field(4));
    }

    [Fact]
    public void A_gate_that_the_guest_has_changed_is_the_one_that_counts()
    {
        // Every other handler changes the gate to the other of two.
        const ulong gate = InterruptGuest.Idt + (16 * (InterruptGuest.FirstVector + InterruptGuest.Line));
        using var guest = new InterruptGuest(
            Translation,
            InterruptDelivery.Direct,
            a =>
            {
                Label again = a.CreateLabel();
                Label other = a.CreateLabel();
                Label start = a.CreateLabel();
                a.jmp(start);
                a.Label(ref other);
                a.push(rax);
                a.inc(__qword_ptr[InterruptGuest.Data]);
                a.inc(__qword_ptr[Count]);
                a.mov(al, 0x20);
                a.@out((byte)InterruptController.MasterPort, al);
                a.pop(rax);
                a.iretq();
                a.Label(ref start);
                a.lea(rax, __[other]);
                a.mov(rsi, __[gate]);
                a.mov(rdi, rsi);
                a.mov(di, ax);
                a.shr(rax, 16);
                a.shl(rax, 48);
                a.mov(r9, 0x0000_FFFF_FFFF_FFFF);
                a.and(rdi, r9);
                a.or(rdi, rax);
                a.mov(rbx, Pulses);
                a.xor(r8, r8);
                a.sti();
                a.nop();
                a.Label(ref again);
                a.xchg(rsi, rdi);
                a.mov(__[gate], rsi);
                a.cmp(__[Count], rbx);
                a.jb(again);
                a.cli();
                InterruptGuest.Exit(a);
            }
        );
        guest.RunToExit(Pulses);
        Assert.Equal(Pulses, guest.Count());
        ulong toOther = guest.Reference(InterruptGuest.Data);
        Assert.InRange(toOther, 1ul, Pulses - 1);
    }

    [Theory]
    [InlineData(0x8F)] // a trap gate leaves interrupts on
    [InlineData(0x8E, 1)] // a stack of its own
    public void A_gate_that_is_not_plain_is_delivered_by_an_exit(byte type, byte stack = 0)
    {
        using var guest = new InterruptGuest(
            Translation,
            InterruptDelivery.Direct,
            a =>
            {
                InterruptGuest.SpinUntil(a, 10);
                InterruptGuest.Exit(a);
            }
        );
        ulong gate = InterruptGuest.Idt + (16 * (InterruptGuest.FirstVector + InterruptGuest.Line));
        ref ulong low = ref guest.Reference(gate);
        low = (low & ~(0xFF07ul << 32)) | ((ulong)type << 40) | ((ulong)stack << 32);
        if (stack != 0)
        {
            // No TSS: the first delivery finds that out as the processor would, and ends the guest.
            Assert.Equal(RunEnd.Failed, guest.Run(10).End);
        }
        else
        {
            guest.RunToExit(10);
        }

        Assert.Equal(0, guest.Statistics.Direct);
    }

    [Fact]
    public void A_stack_that_cannot_be_written_faults_as_if_an_exit_had_delivered()
    {
        string Outcome(InterruptDelivery delivery)
        {
            using var guest = new InterruptGuest(
                Translation,
                delivery,
                a =>
                {
                    Label again = a.CreateLabel();
                    a.mov(rsp, 0x7000_0000_0000);
                    a.sti();
                    a.nop();
                    a.Label(ref again);
                    a.inc(rax);
                    a.jmp(again);
                }
            );
            RunOutcome outcome = guest.Run(1);
            Assert.Equal(RunEnd.Failed, outcome.End);
            return outcome.Message!.Split(" at RIP")[0].Split("RIP")[0];
        }

        Assert.Equal(Outcome(InterruptDelivery.Exit), Outcome(InterruptDelivery.Direct));
    }
}
