using BenchmarkDotNet.Configs;
using BenchmarkDotNet.Jobs;
using BenchmarkDotNet.Toolchains.InProcess.Emit;
using Perfolizer.Horology;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>
/// How all suites run: in this process, which is compiled as the tool is shipped, ten iterations of at least 100 ms after
/// three of warm-up.
/// </summary>
internal sealed class InProcessConfiguration : ManualConfig
{
    public InProcessConfiguration() =>
        AddJob(
            Job.Default.WithToolchain(InProcessEmitToolchain.Instance)
                .WithIterationCount(10)
                .WithWarmupCount(3)
                .WithIterationTime(TimeInterval.FromMilliseconds(100))
        );
}
