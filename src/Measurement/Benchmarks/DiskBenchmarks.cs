using System.Runtime.Versioning;
using BenchmarkDotNet.Attributes;
using VirtBench.Strategies;
using VirtBench.Vmm.Interrupts;
using VirtBench.Workloads;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>
/// A virtual machine whose guest reads 256 blocks of 4 KiB from a disk in memory, booting included. The table that follows the suite
/// (<see cref="DiskComparison"/>) has reads alone, by every strategy and way of delivering interrupts, with exits.
/// </summary>
[Config(typeof(InProcessConfiguration))]
[SupportedOSPlatform("linux")]
public class DiskBenchmarks
{
    private const int Reads = 256;

    private ReadingGuest? _guest;

    /// <summary>What the guest drives.</summary>
    [Params(DiskFrontEndKind.Ata, DiskFrontEndKind.Virtio)]
    public DiskFrontEndKind FrontEnd { get; set; }

    /// <summary>Assembles the guest.</summary>
    [GlobalSetup]
    public void SetUp() =>
        _guest = new ReadingGuest(
            StrategyCatalog.Find("trap-and-emulate")!,
            InterruptDelivery.Exit,
            FrontEnd,
            FrontEnd == DiskFrontEndKind.Ata ? 1 : 32
        );

    /// <summary>The run of a guest.</summary>
    [Benchmark]
    public double Read() => _guest!.Run(Reads).ElapsedNanoseconds;
}
