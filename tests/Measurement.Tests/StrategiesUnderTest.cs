using VirtBench.Strategies;
using VirtBench.Strategies.Simulation;

namespace VirtBench.Measurement.Tests;

/// <summary>Real strategies; a test that needs one this host has not is skipped with the strategy's own reason.</summary>
internal static class StrategiesUnderTest
{
    private static readonly Strategy[] Known =
    [
        .. StrategyCatalog
            .All.Append(new SimulatedTrapAndEmulateStrategy())
            .Append(new SimulatedNativeStrategy())
            .DistinctBy(strategy => strategy.Id),
    ];

    public static IEnumerable<string> All => Known.Select(strategy => strategy.Id);

    public static IEnumerable<string> Privileged =>
        Known.Where(strategy => strategy.RunsPrivilegedGuests).Select(strategy => strategy.Id);

    public static IEnumerable<Strategy> Available() => Known.Where(strategy => strategy.UnavailableReason() is null);

    public static Strategy Get(string id)
    {
        Strategy strategy = Known.Single(candidate => candidate.Id == id);
        Assert.SkipWhen(strategy.UnavailableReason() is not null, strategy.UnavailableReason() ?? "");
        return strategy;
    }
}
