using Iced.Intel;
using VirtBench.Strategies.Tests.DirectExecution;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;
using static VirtBench.Strategies.Tests.Translated.BehaviourGuest;

namespace VirtBench.Strategies.Tests.Translated;

/// <summary>Instructions in forms that compilers seldom write and processors execute all the same.</summary>
[Collection(CarrierCollection.Name)]
public sealed class InstructionFormTests
{
    private const ulong Far = 0x7000_8000_0000;
    private const ulong Page = GuestMemory.PageSize;

    public static TheoryData<string, int> Cases => BehaviourGuest.Cases;

    /// <summary>No instruction has both a REX prefix and one of these registers, so not every base register will do for it.</summary>
    [Theory]
    [MemberData(nameof(Cases))]
    public void The_second_byte_of_a_register_goes_to_and_from_memory_relative_to_rip(string strategy, int ring)
    {
        using var guest = new BehaviourGuest(strategy, ring);
        guest.Map(Far, Spare);
        guest.Map(Far + Page, Spare + Page);
        guest.Memory.Write(Spare + Page, 0x11_22_33_44UL);
        guest.Write(
            Far,
            a =>
            {
                void Relative(int offset, byte opcode, int register) =>
                    a.db(opcode, (byte)(0x05 | (register << 3)), 0, 0, 0, 0); // patched below
                Relative(0, 0x8A, 4); // mov ah, [0]
                Relative(1, 0x02, 5); // add ch, [1]
                Relative(2, 0x00, 6); // add [2], dh
                Relative(3, 0x86, 7); // xchg [3], bh
                a.ret();
            }
        );
        for (int i = 0; i < 4; i++)
        {
            ulong displacement = Page + (ulong)i - (ulong)((i + 1) * 6);
            guest.Memory.Write(Spare + (ulong)(i * 6) + 2, (uint)displacement);
        }

        guest.Write(
            Start,
            a =>
            {
                a.mov(eax, 0x0101);
                a.mov(ecx, 0x0202);
                a.mov(edx, 0x0303);
                a.mov(ebx, 0x0404);
                a.mov(rsi, 0x1234_5678_9ABC_DEF0);
                a.mov(rdi, Far);
                a.call(rdi);
                int slot = 0;
                foreach (AssemblerRegister64 register in (AssemblerRegister64[])[rcx, rdx, rbx, rsi, rdi])
                {
                    a.mov(ResultSlot(slot++), register);
                }

                a.mov(rbx, rax);
                a.mov(ResultSlot(slot), rbx);
                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(
            [0x3502UL, 0x0303, 0x1104, 0x1234_5678_9ABC_DEF0, Far, 0x4401],
            Enumerable.Range(0, 6).Select(guest.Result)
        );
        Assert.Equal(0x04_25_33_44UL, guest.Memory.Read<ulong>(Spare + Page));
    }

    /// <summary>Of several REX prefixes the last one counts, and none that a legacy prefix follows (Intel SDM vol. 2A, 2.2.1).</summary>
    [Theory]
    [MemberData(nameof(Cases))]
    public void A_rex_prefix_that_is_not_the_last_prefix_of_an_indirect_branch_is_ignored(string strategy, int ring)
    {
        using var guest = new BehaviourGuest(strategy, ring);
        Assert.SkipWhen(guest.Strategy.IsSimulated, "the simulated CPU takes one REX prefix only");
        byte[][] jumps =
        [
            [0x48, 0x41, 0xFF, 0xE0], // jmp r8
            [0x41, 0x48, 0xFF, 0xE0], // jmp rax
            [0x41, 0x3E, 0xFF, 0xE0], // jmp rax
            [0x48, 0x41, 0xFF, 0x20], // jmp [r8]
            [0x41, 0x48, 0xFF, 0x20], // jmp [rax]
            [0x41, 0x3E, 0xFF, 0x20], // jmp [rax]
        ];
        bool[] byR8 = [true, false, false, true, false, false];
        guest.Write(
            Start,
            a =>
            {
                for (int i = 0; i < jumps.Length; i++)
                {
                    Label first = a.CreateLabel();
                    Label second = a.CreateLabel();
                    Label next = a.CreateLabel();
                    a.lea(rax, __[first]);
                    a.lea(r8, __[second]);
                    if (i >= 3)
                    {
                        a.mov(__qword_ptr[Data], rax);
                        a.mov(r9, r8);
                        a.mov(__qword_ptr[Data + 8], r9);
                        a.mov(rax, Data);
                        a.mov(r8, Data + 8);
                    }

                    a.db(jumps[i]);
                    a.ud2();
                    a.Label(ref first);
                    a.mov(ebx, 1);
                    a.jmp(next);
                    a.Label(ref second);
                    a.mov(ebx, 2);
                    a.Label(ref next);
                    a.mov(ResultSlot(i), rbx);
                }

                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(byR8.Select(r8 => r8 ? 2UL : 1), Enumerable.Range(0, jumps.Length).Select(guest.Result));
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void An_instruction_with_a_prefix_that_means_nothing_to_it_has_its_own_operand_when_stepped(
        string strategy,
        int ring
    )
    {
        using var guest = new BehaviourGuest(strategy, ring);
        guest.Write(
            Start,
            a =>
            {
                Label word = a.CreateLabel();
                Label over = a.CreateLabel();
                a.mov(eax, 5);
                a.jmp(over);
                a.Label(ref word);
                a.dq(0x1000);
                a.Label(ref over);
                a.push((int)(Rflags.AlwaysSet | Rflags.Tf));
                a.popfq();
                a.xacquire.@lock.add(__dword_ptr[word], eax);
                a.push((int)Rflags.AlwaysSet);
                a.popfq();
                a.mov(rbx, __qword_ptr[word]);
                a.mov(ResultSlot(0), rbx);
                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(0x1005UL, guest.Result(0));
        Assert.Equal([1UL, 1, 1], guest.Exceptions.Select(one => one.Vector));
    }

    /// <summary>The bytes that make it undefined are in the second page; later they are others.</summary>
    [Theory]
    [MemberData(nameof(Cases))]
    public void An_undefined_instruction_across_two_pages_follows_what_is_written_to_the_second(
        string strategy,
        int ring
    )
    {
        const ulong place = 0x5000_0000;
        using var guest = new BehaviourGuest(strategy, ring);
        guest.Map(place, Spare);
        guest.Map(place + Page, Spare + Page);
        guest.Write(place + Page - 1, [0x8D]); // lea …
        guest.Write(place + Page, [0xC0, 0xC3]); // … of a register
        guest.Write(
            Start,
            a =>
            {
                Label after = a.CreateLabel();
                a.StoreAddress(after, Resume);
                a.mov(rbx, 0x1234L);
                a.mov(rdi, place + Page - 1);
                a.call(rdi);
                a.Label(ref after);
                a.mov(rsp, StackTop);
                a.mov(__byte_ptr[rdi + 1], 0x03); // lea eax, [rbx]
                a.call(rdi);
                a.mov(ResultSlot(0), rax);
                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        GuestException undefined = Assert.Single(guest.Exceptions);
        Assert.Equal((6UL, place + Page - 1), (undefined.Vector, undefined.Rip));
        Assert.Equal(0x1234UL, guest.Result(0));
    }

    /// <summary>Only ring 0 is privileged, whatever the pages say of rings 1 and 2.</summary>
    [Theory]
    [MemberData(nameof(Cases))]
    public void Ring_1_is_refused_what_ring_3_is(string strategy, int ring)
    {
        Assert.SkipWhen(ring == 3, "a guest of ring 1");
        using var guest = new BehaviourGuest(strategy, 0);
        byte[][] privileged =
        [
            [0xFA],
            [0xFB],
            [0x0F, 0x20, 0xC0],
            [0x0F, 0x20, 0xD8],
        ]; // cli, sti, mov rax from cr0 and cr3
        VirtualCpu cpu = guest.Machine.Cpu;
        const ulong gdt = 0x6_0000;
        guest.Memory.Write(gdt + 0x18, 0x00AF_BB00_0000_FFFFUL); // code and data of ring 1
        guest.Memory.Write(gdt + 0x20, 0x00CF_B300_0000_FFFFUL);
        cpu.Cs = new Segment(0x19, 0, uint.MaxValue, 0xA0BB);
        cpu.Ss = new Segment(0x21, 0, uint.MaxValue, 0xC0B3);
        cpu.Ds = cpu.Es = cpu.Ss;
        guest.Write(
            Start,
            a =>
            {
                for (int i = 0; i < privileged.Length; i++)
                {
                    Label at = a.CreateLabel();
                    Label after = a.CreateLabel();
                    a.Expect(at, i, after);
                    a.Label(ref at);
                    a.db(privileged[i]);
                    a.ud2();
                    a.Label(ref after);
                }

                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(
            Enumerable.Range(0, privileged.Length).Select(i => (13UL, guest.Result(i))),
            guest.Exceptions.Select(one => (one.Vector, one.Rip))
        );
    }

    /// <summary>STI's shadow holds although the instruction in it first has to have its page mapped, or to be emulated.</summary>
    [Theory]
    [MemberData(nameof(Cases))]
    public void An_interrupt_that_waits_comes_behind_the_instruction_after_sti(string strategy, int ring)
    {
        const ulong fresh = 0x5000_0000;
        Assert.SkipWhen(ring == 3, "STI is ring 0's");
        using var guest = new BehaviourGuest(strategy, 0);
        guest.Map(fresh, Ticks & ~(Page - 1));
        guest.Write(
            Start,
            a =>
            {
                Label wait = a.CreateLabel();
                a.mov(al, 0x0A); // the next reads are of the interrupt request register
                a.@out(0x20, al);
                a.Label(ref wait);
                a.@in(al, 0x20);
                a.test(al, 1);
                a.jz(wait);
                a.sti();
                a.mov(rbx, __qword_ptr[fresh + (Ticks & (Page - 1))]);
                a.mov(rcx, __qword_ptr[Ticks]);
                a.cli();
                a.mov(ResultSlot(0), rbx);
                a.mov(ResultSlot(1), rcx);
                a.End();
            }
        );
        guest.StartTimer(12_000);
        guest.Machine.Cpu.Rflags &= ~Rflags.If;
        Assert.Equal(0, guest.Run());
        Assert.Equal(0UL, guest.Result(0));
        Assert.NotEqual(0UL, guest.Result(1));
    }

    /// <summary>Jumps to one short end that branches indirectly, behind any number of instructions, and stepped.</summary>
    [Theory]
    [MemberData(nameof(Cases))]
    public void A_jump_leads_to_a_common_end_wherever_in_its_code_it_stands(string strategy, int ring)
    {
        using var guest = new BehaviourGuest(strategy, ring);
        guest.Write(
            Start,
            a =>
            {
                Label end = a.CreateLabel();
                Label start = a.CreateLabel();
                Label back = a.CreateLabel();
                var ways = new List<Label>();
                a.xor(ebx, ebx);
                a.jmp(start);
                a.Label(ref end);
                a.inc(ebx);
                a.ret();
                for (int length = 60; length < 68; length++)
                {
                    Label way = a.CreateLabel();
                    a.Label(ref way);
                    ways.Add(way);
                    for (int i = 0; i < length; i++)
                    {
                        a.nop();
                    }

                    a.jmp(end);
                    a.ud2();
                }

                a.Label(ref start);
                a.call(end);
                foreach (Label way in ways)
                {
                    a.call(way);
                }

                a.lea(rax, __[back]);
                a.push(rax);
                a.push((int)(Rflags.AlwaysSet | Rflags.Tf));
                a.popfq();
                a.jmp(end);
                a.ud2();
                a.Label(ref back);
                a.push((int)Rflags.AlwaysSet);
                a.popfq();
                a.mov(ResultSlot(0), rbx);
                a.StoreAddress(end, Results + 8);
                a.StoreAddress(back, Results + 16);
                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(10UL, guest.Result(0));
        Assert.Equal(
            [guest.Result(1), guest.Result(1) + 2, guest.Result(2)],
            guest.Exceptions.Take(3).Select(one => one.Rip)
        );
    }
}
