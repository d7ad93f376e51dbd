using System.Globalization;
using VirtBench.Strategies;
using VirtBench.Vmm.Execution;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>What translating <see cref="ColdCode"/> once came to.</summary>
/// <param name="Instructions">Instructions of the program.</param>
/// <param name="Statistics">The engine's own account of the region.</param>
/// <param name="TranslationNanoseconds">Time spent translating, from it.</param>
/// <param name="ElapsedNanoseconds">Time of the region.</param>
/// <param name="DirectNanoseconds">Time of the region under direct execution, in the same round.</param>
internal sealed record ColdRun(
    int Instructions,
    TranslationStatistics Statistics,
    double TranslationNanoseconds,
    double ElapsedNanoseconds,
    double DirectNanoseconds
)
{
    /// <summary>
    /// Translating, ns per instruction of the program: one that gets into several blocks is translated several times and counts once, as code
    /// that is executed once is paid for.
    /// </summary>
    public double PerInstruction => TranslationNanoseconds / Instructions;

    /// <summary>Translating, ns per instruction in a translated block, the same one again included.</summary>
    public double PerTranslatedInstruction => TranslationNanoseconds / Statistics.GuestInstructions;

    /// <summary>All that the region takes longer than directly executed, ns per instruction of the program: exits and page faults too.</summary>
    public double ExtraPerInstruction => (ElapsedNanoseconds - DirectNanoseconds) / Instructions;

    /// <summary>Bytes of translated code per byte of guest code.</summary>
    public double Expansion => (double)Statistics.HostBytes / Statistics.GuestBytes;
}

/// <summary>
/// What translation costs on first pass, over code that is executed once: every round in a fresh VM, beside direct execution of the same
/// image, which must leave the same checksum.
/// </summary>
internal static class TranslationCost
{
    /// <summary>Instructions of the body: more than a translator's hot paths need to be compiled for speed.</summary>
    private const int Instructions = 50_000;

    private const int Rounds = 20;
    private const ulong Seed = 5;

    // The project's own goals, ns per guest instruction; the stretch is what is worth trying for.
    private const double Goal = 350;
    private const double Stretch = 200;

    /// <summary>Measures and prints one line per quantity.</summary>
    public static void Print(TextWriter output, Strategy direct, Strategy translating) =>
        Print(
            output,
            direct,
            translating,
            new VirtualMachineRunner(new SweepOptions { Strategies = [], Workloads = [] }).Run,
            Instructions,
            Rounds
        );

    internal static void Print(
        TextWriter output,
        Strategy direct,
        Strategy translating,
        SampleRunner run,
        int instructions,
        int rounds
    )
    {
        ColdCode code = ColdCode.Build(instructions, Seed);
        output.WriteLine(
            $"{code.Image.Name}, executed once under {translating.Id}, {rounds} rounds in fresh VMs, this host:"
        );
        var runs = new List<ColdRun>();
        for (int round = 0; round < rounds; round++)
        {
            if (Take(direct, translating, code, run, out string? failure) is not { } taken)
            {
                output.WriteLine($"  failed: {failure}");
                return;
            }

            runs.Add(taken);
        }

        ColdRun first = runs[0];
        TranslationStatistics statistics = first.Statistics;
        output.WriteLine(
            string.Create(
                CultureInfo.InvariantCulture,
                $"  {statistics.GuestInstructions} instructions of {statistics.GuestBytes} bytes translated, into {statistics.Blocks} blocks; {first.Expansion:F2} bytes out per byte in"
            )
        );
        output.WriteLine(
            string.Create(
                CultureInfo.InvariantCulture,
                $"  translation, first VM of the comparison, ns per instruction: {first.PerInstruction:F0}"
            )
        );
        double[] each = [.. runs.Select(one => one.PerInstruction)];
        Quantiles.Print(output, "translation, ns per instruction", each, "F0");
        Quantiles.Print(
            output,
            "the same, per translated one",
            [.. runs.Select(one => one.PerTranslatedInstruction)],
            "F0"
        );
        Quantiles.Print(
            output,
            "more than directly, ns per instruction",
            [.. runs.Select(one => one.ExtraPerInstruction)],
            "F0"
        );
        double median = Quantiles.At(each, 0.5);
        string met =
            median <= Stretch ? "stretch met"
            : median <= Goal ? "goal met"
            : "goal missed";
        output.WriteLine(
            string.Create(
                CultureInfo.InvariantCulture,
                $"  goal {Goal} per instruction of the program, stretch {Stretch}: {met}"
            )
        );
    }

    private static ColdRun? Take(
        Strategy direct,
        Strategy translating,
        ColdCode code,
        SampleRunner run,
        out string? failure
    )
    {
        SampleRun directly = run(direct, code.Image, 0, 1, CancellationToken.None);
        SampleRun translated = run(translating, code.Image, 0, 1, CancellationToken.None);
        failure =
            Failure(direct, directly)
            ?? Failure(translating, translated)
            ?? (
                directly.Result.Checksum != translated.Result.Checksum
                    ? $"checksum 0x{translated.Result.Checksum:X16} under {translating.Id}, and 0x{directly.Result.Checksum:X16} under {direct.Id}"
                : translated.Regions[0].Translation is not { GuestInstructions: > 0 }
                    ? $"{translating.Id} keeps no account of what it translates"
                : null
            );
        if (failure is not null)
        {
            return null;
        }

        MeasuredRegion region = translated.Regions[0];
        return new ColdRun(
            code.Instructions,
            region.Translation!,
            region.Translation!.Ticks * (1e9 / translated.TicksPerSecond),
            region.ElapsedNanoseconds,
            directly.Regions[0].ElapsedNanoseconds
        );
    }

    private static string? Failure(Strategy strategy, SampleRun run) =>
        run.Outcome is { End: RunEnd.Exited, Status: 0 } && run.Regions.Count == 1
            ? null
            : $"under {strategy.Id} the guest ended: {run.Outcome.Message ?? run.Outcome.End.ToString()}";
}
