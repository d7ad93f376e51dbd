using Iced.Intel;
using VirtBench.Strategies.Tests.DirectExecution;
using VirtBench.Strategies.Tests.Translated;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;
using static VirtBench.Strategies.Tests.Translated.BehaviourGuest;

namespace VirtBench.Strategies.Tests.Paravirtual;

/// <summary>A guest in the middle of a hypercall that goes on under another engine, whose page looks otherwise.</summary>
[Collection(CarrierCollection.Name)]
public sealed class SwitchEngineTests
{
    private const ulong Canary = 0x1122_3344_5566_7788;
    private const ulong SharedMask = PhysicalLayout.SharedInfoPage;
    private const ulong ReturnExit = HypercallPage.FaultAddressEntry + HypercallPage.EntrySize;

    public static TheoryData<string, string> Pairs
    {
        get
        {
            var pairs = new TheoryData<string, string>();
            string[] ids =
            [
                .. StrategyCatalog.All.Where(strategy => strategy.RunsPrivilegedGuests).Select(strategy => strategy.Id),
            ];
            foreach (string from in ids)
            {
                foreach (string to in ids.Where(to => to != from))
                {
                    pairs.Add(from, to);
                }
            }

            return pairs;
        }
    }

    private static Strategy Get(string id)
    {
        Strategy strategy = StrategyCatalog.Find(id)!;
        Assert.SkipWhen(strategy.UnavailableReason() is not null, strategy.UnavailableReason() ?? "");
        return strategy;
    }

    private static BehaviourGuest Boot(string strategy) =>
        new(
            Get(strategy),
            ring: 0,
            a =>
            {
                a.mov(ResultSlot(0), rax);
                a.mov(ResultSlot(1), rcx);
                a.mov(ResultSlot(2), r11);
                a.mov(ResultSlot(3), rbx);
                a.mov(ResultSlot(4), rsp);
                a.mov(al, 0);
                a.@out(0xF4, al);
            },
            paravirtual: true
        );

    // Where each instruction of the exit begins.
    private static List<ulong> InstructionsOf(BehaviourGuest guest, ulong address, int length)
    {
        byte[] code = new byte[length];
        guest.Memory.Read(address, code);
        var decoder = Decoder.Create(64, code, address);
        var starts = new List<ulong>();
        while (decoder.IP < address + (ulong)length)
        {
            starts.Add(decoder.IP);
            _ = decoder.Decode();
        }

        return starts;
    }

    [Theory]
    [MemberData(nameof(Pairs))]
    public void A_call_goes_on_from_each_of_its_instructions(string from, string to)
    {
        _ = Get(to);
        ulong entry = HypercallPage.EntryOf(HypercallNumber.Features);
        List<ulong> starts;
        using (BehaviourGuest probe = Boot(from))
        {
            starts = InstructionsOf(probe, entry, 27);
        }

        foreach (ulong start in starts)
        {
            using BehaviourGuest guest = Boot(from);
            guest.Machine.Cpu.Rip = start;
            guest.Machine.Cpu.Rsp = StackTop - 8;
            guest.Memory.Write(StackTop - 8, Start);
            guest.Machine.Cpu[3] = Canary;
            guest.SwitchEngine(Get(to));
            Assert.Equal(0, guest.Run());
            Assert.Equal((start, (1UL << HypercallPage.Count) - 1), (start, guest.Result(0)));
            Assert.Equal((Canary, StackTop), (guest.Result(3), guest.Result(4)));
        }
    }

    [Theory]
    [MemberData(nameof(Pairs))]
    public void A_return_from_an_interrupt_goes_on_from_each_of_its_instructions(string from, string to)
    {
        _ = Get(to);
        const int pushes = 3;
        List<ulong> starts;
        using (BehaviourGuest probe = Boot(from))
        {
            starts = InstructionsOf(probe, ReturnExit, 31);
        }

        for (int i = 0; i < starts.Count; i++)
        {
            using BehaviourGuest guest = Boot(from);
            const ulong stack = StackTop - 0x100;
            ulong[] frame = [Canary + 11, Canary + 1, Canary, 0, 0, Start, 8, 0x202, StackTop - 0x40, 0x10];
            for (int slot = 0; slot < frame.Length; slot++)
            {
                // What has been pushed so far is there, what has not is not.
                int pushed = pushes - slot;
                guest.Memory.Write(stack + ((ulong)slot * 8), slot < pushes && pushed > i ? 0 : frame[slot]);
            }

            guest.Machine.Cpu.Rsp = stack + (8 * (ulong)(pushes - Math.Min(i, pushes)));
            guest.Machine.Cpu.Rip = starts[i];
            guest.Machine.Cpu.Rax = i <= pushes ? Canary : 8;
            guest.Machine.Cpu[1] = Canary + 1;
            guest.Machine.Cpu[11] = Canary + 11;
            guest.SwitchEngine(Get(to));
            Assert.Equal(0, guest.Run());
            Assert.Equal((i, Canary, Canary + 1, Canary + 11), (i, guest.Result(0), guest.Result(1), guest.Result(2)));
            Assert.Equal(StackTop - 0x40, guest.Result(4));
            Assert.Equal(0u, guest.Memory.Read<ulong>(SharedMask));
        }
    }

    [Fact]
    public void A_guest_of_hypercalls_goes_from_engine_to_engine_wherever_it_is_stopped()
    {
        Strategy[] strategies =
        [
            .. StrategyCatalog.All.Where(strategy =>
                strategy is { RunsPrivilegedGuests: true, EmulatesRingZero: false }
                && strategy.UnavailableReason() is null
            ),
        ];
        const int rounds = 6;
        using var guest = new BehaviourGuest(
            strategies[0],
            ring: 0,
            a =>
            {
                Label again = a.CreateLabel();
                Label wrong = a.CreateLabel();
                a.mov(r12, Canary);
                a.movq(xmm5, r12);
                a.Label(ref again);
                a.call(HypercallPage.EntryOf(HypercallNumber.Features));
                a.cmp(rax, (1 << HypercallPage.Count) - 1);
                a.jne(wrong);
                a.movq(r13, xmm5);
                a.cmp(r13, r12);
                a.jne(wrong);
                a.xor(edi, edi);
                a.call(HypercallPage.EntryOf(HypercallNumber.SetTimer));
                a.test(rax, rax);
                a.jne(wrong);
                a.inc(__qword_ptr[Results]);
                a.cmp(__qword_ptr[Results + 8], 0);
                a.je(again);
                a.mov(al, 0);
                a.@out(0xF4, al);
                a.Label(ref wrong);
                a.mov(al, 9);
                a.@out(0xF4, al);
            },
            paravirtual: true
        );
        ulong before = 0;
        for (int i = 0; i < rounds * strategies.Length; i++)
        {
            guest.RunForAMoment();
            Assert.True(guest.Result(0) >= before);
            before = guest.Result(0);
            guest.SwitchEngine(strategies[(i + 1) % strategies.Length]);
        }

        Assert.True(before > 0);
        guest.Memory.Write(Results + 8, 1UL);
        Assert.Equal(0, guest.Run());
    }
}
