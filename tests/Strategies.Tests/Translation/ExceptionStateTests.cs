using Iced.Intel;
using VirtBench.Strategies.Tests.DirectExecution;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;
using static VirtBench.Strategies.Tests.Translated.BehaviourGuest;

namespace VirtBench.Strategies.Tests.Translated;

/// <summary>Exceptions at every place of a block: the frame names the very instruction, and of that nothing has happened.</summary>
[Collection(CarrierCollection.Name)]
public sealed class ExceptionStateTests
{
    private const ulong Absent = 0x5000_0000;
    private const ulong ReadOnly = 0x5100_0000;
    private const ulong NonCanonical = 0x8000_0000_0000_0000;

    /// <summary>One instruction that faults, with what it needs in RSI, RDI, RCX and RSP.</summary>
    private sealed record Fault(
        Action<Assembler> Instruction,
        byte Vector,
        ulong Error = 0,
        ulong? Address = null,
        ulong Rsi = Data,
        ulong Rsp = StackTop,
        bool Simulated = true
    );

    private static readonly Dictionary<string, Fault> Faults = new()
    {
        ["div by zero"] = new(a => a.div(__dword_ptr[rsi]), Vector.DivideError),
        ["idiv that overflows"] = new(a => a.db(0x48, 0xF7, 0xF9), Vector.DivideError), // idiv rcx
        ["read"] = new(a => a.mov(rax, __qword_ptr[rsi]), Vector.PageFault, 0, Absent + 0x123, Absent + 0x123),
        ["read by an addition"] = new(a => a.add(rax, __qword_ptr[rsi]), Vector.PageFault, 0, Absent, Absent),
        ["write"] = new(a => a.mov(__dword_ptr[rsi], eax), Vector.PageFault, 2, Absent + 8, Absent + 8),
        ["write to a read-only page"] = new(a => a.inc(__byte_ptr[rsi]), Vector.PageFault, 3, ReadOnly, ReadOnly),
        ["exchange"] = new(a => a.@lock.xadd(__qword_ptr[rsi], rax), Vector.PageFault, 2, Absent, Absent),
        ["vector read"] = new(a => a.movdqu(xmm1, __xmmword_ptr[rsi]), Vector.PageFault, 0, Absent, Absent),
        ["vector write"] = new(a => a.movups(__xmmword_ptr[rsi], xmm1), Vector.PageFault, 2, Absent, Absent),
        ["string store"] = new(a => a.movsb(), Vector.PageFault, 0, Absent, Absent),
        ["misaligned"] = new(a => a.movaps(xmm1, __xmmword_ptr[rsi]), Vector.GeneralProtection, Rsi: Data + 1),
        ["read, not canonical"] = new(a => a.mov(rax, __qword_ptr[rsi]), Vector.GeneralProtection, Rsi: NonCanonical),
        ["undefined"] = new(a => a.ud2(), Vector.InvalidOpcode),
        ["jump to an absent page"] = new(a => a.jmp(rsi), Vector.PageFault, 16, Absent, Absent),
        ["jump through an absent page"] = new(a => a.jmp(__qword_ptr[rsi]), Vector.PageFault, 0, Absent, Absent),
        ["jump, not canonical"] = new(a => a.jmp(rsi), Vector.GeneralProtection, Rsi: NonCanonical, Simulated: false),
        ["call to nowhere to push"] = new(a => a.call(rsi), Vector.PageFault, 2, Absent + 0xFF8, Rsp: Absent + 0x1000),
        ["direct call to nowhere to push"] = new(
            a => a.db(0xE8, 0, 0, 0, 0),
            Vector.PageFault,
            2,
            Absent + 0xFF8,
            Rsp: Absent + 0x1000
        ),
        ["call to a read-only stack"] = new(
            a => a.call(rsi),
            Vector.PageFault,
            3,
            ReadOnly + 0x7F8,
            Rsp: ReadOnly + 0x800
        ),
        ["call through an absent page"] = new(a => a.call(__qword_ptr[rsi]), Vector.PageFault, 0, Absent, Absent),
        ["call, not canonical"] = new(a => a.call(rsi), Vector.GeneralProtection, Rsi: NonCanonical, Simulated: false),
        ["call, stack not canonical"] = new(
            a => a.call(rsi),
            Vector.StackFault,
            Rsp: NonCanonical + 8,
            Simulated: false
        ),
        ["push"] = new(a => a.push(rsi), Vector.PageFault, 2, Absent + 0xFF8, Rsp: Absent + 0x1000),
        ["push of memory"] = new(a => a.push(__qword_ptr[rsi]), Vector.PageFault, 0, Absent, Absent),
        ["pop"] = new(a => a.pop(rax), Vector.PageFault, 0, Absent + 0x10, Rsp: Absent + 0x10),
        ["pop to memory"] = new(a => a.pop(__qword_ptr[rsi]), Vector.PageFault, 2, Absent, Absent),
        ["ret"] = new(a => a.ret(), Vector.PageFault, 0, Absent + 0x10, Rsp: Absent + 0x10),
        ["ret n"] = new(a => a.ret(24), Vector.PageFault, 0, Absent + 0x10, Rsp: Absent + 0x10),
        ["ret, stack not canonical"] = new(a => a.ret(), Vector.StackFault, Rsp: NonCanonical, Simulated: false),
        ["leave"] = new(a => a.leave(), Vector.PageFault, 0, Absent, Rsp: StackTop), // RBP is RSI
        ["pushf"] = new(a => a.pushfq(), Vector.PageFault, 2, Absent + 0xFF8, Rsp: Absent + 0x1000),
        ["popf"] = new(a => a.popfq(), Vector.PageFault, 0, Absent + 0x10, Rsp: Absent + 0x10),
    };

    public static TheoryData<string, int, string> All
    {
        get
        {
            var all = new TheoryData<string, int, string>();
            foreach (TheoryDataRow<string, int> one in Cases.Cast<TheoryDataRow<string, int>>())
            {
                foreach (string name in Faults.Keys)
                {
                    all.Add(one.Data.Item1, one.Data.Item2, name);
                }
            }

            return all;
        }
    }

    public static TheoryData<string, int> Cases => BehaviourGuest.Cases;

    /// <summary>With 0 to 7 instructions before it in its block, and again in a block that has been executed without a fault.</summary>
    [Theory]
    [MemberData(nameof(All))]
    public void A_fault_leaves_everything_as_before_its_instruction(string strategy, int ring, string name)
    {
        const int positions = 8;
        Fault fault = Faults[name];
        using var guest = new BehaviourGuest(strategy, ring);
        Assert.SkipWhen(
            guest.Strategy.IsSimulated && !fault.Simulated,
            "the simulated CPU raises #GP at the target of a branch that is not canonical, and for such a stack"
        );
        guest.Map(ReadOnly, Spare, Pte.Present | Pte.User);
        guest.Write(
            Start,
            a =>
            {
                for (int position = 0; position < positions; position++)
                {
                    Label at = a.CreateLabel();
                    Label after = a.CreateLabel();
                    a.Expect(at, position, after);
                    a.mov(rsi, fault.Rsi);
                    a.mov(rbp, fault.Rsi);
                    if (name == "leave")
                    {
                        a.mov(rbp, Absent);
                    }

                    a.mov(rdi, Data + 0x100);
                    a.mov(rax, 0x8000_0000_0000_0000);
                    a.mov(rdx, 0x1234L);
                    a.mov(rcx, -1L);
                    a.mov(rsp, fault.Rsp);
                    a.mov(ebx, 0x7FFF_FFFF - 4);
                    for (int i = 0; i < position; i++)
                    {
                        a.inc(ebx); // overflows at the fifth
                    }

                    a.Label(ref at);
                    fault.Instruction(a);
                    a.ud2();
                    a.Label(ref after);
                    int slot = 16 + (8 * position);
                    foreach (AssemblerRegister64 register in (AssemblerRegister64[])[rbx, rsi, rdi, rcx, rdx, rbp])
                    {
                        a.mov(ResultSlot(slot++), register);
                    }

                    a.mov(rbx, rax);
                    a.mov(ResultSlot(slot), rbx);
                    a.mov(rsp, StackTop);
                }

                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(positions, guest.Exceptions.Count);
        for (int position = 0; position < positions; position++)
        {
            GuestException seen = guest.Exceptions[position];
            ulong rip = fault is { Vector: Vector.PageFault, Error: 16 }
                ? fault.Address!.Value
                : guest.Result(position);
            ulong error = fault.Vector == Vector.PageFault ? fault.Error | guest.User : 0;
            Assert.Equal(
                (position, (ulong)fault.Vector, error, rip, fault.Rsp),
                (position, seen.Vector, seen.Error, seen.Rip, seen.Rsp)
            );
            if (fault.Address is { } address)
            {
                Assert.Equal(address, seen.Cr2);
            }

            ulong rbp = name == "leave" ? Absent : fault.Rsi;
            Assert.Equal(
                [
                    0x7FFF_FFFBUL + (ulong)position,
                    fault.Rsi,
                    Data + 0x100,
                    ulong.MaxValue,
                    0x1234UL,
                    rbp,
                    0x8000_0000_0000_0000,
                ],
                Enumerable.Range(16 + (8 * position), 7).Select(guest.Result)
            );
            bool divides = fault.Vector == Vector.DivideError; // whose flags are undefined
            if (position > 0 && !divides)
            {
                ulong result = 0x7FFF_FFFBUL + (ulong)position;
                ulong expected =
                    (position == 5 ? Rflags.Of : 0)
                    | (result >= 0x8000_0000 ? Rflags.Sf : 0)
                    | ((result & 15) == 0 ? Rflags.Af : 0)
                    | (byte.PopCount((byte)result) % 2 == 0 ? Rflags.Pf : 0);
                Assert.Equal(expected, seen.Rflags & Rflags.Arithmetic & ~Rflags.Cf);
            }
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_string_move_that_faults_has_done_exactly_the_repetitions_before(string strategy, int ring)
    {
        using var guest = new BehaviourGuest(
            strategy,
            ring,
            a =>
            {
                Label at = a.CreateLabel();
                Label after = a.CreateLabel();
                a.Expect(at, 0, after);
                a.mov(rsi, Data);
                a.mov(rdi, Absent - 24);
                a.mov(ecx, 10);
                a.cld();
                a.Label(ref at);
                a.rep.movsq();
                a.ud2();
                a.Label(ref after);
                a.mov(ResultSlot(1), rsi);
                a.mov(ResultSlot(2), rdi);
                a.mov(ResultSlot(3), rcx);
                a.End();
            }
        );
        guest.Map(Absent - 0x1000, Spare);
        guest.Memory.Write(Data, 0x1122_3344_5566_7788UL);
        Assert.Equal(0, guest.Run());
        GuestException seen = Assert.Single(guest.Exceptions);
        Assert.Equal((14UL, 2 | guest.User, guest.Result(0), Absent), (seen.Vector, seen.Error, seen.Rip, seen.Cr2));
        Assert.Equal((Data + 24, Absent, 7UL), (guest.Result(1), guest.Result(2), guest.Result(3)));
        Assert.Equal(0x1122_3344_5566_7788UL, guest.Memory.Read<ulong>(Spare + 0x1000 - 24));
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_return_to_an_absent_page_has_popped_its_address(string strategy, int ring)
    {
        using var guest = new BehaviourGuest(
            strategy,
            ring,
            a =>
            {
                foreach (int release in (int[])[0, 40])
                {
                    Label after = a.CreateLabel();
                    a.StoreAddress(after, Resume);
                    a.mov(rax, Absent + 5);
                    a.push(rax);
                    a.ret((short)release);
                    a.Label(ref after);
                    a.mov(rsp, StackTop);
                }

                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(
            [
                new GuestException(14, 16 | guest.User, Absent + 5, 0, StackTop, Absent + 5),
                new GuestException(14, 16 | guest.User, Absent + 5, 0, StackTop + 40, Absent + 5),
            ],
            guest.Exceptions.Select(one => one with { Rflags = 0 })
        );
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void Unmasked_floating_point_exceptions_name_their_instruction(string strategy, int ring)
    {
        using var guest = new BehaviourGuest(
            strategy,
            ring,
            a =>
            {
                Label simd = a.CreateLabel();
                Label afterSimd = a.CreateLabel();
                Label x87 = a.CreateLabel();
                Label end = a.CreateLabel();
                a.Expect(simd, 0, afterSimd);
                a.mov(__dword_ptr[Data], 0x1F80 & ~0x200); // division by zero is unmasked
                a.ldmxcsr(__dword_ptr[Data]);
                a.mov(eax, 1);
                a.cvtsi2sd(xmm0, eax);
                a.pxor(xmm1, xmm1);
                a.inc(ebx);
                a.Label(ref simd);
                a.divsd(xmm0, xmm1);
                a.ud2();
                a.Label(ref afterSimd);
                a.movq(ResultSlot(2), xmm0); // as it was
                a.mov(__dword_ptr[Data], 0x1F80);
                a.ldmxcsr(__dword_ptr[Data]);
                a.Expect(x87, 1, end);
                a.fninit();
                a.mov(__word_ptr[Data], 0x37B); // the same for the x87
                a.fldcw(__word_ptr[Data]);
                a.fld1();
                a.fldz();
                a.fdivp(st1, st0); // is noticed by the next that waits
                a.inc(ebx);
                a.Label(ref x87);
                a.wait();
                a.ud2();
                a.Label(ref end);
                a.fninit();
                a.End();
            }
        );
        Assert.SkipWhen(guest.Strategy.IsSimulated, "the simulated CPU has no x87 and no unmasked exceptions");
        Assert.Equal(0, guest.Run());
        Assert.Equal(
            [(19UL, guest.Result(0)), (16UL, guest.Result(1))],
            guest.Exceptions.Select(one => (one.Vector, one.Rip))
        );
        Assert.Equal(BitConverter.DoubleToUInt64Bits(1), guest.Result(2));
    }
}
