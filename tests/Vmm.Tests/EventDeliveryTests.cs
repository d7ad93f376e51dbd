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

    // ------------------------------------------------------------------------------------------------ privilege and stacks

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void From_ring_3_an_error_code_is_pushed_below_the_frame_on_the_new_stack(bool interruptStack)
    {
        _guest.EnterRing3();
        _guest.Gate(Vector.GeneralProtection, Handler, stack: interruptStack ? 3 : 0);
        _guest.Delivery.Deliver(GuestEvent.Exception(Vector.GeneralProtection, 0x18));
        ulong top = interruptStack ? InterruptStack3 : RingStack;
        Assert.Equal((top - 48, 0, (ushort)0), (Cpu.Rsp, Cpu.Cpl, Cpu.Ss.Selector));
        Assert.Equal(
            [0x18, 0x10_0123, GuestMachine.UserCode, 0x202 | Rflags.Rf, GuestMachine.Stack + 4, GuestMachine.UserData],
            Frame(6)
        );
    }

    [Fact]
    public void Each_interrupt_stack_of_the_task_state_is_its_own()
    {
        for (int stack = 1; stack <= 7; stack++)
        {
            ulong top = 0x17_0000 + ((ulong)stack * 0x1000);
            _guest.Memory.Write(GuestMachine.TaskState + 36 + ((ulong)(stack - 1) * 8), top);
            _guest.Gate(0x20, Handler, stack: stack);
            _guest.Delivery.Deliver(GuestEvent.Interrupt(0x20));
            Assert.Equal(top - 40, Cpu.Rsp);
        }
    }

    [Fact]
    public void Ring_1_and_2_have_stacks_of_their_own_in_the_task_state()
    {
        const ulong stack1 = 0x17_0000;
        _guest.EnterRing3();
        _guest.Memory.Write(GuestMachine.TaskState + 12, stack1);
        _guest.Descriptor(GuestMachine.Code32, 0x00AF_BA00_0000_FFFF); // 64-bit code of ring 1
        _guest.Gate(0x20, Handler, GuestMachine.Code32);
        _guest.Delivery.Deliver(GuestEvent.Interrupt(0x20));
        Assert.Equal((stack1 - 40, 1, (ushort)1), (Cpu.Rsp, Cpu.Cpl, Cpu.Ss.Selector));
    }

    /// <summary>The tables are read with supervisor rights, whoever is interrupted (SDM vol. 3A, section 4.6.1).</summary>
    [Fact]
    public void Ring_3_needs_no_right_to_the_tables_that_deliver_its_events()
    {
        _guest.EnterRing3();
        ulong directory = PhysicalLayout.PageTables + 0x2000;
        _guest.Memory.Write(directory, _guest.Memory.Read<ulong>(directory) & ~Pte.User);
        _guest.Gate(Vector.DivideError, Handler);
        _guest.Delivery.Deliver(GuestEvent.Exception(Vector.DivideError));
        Assert.Equal((Handler, 0), (Cpu.Rip, Cpu.Cpl));
    }

    [Fact]
    public void A_fault_of_reading_a_table_is_a_supervisors_even_from_ring_3()
    {
        _guest.EnterRing3();
        _guest.Memory.Write(GuestMachine.TaskState + 4, 0x5000_0000UL); // no such stack
        _guest.Gate(0x20, 0x10_5000);
        _guest.Gate(Vector.PageFault, Handler, stack: 3);
        _guest.Delivery.Deliver(GuestEvent.Interrupt(0x20));
        Assert.Equal((Handler, 0x5000_0000UL - 40), (Cpu.Rip, Cpu.Cr2));
        Assert.Equal([PageFaultError.Write, 0x10_0123], Frame(2));
    }

    // ------------------------------------------------------------------------------------------------ external interrupts

    [Fact]
    public void An_external_interrupt_pushes_the_flags_it_found_and_no_error_code()
    {
        _guest.Gate(14, Handler); // an interrupt with the number of an exception is still an interrupt
        Cpu.Rflags = 0x202 | Rflags.Tf;
        _guest.Delivery.Deliver(GuestEvent.Interrupt(14));
        Assert.Equal([0x10_0123, 0x08, 0x202 | Rflags.Tf, GuestMachine.Stack + 4, 0x10], Frame(5));
        Assert.Equal((2UL, 0UL), (Cpu.Rflags, Cpu.Cr2));
    }

    [Theory]
    [InlineData(0x8E, 0UL)]
    [InlineData(0x8F, Rflags.If)]
    public void An_interrupt_gate_closes_the_interrupt_flag_and_a_trap_gate_leaves_it(int type, ulong flag)
    {
        _guest.Gate(0x20, Handler, type: type);
        _guest.Delivery.Deliver(GuestEvent.Interrupt(0x20));
        Assert.Equal(flag, Cpu.Rflags & Rflags.If);
        Assert.Equal(Rflags.If, Frame(3)[2] & Rflags.If);
    }

    [Fact]
    public void The_instruction_behind_a_hlt_is_where_its_interrupt_returns_to()
    {
        _guest.Gate(0x20, Handler);
        Assert.Equal(Emulation.EmulationResult.Halted, _guest.Execute(a => a.hlt()));
        Cpu.Halted = true;
        _guest.Delivery.Deliver(GuestEvent.Interrupt(0x20));
        Assert.Equal((false, 0x10_0124UL), (Cpu.Halted, Frame(1)[0]));
    }

    // ------------------------------------------------------------------------------------------------ faults of a delivery

    /// <summary>What is delivered, what its delivery raises, and what arrives in the end: SDM vol. 3A, table 6-5.</summary>
    [Theory]
    [InlineData("#UD", "contributory", Vector.SegmentNotPresent)]
    [InlineData("#UD", "page fault", Vector.PageFault)]
    [InlineData("#GP", "contributory", Vector.DoubleFault)]
    [InlineData("#GP", "page fault", Vector.PageFault)]
    [InlineData("#DE", "contributory", Vector.DoubleFault)]
    [InlineData("#TS", "contributory", Vector.DoubleFault)]
    [InlineData("#SS", "contributory", Vector.DoubleFault)]
    [InlineData("#PF", "contributory", Vector.DoubleFault)]
    [InlineData("#PF", "page fault", Vector.DoubleFault)]
    [InlineData("#AC", "contributory", Vector.SegmentNotPresent)]
    [InlineData("#DB", "page fault", Vector.PageFault)]
    [InlineData("interrupt", "contributory", Vector.SegmentNotPresent)]
    [InlineData("interrupt", "page fault", Vector.PageFault)]
    [InlineData("INT n", "contributory", Vector.SegmentNotPresent)]
    [InlineData("INT n", "page fault", Vector.PageFault)]
    public void Two_events_in_a_row_are_delivered_one_by_one_or_as_a_double_fault(
        string first,
        string then,
        byte arrives
    )
    {
        GuestEvent guestEvent = first switch
        {
            "#UD" => GuestEvent.Exception(Vector.InvalidOpcode),
            "#DE" => GuestEvent.Exception(Vector.DivideError),
            "#TS" => GuestEvent.Exception(Vector.InvalidTss, 0x40),
            "#SS" => GuestEvent.Exception(Vector.StackFault),
            "#GP" => GuestEvent.Exception(Vector.GeneralProtection, 0x18),
            "#PF" => GuestEvent.PageFault(0x1234, 2),
            "#AC" => GuestEvent.Exception(Vector.AlignmentCheck),
            "#DB" => GuestEvent.Exception(Vector.Debug),
            "INT n" => GuestEvent.SoftwareInterrupt(0x80, 2),
            _ => GuestEvent.Interrupt(0x20),
        };
        foreach (byte vector in (byte[])[Vector.DoubleFault, Vector.SegmentNotPresent, Vector.PageFault])
        {
            _guest.Gate(vector, Handler + (vector * 16UL));
        }

        bool isPageFault = then == "page fault";
        NoInterruptStack(2);
        _guest.Gate(guestEvent.Number, 0x10_5000, type: isPageFault ? 0x8E : 0x0E, stack: isPageFault ? 2 : 0);

        _guest.Delivery.Deliver(guestEvent);

        Assert.Equal(Handler + (arrives * 16UL), Cpu.Rip);
        uint external = guestEvent.Kind == GuestEventKind.SoftwareInterrupt ? 0u : 1;
        ulong errorCode = arrives switch
        {
            Vector.DoubleFault => 0,
            Vector.PageFault => PageFaultError.Write,
            _ => ((uint)guestEvent.Number * 8) | 2 | external,
        };
        Assert.Equal([errorCode, 0x10_0123], Frame(2)); // the instruction that all of it is about
    }

    [Fact]
    public void A_chain_of_faults_becomes_a_double_fault_only_where_two_neighbours_do()
    {
        // an interrupt without a gate, #NP on no stack, #PF without a gate: benign, then in a row, then a double fault
        NoInterruptStack(2);
        _guest.Gate(0x20, 0x10_5000, type: 0x0E);
        _guest.Gate(Vector.SegmentNotPresent, 0x10_5000, stack: 2);
        _guest.Gate(Vector.PageFault, 0x10_5000, type: 0x0E);
        _guest.Gate(Vector.DoubleFault, Handler, stack: 3);
        _guest.Delivery.Deliver(GuestEvent.Interrupt(0x20));
        Assert.Equal((Handler, 0x5000_0000UL - 48), (Cpu.Rip, Cpu.Cr2));
        Assert.Equal([0, 0x10_0123], Frame(2));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Any_fault_of_delivering_a_double_fault_is_the_guests_end(bool isPageFault)
    {
        NoInterruptStack(2);
        _guest.Gate(Vector.GeneralProtection, 0x10_5000, type: 0x0E);
        _guest.Gate(Vector.DoubleFault, Handler, type: isPageFault ? 0x8E : 0x0E, stack: isPageFault ? 2 : 0);
        GuestFailureException end = Assert.Throws<GuestFailureException>(() =>
            _guest.Delivery.Deliver(GuestEvent.Exception(Vector.GeneralProtection))
        );
        Assert.StartsWith("triple fault: #GP", end.Message, StringComparison.Ordinal);
    }

    // ------------------------------------------------------------------------------------------------ bad guests

    [Fact]
    public void A_stack_pointer_that_is_not_canonical_raises_SS_on_another_stack()
    {
        Cpu.Rsp = 0x0001_0000_0000_0000;
        _guest.Gate(0x20, 0x10_5000);
        _guest.Gate(Vector.StackFault, Handler, stack: 3);
        _guest.Delivery.Deliver(GuestEvent.Interrupt(0x20));
        Assert.Equal((Handler, InterruptStack3 - 48), (Cpu.Rip, Cpu.Rsp));
        Assert.Equal([1, 0x10_0123], Frame(2)); // EXT: the program has not done it
        Assert.Equal(0x0001_0000_0000_0000UL, Frame(5)[4]);
    }

    [Theory]
    [InlineData((0x20 * 16) + 15, true)]
    [InlineData((0x20 * 16) + 14, false)]
    [InlineData((0x20 * 16) - 1, false)]
    public void A_gate_counts_when_all_of_it_is_within_the_limit(ushort limit, bool counts)
    {
        _guest.Gate(0x20, Handler);
        _guest.Gate(Vector.GeneralProtection, 0x10_5000);
        Cpu.Idtr = Cpu.Idtr with { Limit = limit };
        _guest.Delivery.Deliver(GuestEvent.Interrupt(0x20));
        Assert.Equal(counts ? Handler : 0x10_5000, Cpu.Rip);
        Assert.Equal(counts ? 0x10_0123u : (0x20 * 8) | 3ul, Frame(1)[0]);
    }

    [Theory]
    [InlineData(0x5000_0000UL, "the gate cannot be read at")] // not mapped
    [InlineData(0x3000_0000UL, "the gate has type")] // mapped, but there is no RAM: all ones
    public void An_IDT_that_is_nowhere_is_the_guests_end(ulong idt, string why)
    {
        Cpu.Idtr = new DescriptorTable(idt, 0xFFF);
        GuestFailureException end = Assert.Throws<GuestFailureException>(() =>
            _guest.Delivery.Deliver(GuestEvent.Interrupt(0x20))
        );
        Assert.Contains(why, end.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Page_tables_outside_RAM_are_the_guests_end_when_an_event_needs_them()
    {
        _guest.Gate(0x20, Handler);
        Cpu.Cr3 = 0xFF_FFFF_F000;
        GuestFailureException end = Assert.Throws<GuestFailureException>(() =>
            _guest.Delivery.Deliver(GuestEvent.Interrupt(0x20))
        );
        Assert.StartsWith("triple fault: interrupt 0x20", end.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_frame_pushed_over_the_page_tables_that_map_it_is_pushed_whole()
    {
        // The guest's stack is its own page directory: the selector in the frame replaces the entry that maps everything.
        const ulong directory = PhysicalLayout.PageTables + 0x2000;
        _guest.Gate(0x20, Handler);
        Cpu.Rsp = directory + 0x28;
        _guest.Delivery.Deliver(GuestEvent.Interrupt(0x20));
        Assert.Equal((Handler, directory - 8), (Cpu.Rip, Cpu.Rsp));
        Assert.Equal([0x10_0123, 0x08, 0x202, directory + 0x28, 0x10], Frame(5));
        Translation handler = PageWalker.Walk(Cpu, _guest.Memory, Handler, PageAccess.Execute);
        Assert.Equal((true, PageFaultError.Fetch), (handler.Fault, handler.ErrorCode));
    }

    /// <summary>The task state has no such stack: it names an address that nothing maps.</summary>
    private void NoInterruptStack(int stack) =>
        _guest.Memory.Write(GuestMachine.TaskState + 36 + ((ulong)(stack - 1) * 8), 0x5000_0000UL);
}
