using System.Text;
using MathNet.Numerics;
using VirtBench.Measurement;

namespace VirtBench.Analysis;

/// <summary>The steps from samples to an <see cref="OverheadFit"/>, for one strategy and workload.</summary>
internal sealed class OverheadFitting
{
    /// <summary>Computed times that differ by less than this share are equal: the last digits of a division.</summary>
    private const double ExactShare = 1e-9;

    private readonly string strategy;
    private readonly string workload;
    private readonly IReadOnlyList<Sample> samples;
    private readonly Sample[] usable;
    private readonly bool timesAreComputed;
    private readonly FitOptions options;
    private readonly FitPoints points;
    private readonly RoundBootstrap? bootstrap;
    private readonly bool scatterFree;
    private readonly bool tookNoTraps;
    private readonly string[] holes;

    public OverheadFitting(
        string strategy,
        string workload,
        IReadOnlyList<Sample> samples,
        bool timesAreComputed,
        FitOptions options
    )
    {
        this.strategy = strategy;
        this.workload = workload;
        this.samples = samples;
        this.timesAreComputed = timesAreComputed;
        this.options = options;
        usable = [.. samples.Where(IsUsable)];
        points = new FitPoints(usable);
        scatterFree = points.ByDensity.All(IsScatterFree);
        bootstrap =
            usable.Length == 0 || scatterFree ? null : RoundBootstrap.Draw(points, options.Resamples, SeedOfThisFit());
        var withInstructions = usable.Where(sample => sample.Cell.TrapsPerUnit > 0).ToArray();
        tookNoTraps = withInstructions.Length > 0 && withInstructions.All(sample => sample.Traps == 0);
        holes = [.. samples.SelectMany(sample => sample.Mark?.Holes ?? []).Distinct()];
    }

    /// <summary>Computed times that repeat, or that were taken once: one computation is as good as many.</summary>
    private bool IsExact => timesAreComputed && scatterFree;

    public OverheadFit Conclude() =>
        points.Densities.Count switch
        {
            0 => WithoutLine(null, "too few points: no usable sample"),
            1 => WithoutLine(
                MeanAt(0),
                $"too few points: only k = {points.Densities[0]} was measured, so there is no slope"
                    + (points.Densities[0] == 0 ? "; t0 is its mean" : "")
            ),
            _ => WithLine(),
        };

    private static bool IsUsable(Sample sample) =>
        sample.Status == SampleStatus.Ok && HasTime(sample) && sample.Cell.TrapsPerUnit >= 0;

    private static bool HasTime(Sample sample) =>
        sample.Units > 0 && double.IsFinite(sample.ElapsedNanoseconds) && sample.ElapsedNanoseconds > 0;

    private static bool IsScatterFree(Sample[] cell)
    {
        var times = cell.Select(sample => sample.NanosecondsPerUnit);
        return times.Max() - times.Min() <= ExactShare * times.Max();
    }

    private OverheadFit WithoutLine(Estimate? mean, string verdict) =>
        new()
        {
            Strategy = strategy,
            Workload = workload,
            UntrappedUnitNanoseconds = points.Densities is [0] ? mean : null,
            Verdict = FitVerdict.TooFewPoints,
            VerdictText =
                NotFaithful() + verdict + (IsExact && usable.Length > 0 ? ", computed exactly" : "") + Exclusions(),
            Holes = holes,
            Points = usable.Length,
            ExcludedSamples = samples.Count - usable.Length,
            Rounds = points.RoundCount,
            IsExact = IsExact && usable.Length > 0,
            Densities = DensitiesAbout(null),
            Confidence = options.Confidence,
        };

    private OverheadFit WithLine()
    {
        var line = points.LeastSquares();
        var densities = DensitiesAbout(line);
        var p = LackOfFit.Probability(points, line);
        var slope = new Estimate(line.Slope, bootstrap?.IntervalAround(line.Slope, options.Confidence, b => b.Slope));
        var (verdict, text) = tookNoTraps ? (FitVerdict.ZeroTraps, ZeroTraps(slope)) : Judge(line, densities, p);
        var fitted = points.K.Select(line.At);
        var rSquared = GoodnessOfFit.CoefficientOfDetermination(fitted, points.Nanoseconds);
        return new OverheadFit
        {
            Strategy = strategy,
            Workload = workload,
            UntrappedUnitNanoseconds = new Estimate(
                line.Intercept,
                bootstrap?.IntervalAround(line.Intercept, options.Confidence, b => b.Intercept)
            ),
            TrapNanoseconds = tookNoTraps ? null : slope,
            UntrappedInstructionNanoseconds = tookNoTraps ? slope : null,
            TheilSenTrapNanoseconds = tookNoTraps ? null : TheilSen.Slope(points.K, points.Nanoseconds),
            RSquared = double.IsFinite(rSquared) ? rSquared : null,
            LackOfFitP = p,
            LargestRelativeResidual = densities.Max(density => Math.Abs(density.RelativeResidual!.Value)),
            Verdict = verdict,
            VerdictText = NotFaithful() + text + WithoutIntervals() + Exclusions(),
            Holes = holes,
            Points = usable.Length,
            ExcludedSamples = samples.Count - usable.Length,
            Rounds = points.RoundCount,
            IsExact = IsExact,
            Densities = densities,
            Bootstrap = bootstrap,
            Confidence = options.Confidence,
        };
    }

    /// <summary>What the engine lets through: whatever a verdict says then is of a guest that was shown something untrue.</summary>
    private string NotFaithful() => holes.Length == 0 ? "" : $"not faithful: {string.Join(", ", holes)}: ";

    private string ZeroTraps(Estimate slope)
    {
        const string Start = "0 traps: no Δt; ";
        if (IsExact)
        {
            return $"{Start}{Quantity.Time(slope.Value)} per instruction without an exit to the VMM, computed exactly";
        }
        return slope.Interval switch
        {
            null => $"{Start}{Quantity.Time(slope.Value)} per instruction without an exit to the VMM",
            { } interval when interval.Contains(0) =>
                $"{Start}the cost per instruction without an exit to the VMM cannot be told from 0 ({Quantity.Time(slope)})",
            _ => $"{Start}{Quantity.Time(slope)} per instruction without an exit to the VMM",
        };
    }

    private (FitVerdict Verdict, string Text) Judge(Line line, IReadOnlyList<DensityPoint> densities, double? p)
    {
        var prefix = IsExact ? "computed exactly: " : "";
        if (line.Intercept <= 0)
        {
            var t0 = new Estimate(
                line.Intercept,
                bootstrap?.IntervalAround(line.Intercept, options.Confidence, b => b.Intercept)
            );
            return t0.High > 0
                ? (FitVerdict.Undecided, $"undecided: scatter leaves t0 undetermined at {Quantity.Time(t0)}")
                : (
                    FitVerdict.NotLinear,
                    $"{prefix}not linear: the line's t0 is {Quantity.Time(t0)}, which no unit of work can take"
                        + Shape(densities)
                );
        }
        if (densities.Count == 2)
        {
            return (
                FitVerdict.Undecided,
                $"{prefix}not tested: any two densities lie on a line, a third would tell whether the model holds"
            );
        }
        var worst = densities.MaxBy(Deviation)!;
        var evidence = p is { } probability
            ? $"largest deviation {Quantity.Percent(Deviation(worst))} at k = {worst.TrapsPerUnit}, p = {Quantity.Probability(probability)}"
            : $"largest deviation {Quantity.Percent(Deviation(worst))} at k = {worst.TrapsPerUnit}";
        if (Deviation(worst) <= options.LinearTolerance)
        {
            return (FitVerdict.Linear, $"{prefix}linear ({evidence})");
        }
        var beyond = densities.Where(density => Deviation(density) > options.LinearTolerance).ToArray();
        var proven = beyond.Where(density => density.ResidualIsShown).ToArray();
        if (!timesAreComputed && !points.HasReplicates)
        {
            return (FitVerdict.Undecided, $"undecided: {Where(worst)}, and without replicates no scatter explains it");
        }
        if (proven.Length == 0 && !scatterFree && !(p < options.Significance))
        {
            return Deviation(worst) <= options.ScatterTolerance
                ? (FitVerdict.Linear, $"linear within the scatter ({evidence})")
                : (FitVerdict.Undecided, $"undecided: too much scatter to tell ({evidence})");
        }
        var named = (proven.Length > 0 ? proven : beyond).MaxBy(Deviation)!;
        return (FitVerdict.NotLinear, $"{prefix}not linear: {Where(named)}{ProbabilityText(p)}{Shape(densities)}");
    }

    private static double Deviation(DensityPoint density) => Math.Abs(density.RelativeResidual!.Value);

    private static string ProbabilityText(double? p) => p is { } value ? $" (p = {Quantity.Probability(value)})" : "";

    private static string Where(DensityPoint density) =>
        $"at k = {density.TrapsPerUnit} a unit takes {Quantity.Time(density.UnitNanoseconds.Value)}, "
        + $"{Quantity.Time(Math.Abs(density.Residual!.Value))} ({Quantity.Percent(Deviation(density))}) "
        + $"{(density.Residual > 0 ? "more" : "less")} than the line says";

    /// <summary>How the line fails: only at k = 0, or with a slope that differs between low and high k.</summary>
    private string Shape(IReadOnlyList<DensityPoint> densities)
    {
        if (densities.Count < 4)
        {
            return "";
        }
        if (points.Densities[0] == 0)
        {
            var above = SlopeOver(1, points.Densities.Count - 1);
            var holds = Enumerable
                .Range(1, points.Densities.Count - 1)
                .All(i =>
                    Math.Abs(points.Means[i] - above.At(points.Densities[i]))
                    <= options.LinearTolerance * points.Means[i]
                );
            if (holds)
            {
                return $"; linear from k = {points.Densities[1]} up, at {Quantity.Time(above.Slope)} per trap from "
                    + $"{Quantity.Time(above.Intercept)}";
            }
        }
        var middle = points.Densities.Count / 2;
        var low = SlopeOver(0, middle);
        var high = SlopeOver(middle, points.Densities.Count - 1);
        return $"; {Quantity.Time(low.Slope)} per trap up to k = {points.Densities[middle]}, "
            + $"{Quantity.Time(high.Slope)} from there";
    }

    private Line SlopeOver(int first, int last)
    {
        var weights = new double[points.Densities.Count];
        for (var i = first; i <= last; i++)
        {
            weights[i] = points.ByDensity[i].Length;
        }
        return points.LineThrough(weights, points.Means);
    }

    private DensityPoint[] DensitiesAbout(Line? line)
    {
        var result = new DensityPoint[points.Densities.Count];
        var zero = points.Densities.Count > 0 && points.Densities[0] == 0;
        // Looking at every k at once: the level is shared out (Bonferroni).
        var residualLevel = 1 - options.Significance / Math.Max(1, points.Densities.Count);
        for (var i = 0; i < result.Length; i++)
        {
            var index = i;
            var k = points.Densities[i];
            var cell = points.ByDensity[i];
            var mean = points.Means[i];
            var residual = mean - line?.At(k);
            result[i] = new DensityPoint(
                k,
                cell.Length,
                MeanAt(i),
                zero
                    ? new Estimate(
                        mean / points.Means[0],
                        i == 0
                            ? null
                            : bootstrap?.IntervalAround(
                                mean / points.Means[0],
                                options.Confidence,
                                (_, means) => means[index] / means[0]
                            )
                    )
                    : null,
                cell.Sum(sample => (double)sample.Traps) / cell.Sum(sample => sample.ElapsedNanoseconds) * 1e9,
                residual,
                residual / mean,
                residual is { } value
                    && bootstrap?.IntervalAround(value, residualLevel, (b, means) => means[index] - b.At(k))
                        is { } interval
                    && !interval.Contains(0)
            );
        }
        return result;
    }

    private Estimate MeanAt(int density) =>
        new(
            points.Means[density],
            bootstrap?.IntervalAround(points.Means[density], options.Confidence, (_, means) => means[density])
        );

    private string WithoutIntervals() =>
        bootstrap is not null || IsExact ? ""
        : points.RoundCount < 2 ? "; one round, so no intervals"
        : scatterFree ? "; no scatter at all, so no intervals"
        : "; too few complete rounds for intervals";

    private string Exclusions()
    {
        var parts = new[]
        {
            (samples.Count(sample => sample.Status == SampleStatus.Failed), "failed"),
            (samples.Count(sample => sample.Status == SampleStatus.TrapMismatch), "with other traps than k × units"),
            (samples.Count(sample => sample.Status == SampleStatus.ChecksumMismatch), "with a wrong checksum"),
            (samples.Count(sample => sample.Status == SampleStatus.Ok && !IsUsable(sample)), "without a usable time"),
        };
        var text = new StringBuilder();
        foreach (var (count, why) in parts.Where(part => part.Item1 > 0))
        {
            text.Append(text.Length == 0 ? "; left out: " : ", ")
                .Append(count)
                .Append(count == 1 ? " sample " : " samples ")
                .Append(why);
        }
        return text.ToString();
    }

    /// <summary>Mixes the run's seed with the fit's names, so that a fit does not depend on which others are made.</summary>
    private int SeedOfThisFit()
    {
        // FNV-1a: string.GetHashCode differs from process to process.
        var hash = 2166136261u;
        foreach (var character in strategy + "/" + workload)
        {
            hash = (hash ^ character) * 16777619u;
        }
        return unchecked((int)(options.Seed ^ (options.Seed >> 32)) ^ (int)hash);
    }
}
