using System.Runtime.Versioning;
using BenchmarkDotNet.Attributes;
using VirtBench.Strategies;
using VirtBench.Vmm.Interrupts;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>
/// What an interrupt takes from the thread that raises it to the guest's handler, while the guest computes. The table that follows the suite
/// (<see cref="InterruptLatency"/>) has every strategy and way of delivery, and tails.
/// </summary>
[Config(typeof(InProcessConfiguration))]
[SupportedOSPlatform("linux")]
public class InterruptDeliveryBenchmarks : IDisposable
{
    private InterruptedGuest? _guest;

    /// <summary>How interrupts reach the guest.</summary>
    [Params(InterruptDelivery.Exit, InterruptDelivery.Direct)]
    public InterruptDelivery Delivery { get; set; }

    /// <summary>Boots the guest.</summary>
    [GlobalSetup]
    public void SetUp() =>
        _guest = new InterruptedGuest(
            InterruptLatency.With(StrategyCatalog.Find("binary-translation")!, Delivery),
            asleep: false
        );

    /// <summary>From the raising of the line until the handler has counted it.</summary>
    [Benchmark]
    public void Pulse() => _guest!.Pulse();

    /// <summary>Ends the guest.</summary>
    [GlobalCleanup]
    public void Dispose()
    {
        _guest?.Dispose();
        GC.SuppressFinalize(this);
    }
}

/// <summary>
/// Interrupts by each strategy and way of delivery that runs here on the host's clock: how many a second one after the other, exits for each, how
/// long from the raising to the handler, and how many needed no exit.
/// </summary>
[SupportedOSPlatform("linux")]
internal static class InterruptLatency
{
    private const int Samples = 2000;
    private const int SamplesWhereEmulated = 200;
    private const int WarmUp = 100;

    /// <summary>A strategy that delivers that way.</summary>
    public static Strategy With(Strategy strategy, InterruptDelivery delivery) =>
        delivery == InterruptDelivery.Exit ? strategy : new StrategyWithDelivery(strategy, delivery);

    /// <summary>Measures and prints one line per strategy and way, for a guest that computes and one that sleeps.</summary>
    public static void Print(TextWriter output)
    {
        output.WriteLine(
            $"Interrupts one after the other, {Samples} of each kind ({SamplesWhereEmulated} where ring 0 is emulated), this host; latency in µs, from the raising to the handler:"
        );
        foreach (Strategy strategy in StrategyCatalog.All.Where(one => one.RunsPrivilegedGuests && !one.IsSimulated))
        {
            foreach (InterruptDelivery delivery in new[] { InterruptDelivery.Exit, InterruptDelivery.Direct })
            {
                Strategy way = With(strategy, delivery);
                if (way.UnavailableReason() is { } reason)
                {
                    output.WriteLine($"  {way.Id}: skipped, {reason}");
                    continue;
                }

                Print(output, way, asleep: false);
                Print(output, way, asleep: true);
            }
        }
    }

    private static void Print(TextWriter output, Strategy strategy, bool asleep)
    {
        using var guest = new InterruptedGuest(strategy, asleep);
        for (int i = 0; i < WarmUp; i++)
        {
            _ = guest.Interrupt();
        }

        double[] latency = new double[strategy.EmulatesRingZero ? SamplesWhereEmulated : Samples];
        long exits = guest.Exits;
        for (int i = 0; i < latency.Length; i++)
        {
            latency[i] = guest.Interrupt() / 1000;
        }

        double perInterrupt = (double)(guest.Exits - exits) / latency.Length;
        double perSecond = 1e6 / latency.Average();
        Array.Sort(latency);
        InterruptLineStatistics line = guest.Statistics;
        output.WriteLine(
            $"  {strategy.Id, -32} {(asleep ? "asleep" : "running"), -8} {perSecond, 8:F0}/s   exits each {perInterrupt, 5:F2}   "
                + $"latency median {Quantiles.At(latency, 0.5), 7:F2}   99th percentile {Quantiles.At(latency, 0.99), 8:F2}   "
                + $"without an exit {(double)line.Direct / line.Requests, 4:P0}"
        );
    }
}
