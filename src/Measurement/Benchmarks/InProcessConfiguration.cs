using BenchmarkDotNet.Columns;
using BenchmarkDotNet.Configs;
using BenchmarkDotNet.Jobs;
using BenchmarkDotNet.Toolchains.InProcess.Emit;
using Perfolizer.Horology;
using Perfolizer.Mathematics.OutlierDetection;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>
/// How all suites run: in this process, which is compiled as the tool is shipped, in many short iterations after a warm-up.
/// Others share the CPUs: a window that is short enough is undisturbed now and then, so the minimum and the median
/// stand beside the mean, and no outlier is dropped.
/// </summary>
internal sealed class InProcessConfiguration : ManualConfig
{
    public InProcessConfiguration()
    {
        AddJob(
            Job.Default.WithToolchain(InProcessEmitToolchain.Instance)
                .WithWarmupCount(5)
                .WithIterationCount(50)
                .WithIterationTime(TimeInterval.FromMilliseconds(20))
                .WithOutlierMode(OutlierMode.DontRemove)
        );
        AddColumn(StatisticColumn.Min, StatisticColumn.Median);
    }
}
