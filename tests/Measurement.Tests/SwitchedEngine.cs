using VirtBench.Vmm.Execution;

namespace VirtBench.Measurement.Tests;

/// <summary>Passes everything on to an engine, and asks for the guest to be stopped at every nth entry.</summary>
internal sealed class SwitchedEngine(IExecutionEngine inner, int every, Action stop) : IExecutionEngine
{
    private int _entries;

    public EngineCapabilities Capabilities => inner.Capabilities;

    public IEngineClock Clock => inner.Clock;

    public ulong Deadline
    {
        get => inner.Deadline;
        set => inner.Deadline = value;
    }

    public bool AcceptsInterrupt => inner.AcceptsInterrupt;

    public TranslationStatistics? TranslationStatistics => inner.TranslationStatistics;

    public void AttachThread() => inner.AttachThread();

    public void DetachThread() => inner.DetachThread();

    public VmExit Run()
    {
        Count();
        return inner.Run();
    }

    public VmExit Step()
    {
        Count();
        return inner.Step();
    }

    public void Idle()
    {
        Count();
        inner.Idle();
    }

    private void Count()
    {
        if (++_entries % every == 0)
        {
            stop();
        }
    }

    public void RequestInterruptWindow() => inner.RequestInterruptWindow();

    public void Kick() => inner.Kick();

    public MapResult Map(in ShadowPage page) => inner.Map(page);

    public void AllowInStep(in ShadowPage page) => inner.AllowInStep(page);

    public void SwitchAddressSpace() => inner.SwitchAddressSpace();

    public void InvalidatePage(ulong address) => inner.InvalidatePage(address);

    public void Inject(in Vmm.Cpu.GuestEvent guestEvent) => inner.Inject(guestEvent);

    public void SaveLazyState() => inner.SaveLazyState();

    public void LoadLazyState() => inner.LoadLazyState();

    public void ReadKernelStatistics(Span<ulong> values) => inner.ReadKernelStatistics(values);

    public void Dispose() => inner.Dispose();
}
