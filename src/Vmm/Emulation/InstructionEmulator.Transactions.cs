using VirtBench.Vmm.Execution;

namespace VirtBench.Vmm.Emulation;

// What an instruction tells the engine waits for its transaction, where there is one.
public sealed partial class InstructionEmulator
{
    /// <summary>
    /// The transaction that whoever calls has opened and commits; null where no access can find RAM to be absent.
    /// </summary>
    internal Transaction? Transaction { get; set; }

    /// <summary>
    /// Large pages have been mapped in parts, of which an engine would know one by its address: INVLPG drops everything.
    /// </summary>
    internal bool InvalidatesAll { get; set; }

    /// <summary>Another engine goes on; the VM is stopped, so that the old one is owed nothing.</summary>
    internal void SwitchEngine(IExecutionEngine engine) => _engine = engine;

    /// <summary>Repetitions that this exit has done before a page had to be fetched.</summary>
    private int RepetitionsDone => Transaction?.Repetitions ?? 0;

    internal void SwitchAddressSpace()
    {
        if (Transaction is null)
        {
            _engine.SwitchAddressSpace();
        }
        else
        {
            Transaction.SwitchAddressSpace();
        }
    }

    internal void InvalidatePage(ulong address)
    {
        if (InvalidatesAll)
        {
            SwitchAddressSpace();
        }
        else if (Transaction is null)
        {
            _engine.InvalidatePage(address);
        }
        else
        {
            Transaction.InvalidatePage(address);
        }
    }

    private void SaveLazyState()
    {
        if (Transaction is null)
        {
            _engine.SaveLazyState();
        }
        else
        {
            Transaction.SaveLazyState();
        }
    }

    private void LoadLazyState()
    {
        if (Transaction is null)
        {
            _engine.LoadLazyState();
        }
        else
        {
            Transaction.LoadLazyState();
        }
    }
}
