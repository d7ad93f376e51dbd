using System.Reflection;
using Microsoft.Win32.SafeHandles;
using VirtBench.Tests;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Tests;

/// <summary>RAM that is not all on this host: the pager, the transaction's parts, and the run loop with them.</summary>
public sealed class AbsentMemoryTests : IDisposable
{
    private const ulong RamBytes = 4 << 20;
    private const ulong Code = 0x10_0000;
    private const ulong PageSize = GuestMemory.PageSize;

    private readonly GuestMemory _source = new(RamBytes);
    private readonly List<IDisposable> _disposables = [];
    private ScriptedEngine _engine = null!;
    private DeferredPager _pager = null!;

    public void Dispose()
    {
        _disposables.ForEach(disposable => disposable.Dispose());
        _source.Dispose();
    }

    // ------------------------------------------------------------------------------------------------ the parts

    [Fact]
    public void A_copied_cpu_has_everything_that_the_other_has()
    {
        using var cpu = new VirtualCpu();
        ulong next = 0x1000;
        unsafe
        {
            new Span<byte>(cpu.Registers, GuestRegisters.Size).Fill(0x5A);
        }

        foreach (PropertyInfo property in typeof(VirtualCpu).GetProperties().Where(property => property.CanWrite))
        {
            Type type = property.PropertyType;
            object value =
                type == typeof(ulong) ? next++
                : type == typeof(bool) ? true
                : type == typeof(Segment) ? new Segment((ushort)next++, 1, 2, 3)
                : type == typeof(DescriptorTable) ? new DescriptorTable(next++, 7)
                : GuestEvent.Exception((byte)next++, 9);
            property.SetValue(cpu, value);
        }

        new ulong[] { 1, 2, 3, 4 }.CopyTo(cpu.DebugAddresses, 0);
        using var copy = new VirtualCpu();
        Assert.NotEqual(StateDump.Of(cpu), StateDump.Of(copy));
        copy.CopyFrom(cpu);
        Assert.Equal(StateDump.Of(cpu), StateDump.Of(copy));
    }

    [Fact]
    public void A_frame_is_fetched_once_when_it_is_first_touched()
    {
        GuestMemory memory = Absent();
        _source.Write(0x5FFC, 0x1122_3344_5566_7788UL);
        Assert.False(memory.IsPresent(5) || memory.IsPresent(6));
        Assert.Equal(0x1122_3344_5566_7788UL, memory.Read<ulong>(0x5FFC));
        Assert.True(memory.IsPresent(5) && memory.IsPresent(6));
        memory.Write(0x5000, (byte)1);
        _source.Write(0x5000, (byte)2); // too late
        Assert.Equal((1, 2L), (memory.Read<byte>(0x5000), _pager.Fetched));
        Assert.Equal((long)(RamBytes / PageSize) - 2, _pager.Absent);
    }

    [Fact]
    public void Threads_that_fetch_ahead_bring_each_frame_in_once()
    {
        GuestMemory memory = Absent();
        ulong frames = RamBytes / PageSize;
        for (ulong frame = 0; frame < frames; frame++)
        {
            _source.Write(frame * PageSize, frame);
        }

        Parallel.For(0, 4 * (long)frames, i => memory.Fetch((ulong)i % frames));
        Assert.Equal((long)frames, _pager.Fetched);
        Assert.True(memory.ArePresent(0, RamBytes));
        for (ulong frame = 0; frame < frames; frame++)
        {
            Assert.Equal(frame, memory.Read<ulong>(frame * PageSize));
        }
    }

    [Fact]
    public void A_range_is_present_when_every_frame_of_it_is()
    {
        GuestMemory memory = Absent();
        memory.Fetch(5);
        memory.Fetch(6);
        Assert.True(memory.ArePresent(0x5FFF, 2));
        Assert.False(memory.ArePresent(0x4FFF, 2) || memory.ArePresent(0x6FFF, 2));
        Assert.True(memory.ArePresent(RamBytes, 0x1000)); // a large page may reach beyond RAM
    }

    [Theory]
    [InlineData(30, 0x200UL, 12)]
    [InlineData(21, 0x200UL, 12)]
    [InlineData(30, 0x100UL, 21)]
    public void Of_a_large_page_the_largest_part_without_an_absent_frame_is_mapped(int shift, ulong absent, int mapped)
    {
        GuestMemory memory = Absent();
        for (ulong frame = 0; frame < RamBytes / PageSize; frame++)
        {
            if (frame != absent)
            {
                memory.Fetch(frame);
            }
        }

        const ulong linear = 0x4000_0000;
        ulong length = 1UL << shift;
        ulong physical = 0x20_5678 & ~(length - 1);
        var page = new ShadowPage(linear + 0x20_5678, linear + physical, physical, length, PageAccess.Read);
        ulong part = 1UL << mapped;
        Assert.Equal(
            new ShadowPage(page.Address, page.Address & ~(part - 1), 0x20_5678 & ~(part - 1), part, PageAccess.Read),
            page.PresentPart(memory)
        );
        memory.Fetch(absent);
        Assert.Equal(page, page.PresentPart(memory));
    }

    [Fact]
    public void A_pager_that_has_everything_says_so()
    {
        GuestMemory memory = Absent();
        memory.Clear(0, RamBytes);
        Assert.True(_pager.IsComplete);
        Assert.Equal((long)(RamBytes / PageSize), _pager.Fetched);
    }

    [Fact]
    public void A_deferred_pager_forgets_what_RAM_held()
    {
        using var memory = new GuestMemory(RamBytes);
        memory.Write(0x1234, 7);
        _ = memory.Attach(new DeferredPager(memory, (_, page) => page.Clear()));
        Assert.Equal(0, memory.Read<int>(0x1234));
    }

    [Fact]
    public void A_frame_whose_source_fails_stays_absent()
    {
        using var memory = new GuestMemory(RamBytes);
        bool fails = true;
        var pager = new DeferredPager(
            memory,
            (_, page) =>
            {
                page.Fill(3);
                if (fails)
                {
                    throw new GuestFailureException("lost");
                }
            }
        );
        _ = memory.Attach(pager);
        Assert.Throws<GuestFailureException>(() => memory.Read<byte>(0));
        Assert.Equal((0L, false), (pager.Fetched, pager.IsPresent(0)));
        fails = false;
        Assert.Equal(3, memory.Read<byte>(0));
    }

    [Fact]
    public void In_a_transaction_an_absent_frame_ends_it_and_nothing_is_fetched()
    {
        GuestMemory memory = Absent(out MemoryTransaction transaction);
        transaction.Begin();
        HostPageAbsentException absent = Assert.Throws<HostPageAbsentException>(() => memory.Read<byte>(0x7123));
        Assert.Equal((7UL, 0L), (absent.Frame, _pager.Fetched));
        transaction.RollBack();
        memory.Fetch(absent.Frame);
        Assert.Equal(0, memory.Read<byte>(0x7123));
    }

    private sealed class Observer : IMemoryWriteObserver
    {
        public List<string> Seen { get; } = [];

        public void MemoryWritten(ulong address, ulong length) => Seen.Add($"{address:X}+{length}");
    }

    [Fact]
    public void Writes_are_undone_in_reverse_and_observed_when_they_are_committed()
    {
        using var memory = new GuestMemory(RamBytes);
        var observer = new Observer();
        memory.WriteObserver = observer;
        memory.Write(0x1000, 0x1111_1111_1111_1111UL);
        MemoryTransaction transaction = memory.Attach(new TransientPager());
        observer.Seen.Clear();

        transaction.Begin();
        memory.Write(0x1000, (byte)2);
        memory.Write(0x1000, new byte[] { 3, 3, 3 });
        Assert.Equal(0x1111_1111_1103_0303UL, memory.Read<ulong>(0x1000));
        transaction.RollBack();
        Assert.Equal(0x1111_1111_1111_1111UL, memory.Read<ulong>(0x1000));
        memory.Write(0x1004, 5);
        Assert.Empty(observer.Seen);
        transaction.Commit();
        Assert.Equal(["1004+4"], observer.Seen);
        memory.Write(0x1000, (byte)1); // outside of a transaction at once
        Assert.Equal(["1004+4", "1000+1"], observer.Seen);
        transaction.Begin();
        transaction.RollBack();
        Assert.Equal((1, 5), (memory.Read<byte>(0x1000), memory.Read<int>(0x1004)));
    }

    [Fact]
    public void Accessed_and_dirty_bits_are_undone()
    {
        using var machine = new GuestMachine();
        MemoryTransaction transaction = machine.Memory.Attach(new TransientPager());
        const ulong root = PhysicalLayout.PageTables;
        ulong before = machine.Memory.Read<ulong>(root);
        transaction.Begin();
        _ = PageWalker.Walk(machine.Cpu, machine.Memory, 0x20_0000, PageAccess.Write);
        Assert.Equal(Pte.Accessed, (machine.Memory.Read<ulong>(root) ^ before) & Pte.Accessed);
        transaction.RollBack();
        Assert.Equal(before, machine.Memory.Read<ulong>(root));
        Assert.Equal(0UL, machine.Memory.Read<ulong>(root + 0x2008) & (Pte.Accessed | Pte.Dirty));
    }

    // ------------------------------------------------------------------------------------------------ the run loop

    [Fact]
    public void A_lost_page_ends_the_guest_between_two_instructions_and_a_later_run_goes_on()
    {
        bool lost = true;
        VirtualMachine vm = Boot(
            [0x9D, 0xE6, 0xF4], // popfq; out 0xF4, al
            (frame, page) =>
            {
                if (frame == 0x200 && lost)
                {
                    throw new GuestFailureException("page 0x200 is lost");
                }

                _source.Read(frame * PageSize, page);
            }
        );
        _source.Write(0x20_0010, 0x46UL);
        vm.Cpu.Rsp = 0x20_0010;
        string before = StateDump.Of(vm.Cpu);
        Assert.Equal(new RunOutcome(RunEnd.Failed, 0, "page 0x200 is lost"), Run(vm));
        Assert.Equal(before, StateDump.Of(vm.Cpu));
        lost = false;
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal((0x20_0018UL, 0x46UL), (vm.Cpu.Rsp, vm.Cpu.Rflags));
    }

    [Fact]
    public void An_exit_with_pages_to_fetch_is_counted_once()
    {
        VirtualMachine vm = Boot([0x9D, 0xE6, 0xF4]);
        vm.Cpu.Rsp = 0x20_0FFC;
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal((1, 1), (vm.Ledger.Count(TrapReason.InterruptFlag), vm.Ledger.Count(TrapReason.PortIo)));
        Assert.Equal(2, vm.Ledger.Snapshot().Counts.Sum());
        Assert.Equal(1020UL, _engine.Ticks); // charged for two
    }

    [Fact]
    public void An_event_is_delivered_once_however_many_pages_it_needs()
    {
        VirtualMachine vm = Boot([0xE6, 0xF4]);
        const ulong idt = 0x30_0000;
        _source.Write(idt + (0x20 * 16), (Code & 0xFFFF) | (0x8E00_0008UL << 16) | ((Code >> 16) << 48));
        vm.Cpu.Idtr = new DescriptorTable(idt, 0xFFF);
        vm.Cpu.Rip = 0xABCDE;
        vm.Cpu.Rsp = 0x20_0010;
        vm.Cpu.PendingEvent = GuestEvent.Interrupt(0x20);
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal((0x20_0010UL - 40, 0xABCDEUL), (vm.Cpu.Rsp, vm.Memory.Read<ulong>(vm.Cpu.Rsp)));
        Assert.True(vm.Memory.IsPresent(0x1FF) && vm.Memory.IsPresent(0x200) && vm.Memory.IsPresent(0x300));
    }

    [Fact]
    public void Guest_code_gets_the_present_part_of_a_large_page_only_and_invlpg_drops_all_parts()
    {
        VirtualMachine vm = Boot([0x0F, 0x01, 0x38, 0xE6, 0xF4]); // invlpg [rax]; out 0xF4, al
        Fault(0x20_5678, PageAccess.Read);
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal(
            [new ShadowPage(0x20_5678, 0x20_5000, 0x20_5000, PageSize, PageAccess.Read | PageAccess.Execute)],
            _engine.Mapped
        );
        Assert.True(vm.Memory.IsPresent(0x205));
        Assert.False(vm.Memory.IsPresent(0x206));
        Assert.Contains("switch", _engine.Calls);
        Assert.DoesNotContain(_engine.Calls, call => call.StartsWith("invalidate", StringComparison.Ordinal));
    }

    [Fact]
    public void A_large_page_is_mapped_whole_when_all_of_its_RAM_is_present()
    {
        VirtualMachine vm = Boot([0xE6, 0xF4]);
        for (ulong frame = 0x200; frame < 0x400; frame++)
        {
            vm.Memory.Fetch(frame);
        }

        Fault(0x20_5678, PageAccess.Read);
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal(2UL << 20, Assert.Single(_engine.Mapped).Length);
    }

    [Fact]
    public void After_the_last_page_nobody_asks_any_more()
    {
        VirtualMachine vm = Boot([0x90, 0x0F, 0x01, 0x38, 0xE6, 0xF4]);
        Fault(0x20_5678, PageAccess.Read); // maps a part
        _engine.Script.Enqueue(cpu =>
        {
            for (ulong frame = 0; frame < RamBytes / PageSize; frame++)
            {
                vm.Memory.Fetch(frame);
            }

            cpu.Rip++;
            _engine.Calls.Clear();
            return new VmExit(VmExitReason.PrivilegedInstruction);
        });
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Null(vm.Memory.Pager);
        Assert.Equal("switch", _engine.Calls[0]);
    }

    [Fact]
    public void A_write_to_a_page_table_that_the_core_emulates_may_find_pages_absent()
    {
        VirtualMachine vm = Boot([0x48, 0x89, 0x07, 0xE6, 0xF4]); // mov [rdi], rax; out 0xF4, al
        vm.Cpu[Gpr.Rdi] = 0x20_0FFC;
        vm.Cpu.Rax = 0x1122_3344_5566_7788;
        _engine.MapAnswer = MapResult.Emulate;
        Fault(0x20_0FFC, PageAccess.Write);
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal(0x1122_3344_5566_7788UL, vm.Memory.Read<ulong>(0x20_0FFC));
        Assert.Equal(1, vm.Ledger.Count(TrapReason.PageTableWrite));
    }

    [Fact]
    public void A_string_instruction_goes_on_where_it_was_when_a_page_is_missing()
    {
        // std is not set: rep movsb from where no RAM is to the end of one page and the beginning of the next
        VirtualMachine vm = Boot([0xF3, 0xA4, 0xE6, 0xF4]);
        vm.Cpu[Gpr.Rsi] = 0x2000_0000;
        vm.Cpu[Gpr.Rdi] = 0x20_0FFE;
        vm.Cpu[Gpr.Rcx] = 4;
        Fault(0x2000_0000, PageAccess.Read);
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal((0x20_1002UL, 0UL), (vm.Cpu[Gpr.Rdi], vm.Cpu[Gpr.Rcx]));
        Assert.Equal(uint.MaxValue, vm.Memory.Read<uint>(0x20_0FFE));
        Assert.Equal((1, 4L), (vm.Ledger.Count(TrapReason.Mmio), vm.AbsentMemory.UnclaimedAccesses));
    }

    [Fact]
    public void A_long_string_instruction_exits_as_often_as_it_would_without_a_fault()
    {
        VirtualMachine vm = Boot([0xF3, 0x6E, 0xE6, 0xF4]); // rep outsb; out 0xF4, al
        vm.Cpu[Gpr.Rsi] = 0x20_0000;
        vm.Cpu[Gpr.Rcx] = 5000;
        vm.Cpu[Gpr.Rdx] = 0x80;
        Assert.Equal(RunEnd.Exited, Run(vm).End);
        Assert.Equal((2 + 1, 5000L), (vm.Ledger.Count(TrapReason.PortIo), vm.Ports.UnclaimedAccesses));
    }

    [Fact]
    public void A_pager_is_attached_once_and_before_the_guest_runs()
    {
        VirtualMachine vm = Boot([0xE6, 0xF4]);
        Assert.Throws<InvalidOperationException>(() => vm.AttachPager(_pager));
        var late = new VirtualMachine(RamBytes, (cpu, _) => new ScriptedEngine(cpu));
        _disposables.Add(late);
        late.Load(Image([0xE6, 0xF4]), new BootOptions());
        _ = Run(late);
        Assert.Throws<InvalidOperationException>(() => late.AttachPager(new TransientPager()));
    }

    // ------------------------------------------------------------------------------------------------ the kernel's accesses

    /// <summary>As KVM does, the kernel reads a page of RAM through this process's page tables: here it writes it to a file.</summary>
    [Fact]
    public unsafe void The_kernel_finds_every_page_that_the_pager_has()
    {
        _source.Write(0x9000, 0x1122_3344_5566_7788UL);
        GuestMemory memory = Absent();
        using UserFaults faults = StartUserFaults(memory, () => { });
        Assert.Equal(0x1122_3344_5566_7788UL, BitConverter.ToUInt64(ByKernel(memory, 0x9000)));
        Assert.Equal(1, _pager.Fetched);
        memory.Fetch(10);
        Assert.Equal(0UL, BitConverter.ToUInt64(ByKernel(memory, 0xA000)));
        Assert.Equal((2L, null), (_pager.Fetched, faults.Failure));
    }

    [Fact]
    public unsafe void A_page_that_the_kernel_wants_and_nobody_has_stops_the_guest_first()
    {
        using var memory = new GuestMemory(RamBytes);
        var pager = new DeferredPager(memory, (_, _) => throw new GuestFailureException("lost"));
        _ = memory.Attach(pager);
        bool kicked = false;
        using UserFaults faults = StartUserFaults(memory, () => kicked = true, pager);
        _ = ByKernel(memory, 0x9000);
        Assert.Equal((true, "lost"), (kicked, faults.Failure));
    }

    [Fact]
    public void An_engine_that_reaches_RAM_by_itself_ends_the_guest_when_a_page_is_lost()
    {
        VirtualMachine vm = Boot(
            [0xE6, 0xF4],
            capabilities: new EngineCapabilities { DeliversEvents = true, TimeSource = "test" },
            source: (frame, page) =>
            {
                if (frame == 0x200)
                {
                    throw new GuestFailureException("lost");
                }

                _source.Read(frame * PageSize, page);
            }
        );
        _engine.Script.Enqueue(cpu =>
        {
            cpu.Rax = ByKernel(vm.Memory, 0x20_0000)[0]; // the guest touches it
            return new VmExit(VmExitReason.TaskPriority);
        });
        Assert.Equal(new RunOutcome(RunEnd.Failed, 0, "lost"), Run(vm));
        Assert.Equal(new RunOutcome(RunEnd.Failed, 0, "lost"), Run(vm));
    }

    private UserFaults StartUserFaults(GuestMemory memory, Action kick, IGuestPager? pager = null)
    {
        try
        {
            return UserFaults.Start(memory, pager ?? _pager, kick);
        }
        catch (PlatformNotSupportedException unable)
        {
            Assert.Skip(unable.Message);
            throw;
        }
    }

    private static unsafe byte[] ByKernel(GuestMemory memory, ulong address)
    {
        string path = Path.GetTempFileName();
        try
        {
            using SafeFileHandle file = File.OpenHandle(path, FileMode.Open, FileAccess.ReadWrite);
            RandomAccess.Write(file, new ReadOnlySpan<byte>(memory.Base + address, 8), 0);
            byte[] read = new byte[8];
            _ = RandomAccess.Read(file, read, 0);
            return read;
        }
        finally
        {
            File.Delete(path);
        }
    }

    // ------------------------------------------------------------------------------------------------ arrangement

    private GuestMemory Absent() => Absent(out _);

    private GuestMemory Absent(out MemoryTransaction transaction)
    {
        var memory = new GuestMemory(RamBytes);
        _disposables.Add(memory);
        _pager = new DeferredPager(memory, (frame, page) => _source.Read(frame * PageSize, page));
        transaction = memory.Attach(_pager);
        return memory;
    }

    private static GuestImage Image(byte[] code) => new("test", Code, [new ImageSegment(Code, code, 0x1000, true)]);

    /// <summary>A guest that has been loaded elsewhere: its RAM is the source's.</summary>
    private VirtualMachine Boot(byte[] code, PageSource? source = null, EngineCapabilities? capabilities = null)
    {
        var vm = new VirtualMachine(
            RamBytes,
            (cpu, _) =>
                _engine = new ScriptedEngine(cpu)
                {
                    Capabilities = capabilities ?? new EngineCapabilities { TimeSource = "computed: script" },
                }
        );
        _disposables.Add(vm);
        BootLoader.Load(Image(code), new BootOptions(), vm.Cpu, _source, 2e9);
        _pager = new DeferredPager(vm.Memory, source ?? ((frame, page) => _source.Read(frame * PageSize, page)));
        try
        {
            vm.AttachPager(_pager);
        }
        catch (PlatformNotSupportedException unable)
        {
            Assert.Skip(unable.Message);
        }

        return vm;
    }

    private void Fault(ulong address, PageAccess access) =>
        _engine.Script.Enqueue(_ => new VmExit(VmExitReason.PageFault, Address: address, Access: access));

    private static RunOutcome Run(VirtualMachine vm) => vm.Run(null, TestContext.Current.CancellationToken);
}
