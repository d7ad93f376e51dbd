using System.Runtime.Versioning;
using BenchmarkDotNet.Attributes;
using Iced.Intel;
using VirtBench.Strategies.Shadow;
using VirtBench.Strategies.TrapAndEmulate;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>
/// One CR3 write under direct execution, and the guest's touching (read, add, write) of all its pages after it. The pages are
/// contiguous, so that the refill of policy <c>flush</c> is one run.
/// </summary>
[Config(typeof(InProcessConfiguration))]
[SupportedOSPlatform("linux")]
public class AddressSpaceSwitchBenchmarks : IDisposable
{
    internal const int Switches = 100;

    private RepeatingGuest? _guest;

    /// <summary>The policy.</summary>
    [Params(ShadowPaging.Flush, ShadowPaging.Cached)]
    public ShadowPaging Shadow { get; set; }

    /// <summary>Pages that the guest touches in each address space.</summary>
    [Params(1, 8, 64)]
    public int Pages { get; set; }

    /// <summary>Builds two address spaces and boots the guest.</summary>
    [GlobalSetup]
    public void SetUp() => _guest = ShadowPagingGuests.Switching(Shadow, Switches, Pages);

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
}

/// <summary>
/// One write to an entry of a page table in use, INVLPG, and a touch of the page, under direct execution: policy <c>cached</c> pays with a trap for the write
/// what it saves at CR3 writes.
/// </summary>
[Config(typeof(InProcessConfiguration))]
[SupportedOSPlatform("linux")]
public class PageTableUpdateBenchmarks : IDisposable
{
    internal const int Updates = 200;

    private RepeatingGuest? _guest;

    /// <summary>The policy.</summary>
    [Params(ShadowPaging.Flush, ShadowPaging.Cached)]
    public ShadowPaging Shadow { get; set; }

    /// <summary>Boots the guest.</summary>
    [GlobalSetup]
    public void SetUp() => _guest = ShadowPagingGuests.Updating(Shadow, Updates);

    /// <summary>One update and the touch.</summary>
    [Benchmark(OperationsPerInvoke = Updates)]
    public void Update() => _guest!.Run();

    /// <summary>Ends the guest.</summary>
    [GlobalCleanup]
    public void Dispose()
    {
        _guest?.Dispose();
        GC.SuppressFinalize(this);
    }
}

/// <summary>Guests whose time goes into their page tables.</summary>
[SupportedOSPlatform("linux")]
internal static class ShadowPagingGuests
{
    private const ulong FirstTables = 0x20_0000;
    private const ulong SecondTables = 0x30_0000;
    private const ulong WorkingSet = 0x4000_0000;
    private const ulong FirstData = 0x80_0000;
    private const ulong SecondData = 0x100_0000;

    /// <summary>Loads the CR3s of two address spaces in turn, and touches so many pages after each.</summary>
    public static RepeatingGuest Switching(ShadowPaging shadow, int switches, int pages)
    {
        var guest = new RepeatingGuest(
            new TrapAndEmulateStrategy { Shadow = shadow },
            switches / 2,
            a =>
            {
                SwitchAndTouch(a, FirstTables, pages);
                SwitchAndTouch(a, SecondTables, pages);
            }
        );
        BuildTables(guest.Memory, FirstTables, FirstData, pages);
        BuildTables(guest.Memory, SecondTables, SecondData, pages);
        return guest;
    }

    /// <summary>Lets one entry point at one of two pages in turn.</summary>
    public static RepeatingGuest Updating(ShadowPaging shadow, int updates)
    {
        const ulong entry = FirstTables + 0x3000;
        const ulong rights = Pte.Present | Pte.Writable | Pte.Accessed | Pte.Dirty;
        var guest = new RepeatingGuest(
            new TrapAndEmulateStrategy { Shadow = shadow },
            updates / 2,
            a =>
            {
                foreach (ulong data in (ReadOnlySpan<ulong>)[FirstData, SecondData])
                {
                    a.mov(rdi, WorkingSet);
                    a.mov(rdx, entry);
                    a.mov(rax, data | rights);
                    a.mov(__qword_ptr[rdx], rax);
                    a.invlpg(__[rdi]);
                    a.add(__qword_ptr[rdi], rax);
                }
            },
            a =>
            {
                a.mov(rax, FirstTables);
                a.mov(cr3, rax);
            }
        );
        BuildTables(guest.Memory, FirstTables, FirstData, pages: 1);
        return guest;
    }

    // Clobbers RAX, RDI and ECX; the loop around it counts in R15.
    private static void SwitchAndTouch(Assembler a, ulong tables, int pages)
    {
        Label touch = a.CreateLabel();
        a.mov(rax, tables);
        a.mov(cr3, rax);
        a.mov(rdi, WorkingSet);
        a.mov(ecx, pages);
        a.Label(ref touch);
        a.add(__qword_ptr[rdi], rcx);
        a.add(rdi, (int)GuestMemory.PageSize);
        a.dec(ecx);
        a.jne(touch);
    }

    // A PML4 and page-directory-pointer table of its own, the identity map's first GiB shared, one page table of data.
    private static void BuildTables(GuestMemory memory, ulong tables, ulong data, int pages)
    {
        const ulong rights = Pte.Present | Pte.Writable;
        ulong pointers = tables + 0x1000;
        ulong directory = tables + 0x2000;
        ulong table = tables + 0x3000;
        memory.Write(tables, pointers | rights);
        memory.Write(pointers, (PhysicalLayout.PageTables + 0x2000) | rights);
        memory.Write(pointers + 8, directory | rights);
        memory.Write(directory, table | rights);
        for (int i = 0; i < pages; i++)
        {
            memory.Write(table + (8 * (ulong)i), (data + (GuestMemory.PageSize * (ulong)i)) | rights);
        }
    }
}

/// <summary>
/// The two policies in turns, a few milliseconds each, because on a shared host times drift within seconds: CR3 switches with working sets of
/// 1, 8 and 64 pages, and updates of a page-table entry.
/// </summary>
[SupportedOSPlatform("linux")]
internal static class ShadowPagingComparison
{
    private const int Windows = 200;
    private const int WarmUpWindows = 50;

    /// <summary>Measures and prints two lines per quantity.</summary>
    public static void Print(TextWriter output)
    {
        output.WriteLine($"In turns, {Windows} windows each, this host, µs:");
        foreach (int pages in (ReadOnlySpan<int>)[1, 8, 64])
        {
            Compare(
                output,
                $"CR3 switch, {pages} pages",
                AddressSpaceSwitchBenchmarks.Switches,
                policy => ShadowPagingGuests.Switching(policy, AddressSpaceSwitchBenchmarks.Switches, pages)
            );
        }

        Compare(
            output,
            "update of an entry",
            PageTableUpdateBenchmarks.Updates,
            policy => ShadowPagingGuests.Updating(policy, PageTableUpdateBenchmarks.Updates)
        );
    }

    private static void Compare(TextWriter output, string what, int count, Func<ShadowPaging, RepeatingGuest> create)
    {
        using RepeatingGuest flush = create(ShadowPaging.Flush);
        using RepeatingGuest cached = create(ShadowPaging.Cached);
        double[] flushed = new double[Windows];
        double[] kept = new double[Windows];
        for (int i = -WarmUpWindows; i < Windows; i++)
        {
            int window = Math.Max(i, 0);
            flushed[window] = Time(flush) / count;
            kept[window] = Time(cached) / count;
        }

        Quantiles.Print(output, $"{what}, flush", flushed, "F2");
        Quantiles.Print(output, $"{what}, cached", kept, "F2");
    }

    private static double Time(RepeatingGuest guest)
    {
        double start = HostClock.Instance.Nanoseconds;
        guest.Run();
        return (HostClock.Instance.Nanoseconds - start) / 1000;
    }
}
