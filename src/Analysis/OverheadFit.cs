using VirtBench.Measurement;

namespace VirtBench.Analysis;

/// <summary>What a fit concludes, for programs; <see cref="OverheadFit.VerdictText"/> says it in words.</summary>
public enum FitVerdict
{
    /// <summary>The model holds: no k is off the line by more than the tolerance beyond what scatter explains.</summary>
    Linear,

    /// <summary>The model fails: some k is off the line by more than the tolerance, and scatter does not explain it.</summary>
    NotLinear,

    /// <summary>There is a line, but the samples cannot tell whether the model holds.</summary>
    Undecided,

    /// <summary>The instruction never trapped: there is no Δt.</summary>
    ZeroTraps,

    /// <summary>Fewer than two densities with usable samples: there is no line.</summary>
    TooFewPoints,
}

/// <summary>How fits are made.</summary>
/// <param name="Seed">Seed of the bootstrap; the same samples and seed give the same intervals.</param>
public sealed record FitOptions(ulong Seed)
{
    /// <summary>Bootstrap resamples of the rounds.</summary>
    public int Resamples { get; init; } = 2000;

    /// <summary>Level of every interval.</summary>
    public double Confidence { get; init; } = 0.95;

    /// <summary>
    /// The largest deviation of a cell's mean from the line, as a share of the mean, that a verdict of linear puts up with
    /// however small p is. With enough samples p condemns every real machine; a model that is right to this share is of use.
    /// </summary>
    public double LinearTolerance { get; init; } = 0.02;

    /// <summary>
    /// The largest deviation that may still be called linear because scatter explains it. Beyond it the samples agree with too
    /// many laws to speak for this one.
    /// </summary>
    public double ScatterTolerance { get; init; } = 0.1;

    /// <summary>A deviation above the tolerance condemns the model when its probability under scatter is below this.</summary>
    public double Significance { get; init; } = 0.01;
}

/// <summary>
/// The overhead model fitted to one strategy and workload: ordinary least squares of time per unit against k.
/// </summary>
/// <remarks>
/// <para>Time per unit is regressed on k, which the experimenter sets. Throughput is never regressed on the observed
/// n = k·T, which carries T's own error. Intervals come from a bootstrap over rounds, because samples of one round share
/// its drift: the standard error of the resampled estimates, widened by √(R/(R−1)) for R rounds, times Student's t with
/// R − 1 degrees of freedom. With the same k in every round this is the t interval of the rounds' own slopes, so it
/// holds its level even with few rounds.</para>
/// <para>Rule for "linear": no k's mean may be off the line by more than <see cref="FitOptions.LinearTolerance"/> of
/// itself, unless scatter explains it, that is unless both the F test for lack of fit over replicates and the
/// bootstrap interval of that k's residual leave the deviation unproven at <see cref="FitOptions.Significance"/>.
/// The second test is there because the first takes scatter to be alike at all k, which times are not. Scatter that
/// explains more than <see cref="FitOptions.ScatterTolerance"/> leaves the question undecided.</para>
/// <para>Failed samples, samples whose traps or checksum are not those expected, and samples without a usable time are
/// left out, and the verdict says so. Outliers stay in.</para>
/// </remarks>
public sealed record OverheadFit
{
    internal OverheadFit() { }

    /// <summary>Strategy id.</summary>
    public required string Strategy { get; init; }

    /// <summary>Workload id.</summary>
    public required string Workload { get; init; }

    /// <summary>t0, nanoseconds: the intercept, or the mean where only k = 0 was measured. Null without usable samples.</summary>
    public Estimate? UntrappedUnitNanoseconds { get; init; }

    /// <summary>Δt, nanoseconds per trap. Null when nothing trapped or there is no line.</summary>
    public Estimate? TrapNanoseconds { get; init; }

    /// <summary>
    /// The slope where nothing trapped: what the instruction costs without an exit to the VMM, nanoseconds, whether the
    /// processor or the host's kernel serves it. Null elsewhere.
    /// </summary>
    public Estimate? UntrappedInstructionNanoseconds { get; init; }

    /// <summary>Theil–Sen slope of the same points, nanoseconds per trap. Null when nothing trapped or there is no line.</summary>
    public double? TheilSenTrapNanoseconds { get; init; }

    /// <summary>Share of the variance of time per unit that the line explains; null when there is none to explain.</summary>
    public double? RSquared { get; init; }

    /// <summary>p of the F test for lack of fit over replicates; null without replicates, scatter or a third density.</summary>
    public double? LackOfFitP { get; init; }

    /// <summary>Largest deviation of a cell's mean from the line as a share of the mean; null without a line.</summary>
    public double? LargestRelativeResidual { get; init; }

    /// <summary>The conclusion.</summary>
    public required FitVerdict Verdict { get; init; }

    /// <summary>The conclusion in words, with where and why a fit fails and what was left out.</summary>
    public required string VerdictText { get; init; }

    /// <summary>
    /// Sensitive instructions of the workload that the strategy let through: its guest saw something untrue. Empty where it was
    /// faithful.
    /// </summary>
    public IReadOnlyList<string> Holes { get; init; } = [];

    /// <summary>Samples the fit used.</summary>
    public required int Points { get; init; }

    /// <summary>Samples left out.</summary>
    public required int ExcludedSamples { get; init; }

    /// <summary>Rounds among the used samples.</summary>
    public required int Rounds { get; init; }

    /// <summary>True for computed times that repeat exactly: there is no scatter and nothing to be unsure of.</summary>
    public bool IsExact { get; init; }

    /// <summary>What was seen at each k, in order of k.</summary>
    public required IReadOnlyList<DensityPoint> Densities { get; init; }

    /// <summary>The fitted model; null without a line or when the fitted t0 is not positive.</summary>
    public OverheadModel? Model =>
        UntrappedUnitNanoseconds is { Value: > 0 } t0
        && (TrapNanoseconds ?? UntrappedInstructionNanoseconds) is { } slope
            ? new OverheadModel(t0.Value, slope.Value)
            : null;

    internal RoundBootstrap? Bootstrap { get; init; }

    internal double Confidence { get; init; }

    /// <summary>t(k) on the fitted line, nanoseconds, with its interval; null without a line.</summary>
    public Estimate? UnitNanosecondsAt(double trapsPerUnit)
    {
        if (
            UntrappedUnitNanoseconds is not { } t0
            || (TrapNanoseconds ?? UntrappedInstructionNanoseconds) is not { } slope
        )
        {
            return null;
        }
        var value = t0.Value + trapsPerUnit * slope.Value;
        return new Estimate(
            value,
            Bootstrap?.IntervalAround(value, Confidence, line => line.Intercept + trapsPerUnit * line.Slope)
        );
    }

    /// <summary>
    /// T(n) = T0·(1 − n·Δt) on the fitted line, units per second at n traps per wall-clock second, with its interval; null
    /// without a Δt or where the fitted t0 is not positive.
    /// </summary>
    public Estimate? UnitsPerSecondAtWallRate(double trapsPerWallSecond)
    {
        if (TrapNanoseconds is null || Model is not { } model)
        {
            return null;
        }
        var value = model.UnitsPerSecondAtWallRate(trapsPerWallSecond);
        return new Estimate(
            value,
            Bootstrap?.IntervalAround(
                value,
                Confidence,
                line => new OverheadModel(line.Intercept, line.Slope).UnitsPerSecondAtWallRate(trapsPerWallSecond)
            )
        );
    }

    /// <summary>
    /// Fits every strategy and workload among <paramref name="samples"/>, in order of first appearance.
    /// </summary>
    /// <param name="samples">Samples of a run, in any order.</param>
    /// <param name="timesAreComputed">Tells by strategy id whether times come from a cost model.</param>
    /// <param name="options">How.</param>
    public static IReadOnlyList<OverheadFit> OfAll(
        IEnumerable<Sample> samples,
        Func<string, bool> timesAreComputed,
        FitOptions options
    ) =>
        [
            .. samples
                .GroupBy(sample => (sample.Cell.Strategy, sample.Cell.Workload))
                .Select(group => Of([.. group], timesAreComputed(group.Key.Strategy), options)),
        ];

    /// <summary>Fits one strategy and workload. Never throws for what samples hold: the verdict says what is wrong.</summary>
    /// <param name="samples">Samples of one strategy and workload, at least one, whatever their status.</param>
    /// <param name="timesAreComputed">True when times come from a cost model instead of a clock.</param>
    /// <param name="options">How.</param>
    /// <exception cref="ArgumentException">There is no sample, or they are of different strategies or workloads.</exception>
    public static OverheadFit Of(IReadOnlyList<Sample> samples, bool timesAreComputed, FitOptions options)
    {
        if (samples.Count == 0)
        {
            throw new ArgumentException("A fit needs at least one sample.", nameof(samples));
        }
        var (strategy, workload, _) = samples[0].Cell;
        if (samples.Any(sample => sample.Cell.Strategy != strategy || sample.Cell.Workload != workload))
        {
            throw new ArgumentException("A fit takes samples of one strategy and workload.", nameof(samples));
        }
        return new OverheadFitting(strategy, workload, samples, timesAreComputed, options).Conclude();
    }
}
