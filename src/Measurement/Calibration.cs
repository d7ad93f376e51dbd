namespace VirtBench.Measurement;

/// <summary>Finds how many units make a sample long enough that clock reads and idle noise are below 0.1 % of it.</summary>
internal static class Calibration
{
    /// <summary>More units than any sample can need; keeps a broken clock from asking for ever more.</summary>
    public const long MaximumUnits = 1L << 40;

    // A probe of an eighth of a sample errs by a few per cent at most; the margin makes up for them.
    private const double ProbeShare = 1.0 / 8;
    private const double Margin = 1.1;
    private const int WholeProbes = 3;

    /// <summary>
    /// Probes with growing units until a probe is long enough to extrapolate from, then with a whole sample's until one is
    /// as long as asked: the first ones may have met a VMM that was not compiled yet, and taken too long.
    /// </summary>
    /// <param name="sampleNanoseconds">Time that a sample is to last.</param>
    /// <param name="units">Units of the first probe.</param>
    /// <param name="probe">Measures so many units, in nanoseconds; null when it failed.</param>
    /// <returns>Units, at least 1; null when a probe failed.</returns>
    public static long? Units(double sampleNanoseconds, long units, Func<long, double?> probe)
    {
        double? elapsed = probe(units);
        while (elapsed < sampleNanoseconds * ProbeShare && units < MaximumUnits)
        {
            double growth = Math.Clamp(2 * ProbeShare * sampleNanoseconds / Math.Max(elapsed.Value, 1), 2, 100);
            units = (long)Math.Min(units * growth, MaximumUnits);
            elapsed = probe(units);
        }

        for (int whole = 0; whole < WholeProbes && elapsed is { } last; whole++)
        {
            double wanted = Math.Ceiling(units * (sampleNanoseconds * Margin / Math.Max(last, 1)));
            units = (long)Math.Clamp(wanted, 1, MaximumUnits);
            elapsed = probe(units);
            if (elapsed >= sampleNanoseconds)
            {
                break;
            }
        }

        return elapsed is null ? null : units;
    }
}
