using System.Text.Json.Nodes;
using VirtBench.Analysis;
using VirtBench.Measurement;
using VirtBench.Reporting.Runs;
using VirtBench.Vmm.Execution;

namespace VirtBench.Reporting;

/// <summary>A run as figures and reports see it: what its files hold and what follows from that.</summary>
/// <param name="Manifest">manifest.json.</param>
/// <param name="Contents">Samples, labelled, and exits.</param>
/// <param name="Fits">A fit for every strategy and workload with samples, in the manifest's order.</param>
/// <param name="Environment">environment.json.</param>
public sealed record RunAnalysis(
    Manifest Manifest,
    RunContents Contents,
    IReadOnlyList<OverheadFit> Fits,
    JsonNode Environment
)
{
    /// <summary>Reads a run directory and fits its samples.</summary>
    /// <exception cref="RunDirectoryException">A file is missing or malformed, or is not the one that was measured.</exception>
    public static RunAnalysis Of(RunDirectory run)
    {
        var contents = run.Read();
        var description = run.Manifest.Run;
        var strategies = description.Strategies.Select(strategy => strategy.Id).ToList();
        var workloads = description.Workloads.Select(workload => workload.Id).ToList();
        var computed = description.Strategies.Where(s => s.IsComputed).Select(s => s.Id).ToHashSet();
        var fits = OverheadFit
            .OfAll(contents.Samples, computed.Contains, new FitOptions(description.Seed))
            .OrderBy(fit => Position(workloads, fit.Workload))
            .ThenBy(fit => Position(strategies, fit.Strategy))
            .ToList();
        return new RunAnalysis(run.Manifest, contents, fits, run.ReadEnvironment());

        static int Position(List<string> ids, string id) =>
            ids.IndexOf(id) is >= 0 and var index ? index : int.MaxValue;
    }

    /// <summary>The workloads that have samples, in the manifest's order.</summary>
    public IEnumerable<string> Workloads => Fits.Select(fit => fit.Workload).Distinct();

    /// <summary>The manifest's entry of a strategy, or one made of its id where the manifest does not know it.</summary>
    public StrategyEntry Strategy(string id) =>
        Manifest.Run.Strategies.FirstOrDefault(strategy => strategy.Id == id)
        ?? new StrategyEntry(id, id, IsComputed: false, "not recorded");

    /// <summary>
    /// Whether a strategy's times are those of an emulator of guest ring 0 behind /dev/kvm: measured, but of no processor.
    /// </summary>
    public bool IsRingZeroEmulated(string strategy) =>
        KvmEntry.IsOf(strategy) && new KvmEntry(Environment).IsRingZeroEmulated == true;

    /// <summary>The manifest's entry of a workload, or one made of its id where the manifest does not know it.</summary>
    public WorkloadEntry Workload(string id) =>
        Manifest.Run.Workloads.FirstOrDefault(workload => workload.Id == id) ?? new WorkloadEntry(id, null, id);

    /// <summary>
    /// Strategies in whose samples the host's kernel counted the exits too, those that it handles itself among them.
    /// </summary>
    public IReadOnlySet<string> KernelCounted { get; } =
        Contents.KernelStatistics.Select(counter => counter.Cell.Strategy).ToHashSet();

    /// <summary>
    /// Exits to the monitor that one sensitive operation takes, of whatever reason: what a unit of the largest k takes beyond one of
    /// k = 0. Null where nothing trapped or there is no control.
    /// </summary>
    public double? ExitsPerOperation(OverheadFit fit) => fit.TrapNanoseconds is null ? null : ExitsBeyondControl(fit);

    /// <summary>The same whether the operation is counted as one that traps or not. Null where there is no control.</summary>
    public double? ExitsBeyondControl(OverheadFit fit)
    {
        if (fit.Densities is not [{ TrapsPerUnit: 0 }, .., { TrapsPerUnit: > 0 } last])
        {
            return null;
        }

        return (ExitsPerUnit(last.TrapsPerUnit) - ExitsPerUnit(0)) / last.TrapsPerUnit;

        double ExitsPerUnit(int k)
        {
            var samples = UsableSamples(fit).Where(sample => sample.Cell.TrapsPerUnit == k).ToList();
            var rounds = samples.Select(sample => sample.Round).ToHashSet();
            var exits = Contents.Exits.Where(exit =>
                exit.Cell == new Cell(fit.Strategy, fit.Workload, k)
                && rounds.Contains(exit.Round)
                && exit.Reason != TrapReason.RegionMarker.Name()
                && exit.Reason != TrapReason.Kick.Name()
                && !EngineReasons.Contains(exit.Reason)
            );
            return exits.Sum(exit => (double)exit.Count) / samples.Sum(sample => (double)sample.Units);
        }
    }

    /// <summary>The samples that fits use.</summary>
    public IEnumerable<Sample> UsableSamples(OverheadFit fit) =>
        Contents.Samples.Where(sample =>
            sample.Cell.Strategy == fit.Strategy
            && sample.Cell.Workload == fit.Workload
            && sample.Status == SampleStatus.Ok
            && sample.Units > 0
            && double.IsFinite(sample.ElapsedNanoseconds)
            && sample.ElapsedNanoseconds > 0
        );
}
