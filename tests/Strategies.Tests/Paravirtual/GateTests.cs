#pragma warning disable CA1416 // the guests skip where the host is no Linux
using Iced.Intel;
using VirtBench.Strategies.Carrier;
using VirtBench.Strategies.Tests.DirectExecution;
using VirtBench.Strategies.Tests.Translated;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;
using static VirtBench.Strategies.Tests.Translated.BehaviourGuest;

namespace VirtBench.Strategies.Tests.Paravirtual;

/// <summary>The gate by which directly executed code makes hypercalls, used as the hypercall page does not use it.</summary>
[Collection(CarrierCollection.Name)]
public sealed class GateTests
{
    private const ulong Canary = 0x1122_3344_5566_7788;

    private static BehaviourGuest Boot(Action<Assembler> program, int ring = 0, bool paravirtual = true) =>
        new(StrategyCatalog.Find("paravirtual")!, ring, program, paravirtual);

    private static void JumpToGate(Assembler a)
    {
        a.mov(r11, CarrierStub.Instance.GateAddress);
        a.jmp(r11);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(3)]
    public void A_call_with_a_stack_pointer_from_nowhere_comes_back(int ring)
    {
        using BehaviourGuest guest = Boot(
            a =>
            {
                Label back = a.CreateLabel();
                a.mov(rsp, 0xDEAD_BEEF_DEAD_BEEF);
                a.mov(eax, (int)HypercallNumber.Features);
                a.lea(rcx, __[back]);
                JumpToGate(a);
                a.Label(ref back);
                a.mov(ResultSlot(0), rax);
                a.mov(ResultSlot(1), rsp);
                a.mov(rsp, StackTop);
                a.End();
            },
            ring
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(ring == 0 ? (1L << HypercallPage.Count) - 1 : -HypercallError.NotPermitted, (long)guest.Result(0));
        Assert.Equal(0xDEAD_BEEF_DEAD_BEEFUL, guest.Result(1));
    }

    [Theory]
    [InlineData(0x8000_0000_0000_0000UL, Vector.GeneralProtection)]
    [InlineData(0x0000_8000_0000_0000UL, Vector.GeneralProtection)]
    [InlineData(0xFFFF_8000_0000_0000UL, Vector.PageFault)]
    [InlineData(ulong.MaxValue, Vector.PageFault)]
    [InlineData(CarrierLayout.GuestLimit, Vector.PageFault)]
    [InlineData(CarrierLayout.Window, Vector.PageFault)]
    [InlineData(CarrierLayout.Control, Vector.PageFault)]
    public void A_call_that_would_go_on_nowhere_faults_there_and_does_nothing(ulong rip, byte vector)
    {
        using BehaviourGuest guest = Boot(a =>
        {
            Label after = a.CreateLabel();
            a.StoreAddress(after, Resume);
            a.mov(eax, (int)HypercallNumber.ConsoleWrite);
            a.mov(edi, (int)Data);
            a.mov(esi, 5);
            a.mov(rcx, rip);
            JumpToGate(a);
            a.Label(ref after);
            a.End();
        });
        bool written = false;
        guest.Machine.Serial.Transmitted = _ => written = true;
        Assert.Equal(0, guest.Run());
        GuestException fault = Assert.Single(guest.Exceptions);
        Assert.Equal((vector, rip), ((byte)fault.Vector, fault.Rip));
        Assert.Equal(vector == Vector.PageFault ? rip : fault.Cr2, fault.Cr2);
        Assert.False(written);
    }

    [Fact]
    public void The_gate_is_an_undefined_instruction_to_a_guest_that_was_not_told_of_it()
    {
        using BehaviourGuest guest = Boot(
            a =>
            {
                Label after = a.CreateLabel();
                a.Expect(after, 0, after);
                a.lea(rcx, __[after]);
                JumpToGate(a);
                a.Label(ref after);
                a.End();
            },
            paravirtual: false
        );
        Assert.Equal(0, guest.Run());
        GuestException fault = Assert.Single(guest.Exceptions);
        Assert.Equal((Vector.InvalidOpcode, guest.Result(0)), ((byte)fault.Vector, fault.Rip));
    }

    [Fact]
    public void A_guest_that_single_steps_itself_through_a_call_gets_its_result()
    {
        using BehaviourGuest guest = Boot(a =>
        {
            a.mov(rbx, Canary);
            a.pushfq();
            a.or(__qword_ptr[rsp], (int)Rflags.Tf);
            a.popfq();
            a.call(HypercallPage.EntryOf(HypercallNumber.Features));
            a.pushfq();
            a.and(__qword_ptr[rsp], ~(int)Rflags.Tf);
            a.popfq();
            a.mov(ResultSlot(0), rax);
            a.mov(ResultSlot(1), rbx);
            a.End();
        });
        Assert.Equal(0, guest.Run());
        Assert.Equal(((1UL << HypercallPage.Count) - 1, Canary), (guest.Result(0), guest.Result(1)));
        Assert.All(guest.Exceptions, exception => Assert.Equal(Vector.Debug, exception.Vector));
        Assert.All(guest.Exceptions, exception => Assert.True(exception.Rip < CarrierLayout.GuestLimit));
        Assert.Contains(
            guest.Exceptions,
            exception => exception.Rip - HypercallPage.EntryOf(HypercallNumber.Features) < HypercallPage.EntrySize
        );
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Calls_hold_under_kicks_and_under_deadlines_that_are_always_over(bool kicks)
    {
        const int calls = 3000;
        using BehaviourGuest guest = Boot(a =>
        {
            Label again = a.CreateLabel();
            Label wrong = a.CreateLabel();
            a.mov(ebx, calls);
            a.mov(r12, Canary);
            a.movq(xmm7, r12);
            a.Label(ref again);
            a.call(HypercallPage.EntryOf(HypercallNumber.Features));
            a.cmp(rax, (1 << HypercallPage.Count) - 1);
            a.jne(wrong);
            a.movq(r13, xmm7);
            a.cmp(r13, r12);
            a.jne(wrong);
            a.dec(ebx);
            a.jne(again);
            a.Label(ref wrong);
            a.mov(ResultSlot(0), rbx);
            a.End();
        });
        Assert.Equal(0, kicks ? guest.RunUnderKicks() : guest.RunPastDeadlines());
        Assert.Equal(0u, guest.Result(0));
        Assert.Equal(calls, guest.Machine.Ledger.Count(TrapReason.Hypercall));
    }

    [Fact]
    public void Batches_of_updates_and_switches_of_the_address_space_hold_under_kicks()
    {
        const ulong page = Spare;
        const ulong record = Spare + 0x10_0000;
        const int rounds = 300;
        ulong other = 0;
        using BehaviourGuest guest = Boot(a =>
        {
            Label again = a.CreateLabel();
            Label wrong = a.CreateLabel();
            a.mov(r15d, rounds);
            a.Label(ref again);
            for (ulong parity = 0; parity < 2; parity++)
            {
                a.mov(rdi, record + (parity * 0x800));
                a.mov(esi, 32);
                a.call(HypercallPage.EntryOf(HypercallNumber.UpdatePageTables));
                a.cmp(rax, 32);
                a.jne(wrong);
                foreach (ulong i in (ulong[])[0, 7, 31])
                {
                    a.mov(rbx, __qword_ptr[page + (i * 0x1000)]);
                    a.cmp(rbx, (int)(1000 + i + (parity * 32)));
                    a.jne(wrong);
                }

                a.mov(rdi, __qword_ptr[record + 0x1000 + (8 * parity)]);
                a.call(HypercallPage.EntryOf(HypercallNumber.SetPageTableBase));
            }

            a.dec(r15d);
            a.jne(again);
            a.Label(ref wrong);
            a.mov(ResultSlot(0), r15);
            a.End();
        });
        other = guest.AddAddressSpace();
        guest.Memory.Write(record + 0x1000, other);
        guest.Memory.Write(record + 0x1008, guest.Machine.Cpu.Cr3);
        for (ulong i = 0; i < 32; i++)
        {
            for (ulong parity = 0; parity < 2; parity++)
            {
                ulong frame = Spare + 0x20_0000 + ((i + (parity * 32)) * 0x1000);
                guest.Memory.Write(frame, 1000 + i + (parity * 32));
                ulong at = record + (parity * 0x800) + (i * 16);

                // The first records change the first address space, the second ones the other, which is current then.
                ulong pte = guest.PteOf(page + (i * 0x1000));
                guest.Memory.Write(at, parity == 0 ? pte : guest.PteIn(other, page + (i * 0x1000)));
                guest.Memory.Write(at + 8, frame | Pte.Present | Pte.Writable | Pte.User);
            }
        }

        Assert.Equal(0, guest.RunUnderKicks());
        Assert.Equal(0u, guest.Result(0));
    }
}
