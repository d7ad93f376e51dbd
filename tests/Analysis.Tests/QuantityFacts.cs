namespace VirtBench.Analysis.Tests;

public sealed class QuantityFacts
{
    [Theory]
    [InlineData(0, "0 ns")]
    [InlineData(0.0351, "35.1 ps")]
    [InlineData(2.5, "2.50 ns")]
    [InlineData(2550, "2.55 µs")]
    [InlineData(999.96, "1.00 µs")]
    [InlineData(-12.34, "\u221212.3 ns")]
    [InlineData(52_300_000, "52.3 ms")]
    [InlineData(1e12, "1\u202f000 s")]
    public void Times_have_three_digits_and_a_unit(double nanoseconds, string expected) =>
        Assert.Equal(expected, Quantity.Time(nanoseconds));

    [Fact]
    public void An_interval_has_the_unit_of_its_estimate() =>
        Assert.Equal("2.55 µs (0.900 to 4.20)", Quantity.Time(new Estimate(2550, new Interval(900, 4200))));

    [Theory]
    [InlineData(9.999, "10.0")]
    [InlineData(1234567, "1\u202f234\u202f567")]
    [InlineData(2.5e10, "2.50e+10")]
    [InlineData(0.00001234, "1.23e\u22125")]
    [InlineData(double.NaN, "not a number")]
    public void Numbers_keep_three_digits(double value, string expected) =>
        Assert.Equal(expected, Quantity.Number(value));
}
