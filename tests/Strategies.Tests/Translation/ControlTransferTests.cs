using Iced.Intel;
using VirtBench.Strategies.Tests.DirectExecution;
using VirtBench.Vmm.Cpu;
using static Iced.Intel.AssemblerRegisters;
using static VirtBench.Strategies.Tests.Translated.BehaviourGuest;

namespace VirtBench.Strategies.Tests.Translated;

/// <summary>Calls, returns and jumps that do not go the way a compiler has them go; what they leave alone.</summary>
[Collection(CarrierCollection.Name)]
public sealed class ControlTransferTests
{
    public static TheoryData<string, int> Cases => BehaviourGuest.Cases;

    private static void RunAndExpect(string strategy, int ring, Action<Assembler> program, params ulong[] expected)
    {
        using var guest = new BehaviourGuest(
            strategy,
            ring,
            a =>
            {
                program(a);
                a.mov(ResultSlot(expected.Length), rsp);
                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal([.. expected, StackTop], Enumerable.Range(0, expected.Length + 1).Select(guest.Result));
        Assert.Empty(guest.Exceptions);
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void Push_and_ret_is_a_jump(string strategy, int ring) =>
        RunAndExpect(
            strategy,
            ring,
            a =>
            {
                Label again = a.CreateLabel();
                Label even = a.CreateLabel();
                Label odd = a.CreateLabel();
                Label next = a.CreateLabel();
                a.xor(ebx, ebx);
                a.mov(ecx, 1000);
                a.Label(ref again);
                a.lea(rax, __[even]);
                a.lea(rdx, __[odd]);
                a.test(cl, 1);
                a.cmovnz(rax, rdx);
                a.push(rax);
                a.ret();
                a.Label(ref even);
                a.add(rbx, 3);
                a.jmp(next);
                a.Label(ref odd);
                a.add(rbx, 5);
                a.Label(ref next);
                a.dec(ecx);
                a.jnz(again);
                a.mov(ResultSlot(0), rbx);
            },
            4000
        );

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_return_that_releases_arguments_releases_exactly_those(string strategy, int ring) =>
        RunAndExpect(
            strategy,
            ring,
            a =>
            {
                Label again = a.CreateLabel();
                Label function = a.CreateLabel();
                Label over = a.CreateLabel();
                Label odd = a.CreateLabel();
                a.xor(ebx, ebx);
                a.mov(ecx, 300);
                a.jmp(again);
                a.Label(ref function);
                a.add(rbx, __qword_ptr[rsp + 8]);
                a.sub(rbx, __qword_ptr[rsp + 16]);
                a.ret(16);
                a.Label(ref odd);
                a.ret(0x1003);
                a.Label(ref again);
                a.push(1);
                a.push(rcx);
                a.call(function);
                a.dec(ecx);
                a.jnz(again);
                a.lea(rsp, __[rsp - 0x1003]);
                a.call(odd);
                a.jmp(over);
                a.Label(ref over);
                a.mov(ResultSlot(0), rbx);
            },
            (300 * 301 / 2) - 300
        );

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_return_address_that_is_changed_on_the_stack_is_followed(string strategy, int ring) =>
        RunAndExpect(
            strategy,
            ring,
            a =>
            {
                Label again = a.CreateLabel();
                Label skip = a.CreateLabel();
                Label next = a.CreateLabel();
                a.xor(ebx, ebx);
                a.mov(ecx, 500);
                a.jmp(again);
                a.Label(ref skip);
                a.mov(eax, ecx);
                a.and(eax, 3);
                a.lea(rax, __[rax + (rax * 2)]);
                a.add(__qword_ptr[rsp], rax); // 0, 3, 6 or 9 bytes further
                a.ret();
                a.Label(ref again);
                a.call(skip);
                a.db(0x48, 0xFF, 0xC3, 0x48, 0xFF, 0xC3, 0x48, 0xFF, 0xC3); // inc rbx, three times
                a.jmp(next);
                a.Label(ref next);
                a.dec(ecx);
                a.jnz(again);
                a.mov(ResultSlot(0), rbx);
            },
            125 * (3 + 2 + 1)
        );

    [Theory]
    [MemberData(nameof(Cases))]
    public void Two_stacks_that_take_turns_return_each_to_its_own(string strategy, int ring) =>
        RunAndExpect(
            strategy,
            ring,
            a =>
            {
                // R12 is the other's stack pointer.
                Label other = a.CreateLabel();
                Label swap = a.CreateLabel();
                Label again = a.CreateLabel();
                Label start = a.CreateLabel();
                a.jmp(start);
                a.Label(ref swap);
                a.xchg(rsp, r12);
                a.ret();
                a.Label(ref other);
                a.imul(rbx, rbx, 3);
                a.call(swap);
                a.inc(rbx);
                a.call(swap);
                a.jmp(other);
                a.Label(ref start);
                a.mov(r12, StackTop - 0x8008);
                a.lea(rax, __[other]);
                a.mov(__qword_ptr[r12], rax);
                a.mov(ebx, 1);
                a.mov(ecx, 30);
                a.Label(ref again);
                a.call(swap);
                a.call(swap);
                a.dec(ecx);
                a.jnz(again);
                a.mov(ResultSlot(0), rbx);
            },
            Enumerable.Range(0, 30).Aggregate(1UL, (x, _) => unchecked((x * 3) + 1))
        );

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_long_jump_out_of_a_deep_recursion_leaves_calls_working(string strategy, int ring) =>
        RunAndExpect(
            strategy,
            ring,
            a =>
            {
                Label again = a.CreateLabel();
                Label recurse = a.CreateLabel();
                Label landed = a.CreateLabel();
                Label deeper = a.CreateLabel();
                a.xor(ebx, ebx);
                a.mov(ecx, 40);
                a.jmp(again);
                a.Label(ref recurse);
                a.inc(rbx);
                a.dec(edx);
                a.jnz(deeper);
                a.test(cl, 1);
                Label back = a.CreateLabel();
                a.jz(back);
                a.mov(rsp, r13); // longjmp in odd rounds
                a.jmp(r14);
                a.Label(ref back);
                a.ret();
                a.Label(ref deeper);
                a.call(recurse);
                a.add(rbx, 0x1000);
                a.ret();
                a.Label(ref again);
                a.mov(r13, rsp);
                a.lea(r14, __[landed]);
                a.mov(edx, 200);
                a.call(recurse);
                a.Label(ref landed);
                a.dec(ecx);
                a.jnz(again);
                a.mov(ResultSlot(0), rbx);
            },
            (40 * 200) + (20 * 199 * 0x1000UL)
        );

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_recursion_deeper_than_any_return_stack_comes_back(string strategy, int ring) =>
        RunAndExpect(
            strategy,
            ring,
            a =>
            {
                Label recurse = a.CreateLabel();
                Label leaf = a.CreateLabel();
                Label start = a.CreateLabel();
                a.jmp(start);
                a.Label(ref recurse);
                a.dec(edx);
                a.jz(leaf);
                a.call(recurse);
                a.inc(rbx);
                a.call(leaf);
                a.Label(ref leaf);
                a.ret();
                a.Label(ref start);
                a.xor(ebx, ebx);
                a.mov(edx, 20_000);
                a.call(recurse);
                a.mov(ResultSlot(0), rbx);
            },
            19_999
        );

    [Theory]
    [MemberData(nameof(Cases))]
    public void Indirect_jumps_and_calls_find_each_of_many_targets(string strategy, int ring)
    {
        const int targets = 700;
        RunAndExpect(
            strategy,
            ring,
            a =>
            {
                // Functions of 16 bytes each: rbx = 7 rbx + n.
                Label table = a.CreateLabel();
                Label again = a.CreateLabel();
                Label next = a.CreateLabel();
                Label start = a.CreateLabel();
                a.jmp(start);
                a.nop(11);
                a.Label(ref table);
                for (int i = 0; i < targets; i++)
                {
                    a.db(0x48, 0x6B, 0xDB, 7); // imul rbx, rbx, 7
                    a.db(0x48, 0x81, 0xC3, (byte)i, (byte)(i >> 8), 0, 0); // add rbx, i
                    a.db(0xC3, 0x90, 0x90, 0x90, 0x90);
                }

                a.Label(ref start);
                a.mov(ebx, 1);
                a.mov(ecx, 3 * targets);
                a.xor(esi, esi);
                a.lea(r8, __[table]);
                a.Label(ref again);
                a.mov(eax, esi);
                a.shl(eax, 4);
                a.add(rax, r8);
                a.call(rax); // by register
                a.mov(__qword_ptr[Data], rax);
                a.call(__qword_ptr[Data]); // by memory
                a.lea(rdx, __[next]);
                a.push(rdx);
                a.push(rax);
                a.call(__qword_ptr[rsp]); // the operand is read before the push
                a.pop(rax);
                a.jmp(__qword_ptr[rsp - 8]); // what POP has left there
                a.Label(ref next);
                a.add(esi, 259); // prime to the number of targets
                a.lea(edx, __[rsi - targets]);
                a.cmp(esi, targets);
                a.cmovae(esi, edx);
                a.dec(ecx);
                a.jnz(again);
                a.mov(ResultSlot(0), rbx);
            },
            Indirect(targets)
        );
    }

    private static ulong Indirect(int targets)
    {
        ulong sum = 1;
        int n = 0;
        for (int i = 0; i < 3 * targets; i++)
        {
            for (int call = 0; call < 4; call++)
            {
                sum = unchecked((sum * 7) + (ulong)n);
            }

            n = (n + 259) % targets;
        }

        return sum;
    }

    /// <summary>Flags, all registers and the red zone, over every kind of transfer.</summary>
    [Theory]
    [MemberData(nameof(Cases))]
    public void A_transfer_changes_no_flag_no_register_and_nothing_below_the_stack_pointer(string strategy, int ring)
    {
        ulong[] images =
        [
            0,
            Rflags.Arithmetic,
            Rflags.Cf,
            Rflags.Pf,
            Rflags.Af,
            Rflags.Zf,
            Rflags.Sf,
            Rflags.Of,
            Rflags.Of | Rflags.Cf,
            Rflags.Zf | Rflags.Pf,
        ];
        AssemblerRegister64[] kept = [rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14];
        using var guest = new BehaviourGuest(strategy, ring);
        var expected = new List<ulong>();
        guest.Write(
            Start,
            a =>
            {
                int slot = 0;
                Label function = a.CreateLabel();
                Label start = a.CreateLabel();
                a.jmp(start);
                a.Label(ref function);
                a.ret();
                a.Label(ref start);
                foreach (ulong image in images)
                {
                    for (int i = 0; i < kept.Length; i++)
                    {
                        a.mov(kept[i], 0x0123_4567_89AB_CDEF * (ulong)(i + 1));
                    }

                    for (int i = 1; i <= 16; i++)
                    {
                        a.mov(rax, image + (ulong)i);
                        a.mov(__qword_ptr[rsp - (8 * i) - 8], rax); // below what CALL pushes
                    }

                    Label[] labels = [.. Enumerable.Range(0, 6).Select(_ => a.CreateLabel())];
                    a.lea(r15, __[function]);
                    a.push((int)image);
                    a.popfq();
                    a.call(r15);
                    a.lea(r15, __[labels[0]]);
                    a.jmp(r15);
                    a.ud2();
                    a.Label(ref labels[0]);
                    a.mov(r15d, (int)Data);
                    a.lea(rax, __[labels[1]]);
                    a.mov(__qword_ptr[r15], rax);
                    a.jmp(__qword_ptr[r15]);
                    a.ud2();
                    a.Label(ref labels[1]);
                    a.lea(r15, __[labels[2]]);
                    a.push(r15);
                    a.ret();
                    a.ud2();
                    a.Label(ref labels[2]);
                    a.call(function);
                    a.jmp(labels[3]);
                    a.ud2();
                    a.Label(ref labels[3]);
                    a.mov(rax, rcx); // which JRCXZ and LOOP look at
                    a.jrcxz(labels[5]);
                    a.loop(labels[4]);
                    a.ud2();
                    a.Label(ref labels[4]);
                    a.mov(rcx, rax);
                    a.Label(ref labels[5]);
                    a.jz(labels[5] = a.CreateLabel());
                    a.nop();
                    a.Label(ref labels[5]);
                    a.pushfq();
                    a.pop(__qword_ptr[Results + (8 * (ulong)slot++)]);
                    expected.Add(image | Rflags.AlwaysSet);
                    for (int i = 0; i < kept.Length; i++)
                    {
                        a.mov(__qword_ptr[Results + (8 * (ulong)slot++)], kept[i]);
                        expected.Add(unchecked(0x0123_4567_89AB_CDEF * (ulong)(i + 1)));
                    }

                    for (int i = 1; i <= 16; i++)
                    {
                        a.mov(rax, __qword_ptr[rsp - (8 * i) - 8]);
                        a.mov(__qword_ptr[Results + (8 * (ulong)slot++)], rax);
                        expected.Add(image + (ulong)i);
                    }
                }

                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        const ulong compared = Rflags.Arithmetic | Rflags.AlwaysSet | Rflags.Df;
        ulong[] results = [.. Enumerable.Range(0, expected.Count).Select(guest.Result)];
        int perImage = 1 + kept.Length + 16;
        for (int i = 0; i < results.Length; i += perImage)
        {
            results[i] &= compared;
        }

        Assert.Equal(expected, results);
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void The_stack_pointer_as_an_operand_has_the_value_that_the_manual_gives_it(string strategy, int ring) =>
        RunAndExpect(
            strategy,
            ring,
            a =>
            {
                Label function = a.CreateLabel();
                Label start = a.CreateLabel();
                a.jmp(start);
                a.Label(ref function);
                a.mov(ResultSlot(4), rsp);
                a.ret();
                a.Label(ref start);
                a.push(rsp); // the value before
                a.pop(ResultSlot(0));
                a.push(7);
                a.mov(rbp, rsp);
                a.push(__qword_ptr[rsp]); // read before
                a.pop(ResultSlot(1));
                a.push(9);
                a.pop(__qword_ptr[rsp]); // written behind the increment
                a.pop(ResultSlot(2));
                a.push((int)StackTop - 0x100);
                a.pop(rsp);
                a.mov(ResultSlot(3), rsp);
                a.mov(rsp, StackTop);
                a.lea(rsp, __[rsp - 3]); // not aligned
                a.call(function);
                a.lea(rsp, __[rsp + 3]);
                a.enter(32, 0);
                a.mov(ResultSlot(5), rsp);
                a.leave();
            },
            StackTop,
            7,
            9,
            StackTop - 0x100,
            StackTop - 11,
            StackTop - 40
        );
}
