using Iced.Intel;
using VirtBench.Strategies.Tests.DirectExecution;
using VirtBench.Strategies.Tests.Translated;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;
using static VirtBench.Strategies.Tests.Translated.BehaviourGuest;

namespace VirtBench.Strategies.Tests.Paravirtual;

/// <summary>The paravirtual interface as the guest's machine code finds it, under every strategy that runs kernels.</summary>
[Collection(CarrierCollection.Name)]
public sealed class HypercallTests
{
    private const ulong Records = Spare;
    private const ulong Kept = Spare + 0x1000;
    private const ulong Handler = Spare + 0x2000;
    private const ulong OutsideRam = RamBytes;
    private const ulong Canary = 0x1122_3344_5566_7788;

    // Where the CPU or the emulator in the host's kernel runs ring 0: the page's own code does the page-table work.
    private static bool Hardware(string strategy) => strategy.StartsWith("hardware", StringComparison.Ordinal);

    public static TheoryData<string> Strategies =>
        [.. StrategyCatalog.All.Where(strategy => strategy.RunsPrivilegedGuests).Select(strategy => strategy.Id)];

    private static readonly AssemblerMemoryOperand Mask = __qword_ptr[PhysicalLayout.SharedInfoPage];
    private static readonly AssemblerMemoryOperand Pending = __qword_ptr[PhysicalLayout.SharedInfoPage + 8];

    private static BehaviourGuest Boot(string strategy, Action<Assembler> program, int ring = 0) =>
        new(StrategyCatalog.Find(strategy)!, ring, program, paravirtual: true);

    private static void Call(Assembler a, HypercallNumber number, ulong first = 0, ulong second = 0)
    {
        a.mov(rdi, first);
        a.mov(rsi, second);
        a.call(HypercallPage.EntryOf(number));
    }

    private static void End(Assembler a)
    {
        a.mov(al, 0);
        a.@out(0xF4, al);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Hypercalls_answer_alike_under_every_strategy(string strategy)
    {
        (HypercallNumber Number, ulong First, ulong Second, long Expected)[] calls =
        [
            (HypercallNumber.Features, 0, 0, (1 << HypercallPage.Count) - 1),
            (HypercallNumber.Yield, 0, 0, 0),
            (HypercallNumber.SetTimer, 0, 0, 0),
            (HypercallNumber.Flush, ulong.MaxValue, 0, 0),
            (HypercallNumber.Flush, Data, 0, 0),
            (HypercallNumber.UpdatePageTables, Records, 0, 0),
            (HypercallNumber.UpdatePageTables, Records, 513, -HypercallError.TooBig),
            (HypercallNumber.EndOfInterrupt, 16, 0, -HypercallError.Invalid),
            (HypercallNumber.EndOfInterrupt, ulong.MaxValue, 0, -HypercallError.Invalid),
            (HypercallNumber.ConsoleWrite, OutsideRam - 1, 2, -HypercallError.BadAddress),
            (HypercallNumber.ConsoleWrite, ulong.MaxValue, 1, -HypercallError.BadAddress),
            (HypercallNumber.ConsoleWrite, Data, 4097, -HypercallError.TooBig),
            (HypercallNumber.ConsoleWrite, Data, ulong.MaxValue, -HypercallError.TooBig),
            (HypercallNumber.Multicall, OutsideRam, 1, -HypercallError.BadAddress),
            (HypercallNumber.Multicall, ulong.MaxValue - 8, 1, -HypercallError.BadAddress),
            (HypercallNumber.Multicall, Records, 513, -HypercallError.TooBig),
            (HypercallNumber.Multicall, Records, 0, 0),
        ];
        using BehaviourGuest guest = Boot(
            strategy,
            a =>
            {
                for (int i = 0; i < calls.Length; i++)
                {
                    Call(a, calls[i].Number, calls[i].First, calls[i].Second);
                    a.mov(ResultSlot(i), rax);
                }

                End(a);
            }
        );
        Assert.Equal(0, guest.Run());
        for (int i = 0; i < calls.Length; i++)
        {
            Assert.Equal((i, calls[i].Expected), (i, (long)guest.Result(i)));
        }

        Assert.True(guest.Machine.Ledger.Count(TrapReason.Hypercall) >= 11);
        Assert.Equal(0, guest.Machine.Ledger.Count(TrapReason.GuestException));
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void What_is_wrong_with_a_record_of_a_multicall_is_its_result(string strategy)
    {
        const ulong entry = 0x3F_0000;
        (ulong Number, ulong First, ulong Second, long Expected)[] records =
        [
            ((ulong)HypercallNumber.Features, 0, 0, (1 << HypercallPage.Count) - 1),
            (99, 0, 0, -HypercallError.Unknown),
            (ulong.MaxValue, 0, 0, -HypercallError.Unknown),
            (1UL << 32, 0, 0, -HypercallError.Unknown),
            ((ulong)HypercallNumber.Multicall, Records, 1, -HypercallError.Invalid),
            ((ulong)HypercallNumber.Block, 0, 0, -HypercallError.Invalid),
            ((ulong)HypercallNumber.InterruptReturn, 0, 0, -HypercallError.Invalid),
            ((ulong)HypercallNumber.UpdatePageTables, OutsideRam - 8, 1, -HypercallError.BadAddress),
            ((ulong)HypercallNumber.UpdatePageTables, Kept, 1, -HypercallError.BadAddress),
            ((ulong)HypercallNumber.UpdatePageTables, Kept + 16, 1, -HypercallError.Invalid),
            ((ulong)HypercallNumber.UpdatePageTables, Kept + 32, 2, 2),
            ((ulong)HypercallNumber.UpdatePageTables, Kept, ulong.MaxValue, -HypercallError.TooBig),
            ((ulong)HypercallNumber.SetPageTableBase, 1UL << 60, 0, -HypercallError.Invalid),
        ];
        using BehaviourGuest guest = Boot(
            strategy,
            a =>
            {
                Call(a, HypercallNumber.Multicall, Records, (ulong)records.Length);
                a.mov(ResultSlot(0), rax);
                End(a);
            }
        );
        for (int i = 0; i < records.Length; i++)
        {
            ulong at = Records + ((ulong)i * 48);
            guest.Memory.Write(at, records[i].Number);
            guest.Memory.Write(at + 8, records[i].First);
            guest.Memory.Write(at + 16, records[i].Second);
        }

        guest.Memory.Write(Kept, OutsideRam);
        guest.Memory.Write(Kept + 16, entry + 4);
        guest.Memory.Write(Kept + 32, entry);
        guest.Memory.Write(Kept + 40, Canary);
        guest.Memory.Write(Kept + 48, entry + 8);
        guest.Memory.Write(Kept + 56, ~Canary);
        Assert.Equal(0, guest.Run());
        Assert.Equal(0u, guest.Result(0));
        for (int i = 0; i < records.Length; i++)
        {
            Assert.Equal((i, records[i].Expected), (i, guest.Memory.Read<long>(Records + ((ulong)i * 48) + 40)));
        }

        Assert.Equal((Canary, ~Canary), (guest.Memory.Read<ulong>(entry), guest.Memory.Read<ulong>(entry + 8)));
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void A_number_that_there_is_not_is_an_error(string strategy)
    {
        // A copy of an entry of the page with another number: the exit does not depend on where it stands.
        using BehaviourGuest guest = Boot(
            strategy,
            a =>
            {
                a.call(Handler);
                a.mov(ResultSlot(0), rax);
                End(a);
            }
        );
        byte[] entry = new byte[HypercallPage.EntrySize];
        guest.Memory.Read(HypercallPage.EntryOf(HypercallNumber.Features), entry);
        ReadOnlySpan<byte> moveZero = [0xB8, 0, 0, 0, 0];
        int number = entry.AsSpan().IndexOf(moveZero);
        Assert.True(number >= 0);
        entry[number + 1] = 77;
        guest.Write(Handler, entry);
        Assert.Equal(0, guest.Run());
        Assert.Equal(-HypercallError.Unknown, (long)guest.Result(0));
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Ring_3_makes_no_hypercalls(string strategy)
    {
        Assert.SkipWhen(
            StrategyCatalog.Find(strategy)!.EmulatesRingZero,
            "the host's kernel emulates ring 0 here, and not what the handlers of this guest do"
        );
        using BehaviourGuest guest = Boot(
            strategy,
            a =>
            {
                Label call = a.CreateLabel();
                Label after = a.CreateLabel();
                a.StoreAddress(after, Resume);
                a.mov(rsi, 0);
                a.mov(rax, Canary);
                a.Label(ref call);
                a.call(HypercallPage.EntryOf(HypercallNumber.Features));
                a.mov(ResultSlot(0), rax);
                a.Label(ref after);
                a.End();
            },
            ring: 3
        );
        Assert.Equal(0, guest.Run());
        if (Hardware(strategy))
        {
            Assert.Equal(Vector.GeneralProtection, Assert.Single(guest.Exceptions).Vector); // its port is not ring 3's
        }
        else
        {
            Assert.Empty(guest.Exceptions);
            Assert.Equal(-HypercallError.NotPermitted, (long)guest.Result(0));
        }
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Registers_survive_hypercalls_to_the_same_and_to_another_address_space(string strategy)
    {
        Assert.SkipWhen(
            StrategyCatalog.Find(strategy)!.EmulatesRingZero,
            "the host's kernel emulates ring 0 without SSE"
        );
        bool x87 = !StrategyCatalog.Find(strategy)!.IsSimulated;
        const uint fsBase = 0xC000_0100;
        AssemblerRegister64[] kept = [rbx, rdx, rbp, r8, r9, r10, r12, r13, r14, r15];
        ulong other = 0;
        using BehaviourGuest guest = Boot(
            strategy,
            a =>
            {
                a.WriteMsr(fsBase, 0x20_0100);
                a.WriteMsr(fsBase + 1, 0x20_0200);
                if (x87)
                {
                    a.fninit();
                    a.fldpi();
                }

                for (int i = 0; i < kept.Length; i++)
                {
                    a.mov(kept[i], Canary + (ulong)i);
                    a.movq(new AssemblerRegisterXMM(Register.XMM0 + i), kept[i]);
                }

                a.std();
                a.mov(r15, Loops(strategy));
                Label again = a.CreateLabel();
                a.Label(ref again);
                Call(a, HypercallNumber.Features);
                a.mov(rdi, __qword_ptr[Kept]);
                a.call(HypercallPage.EntryOf(HypercallNumber.SetPageTableBase));
                Call(a, HypercallNumber.EndOfInterrupt, 1);
                a.mov(rdi, __qword_ptr[Kept + 8]);
                a.call(HypercallPage.EntryOf(HypercallNumber.SetPageTableBase));
                a.dec(r15);
                a.jne(again);
                Call(a, HypercallNumber.Features, 0, Data + 8);
                a.lodsb(); // backwards
                a.mov(__qword_ptr[Results + 0x100], rsi);
                a.cld();
                a.mov(r15, Canary + (ulong)kept.Length - 1);
                for (int i = 0; i < kept.Length; i++)
                {
                    a.mov(ResultSlot(i), kept[i]);
                    a.movq(__qword_ptr[Results + 0x80 + (8 * (ulong)i)], new AssemblerRegisterXMM(Register.XMM0 + i));
                }

                a.mov(rax, __qword_ptr.fs[0]);
                a.mov(__qword_ptr[Results + 0x108], rax);
                a.mov(rax, __qword_ptr.gs[0]);
                a.mov(__qword_ptr[Results + 0x110], rax);
                if (x87)
                {
                    a.fstp(__qword_ptr[Results + 0x118]);
                }

                End(a);
            }
        );
        other = guest.AddAddressSpace();
        guest.Memory.Write(Kept, other);
        guest.Memory.Write(Kept + 8, guest.Machine.Cpu.Cr3);
        guest.Memory.Write(Data + 0x100, 0xF5F5UL);
        guest.Memory.Write(Data + 0x200, 0x6565UL);
        Assert.Equal(0, guest.RunUnderKicks());
        for (int i = 0; i < kept.Length; i++)
        {
            Assert.Equal(Canary + (ulong)i, guest.Result(i));
            Assert.Equal(Canary + (ulong)i, guest.Memory.Read<ulong>(Results + 0x80 + (8 * (ulong)i)));
        }

        Assert.Equal(Data + 7, guest.Memory.Read<ulong>(Results + 0x100));
        Assert.Equal(0xF5F5UL, guest.Memory.Read<ulong>(Results + 0x108));
        Assert.Equal(0x6565UL, guest.Memory.Read<ulong>(Results + 0x110));
        if (x87)
        {
            Assert.Equal(Math.PI, guest.Memory.Read<double>(Results + 0x118));
        }
    }

    // Enough for kicks to find the guest everywhere.
    private static ulong Loops(string strategy) =>
        strategy.StartsWith("simulated", StringComparison.Ordinal) ? 1000UL : 5000UL;

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Interrupts_come_when_the_mask_is_open_and_return_with_every_register(string strategy)
    {
        Assert.SkipWhen(
            StrategyCatalog.Find(strategy)!.EmulatesRingZero,
            "the host's kernel emulates ring 0 here, and takes interrupts between batches of instructions only"
        );
        const int enough = 40;
        const byte closed = 2;
        const byte changed = 3;
        using BehaviourGuest guest = Boot(
            strategy,
            a =>
            {
                Label again = a.CreateLabel();
                Label wait = a.CreateLabel();
                Label nothing = a.CreateLabel();
                Label inside = a.CreateLabel();
                Label outside = a.CreateLabel();
                a.Label(ref again);
                a.mov(Mask, 1);
                a.mov(rdx, __qword_ptr[Ticks]);
                a.mov(ebx, 300);
                a.Label(ref wait);
                a.dec(ebx);
                a.jne(wait);
                a.cmp(rdx, __qword_ptr[Ticks]);
                a.jne(inside);
                a.mov(rax, Canary);
                a.mov(rcx, ~Canary);
                a.mov(r11, Canary >> 1);
                a.mov(Mask, 0);
                a.cmp(Pending, 0);
                a.je(nothing);
                a.push(rax);
                a.push(rcx);
                a.push(r11);
                a.call(HypercallPage.EntryOf(HypercallNumber.Yield));
                a.pop(r11);
                a.pop(rcx);
                a.pop(rax);
                a.Label(ref nothing);
                Check(a, outside);
                a.mov(ebx, 300);
                Label open = a.CreateLabel();
                a.Label(ref open);
                Check(a, outside);
                a.dec(ebx);
                a.jne(open);
                a.cmp(__qword_ptr[Ticks], enough);
                a.jb(again);
                End(a);
                a.Label(ref inside);
                a.mov(al, closed);
                a.@out(0xF4, al);
                a.Label(ref outside);
                a.mov(al, changed);
                a.@out(0xF4, al);
            }
        );
        guest.Write(
            Handler,
            a =>
            {
                AssemblerRegister64[] clobbered = [rax, rcx, rdi, r11];
                a.push(Mask);
                a.mov(Mask, 1);
                foreach (AssemblerRegister64 register in clobbered)
                {
                    a.push(register);
                }

                a.inc(__qword_ptr[Ticks]);
                a.xor(edi, edi);
                a.call(HypercallPage.EntryOf(HypercallNumber.EndOfInterrupt));
                foreach (AssemblerRegister64 register in clobbered.Reverse())
                {
                    a.pop(register);
                }

                a.call(HypercallPage.EntryOf(HypercallNumber.InterruptReturn));
            }
        );
        guest.SetGate(0x20, Handler);
        guest.StartTimer(60);
        Assert.Equal(0, guest.Run());
        Assert.True(guest.Memory.Read<ulong>(Ticks) >= enough);
    }

    private static void Check(Assembler a, Label wrong)
    {
        a.mov(rdx, Canary);
        a.cmp(rax, rdx);
        a.jne(wrong);
        a.not(rdx);
        a.cmp(rcx, rdx);
        a.jne(wrong);
        a.mov(rdx, Canary >> 1);
        a.cmp(r11, rdx);
        a.jne(wrong);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void A_guest_that_blocks_sleeps_until_its_timer_and_has_the_mask_set_again(string strategy)
    {
        Assert.SkipWhen(
            StrategyCatalog.Find(strategy)!.EmulatesRingZero,
            "the host's kernel emulates ring 0 here, and not what the handlers of this guest do"
        );
        using BehaviourGuest guest = Boot(
            strategy,
            a =>
            {
                ReadClock(a);
                a.mov(r12, rax);
                a.lea(rdi, __[rax + 2_000_000]);
                a.call(HypercallPage.EntryOf(HypercallNumber.SetTimer));
                a.call(HypercallPage.EntryOf(HypercallNumber.Block));
                a.mov(rax, Mask);
                a.mov(ResultSlot(0), rax);
                a.mov(rax, __qword_ptr[Ticks]);
                a.mov(ResultSlot(1), rax);
                ReadClock(a);
                a.sub(rax, r12);
                a.mov(ResultSlot(2), rax);
                End(a);
            }
        );
        guest.StartTimer(0); // programs the controller; the 8254 itself would take 55 ms
        guest.Machine.Ports.Write(0x43, 1, 0x30, 0); // and stands still
        Assert.Equal(0, guest.Run());
        Assert.Equal((1u, 1u), (guest.Result(0), guest.Result(1)));
        Assert.InRange(guest.Result(2), 2_000_000u, 10_000_000_000u);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void The_paravirtual_clock_never_goes_back_and_agrees_with_the_engines(string strategy)
    {
        using BehaviourGuest guest = Boot(
            strategy,
            a =>
            {
                Label again = a.CreateLabel();
                Label forward = a.CreateLabel();
                a.mov(r15d, 300);
                ReadClock(a);
                a.mov(ResultSlot(0), rax);
                a.mov(r12, rax);
                a.xor(r13d, r13d);
                a.Label(ref again);
                ReadClock(a);
                a.cmp(rax, r12);
                a.jae(forward);
                a.inc(r13);
                a.Label(ref forward);
                a.mov(r12, rax);
                a.dec(r15d);
                a.jne(again);
                a.mov(ResultSlot(1), r12);
                a.mov(ResultSlot(2), r13);
                End(a);
            }
        );
        double before = guest.Machine.Clock.Nanoseconds;
        Assert.Equal(0, guest.Run());
        double elapsed = guest.Machine.Clock.Nanoseconds - before;
        Assert.Equal(0u, guest.Result(2));

        // Of two readings inside the run the difference cannot be more than the run took, but for the scale's rounding.
        double told = guest.Result(1) - guest.Result(0);
        Assert.InRange(told, 1, elapsed + 2);

        // And the clock's scale is the engine's.
        ParavirtualClock clock = guest.Memory.Read<ParavirtualClock>(PhysicalLayout.SharedInfoPage + 0x40);
        double rate = clock.TscToSystemMultiplier * Math.ScaleB(1, clock.TscShift - 32);
        Assert.InRange(rate * guest.Machine.Clock.TicksPerSecond / 1e9, 0.99, 1.01);
    }

    // RAX: nanoseconds. Clobbers RCX, RDX, R8.
    private static void ReadClock(Assembler a)
    {
        const ulong clock = PhysicalLayout.SharedInfoPage + 0x40;
        Label read = a.CreateLabel();
        Label right = a.CreateLabel();
        Label scaled = a.CreateLabel();
        a.nop(); // for a label of the caller's
        a.Label(ref read);
        a.mov(r8d, __dword_ptr[clock]);
        a.rdtsc();
        a.shl(rdx, 32);
        a.or(rax, rdx);
        a.sub(rax, __qword_ptr[clock + 8]);
        a.movsx(ecx, __byte_ptr[clock + 0x1C]);
        a.test(ecx, ecx);
        a.js(right);
        a.shl(rax, cl);
        a.jmp(scaled);
        a.Label(ref right);
        a.neg(ecx);
        a.shr(rax, cl);
        a.Label(ref scaled);
        a.mov(ecx, __dword_ptr[clock + 0x18]);
        a.mul(rcx);
        a.shrd(rax, rdx, 32);
        a.add(rax, __qword_ptr[clock + 0x10]);
        a.test(r8d, 1);
        a.jne(read);
        a.cmp(r8d, __dword_ptr[clock]);
        a.jne(read);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void A_guest_that_overwrites_both_pages_harms_itself_only(string strategy)
    {
        Assert.SkipWhen(
            StrategyCatalog.Find(strategy)!.EmulatesRingZero,
            "the host's kernel emulates ring 0 here, and not what the handlers of this guest do"
        );
        using BehaviourGuest guest = Boot(
            strategy,
            a =>
            {
                Label after = a.CreateLabel();
                a.mov(edi, (int)PhysicalLayout.SharedInfoPage);
                a.mov(rax, ulong.MaxValue);
                a.mov(ecx, 512);
                a.rep.stosq();
                Call(a, HypercallNumber.Features);
                a.mov(ResultSlot(0), rax);
                Call(a, HypercallNumber.SetTimer, ulong.MaxValue);
                Call(a, HypercallNumber.Yield);
                a.mov(edi, (int)PhysicalLayout.HypercallPage);
                a.mov(rax, 0x0B0F_0B0F_0B0F_0B0F); // UD2
                a.mov(ecx, 512);
                a.rep.stosq();
                a.StoreAddress(after, Resume);
                a.call(HypercallPage.EntryOf(HypercallNumber.Features));
                a.Label(ref after);
                End(a);
            }
        );
        guest.StartTimer(60);
        Assert.Equal(0, guest.Run());
        Assert.Equal((1UL << HypercallPage.Count) - 1, guest.Result(0));
        Assert.Equal(Vector.InvalidOpcode, Assert.Single(guest.Exceptions).Vector);
    }
}
