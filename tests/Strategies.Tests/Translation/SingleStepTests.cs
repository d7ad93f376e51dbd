using Iced.Intel;
using VirtBench.Strategies.Tests.DirectExecution;
using VirtBench.Vmm.Cpu;
using static Iced.Intel.AssemblerRegisters;
using static VirtBench.Strategies.Tests.Translated.BehaviourGuest;

namespace VirtBench.Strategies.Tests.Translated;

/// <summary>A guest that single-steps itself sees #DB behind every instruction, whatever kind it is.</summary>
[Collection(CarrierCollection.Name)]
public sealed class SingleStepTests
{
    public static TheoryData<string, int> Cases => BehaviourGuest.Cases;

    [Theory]
    [MemberData(nameof(Cases))]
    public void Every_instruction_traps_once_and_every_repetition_of_a_string_move(string strategy, int ring)
    {
        using var guest = new BehaviourGuest(strategy, ring);
        int marks = 0;
        guest.Write(
            Start,
            a =>
            {
                // In front of an instruction: the trap of the one before, in the order of execution, has to be there.
                var places = new List<Label>();
                Label function = a.CreateLabel();
                Label inner = a.CreateLabel();
                Label start = a.CreateLabel();
                void Here()
                {
                    Label label = a.CreateLabel();
                    a.Label(ref label);
                    places.Add(label);
                }

                a.jmp(start);
                a.Label(ref function);
                a.inc(ebx);
                a.Label(ref inner);
                a.ret();
                a.Label(ref start);
                a.mov(rsi, Data);
                a.mov(rdi, Data + 0x100);
                a.mov(ecx, 3);
                a.lea(r8, __[function]);
                a.push((int)(Rflags.AlwaysSet | Rflags.Tf));
                a.popfq(); // sets TF: the first trap is behind the next
                a.inc(ebx);
                Here();
                a.nop();
                Here();
                a.call(function);
                places.Add(function);
                places.Add(inner);
                Here();
                a.call(r8);
                places.Add(function);
                places.Add(inner);
                Here();
                Label taken = a.CreateLabel();
                a.xor(eax, eax);
                Here();
                a.jnz(taken);
                Here();
                a.jz(taken);
                a.ud2();
                a.Label(ref taken);
                places.Add(taken);
                Label repeat = a.CreateLabel();
                a.cld();
                places.Add(repeat);
                places.Add(repeat);
                places.Add(repeat);
                a.Label(ref repeat);
                a.rep.movsb();
                Here();
                a.push((int)(Rflags.AlwaysSet | Rflags.Tf));
                Here();
                a.popfq(); // TF was set and stays
                Here();
                Label indirect = a.CreateLabel();
                a.lea(rax, __[indirect]);
                Here();
                a.jmp(rax);
                a.ud2();
                a.Label(ref indirect);
                places.Add(indirect);
                a.mov(eax, ss);
                Here();
                if (!guest.Strategy.IsSimulated) // which has the trap there all the same
                {
                    a.mov(ss, eax); // no trap behind it
                }

                a.inc(ebx);
                Here();
                a.push((int)Rflags.AlwaysSet);
                Here();
                a.popfq(); // clears TF, and traps once more
                Here();
                a.nop();
                a.nop();
                a.mov(ResultSlot(100), rbx);
                for (int i = 0; i < places.Count; i++)
                {
                    a.lea(rax, __[places[i]]);
                    a.mov(ResultSlot(i), rax);
                }

                marks = places.Count;
                a.End();
            }
        );
        guest.Machine.Cpu[Gpr.Rbx] = 0;
        Assert.Equal(0, guest.Run());
        Assert.All(guest.Exceptions, one => Assert.Equal(1UL, one.Vector));
        Assert.Equal(
            Enumerable.Range(0, marks).Select(i => $"{guest.Result(i):X}"),
            guest.Exceptions.Select(one => $"{one.Rip:X}")
        );
        Assert.Equal(4UL, guest.Result(100));
    }

    /// <summary>The fault is the instruction's own, which has not popped or pushed anything, and is not followed by #DB.</summary>
    [Theory]
    [MemberData(nameof(Cases))]
    public void A_step_over_a_branch_to_nowhere_faults_at_the_branch(string strategy, int ring)
    {
        using var guest = new BehaviourGuest(strategy, ring);
        Assert.SkipWhen(
            guest.Strategy.IsSimulated,
            "the simulated CPU raises #GP at the target of a branch that is not canonical"
        );
        Action<Assembler>[] branches = [a => a.jmp(rsi), a => a.call(rsi), a => a.ret()];
        guest.Write(
            Start,
            a =>
            {
                for (int i = 0; i < branches.Length; i++)
                {
                    Label at = a.CreateLabel();
                    Label after = a.CreateLabel();
                    a.Expect(at, i, after);
                    a.mov(rsi, 0x8000_0000_0000_0000);
                    a.push(rsi);
                    a.push((int)(Rflags.AlwaysSet | Rflags.Tf));
                    a.popfq();
                    a.Label(ref at);
                    branches[i](a);
                    a.ud2();
                    a.Label(ref after);
                    a.push((int)Rflags.AlwaysSet);
                    a.popfq();
                    a.mov(rsp, StackTop);
                }

                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(
            Enumerable.Range(0, branches.Length).Select(i => (13UL, guest.Result(i), StackTop - 8)),
            guest.Exceptions.Where(one => one.Vector != Vector.Debug).Select(one => (one.Vector, one.Rip, one.Rsp))
        );
        Assert.DoesNotContain(guest.Exceptions, one => one.Rip >= 0x8000_0000_0000_0000);
    }

    /// <summary>A kick may find the instruction of a step done and nobody told yet.</summary>
    [Theory]
    [MemberData(nameof(Cases))]
    public void A_kick_takes_no_step_away(string strategy, int ring)
    {
        using var guest = new BehaviourGuest(strategy, ring);
        const int rounds = 100;
        guest.Write(
            Start,
            a =>
            {
                Label round = a.CreateLabel();
                Label function = a.CreateLabel();
                Label over = a.CreateLabel();
                Label more = a.CreateLabel();
                Label wrong = a.CreateLabel();
                const int keep = (int)Rflags.AlwaysSet;
                a.xor(r15d, r15d);
                a.mov(r14d, rounds);
                a.Label(ref round);
                a.mov(__qword_ptr[NextException], (int)FirstException);
                a.mov(rsi, Data);
                a.mov(rdi, Data + 0x800);
                a.mov(r8d, 5);
                a.push(keep | (int)Rflags.Tf);
                a.popfq();
                a.Label(ref more);
                a.mov(ecx, 4);
                a.rep.movsb();
                a.mov(ecx, 9);
                a.xor(eax, eax);
                a.mov(rdi, Data + 0x400); // zeros, and a one as the fourth
                a.repe.scasb();
                a.cmp(ecx, 5);
                a.jne(wrong);
                a.call(function);
                a.lea(rax, __[over]);
                a.jmp(rax);
                a.Label(ref function);
                a.ret();
                a.Label(ref over);
                a.mov(rdi, Data + 0x800);
                a.mov(rsi, Data);
                a.dec(r8d);
                a.jnz(more);
                a.push(keep);
                a.popfq();
                a.mov(rbx, __qword_ptr[NextException]);
                a.test(r15, r15);
                a.cmovz(r15, rbx);
                a.cmp(r15, rbx);
                a.jne(wrong);
                a.dec(r14d);
                a.jnz(round);
                a.End();
                a.Label(ref wrong);
                a.mov(ResultSlot(0), rbx);
                a.mov(ResultSlot(1), r15);
                a.mov(ResultSlot(2), rcx);
                a.mov(al, 1);
                a.Ask(Service.Exit);
            }
        );
        guest.Memory.Write<byte>(Data + 0x403, 1);
        byte status = guest.RunUnderKicks();
        Assert.True(status == 0, $"{guest.Result(0):X} after {guest.Result(1):X}, RCX {guest.Result(2)}");
    }
}
