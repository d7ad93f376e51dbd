namespace VirtBench.Analysis;

/// <summary>
/// From where on translating a guest beats trapping in it. Translated, a unit takes t = s·t0 + k·c + J/N: the slow-down s of
/// ordinary code, c for each sensitive instruction whether it is served inline or calls out, and once, shared by N units, the time
/// J of translating. Trapped it takes t = t0 + k·Δt: nothing until an exit happens, and then all of it.
/// </summary>
/// <param name="TranslatedUnitNanoseconds">s·t0: a translated unit without sensitive instructions.</param>
/// <param name="TranslatedInstructionNanoseconds">c.</param>
/// <param name="TrappedUnitNanoseconds">t0: the same unit where sensitive instructions trap.</param>
/// <param name="TrapNanoseconds">Δt.</param>
/// <param name="TranslationNanoseconds">J.</param>
public sealed record BreakEven(
    Estimate TranslatedUnitNanoseconds,
    Estimate TranslatedInstructionNanoseconds,
    Estimate TrappedUnitNanoseconds,
    Estimate TrapNanoseconds,
    double TranslationNanoseconds
)
{
    private const double NanosecondsPerSecond = 1e9;

    /// <summary>
    /// The two fits as a pair; null where one of them has no line, or its guest was let see something untrue.
    /// </summary>
    /// <param name="translated">Of a strategy that translates.</param>
    /// <param name="trapped">Of the same workload under one that does not.</param>
    /// <param name="translationNanoseconds">J.</param>
    public static BreakEven? Of(OverheadFit translated, OverheadFit trapped, double translationNanoseconds) =>
        translated.Holes.Count == 0
        && trapped.Holes.Count == 0
        && Unit(translated) is { } translatedUnit
        && Slope(translated) is { } inlined
        && Unit(trapped) is { } unit
        && Slope(trapped) is { } trap
            ? new BreakEven(translatedUnit, inlined, unit, trap, translationNanoseconds)
            : null;

    /// <summary>s, with its interval; null where t0 cannot be told from 0.</summary>
    public Estimate? Slowdown => TranslatedUnitNanoseconds.Over(TrappedUnitNanoseconds);

    /// <summary>Δt/c: how much dearer the instruction is trapped; null where c is not above 0 for sure.</summary>
    public Estimate? CostRatio =>
        TranslatedInstructionNanoseconds is { Value: > 0, Low: not <= 0 }
            ? TrapNanoseconds.Over(TranslatedInstructionNanoseconds)
            : null;

    /// <summary>
    /// k* = (s−1)·t0/(Δt−c): sensitive instructions per unit from which on translated code is the faster once it has been
    /// translated. At most 0 when it is so from the first. Null when it never is, Δt not being above c, or when that cannot be told.
    /// </summary>
    public Estimate? InstructionsPerUnit
    {
        get
        {
            var saved = TrapNanoseconds.Minus(TranslatedInstructionNanoseconds);
            return saved.Value > 0 && saved.Low is not <= 0
                ? TranslatedUnitNanoseconds.Minus(TrappedUnitNanoseconds).Over(saved)
                : null;
        }
    }

    /// <summary>
    /// n* = k*/t(k*): traps per wall-clock second of the trapped guest from which on translation is the faster; 0 when it is from the
    /// first. Null as k* is.
    /// </summary>
    public double? TrapsPerSecond =>
        InstructionsPerUnit is not { } k ? null
        : k.Value <= 0 ? 0
        : k.Value / (TrappedUnitNanoseconds.Value + (k.Value * TrapNanoseconds.Value)) * NanosecondsPerSecond;

    /// <summary>t0 + k·Δt − s·t0 − k·c: what a unit of k sensitive instructions saves by being translated; negative when it loses.</summary>
    public Estimate SavedNanoseconds(double k) =>
        new Estimate(
            TrappedUnitNanoseconds.Value + (k * TrapNanoseconds.Value),
            Sum(TrappedUnitNanoseconds, TrapNanoseconds, k)
        ).Minus(
            new Estimate(
                TranslatedUnitNanoseconds.Value + (k * TranslatedInstructionNanoseconds.Value),
                Sum(TranslatedUnitNanoseconds, TranslatedInstructionNanoseconds, k)
            )
        );

    /// <summary>
    /// N* = J/saved: units after which translation has paid for itself at k sensitive instructions each. Infinite when it never
    /// does; null when the interval of what is saved holds 0, so that it cannot be told.
    /// </summary>
    public double? UnitsToRepay(double k)
    {
        var saved = SavedNanoseconds(k);
        return saved.Interval is { } interval && interval.Contains(0) && interval.High > interval.Low ? null
            : saved.Value > 0 ? TranslationNanoseconds / saved.Value
            : double.PositiveInfinity;
    }

    // As measured where k = 0 was: where a line does not hold, its intercept is no unit of work.
    private static Estimate? Unit(OverheadFit fit) =>
        fit.Densities is [{ TrapsPerUnit: 0, UnitNanoseconds: var measured }, ..]
            ? measured
            : fit.UntrappedUnitNanoseconds;

    private static Estimate? Slope(OverheadFit fit) => fit.TrapNanoseconds ?? fit.UntrappedInstructionNanoseconds;

    // The ends of a line's intercept and slope, added: wider than the line's own interval, in which they go against each other.
    private static Interval? Sum(Estimate unit, Estimate slope, double k) =>
        unit.Interval is null && slope.Interval is null
            ? null
            : new Interval(
                (unit.Low ?? unit.Value) + (k * (slope.Low ?? slope.Value)),
                (unit.High ?? unit.Value) + (k * (slope.High ?? slope.Value))
            );
}
