using System.Runtime.Versioning;
using VirtBench.Strategies.Carrier;
using VirtBench.Strategies.TrapAndEmulate;
using VirtBench.Vmm.Execution;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>
/// A trap through the VMM against the sum of its two floors, the bare hand-off and a trap that a handler in the carrier
/// skips: measured in turns, a few milliseconds each, because on a shared host all three drift within seconds. The ratio is
/// taken window by window.
/// </summary>
[SupportedOSPlatform("linux")]
internal static class TrapFloorComparison
{
    private const int Windows = 600;
    private const int WarmUpWindows = 200;
    private const int Traps = 1_000;
    private const int HandOffs = 200;

    /// <summary>Measures and prints one line per quantity.</summary>
    public static void Print(TextWriter output)
    {
        using var guest = new RepeatingGuest(new TrapAndEmulateStrategy(), Traps, a => a.cli());
        using var floors = new CarrierCalibration(DirectExecutionProbe.IretRefusal is null);
        double[] handOff = new double[Windows];
        double[] skipped = new double[Windows];
        double[] trap = new double[Windows];
        double[] ratio = new double[Windows];
        for (int i = -WarmUpWindows; i < Windows; i++)
        {
            int window = Math.Max(i, 0);
            handOff[window] = floors.HandOffNanoseconds(HandOffs);
            skipped[window] = floors.SkippedTrapNanoseconds(Traps);
            double start = HostClock.Instance.Nanoseconds;
            guest.Run();
            trap[window] = (HostClock.Instance.Nanoseconds - start) / (Traps + 1); // the HLT that ends it traps too
            ratio[window] = trap[window] / (handOff[window] + skipped[window]);
        }

        output.WriteLine($"In turns, {Windows} windows of {Traps} traps, this host:");
        Quantiles.Print(output, "bare hand-off, ns", handOff, "F0");
        Quantiles.Print(output, "trap skipped in the carrier, ns", skipped, "F0");
        Quantiles.Print(output, "CLI through the VMM, ns", trap, "F0");
        Quantiles.Print(output, "CLI / (hand-off + skipped)", ratio, "F3");
    }
}
