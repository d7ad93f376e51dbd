namespace VirtBench.Vmm.Interrupts;

/// <summary>A device to which something happens at a time of its own, not only when the guest asks.</summary>
public interface ITimer
{
    /// <summary>Clock ticks of its next event; <see cref="ulong.MaxValue"/> when there is none to come.</summary>
    ulong NextEvent { get; }

    /// <summary>Lets everything happen that is due at <paramref name="now"/>, in clock ticks.</summary>
    void Advance(ulong now);
}
