using VirtBench.Strategies.BinaryTranslation;
using VirtBench.Strategies.Hardware;
using VirtBench.Strategies.Shadow;
using VirtBench.Strategies.Simulation;
using VirtBench.Strategies.TrapAndEmulate;
using VirtBench.Vmm.Interrupts;

namespace VirtBench.Strategies;

/// <summary>Every strategy there is, in the order in which lists and figures show them.</summary>
public static class StrategyCatalog
{
    /// <summary>All of them, whether this host can run them or not.</summary>
    public static IReadOnlyList<Strategy> All { get; } = With(CostProfile.Textbook);

    /// <summary>All of them, the simulated ones with this cost profile, trap-and-emulate with this policy of shadow paging.</summary>
    public static IReadOnlyList<Strategy> With(CostProfile profile, ShadowPaging? shadow = null) =>
        [
            new NativeStrategy(),
            shadow is { } policy ? new TrapAndEmulateStrategy { Shadow = policy } : new TrapAndEmulateStrategy(),
            new BinaryTranslationStrategy(),
            new ParavirtualStrategy(),
            new HardwareStrategy(),
            new HardwareParavirtualStrategy(),
            new SimulatedNativeStrategy(profile),
            new SimulatedTrapAndEmulateStrategy(profile),
            new SimulatedBinaryTranslationStrategy(profile),
            new SimulatedParavirtualStrategy(profile),
        ];

    /// <summary>
    /// The strategies with each of these ways of delivering device interrupts, in the order of the strategies; what cannot deliver so says why.
    /// </summary>
    public static IReadOnlyList<Strategy> Delivering(
        IReadOnlyList<Strategy> strategies,
        IReadOnlyList<InterruptDelivery> deliveries
    ) =>
        [
            .. strategies.SelectMany(strategy =>
                deliveries.Select(delivery =>
                    delivery == InterruptDelivery.Exit ? strategy : new StrategyWithDelivery(strategy, delivery)
                )
            ),
        ];

    /// <summary>The strategy with this id, or null.</summary>
    public static Strategy? Find(string id) => All.FirstOrDefault(strategy => strategy.Id == id);
}
