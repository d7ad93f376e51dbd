using System.Runtime.Versioning;
using Iced.Intel;
using VirtBench.Strategies.Hardware;
using VirtBench.Vmm.Execution;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>
/// Exits through the hardware strategy against their floor, in turns, as <see cref="TrapFloorComparison"/> does and for the
/// same reason. The strategy's windows hold one exit more, the HLT that ends them, which the floor's loop has too.
/// </summary>
[SupportedOSPlatform("linux")]
internal static class HardwareFloorComparison
{
    private const int Windows = 100;
    private const int WarmUpWindows = 20;
    private const int Exits = 4_000;

    /// <summary>Measures and prints one line per quantity.</summary>
    public static void Print(TextWriter output)
    {
        output.WriteLine($"In turns, {Windows} windows of {Exits} exits, {KvmHost.Current.Label}:");
        Compare(output, "OUT", HardwareExits.Out);
        Compare(output, "MMIO write", HardwareExits.Mmio);
        using var device = new KvmCalibration();
        double[] ioctl = new double[Windows];
        for (int i = -WarmUpWindows; i < Windows; i++)
        {
            ioctl[Math.Max(i, 0)] = Nanoseconds(() => device.NullIoctls(Exits)) / Exits;
        }

        Quantiles.Print(output, "null ioctl from C#, ns", ioctl, "F0");
    }

    private static double Nanoseconds(Action action)
    {
        double start = HostClock.Instance.Nanoseconds;
        action();
        return HostClock.Instance.Nanoseconds - start;
    }

    private static void Compare(TextWriter output, string name, Action<Assembler> body)
    {
        using var guest = new RepeatingGuest(new HardwareStrategy(), Exits, body);
        using KvmCalibration floor = HardwareExits.Floor(Exits, body);
        double[] bare = new double[Windows];
        double[] exit = new double[Windows];
        double[] ratio = new double[Windows];
        for (int i = -WarmUpWindows; i < Windows; i++)
        {
            int window = Math.Max(i, 0);
            bare[window] = Nanoseconds(() => floor.Exits(Exits + 1)) / (Exits + 1);
            exit[window] = Nanoseconds(guest.Run) / (Exits + 1);
            ratio[window] = exit[window] / bare[window];
        }

        Quantiles.Print(output, $"{name}: bare KVM_RUN loop, ns", bare, "F0");
        Quantiles.Print(output, $"{name}: through the strategy, ns", exit, "F0");
        Quantiles.Print(output, $"{name}: ratio", ratio, "F3");
    }
}
