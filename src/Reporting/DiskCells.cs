using VirtBench.Analysis;
using VirtBench.Measurement;
using VirtBench.Vmm.Execution;

namespace VirtBench.Reporting;

/// <summary>A cell whose guest used its disk, over all of its usable samples.</summary>
/// <param name="Cell">Strategy, workload and k.</param>
/// <param name="Share">Where a unit's time went; null where units without requests were not measured.</param>
/// <param name="UnitNanoseconds">Mean wall time of a unit.</param>
/// <param name="WaitingNanoseconds">Mean time slept in a unit.</param>
/// <param name="Requests">Requests of a unit.</param>
/// <param name="ExitsPerRequest">Exits to the monitor beyond those of a unit without requests, by the requests.</param>
/// <param name="KicksPerRequest">Of them, kicks: the vCPU brought out of the guest for an interrupt, or woken.</param>
/// <param name="InterruptsPerRequest">Interrupts that the disk raised.</param>
/// <param name="LatencyNanoseconds">Mean time from a request's being seen to its completion.</param>
internal sealed record DiskCell(
    Cell Cell,
    IoShare? Share,
    double UnitNanoseconds,
    double WaitingNanoseconds,
    double Requests,
    double? ExitsPerRequest,
    double KicksPerRequest,
    double InterruptsPerRequest,
    double LatencyNanoseconds
)
{
    /// <summary>All such cells of a run, in the order of its fits and of k.</summary>
    public static IReadOnlyList<DiskCell> Of(RunAnalysis run)
    {
        var io = run.Contents.Io.ToLookup(record => record.Cell);
        var exits = run.Contents.Exits.ToLookup(exit => exit.Cell);
        var cells = new List<DiskCell>();
        foreach (var fit in run.Fits)
        {
            var samples = run.UsableSamples(fit).ToLookup(sample => sample.Cell);
            double ExitsPerUnit(Cell cell, Func<ExitRecord, bool> which)
            {
                var rounds = samples[cell].Select(sample => sample.Round).ToHashSet();
                return exits[cell]
                        .Where(exit => rounds.Contains(exit.Round) && which(exit))
                        .Sum(exit => (double)exit.Count) / samples[cell].Sum(sample => (double)sample.Units);
            }

            var control = fit.Densities is [{ TrapsPerUnit: 0 } first, ..] ? first : null;
            foreach (var at in fit.Densities.Where(at => at.TrapsPerUnit > 0))
            {
                var cell = new Cell(fit.Strategy, fit.Workload, at.TrapsPerUnit);
                var rounds = samples[cell].Select(sample => sample.Round).ToHashSet();
                var records = io[cell].Where(record => rounds.Contains(record.Round)).ToList();
                var requests = records.Sum(record => (double)(record.Statistics.Disk?.Requests ?? 0));
                if (requests == 0)
                {
                    continue;
                }
                var units = samples[cell].Sum(sample => (double)sample.Units);
                var wall = samples[cell].Sum(sample => sample.ElapsedNanoseconds) / units;
                var waiting = records.Sum(record => record.Statistics.WaitingNanoseconds) / units;
                bool IsExit(ExitRecord exit) =>
                    exit.Reason != TrapReason.RegionMarker.Name() && !EngineReasons.Contains(exit.Reason);
                cells.Add(
                    new DiskCell(
                        cell,
                        control is not null
                            ? IoShare.Of(
                                wall,
                                waiting,
                                control.UnitNanoseconds.Value,
                                requests / units,
                                run.Workload(fit.Workload).DiskServiceNanoseconds ?? 0
                            )
                            : null,
                        wall,
                        waiting,
                        requests / units,
                        control is not null
                            ? (ExitsPerUnit(cell, IsExit) - ExitsPerUnit(cell with { TrapsPerUnit = 0 }, IsExit))
                                * units
                                / requests
                            : null,
                        ExitsPerUnit(cell, exit => exit.Reason == TrapReason.Kick.Name()) * units / requests,
                        records.Sum(record => (double)record.Statistics.Disk!.Interrupts) / requests,
                        records.Sum(record => record.Statistics.Disk!.LatencyTotalNanoseconds)
                            / records.Sum(record => (double)record.Statistics.Disk!.Completions)
                    )
                );
            }
        }
        return cells;
    }
}
