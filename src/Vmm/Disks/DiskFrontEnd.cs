using VirtBench.Vmm.Interrupts;

namespace VirtBench.Vmm.Disks;

/// <summary>
/// One of the interfaces that a disk has to its guest. Its registers belong to the vCPU thread; what the service's context does is
/// named so, and happens with <see cref="DiskService.Gate"/> held.
/// </summary>
internal abstract class DiskFrontEnd(DiskService service, int line, IInterruptLine output)
{
    /// <summary>Coalesced: an interrupt is held back until so many completions wait for it…</summary>
    public const int CoalescedCompletions = 8;

    /// <summary>… or so many nanoseconds have passed since the first of them.</summary>
    public const double CoalescedNanoseconds = 100_000;

    private readonly Lock _lineGate = new();
    private bool _active;
    private int _held;

    /// <summary>The service.</summary>
    protected DiskService Service { get; } = service;

    /// <summary>Number of the interrupt line.</summary>
    public int Line { get; } = line;

    /// <summary>Times that the line rose.</summary>
    public long Interrupts { get; private set; }

    /// <summary>Coalesced: clock ticks until which an interrupt is held back.</summary>
    public ulong HoldUntil { get; private set; } = ulong.MaxValue;

    /// <summary>Service: takes over requests that lie in guest memory. Whoever adds more need not say so for now.</summary>
    public virtual void Take() { }

    /// <summary>Service: there is nothing left to do; from now on the guest has to say when there is.</summary>
    /// <returns>False when there is something after all.</returns>
    public virtual bool AllowNotifications() => true;

    /// <summary>Service: the request is over.</summary>
    /// <returns>Whether the guest can see that, so that it may be told by an interrupt.</returns>
    public abstract bool Complete(DiskRequest request);

    /// <summary>Service: raises the interrupt for what has been completed, if the guest wants one.</summary>
    public abstract void Release();

    /// <summary>vCPU thread: takes over what the service has posted.</summary>
    public abstract void Drain();

    /// <summary>Service: one more completion is to be told of.</summary>
    /// <param name="now">Clock ticks.</param>
    public void Completed(ulong now)
    {
        if (Service.Delivery != InterruptDelivery.Coalesced)
        {
            Release();
        }
        else if (++_held >= CoalescedCompletions)
        {
            ReleaseHeld();
        }
        else if (_held == 1)
        {
            HoldUntil = now + Service.TicksOf(CoalescedNanoseconds);
        }
    }

    /// <summary>Service: no longer holds the interrupt back.</summary>
    public void ReleaseHeld()
    {
        Forget();
        Release();
    }

    /// <summary>The device has been reset: nothing waits to be told.</summary>
    protected void Forget()
    {
        _held = 0;
        HoldUntil = ulong.MaxValue;
    }

    /// <summary>Another clock.</summary>
    public void SwitchClock(Func<ulong, ulong> convert)
    {
        if (HoldUntil != ulong.MaxValue)
        {
            HoldUntil = convert(HoldUntil);
        }
    }

    /// <summary>
    /// The one place that drives the interrupt line; see <see cref="IInterruptLine"/> for the threads that come here.
    /// </summary>
    protected void Drive(bool active)
    {
        lock (_lineGate)
        {
            if (active != _active)
            {
                _active = active;
                Interrupts += active ? 1 : 0;
                output.Set(active);
            }
        }
    }
}
