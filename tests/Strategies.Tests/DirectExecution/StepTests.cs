#pragma warning disable CA1416 // DirectGuest has asked for Linux
using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Tests.DirectExecution;

/// <summary>
/// An interrupt waits, the guest executes STI and one instruction: the interrupt comes behind that one, whatever it is, and the guest finds
/// no trace of the trap flag that the VMM has used.
/// </summary>
[Collection(CarrierCollection.Name)]
public sealed class StepTests
{
    private const ulong Idt = 0x30_0000;
    private const ulong Fresh = 0x40_0000; // mapped by nobody yet
    private const byte TimerVector = 0x20;
    private const byte ByInterrupt = 1;
    private const byte ByUndefined = 2;
    private const byte BySyscall = 3;

    /// <summary>What is done behind STI, who must come first, and with what return address: before or behind the instruction.</summary>
    private sealed record Case(Action<Assembler> Write, byte First, bool Behind);

    private static readonly Dictionary<string, Case> Instructions = new()
    {
        ["nop"] = new(a => a.nop(), ByInterrupt, true),
        ["pushf"] = new(a => a.pushfq(), ByInterrupt, true),
        ["pushf, 16 bits"] = new(a => a.pushf(), ByInterrupt, true),
        ["popf"] = new(a => a.popfq(), ByInterrupt, true),
        ["jmp self"] = new(a => a.db(0xEB, 0xFE), ByInterrupt, false),
        ["ud2"] = new(a => a.ud2(), ByUndefined, false),
        ["syscall"] = new(a => a.syscall(), BySyscall, true),
        ["rep stos"] = new(a => a.rep.stosq(), ByInterrupt, false),
        ["sti"] = new(a => a.sti(), ByInterrupt, true),
        ["a hidden page fault"] = new(a => a.mov(rax, __qword_ptr[Fresh]), ByInterrupt, true),
        ["cli"] = new(a => a.cli(), 0, true),
    };

    public static TheoryData<string> Names => [.. Instructions.Keys];

    [Theory]
    [MemberData(nameof(Names))]
    public void An_interrupt_waits_for_the_instruction_behind_sti(string name)
    {
        Case one = Instructions[name];
        using var guest = new DirectGuest(a => Assemble(a, one.Write));
        Assert.Equal(one.First, guest.RunToExit());
        if (one.First == 0)
        {
            return; // CLI took the flag away again before anything could come
        }

        ulong expected = guest.Result(one.Behind ? 3 : 2);
        Assert.Equal(expected, guest.Result(0));
        Assert.Equal(0UL, guest.Result(1) & Rflags.Tf);
        bool completed = one.First == ByInterrupt && name != "sti"; // a second STI is emulated
        Assert.Equal(completed ? 1 : 0, guest.Machine.Ledger.Count(TrapReason.SingleStep));
        switch (name)
        {
            case "pushf":
            case "pushf, 16 bits":
                Assert.Equal(0UL, guest.Result(4) & Rflags.Tf);
                Assert.NotEqual(0UL, guest.Result(4) & Rflags.AlwaysSet);
                break;
            case "rep stos":
                Assert.Equal(2UL, guest.Result(5)); // one repetition is done
                break;
            case "syscall":
                Assert.Equal(0UL, guest.Result(6) & Rflags.Tf);
                break;
        }
    }

    [Fact]
    public void A_trap_flag_that_popf_loads_is_the_guests()
    {
        using var guest = new DirectGuest(a =>
            Assemble(
                a,
                b => b.popfq(),
                before: b =>
                {
                    b.mov(__qword_ptr[rsp], (int)(Rflags.Tf | Rflags.AlwaysSet));
                }
            )
        );
        Assert.Equal(ByInterrupt, guest.RunToExit());
        Assert.NotEqual(0UL, guest.Result(1) & Rflags.Tf);
    }

    // Result 0 is the return address, 1 the RFLAGS that were pushed, 2 and 3 the addresses around the instruction, 4 the image that PUSHF
    // made, 5 RCX, 6 R11.
    private static void Assemble(Assembler a, Action<Assembler> write, Action<Assembler>? before = null)
    {
        Label poll = a.CreateLabel();
        Label start = a.CreateLabel();
        Label end = a.CreateLabel();
        Label onInterrupt = a.CreateLabel();
        Label onUndefined = a.CreateLabel();
        Label onSyscall = a.CreateLabel();

        Gate(a, TimerVector, onInterrupt);
        Gate(a, 6, onUndefined);
        a.mov(rax, Idt + 0x1000);
        a.mov(__word_ptr[rax], 0xFFF);
        a.mov(rdx, Idt);
        a.mov(__qword_ptr[rax + 2], rdx);
        a.lidt(__[rax]);

        a.mov(ecx, Msr.Efer);
        a.rdmsr();
        a.or(eax, 1); // SCE
        a.wrmsr();
        a.WriteMsr(Msr.Star, 0x0008_0000_0000_0000UL >> 16);
        a.lea(rdx, __[onSyscall]);
        a.mov(rax, rdx);
        a.shr(rdx, 32);
        a.mov(ecx, Msr.Lstar);
        a.wrmsr();
        a.WriteMsr(Msr.Fmask, Rflags.If);

        foreach (
            (byte port, byte value) in (ReadOnlySpan<(byte, byte)>)
                [
                    (0x20, 0x11),
                    (0x21, TimerVector),
                    (0x21, 4),
                    (0x21, 1),
                    (0x21, 0xFE),
                    (0x43, 0x30),
                    (0x40, 50),
                    (0x40, 0),
                    (0x20, 0x0A),
                ]
        )
        {
            a.mov(al, value);
            a.@out(port, al);
        }

        a.Label(ref poll);
        a.@in(al, 0x20); // the interrupt request register
        a.test(al, 1);
        a.je(poll);

        a.lea(rax, __[start]);
        a.mov(DirectGuest.ResultSlot(2), rax);
        a.lea(rax, __[end]);
        a.mov(DirectGuest.ResultSlot(3), rax);
        a.mov(rdi, DirectGuest.Data);
        a.mov(ecx, 3);
        a.mov(rbp, rsp);
        a.push(2);
        before?.Invoke(a);
        a.sti();
        a.Label(ref start);
        write(a);
        a.Label(ref end);
        a.nop();
        a.Exit();

        a.Label(ref onInterrupt);
        a.mov(al, ByInterrupt);
        Label record = a.CreateLabel();
        a.Label(ref record);
        a.mov(bl, al);
        a.mov(rax, __qword_ptr[rsp]);
        a.mov(DirectGuest.ResultSlot(0), rax);
        a.mov(rax, __qword_ptr[rsp + 16]);
        a.mov(DirectGuest.ResultSlot(1), rax);
        a.mov(rax, __qword_ptr[rsp + 24]); // RSP, where PUSHF has left its image
        a.mov(rax, __qword_ptr[rax]);
        a.mov(DirectGuest.ResultSlot(4), rax);
        a.mov(DirectGuest.ResultSlot(5), rcx);
        a.mov(al, bl);
        a.@out(0xF4, al);
        a.Label(ref onUndefined);
        a.mov(al, ByUndefined);
        a.jmp(record);
        a.Label(ref onSyscall);
        a.mov(DirectGuest.ResultSlot(0), rcx);
        a.mov(DirectGuest.ResultSlot(6), r11);
        a.mov(DirectGuest.ResultSlot(1), r11);
        a.Exit(BySyscall);
    }

    // 64-bit interrupt gate (Intel SDM vol. 3A, figure 6-8).
    private static void Gate(Assembler a, int vector, Label handler)
    {
        a.lea(rax, __[handler]);
        a.mov(rdx, Idt + ((ulong)vector * 16));
        a.mov(__word_ptr[rdx], ax);
        a.mov(__word_ptr[rdx + 2], 8);
        a.mov(__word_ptr[rdx + 4], 0x8E00);
        a.shr(rax, 16);
        a.mov(__word_ptr[rdx + 6], ax);
        a.shr(rax, 16);
        a.mov(__qword_ptr[rdx + 8], rax);
    }
}
