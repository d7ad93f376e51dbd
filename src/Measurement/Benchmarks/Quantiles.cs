namespace VirtBench.Measurement.Benchmarks;

/// <summary>How the comparisons print what they measured window by window.</summary>
internal static class Quantiles
{
    /// <summary>One line: median, quartiles, 10th percentile. Sorts the values.</summary>
    public static void Print(TextWriter output, string name, double[] values, string format)
    {
        Array.Sort(values);
        string At(double share) => values[(int)(share * (values.Length - 1))].ToString(format);
        output.WriteLine(
            $"  {name, -34} median {At(0.5), 7}   quartiles {At(0.25), 7} {At(0.75), 7}   10th percentile {At(0.1), 7}"
        );
    }
}
