using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Execution;

/// <summary>
/// One instruction emulated, or one event delivered, as a whole or not at all: for a VM whose RAM may be absent, so that any
/// access of the VMM's own can find that it has to wait for a page.
/// </summary>
/// <remarks>
/// <list type="bullet">
/// <item>The CPU, RAM and the count of accesses to nothing go back to what they were.</item>
/// <item>The engine hears of changes to paging and lazily held state when they are committed.</item>
/// <item>
/// Devices need no undoing: an instruction accesses one after all frames that it needs have been touched, and a string
/// instruction commits every repetition.
/// </item>
/// </list>
/// </remarks>
public sealed class Transaction : IDisposable
{
    private readonly VirtualCpu _cpu;
    private readonly VirtualCpu _before = new();
    private readonly MemoryTransaction _memory;
    private IExecutionEngine _engine;
    private readonly PhysicalBus _absent;
    private long _unclaimedBefore;
    private bool _switch;
    private ulong? _invalidate;
    private bool _load;

    /// <summary>Creates the transactions of one VM.</summary>
    /// <param name="cpu">The CPU.</param>
    /// <param name="memory">What <see cref="GuestMemory.Attach"/> has returned.</param>
    /// <param name="engine">Told of changes when they are committed.</param>
    /// <param name="absent">What answers where there is no RAM.</param>
    internal Transaction(VirtualCpu cpu, MemoryTransaction memory, IExecutionEngine engine, PhysicalBus absent)
    {
        _cpu = cpu;
        _memory = memory;
        _engine = engine;
        _absent = absent;
    }

    /// <summary>Repetitions of a string instruction that this exit has committed so far.</summary>
    public int Repetitions { get; private set; }

    /// <summary>Opens the transaction of another exit or event.</summary>
    public void Begin()
    {
        Repetitions = 0;
        Open();
    }

    /// <summary>Another engine goes on; the transaction is closed.</summary>
    internal void SwitchEngine(IExecutionEngine engine) => _engine = engine;

    private void Open()
    {
        _before.CopyFrom(_cpu);
        _unclaimedBefore = _absent.UnclaimedAccesses;
        _memory.Begin();
    }

    /// <summary>Makes everything last, and closes the transaction. Does nothing when it is closed.</summary>
    public void Commit()
    {
        if (!_memory.IsOpen)
        {
            return;
        }

        // Closed first: what the engine looks up now is fetched at once.
        _memory.Commit();
        if (_load)
        {
            _load = false;
            _engine.LoadLazyState();
        }

        if (_switch)
        {
            _switch = false;
            _engine.SwitchAddressSpace();
        }

        if (_invalidate is { } address)
        {
            _invalidate = null;
            _engine.InvalidatePage(address);
        }
    }

    /// <summary>One repetition of a string instruction is done and will not be undone; the next may be.</summary>
    public void CommitRepetition()
    {
        Commit();
        Repetitions++;
        Open();
    }

    /// <summary>Undoes everything; the transaction stays open.</summary>
    public void RollBack()
    {
        _memory.RollBack();
        _cpu.CopyFrom(_before);
        _absent.UnclaimedAccesses = _unclaimedBefore;
        _switch = _load = false;
        _invalidate = null;
    }

    /// <summary>See <see cref="IExecutionEngine.SwitchAddressSpace"/>.</summary>
    public void SwitchAddressSpace() => _switch = true;

    /// <summary>See <see cref="IExecutionEngine.InvalidatePage"/>. One instruction invalidates one page.</summary>
    public void InvalidatePage(ulong address) => _invalidate = address;

    /// <summary>See <see cref="IExecutionEngine.SaveLazyState"/>.</summary>
    public void SaveLazyState()
    {
        if (!_load)
        {
            _engine.SaveLazyState();
        }
    }

    /// <summary>See <see cref="IExecutionEngine.LoadLazyState"/>.</summary>
    public void LoadLazyState() => _load = true;

    /// <inheritdoc/>
    public void Dispose() => _before.Dispose();
}
