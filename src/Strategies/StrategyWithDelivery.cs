using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Strategies;

/// <summary>
/// A strategy with another way of delivering device interrupts than by exits: a strategy of its own to a sweep, whose id is that of the one it
/// varies, a plus sign and the way.
/// </summary>
/// <param name="strategy">What it varies.</param>
/// <param name="delivery">The way.</param>
public sealed class StrategyWithDelivery(Strategy strategy, InterruptDelivery delivery) : Strategy
{
    /// <inheritdoc/>
    public override Strategy Basis => strategy;

    /// <inheritdoc/>
    public override InterruptDelivery Delivery => delivery;

    /// <inheritdoc/>
    public override string Id => IdOf(strategy.Id, delivery);

    /// <inheritdoc/>
    public override string Description => $"{strategy.Description}; device interrupts {Words}";

    /// <inheritdoc/>
    public override string Label => $"{strategy.Label}, interrupts {Words}";

    private string Words => delivery == InterruptDelivery.Direct ? "delivered directly" : delivery.Name();

    /// <inheritdoc/>
    public override bool IsSimulated => strategy.IsSimulated;

    /// <inheritdoc/>
    public override bool RunsPrivilegedGuests => strategy.RunsPrivilegedGuests;

    /// <inheritdoc/>
    public override bool EmulatesRingZero => strategy.EmulatesRingZero;

    /// <inheritdoc/>
    public override GuestInterface Interface => strategy.Interface;

    /// <inheritdoc/>
    public override string? UnavailableReason() => strategy.UnavailableReason() ?? strategy.WhyNotDelivered(delivery);

    /// <inheritdoc/>
    public override string? WhyNotDelivered(InterruptDelivery delivery) => strategy.WhyNotDelivered(delivery);

    /// <inheritdoc/>
    public override IExecutionEngine CreateEngine(VirtualCpu cpu, GuestMemory memory) =>
        strategy.CreateEngine(cpu, memory, delivery);

    /// <summary>The id of a strategy with a way of delivery; that of the strategy itself for exits.</summary>
    public static string IdOf(string strategy, InterruptDelivery delivery) =>
        delivery == InterruptDelivery.Exit ? strategy : $"{strategy}{Separator}{delivery.Name()}";

    /// <summary>The id of the strategy that is varied; the id itself for one that is not.</summary>
    public static string BasisOf(string id) => id.Split(Separator)[0];

    private const char Separator = '+';
}
