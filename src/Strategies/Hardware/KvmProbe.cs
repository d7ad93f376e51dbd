using System.ComponentModel;
using System.Runtime.InteropServices;
using System.Runtime.Versioning;
using Iced.Intel;
using VirtBench.Strategies.Native;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Hardware;

/// <summary>
/// Finds out what /dev/kvm is: opens it, asks for its capabilities, looks which module is loaded, and runs a guest whose loop
/// in ring 0 is timed, since the API is the same whether a CPU or an emulator executes it.
/// </summary>
internal static class KvmProbe
{
    public const string IntelModule = "kvm_intel";
    public const string AmdModule = "kvm_amd";
    public const string PvmModule = "kvm_pvm";

    /// <summary>
    /// A ring-0 instruction that takes so many times as long as the same outside is not executed by the CPU. Emulation takes
    /// hundreds of times as long, an interrupted native loop a few times.
    /// </summary>
    private const double EmulationFactor = 10;

    // The difference of two loops tells the instructions without the way into the guest and out of it.
    private const int ShortLoop = 1_000;
    private const int LongLoop = 5_000;
    private const int InstructionsPerIteration = 2;
    private const int Tries = 3;

    public static KvmHost Examine()
    {
        if (!OperatingSystem.IsLinux() || RuntimeInformation.ProcessArchitecture != Architecture.X64)
        {
            return new KvmHost
            {
                Access = KvmAccess.NoDevice,
                UnavailableReason = "/dev/kvm of Linux on x86-64 is needed; this host is another system",
            };
        }

        return ExamineLinux();
    }

    [SupportedOSPlatform("linux")]
    private static KvmHost ExamineLinux()
    {
        int kvm;
        try
        {
            kvm = KvmMachine.OpenDevice();
        }
        catch (Win32Exception refusal) when (refusal.NativeErrorCode is Linux.Eacces or Linux.Eperm)
        {
            return new KvmHost
            {
                Access = KvmAccess.NoPermission,
                UnavailableReason = "this user may not open /dev/kvm: sudo usermod -aG kvm $USER, then log in again",
                Module = LoadedModule(),
            };
        }
        catch (Win32Exception refusal)
        {
            return new KvmHost
            {
                Access = KvmAccess.NoDevice,
                UnavailableReason = File.Exists("/dev/kvm")
                    ? $"/dev/kvm is there but does not open ({refusal.Message}); virtbench doctor says what to do"
                    : "there is no /dev/kvm; virtbench doctor says what to do",
            };
        }

        KvmCapabilities capabilities;
        int version;
        try
        {
            version = KvmMachine.ApiVersion(kvm);
            capabilities = KvmCapabilities.Read(kvm);
        }
        finally
        {
            _ = Linux.Close(kvm);
        }

        string? module = LoadedModule();
        bool? nested = NestedPaging(module);
        var host = new KvmHost
        {
            Access = KvmAccess.Unusable,
            Module = module,
            Missing = capabilities.Missing,
            NestedPaging = nested,
            Paging = nested switch
            {
                true => module == IntelModule ? "nested paging (EPT)" : "nested paging (NPT)",
                false => "shadow paging by KVM",
                null => null,
            },
        };
        if (version != Kvm.ApiVersion)
        {
            return host with { UnavailableReason = $"/dev/kvm speaks API version {version}, not {Kvm.ApiVersion}" };
        }

        if (capabilities.Missing.FirstOrDefault(missing => missing.Required) is { } lacks)
        {
            return host with { UnavailableReason = $"/dev/kvm lacks {lacks.Name}: {lacks.Effect}" };
        }

        try
        {
            return MeasureRingZero(host);
        }
        catch (Win32Exception refusal)
        {
            return host with { UnavailableReason = $"/dev/kvm does not give a VM: {refusal.Message}" };
        }
    }

    [SupportedOSPlatform("linux")]
    private static KvmHost MeasureRingZero(KvmHost host)
    {
        double outside = HostLoop();
        (RunOutcome outcome, IReadOnlyList<MeasuredRegion> regions) = GuestLoops(host);
        if (regions.Count != 2 * Tries)
        {
            return host with
            {
                UnavailableReason =
                    $"the self-check of /dev/kvm failed: {outcome.Message ?? "its guest measured nothing"}",
            };
        }

        IEnumerable<MeasuredRegion> Of(int iterations) => regions.Where(region => region.Id == iterations);
        double inside = PerInstruction(
            Of(ShortLoop).Min(region => region.ElapsedNanoseconds),
            Of(LongLoop).Min(region => region.ElapsedNanoseconds)
        );

        // Where the kernel counts what it emulates, a loop that was merely interrupted cannot be mistaken.
        ulong? counted = Of(LongLoop).Min(region => region.KernelStatistics?["insn_emulation"]);
        bool emulated =
            inside > EmulationFactor * outside && counted is null or >= LongLoop * InstructionsPerIteration / 2;
        return host with
        {
            Access = KvmAccess.Usable,
            RingZero = emulated ? RingZeroExecution.Emulated : RingZeroExecution.Native,
            RingZeroNanoseconds = inside,
            HostNanoseconds = outside,
            Label = Label(host, emulated),
        };
    }

    private static string Label(KvmHost host, bool emulated)
    {
        string module = host.Module ?? "an unknown module";
        string paging = host.Paging is { } words ? $", {words}" : "";
        return emulated
            ? $"through {module}, which emulates guest ring 0 instruction by instruction: not the times of VT-x or AMD-V{paging}"
            : host.Module switch
            {
                IntelModule => $"in VT-x through {module}{paging}",
                AmdModule => $"in AMD-V through {module}{paging}",
                _ => $"through {module}, which runs guest ring 0 on the CPU{paging}",
            };
    }

    private static double PerInstruction(double shortest, double longest) =>
        Math.Max(0, longest - shortest) / ((LongLoop - ShortLoop) * InstructionsPerIteration);

    /// <summary>Both loops in guest ring 0, each in regions of its own whose id is its length.</summary>
    [SupportedOSPlatform("linux")]
    private static (RunOutcome Outcome, IReadOnlyList<MeasuredRegion> Regions) GuestLoops(KvmHost host)
    {
        const ulong entry = PhysicalLayout.ImageStart;
        var a = new Assembler(64);
        for (int i = 0; i < 2 * Tries; i++)
        {
            int iterations = i % 2 == 0 ? ShortLoop : LongLoop;
            a.mov(eax, iterations);
            a.@out((byte)MeasurementPorts.Begin, eax);
            Loop(a, iterations);
            a.@out((byte)MeasurementPorts.End, eax);
        }

        a.xor(eax, eax);
        a.@out((byte)ExitPort.Port, al);
        byte[] code = MachineCode.Assemble(a, entry);

        using var machine = new VirtualMachine(
            GuestMemory.MinimumSize,
            (cpu, memory) =>
                new HardwareEngine(
                    cpu,
                    memory,
                    host.Module ?? "kvm",
                    new EngineCapabilities { TimeSource = "measured" }
                )
        );
        var segment = new ImageSegment(entry, code, (ulong)code.Length, Executable: true);
        machine.Load(new GuestImage("ring-0 probe", entry, [segment]), new BootOptions());
        RunOutcome outcome = machine.Run(TimeSpan.FromSeconds(10));
        return (outcome, [.. machine.Regions]);
    }

    /// <summary>The loops in this process, nanoseconds an instruction.</summary>
    [SupportedOSPlatform("linux")]
    private static double HostLoop()
    {
        double shortest = double.PositiveInfinity;
        double longest = double.PositiveInfinity;
        for (int i = 0; i < Tries + 2; i++)
        {
            shortest = Math.Min(shortest, HostLoop(ShortLoop));
            longest = Math.Min(longest, HostLoop(LongLoop));
        }

        return PerInstruction(shortest, longest);
    }

    [SupportedOSPlatform("linux")]
    private static unsafe double HostLoop(int iterations)
    {
        var a = new Assembler(64);
        Loop(a, iterations);
        a.ret();
        const int page = 4096;
        byte* memory = Linux.MapAnonymous(page);
        try
        {
            byte[] code = MachineCode.Assemble(a, (ulong)memory);
            code.CopyTo(new Span<byte>(memory, page));
            Linux.MakeExecutable(memory, page);
            var loop = (delegate* unmanaged<void>)memory;
            loop();
            double start = HostClock.Instance.Nanoseconds;
            loop();
            return HostClock.Instance.Nanoseconds - start;
        }
        finally
        {
            _ = Linux.Munmap((nint)memory, page);
        }
    }

    private static void Loop(Assembler a, int iterations)
    {
        Label again = a.CreateLabel();
        a.mov(ecx, iterations);
        a.Label(ref again);
        a.dec(ecx);
        a.jne(again);
    }

    // Only one vendor module can be in charge; one that is built in has its folder too.
    private static string? LoadedModule() =>
        new[] { IntelModule, AmdModule, PvmModule }.FirstOrDefault(name => Directory.Exists($"/sys/module/{name}"));

    private static bool? NestedPaging(string? module)
    {
        string? parameter = module switch
        {
            IntelModule => "ept",
            AmdModule => "npt",
            _ => null,
        };
        if (parameter is null)
        {
            return module == PvmModule ? false : null;
        }

        try
        {
            return File.ReadAllText($"/sys/module/{module}/parameters/{parameter}").Trim() switch
            {
                "Y" or "1" => true,
                "N" or "0" => false,
                _ => null,
            };
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }
}
