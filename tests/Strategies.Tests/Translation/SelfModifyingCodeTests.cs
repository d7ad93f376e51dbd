using Iced.Intel;
using VirtBench.Strategies.Tests.DirectExecution;
using static Iced.Intel.AssemblerRegisters;
using static VirtBench.Strategies.Tests.Translated.BehaviourGuest;

namespace VirtBench.Strategies.Tests.Translated;

/// <summary>Code that is written while it runs: what is executed is what memory holds.</summary>
[Collection(CarrierCollection.Name)]
public sealed class SelfModifyingCodeTests
{
    public static TheoryData<string, int> Cases => BehaviourGuest.Cases;

    // MOV EAX, imm32; the label stands at the immediate.
    private static void MovEax(Assembler a, ref Label immediate, uint value)
    {
        a.db(0xB8);
        a.Label(ref immediate);
        a.dd(value);
    }

    private static ulong SumTo(ulong n) => n * (n + 1) / 2;

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_store_to_the_next_instruction_takes_effect_at_once(string strategy, int ring)
    {
        const int times = 2000;
        using var guest = new BehaviourGuest(
            strategy,
            ring,
            a =>
            {
                Label again = a.CreateLabel();
                Label immediate = a.CreateLabel();
                a.xor(ebx, ebx);
                a.mov(ecx, times);
                a.Label(ref again);
                a.mov(__dword_ptr[immediate], ecx);
                MovEax(a, ref immediate, 0xDEAD);
                a.add(rbx, rax);
                a.dec(ecx);
                a.jnz(again);
                a.mov(ResultSlot(0), rbx);
                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(SumTo(times), guest.Result(0));
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_store_to_an_earlier_instruction_of_the_same_block_takes_effect_the_next_time(
        string strategy,
        int ring
    )
    {
        const int times = 500;
        using var guest = new BehaviourGuest(
            strategy,
            ring,
            a =>
            {
                Label again = a.CreateLabel();
                Label immediate = a.CreateLabel();
                a.xor(ebx, ebx);
                a.mov(ecx, times);
                a.Label(ref again);
                MovEax(a, ref immediate, times + 1);
                a.add(rbx, rax);
                a.mov(__dword_ptr[immediate], ecx);
                a.dec(ecx);
                a.jnz(again);
                a.mov(ResultSlot(0), rbx);
                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(SumTo(times + 1) - 1, guest.Result(0));
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_store_to_a_later_block_is_seen_behind_a_jump_a_call_and_a_return(string strategy, int ring)
    {
        const int times = 500;
        using var guest = new BehaviourGuest(
            strategy,
            ring,
            a =>
            {
                Label again = a.CreateLabel();
                Label jumped = a.CreateLabel();
                Label called = a.CreateLabel();
                Label returned = a.CreateLabel();
                Label function = a.CreateLabel();
                Label first = a.CreateLabel();
                a.xor(ebx, ebx);
                a.mov(ecx, times);
                a.Label(ref again);
                a.mov(__dword_ptr[jumped], ecx);
                a.jmp(first);
                a.ud2();
                a.Label(ref first);
                MovEax(a, ref jumped, 0);
                a.add(rbx, rax);
                a.mov(__dword_ptr[called], ecx);
                a.call(function);
                MovEax(a, ref returned, 0); // which the function has written
                a.add(rbx, rax);
                a.dec(ecx);
                a.jnz(again);
                a.mov(ResultSlot(0), rbx);
                a.End();
                a.Label(ref function);
                MovEax(a, ref called, 0);
                a.add(rbx, rax);
                a.mov(__dword_ptr[returned], ecx);
                a.ret();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(3 * SumTo(times), guest.Result(0));
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_repeated_store_over_the_code_behind_it_takes_effect_at_once(string strategy, int ring)
    {
        using var guest = new BehaviourGuest(
            strategy,
            ring,
            a =>
            {
                const int nops = 24;
                Label behind = a.CreateLabel();
                a.xor(ebx, ebx);
                a.lea(rdi, __[behind]);
                a.mov(ecx, nops);
                a.mov(al, 0x90);
                a.cld();
                a.rep.stosb();
                a.Label(ref behind);
                for (int i = 0; i < nops / 2; i++)
                {
                    a.db(0xFF, 0xC3); // inc ebx
                }

                a.inc(ebx);
                a.mov(ResultSlot(0), rbx);
                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(1UL, guest.Result(0));
    }

    /// <summary>With CPUID in between, as the SDM asks for where code is written through another address (vol. 3A, 8.1.3).</summary>
    [Theory]
    [MemberData(nameof(Cases))]
    public void Code_written_through_an_alias_is_the_new_one(string strategy, int ring)
    {
        const int times = 300;
        const ulong alias = 0x5000_0000;
        using var guest = new BehaviourGuest(
            strategy,
            ring,
            a =>
            {
                Label again = a.CreateLabel();
                Label immediate = a.CreateLabel();
                a.xor(r8d, r8d);
                a.mov(r9d, times);
                a.lea(rsi, __[immediate]);
                a.and(esi, 0xFFF);
                a.mov(rax, alias);
                a.add(rsi, rax);
                a.Label(ref again);
                a.mov(__dword_ptr[rsi], r9d);
                a.xor(eax, eax);
                a.cpuid();
                MovEax(a, ref immediate, 0);
                a.add(r8, rax);
                a.dec(r9d);
                a.jnz(again);
                a.mov(ResultSlot(0), r8);
                a.End();
            }
        );
        guest.Map(alias, Start);
        Assert.Equal(0, guest.Run());
        Assert.Equal(SumTo(times), guest.Result(0));
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void Code_written_in_another_address_space_is_the_new_one(string strategy, int ring)
    {
        Assert.SkipWhen(ring == 3, "CR3 is ring 0's");
        const int times = 200;
        const ulong window = 0x5000_0000;
        const ulong function = Spare;
        using var guest = new BehaviourGuest(strategy, ring);
        ulong other = guest.AddAddressSpace();
        guest.MapIn(other, window, function);
        guest.Write(function, [0xB8, 0, 0, 0, 0, 0xC3]); // mov eax, 0; ret
        guest.Write(
            Start,
            a =>
            {
                Label again = a.CreateLabel();
                a.mov(r10, cr3);
                a.mov(r11, other);
                a.mov(rsi, window + 1);
                a.mov(rdi, function);
                a.xor(ebx, ebx);
                a.mov(ecx, times);
                a.Label(ref again);
                a.mov(cr3, r11);
                a.mov(__dword_ptr[rsi], ecx);
                a.mov(cr3, r10);
                a.call(rdi);
                a.add(rbx, rax);
                a.dec(ecx);
                a.jnz(again);
                a.mov(ResultSlot(0), rbx);
                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(SumTo(times), guest.Result(0));
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_counter_next_to_the_loop_that_counts_in_it_keeps_every_count(string strategy, int ring)
    {
        const int times = 10_000;
        using var guest = new BehaviourGuest(
            strategy,
            ring,
            a =>
            {
                Label again = a.CreateLabel();
                Label counter = a.CreateLabel();
                Label start = a.CreateLabel();
                a.jmp(start);
                a.Label(ref counter);
                a.db(new byte[48]);
                a.Label(ref start);
                a.lea(rsi, __[counter]);
                a.mov(ecx, times);
                a.mov(edx, 1);
                a.movd(xmm1, edx);
                a.pxor(xmm0, xmm0);
                a.Label(ref again);
                a.inc(__qword_ptr[rsi]);
                a.mov(eax, 2);
                a.@lock.xadd(__qword_ptr[rsi + 8], rax);
                a.mov(__qword_ptr[rsi + 16], rcx);
                a.paddq(xmm0, xmm1);
                a.movdqu(__xmmword_ptr[rsi + 24], xmm0);
                a.adc(__byte_ptr[rsi + 40], 0);
                a.dec(ecx);
                a.jnz(again);
                for (int i = 0; i < 4; i++)
                {
                    a.mov(rax, __qword_ptr[rsi + (8 * i)]);
                    a.mov(ResultSlot(i), rax);
                }

                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(
            ((ulong)times, 2UL * times, 1UL, (ulong)times),
            (guest.Result(0), guest.Result(1), guest.Result(2), guest.Result(3))
        );
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_stack_in_the_page_of_the_code_that_uses_it_works(string strategy, int ring)
    {
        const int depth = 60;
        const int times = 100;
        using var guest = new BehaviourGuest(
            strategy,
            ring,
            a =>
            {
                Label function = a.CreateLabel();
                Label again = a.CreateLabel();
                Label leaf = a.CreateLabel();
                a.mov(rsp, Start + 0xFF0);
                a.xor(ebx, ebx);
                a.mov(ecx, times);
                a.Label(ref again);
                a.mov(edx, depth);
                a.call(function);
                a.dec(ecx);
                a.jnz(again);
                a.mov(ResultSlot(0), rbx);
                a.mov(ResultSlot(1), rsp);
                a.End();
                a.Label(ref function);
                a.inc(rbx);
                a.push(rdx);
                a.dec(edx);
                a.jz(leaf);
                a.call(function);
                a.Label(ref leaf);
                a.pop(rdx);
                a.add(rbx, rdx);
                a.ret();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(times * (depth + SumTo(depth)), guest.Result(0));
        Assert.Equal(Start + 0xFF0, guest.Result(1));
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void Code_that_a_guest_generates_again_and_again_at_one_place_is_the_latest(string strategy, int ring)
    {
        const int times = 400;
        const ulong buffer = Spare;
        using var guest = new BehaviourGuest(
            strategy,
            ring,
            a =>
            {
                Label again = a.CreateLabel();
                a.xor(ebx, ebx);
                a.mov(ecx, times);
                a.mov(rdi, buffer);
                a.Label(ref again);
                // n times ADD RBX, n, one byte further each time: 48 83 C3 ib; RET
                a.mov(rsi, rdi);
                a.mov(eax, ecx);
                a.and(eax, 7);
                a.add(rsi, rax);
                a.mov(r8, rsi);
                a.inc(eax);
                a.mov(edx, eax);
                a.shl(eax, 24);
                a.or(eax, 0x00C3_8348);
                Label emit = a.CreateLabel();
                a.Label(ref emit);
                a.mov(__dword_ptr[rsi], eax);
                a.add(rsi, 4);
                a.dec(edx);
                a.jnz(emit);
                a.mov(__byte_ptr[rsi], 0xC3);
                a.call(r8);
                a.dec(ecx);
                a.jnz(again);
                a.mov(ResultSlot(0), rbx);
                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal((ulong)Enumerable.Range(1, times).Sum(n => ((n & 7) + 1) * ((n & 7) + 1)), guest.Result(0));
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void Both_decodings_of_bytes_that_overlap_are_executed(string strategy, int ring)
    {
        const int times = 300;
        using var guest = new BehaviourGuest(
            strategy,
            ring,
            a =>
            {
                Label again = a.CreateLabel();
                Label middle = a.CreateLabel();
                Label outer = a.CreateLabel();
                Label whole = a.CreateLabel();
                a.xor(ebx, ebx);
                a.xor(edx, edx);
                a.mov(ecx, times);
                a.Label(ref again);
                a.jmp(whole);
                a.Label(ref whole);
                a.db(0xB8); // mov eax, 0x90C3FF90, or from the second byte on: nop; inc ebx; nop
                a.Label(ref middle);
                a.db(0x90, 0xFF, 0xC3, 0x90);
                a.test(edx, edx);
                a.jnz(outer);
                a.add(r8, rax);
                a.inc(edx);
                a.jmp(middle);
                a.Label(ref outer);
                a.xor(edx, edx);
                a.dec(ecx);
                a.jnz(again);
                a.mov(ResultSlot(0), rbx);
                a.mov(ResultSlot(1), r8);
                a.End();
            }
        );
        guest.Machine.Cpu[8] = 0;
        Assert.Equal(0, guest.Run());
        Assert.Equal(((ulong)times, times * 0x90C3_FF90UL), (guest.Result(0), guest.Result(1)));
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void What_the_core_writes_into_code_is_executed(string strategy, int ring)
    {
        Assert.SkipWhen(ring == 3, "port input is ring 0's");
        const int times = 50;
        using var guest = new BehaviourGuest(
            strategy,
            ring,
            a =>
            {
                Label again = a.CreateLabel();
                Label immediate = a.CreateLabel();
                a.xor(ebx, ebx);
                a.mov(r9d, times);
                a.mov(edx, 0x9999); // where no device is: all ones
                a.Label(ref again);
                a.lea(rdi, __[immediate]);
                a.mov(__dword_ptr[rdi], 0);
                a.mov(ecx, 3);
                a.rep.insb();
                MovEax(a, ref immediate, 0);
                a.add(rbx, rax);
                a.dec(r9d);
                a.jnz(again);
                a.mov(ResultSlot(0), rbx);
                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(times * 0xFF_FFFFUL, guest.Result(0));
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void What_the_host_writes_between_two_runs_is_executed(string strategy, int ring)
    {
        using var guest = new BehaviourGuest(
            strategy,
            ring,
            a =>
            {
                Label again = a.CreateLabel();
                a.Label(ref again);
                a.cmp(__qword_ptr[Data], 0);
                a.je(again);
                a.End();
            }
        );
        guest.RunForAMoment();
        byte[] end = Assemble(Start, a => a.End());
        guest.Memory.Write(Start, end);
        guest.Machine.Cpu.Rip = Start;
        Assert.Equal(0, guest.Run());
    }
}
