using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Tests;

public sealed class EventDeliveryTests : IDisposable
{
    private const ulong Handler = 0x10_4000;
    private const ulong RingStack = 0x15_0000;
    private const ulong InterruptStack3 = 0x16_0000;

    private readonly GuestMachine _guest = new();

    public EventDeliveryTests()
    {
        Cpu.Tr = new Segment(GuestMachine.Task, GuestMachine.TaskState, 0x67, 0x8B);
        Cpu.Rip = 0x10_0123;
        Cpu.Rsp = GuestMachine.Stack + 4; // misaligned on purpose
        _guest.Memory.Write(GuestMachine.TaskState + 4, RingStack);
        _guest.Memory.Write(GuestMachine.TaskState + 36 + 16, InterruptStack3);
    }

    private VirtualCpu Cpu => _guest.Cpu;

    public void Dispose() => _guest.Dispose();

    private ulong[] Frame(int words) =>
        [.. Enumerable.Range(0, words).Select(i => _guest.Memory.Read<ulong>(Cpu.Rsp + ((ulong)i * 8)))];

    [Fact]
    public void A_fault_in_ring_0_pushes_an_aligned_frame_with_its_error_code_on_the_same_stack()
    {
        _guest.Gate(Vector.GeneralProtection, Handler);
        Cpu.Rflags = 0x202 | Rflags.Tf | Rflags.Nt | Rflags.Rf;
        _guest.Delivery.Deliver(GuestEvent.Exception(Vector.GeneralProtection, 0x18));
        Assert.Equal((Handler, GuestMachine.Stack - 48, 2UL), (Cpu.Rip, Cpu.Rsp, Cpu.Rflags));
        Assert.Equal(
            [0x18, 0x10_0123, 0x08, 0x202 | Rflags.Tf | Rflags.Nt | Rflags.Rf, GuestMachine.Stack + 4, 0x10],
            Frame(6)
        );
        Assert.Equal((GuestMachine.KernelCode, GuestMachine.KernelData), (Cpu.Cs.Selector, Cpu.Ss.Selector));
    }

    [Fact]
    public void A_page_fault_sets_cr2_and_an_interrupt_wakes_the_cpu()
    {
        _guest.Gate(Vector.PageFault, Handler);
        _guest.Gate(0x20, Handler);
        _guest.Delivery.Deliver(GuestEvent.PageFault(0x1234, 2));
        Assert.Equal((0x1234UL, 2UL), (Cpu.Cr2, Frame(1)[0]));
        Cpu.Halted = Cpu.InterruptShadow = true;
        _guest.Delivery.Deliver(new GuestEvent(GuestEventKind.Interrupt, 0x20));
        Assert.False(Cpu.Halted || Cpu.InterruptShadow);
        Assert.Equal(0UL, Frame(3)[2] & Rflags.Rf);
    }

    [Fact]
    public void A_trap_gate_leaves_the_interrupt_flag_on()
    {
        _guest.Gate(Vector.InvalidOpcode, Handler, type: 0x8F);
        _guest.Delivery.Deliver(GuestEvent.Exception(Vector.InvalidOpcode));
        Assert.Equal(Rflags.If, Cpu.Rflags & Rflags.If);
    }

    [Fact]
    public void From_ring_3_the_stack_comes_from_the_task_state_and_ss_becomes_null()
    {
        _guest.EnterRing3();
        _guest.Gate(Vector.DivideError, Handler);
        _guest.Delivery.Deliver(GuestEvent.Exception(Vector.DivideError));
        Assert.Equal((RingStack - 40, 0, 0), (Cpu.Rsp, Cpu.Cpl, Cpu.Ss.Selector));
        Assert.Equal(
            [0x10_0123, GuestMachine.UserCode, 0x202 | Rflags.Rf, GuestMachine.Stack + 4, GuestMachine.UserData],
            Frame(5)
        );
        Assert.Equal(EmulationDone, _guest.Execute(a => a.iretq()));
        Assert.Equal((0x10_0123UL, 3, GuestMachine.Stack + 4), (Cpu.Rip, Cpu.Cpl, Cpu.Rsp));
    }

    private static Emulation.EmulationResult EmulationDone => Emulation.EmulationResult.Done;

    [Fact]
    public void An_interrupt_stack_is_used_without_a_change_of_ring()
    {
        _guest.Gate(Vector.DoubleFault, Handler, stack: 3);
        _guest.Delivery.Deliver(GuestEvent.Exception(Vector.DoubleFault));
        Assert.Equal(InterruptStack3 - 48, Cpu.Rsp);
        Assert.Equal(GuestMachine.KernelData, Cpu.Ss.Selector);
    }

    [Fact]
    public void A_conforming_handler_keeps_the_ring_and_its_stack()
    {
        _guest.EnterRing3();
        _guest.Descriptor(GuestMachine.Code32, 0x00AF_9E00_0000_FFFF);
        _guest.Gate(Vector.DivideError, Handler, GuestMachine.Code32);
        _guest.Delivery.Deliver(GuestEvent.Exception(Vector.DivideError));
        Assert.Equal((3, GuestMachine.Stack - 40), (Cpu.Cpl, Cpu.Rsp));
        Assert.Equal(0x9F, _guest.Memory.Read<byte>(PhysicalLayout.Gdt + GuestMachine.Code32 + 5)); // accessed
    }

    [Fact]
    public void A_software_interrupt_pushes_the_next_rip_and_respects_the_gates_dpl()
    {
        _guest.EnterRing3();
        _guest.Gate(0x80, Handler, type: 0xEE);
        _guest.Delivery.Deliver(GuestEvent.SoftwareInterrupt(0x80, 2));
        Assert.Equal(0x10_0125UL, Frame(1)[0]);
    }

    /// <summary>Event, how the IDT is broken, and the fault that arrives instead with its error code.</summary>
    [Theory]
    [InlineData("software interrupt through a ring-0 gate", Vector.GeneralProtection, (0x80 * 8) | 2)]
    [InlineData("interrupt through an absent gate", Vector.SegmentNotPresent, (0x80 * 8) | 3)]
    [InlineData("software interrupt through an absent gate", Vector.SegmentNotPresent, (0x80 * 8) | 2)]
    [InlineData("interrupt through a call gate", Vector.GeneralProtection, (0x80 * 8) | 3)]
    [InlineData("interrupt beyond the limit", Vector.GeneralProtection, (0x80 * 8) | 3)]
    [InlineData("interrupt to a data segment", Vector.GeneralProtection, GuestMachine.KernelData | 1)]
    [InlineData("interrupt to 32-bit code", Vector.GeneralProtection, GuestMachine.Code32 | 1)]
    [InlineData("interrupt to absent code", Vector.SegmentNotPresent, GuestMachine.AbsentCode | 1)]
    [InlineData("interrupt to a null selector", Vector.GeneralProtection, 1)]
    [InlineData("interrupt to a selector beyond the GDT", Vector.GeneralProtection, GuestMachine.BeyondLimit | 1)]
    [InlineData("interrupt to a handler that is not canonical", Vector.GeneralProtection, 1)]
    [InlineData("interrupt on a stack beyond the task state", Vector.InvalidTss, GuestMachine.Task | 1)]
    public void A_broken_gate_raises_the_architectures_fault(string what, byte vector, uint errorCode)
    {
        GuestEvent guestEvent = new(GuestEventKind.Interrupt, 0x80);
        _guest.Gate(Vector.GeneralProtection, Handler + (Vector.GeneralProtection * 16));
        _guest.Gate(Vector.SegmentNotPresent, Handler + (Vector.SegmentNotPresent * 16));
        _guest.Gate(Vector.InvalidTss, Handler + (Vector.InvalidTss * 16));
        _guest.Gate(0x80, 0x10_5000, type: 0x8E);
        switch (what)
        {
            case "software interrupt through a ring-0 gate":
                _guest.EnterRing3();
                guestEvent = GuestEvent.SoftwareInterrupt(0x80, 2);
                break;
            case "interrupt through an absent gate":
                _guest.Gate(0x80, 0x10_5000, type: 0x0E);
                break;
            case "software interrupt through an absent gate":
                _guest.Gate(0x80, 0x10_5000, type: 0x0E);
                guestEvent = GuestEvent.SoftwareInterrupt(0x80, 2);
                break;
            case "interrupt through a call gate":
                _guest.Gate(0x80, 0x10_5000, type: 0x8C);
                break;
            case "interrupt beyond the limit":
                Cpu.Idtr = Cpu.Idtr with { Limit = (0x80 * 16) + 14 };
                break;
            case "interrupt to a data segment":
                _guest.Gate(0x80, 0x10_5000, GuestMachine.KernelData);
                break;
            case "interrupt to 32-bit code":
                _guest.Gate(0x80, 0x10_5000, GuestMachine.Code32);
                break;
            case "interrupt to absent code":
                _guest.Gate(0x80, 0x10_5000, GuestMachine.AbsentCode);
                break;
            case "interrupt to a null selector":
                _guest.Gate(0x80, 0x10_5000, 3);
                break;
            case "interrupt to a selector beyond the GDT":
                _guest.Gate(0x80, 0x10_5000, GuestMachine.BeyondLimit);
                break;
            case "interrupt to a handler that is not canonical":
                _guest.Gate(0x80, 1UL << 63);
                break;
            default:
                _guest.Gate(0x80, 0x10_5000, stack: 7);
                Cpu.Tr = Cpu.Tr with { Limit = 36 + (6 * 8) + 6 };
                break;
        }

        _guest.Delivery.Deliver(guestEvent);

        Assert.Equal(Handler + (vector * 16UL), Cpu.Rip);
        Assert.Equal([errorCode, 0x10_0123], Frame(2));
    }

    [Fact]
    public void A_page_fault_on_the_stack_is_delivered_instead_when_another_stack_takes_it()
    {
        Cpu.Rsp = 0x5000_0000;
        _guest.Gate(0x20, 0x10_5000);
        _guest.Gate(Vector.PageFault, Handler, stack: 3);
        _guest.Delivery.Deliver(new GuestEvent(GuestEventKind.Interrupt, 0x20));
        Assert.Equal((Handler, InterruptStack3 - 48, 0x4FFF_FFD8UL), (Cpu.Rip, Cpu.Rsp, Cpu.Cr2));
        Assert.Equal((PageFaultError.Write, 0x5000_0000UL), ((uint)Frame(1)[0], Frame(5)[4]));
    }

    [Theory]
    [InlineData(Vector.PageFault, "page fault while a page fault is delivered")]
    [InlineData(Vector.GeneralProtection, "contributory after contributory")]
    public void Two_faults_that_belong_together_become_a_double_fault(byte vector, string why)
    {
        _guest.Gate(vector, Handler, GuestMachine.BeyondLimit);
        _guest.Gate(Vector.DoubleFault, 0x10_5000);
        _guest.Delivery.Deliver(
            vector == Vector.PageFault ? GuestEvent.PageFault(0x1234, 0) : GuestEvent.Exception(vector)
        );
        Assert.Equal((0x10_5000UL, 0UL), (Cpu.Rip, Frame(1)[0]));
        _ = why; // names the case in the report
    }

    [Fact]
    public void A_benign_exception_followed_by_a_fault_delivers_the_fault()
    {
        _guest.Gate(Vector.InvalidOpcode, 0x10_5000, GuestMachine.BeyondLimit);
        _guest.Gate(Vector.GeneralProtection, Handler);
        _guest.Delivery.Deliver(GuestEvent.Exception(Vector.InvalidOpcode));
        Assert.Equal(Handler, Cpu.Rip);
    }

    [Fact]
    public void A_triple_fault_names_the_first_event_and_changes_no_register()
    {
        Cpu.Idtr = default;
        string before = _guest.State();
        GuestFailureException failure = Assert.Throws<GuestFailureException>(() =>
            _guest.Delivery.Deliver(GuestEvent.Exception(Vector.GeneralProtection, 0x10))
        );
        Assert.Equal(
            "triple fault: #GP (error 0x10), RIP 0x100123, could not be delivered: IDT limit 0x0",
            failure.Message
        );
        Assert.Equal(before, _guest.State());
        failure = Assert.Throws<GuestFailureException>(() => _guest.Delivery.Deliver(GuestEvent.PageFault(0xABC, 2)));
        Assert.StartsWith(
            "triple fault: #PF at 0xABC (error 0x2), RIP 0x100123",
            failure.Message,
            StringComparison.Ordinal
        );
        Assert.Equal(0xABCUL, Cpu.Cr2);
    }

    [Theory]
    [InlineData(GuestEventKind.Exception, Vector.InvalidOpcode, true)]
    [InlineData(GuestEventKind.SoftwareInterrupt, 0x80, true)]
    [InlineData(GuestEventKind.Exception, Vector.Debug, false)]
    [InlineData(GuestEventKind.Interrupt, 0x20, false)]
    public void A_triple_fault_names_the_instruction_that_the_first_event_is_at(
        GuestEventKind kind,
        byte vector,
        bool named
    )
    {
        Cpu.Idtr = default;
        var delivery = new EventDelivery(Cpu, _guest.Memory, null, () => "ud2 [0F0B]");
        GuestFailureException failure = Assert.Throws<GuestFailureException>(() =>
            delivery.Deliver(new GuestEvent(kind, vector))
        );
        Assert.Equal(named, failure.Message.Contains("RIP 0x100123 (ud2 [0F0B]), could", StringComparison.Ordinal));
    }

    [Fact]
    public void A_frame_that_does_not_fit_leaves_memory_as_it_was()
    {
        _ = _guest.Map(0x4000_1000, GuestMachine.Data);
        Cpu.Rsp = 0x4000_1010; // the frame would begin in the page below
        _guest.Gate(0x20, 0x10_5000);
        Assert.Throws<GuestFailureException>(() =>
            _guest.Delivery.Deliver(new GuestEvent(GuestEventKind.Interrupt, 0x20))
        );
        Assert.Equal(
            (0UL, 0UL),
            (_guest.Memory.Read<ulong>(GuestMachine.Data), _guest.Memory.Read<ulong>(GuestMachine.Data + 8))
        );
    }
}
