namespace VirtBench.Measurement.Benchmarks;

/// <summary>How the comparisons print what they measured window by window.</summary>
internal static class Quantiles
{
    /// <summary>The value below which that share of the sorted values lies; NaN of none.</summary>
    public static double At(double[] sorted, double share) =>
        sorted.Length == 0 ? double.NaN : sorted[(int)(share * (sorted.Length - 1))];

    /// <summary>One line: median, quartiles, 10th percentile. Sorts the values.</summary>
    public static void Print(TextWriter output, string name, double[] values, string format)
    {
        Array.Sort(values);
        string At(double share) => Quantiles.At(values, share).ToString(format);
        output.WriteLine(
            $"  {name, -34} median {At(0.5), 7}   quartiles {At(0.25), 7} {At(0.75), 7}   10th percentile {At(0.1), 7}"
        );
    }
}
