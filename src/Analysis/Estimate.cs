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

    /// <summary>
    /// This over another estimate that was made independently. The interval is Fieller's (Supplement to the Journal of the Royal
    /// Statistical Society 7, 1940), both intervals taken to be symmetric and of one level. Null where the other cannot be told from
    /// 0: then no ratio is too large.
    /// </summary>
    public Estimate? Over(Estimate other)
    {
        if (other.Value == 0)
        {
            return null;
        }
        if (Interval is null && other.Interval is null)
        {
            return new Estimate(Value / other.Value, null);
        }
        var above = HalfWidth * HalfWidth;
        var below = other.HalfWidth * other.HalfWidth;
        var denominator = (other.Value * other.Value) - below;
        if (denominator <= 0)
        {
            return null;
        }
        var middle = Value * other.Value / denominator;
        // Not negative: it is the numerator's half-width squared times the denominator, and a square.
        var half = Math.Sqrt((Value * Value * below) + (above * denominator)) / denominator;
        return new Estimate(Value / other.Value, new Interval(middle - half, middle + half));
    }

    /// <summary>This less another estimate that was made independently.</summary>
    public Estimate Minus(Estimate other)
    {
        var value = Value - other.Value;
        var half = Math.Sqrt((HalfWidth * HalfWidth) + (other.HalfWidth * other.HalfWidth));
        return new Estimate(
            value,
            Interval is null && other.Interval is null ? null : new Interval(value - half, value + half)
        );
    }

    private double HalfWidth => Interval is { } interval ? (interval.High - interval.Low) / 2 : 0;

    /// <summary>Half the interval's width over the estimate's magnitude; null without an interval or at 0.</summary>
    public double? RelativeHalfWidth =>
        Interval is { } interval && Value != 0 ? (interval.High - interval.Low) / 2 / Math.Abs(Value) : null;
}
