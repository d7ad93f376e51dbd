namespace VirtBench.Measurement.Tests;

public sealed class CalibrationTests
{
    private const double Target = 50e6;

    [Theory]
    [InlineData(1)]
    [InlineData(100)]
    [InlineData(8_000)]
    [InlineData(300_000)]
    [InlineData(10_000_000)]
    [InlineData(60_000_000)]
    public void A_sample_lasts_at_least_as_long_as_asked_and_not_much_longer(double unit)
    {
        long units = Calibration.Units(Target, 4, n => (n * unit) + 3000)!.Value;
        Assert.InRange(units * unit, Target, Math.Max(Target * 1.2, unit));
    }

    [Fact]
    public void Probes_together_cost_less_than_two_samples()
    {
        foreach (double unit in (double[])[10, 777, 8_000, 51_200, 1_000_000])
        {
            double spent = 0;
            Calibration.Units(
                Target,
                4,
                n =>
                {
                    spent += n * unit;
                    return n * unit;
                }
            );
            Assert.InRange(spent, Target, 2 * Target);
        }
    }

    [Fact]
    public void A_vmm_that_was_slow_at_first_does_not_shorten_the_samples()
    {
        int probes = 0;
        long units = Calibration.Units(Target, 4, n => n * (++probes <= 2 ? 30_000.0 : 8_000.0))!.Value;
        Assert.InRange(units * 8_000.0, Target, Target * 1.2);
    }

    [Fact]
    public void A_clock_that_stands_still_ends_all_the_same() =>
        Assert.Equal(Calibration.MaximumUnits, Calibration.Units(Target, 4, _ => 0));

    [Fact]
    public void A_probe_that_fails_ends_it()
    {
        int probes = 0;
        Assert.Null(Calibration.Units(Target, 4, _ => ++probes == 2 ? null : 1));
        Assert.Equal(2, probes);
    }
}
