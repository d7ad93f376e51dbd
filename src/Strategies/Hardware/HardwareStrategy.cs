using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Hardware;

/// <summary>Hardware assist: VT-x or AMD-V, or whatever else stands behind /dev/kvm, which the label then says.</summary>
public sealed class HardwareStrategy : Strategy
{
    /// <inheritdoc/>
    public override string Id => "hardware";

    /// <inheritdoc/>
    public override string Label =>
        KvmHost.Current switch
        {
            { Access: not KvmAccess.Usable } => "Hardware",
            { RingZero: RingZeroExecution.Emulated } host => $"Hardware ({host.Module ?? "kvm"}: not VT-x)",
            { NestedPaging: false } host => $"Hardware ({host.Module ?? "kvm"}, shadow paging)",
            var host => $"Hardware ({host.Module ?? "kvm"})",
        };

    /// <inheritdoc/>
    public override string Description =>
        KvmHost.Current.Label is { } label
            ? $"guest code of every ring by KVM_RUN, {label}"
            : "guest code of every ring in the CPU's guest mode, by VT-x or AMD-V through /dev/kvm";

    /// <inheritdoc/>
    public override bool IsSimulated => false;

    /// <inheritdoc/>
    public override bool RunsPrivilegedGuests => true;

    /// <inheritdoc/>
    public override bool EmulatesRingZero => KvmHost.Current.RingZero == RingZeroExecution.Emulated;

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
                TimeSource = $"measured on this host {host.Label}",
            },
            kernelInterrupts: delivery == InterruptDelivery.Direct
        );
    }
}
