namespace VirtBench.Measurement;

/// <summary>Finds how many units make a sample long enough that clock reads and idle noise are below 0.1 % of it.</summary>
internal static class Calibration
{
    /// <summary>More units than any sample can need; keeps a broken clock from asking for ever more.</summary>
    public const long MaximumUnits = 1L << 40;

    // A probe of an eighth of a sample errs by a few per cent at most; the margin makes up for them.
    private const double ProbeShare = 1.0 / 8;
    private const double Margin = 1.1;

    /// <summary>Probes with growing units until a probe is long enough to extrapolate from.</summary>
    /// <param name="sampleNanoseconds">Time that a sample is to last.</param>
    /// <param name="units">Units of the first probe.</param>
    /// <param name="probe">Measures so many units, in nanoseconds; null when it failed.</param>
    /// <returns>Units, at least 1; null when a probe failed.</returns>
    public static long? Units(double sampleNanoseconds, long units, Func<long, double?> probe)
    {
        for (; ; )
        {
            if (probe(units) is not { } elapsed)
            {
                return null;
            }

            if (elapsed >= sampleNanoseconds * ProbeShare || units == MaximumUnits)
            {
                double wanted = Math.Ceiling(units * (sampleNanoseconds * Margin / Math.Max(elapsed, 1)));
                return (long)Math.Clamp(wanted, 1, MaximumUnits);
            }

            double growth = Math.Clamp(2 * ProbeShare * sampleNanoseconds / Math.Max(elapsed, 1), 2, 100);
            units = (long)Math.Min(units * growth, MaximumUnits);
        }
    }
}
