using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Strategies;

/// <summary>An execution engine together with the interface that guests are built for: what a sweep compares.</summary>
public abstract class Strategy
{
    /// <summary>Stable id used on the command line and in files.</summary>
    public abstract string Id { get; }

    /// <summary>One line for <c>virtbench list</c>.</summary>
    public abstract string Description { get; }

    /// <summary>Short label for figures and tables.</summary>
    public abstract string Label { get; }

    /// <summary>True when times are computed from a cost model by the simulated CPU.</summary>
    public abstract bool IsSimulated { get; }

    /// <summary>True when the guest's ring-0 instructions work under this strategy; false for <c>native</c>.</summary>
    public abstract bool RunsPrivilegedGuests { get; }

    /// <summary>
    /// True when guest ring 0 runs in an emulator of instructions on this host: measured times are the emulator's, and a unit
    /// of work takes some thousand times as long.
    /// </summary>
    public virtual bool EmulatesRingZero => false;

    /// <summary>The strategy that this one varies; itself where it is none but its own.</summary>
    public virtual Strategy Basis => this;

    /// <summary>How it delivers device interrupts.</summary>
    public virtual InterruptDelivery Delivery => InterruptDelivery.Exit;

    /// <summary>What its guests are built for.</summary>
    public virtual GuestInterface Interface => GuestInterface.Native;

    /// <summary>
    /// Why device interrupts cannot be delivered so under this strategy, in one line; null when they can. Asked only when
    /// <see cref="UnavailableReason"/> is null.
    /// </summary>
    public virtual string? WhyNotDelivered(InterruptDelivery delivery) =>
        delivery == InterruptDelivery.Direct
            ? $"{Id} has no way to a running guest but through an exit: neither does its guest's code look for interrupts, nor does the host's kernel deliver them"
            : null;

    /// <summary>Why this host cannot run the strategy, in one line that says what to do; null when it can.</summary>
    public abstract string? UnavailableReason();

    /// <summary>Creates an engine for one VM. Call only when <see cref="UnavailableReason"/> is null.</summary>
    public abstract IExecutionEngine CreateEngine(VirtualCpu cpu, GuestMemory memory);

    /// <summary>
    /// As <see cref="CreateEngine(VirtualCpu, GuestMemory)"/>, for a way of delivering device interrupts that
    /// <see cref="WhyNotDelivered"/> has nothing against.
    /// </summary>
    public virtual IExecutionEngine CreateEngine(VirtualCpu cpu, GuestMemory memory, InterruptDelivery delivery) =>
        CreateEngine(cpu, memory);
}
