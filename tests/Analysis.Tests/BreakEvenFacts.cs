namespace VirtBench.Analysis.Tests;

public sealed class BreakEvenFacts
{
    private static Estimate Exact(double value) => new(value, null);

    private static Estimate Sure(double value, double half) => new(value, new Interval(value - half, value + half));

    // s = 1.1 on a unit of 1000 ns, c = 10 ns, Δt = 500 ns, J = 1 ms.
    private static readonly BreakEven Example = new(Exact(1100), Exact(10), Exact(1000), Exact(500), 1e6);

    [Fact]
    public void Both_take_the_same_time_at_the_break_even()
    {
        double k = Example.InstructionsPerUnit!.Value.Value;
        Assert.Equal(100.0 / 490, k, 12);
        Assert.Equal(1100 + (k * 10), 1000 + (k * 500), 9);
        Assert.Equal(0, Example.SavedNanoseconds(k).Value, 9);
        // n = k·T of the trapped guest
        Assert.Equal(k / (1000 + (k * 500)) * 1e9, Example.TrapsPerSecond!.Value, 6);
    }

    [Fact]
    public void Translation_is_repaid_after_as_many_units_as_it_costs_what_each_saves()
    {
        Assert.Equal(1.1, Example.Slowdown!.Value.Value, 12);
        Assert.Equal(50, Example.CostRatio!.Value.Value, 12);
        const double k = 4;
        double saved = 1000 + (k * 500) - 1100 - (k * 10);
        Assert.Equal(saved, Example.SavedNanoseconds(k).Value, 9);
        Assert.Equal(1e6 / saved, Example.UnitsToRepay(k)!.Value, 9);
        double units = Example.UnitsToRepay(k)!.Value;
        Assert.Equal((units * (1100 + (k * 10))) + 1e6, units * (1000 + (k * 500)), 3);
    }

    [Fact]
    public void Below_the_break_even_it_is_never_repaid() =>
        Assert.Equal(double.PositiveInfinity, Example.UnitsToRepay(0.2));

    [Theory]
    [InlineData(500)]
    [InlineData(600)]
    public void It_never_pays_where_the_translated_instruction_is_no_cheaper(double c)
    {
        BreakEven even = Example with { TranslatedInstructionNanoseconds = Exact(c) };
        Assert.Null(even.InstructionsPerUnit);
        Assert.Null(even.TrapsPerSecond);
        Assert.Equal(double.PositiveInfinity, even.UnitsToRepay(16));
    }

    [Fact]
    public void It_pays_from_the_first_where_ordinary_code_is_no_slower()
    {
        BreakEven even = Example with { TranslatedUnitNanoseconds = Exact(1000) };
        Assert.Equal(0, even.InstructionsPerUnit!.Value.Value);
        Assert.Equal(0, even.TrapsPerSecond);
    }

    [Fact]
    public void What_cannot_be_told_is_not_told()
    {
        BreakEven even = Example with
        {
            TranslatedInstructionNanoseconds = Sure(400, 75),
            TrapNanoseconds = Sure(500, 75),
        };
        Assert.Null(even.InstructionsPerUnit); // 75 and 75 together are 106, more than the 100 between them
        Assert.NotNull((even with { TrapNanoseconds = Sure(500, 50) }).InstructionsPerUnit);
        Assert.Null((Example with { TranslatedInstructionNanoseconds = Sure(1, 2) }).CostRatio);
        Assert.Null((Example with { TranslatedInstructionNanoseconds = Sure(-300, 50) }).CostRatio); // a disturbed run
        Assert.Null((Example with { TrappedUnitNanoseconds = Sure(1000, 200) }).UnitsToRepay(0.2));
    }

    [Fact]
    public void The_interval_of_a_ratio_is_fiellers()
    {
        Estimate ratio = Sure(100, 10).Over(Sure(50, 5))!.Value;
        Assert.Equal(2, ratio.Value);
        // r where (100 − r·50)² = 10² + r²·5²
        foreach (double r in (double[])[ratio.Low!.Value, ratio.High!.Value])
        {
            Assert.Equal(Math.Pow(100 - (r * 50), 2), 100 + (r * r * 25), 6);
        }

        Assert.True(ratio.Low < 2 && ratio.High > 2);
        Assert.Equal(new Estimate(4, new Interval(3.8, 4.2)), Round(Sure(100, 5).Over(Exact(25))!.Value));
        Assert.Null(Exact(2).Over(Exact(0.5))!.Value.Interval);
        Assert.Null(Exact(1).Over(Exact(0)));
        Assert.Null(Exact(1).Over(Sure(5, 5)));

        static Estimate Round(Estimate estimate) =>
            new(
                Math.Round(estimate.Value, 9),
                new Interval(Math.Round(estimate.Low!.Value, 9), Math.Round(estimate.High!.Value, 9))
            );
    }

    [Fact]
    public void A_difference_is_as_uncertain_as_both_together() =>
        Assert.Equal(new Estimate(50, new Interval(45, 55)), Sure(100, 3).Minus(Sure(50, 4)));
}
