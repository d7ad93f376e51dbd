using MathNet.Numerics.Distributions;
using VirtBench.Measurement;

namespace VirtBench.Analysis.Tests;

/// <summary>Samples made from a known model and seeded noise; nothing here was ever measured.</summary>
internal static class SyntheticSamples
{
    public static readonly int[] FiveDensities = [0, 1, 2, 4, 8];

    public static Sample One(
        int round,
        int k,
        double unitNanoseconds,
        long units = 1000,
        long? traps = null,
        SampleStatus status = SampleStatus.Ok
    ) =>
        new(
            round,
            new Cell("synthetic", "rdtsc", k),
            units,
            traps ?? k * units,
            unitNanoseconds * units,
            0,
            0,
            0,
            OutlierLabel.None,
            status,
            ""
        );

    /// <summary>Every density in every round; the noise is a share of the time, part of it common to the round.</summary>
    public static List<Sample> Sweep(
        Func<int, double> unitNanoseconds,
        int rounds,
        double noiseShare,
        double roundShare,
        int seed,
        int[]? densities = null
    )
    {
        var random = new Random(seed);
        var noise = new Normal(0, 1, random);
        var samples = new List<Sample>();
        for (var round = 0; round < rounds; round++)
        {
            var drift = roundShare * noise.Sample();
            foreach (var k in densities ?? FiveDensities)
            {
                samples.Add(One(round, k, unitNanoseconds(k) * (1 + drift + noiseShare * noise.Sample())));
            }
        }
        return samples;
    }
}
