using System.Runtime.Versioning;
using BenchmarkDotNet.Attributes;
using VirtBench.Strategies.Carrier;
using VirtBench.Strategies.TrapAndEmulate;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>
/// What a trap costs under direct execution, beside the two floors it stands on, in one run: the bare hand-off between two
/// cores, and a trap that a handler in the carrier skips without telling the VMM. The rows of the VMM should stay within
/// 1.1 times the sum of these two.
/// </summary>
[Config(typeof(InProcessConfiguration))]
[SupportedOSPlatform("linux")]
public class TrapBenchmarks : IDisposable
{
    private const int Traps = 1_000;

    private CarrierCalibration? _calibration;
    private RepeatingGuest? _guest;

    /// <summary>Starts the carrier of the floors.</summary>
    [GlobalSetup(Targets = [nameof(HandOff), nameof(SkippedTrap)])]
    public void SetUpFloors() => _calibration = new CarrierCalibration(DirectExecutionProbe.IretRefusal is null);

    /// <summary>VMM to carrier and back, nothing done.</summary>
    [Benchmark(OperationsPerInvoke = Traps)]
    public double HandOff() => _calibration!.HandOffNanoseconds(Traps);

    /// <summary>CLI in ring 3, skipped by a handler in the carrier.</summary>
    [Benchmark(OperationsPerInvoke = Traps)]
    public double SkippedTrap() => _calibration!.SkippedTrapNanoseconds(Traps);

    /// <summary>Boots the guest of CLI traps.</summary>
    [GlobalSetup(Target = nameof(Cli))]
    public void SetUpCli() => _guest = new RepeatingGuest(new TrapAndEmulateStrategy(), Traps, a => a.cli());

    /// <summary>CLI, trapped and emulated by the VMM.</summary>
    [Benchmark(OperationsPerInvoke = Traps)]
    public void Cli() => _guest!.Run();

    /// <summary>Boots the guest of RDTSC traps.</summary>
    [GlobalSetup(Target = nameof(Rdtsc))]
    public void SetUpRdtsc() => _guest = new RepeatingGuest(new TrapAndEmulateStrategy(), Traps, a => a.rdtsc());

    /// <summary>RDTSC, trapped and emulated by the VMM.</summary>
    [Benchmark(OperationsPerInvoke = Traps)]
    public void Rdtsc() => _guest!.Run();

    /// <summary>Boots the guest of OUT traps.</summary>
    [GlobalSetup(Target = nameof(Out))]
    public void SetUpOut() => _guest = new RepeatingGuest(new TrapAndEmulateStrategy(), Traps, a => a.@out(0x80, al));

    /// <summary>OUT to a port without a device, trapped and emulated by the VMM.</summary>
    [Benchmark(OperationsPerInvoke = Traps)]
    public void Out() => _guest!.Run();

    /// <summary>Ends the guest or the floors' carrier.</summary>
    [GlobalCleanup]
    public void Dispose()
    {
        _calibration?.Dispose();
        _guest?.Dispose();
        GC.SuppressFinalize(this);
    }
}
