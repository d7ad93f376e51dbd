using MathNet.Numerics.Distributions;
using MathNet.Numerics.Statistics;

namespace VirtBench.Analysis;

/// <summary>A straight line of time per unit over k.</summary>
/// <param name="Intercept">Time at k = 0.</param>
/// <param name="Slope">Time per step of k.</param>
internal readonly record struct Line(double Intercept, double Slope)
{
    public double At(double k) => Intercept + k * Slope;
}

/// <summary>
/// The bootstrap over rounds of one fit: every resample draws as many rounds as there are, with replacement, and keeps
/// the least-squares line and the mean at each k of the samples in them.
/// </summary>
internal sealed class RoundBootstrap
{
    private readonly int rounds;
    private readonly Line[] lines;
    private readonly double[][] means;

    private RoundBootstrap(int rounds, Line[] lines, double[][] means)
    {
        this.rounds = rounds;
        this.lines = lines;
        this.means = means;
    }

    /// <summary>Resamples; null when fewer than two rounds leave nothing to draw from.</summary>
    public static RoundBootstrap? Draw(FitPoints points, int resamples, int seed)
    {
        var roundCount = points.RoundCount;
        if (roundCount < 2)
        {
            return null;
        }
        var random = new Random(seed);
        var densities = points.Densities.Count;
        var lines = new List<Line>(resamples);
        var means = new List<double[]>(resamples);
        var counts = new double[densities];
        var sums = new double[densities];
        for (var resample = 0; resample < resamples; resample++)
        {
            Array.Clear(counts);
            Array.Clear(sums);
            for (var draw = 0; draw < roundCount; draw++)
            {
                points.AddRound(random.Next(roundCount), counts, sums);
            }
            // A resample in which an unfinished round's missing k leaves no mean cannot speak about that k.
            if (Array.Exists(counts, count => count == 0))
            {
                continue;
            }
            var mean = new double[densities];
            for (var i = 0; i < densities; i++)
            {
                mean[i] = sums[i] / counts[i];
            }
            lines.Add(points.LineThrough(counts, mean));
            means.Add(mean);
        }
        return lines.Count < resamples / 2 ? null : new RoundBootstrap(roundCount, [.. lines], [.. means]);
    }

    /// <summary>Interval of an estimate that is a function of the line.</summary>
    public Interval? IntervalAround(double value, double confidence, Func<Line, double> estimate) =>
        IntervalAround(value, confidence, lines.Select(estimate));

    /// <summary>Interval of an estimate that is a function of the line and the means at each k.</summary>
    public Interval? IntervalAround(double value, double confidence, Func<Line, double[], double> estimate) =>
        IntervalAround(value, confidence, lines.Zip(means, estimate));

    private Interval? IntervalAround(double value, double confidence, IEnumerable<double> replicates)
    {
        var deviation = replicates.StandardDeviation() * Math.Sqrt(rounds / (rounds - 1.0));
        var half = deviation * StudentT.InvCDF(0, 1, rounds - 1, 0.5 + confidence / 2);
        return double.IsFinite(half) && double.IsFinite(value) ? new Interval(value - half, value + half) : null;
    }
}
