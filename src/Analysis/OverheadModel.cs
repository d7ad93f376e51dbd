namespace VirtBench.Analysis;

/// <summary>
/// The overhead model: a work unit takes t0 without traps and each of its k traps adds Δt in full, so t(k) = t0 + k·Δt.
/// Everything else here is that one statement seen from another side.
/// </summary>
/// <param name="UntrappedUnitNanoseconds">t0, nanoseconds; above 0.</param>
/// <param name="TrapNanoseconds">Δt, nanoseconds; 0 or above.</param>
public readonly record struct OverheadModel(double UntrappedUnitNanoseconds, double TrapNanoseconds)
{
    private const double NanosecondsPerSecond = 1e9;

    /// <summary>T0 = 1/t0: work units per second when nothing traps.</summary>
    public double UntrappedUnitsPerSecond => NanosecondsPerSecond / UntrappedUnitNanoseconds;

    /// <summary>
    /// 1/Δt: the most traps that fit into a wall-clock second, at which no time is left for work. Infinite when Δt is 0.
    /// </summary>
    public double MaximumTrapsPerWallSecond => NanosecondsPerSecond / TrapNanoseconds;

    /// <summary>t(k) = t0 + k·Δt, nanoseconds per work unit.</summary>
    public double UnitNanoseconds(double trapsPerUnit) => UntrappedUnitNanoseconds + trapsPerUnit * TrapNanoseconds;

    /// <summary>T = 1/t(k), work units per second.</summary>
    public double UnitsPerSecond(double trapsPerUnit) => NanosecondsPerSecond / UnitNanoseconds(trapsPerUnit);

    /// <summary>t(k)/t0: how many times longer a unit takes than without traps.</summary>
    public double Slowdown(double trapsPerUnit) => UnitNanoseconds(trapsPerUnit) / UntrappedUnitNanoseconds;

    /// <summary>n = k·T: traps per second of wall-clock time. Never above 1/Δt.</summary>
    public double TrapsPerWallSecond(double trapsPerUnit) => trapsPerUnit * UnitsPerSecond(trapsPerUnit);

    /// <summary>n′ = k·T0: traps per second of guest work, the time that traps take not counted. Has no upper limit.</summary>
    public double TrapsPerGuestWorkSecond(double trapsPerUnit) => trapsPerUnit * UntrappedUnitsPerSecond;

    /// <summary>
    /// T(n) = T0·(1 − n·Δt) for n in traps per wall-clock second. This is exact, not an approximation; it is wrong for n′.
    /// </summary>
    public double UnitsPerSecondAtWallRate(double trapsPerWallSecond) =>
        UntrappedUnitsPerSecond * (1 - trapsPerWallSecond * TrapNanoseconds / NanosecondsPerSecond);

    /// <summary>T(n′) = T0/(1 + n′·Δt) for n′ in traps per second of guest work.</summary>
    public double UnitsPerSecondAtGuestWorkRate(double trapsPerGuestWorkSecond) =>
        UntrappedUnitsPerSecond / (1 + trapsPerGuestWorkSecond * TrapNanoseconds / NanosecondsPerSecond);
}
