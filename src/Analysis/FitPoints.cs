using MathNet.Numerics.LinearRegression;
using VirtBench.Measurement;

namespace VirtBench.Analysis;

/// <summary>The usable samples of one fit, arranged by k and by round.</summary>
internal sealed class FitPoints
{
    private readonly double[,] counts;
    private readonly double[,] sums;

    public FitPoints(IReadOnlyList<Sample> samples)
    {
        K = [.. samples.Select(sample => (double)sample.Cell.TrapsPerUnit)];
        Nanoseconds = [.. samples.Select(sample => sample.NanosecondsPerUnit)];
        ByDensity =
        [
            .. samples
                .GroupBy(sample => sample.Cell.TrapsPerUnit)
                .OrderBy(cell => cell.Key)
                .Select(cell => cell.ToArray()),
        ];
        Densities = [.. ByDensity.Select(cell => cell[0].Cell.TrapsPerUnit)];
        Means = [.. ByDensity.Select(cell => cell.Average(sample => sample.NanosecondsPerUnit))];
        var rounds = samples.Select(sample => sample.Round).Distinct().Order().ToArray();
        RoundCount = rounds.Length;
        counts = new double[RoundCount, Densities.Count];
        sums = new double[RoundCount, Densities.Count];
        for (var density = 0; density < ByDensity.Count; density++)
        {
            foreach (var sample in ByDensity[density])
            {
                var round = Array.BinarySearch(rounds, sample.Round);
                counts[round, density]++;
                sums[round, density] += sample.NanosecondsPerUnit;
            }
        }
    }

    public double[] K { get; }

    public double[] Nanoseconds { get; }

    /// <summary>The distinct k, rising.</summary>
    public IReadOnlyList<int> Densities { get; }

    public IReadOnlyList<Sample[]> ByDensity { get; }

    public double[] Means { get; }

    public int RoundCount { get; }

    /// <summary>Whether any k was measured more than once.</summary>
    public bool HasReplicates => ByDensity.Any(cell => cell.Length > 1);

    /// <summary>Adds a round's samples to the totals at each k.</summary>
    public void AddRound(int round, double[] countsAtDensity, double[] sumsAtDensity)
    {
        for (var i = 0; i < countsAtDensity.Length; i++)
        {
            countsAtDensity[i] += counts[round, i];
            sumsAtDensity[i] += sums[round, i];
        }
    }

    /// <summary>Least squares over all samples.</summary>
    public Line LeastSquares()
    {
        var (intercept, slope) = SimpleRegression.Fit(K, Nanoseconds);
        return new Line(intercept, slope);
    }

    /// <summary>
    /// Least squares over samples of which only number and mean at each k are given: the same line, as every sample of a cell
    /// has the same k.
    /// </summary>
    public Line LineThrough(double[] weights, double[] means)
    {
        double total = 0,
            k = 0,
            t = 0;
        for (var i = 0; i < weights.Length; i++)
        {
            total += weights[i];
            k += weights[i] * Densities[i];
            t += weights[i] * means[i];
        }
        k /= total;
        t /= total;
        double kk = 0,
            kt = 0;
        for (var i = 0; i < weights.Length; i++)
        {
            var distance = Densities[i] - k;
            kk += weights[i] * distance * distance;
            kt += weights[i] * distance * (means[i] - t);
        }
        var slope = kk == 0 ? 0 : kt / kk;
        return new Line(t - slope * k, slope);
    }
}
