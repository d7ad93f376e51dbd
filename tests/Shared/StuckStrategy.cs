using VirtBench.Strategies;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Tests;

/// <summary>
/// A strategy whose engine stays in <see cref="IExecutionEngine.Run"/> until the test lets it go: kicked or not, as a host
/// kernel does that never returns from an instruction. With <see cref="HeedsKicks"/> it comes back as others do.
/// </summary>
internal sealed class StuckStrategy : Strategy, IExecutionEngine, IEngineClock
{
    private readonly ManualResetEventSlim _kicked = new();
    private readonly List<uint[]> _written = [];

    public override string Id => "stuck";

    public override string Description => "scripted";

    public override string Label => "Stuck";

    public override bool IsSimulated => false;

    public override bool RunsPrivilegedGuests => true;

    public bool HeedsKicks { get; init; }

    /// <summary>What the engine does before it sticks, on the vCPU thread.</summary>
    public Action Before { get; init; } = () => { };

    /// <summary>What the guest's exit is when the engine is let go.</summary>
    public Func<VmExit> After { get; init; } = () => new VmExit(VmExitReason.Interrupted);

    /// <summary>Set once guest code is running.</summary>
    public ManualResetEventSlim Inside { get; } = new();

    /// <summary>Lets the engine go.</summary>
    public ManualResetEventSlim LetGo { get; } = new();

    /// <summary>Set when the vCPU thread has left the engine for good.</summary>
    public ManualResetEventSlim Detached { get; } = new();

    public bool Disposed { get; private set; }

    /// <summary>What the host's kernel has counted by now, by <see cref="EngineCapabilities.KernelStatistics"/>.</summary>
    public ulong[] Counters { get; init; } = [];

    public EngineCapabilities Capabilities { get; init; } = new() { TimeSource = "measured: scripted" };

    public IEngineClock Clock => this;

    public ulong Ticks => 0;

    public double TicksPerSecond => 1e9;

    public double Nanoseconds => 0;

    public override string? UnavailableReason() => null;

    public override IExecutionEngine CreateEngine(VirtualCpu cpu, GuestMemory memory) => this;

    public VmExit Run()
    {
        Before();
        Inside.Set();
        (HeedsKicks ? _kicked : LetGo).Wait();
        return After();
    }

    /// <summary>The exit of a doubleword or byte written to a port.</summary>
    public unsafe VmExit Out(ushort port, uint value, byte size = 4)
    {
        uint[] data = GC.AllocateArray<uint>(1, pinned: true);
        data[0] = value;
        _written.Add(data);
        fixed (uint* address = data)
        {
            return new VmExit(
                VmExitReason.PortIo,
                Address: port,
                Access: PageAccess.Write,
                Size: size,
                Count: 1,
                Data: (nint)address
            );
        }
    }

    public void ReadKernelStatistics(Span<ulong> values) => Counters.CopyTo(values);

    /// <summary>Whether the engine takes an observer of translated blocks.</summary>
    public bool ShowsTranslation { get; init; }

    /// <summary>The one it was given last.</summary>
    public ITranslationObserver? Observer { get; private set; }

    public bool ObserveTranslation(ITranslationObserver? observer)
    {
        Observer = observer;
        return ShowsTranslation;
    }

    public void Kick() => _kicked.Set();

    public void ChargeEmulation(TrapReason reason) { }

    public ulong Deadline { get; set; }

    public void Idle() { }

    public MapResult Map(in ShadowPage page) => MapResult.Mapped;

    public void SwitchAddressSpace() { }

    public void InvalidatePage(ulong address) { }

    public void SaveLazyState() { }

    public void LoadLazyState() { }

    public void DetachThread() => Detached.Set();

    public void Dispose() => Disposed = true;
}
