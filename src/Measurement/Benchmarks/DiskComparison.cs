using System.Globalization;
using VirtBench.Strategies;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Workloads;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>
/// Reads of 4 KiB from one disk in memory: ATA PIO, virtio-blk one at a time and 32 at once, by every strategy that runs here on the host's
/// clock and every way of delivering interrupts that it has. In turns, every sample in a fresh VM; all that is read is checked.
/// </summary>
internal static class DiskComparison
{
    private const int Rounds = 7;
    private const int ProbeReads = 128;
    private const int MostReads = 50_000;

    /// <summary>About how long a sample is to last.</summary>
    private const double SampleNanoseconds = 50e6;

    private static readonly (DiskFrontEndKind FrontEnd, int Depth)[] Ways =
    [
        (DiskFrontEndKind.Ata, 1),
        (DiskFrontEndKind.Virtio, 1),
        (DiskFrontEndKind.Virtio, 32),
    ];

    /// <summary>Measures and prints the table, and what is not available with the reason.</summary>
    public static void Print(TextWriter output) =>
        Print(
            output,
            StrategyCatalog.All.Where(strategy => strategy.RunsPrivilegedGuests && !strategy.IsSimulated),
            Rounds,
            SampleNanoseconds
        );

    internal static void Print(
        TextWriter output,
        IEnumerable<Strategy> strategies,
        int rounds,
        double sampleNanoseconds
    )
    {
        output.WriteLine(
            $"Reads of 4 KiB from a disk in memory, {rounds} samples of each in turns, this host; by request, exits are those to the VMM:"
        );
        var measured = new List<Series>();
        foreach (Strategy strategy in strategies)
        {
            foreach (InterruptDelivery delivery in Enum.GetValues<InterruptDelivery>())
            {
                Strategy varied =
                    delivery == InterruptDelivery.Exit ? strategy : new StrategyWithDelivery(strategy, delivery);
                if (varied.UnavailableReason() is { } reason)
                {
                    output.WriteLine($"  {varied.Id}: skipped, {reason}");
                    continue;
                }

                measured.AddRange(
                    Ways.Select(way => new Series(new ReadingGuest(strategy, delivery, way.FrontEnd, way.Depth)))
                );
            }
        }

        foreach (Series series in measured)
        {
            series.Calibrate(sampleNanoseconds);
        }

        for (int round = 0; round < rounds; round++)
        {
            foreach (Series series in measured)
            {
                series.Sample();
            }
        }

        output.WriteLine(
            "| strategy | driver | at once | reads/s | quartiles | to ATA | exits | port | memory | halt | kick | interrupts | asleep |"
        );
        output.WriteLine("|---|---|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|");
        Series? ata = null;
        foreach (Series series in measured)
        {
            ata = series.Guest.FrontEnd == DiskFrontEndKind.Ata ? series : ata;
            output.WriteLine(series.Row(ata!));
        }
    }

    /// <summary>One way of reading, by one strategy.</summary>
    private sealed class Series(ReadingGuest guest)
    {
        private readonly List<double> _perSecond = [];
        private readonly List<MeasuredRegion> _regions = [];
        private int _reads;

        public ReadingGuest Guest { get; } = guest;

        public void Calibrate(double sampleNanoseconds)
        {
            _ = Guest.Run(ProbeReads); // the first may meet code that is not compiled yet
            double each = Guest.Run(ProbeReads).ElapsedNanoseconds / ProbeReads;
            _reads = (int)Math.Clamp(sampleNanoseconds / each, ProbeReads, MostReads);
        }

        public void Sample()
        {
            MeasuredRegion region = Guest.Run(_reads);
            _regions.Add(region);
            _perSecond.Add(_reads / region.ElapsedNanoseconds * 1e9);
        }

        public string Row(Series ata)
        {
            double requests = (double)_reads * _regions.Count;
            double Exits(TrapReason reason) => _regions.Sum(region => region.Exits[reason]) / requests;
            double exits = _regions.Sum(GuestRunResult.TrapsIn) / requests;
            double interrupts = _regions.Sum(region => region.Io!.Disk!.Interrupts) / requests;
            double asleep =
                _regions.Sum(region => region.Io!.WaitingNanoseconds)
                / _regions.Sum(region => region.ElapsedNanoseconds);
            double[] ratios = [.. _perSecond.Zip(ata._perSecond, (own, other) => own / other).Order()];
            double[] sorted = [.. _perSecond.Order()];
            return string.Create(
                CultureInfo.InvariantCulture,
                $"| {Guest.Strategy.Id} | {(Guest.FrontEnd == DiskFrontEndKind.Ata ? "ATA PIO" : "virtio-blk")} | {Guest.Depth} "
                    + $"| {Quantiles.At(sorted, 0.5):F0} | {Quantiles.At(sorted, 0.25):F0} to {Quantiles.At(sorted, 0.75):F0} "
                    + $"| {Quantiles.At(ratios, 0.5):F1} | {exits:F2} | {Exits(TrapReason.PortIo):F2} | {Exits(TrapReason.Mmio):F2} "
                    + $"| {Exits(TrapReason.Halt):F2} | {Exits(TrapReason.Kick):F2} | {interrupts:F2} | {asleep:P0} |"
            );
        }
    }
}
