using System.Globalization;
using VirtBench.Strategies;
using VirtBench.Strategies.BinaryTranslation;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>
/// Throughput with a code cache that is too small: <see cref="ColdCode"/> whose translation is larger than the smallest cache, executed several
/// times over, with that cache, with one that holds all of it, and directly; in turns, every sample in a fresh VM.
/// </summary>
internal static class CodeCacheComparison
{
    private const int SmallCacheBytes = 1 << 20;

    /// <summary>Instructions of the body: some 1.3 MiB of guest code, and more of translated code.</summary>
    private const int Instructions = 300_000;

    private const int Turns = 5;
    private const int Rounds = 5;
    private const ulong Seed = 6;

    /// <summary>Measures and prints one line per size.</summary>
    public static void Print(TextWriter output, Strategy direct) =>
        Print(
            output,
            [
                ("direct", direct),
                ("translated, default cache", new BinaryTranslationStrategy()),
                ("translated, small cache", new BinaryTranslationStrategy { CodeCacheSize = SmallCacheBytes }),
            ],
            new VirtualMachineRunner(new SweepOptions { Strategies = [], Workloads = [] }).Run,
            Instructions,
            Rounds
        );

    internal static void Print(
        TextWriter output,
        IReadOnlyList<(string Name, Strategy Strategy)> variants,
        SampleRunner run,
        int instructions,
        int rounds
    )
    {
        GuestImage image = ColdCode.Build(instructions, Seed, Turns).Image;
        output.WriteLine(
            string.Create(
                CultureInfo.InvariantCulture,
                $"{image.Name}, {Turns} times over, {rounds} rounds in turns, small cache of {SmallCacheBytes >> 20} MiB, this host; of a turn, the first one included:"
            )
        );
        double[][] times = [.. variants.Select(_ => new double[rounds])];
        var last = new MeasuredRegion[variants.Count];
        ulong? checksum = null;
        for (int round = 0; round < rounds; round++)
        {
            for (int i = 0; i < variants.Count; i++)
            {
                (string name, Strategy strategy) = variants[i];
                SampleRun sample = run(strategy, image, 0, Turns, CancellationToken.None);
                if (sample.Outcome is not { End: RunEnd.Exited, Status: 0 } || sample.Regions.Count != 1)
                {
                    output.WriteLine(
                        $"  {name}: failed: {sample.Outcome.Message ?? $"the guest ended with {sample.Outcome}"}"
                    );
                    return;
                }

                if ((checksum ??= sample.Result.Checksum) != sample.Result.Checksum)
                {
                    output.WriteLine($"  {name}: failed: it left another checksum than {variants[0].Name}");
                    return;
                }

                last[i] = sample.Regions[0];
                times[i][round] = last[i].ElapsedNanoseconds / Turns / 1e6;
            }
        }

        for (int i = 0; i < variants.Count; i++)
        {
            Quantiles.Print(output, $"{variants[i].Name}, ms", times[i], "F2");
            if (last[i].Translation is { } statistics)
            {
                output.WriteLine(
                    string.Create(
                        CultureInfo.InvariantCulture,
                        $"    in all {statistics.GuestInstructions} instructions translated, {statistics.HostBytes} bytes made of them, cache emptied {statistics.Flushes} times"
                    )
                );
            }
        }
    }
}
