using System.Runtime.Versioning;
using BenchmarkDotNet.Attributes;
using VirtBench.Strategies;
using VirtBench.Strategies.BinaryTranslation;
using VirtBench.Strategies.TrapAndEmulate;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>
/// Sensitive instructions of each kind (served inline, a callout) under the strategies that run guest code on this CPU. The
/// comparisons in turns that follow the suite (<see cref="TranslationComparison"/>) say more.
/// </summary>
[Config(typeof(InProcessConfiguration))]
[SupportedOSPlatform("linux")]
public class TranslationBenchmarks : IDisposable
{
    private const int Loops = 100;

    private RepeatingGuest? _guest;

    /// <summary>Name of the instruction.</summary>
    [Params("sti, cli", "rdtsc", "mov cr0, rax")]
    public string Instruction { get; set; } = "";

    /// <summary>Id of the strategy.</summary>
    [ParamsSource(nameof(Strategies))]
    public string Strategy { get; set; } = "";

    /// <summary>Trap-and-emulate, and binary translation where it runs.</summary>
    public static IEnumerable<string> Strategies =>
        TranslationComparison.Translating(out _) is { } translating
            ? ["trap-and-emulate", translating.Id]
            : ["trap-and-emulate"];

    /// <summary>Boots the guest.</summary>
    [GlobalSetup]
    public void SetUp() =>
        _guest = SensitiveInstruction
            .All.Single(one => one.Name == Instruction)
            .Guest(StrategyCatalog.Find(Strategy) ?? new TrapAndEmulateStrategy(), Loops, control: false);

    /// <summary>One instruction, and an eighth of the loop around eight.</summary>
    [Benchmark(OperationsPerInvoke = Loops * SensitiveInstruction.PerLoop)]
    public void Execute() => _guest!.Run();

    /// <summary>Ends the guest.</summary>
    [GlobalCleanup]
    public void Dispose()
    {
        _guest?.Dispose();
        GC.SuppressFinalize(this);
    }
}

/// <summary>
/// Binary translation against direct execution, in turns, because on a shared host times drift within seconds: what translating costs,
/// the slow-down of each kind of code, what sensitive instructions cost.
/// </summary>
[SupportedOSPlatform("linux")]
internal static class TranslationComparison
{
    /// <summary>Id of the strategy that is compared.</summary>
    private const string StrategyId = "binary-translation";

    /// <summary>The strategy that translates; null with the reason in one line where there is none or it cannot run here.</summary>
    public static Strategy? Translating(out string? reason)
    {
        Strategy? strategy = StrategyCatalog.Find(StrategyId);
        reason = strategy is null ? "this build has no such strategy" : strategy.UnavailableReason();
        return reason is null ? strategy : null;
    }

    /// <summary>
    /// Measures and prints one table each. Without a strategy that translates the tables say what direct execution costs, and the kernels are run
    /// under two strategies that execute them alike: how far that slow-down is from 1 is the harness's own error.
    /// </summary>
    public static void Print(TextWriter output)
    {
        var direct = new TrapAndEmulateStrategy();
        if (direct.UnavailableReason() is { } unavailable)
        {
            output.WriteLine($"{direct.Id}: skipped, {unavailable}");
            return;
        }

        Strategy? translating = Translating(out string? reason);
        if (translating is null)
        {
            output.WriteLine($"{StrategyId}: skipped, {reason}");
        }

        // First, while little of the translator has been compiled again for speed.
        if (translating is not null)
        {
            TranslationCost.Print(output, direct, translating);
        }

        Strategy compared = translating ?? new NativeStrategy();
        if (translating is null)
        {
            output.WriteLine($"Null experiment, {compared.Id} as if it translated:");
        }

        KernelComparison.Print(output, direct, compared);
        SensitiveInstructionComparison.Print(output, direct, translating);
        if (translating is BinaryTranslationStrategy)
        {
            CodeCacheComparison.Print(output, direct);
        }
    }
}
