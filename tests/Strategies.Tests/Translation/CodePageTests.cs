using Iced.Intel;
using VirtBench.Strategies.Tests.DirectExecution;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;
using static VirtBench.Strategies.Tests.Translated.BehaviourGuest;

namespace VirtBench.Strategies.Tests.Translated;

/// <summary>Code and the pages it lies in: their edges, their mappings that change, and where in the address space they are.</summary>
[Collection(CarrierCollection.Name)]
public sealed class CodePageTests
{
    private const ulong Page = GuestMemory.PageSize;
    private const ulong First = 0x5000_0000;
    private const ulong Second = First + Page;
    private const ulong All = Pte.Present | Pte.Writable | Pte.User;
    private const ulong Fetch = 16; // I/D of an error code: the guest runs with NXE

    public static TheoryData<string, int> Cases => BehaviourGuest.Cases;

    // Calls, by a register, so that a return address is on the stack when the fetch faults. Clobbers rax, rdi.
    private static void Call(Assembler a, ulong target, int slot, Label after)
    {
        a.StoreAddress(after, Resume);
        a.xor(eax, eax);
        a.mov(rdi, target);
        a.call(rdi);
        a.Label(ref after);
        a.mov(ResultSlot(slot), rax);
        a.mov(rsp, StackTop);
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void An_instruction_across_two_pages_faults_on_the_second_until_that_is_there_and_follows_its_mapping(
        string strategy,
        int ring
    )
    {
        const ulong at = Second - 3;
        using var guest = new BehaviourGuest(strategy, ring);
        ulong entry = guest.PteOf(Second);
        guest.Map(First, Spare);
        guest.Write(
            Start,
            a =>
            {
                // Twice: what has faulted once must not be remembered as a fault.
                for (int i = 0; i < 2; i++)
                {
                    Call(a, at, i, a.CreateLabel());
                }

                for (int i = 0; i < 2; i++)
                {
                    a.mov(rax, (Spare + Page + (Page * (ulong)i)) | All);
                    a.mov(__qword_ptr[entry], rax);
                    a.mov(rdi, Second);
                    a.Ask(Service.Invalidate);
                    Call(a, at, 2 + (2 * i), a.CreateLabel());
                    Call(a, at, 3 + (2 * i), a.CreateLabel());
                }

                a.mov(rax, 0L);
                a.mov(__qword_ptr[entry], rax);
                a.mov(rdi, Second);
                a.Ask(Service.Invalidate);
                Call(a, at, 6, a.CreateLabel());
                a.End();
            }
        );
        guest.Memory.Write(Spare + Page - 3, [0xB8, 0x11, 0x22]); // mov eax, imm32; ret
        guest.Memory.Write(Spare + Page, [0x33, 0x44, 0xC3]);
        guest.Memory.Write(Spare + (2 * Page), [0x55, 0x66, 0xC3]);
        Assert.Equal(0, guest.Run());
        Assert.Equal(
            [0UL, 0UL, 0x4433_2211UL, 0x4433_2211UL, 0x6655_2211UL, 0x6655_2211UL, 0UL],
            Enumerable.Range(0, 7).Select(guest.Result)
        );
        var fault = new GuestException(14, Fetch | guest.User, at, 0, StackTop - 8, Second);
        Assert.Equal([fault, fault, fault], guest.Exceptions.Select(one => one with { Rflags = 0 }));
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_block_that_runs_up_to_the_end_of_a_mapping_faults_exactly_there(string strategy, int ring)
    {
        const int nops = 40;
        using var guest = new BehaviourGuest(strategy, ring);
        guest.Map(First, Spare);
        guest.Memory.Write(Spare, Enumerable.Repeat((byte)0x90, (int)Page).ToArray());
        guest.Memory.Write(Spare + Page - 4, [0xFF, 0xC3, 0xFF, 0xC3]); // inc ebx, twice
        guest.Write(
            Start,
            a =>
            {
                for (int i = 0; i < 3; i++)
                {
                    a.xor(ebx, ebx);
                    Call(a, Second - nops, 2 * i, a.CreateLabel());
                    a.mov(ResultSlot((2 * i) + 1), rbx);
                }

                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal([0UL, 2UL, 0UL, 2UL, 0UL, 2UL], Enumerable.Range(0, 6).Select(guest.Result));
        var fault = new GuestException(14, Fetch | guest.User, Second, 0, StackTop - 8, Second);
        Assert.Equal([fault, fault, fault], guest.Exceptions.Select(one => one with { Rflags = 0 }));
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_loop_and_a_return_that_end_with_their_page_do_not_touch_the_next(string strategy, int ring)
    {
        using var guest = new BehaviourGuest(strategy, ring);
        guest.Map(First, Spare);
        byte[] code = Assemble(
            First,
            a =>
            {
                Label again = a.CreateLabel();
                a.mov(ecx, 1000);
                a.Label(ref again);
                a.add(rax, rcx);
                a.dec(ecx);
                a.jnz(again);
                a.ret();
            }
        );
        guest.Memory.Write(Spare + Page - (ulong)code.Length, code);
        guest.Write(
            Start,
            a =>
            {
                Call(a, Second - (ulong)code.Length, 0, a.CreateLabel());
                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(500_500UL, guest.Result(0));
        Assert.Empty(guest.Exceptions);
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_code_page_that_is_mapped_to_another_frame_executes_that(string strategy, int ring)
    {
        const int times = 60;
        using var guest = new BehaviourGuest(strategy, ring);
        ulong entry = guest.PteOf(First);
        guest.Map(First, Spare);
        for (uint i = 0; i < 2; i++)
        {
            guest.Memory.Write(Spare + (Page * i), [0xB8, (byte)(i + 1), 0, 0, 0, 0xC3]);
        }

        guest.Write(
            Start,
            a =>
            {
                // The services keep r8 to r11; even rounds use INVLPG, odd ones reload CR3.
                Label again = a.CreateLabel();
                Label flush = a.CreateLabel();
                Label call = a.CreateLabel();
                a.xor(r8d, r8d);
                a.mov(r9d, times);
                a.mov(r10, entry);
                a.mov(rdi, First);
                a.Label(ref again);
                a.xor(__qword_ptr[r10], 0x1000); // the other of two frames
                a.test(r9d, 1);
                a.jnz(flush);
                a.Ask(Service.Invalidate);
                a.jmp(call);
                a.Label(ref flush);
                a.Ask(Service.Flush);
                a.Label(ref call);
                a.call(rdi);
                a.imul(r8, r8, 3);
                a.add(r8, rax);
                a.dec(r9d);
                a.jnz(again);
                a.mov(ResultSlot(0), r8);
                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        ulong expected = 0;
        for (int i = 1; i <= times; i++)
        {
            expected = unchecked((expected * 3) + (i % 2 == 1 ? 2UL : 1UL));
        }

        Assert.Equal(expected, guest.Result(0));
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_code_page_whose_rights_are_taken_away_faults_with_the_right_error_code(string strategy, int ring)
    {
        (ulong Bits, ulong Error)[] changes =
        [
            (Spare | All | Pte.NoExecute, Fetch | 1),
            (0, Fetch),
            .. ring == 3 ? [(Spare | Pte.Present | Pte.Writable, Fetch | 1)] : Array.Empty<(ulong, ulong)>(),
        ];
        using var guest = new BehaviourGuest(strategy, ring);
        ulong entry = guest.PteOf(First);
        guest.Map(First, Spare);
        guest.Memory.Write(Spare, [0xB8, 7, 0, 0, 0, 0xC3]);
        guest.Write(
            Start,
            a =>
            {
                int slot = 0;
                Call(a, First, slot++, a.CreateLabel());
                foreach ((ulong bits, _) in changes)
                {
                    foreach (ulong value in (ulong[])[bits, Spare | All])
                    {
                        a.mov(rax, value);
                        a.mov(rdi, entry);
                        a.mov(__qword_ptr[rdi], rax);
                        a.mov(rdi, First);
                        a.Ask(Service.Invalidate);
                        Call(a, First, slot++, a.CreateLabel());
                    }
                }

                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(
            [7UL, .. changes.SelectMany(_ => (ulong[])[0UL, 7UL])],
            Enumerable.Range(0, 1 + (2 * changes.Length)).Select(guest.Result)
        );
        Assert.Equal(
            changes.Select(change => new GuestException(14, change.Error | guest.User, First, 0, StackTop - 8, First)),
            guest.Exceptions.Select(one => one with { Rflags = 0 })
        );
    }

    public static TheoryData<string, int, ulong> Places
    {
        get
        {
            // Across 2 GiB and across 4 GiB, between them, right above, and in the upper reaches of what every strategy can map.
            ulong[] places =
            [
                0x7FFF_FFC0,
                0xC000_0000,
                0xFFFF_FFC0,
                0x1_0000_0000,
                0x12_3456_7000,
                0x7000_0000_0000,
                0x7FFC_FFFF_E000,
            ];
            var all = new TheoryData<string, int, ulong>();
            foreach (TheoryDataRow<string, int> one in Cases.Cast<TheoryDataRow<string, int>>())
            {
                foreach (ulong place in places)
                {
                    all.Add(one.Data.Item1, one.Data.Item2, place);
                }
            }

            return all;
        }
    }

    [Theory]
    [MemberData(nameof(Places))]
    public void Code_knows_its_own_address_wherever_it_is(string strategy, int ring, ulong place)
    {
        const int times = 50;
        using var guest = new BehaviourGuest(strategy, ring);
        for (ulong i = 0; i < 2; i++)
        {
            guest.Map((place & ~0xFFFUL) + (i * Page), Spare + (i * Page));
        }

        Label back = default;
        guest.Write(
            place,
            a =>
            {
                Label again = a.CreateLabel();
                Label next = a.CreateLabel();
                Label table = a.CreateLabel();
                Label function = a.CreateLabel();
                back = a.CreateLabel();
                a.mov(ecx, times);
                a.Label(ref again);
                a.db(0xE8, 0, 0, 0, 0); // call $+5
                a.Label(ref next);
                a.pop(rax);
                a.lea(rdx, __[next]);
                a.sub(rax, rdx);
                a.add(rbx, rax); // 0
                a.call(function);
                a.call(__qword_ptr[table]);
                a.lea(rdx, __[function]);
                a.call(rdx);
                a.dec(ecx);
                a.jnz(again);
                a.ret();
                a.Label(ref function);
                a.lea(rax, __[function]);
                a.add(rbx, rax);
                a.mov(rax, __qword_ptr[rsp]);
                a.add(rbx, rax);
                a.ret();
                a.Label(ref table);
                a.dq(0);
            }
        );
        byte[] code = new byte[256];
        guest.Memory.Read(Spare + (place & 0xFFF), code);
        Decoder decoder = Decoder.Create(64, code, place);
        var instructions = new List<Instruction>();
        while (instructions.Count < 19)
        {
            instructions.Add(decoder.Decode());
        }

        Instruction[] calls = [.. instructions.Where(i => i.Mnemonic == Mnemonic.Call).Skip(1)];
        ulong function = calls[0].NearBranchTarget;
        ulong table = calls[1].IPRelativeMemoryAddress;
        guest.Write(table, BitConverter.GetBytes(function));
        guest.Write(
            Start,
            a =>
            {
                a.xor(ebx, ebx);
                a.mov(rdi, place);
                a.call(rdi);
                a.mov(ResultSlot(0), rbx);
                a.mov(ResultSlot(1), rsp);
                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        ulong round = (3 * function) + calls.Aggregate(0UL, (sum, call) => sum + call.NextIP);
        Assert.Equal((times * round, StackTop), (guest.Result(0), guest.Result(1)));
    }

    // The assembler's own operands relative to RIP are labels of the same program.
    private static Instruction RelativeToRip(ulong address, Action<Assembler> one)
    {
        var a = new Assembler(64);
        one(a);
        Instruction instruction = a.Instructions[0];
        instruction.MemoryBase = Register.RIP;
        instruction.MemoryDisplSize = 8;
        instruction.MemoryDisplacement64 = address;
        return instruction;
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void Operands_relative_to_rip_are_as_far_away_as_they_can_be(string strategy, int ring)
    {
        const ulong code = 0x7000_8000_0000;
        ulong[] pages = [0x7000_0000_1000, 0x7000_FFFF_E000, 0x7000_8000_1000];
        using var guest = new BehaviourGuest(strategy, ring);
        guest.Map(code, Spare);
        for (int i = 0; i < pages.Length; i++)
        {
            guest.Map(pages[i], Spare + (Page * (ulong)(i + 1)));
            guest.Memory.Write(Spare + (Page * (ulong)(i + 1)), 0x1111_1111_1111_1111UL * (ulong)(i + 1));
            guest.Memory.Write(Spare + (Page * (ulong)(i + 1)) + 8, 0x7000_8000_0800UL);
        }

        guest.Write(code + 0x800, [0x48, 0xFF, 0xC3, 0xC3]); // inc rbx; ret
        guest.Write(
            code,
            a =>
            {
                int slot = 0;
                void Keep(AssemblerRegister64 value)
                {
                    a.mov(r11, Results + (8 * (ulong)slot++));
                    a.mov(__qword_ptr[r11], value);
                }

                a.xor(ebx, ebx);
                foreach (ulong page in pages)
                {
                    void Far(ulong offset, Action<Assembler> one) =>
                        a.AddInstruction(RelativeToRip(page + offset, one));

                    Far(0, b => b.mov(rax, __qword_ptr[rbp]));
                    Keep(rax);
                    Far(0, b => b.lea(rax, __[rbp]));
                    Keep(rax);
                    Far(0, b => b.add(__qword_ptr[rbp], 0x1234_5678)); // an immediate behind the displacement
                    Far(0, b => b.cmp(__byte_ptr[rbp], 0x42));
                    Far(0, b => b.push(__qword_ptr[rbp]));
                    a.pop(rax);
                    Keep(rax);
                    Far(0, b => b.movdqu(xmm3, __xmmword_ptr[rbp]));
                    a.movq(rax, xmm3);
                    Keep(rax);
                    Far(0, b => b.xchg(__qword_ptr[rbp], rax)); // the same value
                    Far(0x20, b => b.push(__qword_ptr[rbp]));
                    Far(0x20, b => b.pop(__qword_ptr[rbp]));
                    Far(8, b => b.call(__qword_ptr[rbp]));
                    Keep(rbx);
                    Far(0x10, b => b.@lock.inc(__dword_ptr[rbp]));
                    Far(0x18, b => b.sete(__byte_ptr[rbp]));
                    Far(0x10, b => b.imul(rax, __qword_ptr[rbp], 77));
                    Keep(rax);
                }

                a.ret();
            }
        );
        guest.Write(
            Start,
            a =>
            {
                a.mov(rdi, code);
                a.call(rdi);
                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        for (int i = 0; i < pages.Length; i++)
        {
            ulong value = 0x1111_1111_1111_1111UL * (ulong)(i + 1);
            ulong sum = value + 0x1234_5678;
            Assert.Equal(
                [value, pages[i], sum, sum, (ulong)(i + 1), 77],
                Enumerable.Range(6 * i, 6).Select(guest.Result)
            );
        }
    }
}
