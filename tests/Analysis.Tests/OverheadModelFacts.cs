namespace VirtBench.Analysis.Tests;

public sealed class OverheadModelFacts
{
    [Fact]
    public void Half_of_a_second_is_lost_to_a_million_traps_of_500_ns()
    {
        var model = new OverheadModel(1000, 500);

        Assert.Equal(model.UntrappedUnitsPerSecond / 2, model.UnitsPerSecondAtWallRate(1e6), 1e-6);
    }

    [Fact]
    public void The_textbook_loop_is_26_8_times_slower()
    {
        var model = new OverheadModel(65, 1740 - 65);

        Assert.Equal(26.8, model.Slowdown(1), 0.05);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(7.5)]
    [InlineData(1000)]
    public void Both_rates_describe_the_same_throughput(double k)
    {
        var model = new OverheadModel(1234, 567);
        var throughput = model.UnitsPerSecond(k);

        Assert.Equal(throughput, model.UnitsPerSecondAtWallRate(model.TrapsPerWallSecond(k)), throughput * 1e-12);
        Assert.Equal(
            throughput,
            model.UnitsPerSecondAtGuestWorkRate(model.TrapsPerGuestWorkSecond(k)),
            throughput * 1e-12
        );
        Assert.True(model.TrapsPerWallSecond(k) < model.MaximumTrapsPerWallSecond);
    }
}
