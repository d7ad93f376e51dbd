using System.Diagnostics;
using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;
using VirtBench.Workloads;

namespace VirtBench.Measurement;

/// <summary>
/// Measures every cell of a plan in its order:
/// <code>
/// prepare   for each cell: a few units, whose checksum must be that of the other strategies, unless the image holds
///           sensitive instructions that its engine lets through, which is marked; then calibrate
/// sample    for each planned sample: fresh VM, warm up, measure, check traps and checksum, hand to the observer
/// </code>
/// A guest that fails makes a failed sample, and the sweep goes on. A guest from which its thread does not come back costs the
/// strategy the rest of the sweep: each further cell could leave another thread stuck on a CPU.
/// </summary>
public sealed class Sweep
{
    /// <summary>
    /// Units of the run that compares checksums, the same for every strategy, after <see cref="VerificationWarmUp"/>: enough for
    /// k = 1 to come through every address space of <c>cr3-switch</c>.
    /// </summary>
    internal const long VerificationUnits = 4;

    /// <summary>Warm-up units of that run; also the least of any sample.</summary>
    internal const long VerificationWarmUp = 2;

    private readonly SweepOptions _options;
    private readonly SampleRunner _run;
    private readonly Dictionary<Cell, CellState> _cells = [];
    private readonly ChecksumWitness _checksums = new();

    /// <summary>By strategy, the cell whose vCPU thread was abandoned.</summary>
    private readonly Dictionary<string, Cell> _abandoned = [];

    /// <summary>Plans a sweep and assembles its guest images.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The filler does not fit a workload.</exception>
    public Sweep(SweepOptions options)
        : this(options, new VirtualMachineRunner(options).Run) { }

    internal Sweep(SweepOptions options, SampleRunner run)
    {
        _options = options;
        _run = run;
        Plan = SweepPlan.Create(
            options.Strategies,
            options.Workloads,
            options.Profile.Densities,
            options.Profile.Rounds,
            options.Seed
        );
        var images = new Dictionary<(string, int, GuestInterface), GuestImage>();
        foreach (Cell cell in Plan.Cells)
        {
            Workload workload = options.Workloads.First(candidate => candidate.Id == cell.Workload);
            Strategy strategy = options.Strategies.First(candidate => candidate.Id == cell.Strategy);
            if (!images.TryGetValue((cell.Workload, cell.TrapsPerUnit, strategy.Interface), out GuestImage? image))
            {
                int filler = options.FillerInstructions ?? workload.DefaultFiller;
                image = workload.Build(new WorkloadOptions(cell.TrapsPerUnit, filler, strategy.Interface));
                images.Add((cell.Workload, cell.TrapsPerUnit, strategy.Interface), image);
            }

            _cells.Add(cell, new CellState(cell, strategy, workload, image));
        }

        Images =
        [
            .. images.Select(entry => new SweepImage(
                entry.Key.Item1,
                entry.Key.Item2,
                entry.Key.Item3,
                entry.Value,
                GuestImageHash.Of(entry.Value)
            )),
        ];
    }

    /// <summary>Cells, skipped cells and order.</summary>
    public SweepPlan Plan { get; }

    /// <summary>The guest images with their hashes.</summary>
    public IReadOnlyList<SweepImage> Images { get; }

    /// <summary>Measures, on the calling thread.</summary>
    /// <param name="observer">Receives samples and progress, on the calling thread.</param>
    /// <param name="done">What an earlier, interrupted part of the same sweep has taken.</param>
    /// <param name="cancellation">Ends the sweep: the sample under way is kicked and not recorded.</param>
    public SweepResult Run(
        ISweepObserver observer,
        IReadOnlyCollection<CompletedSample>? done = null,
        CancellationToken cancellation = default
    )
    {
        using var pinned = new ThreadAffinity(_options.PinToCpu);
        var alreadyTaken = new HashSet<PlannedSample>();
        foreach (CompletedSample sample in done ?? [])
        {
            alreadyTaken.Add(new PlannedSample(sample.Round, sample.Cell));
            if (_cells.TryGetValue(sample.Cell, out CellState? cell) && sample.Units > 0)
            {
                cell.Units = sample.Units;
            }
        }

        PlannedSample[] ahead = [.. Plan.Order.Where(sample => !alreadyTaken.Contains(sample))];
        int computed = ahead.Count(sample => _cells[sample.Cell].Strategy.IsSimulated);
        var progress = new ProgressEstimate(
            observer,
            Plan.Order.Count - ahead.Length,
            ahead.Length - computed,
            computed
        );
        bool complete = Prepare(ahead, progress, cancellation);
        int taken = 0;
        int notTaken = 0;
        for (int i = 0; complete && i < ahead.Length; i++)
        {
            CellState cell = _cells[ahead[i].Cell];
            if (cell.GivenUp)
            {
                notTaken++;
                progress.Advance(cell.Strategy.IsSimulated, null);
                continue;
            }

            long start = Stopwatch.GetTimestamp();
            complete = TakeSample(ahead[i].Round, cell, observer, cancellation);
            if (complete)
            {
                taken++;
                progress.Advance(cell.Strategy.IsSimulated, Stopwatch.GetElapsedTime(start));
            }
        }

        return new SweepResult(
            complete,
            taken,
            notTaken,
            [
                .. _cells
                    .Values.Where(cell => cell.Units > 0)
                    .Select(cell => new PreparedCell(cell.Cell, WarmUp(cell), cell.Units)),
            ]
        );
    }

    private static long WarmUp(CellState cell) => Math.Max(VerificationWarmUp, cell.Units / 10);

    /// <returns>False when cancelled.</returns>
    private bool Prepare(PlannedSample[] ahead, ProgressEstimate progress, CancellationToken cancellation)
    {
        foreach (CellState cell in _cells.Values)
        {
            if (!Array.Exists(ahead, sample => sample.Cell == cell.Cell) || StrategyGivenUp(cell) is not null)
            {
                continue;
            }

            progress.Preparing();
            if (Attempt(cell, VerificationWarmUp, VerificationUnits, cancellation) is not { } first)
            {
                return false;
            }

            MarkHoles(cell, first);
            if (first.Failure is not null)
            {
                cell.PreparationFailure = first.Failure;
                continue;
            }

            cell.VerificationChecksum = first.Run!.Result.Checksum;
            cell.ChecksumNote = cell.Mark is null
                ? _checksums.Compare(cell.Cell, VerificationWarmUp, VerificationUnits, cell.VerificationChecksum)
                : null;
            if (cell.Units == 0 && !Calibrate(cell, first, cancellation))
            {
                return false;
            }
        }

        // Now that every faithful engine has had its turn.
        foreach (CellState cell in _cells.Values.Where(cell => cell is { Mark: not null, PreparationFailure: null }))
        {
            cell.Mark = _checksums.Compare(
                cell.Mark!,
                cell.Cell,
                VerificationWarmUp,
                VerificationUnits,
                cell.VerificationChecksum
            );
        }

        return true;
    }

    /// <summary>
    /// Marks a cell whose sensitive instructions its engine lets through. A guest that did not come to its end is marked only when
    /// that is what the hole is said to do: anything else stays an error.
    /// </summary>
    private static void MarkHoles(CellState cell, Attempted first)
    {
        if (first.Run is not { } run)
        {
            return;
        }

        IReadOnlyList<VirtualizationHole> holes = FaithfulnessMark.HolesIn(
            cell.Workload,
            cell.Strategy.Interface,
            cell.Cell.TrapsPerUnit,
            cell.Image,
            run.Capabilities
        );
        bool ended = run.Outcome.End == RunEnd.Failed;
        if (holes.Count > 0 && (first.Failure is null || (ended && holes.Any(hole => hole.EndsGuest))))
        {
            cell.Mark = new FaithfulnessMark(
                [.. holes.Select(hole => hole.Instruction)],
                ended ? FaithfulnessMark.Ended : null
            );
        }
    }

    /// <returns>False when cancelled.</returns>
    private bool Calibrate(CellState cell, Attempted first, CancellationToken cancellation)
    {
        if (first.Run!.Capabilities.ComputedTime)
        {
            cell.Units = _options.ComputedUnits;
            return true;
        }

        bool cancelled = false;
        Attempted? last = first;
        long? units = Calibration.Units(
            _options.Profile.SampleTime.TotalNanoseconds,
            VerificationUnits,
            probe =>
            {
                if (probe != VerificationUnits)
                {
                    last = Attempt(cell, VerificationWarmUp, probe, cancellation);
                }

                cancelled = last is null;
                cell.PreparationFailure = last?.Failure;
                return last?.Region?.ElapsedNanoseconds;
            }
        );
        cell.Units = units ?? 0;
        return !cancelled;
    }

    /// <returns>False when cancelled.</returns>
    private bool TakeSample(int round, CellState cell, ISweepObserver observer, CancellationToken cancellation)
    {
        if ((cell.PreparationFailure ?? StrategyGivenUp(cell)) is { } reason)
        {
            cell.GivenUp = true;
            observer.SampleTaken(Failed(round, cell, 0, default, reason), SampleRecords.None);
            return !cancellation.IsCancellationRequested;
        }

        long warmUp = WarmUp(cell);
        if (Attempt(cell, warmUp, cell.Units, cancellation) is not { } attempt)
        {
            return false;
        }

        if (attempt.Failure is { } failure)
        {
            // Each further time-out would cost as much again and teach nothing.
            cell.GivenUp = attempt.Run?.Outcome.End is RunEnd.TimedOut or RunEnd.Abandoned;
            observer.SampleTaken(
                Failed(round, cell, cell.Units, attempt.Run?.Disturbance ?? default, failure),
                Records(round, cell.Cell, attempt)
            );
            return true;
        }

        observer.SampleTaken(
            Measured(round, cell, warmUp, attempt.Run!, attempt.Region!),
            Records(round, cell.Cell, attempt)
        );
        return true;
    }

    private Sample Measured(int round, CellState cell, long warmUp, SampleRun run, MeasuredRegion region)
    {
        SensitiveOperation operation = cell.Workload.Operation(cell.Strategy.Interface);
        int? predicted = cell.Workload.ExitsUnder(cell.Strategy.Interface, run.Capabilities);
        int each = predicted is > 0 and var some ? some : Math.Max(1, operation.Exits ?? 1);
        long exits = ObservedExits(operation, region.Exits);
        long? expected = predicted * cell.Cell.TrapsPerUnit * cell.Units;
        string? trapNote =
            expected is null || exits == expected
                ? null
                : $"observed {exits} traps, expected {expected} = {ExpectedFrom(cell, predicted.GetValueOrDefault())}";
        string? checksumNote = cell.Mark is null
            ? cell.ChecksumNote ?? _checksums.Compare(cell.Cell, warmUp, cell.Units, run.Result.Checksum)
            : null;
        return new Sample(
            round,
            cell.Cell,
            cell.Units,
            exits / each,
            region.ElapsedNanoseconds,
            run.Result.TscTicks,
            run.Capabilities.ComputedTime ? 0 : run.Disturbance.StealNanoseconds,
            run.Disturbance.InvoluntarySwitches,
            OutlierLabel.None,
            trapNote is not null ? SampleStatus.TrapMismatch
                : checksumNote is not null ? SampleStatus.ChecksumMismatch
                : SampleStatus.Ok,
            string.Join(
                "; ",
                new[]
                {
                    cell.Mark?.ToString(),
                    trapNote,
                    checksumNote,
                    run.Capabilities.ComputedTime ? null : Occupied(),
                }.OfType<string>()
            )
        );
    }

    /// <summary>Why no guest of the cell's strategy is run any more; null where they are.</summary>
    private string? StrategyGivenUp(CellState cell) =>
        _abandoned.TryGetValue(cell.Cell.Strategy, out Cell stuck) && stuck != cell.Cell
            ? $"not run: the vCPU thread of {stuck.Workload}, k = {stuck.TrapsPerUnit}, was abandoned, and another guest under "
                + $"{stuck.Strategy} could leave one more stuck"
            : null;

    /// <summary>What disturbs every sample from the first abandoned thread on; null before.</summary>
    private string? Occupied() =>
        _abandoned.Count == 0
            ? null
            : $"an abandoned vCPU thread ({string.Join(", ", _abandoned.Keys)}) may have occupied a CPU meanwhile";

    private static string ExpectedFrom(CellState cell, int each) =>
        each == 0 || cell.Cell.TrapsPerUnit == 0 ? "none for this strategy and k"
        : each > 1 ? $"{each} × {cell.Cell.TrapsPerUnit} × {cell.Units}"
        : $"{cell.Cell.TrapsPerUnit} × {cell.Units}";

    /// <summary>
    /// Exits of the operation's kind. Where it has none, all but the markers' own and those by which a translator finds out which pages of code
    /// are written, some for each page and then no more.
    /// </summary>
    private static long ObservedExits(SensitiveOperation operation, LedgerSnapshot exits) =>
        operation.Trap is { } kind
            ? exits[kind]
            : exits.Counts.Sum() - exits[TrapReason.RegionMarker] - exits[TrapReason.CodeWrite];

    private static Sample Failed(int round, CellState cell, long units, HostDisturbance disturbance, string note) =>
        new(
            round,
            cell.Cell,
            units,
            Traps: 0,
            ElapsedNanoseconds: 0,
            GuestTscTicks: 0,
            disturbance.StealNanoseconds,
            disturbance.InvoluntarySwitches,
            OutlierLabel.None,
            SampleStatus.Failed,
            cell.Mark is { Evidence: FaithfulnessMark.Ended } mark ? $"{mark}: {note}" : note
        );

    private static SampleRecords Records(int round, Cell cell, Attempted attempt) =>
        new(
            attempt.Run is { } run && attempt.Region is { } part ? Exits(round, cell, run, part) : [],
            KernelStatistics(round, cell, attempt.Region),
            Translations(round, cell, attempt.Run, attempt.Region),
            attempt.Region?.Io is { } io && (io.WaitingNanoseconds > 0 || io.Disk is { Requests: > 0 })
                ? new IoRecord(round, cell, io)
                : null
        );

    private static List<ExitRecord> Exits(int round, Cell cell, SampleRun run, MeasuredRegion region)
    {
        double nanoseconds = 1e9 / run.TicksPerSecond;
        var records = new List<ExitRecord>();
        for (int i = 0; i < TrapReasons.Count; i++)
        {
            var reason = (TrapReason)i;
            if (region.Exits[reason] is not (> 0 and var count))
            {
                continue;
            }

            // See SimulatedClock: where time is computed these cost the guest nothing, the world switches included.
            bool isFree = run.Capabilities.ComputedTime && (reason is TrapReason.RegionMarker or TrapReason.Kick);
            double switches = isFree ? 0 : count * nanoseconds;
            records.Add(
                new ExitRecord(
                    round,
                    cell,
                    reason.Name(),
                    count,
                    run.Capabilities.SwitchOutTicks * switches,
                    region.Exits.DispatchTicks[i] * nanoseconds,
                    region.Exits.EmulateTicks[i] * nanoseconds,
                    run.Capabilities.SwitchInTicks * switches
                )
            );
        }

        if (region.Translation is { } translation)
        {
            AddInside(EngineReasons.Translate, translation.Blocks, translation.Ticks * nanoseconds);
            AddInside(EngineReasons.Link, translation.Links, 0);
            AddInside(EngineReasons.LookupMiss, translation.LookupMisses, 0);
        }

        return records;

        void AddInside(string reason, long count, double time)
        {
            if (count > 0)
            {
                records.Add(new ExitRecord(round, cell, reason, count, null, 0, time, null));
            }
        }
    }

    private static List<TranslationRecord> Translations(int round, Cell cell, SampleRun? run, MeasuredRegion? region)
    {
        var records = new List<TranslationRecord>();
        Add(TranslationScope.Region, region?.Translation);
        Add(TranslationScope.Run, run?.Translation);
        return records;

        void Add(TranslationScope scope, TranslationStatistics? statistics)
        {
            if (statistics is not null)
            {
                double nanoseconds = statistics.Ticks * 1e9 / run!.TicksPerSecond;
                records.Add(new TranslationRecord(round, cell, scope, statistics, nanoseconds));
            }
        }
    }

    private static KernelStatisticRecord[] KernelStatistics(int round, Cell cell, MeasuredRegion? region) =>
        region?.KernelStatistics is { } counters
            ?
            [
                .. counters
                    .Telling()
                    .Select(counter => new KernelStatisticRecord(round, cell, counter.Key, counter.Value)),
            ]
            : [];

    /// <summary>Runs a cell's guest once. Null when cancelled; else either a failure or a region of as many units.</summary>
    private Attempted? Attempt(CellState cell, long warmUp, long units, CancellationToken cancellation)
    {
        if (cancellation.IsCancellationRequested)
        {
            return null;
        }

        SampleRun run;
        try
        {
            run = _run(cell.Strategy, cell.Image, warmUp, units, cancellation);
        }
        catch (Exception e) when (e is not OutOfMemoryException)
        {
            // An engine that cannot be created, or breaks: one cell's loss, not the sweep's.
            return cancellation.IsCancellationRequested ? null : new Attempted(null, null, OneLine(e));
        }

        if (run.Outcome.End == RunEnd.Abandoned)
        {
            if (cancellation.IsCancellationRequested)
            {
                return null;
            }

            _abandoned.TryAdd(cell.Cell.Strategy, cell.Cell);
        }

        MeasuredRegion? region = run.Regions.FirstOrDefault(candidate => candidate.Id == Workload.MeasuredRegionId);
        return run.Outcome.End switch
        {
            RunEnd.Cancelled => null,
            RunEnd.Exited when run.Outcome.Status != 0 => new Attempted(
                run,
                region,
                $"the guest ended with status {run.Outcome.Status}"
            ),
            RunEnd.Exited when region is null => new Attempted(run, null, "the guest measured no region"),
            RunEnd.Exited when region.Units != (ulong)units => new Attempted(
                run,
                region,
                $"the guest reports {region.Units} units instead of {units}"
            ),
            RunEnd.Exited => new Attempted(run, region, null),
            _ => new Attempted(run, region, run.Outcome.Message ?? run.Outcome.End.ToString()),
        };
    }

    private static string OneLine(Exception e) => e.Message.ReplaceLineEndings(" ");

    private sealed record Attempted(SampleRun? Run, MeasuredRegion? Region, string? Failure);

    /// <summary>What the sweep knows of a cell.</summary>
    private sealed class CellState(Cell cell, Strategy strategy, Workload workload, GuestImage image)
    {
        public Cell Cell => cell;

        public Strategy Strategy => strategy;

        public Workload Workload => workload;

        public GuestImage Image => image;

        /// <summary>Units of each sample; 0 before calibration.</summary>
        public long Units { get; set; }

        /// <summary>Why preparing it failed: its first sample says so, and there is no other.</summary>
        public string? PreparationFailure { get; set; }

        /// <summary>What is wrong with its checksum after <see cref="VerificationUnits"/>.</summary>
        public string? ChecksumNote { get; set; }

        /// <summary>Its checksum after these.</summary>
        public ulong VerificationChecksum { get; set; }

        /// <summary>What of its image its engine lets through; null where it is faithful.</summary>
        public FaithfulnessMark? Mark { get; set; }

        /// <summary>No more samples of this cell.</summary>
        public bool GivenUp { get; set; }
    }
}

/// <summary>A guest image of a sweep.</summary>
/// <param name="Workload">Workload id.</param>
/// <param name="TrapsPerUnit">k.</param>
/// <param name="Interface">What it is built for.</param>
/// <param name="Image">The image.</param>
/// <param name="Sha256">See <see cref="GuestImageHash"/>.</param>
public sealed record SweepImage(
    string Workload,
    int TrapsPerUnit,
    GuestInterface Interface,
    GuestImage Image,
    string Sha256
);
