using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Disks;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Tests.Disks;

/// <summary>When requests are served, on which thread, and what a VM does about it.</summary>
public sealed class DiskServiceTests : IDisposable
{
    private const ulong Microsecond = 2000; // ticks of the scripted clock

    private DiskMachine _machine = new();

    public void Dispose() => _machine.Dispose();

    private VirtioDriver Attach(
        DiskTiming? timing = null,
        InterruptDelivery delivery = InterruptDelivery.Exit,
        bool thread = false,
        IBlockStorage? storage = null
    )
    {
        _machine.Dispose();
        _machine = new DiskMachine(storage, timing, delivery, thread);
        var driver = new VirtioDriver(_machine);
        _machine.Pass(); // the thread has looked for requests, and sleeps
        return driver;
    }

    // Ticks after the notification at which each of some requests is over.
    private List<ulong> Completions(VirtioDriver driver, int requests)
    {
        for (int i = 0; i < requests; i++)
        {
            _ = driver.Read((ulong)i, 1, slot: i);
        }

        ulong start = _machine.Engine.Ticks;
        driver.Notify();
        var times = new List<ulong>();
        while (_machine.Service.NextEvent != ulong.MaxValue)
        {
            ushort before = driver.UsedIndex;
            _machine.Pass(_machine.Service.NextEvent);
            for (int i = before; i < driver.UsedIndex; i++)
            {
                times.Add(_machine.Engine.Ticks - start);
            }
        }

        return times;
    }

    [Theory]
    [InlineData(1, new ulong[] { 10, 20, 30, 40, 50 })]
    [InlineData(2, new ulong[] { 10, 10, 20, 20, 30 })]
    [InlineData(5, new ulong[] { 10, 10, 10, 10, 10 })]
    public void As_many_requests_are_in_service_as_the_queue_is_deep(int depth, ulong[] microseconds)
    {
        VirtioDriver driver = Attach(new DiskTiming { MeanNanoseconds = 10_000, QueueDepth = depth });
        Assert.Equal(microseconds, Completions(driver, 5).Select(ticks => ticks / Microsecond));
        Assert.Equal(5, _machine.Statistics.Completions);
        Assert.Equal(microseconds[^1] * 1000.0, _machine.Statistics.LatencyMaximumNanoseconds);
        Assert.Equal(microseconds.Sum(time => time * 1000.0), _machine.Statistics.LatencyTotalNanoseconds);
    }

    [Fact]
    public void Jittered_requests_are_over_in_the_order_of_their_service_times_and_at_the_same_ticks_every_time()
    {
        var timing = new DiskTiming
        {
            MeanNanoseconds = 10_000,
            Jitter = 0.5,
            QueueDepth = 4,
            Seed = 5,
        };
        List<ulong> first = Completions(Attach(timing), 12);
        Assert.Equal(first, Completions(Attach(timing), 12));
        Assert.NotEqual(first, Completions(Attach(timing with { Seed = 6 }), 12));
        Assert.Equal(12, first.Distinct().Count());
        ulong shortest = Enumerable
            .Range(0, 4)
            .Select(i => (ulong)Math.Round(timing.ServiceNanoseconds((ulong)i) * 2))
            .Min();
        Assert.Equal(shortest, first[0]);

        // Out of order: the used ring names the heads as they were over.
        VirtioDriver driver = Attach(timing);
        _ = Completions(driver, 12);
        uint[] heads = [.. Enumerable.Range(0, 12).Select(_ => driver.TakeUsed().Head)];
        Assert.NotEqual(heads.Order(), heads);
        Assert.Equal(12, heads.Distinct().Count());
    }

    [Fact]
    public void A_request_that_comes_later_begins_when_it_comes()
    {
        VirtioDriver driver = Attach(new DiskTiming { MeanNanoseconds = 10_000, QueueDepth = 1 });
        ulong start = _machine.Engine.Ticks;
        Assert.Equal([10 * Microsecond], Completions(driver, 1));
        _machine.Engine.Ticks = start + (50 * Microsecond);
        Assert.Equal([10 * Microsecond], Completions(driver, 1));
    }

    [Fact]
    public void Time_that_passes_in_one_leap_gives_the_same_account()
    {
        var timing = new DiskTiming
        {
            MeanNanoseconds = 10_000,
            Jitter = 0.3,
            QueueDepth = 3,
        };
        VirtioDriver driver = Attach(timing);
        _ = Completions(driver, 20);
        DiskStatistics step = _machine.Statistics;

        driver = Attach(timing);
        for (int i = 0; i < 20; i++)
        {
            _ = driver.Read((ulong)i, 1, slot: i);
        }

        driver.Notify();
        _machine.Engine.Ticks += 1_000_000;
        _machine.Service.Advance(_machine.Engine.Ticks);
        Assert.Equal(step.LatencyTotalNanoseconds, _machine.Statistics.LatencyTotalNanoseconds);
        Assert.Equal(20, _machine.Statistics.Completions);
    }

    [Fact]
    public void The_thread_keeps_to_the_service_time()
    {
        VirtioDriver driver = Attach(new DiskTiming { MeanNanoseconds = 2e6, QueueDepth = 1 }, thread: true);
        double start = HostClock.Instance.Nanoseconds;
        for (int i = 0; i < 3; i++)
        {
            _ = driver.Read((ulong)i, 1, slot: i);
        }

        driver.Notify();
        _machine.Pass();
        Assert.Equal(3, _machine.Statistics.Completions);
        Assert.True(HostClock.Instance.Nanoseconds - start >= 5.9e6); // two clocks, of which one is calibrated
        Assert.True(_machine.Statistics.LatencyTotalNanoseconds >= 5.9e6);
    }

    [Fact]
    public void Requests_of_both_front_ends_wait_in_one_queue()
    {
        VirtioDriver driver = Attach(new DiskTiming { MeanNanoseconds = 10_000, QueueDepth = 1 });
        _ = driver.Read(0, 1);
        driver.Notify();
        _machine.Out(0x1F6, 0xE0);
        _machine.Out(0x1F7, 0xE7);
        _machine.Pass(_machine.Engine.Ticks + (15 * Microsecond));
        Assert.Equal(1, driver.UsedIndex);
        Assert.Equal(0x80, _machine.In(0x3F6));
        _machine.Pass();
        Assert.Equal(0x50, _machine.In(0x1F7));
        Assert.Equal(20_000, _machine.Statistics.LatencyMaximumNanoseconds);
    }

    [Fact]
    public void The_thread_ends_with_the_VM()
    {
        var storage = new FailingStorage(64);
        VirtioDriver driver = Attach(thread: true, storage: storage);
        _ = driver.Read(0, 1);
        driver.Notify();
        _machine.Pass();
        Thread thread = _machine.Service.Thread!;
        Assert.True(thread.IsAlive);
        _machine.Vm.Dispose();
        Assert.False(thread.IsAlive);
        Assert.True(storage.IsDisposed);
    }

    [Fact]
    public void The_thread_ends_by_itself_when_the_VM_is_abandoned()
    {
        var storage = new FailingStorage(64);
        VirtioDriver driver = Attach(new DiskTiming { MeanNanoseconds = 1e10 }, thread: true, storage: storage);
        _ = driver.Read(0, 1);
        driver.Notify();
        Thread thread = _machine.Service.Thread!;
        _machine.Vm.Abandon();
        Assert.True(thread.Join(TimeSpan.FromSeconds(30)));
        Assert.True(storage.IsDisposed);
        driver.Notify(); // the guest's thread may still be there
        Assert.False(_machine.Service.Thread!.IsAlive);
    }

    [Fact]
    public void A_disk_that_was_never_used_has_no_thread_and_is_closed_all_the_same()
    {
        foreach (bool abandoned in (bool[])[false, true])
        {
            var storage = new FailingStorage(64);
            _machine.Dispose();
            _machine = new DiskMachine(storage, thread: true);
            Assert.Null(_machine.Service.Thread);
            if (abandoned)
            {
                _machine.Vm.Abandon();
            }

            _machine.Vm.Dispose();
            Assert.True(storage.IsDisposed);
        }
    }

    [Theory]
    [InlineData(false, true)]
    [InlineData(true, false)]
    [InlineData(true, true)]
    [InlineData(false, false)]
    public void Requests_in_flight_go_on_under_another_engine(bool threadBefore, bool threadAfter)
    {
        VirtioDriver driver = Attach(new DiskTiming { MeanNanoseconds = 20e6, QueueDepth = 1 }, thread: threadBefore);
        for (int i = 0; i < 2; i++)
        {
            _ = driver.Read((ulong)(3 + i), 1, slot: i, data: VirtioDriver.Data + (512 * (ulong)i));
        }

        driver.Notify();
        if (!threadBefore)
        {
            _machine.Pass(_machine.Engine.Ticks + (15_000 * Microsecond));
        }

        ScriptedEngine next = null!;
        _machine.Vm.SwitchEngine(
            (cpu, _) =>
                next = new ScriptedEngine(cpu)
                {
                    Ticks = 50_000_000_000,
                    UsesHostClock = threadAfter,
                    Capabilities = new() { TimeSource = "x", ComputedTime = !threadAfter },
                }
        );
        if (threadAfter)
        {
            Assert.True(SpinWait.SpinUntil(() => !_machine.Service.MayYetComplete(), TimeSpan.FromSeconds(30)));
            _machine.Drain();
        }
        else
        {
            if (!threadBefore)
            {
                Assert.Equal(next.Ticks + (5_000 * Microsecond), _machine.Service.NextEvent); // of the first's 20 ms
            }

            while (_machine.Service.NextEvent != ulong.MaxValue)
            {
                next.Ticks = Math.Max(next.Ticks, _machine.Service.NextEvent);
                _machine.Service.Advance(next.Ticks);
            }

            _machine.Drain();
        }

        Assert.Equal(2, driver.UsedIndex);
        Assert.Equal(DiskMachine.Content(3, 2), driver.Bytes(VirtioDriver.Data, 1024));
        Assert.True(_machine.Statistics.LatencyMaximumNanoseconds is >= 19.9e6 and < 30e9);
        Assert.Equal(1u, driver.InterruptStatus);
    }

    [Fact]
    public void Absent_guest_memory_is_fetched_by_the_device()
    {
        foreach (bool thread in (bool[])[false, true])
        {
            VirtioDriver driver = Attach(thread: thread);
            byte[] image = new byte[4 << 20];
            DiskMachine.Pattern(8192, 3).CopyTo(image, (int)VirtioDriver.Data);
            var pager = new DeferredPager(
                _machine.Vm.Memory,
                (frame, page) => image.AsSpan((int)(frame * 4096), 4096).CopyTo(page)
            );
            _machine.Vm.AttachPager(pager);
            _ = driver.Write(8, 16);
            Assert.False(pager.IsPresent(VirtioDriver.Data / 4096) && !thread);
            driver.Notify();
            _machine.Pass();
            Assert.True(pager.IsPresent(VirtioDriver.Data / 4096));
            Assert.True(pager.IsPresent((VirtioDriver.Data / 4096) + 1));
            byte[] written = new byte[8192];
            _machine.Storage.Read(8, written);
            Assert.Equal(DiskMachine.Pattern(8192, 3), written);
            Assert.Equal(0, driver.Status());
        }
    }

    [Fact]
    public void A_frame_that_cannot_be_fetched_ends_the_guest_and_not_the_host()
    {
        VirtioDriver driver = Attach(thread: true);
        var pager = new DeferredPager(
            _machine.Vm.Memory,
            (frame, page) =>
            {
                if (frame == VirtioDriver.Data / 4096)
                {
                    throw new GuestFailureException("the page is lost");
                }

                page.Clear();
            }
        );
        _machine.Vm.AttachPager(pager);
        _ = driver.Write(8, 16);
        driver.Notify();
        _machine.Pass();
        Assert.Equal("the page is lost", _machine.Service.Failure);
        _machine.Engine.LoopsAtEnd = true;
        RunOutcome outcome = _machine.Vm.Run(TimeSpan.FromSeconds(30), TestContext.Current.CancellationToken);
        Assert.Equal((RunEnd.Failed, "the page is lost"), (outcome.End, outcome.Message));
    }

    // ------------------------------------------------------------------------------------------------ the run loop

    private const ulong Code = 0x10_8000;
    private const ulong Handler = Code + 0x800;
    private const ulong Idt = 0x10_9000;

    // Boots a guest that sleeps in HLT, with a handler for every vector that exits.
    private VirtualMachine Sleep(Action<ScriptedEngine>? script = null)
    {
        VirtualMachine vm = _machine.Vm;
        byte[] code = new byte[0x1000];
        ((byte[])[0xF4]).CopyTo(code, 0);
        ((byte[])[0xE6, 0xF4]).CopyTo(code, (int)(Handler - Code)); // out 0xF4, al
        vm.Load(new GuestImage("test", Code, [new ImageSegment(Code, code, 0x1000, true)]), new BootOptions());
        for (ulong vector = 0; vector < 0x30; vector++)
        {
            vm.Memory.Write(
                Idt + (16 * vector),
                (Handler & 0xFFFF) | (8UL << 16) | (0x8EUL << 40) | (Handler >> 16 << 48)
            );
            vm.Memory.Write(Idt + (16 * vector) + 8, 0UL);
        }

        vm.Cpu.Idtr = new DescriptorTable(Idt, 0x2FF);
        vm.Cpu.Rsp = 0x18_0000;
        vm.Cpu.Rflags |= Rflags.If;
        script?.Invoke(_machine.Engine);
        return vm;
    }

    private RunOutcome Run() => _machine.Vm.Run(TimeSpan.FromSeconds(30), TestContext.Current.CancellationToken);

    [Fact]
    public void A_completion_wakes_a_guest_that_sleeps()
    {
        VirtioDriver driver = Attach(new DiskTiming { MeanNanoseconds = 5e6 });
        _ = Sleep();
        ulong start = _machine.Engine.Ticks;
        _ = driver.Read(0, 1);
        driver.Notify();
        Assert.Equal(RunEnd.Exited, Run().End);
        Assert.Equal(1u, driver.InterruptStatus);
        Assert.InRange(_machine.Engine.Ticks - start, 5000 * Microsecond, 5001 * Microsecond);
        Assert.Equal(0, _machine.Vm.Ledger.Count(TrapReason.Kick));
    }

    [Fact]
    public void A_completion_kicks_a_guest_that_runs()
    {
        VirtioDriver driver = Attach(thread: true);
        VirtualMachine vm = Sleep();
        _machine.Engine.Script.Enqueue(cpu =>
        {
            _ = driver.Read(0, 1);
            driver.Notify();
            return new VmExit(VmExitReason.Interrupted);
        });
        _machine.Engine.Script.Enqueue(cpu =>
        {
            // In guest code until the device says something.
            Assert.True(SpinWait.SpinUntil(() => driver.UsedIndex == 1, TimeSpan.FromSeconds(30)));
            return new VmExit(VmExitReason.Interrupted);
        });
        _machine.Engine.Script.Enqueue(cpu => new VmExit(VmExitReason.PrivilegedInstruction));
        Assert.Equal(RunEnd.Exited, Run().End);
        Assert.Equal(1, vm.Interrupts.Acknowledgements[VirtioBlock.InterruptLine]);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void A_guest_that_sleeps_and_is_never_told_is_ended(bool masks)
    {
        VirtioDriver driver = Attach(new DiskTiming { MeanNanoseconds = 1000 });
        _ = Sleep();
        if (masks)
        {
            _machine.Out(0xA1, 0xFF);
            _machine.Out(0x21, 0xFF);
        }
        else
        {
            _machine.Vm.Memory.Write(VirtioDriver.Available, (ushort)1); // NO_INTERRUPT
        }

        _ = driver.Read(0, 1);
        driver.Notify();
        RunOutcome outcome = Run();
        Assert.Equal(RunEnd.Failed, outcome.End);
        Assert.Contains("HLT", outcome.Message, StringComparison.Ordinal);
        Assert.Equal(masks ? 0 : 1, driver.UsedIndex);
    }

    [Fact]
    public void Interrupts_go_straight_to_a_line_that_takes_them_directly()
    {
        var lines = new Dictionary<int, DirectLine>();
        _machine.Dispose();
        _machine = new DiskMachine(
            delivery: InterruptDelivery.Direct,
            thread: true,
            directLine: line => lines[line] = new DirectLine()
        );
        var driver = new VirtioDriver(_machine);
        _ = driver.Read(0, 1);
        driver.Notify();
        Assert.True(
            lines[VirtioBlock.InterruptLine]
                .Raised.Wait(TimeSpan.FromSeconds(30), TestContext.Current.CancellationToken)
        );
        Assert.NotEqual(Environment.CurrentManagedThreadId, lines[VirtioBlock.InterruptLine].Thread);
        Assert.Equal(1u, driver.InterruptStatus);
        driver.Acknowledge();
        Assert.False(lines[VirtioBlock.InterruptLine].Active);

        _machine.Out(0x1F6, 0xE0);
        _machine.Out(0x1F7, 0xE7);
        DirectLine ata = lines[AtaChannel.InterruptLine];
        Assert.True(ata.Raised.Wait(TimeSpan.FromSeconds(30), TestContext.Current.CancellationToken));
        _machine.Pass(); // the exit with which the guest asks
        Assert.True(ata.Active);
        Assert.Equal(0x50, _machine.In(0x1F7));
        Assert.False(ata.Active);
        Assert.Equal(2, _machine.Statistics.Interrupts);
        Assert.Equal(0, _machine.Requests(AtaChannel.InterruptLine));
    }

    private sealed class DirectLine : IInterruptLine
    {
        public ManualResetEventSlim Raised { get; } = new();

        public int Thread { get; private set; }

        public bool Active { get; private set; }

        public void Set(bool active)
        {
            Active = active;
            if (active)
            {
                Thread = Environment.CurrentManagedThreadId;
                Raised.Set();
            }
        }
    }

    [Fact]
    public void What_an_engine_has_derived_from_overwritten_memory_is_seen_before_the_guest_sees_the_completion()
    {
        VirtioDriver driver = Attach(thread: true);
        var observer = new Observer { Cached = VirtioDriver.Data };
        _machine.Vm.Memory.WriteObserver = observer;
        _ = driver.Read(0, 1, slot: 0, data: VirtioDriver.Data + 0x1000);
        driver.Notify();
        Assert.True(SpinWait.SpinUntil(() => driver.UsedIndex == 1, TimeSpan.FromSeconds(30)));

        _ = driver.Read(0, 1, slot: 1);
        driver.Notify();
        Assert.True(SpinWait.SpinUntil(() => _machine.Statistics.Completions == 2, TimeSpan.FromSeconds(30)));
        Assert.True(SpinWait.SpinUntil(() => !_machine.Service.MayYetComplete(), TimeSpan.FromSeconds(30)));
        Assert.Equal(1, driver.UsedIndex);
        Assert.Contains((VirtioDriver.Data, 512UL), observer.Writes);
        _machine.Drain();
        Assert.Equal(2, driver.UsedIndex);
        _machine.Drain();
        Assert.Equal(1u, driver.InterruptStatus);
        _machine.Vm.Memory.WriteObserver = null;
    }

    private sealed class Observer : IMemoryWriteObserver
    {
        public ulong Cached { get; init; }

        public List<(ulong, ulong)> Writes { get; } = [];

        public void MemoryWritten(ulong address, ulong length)
        {
            lock (Writes)
            {
                Writes.Add((address, length));
            }
        }

        public bool Caches(ulong address, ulong length) => address <= Cached && Cached < address + length;
    }

    [Fact]
    public void A_disk_is_attached_once_before_the_guest_runs_and_below_virtio_s_addresses()
    {
        using var storage = new RamStorage(1 << 20);
        Assert.Throws<InvalidOperationException>(() => _machine.Vm.AttachDisk(new Disk(storage)));
        using var large = new VirtualMachine(VirtioBlock.Address + (1 << 20), (cpu, _) => new ScriptedEngine(cpu));
        Assert.Contains(
            "at most 3328 MiB",
            Assert.Throws<DiskUnavailableException>(() => large.AttachDisk(new Disk(storage))).Message,
            StringComparison.Ordinal
        );
    }
}
