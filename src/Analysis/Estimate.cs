namespace VirtBench.Analysis;

/// <summary>The two ends of a confidence interval, in the unit of what they enclose.</summary>
/// <param name="Low">Lower end.</param>
/// <param name="High">Upper end.</param>
public readonly record struct Interval(double Low, double High)
{
    /// <summary>Whether <paramref name="value"/> lies in the interval, ends included.</summary>
    public bool Contains(double value) => value >= Low && value <= High;

    /// <summary>Whether the two intervals have a value in common.</summary>
    public bool Overlaps(Interval other) => Low <= other.High && other.Low <= High;
}

/// <summary>An estimated value with its confidence interval.</summary>
/// <param name="Value">The estimate.</param>
/// <param name="Interval">The interval, or null where the samples do not tell how sure the estimate is.</param>
public readonly record struct Estimate(double Value, Interval? Interval)
{
    /// <summary>Lower end, or null without an interval.</summary>
    public double? Low => Interval?.Low;

    /// <summary>Upper end, or null without an interval.</summary>
    public double? High => Interval?.High;

    /// <summary>Half the interval's width over the estimate's magnitude; null without an interval or at 0.</summary>
    public double? RelativeHalfWidth =>
        Interval is { } interval && Value != 0 ? (interval.High - interval.Low) / 2 / Math.Abs(Value) : null;
}
