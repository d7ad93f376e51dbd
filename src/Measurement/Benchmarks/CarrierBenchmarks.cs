using System.Runtime.Versioning;
using BenchmarkDotNet.Attributes;
using Iced.Intel;
using VirtBench.Strategies.Carrier;
using VirtBench.Strategies.TrapAndEmulate;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Memory;
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

/// <summary>
/// One CR3 write under direct execution with shadow policy <c>flush</c>, and the guest's touching (read, add, write) of all
/// its pages after it. The pages are contiguous, so the refill is one run.
/// </summary>
[Config(typeof(InProcessConfiguration))]
[SupportedOSPlatform("linux")]
public class AddressSpaceSwitchBenchmarks : IDisposable
{
    private const int Switches = 100;
    private const ulong WorkingSet = 0x4000_0000;

    private RepeatingGuest? _guest;

    /// <summary>Pages that the guest touches in each address space.</summary>
    [Params(1, 8, 64)]
    public int Pages { get; set; }

    /// <summary>Builds two address spaces and boots the guest.</summary>
    [GlobalSetup]
    public void SetUp()
    {
        const ulong firstTables = 0x20_0000;
        const ulong secondTables = 0x30_0000;
        _guest = new RepeatingGuest(
            new TrapAndEmulateStrategy(),
            Switches / 2,
            a =>
            {
                SwitchAndTouch(a, firstTables);
                SwitchAndTouch(a, secondTables);
            }
        );
        BuildTables(_guest.Memory, firstTables, 0x80_0000);
        BuildTables(_guest.Memory, secondTables, 0x100_0000);
    }

    /// <summary>One switch and the touches.</summary>
    [Benchmark(OperationsPerInvoke = Switches)]
    public void Switch() => _guest!.Run();

    /// <summary>Ends the guest.</summary>
    [GlobalCleanup]
    public void Dispose()
    {
        _guest?.Dispose();
        GC.SuppressFinalize(this);
    }

    // Clobbers RAX, RDI and ECX; the loop around it counts in R15.
    private void SwitchAndTouch(Assembler a, ulong tables)
    {
        Label touch = a.CreateLabel();
        a.mov(rax, tables);
        a.mov(cr3, rax);
        a.mov(rdi, WorkingSet);
        a.mov(ecx, Pages);
        a.Label(ref touch);
        a.add(__qword_ptr[rdi], rcx);
        a.add(rdi, (int)GuestMemory.PageSize);
        a.dec(ecx);
        a.jne(touch);
    }

    // A PML4 and page-directory-pointer table of its own, the identity map's first GiB shared, one page table of data.
    private void BuildTables(GuestMemory memory, ulong tables, ulong data)
    {
        const ulong rights = Pte.Present | Pte.Writable;
        ulong pointers = tables + 0x1000;
        ulong directory = tables + 0x2000;
        ulong pages = tables + 0x3000;
        memory.Write(tables, pointers | rights);
        memory.Write(pointers, (PhysicalLayout.PageTables + 0x2000) | rights);
        memory.Write(pointers + 8, directory | rights);
        memory.Write(directory, pages | rights);
        for (int i = 0; i < Pages; i++)
        {
            memory.Write(pages + (8 * (ulong)i), (data + (GuestMemory.PageSize * (ulong)i)) | rights);
        }
    }
}
