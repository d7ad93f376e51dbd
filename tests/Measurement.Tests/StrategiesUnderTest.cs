using VirtBench.Strategies;

namespace VirtBench.Measurement.Tests;

/// <summary>Real strategies; a test that needs one this host has not is skipped with the strategy's own reason.</summary>
internal static class StrategiesUnderTest
{
    public static IEnumerable<string> All => StrategyCatalog.All.Select(strategy => strategy.Id);

    public static IEnumerable<string> Privileged =>
        StrategyCatalog.All.Where(strategy => strategy.RunsPrivilegedGuests).Select(strategy => strategy.Id);

    public static IEnumerable<Strategy> Available() =>
        StrategyCatalog.All.Where(strategy => strategy.UnavailableReason() is null);

    public static Strategy Get(string id)
    {
        Strategy strategy = StrategyCatalog.Find(id)!;
        Assert.SkipWhen(strategy.UnavailableReason() is not null, strategy.UnavailableReason() ?? "");
        return strategy;
    }
}
