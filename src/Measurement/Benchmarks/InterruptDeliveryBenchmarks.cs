using System.Runtime.Versioning;
using BenchmarkDotNet.Attributes;
using Iced.Intel;
using VirtBench.Strategies;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Workloads;
using static Iced.Intel.AssemblerRegisters;

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

/// <summary>
/// What it costs translated code to look for interrupts that do not come: short loops in ring 0, translated with the looking and without, in
/// turns.
/// </summary>
[SupportedOSPlatform("linux")]
internal static class PollCost
{
    private const int Windows = 200;
    private const int Loops = 200_000;

    /// <summary>Measures and prints a line per loop.</summary>
    public static void Print(TextWriter output)
    {
        Strategy without = StrategyCatalog.Find("binary-translation")!;
        if (without.UnavailableReason() is { } reason)
        {
            output.WriteLine($"{without.Id}: skipped, {reason}");
            return;
        }

        Strategy with = InterruptLatency.With(without, InterruptDelivery.Direct);
        output.WriteLine($"Looking for interrupts in translated loops, {Windows} windows in turns, ns a round:");
        Compare(output, with, without, "nothing but the loop", _ => { });
        Compare(
            output,
            with,
            without,
            "sixteen additions in a chain",
            a =>
            {
                for (int i = 0; i < 16; i++)
                {
                    a.add(rax, rbx);
                }
            }
        );
        Compare(
            output,
            with,
            without,
            "a chain through RCX",
            a =>
            {
                for (int i = 0; i < 4; i++)
                {
                    a.imul(rcx, rcx, 3);
                }
            }
        );
        Compare(
            output,
            with,
            without,
            "a call and its return",
            a =>
            {
                Label function = a.CreateLabel();
                Label behind = a.CreateLabel();
                a.call(function);
                a.jmp(behind);
                a.Label(ref function);
                a.nop();
                a.ret();
                a.Label(ref behind);
                a.nop();
            }
        );
    }

    private static void Compare(
        TextWriter output,
        Strategy with,
        Strategy without,
        string name,
        Action<GuestAssembler> body
    )
    {
        using var looking = new RepeatingGuest(with, Loops, body);
        using var plain = new RepeatingGuest(without, Loops, body);
        double[] first = new double[Windows];
        double[] second = new double[Windows];
        for (int i = -Windows / 10; i < Windows; i++)
        {
            first[Math.Max(i, 0)] = Time(plain);
            second[Math.Max(i, 0)] = Time(looking);
        }

        double[] more = [.. second.Zip(first, (one, other) => one - other)];
        Quantiles.Print(output, name, first, "F2");
        Quantiles.Print(output, $"{name}, looking adds", more, "F2");
    }

    private static double Time(RepeatingGuest guest)
    {
        double start = HostClock.Instance.Nanoseconds;
        guest.Run();
        return (HostClock.Instance.Nanoseconds - start) / Loops;
    }
}
