using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;

namespace VirtBench.Vmm.Tests;

/// <summary>
/// An engine that executes nothing: it returns the exits it is told to, in order, and notes what the core asks of it. With
/// the script at its end it exits for every instruction.
/// </summary>
internal sealed class ScriptedEngine(VirtualCpu cpu) : IExecutionEngine, IEngineClock
{
    private int _kicked;

    public Queue<Func<VirtualCpu, VmExit>> Script { get; } = new();

    public List<string> Calls { get; } = [];

    public List<ShadowPage> Mapped { get; } = [];

    public string? MapRefusal { get; set; }

    public bool Disposed { get; private set; }

    /// <summary>When the script is over: block until a kick, as a guest that loops would.</summary>
    public bool LoopsAtEnd { get; set; }

    public ManualResetEventSlim Looping { get; } = new();

    public EngineCapabilities Capabilities { get; init; } = new() { TimeSource = "computed: script" };

    public List<GuestEvent> Injected { get; } = [];

    /// <summary>What the next reading of the kernel's counters gives.</summary>
    public ulong[] KernelCounters { get; set; } = [];

    public IEngineClock Clock => UsesHostClock ? HostClock.Instance : this;

    /// <summary>Time is the host's instead of the script's.</summary>
    public bool UsesHostClock { get; init; }

    public ulong Ticks { get; set; } = 1000;

    public double TicksPerSecond => 2e9;

    public double Nanoseconds => Ticks / 2.0;

    public void ChargeEmulation(TrapReason reason) => Ticks += 10;

    public VmExit Run()
    {
        if (Interlocked.Exchange(ref _kicked, 0) != 0)
        {
            return new VmExit(VmExitReason.Interrupted);
        }

        if (Script.TryDequeue(out Func<VirtualCpu, VmExit>? step))
        {
            return step(cpu);
        }

        if (!LoopsAtEnd)
        {
            return new VmExit(VmExitReason.PrivilegedInstruction);
        }

        Looping.Set();
        SpinWait.SpinUntil(() => Volatile.Read(ref _kicked) != 0);
        return Run();
    }

    public void Kick() => Volatile.Write(ref _kicked, 1);

    /// <summary>Each deadline that the core has set.</summary>
    public List<ulong> Deadlines { get; } = [];

    public ulong Deadline
    {
        get => Deadlines.Count == 0 ? ulong.MaxValue : Deadlines[^1];
        set => Deadlines.Add(value);
    }

    /// <summary>As on a computed clock: the time until the deadline passes at once.</summary>
    public void Idle()
    {
        Calls.Add("idle");
        if (Interlocked.Exchange(ref _kicked, 0) == 0 && Deadline != ulong.MaxValue)
        {
            Ticks = Math.Max(Ticks, Deadline);
        }
    }

    public VmExit Step()
    {
        Calls.Add("step");
        return Run();
    }

    /// <summary>What <see cref="AcceptsInterrupt"/> says.</summary>
    public bool AcceptsInterrupt { get; set; } = true;

    public void RequestInterruptWindow() => Calls.Add("window");

    public void AllowInStep(in ShadowPage page) => Calls.Add($"allow 0x{page.Address:X}");

    public MapResult? MapAnswer { get; set; }

    public MapResult Map(in ShadowPage page)
    {
        Mapped.Add(page);
        return MapAnswer ?? (MapRefusal is { } message ? MapResult.Refused(message) : MapResult.Mapped);
    }

    public void Inject(in GuestEvent guestEvent) => Injected.Add(guestEvent);

    public void ReadKernelStatistics(Span<ulong> values) => KernelCounters.AsSpan().CopyTo(values);

    public void SwitchAddressSpace() => Calls.Add("switch");

    public void InvalidatePage(ulong address) => Calls.Add($"invalidate {address:X}");

    /// <summary>The FS base as guest code has left it, when the core has not been told.</summary>
    public ulong? LazyFsBase { get; set; }

    public void SaveLazyState()
    {
        Calls.Add("save");
        cpu.Fs = cpu.Fs with { Base = LazyFsBase ?? cpu.Fs.Base };
    }

    public void LoadLazyState() => Calls.Add("load");

    public void Dispose() => Disposed = true;
}
