using MathNet.Numerics.Statistics;
using VirtBench.Measurement;

namespace VirtBench.Analysis;

/// <summary>
/// Tukey's fences: a value more than 1.5 interquartile ranges outside the quartiles is a mild outlier, more than 3 an
/// extreme one (Tukey, Exploratory Data Analysis, 1977, section 2D). The label never removes a sample.
/// </summary>
public static class Tukey
{
    /// <summary>Fewer values than this are not judged: their quartiles are the values themselves.</summary>
    public const int FewestValues = 4;

    private const double MildFence = 1.5;
    private const double ExtremeFence = 3;

    /// <summary>
    /// Labels each value against the others. Quartiles are interpolated linearly between order statistics (R's type 7).
    /// Values that are not finite are not judged and do not count.
    /// </summary>
    public static OutlierLabel[] Labels(IReadOnlyList<double> values)
    {
        var labels = new OutlierLabel[values.Count];
        var sorted = values.Where(double.IsFinite).Order().ToArray();
        if (sorted.Length < FewestValues)
        {
            return labels;
        }
        var lower = SortedArrayStatistics.QuantileCustom(sorted, 0.25, QuantileDefinition.R7);
        var upper = SortedArrayStatistics.QuantileCustom(sorted, 0.75, QuantileDefinition.R7);
        var range = upper - lower;
        for (var i = 0; i < labels.Length; i++)
        {
            var outside = Math.Max(lower - values[i], values[i] - upper);
            labels[i] =
                !double.IsFinite(values[i]) || !(outside > MildFence * range) ? OutlierLabel.None
                : outside > ExtremeFence * range ? OutlierLabel.Extreme
                : OutlierLabel.Mild;
        }
        return labels;
    }

    /// <summary>
    /// The label of every sample, judged by its time per unit among the measured samples of its own cell; in the order
    /// of <paramref name="samples"/>. Failed samples have no time and stay unlabelled.
    /// </summary>
    public static OutlierLabel[] LabelWithinCells(IReadOnlyList<Sample> samples)
    {
        var labels = new OutlierLabel[samples.Count];
        var cells = Enumerable
            .Range(0, samples.Count)
            .Where(i => samples[i].Status != SampleStatus.Failed)
            .GroupBy(i => samples[i].Cell);
        foreach (var cell in cells)
        {
            var indices = cell.ToArray();
            var inCell = Labels([.. indices.Select(i => samples[i].NanosecondsPerUnit)]);
            for (var i = 0; i < indices.Length; i++)
            {
                labels[indices[i]] = inCell[i];
            }
        }
        return labels;
    }
}
