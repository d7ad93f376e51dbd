using System.Globalization;
using VirtBench.Analysis;
using VirtBench.Strategies;

namespace VirtBench.Reporting.Reports;

/// <summary>What disks cost: CPU time and wall time apart, and what is lost of the throughput against how much is waited.</summary>
internal static class InputAndOutput
{
    /// <summary>Throughput lost by a workload that streams, from which on virtualization is said to show.</summary>
    private const double MuchLost = 0.5;

    /// <summary>Throughput lost by a workload that waits, up to which virtualization is said to be hidden.</summary>
    private const double LittleLost = 0.05;

    private const string Streaming = "disk-stream";
    private const string WaitingWorkload = "disk-io";

    /// <summary>Nothing where no guest used a disk.</summary>
    public static IReadOnlyList<Block> Of(RunAnalysis run)
    {
        var cells = DiskCell.Of(run);
        if (cells.Count == 0)
        {
            return [];
        }
        var blocks = new List<Block>
        {
            new Paragraph(
                "A unit's wall time is CPU time and waiting. Waiting is the time that the virtual CPU was halted; CPU time is the rest, the guest's "
                    + "own and that of virtualizing it. Throughput lost compares with a unit whose requests cost nothing but "
                    + "their service: 1 \u2212 (t0 + k·S)/t(k), with t0 measured at k = 0 under the same strategy and S the stated "
                    + "service time of a request. So a device that is fast lets the cost of virtualization show in full, and "
                    + "one that is slow hides it: the CPU would have waited anyway."
            ),
            Table(run, cells),
        };
        blocks.AddRange(Statements(run, cells));
        if (Deliveries(run, cells) is { Rows.Count: > 0 } deliveries)
        {
            blocks.Add(deliveries);
        }
        return blocks;
    }

    private static Table Table(RunAnalysis run, IReadOnlyList<DiskCell> cells) =>
        new(
            "Where the time of a unit goes, mean of the usable samples at the largest k",
            [
                new("Workload"),
                new("Strategy"),
                new("k", true),
                new("Wall time", true),
                new("CPU time", true),
                new("Waiting", true),
                new("Throughput lost", true),
                new("Exits per request", true),
                new("Interrupts per request", true),
                new("Device, per request", true),
            ],
            [
                .. Last(cells)
                    .Select(cell =>
                        (IReadOnlyList<string>)
                            [
                                cell.Cell.Workload,
                                Label(run, cell.Cell.Strategy),
                                cell.Cell.TrapsPerUnit.ToString(CultureInfo.InvariantCulture),
                                Quantity.Time(cell.UnitNanoseconds),
                                Quantity.Time(cell.UnitNanoseconds - cell.WaitingNanoseconds),
                                Quantity.Percent(cell.WaitingNanoseconds / cell.UnitNanoseconds),
                                cell.Share is { } share ? Quantity.Percent(share.ThroughputLost) : "",
                                cell.ExitsPerRequest is { } exits ? Quantity.Number(exits) : "",
                                Quantity.Number(cell.InterruptsPerRequest),
                                Quantity.Time(cell.LatencyNanoseconds),
                            ]
                    ),
            ]
        );

    private static IEnumerable<DiskCell> Last(IReadOnlyList<DiskCell> cells) =>
        cells.GroupBy(cell => (cell.Cell.Strategy, cell.Cell.Workload)).Select(group => group.Last());

    /// <summary>Strategies that lose much where the device is fast: what they lose where it is slow, and why if not little.</summary>
    private static IEnumerable<Block> Statements(RunAnalysis run, IReadOnlyList<DiskCell> cells)
    {
        var last = Last(cells).ToList();
        var items = new List<Paragraph>();
        foreach (var stream in last.Where(cell => cell.Cell.Workload == Streaming && cell.Share is not null))
        {
            var io = last.Find(cell =>
                cell.Cell.Workload == WaitingWorkload && cell.Cell.Strategy == stream.Cell.Strategy
            );
            if (stream.Share!.Value.ThroughputLost <= MuchLost || io?.Share is not { } waiting)
            {
                continue;
            }
            var text =
                $": {Streaming} loses {Quantity.Percent(stream.Share.Value.ThroughputLost)} of its throughput, {WaitingWorkload} "
                + $"{Quantity.Percent(waiting.ThroughputLost)} while waiting {Quantity.Percent(waiting.WaitingShare)} of the time.";
            if (waiting.ThroughputLost > LittleLost)
            {
                text += " " + Why(run, io, waiting);
            }
            items.Add(new Paragraph(Span.Strong(Label(run, stream.Cell.Strategy)), text));
        }
        if (items.Count > 0)
        {
            yield return new BulletList(items);
        }
    }

    // Of the time beyond the ideal, what is CPU time cannot be hidden by waiting for one request at a time; the rest is the device's lateness.
    private static string Why(RunAnalysis run, DiskCell io, IoShare share)
    {
        var service = run.Workload(io.Cell.Workload).DiskServiceNanoseconds ?? 0;
        var beyond = (share.UnitNanoseconds - share.IdealNanoseconds) / io.Requests;
        var late = Math.Max(0, io.LatencyNanoseconds - service);
        var cpu = beyond - late;
        return $"That is more than {Quantity.Percent(LittleLost)}: a request takes {Quantity.Time(beyond)} longer than its service, of which the "
            + $"device itself was late by {Quantity.Time(late)} and exits, wake-ups and the guest's driver took {Quantity.Time(cpu)}; "
            + "with one request at a time nothing of that overlaps the service.";
    }

    private static Table? Deliveries(RunAnalysis run, IReadOnlyList<DiskCell> cells)
    {
        var groups = Last(cells)
            .GroupBy(cell => (Basis: StrategyWithDelivery.BasisOf(cell.Cell.Strategy), cell.Cell.Workload))
            .Where(group => group.Count() > 1)
            .ToList();
        return groups.Count == 0
            ? null
            : new Table(
                "The same guest with its interrupts delivered in other ways: exits saved and time per request",
                [
                    new("Workload"),
                    new("Strategy"),
                    new("k", true),
                    new("Interrupts per request", true),
                    new("Exits per request", true),
                    new("Exits saved", true),
                    new("Kicks per request", true),
                    new("Time per request", true),
                ],
                [
                    .. groups.SelectMany(group =>
                        group.Select(cell =>
                            (IReadOnlyList<string>)
                                [
                                    cell.Cell.Workload,
                                    Label(run, cell.Cell.Strategy),
                                    cell.Cell.TrapsPerUnit.ToString(CultureInfo.InvariantCulture),
                                    Quantity.Number(cell.InterruptsPerRequest),
                                    cell.ExitsPerRequest is { } exits ? Quantity.Number(exits) : "",
                                    group.FirstOrDefault(other => other.Cell.Strategy == group.Key.Basis) is { } basis
                                    && basis != cell
                                    && basis.ExitsPerRequest is { } all
                                    && cell.ExitsPerRequest is { } left
                                        ? Quantity.Number(all - left)
                                        : "",
                                    Quantity.Number(cell.KicksPerRequest),
                                    Quantity.Time(cell.UnitNanoseconds / cell.Requests),
                                ]
                        )
                    ),
                ]
            );
    }

    private static string Label(RunAnalysis run, string strategy) =>
        run.Strategy(strategy).Label + (run.Strategy(strategy).IsComputed ? ", computed" : "");
}
