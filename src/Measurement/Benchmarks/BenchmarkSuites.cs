using BenchmarkDotNet.Configs;
using BenchmarkDotNet.Reports;
using BenchmarkDotNet.Running;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>The BenchmarkDotNet suites that this host can run.</summary>
public static class BenchmarkSuites
{
    /// <summary>Runs suites with BenchmarkDotNet's own arguments (<c>--filter</c>, <c>--list</c>, …).</summary>
    /// <returns>False when nothing ran or a benchmark failed.</returns>
    public static bool Run(string[] arguments)
    {
        Type[] suites = OperatingSystem.IsLinux()
            ?
            [
                typeof(TrapBenchmarks),
                typeof(AddressSpaceSwitchBenchmarks),
                typeof(PageTableUpdateBenchmarks),
                typeof(KickBenchmarks),
                typeof(InterruptDeliveryBenchmarks),
                typeof(DiskBenchmarks),
                typeof(HardwareExitBenchmarks),
                typeof(TranslationBenchmarks),
                typeof(ParavirtualBenchmarks),
                typeof(InterpreterBenchmarks),
            ]
            : [typeof(InterpreterBenchmarks)];
        var summaries = BenchmarkSwitcher
            .FromTypes(suites)
            .Run(arguments, DefaultConfig.Instance.WithOptions(ConfigOptions.DisableOptimizationsValidator))
            .ToList();
        if (OperatingSystem.IsLinux() && summaries.Any(summary => Ran(summary, typeof(TrapBenchmarks))))
        {
            TrapFloorComparison.Print(Console.Out);
        }

        if (OperatingSystem.IsLinux() && summaries.Any(summary => Ran(summary, typeof(HardwareExitBenchmarks))))
        {
            HardwareFloorComparison.Print(Console.Out);
        }

        if (
            OperatingSystem.IsLinux()
            && summaries.Any(summary =>
                Ran(summary, typeof(AddressSpaceSwitchBenchmarks)) || Ran(summary, typeof(PageTableUpdateBenchmarks))
            )
        )
        {
            ShadowPagingComparison.Print(Console.Out);
        }

        if (OperatingSystem.IsLinux() && summaries.Any(summary => Ran(summary, typeof(KickBenchmarks))))
        {
            KickLatency.Print(Console.Out);
        }

        if (OperatingSystem.IsLinux() && summaries.Any(summary => Ran(summary, typeof(InterruptDeliveryBenchmarks))))
        {
            InterruptLatency.Print(Console.Out);
            PollCost.Print(Console.Out);
        }

        if (OperatingSystem.IsLinux() && summaries.Any(summary => Ran(summary, typeof(TranslationBenchmarks))))
        {
            TranslationComparison.Print(Console.Out);
        }

        if (OperatingSystem.IsLinux() && summaries.Any(summary => Ran(summary, typeof(ParavirtualBenchmarks))))
        {
            ParavirtualComparison.Print(Console.Out);
        }

        if (OperatingSystem.IsLinux() && summaries.Any(summary => Ran(summary, typeof(DiskBenchmarks))))
        {
            DiskComparison.Print(Console.Out);
        }

        return summaries.Count > 0 && summaries.All(summary => summary.Reports.All(report => report.Success));
    }

    private static bool Ran(Summary summary, Type suite) =>
        summary.Reports.Any(report => report.Success && report.BenchmarkCase.Descriptor.Type == suite);
}
