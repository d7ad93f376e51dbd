using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Strategies.Hardware;

/// <summary>What the strategies have in common whose guests run by /dev/kvm.</summary>
public abstract class KvmStrategy : Strategy
{
    /// <inheritdoc/>
    public override string Label =>
        KvmHost.Current switch
        {
            { Access: not KvmAccess.Usable } => Name,
            { RingZero: RingZeroExecution.Emulated } host => $"{Name} ({host.Module ?? "kvm"}: not VT-x)",
            { NestedPaging: false } host => $"{Name} ({host.Module ?? "kvm"}, shadow paging)",
            var host => $"{Name} ({host.Module ?? "kvm"})",
        };

    /// <inheritdoc/>
    public override bool IsSimulated => false;

    /// <inheritdoc/>
    public override bool RunsPrivilegedGuests => true;

    /// <inheritdoc/>
    public override bool EmulatesRingZero => KvmHost.Current.RingZero == RingZeroExecution.Emulated;

    /// <summary>The label without what stands behind /dev/kvm.</summary>
    private protected abstract string Name { get; }

    /// <inheritdoc/>
    public override string? UnavailableReason() => KvmHost.Current.UnavailableReason;

    /// <inheritdoc/>
    public override string? WhyNotDelivered(InterruptDelivery delivery) =>
        delivery == InterruptDelivery.Direct ? KernelInterruptProbe.WhyNot : null;

    /// <inheritdoc/>
    public override IExecutionEngine CreateEngine(VirtualCpu cpu, GuestMemory memory) =>
        CreateEngine(cpu, memory, InterruptDelivery.Exit);

    /// <inheritdoc/>
    public override IExecutionEngine CreateEngine(VirtualCpu cpu, GuestMemory memory, InterruptDelivery delivery)
    {
        KvmHost host = KvmHost.Current;
        if (!OperatingSystem.IsLinux() || host.UnavailableReason is not null)
        {
            throw new PlatformNotSupportedException(host.UnavailableReason);
        }

        bool paravirtual = Interface == GuestInterface.Paravirtual;
        string? ownClock = paravirtual ? KvmClock.WhyNotKept : null;
        return new HardwareEngine(
            cpu,
            memory,
            host.Module ?? "kvm",
            new EngineCapabilities
            {
                Holes = HardwareHoles.Of(host),
                TrapsTimeStampCounter = false,
                TrapsPrivilegedInstructions = false,
                DeliversEvents = true,
                Paging = host.Paging,
                TimeSource =
                    $"measured on this host {host.Label}"
                    + (
                        !paravirtual ? ""
                        : ownClock is null ? "; paravirtual clock by KVM"
                        : $"; paravirtual clock by the VMM, since {ownClock}"
                    ),
            },
            keepsClock: paravirtual && ownClock is null,
            kernelInterrupts: delivery == InterruptDelivery.Direct && !paravirtual, // whose guest looks for itself
            nestedPaging: host.NestedPaging == true
        );
    }
}

/// <summary>Hardware assist: VT-x or AMD-V, or whatever else stands behind /dev/kvm, which the label then says.</summary>
public sealed class HardwareStrategy : KvmStrategy
{
    /// <inheritdoc/>
    public override string Id => "hardware";

    /// <inheritdoc/>
    public override string Description =>
        KvmHost.Current.Label is { } label
            ? $"guest code of every ring by KVM_RUN, {label}"
            : "guest code of every ring in the CPU's guest mode, by VT-x or AMD-V through /dev/kvm";

    /// <inheritdoc/>
    private protected override string Name => "Hardware";
}

/// <summary>
/// The same for guests of the paravirtual interface. What ring 0 can do on the hardware it does itself; hypercalls that the VMM has to serve
/// leave by a port.
/// </summary>
public sealed class HardwareParavirtualStrategy : KvmStrategy
{
    /// <inheritdoc/>
    public override string Id => "hardware-paravirtual";

    /// <inheritdoc/>
    public override string Description =>
        KvmHost.Current.Label is { } label
            ? $"paravirtual guest by KVM_RUN, hypercalls by a port, {label}"
            : "paravirtual guest in the CPU's guest mode, hypercalls by a port, by VT-x or AMD-V through /dev/kvm";

    /// <inheritdoc/>
    public override GuestInterface Interface => GuestInterface.Paravirtual;

    /// <inheritdoc/>
    public override string? WhyNotDelivered(InterruptDelivery delivery) => null;

    /// <inheritdoc/>
    private protected override string Name => "Hardware paravirtual";
}
