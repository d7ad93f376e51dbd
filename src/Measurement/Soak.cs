using System.Buffers;
using System.Diagnostics;
using System.Text;
using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Paravirtual;
using VirtBench.Workloads;

namespace VirtBench.Measurement;

/// <summary>How long and how hard mini-os is run.</summary>
public sealed record SoakOptions
{
    /// <summary>Guest time: what the guest's timer counts.</summary>
    public TimeSpan Duration { get; init; } = TimeSpan.FromMinutes(10);

    /// <summary>Processes of the guest.</summary>
    public int Processes { get; init; } = 4;

    /// <summary>Timer frequency in hertz.</summary>
    public int TimerHertz { get; init; } = DefaultTimerHertz;

    /// <summary>Timer frequency in hertz when none is given.</summary>
    public const int DefaultTimerHertz = 250;

    /// <summary>System calls per work unit.</summary>
    public int CallsPerUnit { get; init; } = 4;

    /// <summary>Work units of each process in a round.</summary>
    public int UnitsPerRound { get; init; } = 100;

    /// <summary>
    /// Ticks that a process sleeps between two rounds; null for a few, or where time is computed for as many as a second has: a
    /// simulated CPU passes the time of an idle guest at once, and that of a busy one slower than it is.
    /// </summary>
    public int? RestTicks { get; init; }

    /// <summary>RAM in bytes.</summary>
    public ulong RamBytes { get; init; } = 64 << 20;
}

/// <summary>One count that is held against what it must be.</summary>
/// <param name="Name">What is counted.</param>
/// <param name="Holds">Whether it is what it must be.</param>
/// <param name="Detail">The figures, in one line.</param>
public sealed record SoakCheck(string Name, bool Holds, string Detail);

/// <summary>What a soak came to.</summary>
/// <param name="Strategy">Strategy id.</param>
/// <param name="Outcome">How the guest ended.</param>
/// <param name="Console">What it printed.</param>
/// <param name="Statistics">What its kernel counted.</param>
/// <param name="Ledger">Exits by the ledger's names; reasons that did not occur are left out.</param>
/// <param name="TimerTicks">Ticks that the 8254 made.</param>
/// <param name="TicksTaken">Timer interrupts that the virtual CPU took.</param>
/// <param name="TicksLate">Ticks that came while the one before still waited.</param>
/// <param name="TicksOwed">Ticks owed at the end, and the one that waited then.</param>
/// <param name="TicksLeast">Fewest ticks that there must have been by the guest's time-stamp counter.</param>
/// <param name="TicksMost">Most ticks, likewise.</param>
/// <param name="GuestNanoseconds">Guest time: ticks times their period.</param>
/// <param name="EngineNanoseconds">Time of the run on the engine's clock.</param>
/// <param name="HostNanoseconds">Time of the run on the host's clock.</param>
/// <param name="MemoryBefore">Memory once a tenth of the time was over; null when it was too short, or not on Linux.</param>
/// <param name="MemoryAfter">Memory at the end.</param>
/// <param name="Checks">The verdicts.</param>
/// <param name="TimeSource">Where the times come from.</param>
public sealed record SoakResult(
    string Strategy,
    RunOutcome Outcome,
    string Console,
    MiniOsStatistics Statistics,
    IReadOnlyDictionary<string, long> Ledger,
    long TimerTicks,
    long TicksTaken,
    long TicksLate,
    long TicksOwed,
    long TicksLeast,
    long TicksMost,
    double GuestNanoseconds,
    double EngineNanoseconds,
    double HostNanoseconds,
    ProcessMemory? MemoryBefore,
    ProcessMemory? MemoryAfter,
    IReadOnlyList<SoakCheck> Checks,
    string TimeSource
)
{
    /// <summary>Whether every count is what it must be.</summary>
    public bool Holds => Checks.All(check => check.Holds);
}

/// <summary>
/// Runs mini-os for a long time in one VM and counts: does a tick get lost, does guest time drift, does memory leak, does a
/// result ever change? Each process of the guest repeats a round of fixed work until the timer has ticked long enough.
/// </summary>
public static class Soak
{
    /// <summary>
    /// Growth of private memory that is not called a leak, in bytes: the runtime takes and keeps what its heap breathes in.
    /// </summary>
    public const long MemoryTolerance = 32 << 20;

    /// <summary>
    /// Growth of what is reachable on the runtime's heap that is not called a leak, in bytes. Eight bytes an exit would be more
    /// than ten times as much after ten minutes.
    /// </summary>
    public const long HeapTolerance = 2 << 20;

    /// <summary>
    /// Difference between the guest's clock and the host's that is not called drift: a part of the whole. The host's is steered
    /// by at most half as much (adjtimex(2)).
    /// </summary>
    public const double DriftTolerance = 0.001;

    // On top of that: the two clocks are read one after the other, and in between this thread may have to wait.
    private const double ReadingNanoseconds = 0.5e9;

    private static readonly TimeSpan WatchInterval = TimeSpan.FromMilliseconds(500);

    /// <summary>Runs it.</summary>
    /// <param name="strategy">A strategy that is available and runs privileged guests.</param>
    /// <param name="options">How long and how hard.</param>
    /// <param name="progress">Told of ticks so far and in all, now and then, on another thread; may be null.</param>
    /// <param name="cancellation">Ends the guest.</param>
    public static SoakResult Run(
        Strategy strategy,
        SoakOptions options,
        Action<long, long>? progress = null,
        CancellationToken cancellation = default
    )
    {
        using var machine = new VirtualMachine(options.RamBytes, strategy.CreateEngine);
        bool computed = machine.Capabilities.ComputedTime;
        var workload = new MiniOs(options.Processes);
        ulong period = IntervalTimer.Hertz / (ulong)options.TimerHertz;
        long ticks = (long)Math.Ceiling(options.Duration.TotalSeconds * IntervalTimer.Hertz / period);
        int rest = options.RestTicks ?? (computed ? options.TimerHertz : 5);
        machine.Load(
            workload.Build(new WorkloadOptions(options.CallsPerUnit, workload.DefaultFiller, strategy.Interface)),
            new BootOptions
            {
                Paravirtual = strategy.Interface == GuestInterface.Paravirtual,
                Parameters =
                [
                    0,
                    (ulong)options.UnitsPerRound * (ulong)options.Processes,
                    (ulong)options.TimerHertz,
                    MiniOs.DefaultQuantum,
                    (ulong)ticks,
                    (ulong)rest,
                ],
            }
        );
        var console = new ArrayBufferWriter<byte>();
        TimerAccount account = default;
        machine.Serial.Transmitted = value =>
        {
            if (console.WrittenCount == 0)
            {
                account = TimerAccount.Of(machine); // the guest has looked at its clock before, and will again
            }

            if (console.WrittenCount < 1 << 16)
            {
                console.Write([value]);
            }
        };

        ProcessMemory? before = null;
        void Watch()
        {
            // The guest's own count, read while it runs: a number of 8 bytes, aligned.
            long done = (long)machine.Memory.Read<ulong>(MiniOsStatistics.TicksAddress);
            progress?.Invoke(Math.Min(done, ticks), ticks);
            before ??= done >= ticks / 10 ? ProcessMemory.Read() : null;
        }

        // What is to be late is late by little: a guest that needs twice its time, and minutes more, has got stuck.
        TimeSpan? limit = computed ? null : (2 * options.Duration) + TimeSpan.FromMinutes(2);
        long start = Stopwatch.GetTimestamp();
        double startOfEngine = machine.Clock.Nanoseconds;
        VcpuRun run;
        using (new Watcher(Watch, WatchInterval))
        {
            run = VcpuThread.Run(machine, limit, cancellation: cancellation);
        }

        double engine = machine.Clock.Nanoseconds - startOfEngine;
        double host = Stopwatch.GetElapsedTime(start).TotalNanoseconds;
        ProcessMemory? after = ProcessMemory.Read();
        if (run.Outcome.End == RunEnd.Abandoned)
        {
            machine.Serial.Transmitted = null;
        }

        var statistics = MiniOsStatistics.Read(machine.Memory);

        // The timer loads its count at the pulse after the write, and time is rounded to pulses at both ends.
        const int edge = 2;
        account = account with
        {
            Least = Periods(statistics, machine, statistics.TimerReadEarliest - statistics.TimerStartLatest, -edge),
            Most = Periods(statistics, machine, statistics.TimerReadLatest - statistics.TimerStartEarliest, edge),
        };
        double guest = (double)statistics.Ticks * statistics.TimerReload / IntervalTimer.Hertz * 1e9;
        return new SoakResult(
            strategy.Id,
            run.Outcome,
            Encoding.Latin1.GetString(console.WrittenSpan),
            statistics,
            Exits(machine.Ledger),
            account.Made,
            account.Taken,
            account.Late,
            account.Owed,
            account.Least,
            account.Most,
            guest,
            engine,
            host,
            before,
            after,
            [
                Ended(run.Outcome),
                .. run.Outcome is { End: RunEnd.Exited, Status: 0 } ? Judge(machine.Regions, statistics, account) : [],
                .. computed ? Array.Empty<SoakCheck>() : [Drift(engine, host)],
                .. before is null || after is null ? [] : Leaks(before, after),
            ],
            machine.Capabilities.TimeSource
        );
    }

    /// <summary>Whole periods of the timer in an interval of the time-stamp counter, so many pulses more or less.</summary>
    private static long Periods(MiniOsStatistics statistics, VirtualMachine machine, ulong interval, int pulses)
    {
        double all = (interval * (IntervalTimer.Hertz / Math.Round(machine.Clock.TicksPerSecond))) + pulses;
        return statistics.TimerReload == 0 ? 0 : (long)Math.Floor(Math.Max(0, all) / statistics.TimerReload);
    }

    private static SoakCheck Ended(RunOutcome outcome) =>
        new(
            "the guest ended by itself",
            outcome is { End: RunEnd.Exited, Status: 0 },
            outcome.End == RunEnd.Exited ? $"status {outcome.Status}" : outcome.Message ?? outcome.End.ToString()
        );

    /// <summary>What can be said once the guest is through.</summary>
    internal static IEnumerable<SoakCheck> Judge(
        IReadOnlyList<MeasuredRegion> regions,
        MiniOsStatistics statistics,
        in TimerAccount timer
    )
    {
        ulong units = regions.Count == 1 ? regions[0].Units : 0;
        return
        [
            new(
                "every tick taken was counted",
                timer.Taken == (long)statistics.Ticks,
                $"the CPU took {timer.Taken}, the guest counted {statistics.Ticks}"
            ),
            new(
                "no tick was lost",
                timer.Made == timer.Taken + timer.Owed,
                $"the timer made {timer.Made}; {timer.Taken} taken, {timer.Owed} waiting or owed at the end"
            ),
            new(
                "as many ticks as time has passed",
                timer.Made >= timer.Least && timer.Made <= timer.Most,
                $"{timer.Made} made, {timer.Least} to {timer.Most} by the time-stamp counter"
            ),
            new("no spurious interrupt", statistics.Spurious == 0, $"{statistics.Spurious}"),
            new(
                "no frame was lost",
                statistics.FreeFramesAtEnd == statistics.FreeFramesAtStart && statistics.FreeFramesAtStart > 0,
                $"{statistics.FreeFramesAtStart} free at the start, {statistics.FreeFramesAtEnd} at the end, never fewer than "
                    + $"{statistics.FewestFreeFrames}"
            ),
            new(
                "every round had the same result",
                statistics.DeviatingRounds == 0 && statistics.Rounds >= statistics.Processes && statistics.Rounds > 0,
                $"{statistics.Rounds} rounds, {statistics.DeviatingRounds} with another checksum"
            ),
            new(
                "all work was accounted for",
                units == statistics.Units && units > 0,
                $"{statistics.Units} units in rounds, {units} in the region"
            ),
        ];
    }

    /// <summary>Ticks are held against the guest's clock, which is the engine's; that leaves this against the host's.</summary>
    internal static SoakCheck Drift(double engineNanoseconds, double hostNanoseconds) =>
        new(
            "the guest's clock is the host's",
            Math.Abs(engineNanoseconds - hostNanoseconds) <= (DriftTolerance * hostNanoseconds) + ReadingNanoseconds,
            $"{engineNanoseconds / 1e9:F6} s by the guest's, {hostNanoseconds / 1e9:F6} s by the host's"
        );

    private static IEnumerable<SoakCheck> Leaks(ProcessMemory before, ProcessMemory after)
    {
        long growth = after.PrivateBytes - before.PrivateBytes;
        long heap = after.HeapBytes - before.HeapBytes;
        long carriers = after.CarrierPrivateBytes - before.CarrierPrivateBytes;
        yield return new SoakCheck(
            "no memory leaked",
            growth <= MemoryTolerance && carriers <= MemoryTolerance && heap <= HeapTolerance,
            $"heap of the VMM {Kilobytes(before.HeapBytes)}, then {Kilobytes(after.HeapBytes)}; its private memory "
                + $"{Kilobytes(before.PrivateBytes)}, then {Kilobytes(after.PrivateBytes)}; of "
                + $"{before.Carriers}, then {after.Carriers} carriers {Kilobytes(before.CarrierPrivateBytes)}, then "
                + Kilobytes(after.CarrierPrivateBytes)
        );
        const int fewMore = 8; // the runtime's own
        yield return new SoakCheck(
            "no file or thread leaked",
            after.OpenFiles <= before.OpenFiles + fewMore && after.Threads <= before.Threads + fewMore,
            $"files {before.OpenFiles}, then {after.OpenFiles}; threads {before.Threads}, then {after.Threads}"
        );
    }

    private static string Kilobytes(long bytes) => $"{bytes >> 10} KiB";

    private static Dictionary<string, long> Exits(TrapLedger ledger)
    {
        var exits = new Dictionary<string, long>();
        for (int i = 0; i < TrapReasons.Count; i++)
        {
            if (ledger.Count((TrapReason)i) is > 0 and var count)
            {
                exits.Add(((TrapReason)i).Name(), count);
            }
        }

        return exits;
    }

    /// <summary>The ticks of the timer as the VMM has them.</summary>
    /// <param name="Made">Rising edges of its output.</param>
    /// <param name="Taken">Interrupts acknowledged.</param>
    /// <param name="Late">Edges that found the one before waiting.</param>
    /// <param name="Owed">Edges that have not become an acknowledged interrupt yet.</param>
    /// <param name="Least">Fewest edges by the guest's time-stamp counter.</param>
    /// <param name="Most">Most edges by that.</param>
    internal readonly record struct TimerAccount(long Made, long Taken, long Late, long Owed, long Least, long Most)
    {
        /// <summary>That of this moment, without the bounds.</summary>
        public static TimerAccount Of(VirtualMachine machine) =>
            new(
                machine.Timer.Ticks,
                machine.Interrupts.Acknowledgements[IntervalTimer.Line],
                machine.Timer.Late,
                machine.Timer.Owed + (machine.Interrupts.IsPending(IntervalTimer.Line) ? 1 : 0),
                0,
                0
            );
    }

    /// <summary>Does something at intervals until it is disposed of, and once more then.</summary>
    private sealed class Watcher : IDisposable
    {
        private readonly Action _watch;
        private readonly ManualResetEventSlim _done = new();
        private readonly Thread _thread;

        public Watcher(Action watch, TimeSpan interval)
        {
            _watch = watch;
            _thread = new Thread(() =>
            {
                while (!_done.Wait(interval))
                {
                    watch();
                }
            })
            {
                Name = "soak",
                IsBackground = true,
            };
            _thread.Start();
        }

        public void Dispose()
        {
            _done.Set();
            _thread.Join();
            _done.Dispose();
            _watch();
        }
    }
}
