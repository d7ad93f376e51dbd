using System.Runtime.Versioning;
using Iced.Intel;
using VirtBench.Measurement.Benchmarks;
using VirtBench.Strategies.Hardware;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.ExitCosts;

/// <summary>
/// What exits cost in ticks of the time-stamp counter. In the Bochs machine of this lab the counter advances by one with each
/// retired instruction, so the figures are instruction counts of guest, kernel and VMM together; elsewhere they are times.
/// Each row: the median of windows of a thousand, less the same loop without the instruction.
/// </summary>
[SupportedOSPlatform("linux")]
internal static class Program
{
    private const int Exits = 1_000;
    private const int Windows = 11;

    private const int LeastWarmUpWindows = 20;
    private const int MostWarmUpWindows = 120;
    private const int SteadyWindows = 8;
    private const double Steady = 0.01;

    private static TextWriter _output = TextWriter.Null;

    public static int Main()
    {
        KvmHost host = KvmHost.Current;
        Console.WriteLine($"exit costs, ticks of the time-stamp counter, {host.Label ?? host.UnavailableReason}");
        if (host.UnavailableReason is not null)
        {
            return 1;
        }

        // The runtime compiles hot code anew in the background, on the machine's only CPU: the first pass lets it finish.
        MeasureAll(TextWriter.Null);
        MeasureAll(Console.Out);
        return 0;
    }

    private static void MeasureAll(TextWriter output)
    {
        _output = output;
        using (var device = new KvmCalibration())
        {
            Print("null ioctl from C#", Median(() => device.NullIoctls(Exits)) / Exits);
            Print("null ioctl from C#, without the C library", Median(() => device.BareNullIoctls(Exits)) / Exits);
        }

        (string Name, Action<Assembler> Body)[] toUserSpace =
        [
            ("OUT to a port without a device", HardwareExits.Out),
            ("IN from a port without a device", a => a.@in(al, 0x80)),
            ("MMIO write", HardwareExits.Mmio),
            ("MMIO read", a => a.mov(eax, __dword_ptr[HardwareExits.NoRam])),
        ];
        double loop = InGuest(_ => { });
        foreach ((string name, Action<Assembler> body) in toUserSpace)
        {
            PrintWithFloor(name, body, loop);
        }

        PrintRow("CPUID", a => a.cpuid(), loop);
        PrintRow("RDTSC", a => a.rdtsc(), loop);
        PrintRow("RDMSR of PAT", a => a.rdmsr(), InGuest(LoadPat), LoadPat);
        PrintRow("MOV to CR3", a => a.mov(cr3, rax), InGuest(LoadCr3), LoadCr3);
    }

    private static void LoadPat(Assembler a) => a.mov(ecx, 0x277);

    private static void LoadCr3(Assembler a) => a.mov(rax, cr3);

    private static void PrintWithFloor(string name, Action<Assembler> body, double loop)
    {
        using KvmCalibration floor = HardwareExits.Floor(Exits, body);
        Print($"{name}, bare KVM_RUN loop", (Median(() => floor.Exits(Exits + 1)) - loop) / Exits);
        floor.CopyRegisters = true;
        Print($"{name}, the same, registers copied by KVM", (Median(() => floor.Exits(Exits + 1)) - loop) / Exits);
        Print($"{name}, through the strategy", (InGuest(body) - loop) / Exits);
    }

    private static void PrintRow(
        string name,
        Action<Assembler> body,
        double control,
        Action<Assembler>? preparation = null
    ) =>
        Print(
            name,
            (
                InGuest(a =>
                {
                    preparation?.Invoke(a);
                    body(a);
                }) - control
            ) / Exits
        );

    private static double InGuest(Action<Assembler> body)
    {
        using var guest = new RepeatingGuest(new HardwareStrategy(), Exits, body);
        return Median(guest.Run);
    }

    private static double Median(Action window)
    {
        var warmUp = new Queue<double>();
        for (int i = 0; i < MostWarmUpWindows; i++)
        {
            warmUp.Enqueue(Ticks(window));
            if (warmUp.Count > SteadyWindows)
            {
                _ = warmUp.Dequeue();
            }

            if (i >= LeastWarmUpWindows && warmUp.Max() - warmUp.Min() < Steady * warmUp.Max())
            {
                break;
            }
        }

        double[] ticks = new double[Windows];
        for (int i = 0; i < Windows; i++)
        {
            ticks[i] = Ticks(window);
        }

        Array.Sort(ticks);
        return ticks[Windows / 2];
    }

    private static double Ticks(Action action)
    {
        ulong start = HostClock.Instance.Ticks;
        action();
        return HostClock.Instance.Ticks - start;
    }

    private static void Print(string name, double ticks) => _output.WriteLine($"exit-cost {name, -52} {ticks, 9:F1}");
}
