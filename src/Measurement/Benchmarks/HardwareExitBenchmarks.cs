using System.Runtime.Versioning;
using BenchmarkDotNet.Attributes;
using Iced.Intel;
using VirtBench.Strategies.Hardware;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>
/// What an exit to user space costs under the hardware strategy, beside its floor: a loop of nothing but KVM_RUN over the
/// same guest code in the same process. The strategy's rows should stay within 1.1 times the floor's. A null ioctl tells how
/// much of it is the system call.
/// </summary>
[Config(typeof(InProcessConfiguration))]
[SupportedOSPlatform("linux")]
public class HardwareExitBenchmarks : IDisposable
{
    private const int Exits = 1_000;

    private KvmCalibration? _floor;
    private RepeatingGuest? _guest;

    /// <summary>Opens the device.</summary>
    [GlobalSetup(Target = nameof(NullIoctl))]
    public void SetUpNull() => _floor = new KvmCalibration();

    /// <summary>An ioctl that does nothing.</summary>
    [Benchmark(OperationsPerInvoke = Exits)]
    public void NullIoctl() => _floor!.NullIoctls(Exits);

    /// <summary>Loads the guest of OUT exits into a bare VM.</summary>
    [GlobalSetup(Target = nameof(BareOut))]
    public void SetUpBareOut() => _floor = HardwareExits.Floor(Exits, HardwareExits.Out);

    /// <summary>OUT, KVM_RUN called again at once.</summary>
    [Benchmark(OperationsPerInvoke = Exits)]
    public void BareOut() => _floor!.Exits(Exits);

    /// <summary>Boots the guest of OUT exits.</summary>
    [GlobalSetup(Target = nameof(Out))]
    public void SetUpOut() => _guest = new RepeatingGuest(new HardwareStrategy(), Exits, HardwareExits.Out);

    /// <summary>OUT to a port without a device, through the strategy.</summary>
    [Benchmark(OperationsPerInvoke = Exits)]
    public void Out() => _guest!.Run();

    /// <summary>Loads the guest of writes where there is no RAM into a bare VM.</summary>
    [GlobalSetup(Target = nameof(BareMmio))]
    public void SetUpBareMmio() => _floor = HardwareExits.Floor(Exits, HardwareExits.Mmio);

    /// <summary>A write where there is no RAM, KVM_RUN called again at once.</summary>
    [Benchmark(OperationsPerInvoke = Exits)]
    public void BareMmio() => _floor!.Exits(Exits);

    /// <summary>Boots the guest of writes where there is no RAM.</summary>
    [GlobalSetup(Target = nameof(Mmio))]
    public void SetUpMmio() => _guest = new RepeatingGuest(new HardwareStrategy(), Exits, HardwareExits.Mmio);

    /// <summary>A write where there is no RAM, through the strategy.</summary>
    [Benchmark(OperationsPerInvoke = Exits)]
    public void Mmio() => _guest!.Run();

    /// <summary>Ends the guest or the floor.</summary>
    [GlobalCleanup]
    public void Dispose()
    {
        _floor?.Dispose();
        _guest?.Dispose();
        GC.SuppressFinalize(this);
    }
}

/// <summary>The two exits that are compared, and their floor.</summary>
[SupportedOSPlatform("linux")]
internal static class HardwareExits
{
    /// <summary>In the first GiB, which the boot tables map, and beyond the RAM of every guest here.</summary>
    public const ulong NoRam = 0x2000_0000;

    public static void Out(Assembler a) => a.@out(0x80, al);

    public static void Mmio(Assembler a) => a.mov(__dword_ptr[NoRam], eax);

    public static KvmCalibration Floor(int count, Action<Assembler> body)
    {
        if (new HardwareStrategy().UnavailableReason() is { } reason)
        {
            throw new PlatformNotSupportedException(reason);
        }

        return new KvmCalibration(machine => RepeatingGuest.Load(machine, count, body));
    }
}
