using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Tests;

/// <summary>A VM that goes on under another engine, between two scripted ones.</summary>
public sealed class SwitchEngineTests : IDisposable
{
    private const ulong Code = 0x10_0000;

    private readonly List<ScriptedEngine> _engines = [];
    private readonly VirtualMachine _vm;

    public SwitchEngineTests()
    {
        _vm = new VirtualMachine(4 << 20, Create(1000));
        byte[] exit = [0xE6, 0xF4];
        _vm.Load(new GuestImage("test", Code, [new ImageSegment(Code, exit, 0x1000, true)]), new BootOptions());
    }

    private ScriptedEngine Old => _engines[^2];

    private ScriptedEngine New => _engines[^1];

    public void Dispose() => _vm.Dispose();

    private EngineFactory Create(
        ulong ticks,
        EngineCapabilities? capabilities = null,
        bool loops = false,
        Action<ScriptedEngine>? prepare = null
    ) =>
        (cpu, _) =>
        {
            var engine = new ScriptedEngine(cpu)
            {
                Ticks = ticks,
                LoopsAtEnd = loops,
                Capabilities = capabilities ?? new EngineCapabilities { TimeSource = "computed: script" },
            };
            prepare?.Invoke(engine);
            _engines.Add(engine);
            return engine;
        };

    // Stops at an exit of its own, with nothing left of the script.
    private void StopIn(ScriptedEngine engine, params Func<VirtualCpu, VmExit>[] script)
    {
        using var stop = new CancellationTokenSource();
        foreach (Func<VirtualCpu, VmExit> step in script)
        {
            engine.Script.Enqueue(step);
        }

        engine.Script.Enqueue(_ =>
        {
            stop.Cancel();
            return new VmExit(VmExitReason.Interrupted);
        });
        Assert.Equal(RunEnd.Cancelled, _vm.Run(null, stop.Token).End);
    }

    [Fact]
    public void The_guest_goes_on_under_the_new_engine_and_the_old_one_is_gone()
    {
        StopIn(New);
        _vm.SwitchEngine(Create(77));
        Assert.True(Old.Disposed);
        Assert.Equal("save", Old.Calls[^1]);
        Assert.Contains("load", New.Calls);
        Assert.Contains("switch", New.Calls);
        Assert.Same(New, _vm.Clock);
        Assert.Same(New.Capabilities, _vm.Capabilities);
        Assert.Equal(RunEnd.Exited, _vm.Run(null, TestContext.Current.CancellationToken).End);
        Assert.False(New.Disposed);
    }

    [Fact]
    public void The_old_engines_lazily_held_state_gets_to_the_new_one()
    {
        StopIn(New);
        New.LazyFsBase = 0x1234_5000;
        _vm.SwitchEngine(Create(0));
        Assert.Equal(0x1234_5000UL, _vm.Cpu.Fs.Base);
        Assert.Equal(["load", "switch"], New.Calls);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1_000_000_000_000)]
    public void The_guests_time_stamp_counter_goes_on(ulong ticks)
    {
        _vm.Cpu.TscOffset = 500;
        StopIn(New);
        ulong before = New.Ticks + _vm.Cpu.TscOffset;
        _vm.SwitchEngine(Create(ticks));
        Assert.Equal(before, New.Ticks + _vm.Cpu.TscOffset);
    }

    [Fact]
    public void What_the_emulator_tells_and_asks_goes_to_the_new_engine()
    {
        StopIn(New);
        _vm.SwitchEngine(Create(40_000));
        int told = Old.Calls.Count;
        byte[] code = [0x0F, 0x20, 0xD8, 0x0F, 0x22, 0xD8, 0x0F, 0x01, 0x3F, 0x0F, 0x31, 0xE6, 0xF4];
        _vm.Memory.Write(Code, code); // mov rax,cr3; mov cr3,rax; invlpg [rdi]; rdtsc; out 0xF4, al
        New.Calls.Clear();
        Assert.Equal(RunEnd.Exited, _vm.Run(null, TestContext.Current.CancellationToken).End);
        Assert.Equal(told, Old.Calls.Count);
        Assert.Equal(["switch", $"invalidate {_vm.Cpu[Gpr.Rdi]:X}", "save"], New.Calls);
        Assert.InRange(_vm.Cpu.Rax, 1000UL, 2000UL); // where the old engine's clock was, and a little
    }

    [Fact]
    public void The_new_engine_is_told_of_the_timers_next_event_on_its_own_clock()
    {
        foreach ((ushort port, uint value) in ((ushort, uint)[])[(0x43, 0x34), (0x40, 0x10), (0x40, 0x27)])
        {
            _vm.Ports.Write(port, 1, value, 0);
        }

        StopIn(New);
        ulong left = New.Deadline - New.Ticks;
        Assert.NotEqual(ulong.MaxValue, New.Deadline);
        _vm.SwitchEngine(Create(1_000_000));
        StopIn(New);
        Assert.InRange(New.Deadlines[0] - 1_000_000, left - 2, left);
    }

    [Fact]
    public void A_halted_guest_sleeps_on_and_is_woken_under_the_new_engine()
    {
        const ulong idt = 0x14_0000;
        const ulong handler = Code;
        foreach (
            (ushort port, uint value) in ((ushort, uint)[])
                [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x43, 0x30), (0x40, 0x10), (0x40, 0x27)]
        )
        {
            _vm.Ports.Write(port, 1, value, 0);
        }

        _vm.Memory.Write(idt + (16 * 0x20), (handler & 0xFFFF) | (8UL << 16) | (0x8EUL << 40) | (handler >> 16 << 48));
        _vm.Cpu.Idtr = new DescriptorTable(idt, 0x2FF);
        _vm.Cpu.Rflags |= Rflags.If;
        _vm.Cpu.Halted = true;
        Assert.Equal(RunEnd.Cancelled, _vm.Run(null, new CancellationToken(canceled: true)).End);
        Assert.True(_vm.Cpu.Halted);
        _vm.SwitchEngine(Create(0));
        Assert.True(_vm.Cpu.Halted);
        Assert.Equal(RunEnd.Exited, _vm.Run(null, TestContext.Current.CancellationToken).End);
        Assert.Equal(1, _vm.Interrupts.Acknowledgements[IntervalTimer.Line]);
        Assert.Contains("idle", New.Calls);
    }

    [Fact]
    public void An_interrupt_shadow_goes_on()
    {
        StopIn(New);
        _vm.Cpu.InterruptShadow = true;
        _vm.SwitchEngine(Create(0));
        Assert.True(_vm.Cpu.InterruptShadow);
    }

    [Fact]
    public void An_event_that_is_pending_is_delivered_under_the_new_engine()
    {
        EngineCapabilities delivering = new() { TimeSource = "computed: script", DeliversEvents = true };
        StopIn(New);
        _vm.Cpu.PendingEvent = GuestEvent.Exception(Vector.InvalidOpcode);
        _vm.SwitchEngine(Create(0, delivering));
        StopIn(New);
        Assert.Equal([GuestEvent.Exception(Vector.InvalidOpcode)], New.Injected);
    }

    [Fact]
    public void A_measured_region_that_is_open_adds_up_its_times_and_has_no_engines_account()
    {
        EngineCapabilities counting = new() { TimeSource = "computed: script", KernelStatistics = ["exits"] };
        _vm.SwitchEngine(Create(0, counting, prepare: engine => engine.KernelCounters = [9]));
        _vm.Ports.Write(MeasurementPorts.Begin, 4, 1, 0);
        New.Ticks += 1000;
        _vm.SwitchEngine(Create(5_000_000, counting, prepare: engine => engine.KernelCounters = [3]));
        New.Ticks += 200;
        _vm.SwitchEngine(Create(7, counting, prepare: engine => engine.KernelCounters = [0]));
        New.Ticks += 30;
        _vm.Ports.Write(MeasurementPorts.End, 4, 1, 0);
        MeasuredRegion region = Assert.Single(_vm.Regions);
        Assert.Equal((1230UL, 615.0), (region.TscTicks, region.ElapsedNanoseconds));
        Assert.Null(region.KernelStatistics);
        _vm.Ports.Write(MeasurementPorts.Begin, 4, 2, 0);
        New.Ticks += 4;
        _vm.Ports.Write(MeasurementPorts.End, 4, 1, 0);
        Assert.Equal((4UL, 0UL), (_vm.Regions[1].TscTicks, _vm.Regions[1].KernelStatistics!.Values[0]));
    }

    [Fact]
    public void An_engine_that_cannot_be_created_leaves_the_old_one()
    {
        StopIn(New);
        var refusal = new PlatformNotSupportedException("not here");
        Assert.Same(refusal, Record.Exception(() => _vm.SwitchEngine((_, _) => throw refusal)));
        Assert.False(New.Disposed);
        Assert.Equal(RunEnd.Exited, _vm.Run(null, TestContext.Current.CancellationToken).End);
    }

    [Fact]
    public void A_running_guest_keeps_its_engine()
    {
        Exception? refused = null;
        StopIn(
            New,
            _ =>
            {
                refused = Record.Exception(() => _vm.SwitchEngine(Create(0)));
                return new VmExit(VmExitReason.Interrupted);
            }
        );
        Assert.IsType<InvalidOperationException>(refused);
        Assert.Single(_engines);
    }

    [Fact]
    public void A_guest_whose_engine_has_failed_has_no_state_to_go_on_from_until_it_is_loaded_anew()
    {
        New.Script.Enqueue(_ => new VmExit(VmExitReason.Failed, Message: "it burnt down"));
        Assert.Equal(RunEnd.Failed, _vm.Run(null, TestContext.Current.CancellationToken).End);
        InvalidOperationException refused = Assert.Throws<InvalidOperationException>(() => _vm.SwitchEngine(Create(0)));
        Assert.Contains("it burnt down", refused.Message, StringComparison.Ordinal);
        _vm.Load(new GuestImage("test", Code, [new ImageSegment(Code, new byte[1], 0x1000, true)]), new BootOptions());
        _vm.SwitchEngine(Create(0));
        Assert.True(Old.Disposed);
    }

    [Fact]
    public void A_late_kick_for_the_old_engine_disturbs_nobody()
    {
        using var stop = new CancellationTokenSource();
        StopIn(New);
        _vm.SwitchEngine(Create(0));
        Old.Kick();
        Assert.Equal(RunEnd.Exited, _vm.Run(null, stop.Token).End);
    }

    [Fact]
    public void With_a_pager_what_a_transaction_holds_back_reaches_the_new_engine()
    {
        byte[] code = [0x0F, 0x20, 0xD8, 0x0F, 0x22, 0xD8, 0xE6, 0xF4]; // mov rax,cr3; mov cr3,rax; out 0xF4, al
        _vm.Memory.Write(Code, code);
        byte[] elsewhere = new byte[_vm.Memory.Size];
        _vm.Memory.Read(0, elsewhere);
        var pager = new DeferredPager(
            _vm.Memory,
            (frame, page) => elsewhere.AsSpan((int)(frame * GuestMemory.PageSize), page.Length).CopyTo(page)
        );
        _vm.AttachPager(pager);
        StopIn(New);
        _vm.SwitchEngine(Create(0));
        int told = Old.Calls.Count;
        New.Calls.Clear();
        Assert.Equal(RunEnd.Exited, _vm.Run(null, TestContext.Current.CancellationToken).End);
        Assert.Equal(told, Old.Calls.Count);
        Assert.Equal(["switch", "save"], New.Calls);
        Assert.True(pager.Fetched > 0);
    }
}
