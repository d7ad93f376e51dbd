using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Vmm.Tests.Paravirtual;

/// <summary>The core's side of the paravirtual interface, driven by a scripted engine.</summary>
public sealed class HypercallTests : IDisposable
{
    private const ulong Code = 0x10_0000;
    private const ulong Records = 0x20_0000;
    private const ulong Shared = PhysicalLayout.SharedInfoPage;
    private const byte VectorOfLine0 = 0x20;

    private ScriptedEngine _engine = null!;
    private VirtualMachine? _vm;

    public void Dispose() => _vm?.Dispose();

    private VirtualMachine Boot(bool offered = true)
    {
        _vm = new VirtualMachine(
            4 << 20,
            (cpu, _) =>
                _engine = new ScriptedEngine(cpu)
                {
                    Capabilities = new EngineCapabilities
                    {
                        TimeSource = "computed: script",
                        TrapsPrivilegedInstructions = true,
                    },
                }
        );
        byte[] end = [0xE6, 0xF4]; // out 0xF4, al
        _vm.Load(
            new GuestImage("test", Code, [new ImageSegment(Code, end, 0x1000, Executable: true)]),
            new BootOptions { Paravirtual = offered }
        );
        return _vm;
    }

    private static RunOutcome Run(VirtualMachine vm) => vm.Run(cancellation: TestContext.Current.CancellationToken);

    /// <summary>The guest calls; what it found in RAX is returned.</summary>
    private long Call(ulong number, ulong first = 0, ulong second = 0, int ring = 0)
    {
        VirtualMachine vm = _vm ?? Boot();
        ulong result = 0;
        _engine.Script.Enqueue(cpu =>
        {
            cpu.Rax = number;
            cpu[Gpr.Rdi] = first;
            cpu[Gpr.Rsi] = second;
            Segment code = cpu.Cs;
            cpu.Cs = ring == 3 ? code with { Selector = (ushort)(code.Selector | 3) } : code;
            return new VmExit(VmExitReason.Hypercall);
        });
        _engine.Script.Enqueue(cpu =>
        {
            result = cpu.Rax;
            cpu.Cs = Segment.KernelCode(8);
            cpu.Rax = 0;
            return new VmExit(VmExitReason.PrivilegedInstruction);
        });
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        return (long)result;
    }

    private long Call(HypercallNumber number, ulong first = 0, ulong second = 0, int ring = 0) =>
        Call((ulong)number, first, second, ring);

    [Fact]
    public void Every_hypercall_is_among_the_features()
    {
        Assert.Equal(0x7FF, Call(HypercallNumber.Features));
        Assert.Equal(1, _vm!.Ledger.Count(TrapReason.Hypercall));
    }

    [Theory]
    [InlineData(11)]
    [InlineData(0x7FFF_FFFF)]
    [InlineData(0x8000_0000)]
    [InlineData(0xFFFF_FFFF)]
    public void An_unknown_number_is_an_error(ulong number) => Assert.Equal(-HypercallError.Unknown, Call(number));

    [Theory]
    [MemberData(nameof(Numbers))]
    public void Ring_3_may_call_nothing(HypercallNumber number)
    {
        VirtualMachine vm = Boot();
        ulong cr3 = vm.Cpu.Cr3;
        Assert.Equal(-HypercallError.NotPermitted, Call(number, 0x1000, 1, ring: 3));
        Assert.Equal(cr3, vm.Cpu.Cr3);
    }

    public static TheoryData<HypercallNumber> Numbers => [.. Enum.GetValues<HypercallNumber>()];

    [Theory]
    [InlineData(HypercallNumber.UpdatePageTables, 0xFFFF_FFFF_FFFF_FFF0, 1, HypercallError.BadAddress)]
    [InlineData(HypercallNumber.UpdatePageTables, 0x3F_FFF8, 1, HypercallError.BadAddress)]
    [InlineData(HypercallNumber.UpdatePageTables, Records, 513, HypercallError.TooBig)]
    [InlineData(HypercallNumber.UpdatePageTables, Records, ulong.MaxValue, HypercallError.TooBig)]
    [InlineData(HypercallNumber.Multicall, 0x40_0000, 1, HypercallError.BadAddress)]
    [InlineData(HypercallNumber.Multicall, Records, 1UL << 60, HypercallError.TooBig)]
    [InlineData(HypercallNumber.ConsoleWrite, 0x3F_FFFF, 2, HypercallError.BadAddress)]
    [InlineData(HypercallNumber.ConsoleWrite, 0, 4097, HypercallError.TooBig)]
    [InlineData(HypercallNumber.SetPageTableBase, 1UL << 60, 0, HypercallError.Invalid)]
    [InlineData(HypercallNumber.EndOfInterrupt, 16, 0, HypercallError.Invalid)]
    public void What_makes_no_sense_is_an_error(HypercallNumber number, ulong first, ulong second, int error) =>
        Assert.Equal(-error, Call(number, first, second));

    [Fact]
    public void A_batch_of_updates_stops_at_the_first_that_is_wrong()
    {
        VirtualMachine vm = Boot();
        vm.Memory.Write(Records, new PageTableUpdate(0x30_0000, 0x1111));
        vm.Memory.Write(Records + 16, new PageTableUpdate(0x30_0009, 0x2222)); // not a multiple of 8
        vm.Memory.Write(Records + 32, new PageTableUpdate(0x30_0010, 0x3333));
        Assert.Equal(-HypercallError.Invalid, Call(HypercallNumber.UpdatePageTables, Records, 3));
        Assert.Equal(0x1111u, vm.Memory.Read<ulong>(0x30_0000));
        Assert.Equal(0u, vm.Memory.Read<ulong>(0x30_0010));
        Assert.Contains("switch", _engine.Calls);
    }

    [Fact]
    public void Updates_are_written_and_everything_derived_is_dropped()
    {
        VirtualMachine vm = Boot();
        vm.Memory.Write(Records, new PageTableUpdate(0x30_0000, 0x1111));
        vm.Memory.Write(Records + 16, new PageTableUpdate(0x30_0008, 0x2222));
        _engine.Calls.Clear();
        Assert.Equal(2, Call(HypercallNumber.UpdatePageTables, Records, 2));
        Assert.Equal(0x2222u, vm.Memory.Read<ulong>(0x30_0008));
        Assert.Contains("switch", _engine.Calls);
    }

    [Fact]
    public void A_multicall_leaves_each_result_in_its_record_and_refuses_what_does_not_return()
    {
        VirtualMachine vm = Boot();
        (ulong Number, ulong First, long Result)[] calls =
        [
            (0, 0, 0x7FF),
            ((ulong)HypercallNumber.SetPageTableBase, 0x1_3000, 0),
            ((ulong)HypercallNumber.Multicall, Records, -HypercallError.Invalid),
            ((ulong)HypercallNumber.Block, 0, -HypercallError.Invalid),
            ((ulong)HypercallNumber.InterruptReturn, 0, -HypercallError.Invalid),
            (1UL << 40, 0, -HypercallError.Unknown),
        ];
        for (int i = 0; i < calls.Length; i++)
        {
            vm.Memory.Write(
                Records + ((ulong)i * 48),
                new MulticallEntry { Number = calls[i].Number, First = calls[i].First }
            );
        }

        Assert.Equal(0, Call(HypercallNumber.Multicall, Records, (ulong)calls.Length));
        for (int i = 0; i < calls.Length; i++)
        {
            Assert.Equal(calls[i].Result, vm.Memory.Read<MulticallEntry>(Records + ((ulong)i * 48)).Result);
        }

        Assert.Equal(1, vm.Ledger.Count(TrapReason.Hypercall));
    }

    [Fact]
    public void Text_goes_to_the_console_in_one_call()
    {
        VirtualMachine vm = Boot();
        var sent = new List<byte>();
        vm.Serial.Transmitted = sent.Add;
        vm.Memory.Write(Records, "hello"u8);
        Assert.Equal(5, Call(HypercallNumber.ConsoleWrite, Records, 5));
        Assert.Equal("hello"u8.ToArray(), sent);
    }

    [Fact]
    public void A_guest_that_was_not_offered_the_interface_gets_an_invalid_opcode()
    {
        VirtualMachine vm = Boot(offered: false);
        _engine.Script.Enqueue(_ => new VmExit(VmExitReason.Hypercall));
        RunOutcome outcome = Run(vm);
        Assert.Equal(RunEnd.Failed, outcome.End); // no IDT to deliver it by
        Assert.Equal(0u, vm.Memory.Read<ulong>(PhysicalLayout.HypercallPage));
    }

    [Fact]
    public void A_guest_starts_with_its_mask_set_and_the_flag_too()
    {
        VirtualMachine vm = Boot();
        Assert.Equal(1u, vm.Memory.Read<ulong>(Shared));
        Assert.NotEqual(0u, vm.Cpu.Rflags & Rflags.If);
        Assert.Equal(BootInformation.ParavirtualFlag, vm.Memory.Read<BootInformation>(PhysicalLayout.BootInfo).Flags);
    }

    // The timer's interrupt, through an 8259A whose line 0 is open; the handler is never entered by code, only delivered to.
    private VirtualMachine WithTimer()
    {
        VirtualMachine vm = Boot();
        InterruptController controller = vm.Interrupts;
        controller.Write(InterruptController.MasterPort, 1, 0x11);
        foreach (uint word in (uint[])[VectorOfLine0, 4, 1, 0xFE])
        {
            controller.Write(InterruptController.MasterPort + 1, 1, word);
        }

        const ulong idt = 0x30_1000;
        vm.Memory.Write(
            idt + (VectorOfLine0 * 16),
            0x0000_8E00_0008_0000UL | (Code + 0x100 & 0xFFFF) | ((Code >> 16) << 48)
        );
        vm.Cpu.Idtr = new DescriptorTable(idt, 0xFFF);
        return vm;
    }

    [Fact]
    public void A_masked_interrupt_is_announced_and_comes_once_the_mask_is_open()
    {
        VirtualMachine vm = WithTimer();
        ulong whileMasked = 0;
        _engine.Script.Enqueue(_ =>
        {
            vm.Interrupts.Pulse(0);
            return new VmExit(VmExitReason.Interrupted);
        });
        _engine.Script.Enqueue(cpu =>
        {
            whileMasked = vm.Memory.Read<ulong>(Shared + 8);
            Assert.Equal(Code, cpu.Rip);
            vm.Memory.Write(Shared, 0UL);
            cpu.Rax = (ulong)HypercallNumber.Yield;
            return new VmExit(VmExitReason.Hypercall);
        });
        _engine.Script.Enqueue(cpu =>
        {
            Assert.Equal(Code + 0x100, cpu.Rip);
            Assert.Equal(0u, cpu.Rflags & Rflags.If);
            cpu.Rip = Code;
            return new VmExit(VmExitReason.PrivilegedInstruction);
        });
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal(SharedInformation.PendingInVmm, whileMasked);
        Assert.Equal(0u, vm.Memory.Read<ulong>(Shared + 8));
    }

    [Fact]
    public void Block_sleeps_until_the_timer_that_was_set_and_its_interrupt_is_delivered()
    {
        VirtualMachine vm = WithTimer();
        ulong before = 0;
        _engine.Script.Enqueue(cpu =>
        {
            before = _engine.Ticks;
            cpu.Rax = (ulong)HypercallNumber.SetTimer;
            cpu[Gpr.Rdi] = 50_000; // 50 µs of system time, which began with the VM
            return new VmExit(VmExitReason.Hypercall);
        });
        _engine.Script.Enqueue(cpu =>
        {
            cpu.Rax = (ulong)HypercallNumber.Block;
            return new VmExit(VmExitReason.Hypercall);
        });
        _engine.Script.Enqueue(cpu =>
        {
            Assert.Equal(Code + 0x100, cpu.Rip);
            Assert.True(_engine.Ticks >= 100_000); // at 2 GHz
            cpu.Rip = Code;
            return new VmExit(VmExitReason.PrivilegedInstruction);
        });
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.True(before < 100_000);
        Assert.True(vm.IoStatistics().WaitingNanoseconds > 0);
    }

    [Fact]
    public void A_guest_that_blocks_without_anything_to_wake_it_is_ended_with_a_line()
    {
        VirtualMachine vm = Boot();
        _engine.Script.Enqueue(cpu =>
        {
            cpu.Rax = (ulong)HypercallNumber.Block;
            return new VmExit(VmExitReason.Hypercall);
        });
        RunOutcome outcome = Run(vm);
        Assert.Equal(RunEnd.Failed, outcome.End);
        Assert.Contains("no device of it can raise an interrupt", outcome.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void The_clock_shows_what_the_engine_counts()
    {
        VirtualMachine vm = Boot();
        ParavirtualClock clock = vm.Memory.Read<ParavirtualClock>(Shared + 0x40);
        Assert.Equal(0u, clock.Version % 2);
        ulong earlier = clock.Nanoseconds(_engine.Ticks);
        _engine.Ticks += 2_000_000;
        Assert.InRange(clock.Nanoseconds(_engine.Ticks) - earlier, 999_999u, 1_000_001u);
    }

    [Fact]
    public void Interrupt_return_takes_registers_the_new_mask_and_the_frame_from_the_stack()
    {
        VirtualMachine vm = Boot();
        ulong stack = PhysicalLayout.StackTop - 0x100;
        ulong[] frame = [11, 12, 13, 0xDEAD, 0, Code, 8, Rflags.AlwaysSet | Rflags.If, stack + 0x80, 0x10];
        for (int i = 0; i < frame.Length; i++)
        {
            vm.Memory.Write(stack + ((ulong)i * 8), frame[i]);
        }

        _engine.Script.Enqueue(cpu =>
        {
            cpu.Rsp = stack;
            cpu.Rax = (ulong)HypercallNumber.InterruptReturn;
            return new VmExit(VmExitReason.Hypercall);
        });
        _engine.Script.Enqueue(cpu =>
        {
            Assert.Equal(Code, cpu.Rip);
            Assert.Equal(stack + 0x80, cpu.Rsp);
            Assert.Equal((13u, 12u, 11u), (cpu.Rax, cpu[Gpr.Rcx], cpu[11]));
            cpu.Rax = 0;
            return new VmExit(VmExitReason.PrivilegedInstruction);
        });
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal(0u, vm.Memory.Read<ulong>(Shared));
    }

    [Fact]
    public void An_interrupt_return_that_faults_leaves_stack_and_mask_as_they_were()
    {
        VirtualMachine vm = Boot();
        ulong stack = PhysicalLayout.StackTop - 0x100;
        vm.Memory.Write(stack + 40, 0x8000_0000_0000_0000UL); // RIP: not canonical
        vm.Memory.Write(stack + 48, 8UL);
        _engine.Script.Enqueue(cpu =>
        {
            cpu.Rsp = stack;
            cpu.Rax = (ulong)HypercallNumber.InterruptReturn;
            return new VmExit(VmExitReason.Hypercall);
        });
        Assert.Equal(RunEnd.Failed, Run(vm).End); // #GP, and no IDT
        Assert.Equal(stack, vm.Cpu.Rsp);
        Assert.Equal(1u, vm.Memory.Read<ulong>(Shared));
    }
}
