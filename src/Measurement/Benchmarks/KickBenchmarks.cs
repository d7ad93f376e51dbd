using System.Runtime.Versioning;
using BenchmarkDotNet.Attributes;
using VirtBench.Strategies;
using VirtBench.Strategies.Hardware;
using VirtBench.Strategies.TrapAndEmulate;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>
/// How soon the VMM has the guest back: from another thread's kick, and from a deadline that is over, until Run has returned. The guest is an
/// endless loop that never exits by itself. An event for a guest cannot be delivered sooner.
/// </summary>
[Config(typeof(InProcessConfiguration))]
[SupportedOSPlatform("linux")]
public class KickBenchmarks : IDisposable
{
    private KickedGuest? _guest;

    /// <summary>Id of the strategy.</summary>
    [Params("trap-and-emulate", "hardware")]
    public string Strategy { get; set; } = "";

    /// <summary>Boots the guest.</summary>
    [GlobalSetup]
    public void SetUp() => _guest = new KickedGuest(KickedGuest.Strategies.Single(one => one.Id == Strategy));

    /// <summary>Entry, a kick by another thread, and the exit.</summary>
    [Benchmark]
    public double Kick() => _guest!.KickNanoseconds();

    /// <summary>Entry with a deadline in 50 µs, and the exit.</summary>
    [Benchmark]
    public double Deadline() => _guest!.DeadlineNanoseconds();

    /// <summary>Ends the guest.</summary>
    [GlobalCleanup]
    public void Dispose()
    {
        _guest?.Dispose();
        GC.SuppressFinalize(this);
    }
}

/// <summary>An endless loop in ring 0 under an engine that is entered without a run loop around it, and a thread that kicks it.</summary>
[SupportedOSPlatform("linux")]
internal sealed class KickedGuest : IDisposable
{
    private const ulong Entry = 0x10_0000;
    private const ulong Flag = 0x18_0000; // in the same large page
    private const double DeadlineSeconds = 50e-6;
    private const double RunSeconds = 100e-6;

    // Only for an engine that misses its deadline: so the benchmark shows a bad figure instead of hanging.
    private const double RescueSeconds = 0.1;

    private readonly VirtualMachine _machine;
    private readonly Thread _kicker;
    private IExecutionEngine? _engine;
    private ulong _kickAt = ulong.MaxValue;
    private ulong _kickedAt;
    private bool _ended;

    /// <summary>Boots the guest and lets it fault its pages in.</summary>
    /// <exception cref="PlatformNotSupportedException">This host cannot run the strategy; the message says why.</exception>
    public KickedGuest(Strategy strategy)
    {
        if (strategy.UnavailableReason() is { } reason)
        {
            throw new PlatformNotSupportedException(reason);
        }

        _machine = new VirtualMachine(1 << 21, (cpu, memory) => _engine = strategy.CreateEngine(cpu, memory));
        byte[] code = [0xC6, 0x04, 0x25, 0, 0, (byte)(Flag >> 16), 0, 1, 0xEB, 0xFE]; // mov byte [Flag], 1; jmp to itself
        var segment = new ImageSegment(Entry, code, (ulong)code.Length, Executable: true);
        _machine.Load(new GuestImage("benchmark", Entry, [segment]), new BootOptions());
        while (_machine.Memory.Read<byte>(Flag) == 0)
        {
            RunOutcome outcome = _machine.Run(TimeSpan.FromMilliseconds(10));
            if (outcome.End != RunEnd.TimedOut)
            {
                throw new InvalidOperationException(outcome.Message);
            }
        }

        _kicker = new Thread(KickInTime) { IsBackground = true, Name = "kicker" };
        _kicker.Start();
    }

    /// <summary>The two strategies that run on the host's time.</summary>
    public static IReadOnlyList<Strategy> Strategies => [new TrapAndEmulateStrategy(), new HardwareStrategy()];

    /// <summary>From the call of Kick in another thread, 100 µs after the entry, until Run has returned.</summary>
    public double KickNanoseconds()
    {
        _engine!.Deadline = ulong.MaxValue;
        ulong seen = RunUntil(() => Volatile.Read(ref _kickedAt) != 0, kickAfter: RunSeconds);
        return Nanoseconds(seen - _kickedAt);
    }

    /// <summary>From a deadline until Run has returned.</summary>
    public double DeadlineNanoseconds()
    {
        ulong deadline = HostClock.Instance.Ticks + Ticks(DeadlineSeconds);
        _engine!.Deadline = deadline;
        return Nanoseconds(RunUntil(() => HostClock.Instance.Ticks >= deadline, kickAfter: RescueSeconds) - deadline);
    }

    // A stop for another reason than the one that is measured, a kick that was answered twice for instance, does not count.
    private ulong RunUntil(Func<bool> over, double kickAfter)
    {
        _engine!.AttachThread();
        Volatile.Write(ref _kickedAt, 0);
        Volatile.Write(ref _kickAt, HostClock.Instance.Ticks + Ticks(kickAfter));
        VmExit exit;
        ulong seen;
        do
        {
            exit = _engine.Run();
            seen = HostClock.Instance.Ticks;
        } while (exit.Reason == VmExitReason.Interrupted && !over());
        Volatile.Write(ref _kickAt, ulong.MaxValue);
        _engine.DetachThread();
        return exit.Reason == VmExitReason.Interrupted
            ? seen
            : throw new InvalidOperationException($"the guest stopped with {exit.Reason}: {exit.Message}");
    }

    private void KickInTime()
    {
        while (!Volatile.Read(ref _ended))
        {
            if (HostClock.Instance.Ticks >= Volatile.Read(ref _kickAt))
            {
                Volatile.Write(ref _kickAt, ulong.MaxValue);
                Volatile.Write(ref _kickedAt, HostClock.Instance.Ticks);
                _engine!.Kick();
            }
            else
            {
                _ = Thread.Yield();
            }
        }
    }

    private static ulong Ticks(double seconds) => (ulong)(seconds * HostClock.Instance.TicksPerSecond);

    private static double Nanoseconds(ulong ticks) => ticks * (1e9 / HostClock.Instance.TicksPerSecond);

    public void Dispose()
    {
        Volatile.Write(ref _ended, true);
        _kicker.Join();
        _machine.Dispose();
    }
}

/// <summary>Latencies of kicks and deadlines, with their tails, under each strategy that runs here.</summary>
[SupportedOSPlatform("linux")]
internal static class KickLatency
{
    private const int Samples = 2000;
    private const int WarmUp = 200;

    /// <summary>Measures and prints one line per strategy and cause.</summary>
    public static void Print(TextWriter output)
    {
        output.WriteLine($"Until Run has returned, {Samples} times each, this host, µs:");
        foreach (Strategy strategy in KickedGuest.Strategies)
        {
            if (strategy.UnavailableReason() is { } reason)
            {
                output.WriteLine($"  {strategy.Id}: skipped, {reason}");
                continue;
            }

            using var guest = new KickedGuest(strategy);
            Print(output, $"{strategy.Id}, kick", guest.KickNanoseconds);
            Print(output, $"{strategy.Id}, deadline", guest.DeadlineNanoseconds);
        }
    }

    private static void Print(TextWriter output, string name, Func<double> measure)
    {
        double[] values = new double[Samples];
        for (int i = -WarmUp; i < Samples; i++)
        {
            values[Math.Max(i, 0)] = measure() / 1000;
        }

        Array.Sort(values);
        string At(double share) => values[(int)(share * (values.Length - 1))].ToString("F1");
        output.WriteLine(
            $"  {name, -28} median {At(0.5), 6}   90th percentile {At(0.9), 6}   99th {At(0.99), 7}   longest {At(1), 8}"
        );
    }
}
