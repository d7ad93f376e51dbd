using VirtBench.Measurement;

namespace VirtBench.Analysis.Tests;

public sealed class TukeyFacts
{
    // Quartiles 2 and 4, range 2: mild fences at -1 and 7, extreme ones at -4 and 10.
    [Theory]
    [InlineData(5, OutlierLabel.None)]
    [InlineData(7, OutlierLabel.None)]
    [InlineData(9, OutlierLabel.Mild)]
    [InlineData(20, OutlierLabel.Extreme)]
    public void The_fences_are_at_1_5_and_3_ranges(double last, OutlierLabel expected)
    {
        var labels = Tukey.Labels([1, 2, 3, 4, last]);

        Assert.Equal(expected, labels[4]);
        Assert.All(labels[..4], label => Assert.Equal(OutlierLabel.None, label));
    }

    [Fact]
    public void Few_values_and_values_without_a_number_are_not_judged()
    {
        Assert.All(Tukey.Labels([1, 2, 1000]), label => Assert.Equal(OutlierLabel.None, label));
        Assert.Equal(OutlierLabel.None, Tukey.Labels([1, 1, 1, 1, double.NaN])[4]);
    }

    [Fact]
    public void Equal_values_make_any_other_value_extreme() =>
        Assert.Equal(OutlierLabel.Extreme, Tukey.Labels([5, 5, 5, 5, 5.1])[4]);

    [Fact]
    public void A_sample_is_judged_within_its_own_cell()
    {
        var samples = SyntheticSamples.Sweep(k => 100 + 1000 * k, 8, 0.001, 0, seed: 1);
        samples[7] = samples[7] with { ElapsedNanoseconds = samples[7].ElapsedNanoseconds * 2 };
        var labels = Tukey.LabelWithinCells(samples);

        Assert.Equal(OutlierLabel.Extreme, labels[7]);
        Assert.True(labels.Count(label => label == OutlierLabel.Extreme) <= 2);
    }
}
