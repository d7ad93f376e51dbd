using System.ComponentModel;
using System.Runtime.Versioning;
using Iced.Intel;
using VirtBench.Strategies.Native;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Hardware;

/// <summary>
/// Whether KVM keeps a paravirtual clock that a guest can go by, found out once per process with a guest that reads its time-stamp counter: what
/// a module says that it offers need not be what it does.
/// </summary>
internal static class KvmClock
{
    private static readonly Lazy<string?> Found = new(() =>
        OperatingSystem.IsLinux() ? Examine() : "this host has no KVM"
    );

    /// <summary>Why the VMM writes the clock itself, in half a sentence; null when KVM keeps it.</summary>
    public static string? WhyNotKept => Found.Value;

    [SupportedOSPlatform("linux")]
    private static string? Examine()
    {
        const uint clockSource2 = 1 << 3; // KVM_FEATURE_CLOCKSOURCE2
        try
        {
            int kvm = KvmMachine.OpenDevice();
            uint features;
            try
            {
                features = KvmMachine.ParavirtualFeatures(kvm);
            }
            finally
            {
                _ = Linux.Close(kvm);
            }

            return (features & clockSource2) == 0 ? "the module does not offer one" : Try();
        }
        catch (Win32Exception refusal)
        {
            return $"the module does not take its address ({refusal.Message})";
        }
    }

    // A guest whose counter is far from the host's: a clock that goes by the host's would be found out.
    [SupportedOSPlatform("linux")]
    private static string? Try()
    {
        const ulong entry = PhysicalLayout.ImageStart;
        const ulong clockAddress = PhysicalLayout.SharedInfoPage;
        const ulong counterAddress = PhysicalLayout.BootInfo;
        const ulong offset = 1UL << 44;
        const double rateTolerance = 0.01;
        const double longestSeconds = 60;
        var a = new Assembler(64);
        a.rdtsc();
        a.shl(rdx, 32);
        a.or(rax, rdx);
        a.mov(__[counterAddress], rax);
        a.xor(eax, eax);
        a.@out((byte)ExitPort.Port, al);
        byte[] code = MachineCode.Assemble(a, entry);
        IExecutionEngine? engine = null;
        using var machine = new VirtualMachine(
            GuestMemory.MinimumSize,
            (cpu, memory) =>
                engine = new HardwareEngine(
                    cpu,
                    memory,
                    "kvm",
                    new EngineCapabilities { TimeSource = "measured" },
                    keepsClock: true
                )
        );
        var segment = new ImageSegment(entry, code, (ulong)code.Length, Executable: true);
        machine.Load(new GuestImage("clock probe", entry, [segment]), new BootOptions());
        machine.Cpu.TscOffset = offset;
        _ = engine!.ProvideParavirtualClock(clockAddress);
        RunOutcome outcome = machine.Run(TimeSpan.FromSeconds(10));
        if (outcome.End != RunEnd.Exited)
        {
            return $"a guest that tried one did not end ({outcome.Message})";
        }

        ParavirtualClock clock = machine.Memory.Read<ParavirtualClock>(clockAddress);
        ulong counter = machine.Memory.Read<ulong>(counterAddress);
        if (clock.Version == 0 || clock.Version % 2 != 0 || clock.TscToSystemMultiplier == 0)
        {
            return "the module offers one but does not fill it";
        }

        double rate = clock.TscToSystemMultiplier * Math.ScaleB(1, clock.TscShift - 32);
        double expected = 1e9 / HostClock.Instance.TicksPerSecond;
        if (Math.Abs(rate - expected) > rateTolerance * expected)
        {
            return "the module's runs at another rate than the time-stamp counter";
        }

        ulong since = counter - clock.TscTimestamp;
        return since > longestSeconds * HostClock.Instance.TicksPerSecond
            ? "the module's goes by another time-stamp counter than the guest's"
            : null;
    }
}
