using MathNet.Numerics.Distributions;

namespace VirtBench.Analysis;

/// <summary>
/// The F test for lack of fit: is the scatter of the cell means about the line larger than the scatter within cells
/// explains? (Draper and Smith, Applied Regression Analysis, chapter 2.)
/// </summary>
internal static class LackOfFit
{
    /// <summary>p, or null without a third density, without replicates, or without scatter within the cells.</summary>
    public static double? Probability(FitPoints points, Line line)
    {
        var lackFreedom = points.Densities.Count - 2;
        var pureFreedom = points.K.Length - points.Densities.Count;
        if (lackFreedom < 1 || pureFreedom < 1)
        {
            return null;
        }
        double lack = 0,
            pure = 0;
        for (var i = 0; i < points.Densities.Count; i++)
        {
            var cell = points.ByDensity[i];
            var residual = points.Means[i] - line.At(points.Densities[i]);
            lack += cell.Length * residual * residual;
            foreach (var sample in cell)
            {
                var scatter = sample.NanosecondsPerUnit - points.Means[i];
                pure += scatter * scatter;
            }
        }
        if (pure == 0)
        {
            return null;
        }
        var f = lack / lackFreedom / (pure / pureFreedom);
        return double.IsFinite(f) ? 1 - FisherSnedecor.CDF(lackFreedom, pureFreedom, f) : null;
    }
}
