using System.Globalization;

namespace VirtBench.Analysis;

/// <summary>Numbers as people read them: three significant digits and a unit of fitting size. Files keep full precision.</summary>
public static class Quantity
{
    private const string Minus = "\u2212";

    /// <summary>A time, from picoseconds to seconds: <c>2.55 µs</c>.</summary>
    public static string Time(double nanoseconds)
    {
        var (factor, unit) = TimeUnit(nanoseconds);
        return Number(nanoseconds * factor) + " " + unit;
    }

    /// <summary>A time with its interval in the same unit: <c>2.55 µs (2.50 to 2.60)</c>.</summary>
    public static string Time(Estimate nanoseconds)
    {
        var (factor, unit) = TimeUnit(nanoseconds.Value);
        return WithInterval(nanoseconds, factor, " " + unit);
    }

    /// <summary>How many times as much: <c>26.8 ×</c>, with the interval when there is one.</summary>
    public static string Times(Estimate ratio) => WithInterval(ratio, 1, " ×");

    /// <summary>A rate per second: <c>1.25 M/s</c>.</summary>
    public static string PerSecond(double rate)
    {
        var magnitude = Math.Abs(rate);
        return magnitude switch
        {
            >= 1e9 => Number(rate / 1e9) + " G/s",
            >= 1e6 => Number(rate / 1e6) + " M/s",
            >= 1e3 => Number(rate / 1e3) + " k/s",
            _ => Number(rate) + " /s",
        };
    }

    /// <summary>A share as a percentage: <c>2.4 %</c>.</summary>
    public static string Percent(double share) =>
        Math.Abs(share) is > 0 and < 1e-5 ? "below 0.001 %" : Number(share * 100, 2) + " %";

    /// <summary>A probability: <c>0.31</c>, or <c>below 0.001</c>.</summary>
    public static string Probability(double p) => p < 0.001 ? "below 0.001" : Number(p, 2);

    /// <summary>
    /// A number with at least so many significant digits, whole digits never rounded away; powers of ten beyond 10⁻⁴ and 10⁹.
    /// </summary>
    public static string Number(double value, int digits = 3)
    {
        if (!double.IsFinite(value))
        {
            return "not a number";
        }
        if (value == 0)
        {
            return "0";
        }
        var magnitude = (int)Math.Floor(Math.Log10(Math.Abs(value)));
        string text;
        if (magnitude is < -4 or >= 9)
        {
            text = value.ToString("0." + new string('0', digits - 1) + "e+0", CultureInfo.InvariantCulture);
        }
        else
        {
            // 9.996 has three digits before rounding and four after: round first, then count.
            var decimals = Math.Clamp(digits - 1 - magnitude, 0, 15);
            var rounded = Math.Round(value, decimals);
            if (rounded != 0 && (int)Math.Floor(Math.Log10(Math.Abs(rounded))) > magnitude)
            {
                decimals = Math.Max(0, decimals - 1);
            }
            text = value.ToString("N" + decimals, CultureInfo.InvariantCulture).Replace(",", "\u202f");
        }
        return text.Replace("-", Minus);
    }

    private static string WithInterval(Estimate estimate, double factor, string unit) =>
        Number(estimate.Value * factor)
        + unit
        + (
            estimate.Interval is { } interval
                ? $" ({Number(interval.Low * factor)} to {Number(interval.High * factor)})"
                : ""
        );

    private static (double Factor, string Unit) TimeUnit(double nanoseconds) =>
        Math.Abs(nanoseconds) switch
        {
            0 => (1, "ns"),
            // Just below a unit's thousand, three digits round up to it.
            < 0.09995 => (1e3, "ps"),
            < 999.5 => (1, "ns"),
            < 999.5e3 => (1e-3, "µs"),
            < 999.5e6 => (1e-6, "ms"),
            _ => (1e-9, "s"),
        };
}
