#pragma warning disable CA1416 // DirectGuest has asked for Linux
using System.Globalization;
using VirtBench.Strategies.Carrier;
using VirtBench.Strategies.Native;
using VirtBench.Strategies.Shadow;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Tests.DirectExecution;

/// <summary>Rings, carriers and tracked page tables, by guests that do one thing at a time.</summary>
[Collection(CarrierCollection.Name)]
public sealed class CachedShadowTests
{
    private const ulong Page = GuestMemory.PageSize;
    private const ulong Region = 0x4000_0000; // what the guests' own directory maps
    private const ulong Data = 0x60_0000;
    private const ulong All = Pte.Present | Pte.Writable | Pte.User;

    private static ulong Root(int i) => CoherenceGuest.Tables + ((ulong)i * 0x1_0000);

    private static ulong Directory(int i) => Root(i) + 0x4000;

    private static ulong Table(int i) => Root(i) + 0x5000;

    private static CoherenceGuest Start(ShadowPaging policy, int roots = 1, int carriers = 16)
    {
        var guest = new CoherenceGuest(
            policy,
            Root(0),
            carriers,
            memory =>
            {
                for (int i = 0; i < roots; i++)
                {
                    CoherenceGuest.BuildRoot(memory, Root(i), Directory(i));
                    memory.Write(Directory(i), Table(i) | All);
                    memory.Write(Data + ((ulong)i * Page), 0x100UL + (ulong)i);
                    memory.Write(Table(i), (Data + ((ulong)i * Page)) | All);
                }
            }
        );
        Assert.Null(guest.Run());
        return guest;
    }

    private static CachedShadow Shadow(CoherenceGuest guest) => Assert.IsType<CachedShadow>(guest.Engine.Shadow);

    [Theory]
    [InlineData(ShadowPaging.Flush)]
    [InlineData(ShadowPaging.Cached)]
    public void Ring_3_gets_the_page_fault_of_real_hardware_for_a_supervisor_page(ShadowPaging policy)
    {
        using CoherenceGuest guest = Start(policy);
        ulong supervisor = Region + Page;
        guest.Memory.Write(Table(0) + 8, Data | Pte.Present | Pte.Writable);
        const ulong notExecutable = PageFaultError.Protection | PageFaultError.User | PageFaultError.Fetch;
        guest.Add(GuestOperation.Read, supervisor, 0x100); // ring 0 has it
        guest.Add(GuestOperation.EnterUser);
        guest.Add(GuestOperation.Read, supervisor, 0, PageFaultError.Protection | PageFaultError.User);
        guest.Add(GuestOperation.Write, supervisor, 0, 7);
        guest.Add(GuestOperation.Execute, supervisor, 0, notExecutable);
        guest.Add(GuestOperation.Read, CoherenceGuest.Tables, 0, 5);
        guest.Add(GuestOperation.Read, Region, 0x100);
        guest.Add(GuestOperation.Read, Region + 0x10_0000, 0, PageFaultError.User);
        guest.Add(GuestOperation.EnterKernel);
        guest.Add(GuestOperation.Read, supervisor, 0x100);
        Assert.Null(guest.Run());
    }

    [Fact]
    public void No_page_that_ring_3_must_not_see_is_in_its_carrier()
    {
        using CoherenceGuest guest = Start(ShadowPaging.Cached);
        guest.Add(GuestOperation.Read, CoherenceGuest.Tables, Root(0) + 0x1000 | All | Pte.Accessed);
        guest.Add(GuestOperation.EnterUser);
        guest.Add(GuestOperation.Read, Region, 0x100);
        guest.Add(GuestOperation.EnterKernel);
        Assert.Null(guest.Run());
        Assert.Equal(3, CarriersOf(guest).Count()); // the third has the tables that the guest was booted with
        foreach (MappedRun run in Shadow(guest).Views.Single(view => view.User).Runs.All)
        {
            Assert.False(run.Address < 0x60_0000 && run.End > 0x40_0000, $"{run}");
        }
    }

    [Fact]
    public void An_address_space_that_is_entered_again_faults_nothing_in()
    {
        using CoherenceGuest guest = Start(ShadowPaging.Cached, roots: 3);
        Visit(guest, 3);
        long faults = guest.Machine.Ledger.Count(TrapReason.HiddenPageFault);
        Visit(guest, 3);
        Assert.Equal(faults, guest.Machine.Ledger.Count(TrapReason.HiddenPageFault));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(5)]
    public void There_are_never_more_carriers_than_allowed(int carriers)
    {
        using CoherenceGuest guest = Start(ShadowPaging.Cached, roots: 6, carriers: carriers);
        for (int i = 0; i < 3; i++)
        {
            Visit(guest, 6);
        }

        Assert.True(CarriersOf(guest).Count() <= carriers);
    }

    private static void Visit(CoherenceGuest guest, int roots)
    {
        for (int i = 0; i < roots; i++)
        {
            guest.Add(GuestOperation.LoadCr3, Root(i));
            guest.Add(GuestOperation.Read, Region, 0x100UL + (ulong)i);
            guest.Add(GuestOperation.EnterUser);
            guest.Add(GuestOperation.Read, Region, 0x100UL + (ulong)i);
            guest.Add(GuestOperation.EnterKernel);
        }

        guest.Add(GuestOperation.LoadCr3, Root(0));
        Assert.Null(guest.Run());
    }

    private static IEnumerable<CarrierProcess> CarriersOf(CoherenceGuest guest) =>
        Enumerable
            .Range(0, CarrierLayout.MaximumCarriers)
            .Select(slot => guest.Engine.Pool[slot])
            .OfType<CarrierProcess>();

    [Fact]
    public void A_waiting_carrier_that_is_killed_ends_the_guest_when_it_is_needed()
    {
        using CoherenceGuest guest = Start(ShadowPaging.Cached, roots: 2);
        Visit(guest, 2);
        CarrierProcess waiting = CarriersOf(guest).Last(carrier => carrier != guest.Engine.Carrier);
        _ = Linux.Syscall(Linux.SysKill, waiting.ProcessId, Linux.SigKill);
        guest.Add(GuestOperation.LoadCr3, Root(0));
        guest.Add(GuestOperation.EnterUser);
        guest.Add(GuestOperation.EnterKernel);
        guest.Add(GuestOperation.LoadCr3, Root(1));
        guest.Add(GuestOperation.EnterUser);
        guest.Add(GuestOperation.EnterKernel);
        Assert.Contains("was killed by signal 9", guest.Run(), StringComparison.Ordinal);
    }

    [Fact]
    public void All_carriers_end_with_the_engine()
    {
        CoherenceGuest guest = Start(ShadowPaging.Cached, roots: 4);
        Visit(guest, 4);
        int[] processes = [.. CarriersOf(guest).Select(carrier => carrier.ProcessId)];
        Assert.Equal(9, processes.Length);
        guest.Dispose();
        foreach (int process in processes)
        {
            Assert.False(System.IO.Directory.Exists($"/proc/{process.ToString(CultureInfo.InvariantCulture)}"));
        }
    }

    [Theory]
    [InlineData(nameof(GuestOperation.Store))]
    [InlineData(nameof(GuestOperation.Exchange))]
    public void A_write_to_an_entry_counts_at_once_and_without_invlpg(string operation)
    {
        using CoherenceGuest guest = Start(ShadowPaging.Cached);
        GuestOperation write = Enum.Parse<GuestOperation>(operation);
        guest.Memory.Write(Data + (5 * Page), 0x555UL);
        guest.Add(GuestOperation.Read, Region, 0x100);
        guest.Add(write, Table(0), Data + (5 * Page) | All);
        guest.Add(GuestOperation.Read, Region, 0x555);
        guest.Add(write, Table(0), 0);
        guest.Add(GuestOperation.Read, Region, 0, 0);
        guest.Add(write, Table(0), Data | Pte.Present | Pte.Accessed);
        guest.Add(GuestOperation.Write, Region, 0, 3);
        guest.Add(write, Directory(0), 0);
        guest.Add(GuestOperation.Read, Region, 0, 0);
        Assert.Null(guest.Run());
        Assert.True(guest.Machine.Ledger.Count(TrapReason.PageTableWrite) >= 3);
    }

    [Fact]
    public void A_table_that_has_become_data_is_let_go_and_written_freely()
    {
        using CoherenceGuest guest = Start(ShadowPaging.Cached);
        guest.Add(GuestOperation.Read, Region, 0x100);
        Assert.Null(guest.Run());
        Assert.True(Shadow(guest).IsTracked(Table(0)));
        for (ulong i = 0; i < 500; i++)
        {
            guest.Add(GuestOperation.Write, Table(0) + 0x800 + (i % 64 * 8), i);
        }

        Assert.Null(guest.Run());
        Assert.False(Shadow(guest).IsTracked(Table(0)));
        Assert.InRange(
            guest.Machine.Ledger.Count(TrapReason.PageTableWrite),
            1,
            CachedShadow.MaximumWritesUnwalked + 1
        );
        guest.Memory.Write(Data + (7 * Page), 0x777UL);
        guest.Add(GuestOperation.Write, Table(0), Data + (7 * Page) | All);
        guest.Add(GuestOperation.Read, Region, 0x777); // and it is a table still
        Assert.Null(guest.Run());
    }

    [Fact]
    public void A_table_whose_entry_is_gone_is_let_go_at_once()
    {
        using CoherenceGuest guest = Start(ShadowPaging.Cached);
        guest.Add(GuestOperation.Read, Region, 0x100);
        guest.Add(GuestOperation.Store, Directory(0), 0);
        Assert.Null(guest.Run());
        Assert.False(Shadow(guest).IsTracked(Table(0)));
        Assert.True(Shadow(guest).IsTracked(Directory(0)));
    }

    [Fact]
    public void A_table_that_maps_itself_writable_is_followed_all_the_same()
    {
        using CoherenceGuest guest = Start(ShadowPaging.Cached);
        ulong table = Region + (9 * Page); // the page table through itself
        guest.Memory.Write(Table(0) + (9 * 8), Table(0) | All);
        guest.Memory.Write(Data + (3 * Page), 0x333UL);
        guest.Add(GuestOperation.Read, Region, 0x100);
        guest.Add(GuestOperation.Write, table, Data + (3 * Page) | All);
        guest.Add(GuestOperation.Read, Region, 0x333);
        guest.Add(GuestOperation.EnterUser);
        guest.Add(GuestOperation.Write, table, Data | All);
        guest.Add(GuestOperation.Read, Region, 0x100);
        guest.Add(GuestOperation.Exchange, table + (9 * 8), 0); // takes its own way away
        guest.Add(GuestOperation.Read, table, 0, PageFaultError.User);
        guest.Add(GuestOperation.EnterKernel);
        Assert.Null(guest.Run());
    }

    [Fact]
    public void A_root_that_maps_itself_at_every_level_is_followed_all_the_same()
    {
        using CoherenceGuest guest = Start(ShadowPaging.Cached);
        const int slot = 5;
        ulong self = Root(0) | All;
        guest.Memory.Write(Root(0) + (slot * 8), self);
        // Entry 5 at every level: the root itself, and below, the tables as data.
        ulong Address(ulong a, ulong b, ulong c, ulong d) => (a << 39) | (b << 30) | (c << 21) | (d << 12);
        ulong rootAsPage = Address(slot, slot, slot, slot);
        ulong directoryAsPage = Address(slot, slot, 0, 1);
        guest.Add(GuestOperation.Read, Region, 0x100);
        guest.Add(GuestOperation.Read, directoryAsPage, Table(0) | All | Pte.Accessed);
        guest.Memory.Write(Root(0) + 0x8000, 0UL);
        guest.Add(GuestOperation.Write, directoryAsPage, Root(0) + 0x8000 | All); // an empty table instead
        guest.Add(GuestOperation.Read, Region, 0, 0);
        guest.Add(GuestOperation.Write, directoryAsPage, Table(0) | All);
        guest.Add(GuestOperation.Read, Region, 0x100);
        guest.Add(GuestOperation.Write, rootAsPage + (6 * 8), 0);
        guest.Add(GuestOperation.Write, rootAsPage + (slot * 8), 0);
        guest.Add(GuestOperation.Read, rootAsPage, 0, 0);
        Assert.Null(guest.Run());
    }

    [Fact]
    public void What_a_guest_makes_the_vmm_remember_is_bounded()
    {
        // One page table behind every entry of a directory, behind every entry of a table of directories, …: a few frames, uses without end.
        using CoherenceGuest guest = Start(ShadowPaging.Cached);
        ulong pointers = Root(0) + 0x1000;
        for (ulong i = 2; i < 512; i++)
        {
            guest.Memory.Write(pointers + (i * 8), Directory(0) | All);
            guest.Memory.Write(Directory(0) + (i * 8), Table(0) | All);
        }

        var random = new Random(1);
        for (int batch = 0; batch < 3; batch++)
        {
            for (int i = 0; i < 4000; i++)
            {
                ulong gibibyte = (ulong)random.Next(2, 512);
                ulong large = (ulong)random.Next(2, 512);
                guest.Add(GuestOperation.Read, (gibibyte << 30) | (large << 21), 0x100);
            }

            Assert.Null(guest.Run());
            Assert.InRange(Shadow(guest).TrackedFrames, 1, 8);
            Assert.True(Shadow(guest).Views.All(view => view.Runs.All.Count <= MappedRuns.MaximumRuns + 64));
        }
    }

    [Fact]
    public void Page_tables_that_the_vmm_writes_are_followed()
    {
        using CoherenceGuest guest = Start(ShadowPaging.Cached);
        guest.Add(GuestOperation.Read, Region, 0x100);
        Assert.Null(guest.Run());
        guest.Memory.Write(Data + (4 * Page), 0x444UL);
        guest.Memory.Write(Table(0), Data + (4 * Page) | All); // a device, say
        guest.Add(GuestOperation.Read, Region, 0x444);
        Assert.Null(guest.Run());
    }

    [Theory]
    [InlineData(ShadowPaging.Flush)]
    [InlineData(ShadowPaging.Cached)]
    public void Accessed_and_dirty_are_set_when_a_page_is_first_read_and_first_written(ShadowPaging policy)
    {
        using CoherenceGuest guest = Start(policy);
        const ulong both = Pte.Accessed | Pte.Dirty;
        ulong entry = Data | All;
        guest.Add(GuestOperation.Read, Table(0), entry);
        guest.Add(GuestOperation.Read, Region, 0x100);
        guest.Add(GuestOperation.Read, Table(0), entry | Pte.Accessed);
        guest.Add(GuestOperation.Write, Region, 0x200);
        guest.Add(GuestOperation.Read, Table(0), entry | both);
        guest.Add(GuestOperation.Store, Table(0), entry | Pte.Accessed); // Dirty is cleared
        guest.Add(GuestOperation.Invalidate, Region);
        guest.Add(GuestOperation.Read, Region, 0x200);
        guest.Add(GuestOperation.Read, Table(0), entry | Pte.Accessed);
        guest.Add(GuestOperation.Write, Region, 0x300);
        guest.Add(GuestOperation.Read, Table(0), entry | both);
        Assert.Null(guest.Run());
    }
}
