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
}
