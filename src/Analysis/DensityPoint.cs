namespace VirtBench.Analysis;

/// <summary>All usable samples of one cell: what a fit sees at one k.</summary>
/// <param name="TrapsPerUnit">k.</param>
/// <param name="Samples">Usable samples.</param>
/// <param name="UnitNanoseconds">Mean time per work unit, with its interval over rounds.</param>
/// <param name="Slowdown">
/// Mean time over the mean time at k = 0 of the same strategy and workload, with its interval over rounds; null when k = 0
/// was not measured.
/// </param>
/// <param name="TrapsPerWallSecond">Observed traps over observed time: n as it was measured.</param>
/// <param name="Residual">Mean time less the fitted line, nanoseconds; null without a line.</param>
/// <param name="RelativeResidual">The residual over the mean time.</param>
/// <param name="ResidualIsShown">
/// True when the residual cannot be put down to scatter between rounds: its bootstrap interval, at a level corrected for
/// looking at all k at once, leaves out 0.
/// </param>
public sealed record DensityPoint(
    int TrapsPerUnit,
    int Samples,
    Estimate UnitNanoseconds,
    Estimate? Slowdown,
    double TrapsPerWallSecond,
    double? Residual,
    double? RelativeResidual,
    bool ResidualIsShown
);
