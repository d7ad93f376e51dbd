using Iced.Intel;
using VirtBench.Strategies.Tests.DirectExecution;
using VirtBench.Vmm.Cpu;
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

    private const ulong Far = 0x7000_8000_0000;
    private const ulong Writable = Far + 0x2000;
    private const ulong FarData = Far + 0x3000;
    private const ulong FarTable = Far + 0x3100;

    [Theory]
    [MemberData(nameof(Cases))]
    public void Kicks_change_no_result(string strategy, int ring)
    {
        ulong[] undisturbed = RunFar(strategy, ring, kicks: false);
        Assert.Equal(undisturbed, RunFar(strategy, ring, kicks: true));
    }

    // Far up, where operands relative to RIP and return addresses take the most instructions of a translator's own.
    private static ulong[] RunFar(string strategy, int ring, bool kicks)
    {
        int rounds = strategy == "binary-translation" ? 400_000 : 3000; // a fraction of a second
        using var guest = new BehaviourGuest(strategy, ring);
        for (ulong i = 0; i < 8; i++)
        {
            guest.Map(Far + (i * 0x1000), Spare + (i * 0x1000));
        }

        guest.Write(
            Far,
            a =>
            {
                Label again = a.CreateLabel();
                Label function = a.CreateLabel();
                Label noCount = a.CreateLabel();
                Label changed = a.CreateLabel();
                Label unchanged = a.CreateLabel();
                void Mix(AssemblerRegister64 value)
                {
                    a.lea(r15, __[r15 + (r15 * 4) + 1]);
                    a.add(r15, value);
                }

                a.xor(r15d, r15d);
                a.mov(r14d, rounds);
                a.Label(ref again);

                // Every register has a value that would show in the result.
                a.mov(rax, 0x0101_0101_0101_0101);
                a.mov(rcx, 0x0202_0202_0202_0202);
                a.mov(rdx, 0x0303_0303_0303_0303);
                a.mov(r11, 0x0404_0404_0404_0404);
                a.mov(r8, 0x0505_0505_0505_0505);
                a.AddInstruction(RelativeToRip(b => b.add(__qword_ptr[rbp], r8)));
                a.AddInstruction(RelativeToRip(b => b.mov(r9, __qword_ptr[rbp])));
                Mix(r9);
                a.pushfq();
                a.pop(r9);
                Mix(r9);
                a.cmp(r9, r8);
                a.call(function);
                a.pushfq();
                a.pop(r9);
                Mix(r9);
                a.std();
                a.pushfq();
                a.cld();
                a.popfq();
                a.pushfq();
                a.pop(r9);
                a.cld();
                Mix(r9);
                Mix(rax);
                Mix(rcx);
                Mix(rdx);
                Mix(r11);
                if (ring == 0)
                {
                    // In the shadow of STI: an operand far away, then PUSHF, then a store.
                    a.sti();
                    a.AddInstruction(RelativeToRip(b => b.add(r8, __qword_ptr[rbp])));
                    a.cli();
                    a.sti();
                    a.pushfq();
                    a.cli();
                    a.pop(r9);
                    Mix(r9);
                    a.sti();
                    a.mov(__qword_ptr[rsp - 8], r8);
                    a.pushfq();
                    a.pop(r9);
                    Mix(r9);
                    a.push((int)(Rflags.AlwaysSet | Rflags.Cf));
                    a.popfq();
                    a.pushfq();
                    a.pop(r9);
                    Mix(r9);
                    a.push((int)(Rflags.AlwaysSet | Rflags.If));
                    a.popfq();
                    a.pushfq();
                    a.pop(r9);
                    a.cli();
                    Mix(r9);
                    a.mov(r9, cr3);
                    Mix(r9);
                }

                a.sidt(__[rsp - 32]);
                a.mov(r9, __qword_ptr[rsp - 30]);
                Mix(r9);
                a.str(__word_ptr[rsp - 32]);
                a.movzx(r9d, __word_ptr[rsp - 32]);
                Mix(r9);
                a.xor(eax, eax); // a leaf that is the same on every CPU, where it is the host's
                a.mov(r8, rbx);
                a.cpuid();
                a.mov(r9, rbx);
                a.mov(rbx, r8);
                Mix(rax);
                Mix(rcx);
                Mix(rdx);
                Mix(r9);
                a.mov(rcx, 0x0202_0202_0202_0202);
                a.mov(r11, 0x0404_0404_0404_0404);

                // Indirect calls with few targets and with many, and returns that release arguments.
                a.mov(r10, FarTable);
                a.mov(r8d, r14d);
                a.and(r8d, 15);
                a.push(r8);
                a.cmp(r8d, 7);
                a.call(__qword_ptr[r10 + (r8 * 8)]);
                a.and(r8d, 1);
                a.push(r8);
                a.call(__qword_ptr[r10 + (r8 * 8)]);
                Mix(r12);
                Mix(rcx);
                Mix(r11);
                Mix(rsp);
                a.mov(ecx, r14d);
                a.and(ecx, 3);
                a.jrcxz(noCount);
                Label counted = a.CreateLabel();
                a.Label(ref counted);
                a.inc(r15);
                a.loop(counted);
                a.Label(ref noCount);

                // Code on a page that is written again and again.
                a.mov(r8, Writable);
                a.cmp(r14d, rounds - 50);
                a.ja(changed);
                a.test(r14d, 1023); // seldom: each time the guest is out of its code, and not stopped in it
                a.jnz(unchanged);
                a.Label(ref changed);
                a.mov(__dword_ptr[r8 + 2], r14d);
                a.Label(ref unchanged);
                a.mov(rcx, 0x0202_0202_0202_0202);
                a.mov(r11, 0x0404_0404_0404_0404);
                a.call(r8);
                Mix(r9);
                Mix(rcx);
                Mix(r11);
                a.movq(xmm3, r15);
                a.paddq(xmm3, xmm3);
                a.movq(r9, xmm3);
                if (!guest.Strategy.IsSimulated) // which has no x87
                {
                    a.fild(__qword_ptr[rsp - 40]);
                    a.fld1();
                    a.faddp(st1, st0);
                    a.fistp(__qword_ptr[rsp - 40]);
                    a.add(r9, __qword_ptr[rsp - 40]);
                }

                Mix(r9);
                a.dec(r14d);
                a.jnz(again);
                a.mov(r8, Results);
                a.mov(__qword_ptr[r8], r15);
                a.mov(__qword_ptr[r8 + 8], rsp);
                a.End();
                a.Label(ref function);
                a.ret();
            }
        );
        for (int i = 0; i < 16; i++)
        {
            ulong leaf = Far + 0x1000 + (ulong)(32 * i);
            guest.Write(FarTable + (ulong)(8 * i), BitConverter.GetBytes(leaf));
            guest.Write(
                leaf,
                a =>
                {
                    a.lea(r12, __[r12 + (r12 * 2) + i]);
                    a.ret(8);
                }
            );
        }

        guest.Write(Writable, [0x41, 0xB9, 0, 0, 0, 0, 0x49, 0x01, 0xC9, 0xC3]); // mov r9d, …; add r9, rcx; ret
        guest.Write(
            Start,
            a =>
            {
                a.xor(r12d, r12d);
                a.xor(ebx, ebx);
                a.mov(__qword_ptr[rsp - 40], rbx);
                a.mov(rdi, Far);
                a.jmp(rdi);
            }
        );
        Assert.Equal(0, kicks ? guest.RunPastDeadlines() : guest.Run());
        return [guest.Result(0), guest.Result(1)];
    }

    private static Instruction RelativeToRip(Action<Assembler> one)
    {
        var a = new Assembler(64);
        one(a);
        Instruction instruction = a.Instructions[0];
        instruction.MemoryBase = Register.RIP;
        instruction.MemoryDisplSize = 8;
        instruction.MemoryDisplacement64 = FarData;
        return instruction;
    }
}
