using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Tests;

/// <summary>The run loop, driven by a scripted engine; instructions are emulated by the core one by one.</summary>
public sealed class VirtualMachineTests : IDisposable
{
    private const ulong Code = 0x10_0000;

    private ScriptedEngine _engine = null!;
    private VirtualMachine? _vm;

    public void Dispose() => _vm?.Dispose();

    [Fact]
    public void A_guest_of_sensitive_instructions_runs_to_its_exit_port()
    {
        // cli; sti; rdtsc; mov rax,cr3; mov cr3,rax; mov al,0x41 is left out: al holds what cr3 gave; out 0xF4, al
        VirtualMachine vm = Boot([0xFA, 0xFB, 0x0F, 0x31, 0x0F, 0x20, 0xD8, 0x0F, 0x22, 0xD8, 0xE6, 0xF4]);

        RunOutcome outcome = Run(vm);

        Assert.Equal(new RunOutcome(RunEnd.Exited, unchecked((byte)PhysicalLayout.PageTables), null), outcome);
        Assert.Equal(2, vm.Ledger.Count(TrapReason.InterruptFlag));
        Assert.Equal(1, vm.Ledger.Count(TrapReason.TimeStampCounter));
        Assert.Equal(1, vm.Ledger.Count(TrapReason.ControlRegister));
        Assert.Equal(1, vm.Ledger.Count(TrapReason.AddressSpaceSwitch));
        Assert.Equal(1, vm.Ledger.Count(TrapReason.PortIo));
        Assert.Contains("switch", _engine.Calls);
    }

    [Fact]
    public void A_fault_of_the_shadow_tables_is_mapped_without_the_guest_knowing()
    {
        VirtualMachine vm = Boot([0xE6, 0xF4]);
        Fault(0x20_1234, PageAccess.Read);
        Fault(0x20_1234, PageAccess.Write);
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal(2, vm.Ledger.Count(TrapReason.HiddenPageFault));
        Assert.Equal(
            [
                new ShadowPage(0x20_1234, 0x20_0000, 0x20_0000, 2 << 20, PageAccess.Read | PageAccess.Execute),
                new ShadowPage(
                    0x20_1234,
                    0x20_0000,
                    0x20_0000,
                    2 << 20,
                    PageAccess.Read | PageAccess.Write | PageAccess.Execute
                ),
            ],
            _engine.Mapped
        );
    }

    [Theory]
    [InlineData(true, true)]
    [InlineData(false, false)]
    public void A_supervisor_with_wp_off_gets_read_only_pages_writable(bool wpOff, bool writable)
    {
        VirtualMachine vm = Boot([0xE6, 0xF4]);
        ulong entry = PhysicalLayout.PageTables + 0x2000 + 8;
        vm.Memory.Write(entry, (vm.Memory.Read<ulong>(entry) & ~Pte.Writable) | Pte.Dirty);
        vm.Cpu.Cr0 = wpOff ? vm.Cpu.Cr0 & ~Cr0.Wp : vm.Cpu.Cr0;
        Fault(0x20_0000, PageAccess.Read);
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal(writable, (Assert.Single(_engine.Mapped).Access & PageAccess.Write) != 0);
    }

    [Fact]
    public void A_fault_of_the_guests_tables_goes_to_the_guest_with_cr2_and_error_code()
    {
        VirtualMachine vm = Boot([0xE6, 0xF4]);
        Handler(vm, Vector.PageFault);
        Fault(0x4000_0123, PageAccess.Write);
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal(1, vm.Ledger.Count(TrapReason.GuestPageFault));
        Assert.Equal((0x4000_0123UL, 2UL), (vm.Cpu.Cr2, vm.Memory.Read<ulong>(vm.Cpu.Rsp)));
        Assert.Empty(_engine.Mapped);
    }

    [Fact]
    public void Ring_3_does_not_get_supervisor_pages()
    {
        VirtualMachine vm = Boot([0xE6, 0xF4]);
        vm.Cpu.Cs = new Segment(0x23, 0, uint.MaxValue, 0xA0FB);
        Fault(0x20_0000, PageAccess.Read);
        RunOutcome outcome = Run(vm);
        Assert.Equal(RunEnd.Failed, outcome.End);
        Assert.Equal(
            "triple fault: #PF at 0x200000 (error 0x5), RIP 0x100000, could not be delivered: IDT limit 0x0",
            outcome.Message
        );
    }

    [Fact]
    public void An_address_that_is_not_canonical_raises_GP()
    {
        VirtualMachine vm = Boot([0xE6, 0xF4]);
        Handler(vm, Vector.GeneralProtection);
        Fault(1UL << 62, PageAccess.Read);
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal(1, vm.Ledger.Count(TrapReason.GuestException));
    }

    [Fact]
    public void A_refused_mapping_ends_the_guest_with_the_engines_line()
    {
        VirtualMachine vm = Boot([0xE6, 0xF4]);
        _engine.MapRefusal = "this engine maps nothing there";
        Fault(0x20_0000, PageAccess.Read);
        Assert.Equal(new RunOutcome(RunEnd.Failed, 0, "this engine maps nothing there"), Run(vm));
    }

    [Fact]
    public void A_load_without_RAM_reads_all_ones_and_counts_as_mmio()
    {
        VirtualMachine vm = Boot([0x8B, 0x00, 0xE6, 0xF4]); // mov eax, [rax]; out 0xF4, al
        vm.Cpu.Rax = 0x2000_0000;
        Fault(0x2000_0000, PageAccess.Read);
        Assert.Equal(new RunOutcome(RunEnd.Exited, 0xFF, null), Run(vm));
        Assert.Equal(1, vm.Ledger.Count(TrapReason.Mmio));
        Assert.Equal(1, vm.AbsentMemory.UnclaimedAccesses);
    }

    [Fact]
    public void A_write_to_a_read_only_page_without_RAM_is_the_guests_fault()
    {
        VirtualMachine vm = Boot([0x89, 0x00, 0xE6, 0xF4]);
        ulong entry = PhysicalLayout.PageTables + 0x2000 + (0x100 * 8);
        vm.Memory.Write(entry, vm.Memory.Read<ulong>(entry) & ~Pte.Writable);
        Handler(vm, Vector.PageFault);
        Fault(0x2000_0000, PageAccess.Write);
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal(0, vm.AbsentMemory.UnclaimedAccesses);
    }

    [Fact]
    public void Strictness_and_fetches_without_RAM_end_the_guest()
    {
        VirtualMachine vm = Boot([0x8B, 0x00], strict: true);
        vm.Cpu.Rax = 0x2000_0000;
        Fault(0x2000_0000, PageAccess.Read);
        RunOutcome outcome = Run(vm);
        Assert.Equal(
            (
                RunEnd.Failed,
                "read of guest-physical 0x20000000, where there is neither RAM nor a device, at RIP 0x100000 (--strict)"
            ),
            (outcome.End, outcome.Message)
        );
        Fault(0x2000_0000, PageAccess.Execute);
        outcome = Run(vm);
        Assert.Equal(RunEnd.Failed, outcome.End);
        Assert.Contains("fetches an instruction at 0x20000000", outcome.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_strict_guest_ends_on_a_port_without_a_device()
    {
        RunOutcome outcome = Run(Boot([0xE4, 0x80], strict: true));
        Assert.Equal("IN from port 0x80, which has no device, at RIP 0x100000 (--strict)", outcome.Message);
    }

    [Fact]
    public void An_exception_of_the_engine_goes_through_the_guests_idt()
    {
        VirtualMachine vm = Boot([0xE6, 0xF4]);
        Handler(vm, Vector.DivideError);
        _engine.Script.Enqueue(_ => new VmExit(VmExitReason.Exception, Vector.DivideError));
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal(Code, vm.Memory.Read<ulong>(vm.Cpu.Rsp));
        Assert.Equal(1, vm.Ledger.Count(TrapReason.GuestException));
    }

    [Theory]
    [InlineData(new byte[] { 0xCC, 0xE6, 0xF4 }, 1)]
    [InlineData(new byte[] { 0xCD, 0x03, 0xE6, 0xF4 }, 2)]
    public void A_breakpoint_that_the_host_let_through_is_a_software_interrupt(byte[] code, int length)
    {
        VirtualMachine vm = Boot(code);
        Handler(vm, Vector.Breakpoint);
        _engine.Script.Enqueue(cpu =>
        {
            cpu.Rip += (ulong)length;
            return new VmExit(VmExitReason.Exception, Vector.Breakpoint);
        });
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal(Code + (ulong)length, vm.Memory.Read<ulong>(vm.Cpu.Rsp));
    }

    [Fact]
    public void A_system_call_enters_the_guests_handler()
    {
        VirtualMachine vm = Boot([0x0F, 0x05, 0xE6, 0xF4]);
        vm.Cpu.Lstar = Code + 2;
        vm.Cpu.Efer |= Efer.Sce;
        _engine.Script.Enqueue(cpu =>
        {
            cpu.Rip += 2;
            return new VmExit(VmExitReason.SystemCall);
        });
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal((Code + 2, 1L), (vm.Cpu[Gpr.Rcx], vm.Ledger.Count(TrapReason.SystemCall)));
    }

    [Fact]
    public void Hlt_ends_a_guest_that_nothing_can_wake()
    {
        VirtualMachine vm = Boot([0xF4]);
        RunOutcome outcome = Run(vm);
        Assert.Equal(
            (RunEnd.Failed, "the guest executed HLT before RIP 0x100001 and interrupts are off"),
            (outcome.End, outcome.Message)
        );
        Assert.Equal(1, vm.Ledger.Count(TrapReason.Halt));
    }

    [Fact]
    public void A_guest_that_loops_is_stopped_by_the_time_limit_and_goes_on_later()
    {
        VirtualMachine vm = Boot([0xE6, 0xF4]);
        _engine.LoopsAtEnd = true;
        RunOutcome outcome = Run(vm, TimeSpan.FromMilliseconds(1));
        Assert.Equal(
            (RunEnd.TimedOut, "the guest did not end in time; RIP was 0x100000"),
            (outcome.End, outcome.Message)
        );
        Assert.Equal(RunEnd.TimedOut, Run(vm, TimeSpan.FromDays(-1)).End);
        _engine.LoopsAtEnd = false;
        Assert.Equal(RunEnd.Exited, Run(vm, TimeSpan.MaxValue).End);
        Assert.Equal(RunEnd.Exited, Run(vm).End); // it has ended for good
    }

    [Fact]
    public async Task Cancelling_stops_a_guest_that_loops()
    {
        VirtualMachine vm = Boot([0xE6, 0xF4]);
        _engine.LoopsAtEnd = true;
        using CancellationTokenSource cancel = new();
        Task<RunOutcome> run = Task.Run(() => vm.Run(null, cancel.Token), TestContext.Current.CancellationToken);
        _engine.Looping.Wait(TestContext.Current.CancellationToken);
        await cancel.CancelAsync();
        Assert.Equal(RunEnd.Cancelled, (await run).End);
    }

    [Fact]
    public void A_string_instruction_without_end_can_be_stopped()
    {
        VirtualMachine vm = Boot([0xF3, 0x6E]); // rep outsb
        vm.Cpu[Gpr.Rcx] = ulong.MaxValue;
        vm.Cpu[Gpr.Rdx] = 0x80;
        RunOutcome outcome = Run(vm, TimeSpan.FromMilliseconds(1));
        Assert.Equal((RunEnd.TimedOut, Code), (outcome.End, vm.Cpu.Rip));
    }

    [Fact]
    public void A_kick_that_nobody_is_behind_changes_nothing()
    {
        VirtualMachine vm = Boot([0xE6, 0xF4]);
        _engine.Kick();
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal(1, vm.Ledger.Count(TrapReason.Kick));
    }

    [Fact]
    public void A_failed_engine_ends_the_guest_and_lazy_state_is_saved_at_the_end()
    {
        VirtualMachine vm = Boot([0xE6, 0xF4]);
        _engine.Script.Enqueue(_ => new VmExit(VmExitReason.Failed, Message: "the carrier died"));
        Assert.Equal(new RunOutcome(RunEnd.Failed, 0, "the carrier died"), Run(vm));
        Assert.Equal(["load", "switch", "save"], _engine.Calls); // the first two when the image was loaded
    }

    [Fact]
    public void A_region_is_measured_on_the_engines_clock_with_the_exits_in_it()
    {
        // mov-free: eax is the id, the low and the high half of the units; each trap costs 10 ticks of 0.5 ns
        VirtualMachine vm = Boot([0xE7, 0xB0, 0x0F, 0x30, 0x0F, 0x30, 0xE7, 0xB8, 0xE7, 0xB4, 0xE6, 0xF4]);
        vm.Cpu.Rax = 3;
        vm.Cpu[Gpr.Rcx] = Msr.Star;
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        MeasuredRegion region = Assert.Single(vm.Regions);
        Assert.Equal((3u, 0x3_0000_0003UL), (region.Id, region.Units));
        Assert.Equal((40UL, 20.0), (region.TscTicks, region.ElapsedNanoseconds));
        Assert.Equal(
            (2L, 2L, 0L),
            (region.Exits[TrapReason.Msr], region.Exits[TrapReason.RegionMarker], region.Exits[TrapReason.PortIo])
        );
    }

    [Theory]
    [InlineData(new byte[] { 0xE7, 0xB4 }, "end without a beginning")]
    [InlineData(new byte[] { 0xE7, 0xB0, 0xE7, 0xB0 }, "nested")]
    [InlineData(new byte[] { 0xE6, 0xB0 }, "a byte")]
    public void Misused_measurement_ports_end_the_guest(byte[] code, string what)
    {
        RunOutcome outcome = Run(Boot(code));
        Assert.Equal(RunEnd.Failed, outcome.End);
        Assert.Contains("measurement port", outcome.Message, StringComparison.Ordinal);
        _ = what; // names the case in the report
    }

    [Fact]
    public void The_console_is_what_the_guest_sends()
    {
        VirtualMachine vm = Boot([0xEE, 0xE6, 0xF4]); // out dx, al; out 0xF4, al
        List<byte> sent = [];
        vm.Serial.Transmitted = sent.Add;
        vm.Cpu.Rax = 'A';
        vm.Cpu[Gpr.Rdx] = 0x3F8;
        Assert.Equal(new RunOutcome(RunEnd.Exited, (byte)'A', null), Run(vm));
        Assert.Equal("A"u8, [.. sent]);
    }

    [Fact]
    public void A_trap_allocates_nothing()
    {
        VirtualMachine vm = Boot([0xFA, 0xE6, 0xF4]);
        long first = 0,
            last = 0;
        const int traps = 1000;
        for (int i = 0; i < traps; i++)
        {
            int number = i;
            _engine.Script.Enqueue(cpu =>
            {
                first = number == 100 ? GC.GetAllocatedBytesForCurrentThread() : first;
                last = GC.GetAllocatedBytesForCurrentThread();
                cpu.Rip = Code;
                return new VmExit(VmExitReason.PrivilegedInstruction);
            });
        }

        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal(traps, vm.Ledger.Count(TrapReason.InterruptFlag));
        Assert.Equal(0, last - first);
    }

    [Fact]
    public void An_engine_that_cannot_be_created_leaves_nothing_behind_and_a_vm_disposes_its_own()
    {
        Assert.Throws<InvalidOperationException>(() =>
            new VirtualMachine(4 << 20, (_, _) => throw new InvalidOperationException())
        );
        VirtualMachine vm = Boot([0xF4]);
        vm.Dispose();
        Assert.True(_engine.Disposed);
        _vm = null;
    }

    /// <summary>The engine's next exit is a page fault.</summary>
    private void Fault(ulong address, PageAccess access) =>
        _engine.Script.Enqueue(_ => new VmExit(VmExitReason.PageFault, Address: address, Access: access));

    /// <summary>A handler that leaves by the exit port.</summary>
    private static void Handler(VirtualMachine vm, byte vector)
    {
        const ulong idt = 0x14_0000,
            handler = 0x15_0000;
        vm.Memory.Write(handler, (ushort)0xF4E6);
        vm.Memory.Write(idt + (vector * 16UL), (handler & 0xFFFF) | (0x8E00_0008UL << 16) | ((handler >> 16) << 48));
        vm.Cpu.Idtr = new DescriptorTable(idt, 0xFFF);
    }

    private static RunOutcome Run(VirtualMachine vm, TimeSpan? timeout = null) =>
        vm.Run(timeout, TestContext.Current.CancellationToken);

    // ------------------------------------------------------------------- exits that the hardware has decoded

    [Fact]
    public unsafe void Port_io_that_the_hardware_decoded_reaches_the_devices_item_by_item()
    {
        VirtualMachine vm = Boot([0xE6, 0xF4]);
        var sent = new List<byte>();
        vm.Serial.Transmitted = sent.Add;
        byte* data = stackalloc byte[] { (byte)'o', (byte)'k', 0x80, 0 };
        Port(SerialPort.FirstPort, PageAccess.Write, 1, 2, (nint)data);
        Port(0x1234, PageAccess.Read, 2, 1, (nint)(data + 2));
        Port(ExitPort.Port, PageAccess.Write, 1, 1, (nint)data);

        RunOutcome outcome = Run(vm);
        Assert.Equal((RunEnd.Exited, (byte)'o'), (outcome.End, outcome.Status));
        Assert.Equal("ok"u8.ToArray(), sent);
        Assert.Equal(0xFFFF, *(ushort*)(data + 2));
        Assert.Equal((3, 1), (vm.Ledger.Count(TrapReason.PortIo), vm.Ports.UnclaimedAccesses));
    }

    [Fact]
    public unsafe void Measurement_ports_count_as_markers_and_regions_hold_the_kernels_counters()
    {
        VirtualMachine vm = Boot(
            [0xE6, 0xF4],
            capabilities: new EngineCapabilities { TimeSource = "test", KernelStatistics = ["exits", "irq_exits"] }
        );
        uint value = 7;
        Port(MeasurementPorts.Begin, PageAccess.Write, 4, 1, (nint)(&value), () => _engine.KernelCounters = [10, 1]);
        Port(0x80, PageAccess.Write, 4, 1, (nint)(&value), () => _engine.KernelCounters = [15, 2]);
        Port(MeasurementPorts.End, PageAccess.Write, 4, 1, (nint)(&value));
        Port(ExitPort.Port, PageAccess.Write, 1, 1, (nint)(&value));

        Assert.Equal(RunEnd.Exited, Run(vm).End);
        MeasuredRegion region = Assert.Single(vm.Regions);
        Assert.Equal((1, 1), (region.Exits[TrapReason.PortIo], region.Exits[TrapReason.RegionMarker]));
        Assert.Equal(
            (5ul, 1ul, null),
            (region.KernelStatistics!["exits"], region.KernelStatistics["irq_exits"], region.KernelStatistics["none"])
        );
        Assert.Equal([15ul, 2ul], vm.KernelStatistics()!.Values);
    }

    [Fact]
    public unsafe void Accesses_without_ram_that_the_hardware_decoded_read_ones_and_are_counted()
    {
        VirtualMachine vm = Boot([0xE6, 0xF4]);
        ulong data = 0;
        nint at = (nint)(&data);
        _engine.Script.Enqueue(_ => new VmExit(
            VmExitReason.Mmio,
            Address: 0xD000_0000,
            Access: PageAccess.Read,
            Size: 4,
            Data: at
        ));
        _engine.Script.Enqueue(_ => new VmExit(
            VmExitReason.Mmio,
            Address: 0xD000_0004,
            Access: PageAccess.Write,
            Size: 8,
            Data: at
        ));
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal(0xFFFF_FFFFul, data);
        Assert.Equal((2, 2), (vm.Ledger.Count(TrapReason.Mmio), vm.AbsentMemory.UnclaimedAccesses));
    }

    [Fact]
    public unsafe void Strict_ends_a_guest_whose_decoded_access_nothing_answers()
    {
        VirtualMachine vm = Boot([0xE6, 0xF4], strict: true);
        byte data = 0;
        Port(0x80, PageAccess.Write, 1, 1, (nint)(&data));
        Assert.Contains("OUT to port 0x80", Run(vm).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Other_decoded_exits_are_counted_under_what_they_are()
    {
        VirtualMachine vm = Boot([0xE6, 0xF4]);
        _engine.Script.Enqueue(_ => new VmExit(VmExitReason.ModelSpecificRegister, Address: 0x6E0));
        _engine.Script.Enqueue(_ => new VmExit(VmExitReason.TaskPriority));
        _engine.Script.Enqueue(_ => new VmExit(VmExitReason.Halt));
        RunOutcome outcome = Run(vm);
        Assert.Equal(RunEnd.Failed, outcome.End);
        Assert.Contains("HLT", outcome.Message, StringComparison.Ordinal);
        Assert.Equal(
            (1, 1, 1),
            (
                vm.Ledger.Count(TrapReason.Msr),
                vm.Ledger.Count(TrapReason.ControlRegister),
                vm.Ledger.Count(TrapReason.Halt)
            )
        );
    }

    [Fact]
    public void An_engine_that_delivers_events_gets_them_injected()
    {
        VirtualMachine vm = Boot(
            [0xE6, 0xF4],
            capabilities: new EngineCapabilities { TimeSource = "test", DeliversEvents = true }
        );
        var fault = GuestEvent.PageFault(0x1234, PageFaultError.Write);
        vm.Cpu.PendingEvent = fault;
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal([fault], _engine.Injected);
    }

    [Fact]
    public void An_abandoned_machine_keeps_its_engine_and_memory()
    {
        VirtualMachine vm = Boot([0xE6, 0xF4]);
        vm.Abandon();
        vm.Dispose();
        Assert.False(_engine.Disposed);
        Assert.Equal(0xE6, vm.Memory.Read<byte>(Code)); // the thread that is still inside may read it too
    }

    // ------------------------------------------------------------------- page tables of bad guests

    /// <summary>
    /// An entry of the root that points at the root: the tables are pages of the address space themselves, writable. The engine
    /// keeps them read-only, so the core makes the writes.
    /// </summary>
    [Theory]
    [InlineData(0x3F_0000_0000UL, true)] // outside RAM
    [InlineData(0x20_0000UL, false)]
    public void A_page_table_that_maps_itself_writable_is_changed_as_hardware_would(ulong target, bool faults)
    {
        const int self = 256;
        const ulong root = PhysicalLayout.PageTables;
        const ulong rights = Pte.Present | Pte.Writable;
        VirtualMachine vm = Boot([0x48, 0x89, 0x07, 0xE6, 0xF4]); // mov [rdi], rax; out 0xF4, al
        vm.Memory.Write(root + (self * 8), root | rights);
        ulong window =
            (0xFFFFUL << 48) | ((ulong)self << 39) | ((ulong)self << 30) | ((ulong)self << 21) | ((ulong)self << 12);
        vm.Cpu[Gpr.Rdi] = window + (100 * 8);
        vm.Cpu.Rax = target | rights;
        _engine.MapAnswer = MapResult.Emulate;
        Fault(window + (100 * 8), PageAccess.Write);
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal(target | rights, vm.Memory.Read<ulong>(root + (100 * 8)));
        Assert.Equal(Pte.Accessed | Pte.Dirty, vm.Memory.Read<ulong>(root + (self * 8)) & (Pte.Accessed | Pte.Dirty));
        Translation through = PageWalker.Walk(vm.Cpu, vm.Memory, 100UL << 39, PageAccess.Read);
        Assert.True(through.Fault); // what is in RAM there is empty
        Assert.Equal(faults ? PageFaultError.Protection | PageFaultError.Reserved : 0, through.ErrorCode);
    }

    /// <summary>A write to an entry that is on the way to itself: Accessed and Dirty are set first, then overwritten.</summary>
    [Fact]
    public void A_write_to_the_entry_that_maps_it_wins_over_its_own_dirty_bit()
    {
        const int self = 256;
        const ulong root = PhysicalLayout.PageTables;
        const ulong rights = Pte.Present | Pte.Writable;
        VirtualMachine vm = Boot([0x48, 0x89, 0x07, 0xE6, 0xF4]);
        vm.Memory.Write(root + (self * 8), root | rights);
        ulong window =
            (0xFFFFUL << 48) | ((ulong)self << 39) | ((ulong)self << 30) | ((ulong)self << 21) | ((ulong)self << 12);
        vm.Cpu[Gpr.Rdi] = window + (self * 8);
        vm.Cpu.Rax = 0;
        _engine.MapAnswer = MapResult.Emulate;
        Fault(window + (self * 8), PageAccess.Write);
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal(0UL, vm.Memory.Read<ulong>(root + (self * 8)));
        Assert.True(PageWalker.Walk(vm.Cpu, vm.Memory, window, PageAccess.Read).Fault);
    }

    [Fact]
    public void A_table_outside_RAM_gives_the_guest_a_page_fault_with_reserved_bits()
    {
        VirtualMachine vm = Boot([0xE6, 0xF4]);
        Handler(vm, Vector.PageFault);
        vm.Memory.Write(PhysicalLayout.PageTables + 8, 0xFF_0000_0000 | Pte.Present);
        Fault(0x80_0000_0123, PageAccess.Read);
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal(
            (0x80_0000_0123UL, (ulong)(PageFaultError.Protection | PageFaultError.Reserved)),
            (vm.Cpu.Cr2, vm.Memory.Read<ulong>(vm.Cpu.Rsp))
        );
    }

    private void Port(ushort port, PageAccess access, byte size, uint count, nint data, Action? before = null) =>
        _engine.Script.Enqueue(_ =>
        {
            before?.Invoke();
            return new VmExit(VmExitReason.PortIo, Address: port, Access: access, Size: size, Count: count, Data: data);
        });

    private VirtualMachine Boot(byte[] code, bool strict = false, EngineCapabilities? capabilities = null)
    {
        capabilities ??= new EngineCapabilities { TimeSource = "computed: script" };
        _vm = new VirtualMachine(
            4 << 20,
            (cpu, _) => _engine = new ScriptedEngine(cpu) { Capabilities = capabilities },
            strict
        );
        _vm.Load(new GuestImage("test", Code, [new ImageSegment(Code, code, 0x1000, true)]), new BootOptions());
        return _vm;
    }
}
