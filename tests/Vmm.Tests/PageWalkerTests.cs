using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Tests;

/// <summary>The walk on tables made by hand: one path through four levels, with one thing changed at a time.</summary>
public sealed class PageWalkerTests : IDisposable
{
    private const ulong Address = 0xFFFF_8123_4567_8ABC;
    private const ulong Page = 0x20_0000;
    private const ulong Open = Pte.Present | Pte.Writable | Pte.User;

    private static readonly ulong[] Tables = [0x10_0000, 0x10_1000, 0x10_2000, 0x10_3000];

    private readonly VirtualCpu _cpu = new();
    private readonly GuestMemory _memory = new(4 << 20);

    public PageWalkerTests()
    {
        _cpu.Cr3 = Tables[0] | 0x18; // PWT and PCD do not belong to the address
        for (int level = 0; level < 4; level++)
        {
            Set(level, (level < 3 ? Tables[level + 1] : Page) | Open);
        }
    }

    public void Dispose()
    {
        _cpu.Dispose();
        _memory.Dispose();
    }

    private static ulong Slot(int level) => Tables[level] + (((Address >> (39 - (9 * level))) & 511) * 8);

    private void Set(int level, ulong entry) => _memory.Write(Slot(level), entry);

    private ulong Entry(int level) => _memory.Read<ulong>(Slot(level));

    private void Toggle(int level, ulong bits) => Set(level, Entry(level) ^ bits);

    private Translation Walk(PageAccess access, bool commit = true) =>
        PageWalker.Walk(_cpu, _memory, Address, access, commit);

    private void Faults(PageAccess access, uint errorCode)
    {
        ulong[] before = [.. Enumerable.Range(0, 4).Select(Entry)];
        Translation t = Walk(access);
        Assert.True(t.Fault);
        Assert.Equal(errorCode, t.ErrorCode);
        Assert.Equal(before, Enumerable.Range(0, 4).Select(Entry));
    }

    [Fact]
    public void A_path_that_allows_everything_translates()
    {
        Translation t = Walk(PageAccess.Read | PageAccess.User);
        Assert.Equal((false, Page + 0xABC, (byte)12), (t.Fault, t.PhysicalAddress, t.PageShift));
        Assert.Equal(PageAccess.Read | PageAccess.Write | PageAccess.Execute | PageAccess.User, t.Permissions);
        Assert.False(t.Dirty);
        Assert.False(t.Accessed);
        Assert.True(Walk(PageAccess.Read).Accessed);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public void Every_level_is_checked(int level)
    {
        Toggle(level, Pte.Present);
        Faults(PageAccess.Read, 0);
        Faults(PageAccess.Write | PageAccess.User, PageFaultError.Write | PageFaultError.User);
        Faults(PageAccess.Execute, PageFaultError.Fetch);
        Toggle(level, Pte.Present);

        Toggle(level, Pte.User);
        Faults(PageAccess.Read | PageAccess.User, PageFaultError.Protection | PageFaultError.User);
        Assert.False(Walk(PageAccess.Write).Fault); // the supervisor may
        Assert.Equal((PageAccess)0, Walk(PageAccess.Read).Permissions & PageAccess.User);
        Toggle(level, Pte.User);

        Toggle(level, Pte.Writable);
        Faults(PageAccess.Write, PageFaultError.Protection | PageFaultError.Write);
        Assert.False(Walk(PageAccess.Read).Fault);
        _cpu.Cr0 &= ~Cr0.Wp;
        Assert.False(Walk(PageAccess.Write).Fault);
        Assert.Equal((PageAccess)0, Walk(PageAccess.Read).Permissions & PageAccess.Write);
        Faults(
            PageAccess.Write | PageAccess.User,
            PageFaultError.Protection | PageFaultError.Write | PageFaultError.User
        );
        Toggle(level, Pte.Writable);

        Toggle(level, Pte.NoExecute);
        Faults(PageAccess.Execute, PageFaultError.Protection | PageFaultError.Fetch);
        Assert.Equal((PageAccess)0, Walk(PageAccess.Read).Permissions & PageAccess.Execute);
        _cpu.Efer &= ~Efer.Nxe; // now the bit is reserved, and fetches are not told apart
        Faults(PageAccess.Execute, PageFaultError.Protection | PageFaultError.Reserved);
        Faults(PageAccess.Read, PageFaultError.Protection | PageFaultError.Reserved);
    }

    [Theory]
    [InlineData(0, 1UL << 40)]
    [InlineData(1, 1UL << 51)]
    [InlineData(2, 1UL << 45)]
    [InlineData(3, 1UL << 40)]
    [InlineData(0, Pte.Large)]
    public void Reserved_bits_fault(int level, ulong bit)
    {
        Toggle(level, bit);
        Faults(
            PageAccess.Write | PageAccess.User,
            PageFaultError.Protection | PageFaultError.Reserved | PageFaultError.Write | PageFaultError.User
        );
    }

    [Fact]
    public void An_absent_entry_has_no_reserved_bits()
    {
        Set(1, 0xFFFF_FFFF_FFFF_FFFE);
        Faults(PageAccess.Read, 0);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(2)]
    public void A_table_outside_RAM_reads_as_all_ones_and_faults_with_reserved_bits(int level)
    {
        Set(level, 0xFF_0000_0000 | Open);
        Faults(PageAccess.Read, PageFaultError.Protection | PageFaultError.Reserved);
    }

    [Fact]
    public void A_root_outside_RAM_faults_too()
    {
        _cpu.Cr3 = 0xFF_FFFF_F000;
        Faults(PageAccess.Read, PageFaultError.Protection | PageFaultError.Reserved);
    }

    [Theory]
    [InlineData(2, 21, 0x3F_FFE0_0000UL)]
    [InlineData(1, 30, 0x3F_C000_0000UL)]
    public void Large_pages_translate_with_the_pat_bit_and_need_not_be_RAM(int level, int shift, ulong start)
    {
        Set(level, start | Open | Pte.Large | (1 << 12) | Pte.Global);
        Translation t = Walk(PageAccess.Write);
        ulong mask = (1UL << shift) - 1;
        Assert.Equal((false, start | (Address & mask), (byte)shift), (t.Fault, t.PhysicalAddress, t.PageShift));
        Assert.True(t.Dirty && t.Global);
        Assert.Equal(Pte.Dirty | Pte.Accessed, Entry(level) & (Pte.Dirty | Pte.Accessed));

        Toggle(level, 1 << 13); // address bits below the page are reserved
        Faults(PageAccess.Read, PageFaultError.Protection | PageFaultError.Reserved);
    }

    [Fact]
    public void Accessed_is_set_on_the_way_and_dirty_in_the_leaf_on_a_write_only()
    {
        _ = Walk(PageAccess.Write, commit: false);
        Assert.All(Enumerable.Range(0, 4), level => Assert.Equal(0UL, Entry(level) & (Pte.Accessed | Pte.Dirty)));
        _ = Walk(PageAccess.Read);
        Assert.All(
            Enumerable.Range(0, 4),
            level => Assert.Equal(Pte.Accessed, Entry(level) & (Pte.Accessed | Pte.Dirty))
        );
        Assert.True(Walk(PageAccess.Write).Dirty);
        Assert.Equal(Pte.Accessed | Pte.Dirty, Entry(3) & (Pte.Accessed | Pte.Dirty));
        Assert.Equal(Pte.Accessed, Entry(2) & (Pte.Accessed | Pte.Dirty));
        Assert.True(Walk(PageAccess.Read).Dirty);
    }

    [Theory]
    [InlineData(0x0000_7FFF_FFFF_FFFF, true)]
    [InlineData(0x0000_8000_0000_0000, false)]
    [InlineData(0xFFFF_7FFF_FFFF_FFFF, false)]
    [InlineData(0xFFFF_8000_0000_0000, true)]
    public void Canonical_addresses_repeat_bit_47(ulong address, bool canonical) =>
        Assert.Equal(canonical, PageWalker.IsCanonical(address));
}
