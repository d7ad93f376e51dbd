using Iced.Intel;
using VirtBench.Strategies.Tests.DirectExecution;
using static Iced.Intel.AssemblerRegisters;
using static VirtBench.Strategies.Tests.Translated.BehaviourGuest;

namespace VirtBench.Strategies.Tests.Translated;

/// <summary>Timer interrupts at any point of code that changes itself, jumps through registers and fiddles with its stack.</summary>
[Collection(CarrierCollection.Name)]
public sealed class InterruptedCodeTests
{
    private const int Interruptions = 100;

    public static TheoryData<string, int> Cases => BehaviourGuest.Cases;

    [Theory]
    [MemberData(nameof(Cases))]
    public void Interrupts_change_no_result(string strategy, int ring)
    {
        ulong undisturbed = Run(strategy, ring, ticks: 0);
        Assert.Equal(undisturbed, Run(strategy, ring, Interruptions));
    }

    // Rounds until there have been so many interrupts; every round has to give the same, which is the result.
    private static ulong Run(string strategy, int ring, int ticks)
    {
        using var guest = new BehaviourGuest(strategy, ring);
        guest.Write(
            Start,
            a =>
            {
                Label round = a.CreateLabel();
                Label same = a.CreateLabel();
                Label loop = a.CreateLabel();
                Label function = a.CreateLabel();
                Label leaf = a.CreateLabel();
                Label immediate = a.CreateLabel();
                Label target = a.CreateLabel();
                Label back = a.CreateLabel();
                a.xor(r15d, r15d); // result of the first round
                a.jmp(round);
                a.Label(ref function);
                a.dec(edx);
                a.jz(leaf);
                a.push(rdx);
                a.call(function);
                a.pop(rdx);
                a.add(rbx, rdx);
                a.Label(ref leaf);
                a.ret();
                a.Label(ref target);
                a.rol(rbx, 7);
                a.jmp(back);
                a.Label(ref round);
                a.mov(rbx, 0x9E37_79B9_7F4A_7C15);
                a.mov(ecx, 300);
                a.Label(ref loop);
                a.lea(rax, __[rcx + rbx]);
                a.mov(__dword_ptr[immediate], eax);
                a.db(0xB8); // mov eax, imm32
                a.Label(ref immediate);
                a.dd(0);
                a.add(rbx, rax);
                a.adc(rbx, 1);
                a.mov(edx, 6);
                a.call(function);
                a.lea(rax, __[target]);
                a.jmp(rax);
                a.Label(ref back);
                a.mov(__qword_ptr[rsp - 64], rbx); // interrupts have a stack of their own
                a.xor(rbx, __qword_ptr[rsp - 64]);
                a.add(rbx, __qword_ptr[rsp - 64]);
                a.lea(rdi, __[rsp - 256]);
                a.mov(rax, rbx);
                a.push(rcx);
                a.mov(ecx, 16);
                a.rep.stosq();
                a.pop(rcx);
                a.xor(rbx, __qword_ptr[rsp - 200]);
                a.add(rbx, rax);
                a.movq(xmm5, rbx);
                a.paddq(xmm5, xmm5);
                a.movq(rbx, xmm5);
                a.dec(ecx);
                a.jnz(loop);
                a.test(r15, r15);
                a.cmovz(r15, rbx);
                a.cmp(r15, rbx);
                a.je(same);
                a.mov(al, 1);
                a.Ask(Service.Exit);
                a.Label(ref same);
                a.cmp(__qword_ptr[Ticks], ticks);
                a.jb(round);
                a.mov(ResultSlot(0), r15);
                a.End();
            }
        );
        if (ticks > 0)
        {
            // Late ticks are made up for, so a guest whose ticks take longer than their period gets nowhere: from 0.1 ms, on the
            // simulated CPU, to 10 ms, where the kernel emulates what ring 0 does about each.
            guest.StartTimer(
                guest.Strategy.IsSimulated ? 120
                : guest.Strategy.EmulatesRingZero ? 12_000
                : 1200
            );
        }

        Assert.Equal(0, guest.Run());
        Assert.True(guest.Memory.Read<ulong>(Ticks) >= (ulong)ticks);
        return guest.Result(0);
    }
}
