using VirtBench.Measurement;
using static VirtBench.Analysis.Tests.SyntheticSamples;

namespace VirtBench.Analysis.Tests;

public sealed class OverheadFitFacts
{
    private static readonly FitOptions Options = new(Seed: 7);

    private static double Law(int k) => 1000 + 500 * k;

    private static OverheadFit Fit(IReadOnlyList<Sample> samples, bool computed = false) =>
        OverheadFit.Of(samples, computed, Options);

    [Fact]
    public void Known_t0_and_dt_lie_in_their_intervals()
    {
        var fit = Fit(Sweep(Law, rounds: 12, noiseShare: 0.01, roundShare: 0.01, seed: 1));

        Assert.Equal(FitVerdict.Linear, fit.Verdict);
        Assert.StartsWith("linear", fit.VerdictText);
        Assert.True(fit.UntrappedUnitNanoseconds!.Value.Interval!.Value.Contains(1000));
        Assert.True(fit.TrapNanoseconds!.Value.Interval!.Value.Contains(500));
        Assert.InRange(fit.TheilSenTrapNanoseconds!.Value, 490, 510);
        Assert.InRange(fit.RSquared!.Value, 0.99, 1);
        Assert.Equal(60, fit.Points);
        Assert.Equal(12, fit.Rounds);
    }

    [Fact]
    public void The_same_seed_gives_the_same_intervals_whatever_the_order_of_samples()
    {
        var samples = Sweep(Law, rounds: 6, noiseShare: 0.02, roundShare: 0.02, seed: 2);
        var turned = samples.AsEnumerable().Reverse().ToList();

        Assert.Equal(
            Fit(samples).TrapNanoseconds!.Value.Low!.Value,
            Fit(turned).TrapNanoseconds!.Value.Low!.Value,
            1e-6
        );
    }

    [Theory]
    [InlineData(5)]
    [InlineData(12)]
    [InlineData(30)]
    public void Intervals_hold_the_truth_about_95_times_in_100(int rounds)
    {
        const int Sets = 400;
        var options = Options with { Resamples = 1000 };
        int dt = 0,
            t0 = 0,
            slowdown = 0;
        for (var set = 0; set < Sets; set++)
        {
            var fit = OverheadFit.Of(Sweep(Law, rounds, 0.02, 0.03, seed: 1000 + set), false, options);
            dt += fit.TrapNanoseconds!.Value.Interval!.Value.Contains(500) ? 1 : 0;
            t0 += fit.UntrappedUnitNanoseconds!.Value.Interval!.Value.Contains(1000) ? 1 : 0;
            slowdown += fit.Densities[^1].Slowdown!.Value.Interval!.Value.Contains(5) ? 1 : 0;
        }

        // Three binomial standard errors of 400 sets around 95 % are 3.3 %.
        Assert.InRange(dt / (double)Sets, 0.917, 0.983);
        Assert.InRange(t0 / (double)Sets, 0.917, 0.983);
        Assert.InRange(slowdown / (double)Sets, 0.917, 0.983);
    }

    [Fact]
    public void True_lines_are_rarely_condemned()
    {
        const int Sets = 200;
        var condemned = Enumerable
            .Range(0, Sets)
            .Count(set =>
                OverheadFit
                    .Of(Sweep(Law, 8, 0.05, 0.05, seed: 5000 + set), false, Options with { Resamples = 1000 })
                    .Verdict == FitVerdict.NotLinear
            );

        Assert.InRange(condemned, 0, Sets / 20);
    }

    [Fact]
    public void A_planted_bend_is_found_and_described()
    {
        var fit = Fit(Sweep(k => 1000 + 500 * k + 60 * k * k, rounds: 10, noiseShare: 0.01, roundShare: 0, seed: 3));

        Assert.Equal(FitVerdict.NotLinear, fit.Verdict);
        Assert.StartsWith("not linear: at k = ", fit.VerdictText);
        Assert.Contains("per trap up to k = 2", fit.VerdictText);
        Assert.True(fit.LackOfFitP < 0.001);
        Assert.True(fit.LargestRelativeResidual > 0.02);
    }

    [Fact]
    public void A_control_cell_off_the_line_is_named_with_the_line_that_the_others_keep()
    {
        var fit = Fit(
            Sweep(k => k == 0 ? 1000 : 3000 + 500 * k, rounds: 10, noiseShare: 0.002, roundShare: 0, seed: 4)
        );

        Assert.Equal(FitVerdict.NotLinear, fit.Verdict);
        Assert.Contains("at k = 0 a unit takes", fit.VerdictText);
        Assert.Matches("linear from k = 1 up, at (49|50)[0-9] ns per trap from (2.9|3.0)[0-9] µs$", fit.VerdictText);
    }

    [Fact]
    public void A_tiny_bend_is_tolerated_even_when_p_is_small()
    {
        var fit = Fit(Sweep(k => Law(k) * (k == 2 ? 1.005 : 1), rounds: 40, noiseShare: 0.001, roundShare: 0, seed: 5));

        Assert.True(fit.LackOfFitP < 0.001);
        Assert.Equal(FitVerdict.Linear, fit.Verdict);
        Assert.InRange(fit.LargestRelativeResidual!.Value, 0.001, 0.02);
    }

    [Fact]
    public void A_bend_at_low_k_is_not_hidden_by_scatter_at_high_k()
    {
        // Scatter is a share of the time: at k = 64 it is larger than all of t(0).
        var fit = Fit(
            Sweep(
                k => 2000 * Math.Max(k, 2),
                rounds: 20,
                noiseShare: 0.01,
                roundShare: 0,
                seed: 6,
                densities: [0, 1, 2, 4, 8]
            )
        );

        Assert.Equal(FitVerdict.NotLinear, fit.Verdict);
    }

    [Fact]
    public void Scatter_wide_enough_for_any_law_decides_nothing()
    {
        var fits = Enumerable
            .Range(0, 20)
            .Select(set =>
                Fit(Sweep(k => 1000 + 9000 * k, 12, 0.5, 0, seed: 300 + set, densities: [0, 1, 2, 4, 8, 16]))
            )
            .ToList();

        Assert.Contains(fits, fit => fit.VerdictText.StartsWith("undecided", StringComparison.Ordinal));
        Assert.All(
            fits.Where(fit => fit.Verdict == FitVerdict.Linear),
            fit => Assert.InRange(fit.LargestRelativeResidual!.Value, 0, 0.1)
        );
    }

    [Fact]
    public void Instructions_that_never_trap_have_a_cost_but_no_dt()
    {
        var samples = Sweep(k => 1000 + 10 * k, 10, 0.0005, 0, seed: 7).Select(s => s with { Traps = 0 }).ToList();
        var fit = Fit(samples);

        Assert.Equal(FitVerdict.ZeroTraps, fit.Verdict);
        Assert.StartsWith("0 traps: no Δt; ", fit.VerdictText);
        Assert.Contains("per instruction without an exit to the VMM", fit.VerdictText);
        Assert.Null(fit.TrapNanoseconds);
        Assert.Null(fit.TheilSenTrapNanoseconds);
        Assert.InRange(fit.UntrappedInstructionNanoseconds!.Value.Value, 9, 11);
    }

    [Fact]
    public void Instructions_too_cheap_to_see_are_said_to_be_so()
    {
        var samples = Sweep(_ => 1000, 6, 0.01, 0, seed: 8).Select(s => s with { Traps = 0 }).ToList();

        Assert.Contains("cannot be told from 0", Fit(samples).VerdictText);
    }

    [Fact]
    public void Computed_times_have_no_intervals()
    {
        // The textbook's loop: 65 cycles, and 1740 when the instruction traps; cycles of one nanosecond.
        var fit = Fit(Sweep(k => 40 + 1700 * k, rounds: 3, noiseShare: 0, roundShare: 0, seed: 9), computed: true);

        Assert.Equal(FitVerdict.Linear, fit.Verdict);
        Assert.True(fit.IsExact);
        Assert.StartsWith("computed exactly: linear", fit.VerdictText);
        Assert.Null(fit.TrapNanoseconds!.Value.Interval);
        Assert.Null(fit.LackOfFitP);
        Assert.Equal(1700, fit.TrapNanoseconds!.Value.Value, 1e-6);
        Assert.Null(fit.Densities[^1].Slowdown!.Value.Interval);
    }

    [Fact]
    public void One_computed_round_is_as_good_as_many()
    {
        var fit = Fit(Sweep(k => 40 + 1700 * k, rounds: 1, noiseShare: 0, roundShare: 0, seed: 9), computed: true);

        Assert.StartsWith("computed exactly: linear", fit.VerdictText);
    }

    [Fact]
    public void Bent_computed_times_are_condemned_without_a_test()
    {
        var fit = Fit(Sweep(k => 40 + 1700 * k * k, rounds: 2, noiseShare: 0, roundShare: 0, seed: 9), computed: true);

        Assert.Equal(FitVerdict.NotLinear, fit.Verdict);
        Assert.StartsWith("computed exactly: not linear", fit.VerdictText);
    }

    [Fact]
    public void Samples_that_failed_or_mismatch_are_left_out_and_counted()
    {
        var samples = Sweep(Law, 6, 0.01, 0, seed: 10);
        samples.Add(One(6, 1, 1e6, traps: 3, status: SampleStatus.TrapMismatch));
        samples.Add(One(6, 2, 1e6, status: SampleStatus.ChecksumMismatch));
        samples.Add(One(6, 4, 0, units: 0, status: SampleStatus.Failed));
        samples.Add(One(6, 8, double.NaN));
        var fit = Fit(samples);

        Assert.Equal(30, fit.Points);
        Assert.Equal(4, fit.ExcludedSamples);
        Assert.InRange(fit.TrapNanoseconds!.Value.Value, 480, 520);
        Assert.EndsWith(
            "left out: 1 sample failed, 1 sample with other traps than k × units, 1 sample with a wrong checksum, "
                + "1 sample without a usable time",
            fit.VerdictText
        );
    }

    [Fact]
    public void One_wild_sample_moves_least_squares_but_not_theil_sen()
    {
        var samples = Sweep(Law, 12, 0.005, 0, seed: 11);
        samples[4] = One(0, 8, 50_000);
        var fit = Fit(samples);

        Assert.InRange(fit.TheilSenTrapNanoseconds!.Value, 490, 510);
        Assert.True(fit.TrapNanoseconds!.Value.Value > 600);
        Assert.Equal(60, fit.Points);
    }

    public static TheoryData<string, List<Sample>, FitVerdict, string> DegenerateInputs() =>
        new()
        {
            { "one point", [One(0, 0, 1000)], FitVerdict.TooFewPoints, "too few points: only k = 0" },
            { "one k", [One(0, 4, 1000), One(1, 4, 1010)], FitVerdict.TooFewPoints, "too few points: only k = 4" },
            { "nothing usable", [One(0, 1, double.NaN)], FitVerdict.TooFewPoints, "too few points: no usable sample" },
            { "all failed", [One(0, 1, 0, 0, 0, SampleStatus.Failed)], FitVerdict.TooFewPoints, "too few points" },
            { "two k", Sweep(Law, 5, 0.01, 0, 1, [0, 8]), FitVerdict.Undecided, "not tested: any two densities" },
            { "one round", Sweep(Law, 1, 0.001, 0, 1), FitVerdict.Linear, "linear" },
            {
                "one bent round",
                Sweep(k => 1000 + 100 * k * k, 1, 0, 0, 1),
                FitVerdict.Undecided,
                "undecided: at k = "
            },
            { "no scatter", Sweep(Law, 4, 0, 0, 1), FitVerdict.Linear, "linear" },
            { "infinite time", [One(0, 0, 1), One(0, 1, double.PositiveInfinity)], FitVerdict.TooFewPoints, "too few" },
            { "negative time", [One(0, 0, 1), One(0, 1, -5)], FitVerdict.TooFewPoints, "too few points" },
            { "two rounds", Sweep(Law, 2, 0.001, 0, 1), FitVerdict.Linear, "linear" },
            {
                "t0 below 0",
                Sweep(k => 1 + 900 * k * k, 9, 0.001, 0, 1),
                FitVerdict.NotLinear,
                "not linear: the line's t0"
            },
        };

    [Theory]
    [MemberData(nameof(DegenerateInputs))]
    public void Degenerate_inputs_give_a_verdict(string name, List<Sample> samples, FitVerdict verdict, string text)
    {
        var fit = Fit(samples);

        Assert.True(verdict == fit.Verdict, $"{name}: {fit.VerdictText}");
        Assert.StartsWith(text, fit.VerdictText);
    }

    [Fact]
    public void An_unfinished_round_still_counts()
    {
        var samples = Sweep(Law, 6, 0.01, 0, seed: 12);
        samples.Add(One(6, 0, 1000));
        var fit = Fit(samples);

        Assert.Equal(31, fit.Points);
        Assert.NotNull(fit.TrapNanoseconds!.Value.Interval);
    }

    [Fact]
    public void The_band_is_narrowest_near_the_data_and_holds_the_line()
    {
        var fit = Fit(Sweep(Law, 10, 0.02, 0.01, seed: 13));
        var near = fit.UnitNanosecondsAt(1)!.Value;
        var far = fit.UnitNanosecondsAt(64)!.Value;

        Assert.True(far.High - far.Low > near.High - near.Low);
        Assert.True(near.Interval!.Value.Contains(Law(1)));
    }

    [Fact]
    public void Fits_keep_strategies_and_workloads_apart()
    {
        var samples = Sweep(Law, 4, 0.01, 0, seed: 14);
        var other = samples.Select(s =>
            s with
            {
                Cell = s.Cell with { Strategy = "other" },
                ElapsedNanoseconds = 2 * s.ElapsedNanoseconds,
            }
        );
        var fits = OverheadFit.OfAll([.. samples, .. other], _ => false, Options);

        Assert.Equal(["synthetic", "other"], fits.Select(fit => fit.Strategy));
        Assert.InRange(fits[1].TrapNanoseconds!.Value.Value, 950, 1050);
    }
}
