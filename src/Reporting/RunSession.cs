using System.Reflection;
using VirtBench.Measurement;
using VirtBench.Reporting.Runs;
using VirtBench.Strategies;
using VirtBench.Strategies.Shadow;
using VirtBench.Strategies.Simulation;
using VirtBench.Strategies.TrapAndEmulate;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;
using VirtBench.Workloads;

namespace VirtBench.Reporting;

/// <summary>What a finished or interrupted session came to.</summary>
/// <param name="Sweep">The sweep's own account.</param>
/// <param name="Report">The report made of what there is.</param>
public sealed record SessionOutcome(SweepResult Sweep, ReportOutcome Report);

/// <summary>One run from plan to report: a run directory, the sweep that fills it, the report of what was measured.</summary>
public sealed class RunSession
{
    private readonly Sweep _sweep;

    private RunSession(Sweep sweep, RunDirectory directory)
    {
        _sweep = sweep;
        Directory = directory;
    }

    /// <summary>The run directory.</summary>
    public RunDirectory Directory { get; }

    /// <summary>Samples planned.</summary>
    public int PlannedSamples => _sweep.Plan.Order.Count;

    /// <summary>What was asked for and cannot be measured here.</summary>
    public IReadOnlyList<SkippedCell> Skipped => _sweep.Plan.Skipped;

    /// <summary>Plans a sweep and creates its directory.</summary>
    /// <param name="options">What to measure.</param>
    /// <param name="resultsFolder">Where run directories go.</param>
    /// <param name="command">The command line that reproduces the run.</param>
    /// <param name="costProfile">The cost profile's file as read, to be kept in the directory; null for textbook.</param>
    /// <exception cref="RunDirectoryException">The directory cannot be written.</exception>
    /// <exception cref="ArgumentOutOfRangeException">A density or filler does not fit a workload.</exception>
    public static RunSession Start(
        SweepOptions options,
        string resultsFolder,
        string command,
        byte[]? costProfile = null
    )
    {
        var sweep = new Sweep(options);
        HostEnvironment environment = EnvironmentCapture.Capture();
        RunDirectory directory = RunDirectory.Create(
            resultsFolder,
            Environment.MachineName,
            DateTimeOffset.UtcNow,
            Describe(options, sweep, command, environment),
            environment
        );
        if (costProfile is not null)
        {
            directory.Write(RunDirectory.CostProfileFile, costProfile);
        }

        return new RunSession(sweep, directory);
    }

    /// <summary>Plans the rest of an interrupted run from its manifest.</summary>
    /// <exception cref="RunDirectoryException">
    /// The directory is no run, or this build assembles other guests than those measured.
    /// </exception>
    public static RunSession Resume(string path)
    {
        RunDirectory directory = RunDirectory.Open(path);
        RunDescription run = directory.Manifest.Run;
        IReadOnlyList<Strategy> strategies = Strategies(directory);
        IEnumerable<Cell> cells = run.Order.SelectMany(round => round);
        SweepProfile basis = SweepProfile.Find(run.Profile ?? "") ?? SweepProfile.Quick;
        var sweep = new Sweep(
            new SweepOptions
            {
                Strategies =
                [
                    .. run.Strategies.Select(entry =>
                        Known(
                            strategies.FirstOrDefault(strategy => strategy.Id == entry.Id)
                                ?? Variant(strategies, entry.Id),
                            entry.Id,
                            path
                        )
                    ),
                ],
                Workloads = [.. run.Workloads.Select(entry => Known(WorkloadCatalog.Find(entry.Id), entry.Id, path))],
                Profile = basis with
                {
                    Rounds = run.Rounds,
                    Densities = [.. cells.Select(cell => cell.TrapsPerUnit).Distinct().Order()],
                },
                Seed = run.Seed,
                Strict = run.Strict,
            }
        );
        CheckOrder(sweep.Plan, run, path);
        var images = run.GuestImages.ToDictionary(
            image => (image.Workload, image.TrapsPerUnit, image.Interface),
            image => image.Sha256
        );
        foreach (SweepImage image in sweep.Images)
        {
            if (
                images.TryGetValue((image.Workload, image.TrapsPerUnit, Word(image.Interface)), out string? measured)
                && measured != image.Sha256
            )
            {
                throw new RunDirectoryException(
                    $"{path} was measured with another guest program for {image.Workload}, k = {image.TrapsPerUnit}: "
                        + "resume it with the commit that its manifest names, or start a new run."
                );
            }
        }

        return new RunSession(sweep, directory);
    }

    /// <summary>
    /// The rest of a run must be what its manifest planned. It is not when a strategy has become available, or no longer is:
    /// the order is shuffled over all cells.
    /// </summary>
    private static void CheckOrder(SweepPlan plan, RunDescription run, string path)
    {
        var planned = run.Order.SelectMany((cells, round) => cells.Select(cell => new PlannedSample(round, cell)));
        if (plan.Order.SequenceEqual(planned))
        {
            return;
        }

        var missingThen = run.Skipped.Where(cell => cell.Workload is null).Select(cell => cell.Strategy).ToHashSet();
        var missingNow = plan.Skipped.Where(cell => cell.Workload is null).ToDictionary(cell => cell.Strategy);
        if (missingNow.Values.FirstOrDefault(cell => !missingThen.Contains(cell.Strategy)) is { } gone)
        {
            throw new RunDirectoryException(
                $"{path} cannot go on: it measures {gone.Strategy}, which is not available now: {gone.Reason}"
            );
        }

        if (missingThen.FirstOrDefault(strategy => !missingNow.ContainsKey(strategy)) is { } come)
        {
            throw new RunDirectoryException(
                $"{path} cannot go on: {come} was not available when it began and now is; start a new run."
            );
        }

        throw new RunDirectoryException(
            $"{path} was planned with other cells or another order: resume it with the commit that its manifest names."
        );
    }

    /// <summary>Measures what is not measured yet, then writes fits, figures and report, also after a cancellation.</summary>
    /// <param name="progress">Hears of samples and progress; null for nobody.</param>
    /// <param name="cancellation">Ends the sweep after the samples taken so far.</param>
    /// <exception cref="RunDirectoryException">A file cannot be written.</exception>
    public SessionOutcome Run(ISweepObserver? progress, CancellationToken cancellation)
    {
        SweepResult result;
        using (SampleLog log = Directory.Append(progress))
        {
            result = _sweep.Run(
                log,
                [.. log.Earlier.Select(sample => new CompletedSample(sample.Round, sample.Cell, sample.Units))],
                cancellation
            );
        }

        return new SessionOutcome(result, ReportWriter.Write(Directory));
    }

    /// <summary>
    /// The strategies as the run has them: simulated ones with the cost profile that lies in its directory, trap-and-emulate
    /// with the policy that its manifest names.
    /// </summary>
    private static IReadOnlyList<Strategy> Strategies(RunDirectory directory)
    {
        string file = directory.At(RunDirectory.CostProfileFile);
        ShadowPaging? shadow = directory.Manifest.Run.Shadow switch
        {
            null => null,
            var word when Enum.TryParse(word, ignoreCase: true, out ShadowPaging policy) => policy,
            var word => throw new RunDirectoryException(
                $"{directory.FullPath} was measured with shadow paging '{word}', which this build does not have."
            ),
        };
        try
        {
            return StrategyCatalog.With(File.Exists(file) ? CostProfile.Load(file) : CostProfile.Textbook, shadow);
        }
        catch (CostProfileException e)
        {
            throw new RunDirectoryException(e.Message, e);
        }
    }

    private static Strategy? Variant(IReadOnlyList<Strategy> strategies, string id) =>
        StrategyCatalog
            .Delivering(strategies, Enum.GetValues<InterruptDelivery>())
            .FirstOrDefault(strategy => strategy.Id == id);

    private static T Known<T>(T? found, string id, string path)
        where T : class =>
        found ?? throw new RunDirectoryException($"{path} measures {id}, which this build does not have.");

    private static RunDescription Describe(
        SweepOptions options,
        Sweep sweep,
        string command,
        HostEnvironment environment
    ) =>
        new()
        {
            Command = command,
            Profile = options.Profile.Name,
            Seed = options.Seed,
            Rounds = options.Profile.Rounds,
            Strict = options.Strict,
            Commit = environment.Project.Commit,
            Version =
                typeof(RunSession)
                    .Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()
                    ?.InformationalVersion
                ?? "unknown",
            Order =
            [
                .. sweep
                    .Plan.Order.GroupBy(sample => sample.Round)
                    .OrderBy(round => round.Key)
                    .Select(round => (IReadOnlyList<Cell>)[.. round.Select(sample => sample.Cell)]),
            ],
            Strategies = [.. options.Strategies.Select(Describe)],
            Shadow = options
                .Strategies.OfType<TrapAndEmulateStrategy>()
                .FirstOrDefault()
                ?.Shadow.ToString()
                .ToLowerInvariant(),
            Workloads =
            [
                .. options.Workloads.Select(workload => new WorkloadEntry(
                    workload.Id,
                    workload.Operation(GuestInterface.Native).Instruction,
                    workload.Description
                )
                {
                    ParavirtualOperation = workload.Operation(GuestInterface.Paravirtual).Instruction,
                    DiskServiceNanoseconds = workload.Disk?.ServiceNanoseconds,
                }),
            ],
            Skipped = sweep.Plan.Skipped,
            GuestImages =
            [
                .. sweep.Images.Select(image => new GuestImageEntry(
                    image.Workload,
                    image.TrapsPerUnit,
                    image.Sha256,
                    Word(image.Interface)
                )),
            ],
        };

    private static string Word(GuestInterface built) =>
        built == GuestInterface.Paravirtual ? "paravirtual" : GuestImageEntry.Native;

    private static StrategyEntry Describe(Strategy strategy)
    {
        if (strategy.UnavailableReason() is { } reason)
        {
            return new StrategyEntry(strategy.Id, strategy.Label, strategy.IsSimulated, $"not available: {reason}");
        }

        using var machine = new VirtualMachine(GuestMemory.MinimumSize, strategy.CreateEngine);
        return new StrategyEntry(
            strategy.Id,
            strategy.Label,
            strategy.IsSimulated,
            machine.Capabilities.TimeSource,
            [.. machine.Capabilities.Holes.Select(hole => new HoleEntry(hole.Instruction, hole.Effect))]
        );
    }
}
