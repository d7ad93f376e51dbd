using MathNet.Numerics.Statistics;

namespace VirtBench.Analysis;

/// <summary>
/// The Theil–Sen slope: the median of the slopes between all pairs of points. Up to 29 % of the points may lie anywhere
/// without spoiling it (Sen, 1968), so it stands beside least squares as the check on outliers.
/// </summary>
public static class TheilSen
{
    /// <summary>With more points than this the medians of equal x take their place: pairs grow with the square.</summary>
    private const int MostPoints = 3000;

    /// <summary>The slope, or null when no two points differ in x.</summary>
    public static double? Slope(IReadOnlyList<double> x, IReadOnlyList<double> y)
    {
        if (x.Count > MostPoints)
        {
            var medians = x.Zip(y)
                .GroupBy(point => point.First, point => point.Second)
                .Select(group => (X: group.Key, Y: group.Median()))
                .ToArray();
            return medians.Length < x.Count
                ? Slope([.. medians.Select(point => point.X)], [.. medians.Select(point => point.Y)])
                : null;
        }
        var slopes = new List<double>();
        for (var i = 0; i < x.Count; i++)
        {
            for (var j = i + 1; j < x.Count; j++)
            {
                if (x[i] != x[j])
                {
                    slopes.Add((y[j] - y[i]) / (x[j] - x[i]));
                }
            }
        }
        return slopes.Count == 0 ? null : ArrayStatistics.MedianInplace(slopes.ToArray());
    }
}
