using VirtBench.Strategies.Shadow;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Tests.DirectExecution;

public sealed class FlushedShadowTests : IDisposable
{
    private const ulong Lowest = 0x1_0000;
    private const ulong Limit = 0x7FFD_0000_0000;
    private const ulong Ram = 16 << 20;
    private const ulong LargePage = 2 << 20;
    private const ulong Used = Pte.Present | Pte.Writable | Pte.User | Pte.Accessed | Pte.Dirty;

    private readonly GuestMemory _memory = new(Ram);
    private readonly VirtualCpu _cpu = new();
    private readonly RecordingSink[] _sinks = [new(), new()];
    private readonly FlushedShadow _shadow;
    private ulong _nextTable = 0x10_0000;

    public FlushedShadowTests()
    {
        _shadow = new FlushedShadow(_cpu, _memory, Lowest, Limit, slot => _sinks[slot]);
        _cpu.Cr3 = NewTable();
        _ = _shadow.Select();
    }

    /// <summary>The carrier that the guest would run in.</summary>
    private RecordingSink Sink => _sinks[_cpu.Cpl == 3 ? 1 : 0];

    private void Switch()
    {
        _shadow.SwitchAddressSpace();
        _ = _shadow.Select();
    }

    public void Dispose()
    {
        _memory.Dispose();
        _cpu.Dispose();
    }

    /// <summary>A carrier's address space, page by page, that refuses what the kernel would refuse.</summary>
    private sealed class RecordingSink : IMappingSink
    {
        public SortedDictionary<ulong, (ulong Physical, PageAccess Access)> Pages { get; } = [];

        public List<string> Log { get; } = [];

        public void Map(in MappedRun run, bool populate)
        {
            Check(run.Address, run.End);
            Assert.True(run.Physical + run.Length <= Ram, $"{run} reaches beyond RAM");
            Log.Add($"map {run.Address:X} {run.Length:X} {run.Physical:X} {run.Access}");
            for (ulong at = 0; at < run.Length; at += 4096)
            {
                Pages[run.Address + at] = (run.Physical + at, run.Access);
            }
        }

        public void Protect(in MappedRun run)
        {
            Check(run.Address, run.End);
            Log.Add($"protect {run.Address:X} {run.Length:X} {run.Access}");
            for (ulong at = 0; at < run.Length; at += 4096)
            {
                (ulong physical, _) = Pages[run.Address + at]; // mprotect fails where nothing is mapped
                Assert.Equal(run.Physical + at, physical);
                Pages[run.Address + at] = (physical, run.Access);
            }
        }

        public void Unmap(ulong start, ulong end)
        {
            Check(start, end);
            Log.Add($"unmap {start:X} {end:X}");
            foreach (ulong page in Pages.Keys.Where(page => page >= start && page < end).ToArray())
            {
                _ = Pages.Remove(page);
            }
        }

        private static void Check(ulong start, ulong end)
        {
            Assert.True(start < end && start >= Lowest && end <= Limit, $"0x{start:X} … 0x{end:X}");
            Assert.True(((start | end) & 0xFFF) == 0);
        }
    }

    private ulong NewTable()
    {
        _nextTable += 0x1000;
        return _nextTable;
    }

    // Sets a leaf of the given size, making tables on the way.
    private ulong Leaf(ulong root, ulong address, ulong entry, int shift = 12)
    {
        ulong table = root;
        for (int level = 39; level > shift; level -= 9)
        {
            ulong slot = table + (((address >> level) & 511) * 8);
            ulong next = _memory.Read<ulong>(slot);
            if ((next & Pte.Present) == 0 || (next & Pte.Large) != 0)
            {
                next = NewTable() | Used;
                _memory.Write(slot, next);
            }

            table = next & Pte.AddressMask;
        }

        ulong leaf = table + (((address >> shift) & 511) * 8);
        _memory.Write(leaf, entry | (shift > 12 && (entry & Pte.Present) != 0 ? Pte.Large : 0));
        return leaf;
    }

    // What the core does at a shadow fault.
    private bool Touch(ulong address, PageAccess access)
    {
        Translation t = PageWalker.Walk(_cpu, _memory, address, access | (_cpu.Cpl == 3 ? PageAccess.User : 0));
        if (t.Fault || !_memory.Contains(t.PhysicalAddress, 1))
        {
            return false;
        }

        ulong length = 1UL << t.PageShift;
        ulong offset = address & (length - 1);
        PageAccess rights = t.Dirty ? t.Permissions : t.Permissions & ~PageAccess.Write;
        Assert.Equal(
            MapResult.Mapped,
            _shadow.Map(
                new ShadowPage(address, address - offset, t.PhysicalAddress - offset, length, rights),
                write: (access & PageAccess.Write) != 0
            )
        );
        return true;
    }

    private void EnterRing(int ring)
    {
        _cpu.Cs = _cpu.Cs with { Selector = (ushort)((_cpu.Cs.Selector & ~3) | ring) };
        _ = _shadow.Select();
    }

    private void AssertListMatchesSink()
    {
        var listed = new SortedDictionary<ulong, (ulong, PageAccess)>();
        ulong end = 0;
        foreach (MappedRun run in _shadow.Current!.All)
        {
            Assert.True(run.Address >= end, "runs overlap or are out of order");
            end = run.End;
            for (ulong at = 0; at < run.Length; at += 4096)
            {
                listed.Add(run.Address + at, (run.Physical + at, run.Access));
            }
        }

        Assert.Equal(Sink.Pages, listed);
    }

    private void MapPages(ulong address, int count, ulong physical, ulong flags = Used)
    {
        for (ulong i = 0; i < (ulong)count; i++)
        {
            _ = Leaf(_cpu.Cr3, address + (i * 4096), (physical + (i * 4096)) | flags);
        }
    }

    [Fact]
    public void A_reload_of_cr3_with_the_same_tables_asks_nothing_of_the_carrier()
    {
        MapPages(0x40_0000, 64, 0x80_0000);
        for (ulong i = 0; i < 64; i++)
        {
            Assert.True(Touch(0x40_0000 + (i * 4096), PageAccess.Read));
        }

        Assert.Single(_shadow.Current!.All);
        Sink.Log.Clear();
        Switch();
        Assert.Empty(Sink.Log);
        Assert.Equal(64, Sink.Pages.Count);
    }

    [Fact]
    public void A_switch_refills_contiguous_pages_in_one_piece()
    {
        ulong first = _cpu.Cr3;
        MapPages(0x40_0000, 64, 0x80_0000);
        for (ulong i = 0; i < 64; i++)
        {
            Assert.True(Touch(0x40_0000 + (i * 4096), PageAccess.Read));
        }

        _cpu.Cr3 = NewTable();
        Switch();
        Assert.Empty(Sink.Pages);
        Sink.Log.Clear();
        _cpu.Cr3 = first;
        Switch();
        Assert.Equal("map 400000 40000 800000 Read, Write, Execute", Assert.Single(Sink.Log));
    }

    [Fact]
    public void A_page_becomes_writable_in_place_when_its_dirty_bit_is_set()
    {
        MapPages(0x40_0000, 1, 0x80_0000, Used & ~Pte.Dirty);
        Assert.True(Touch(0x40_0000, PageAccess.Read));
        Assert.Equal(PageAccess.Read | PageAccess.Execute, Sink.Pages[0x40_0000].Access);
        Assert.True(Touch(0x40_0000, PageAccess.Write));
        Assert.Equal("protect 400000 1000 Read, Write, Execute", Sink.Log[^1]);
    }

    [Theory]
    [InlineData(Pte.Present, "")]
    [InlineData(Pte.Accessed, "")]
    [InlineData(Pte.Dirty, "Read, Execute")]
    [InlineData(Pte.Writable, "Read, Execute")]
    [InlineData(Pte.User, "Read, Write, Execute")]
    public void A_reload_of_cr3_takes_back_what_the_tables_no_longer_grant(ulong cleared, string left)
    {
        MapPages(0x40_0000, 3, 0x80_0000);
        for (ulong i = 0; i < 3; i++)
        {
            Assert.True(Touch(0x40_0000 + (i * 4096), PageAccess.Write));
        }

        _ = Leaf(_cpu.Cr3, 0x40_1000, 0x80_1000 | (Used & ~cleared));
        Switch();
        Assert.Equal(
            left,
            Sink.Pages.TryGetValue(0x40_1000, out (ulong, PageAccess Access) page) ? $"{page.Access}" : ""
        );
        Assert.True(Sink.Pages.ContainsKey(0x40_0000) && Sink.Pages.ContainsKey(0x40_2000));
        AssertListMatchesSink();
    }

    [Fact]
    public void Ring_3_does_not_see_supervisor_pages()
    {
        MapPages(0x40_0000, 1, 0x80_0000, Used & ~Pte.User);
        MapPages(0x40_1000, 1, 0x80_1000);
        Assert.True(Touch(0x40_0000, PageAccess.Read) && Touch(0x40_1000, PageAccess.Read));
        EnterRing(3);
        Assert.Empty(Sink.Pages); // a carrier of its own, filled by its own faults
        Assert.False(Touch(0x40_0000, PageAccess.Read));
        Assert.True(Touch(0x40_1000, PageAccess.Read));
        EnterRing(0);
        Assert.Equal([0x40_0000UL, 0x40_1000UL], Sink.Pages.Keys);
        EnterRing(3);
        Assert.Equal([0x40_1000UL], Sink.Pages.Keys);
    }

    [Fact]
    public void Invlpg_takes_one_page_out_of_a_merged_run()
    {
        MapPages(0x40_0000, 3, 0x80_0000);
        for (ulong i = 0; i < 3; i++)
        {
            Assert.True(Touch(0x40_0000 + (i * 4096), PageAccess.Read));
        }

        _shadow.InvalidatePage(0x40_1FFF);
        Assert.Equal([0x40_0000UL, 0x40_2000UL], Sink.Pages.Keys);
        AssertListMatchesSink();
    }

    [Fact]
    public void Invlpg_takes_all_of_a_large_page()
    {
        _ = Leaf(_cpu.Cr3, 0x40_0000, 0x80_0000 | Used, shift: 21);
        Assert.True(Touch(0x40_5000, PageAccess.Read));
        Assert.Equal((int)(LargePage / 4096), Sink.Pages.Count);
        _shadow.InvalidatePage(0x5F_F000);
        Assert.Empty(Sink.Pages);
    }

    [Fact]
    public void Invlpg_takes_the_rest_of_a_large_page_that_has_been_split_since()
    {
        _ = Leaf(_cpu.Cr3, 0x40_0000, 0x80_0000 | Used, shift: 21);
        Assert.True(Touch(0x40_5000, PageAccess.Read));
        _ = Leaf(_cpu.Cr3, 0x40_0000, 0, shift: 21);
        _ = Leaf(_cpu.Cr3, 0x50_0000, 0x90_0000 | Used);
        Assert.True(Touch(0x50_0000, PageAccess.Read)); // both sizes are in the TLB now
        _shadow.InvalidatePage(0x40_0000);
        Assert.Empty(Sink.Pages);
    }

    [Fact]
    public void A_large_page_is_cut_where_the_process_or_ram_ends()
    {
        _ = Leaf(_cpu.Cr3, 0, 0 | Used, shift: 21);
        Assert.True(Touch(0x1_5000, PageAccess.Read));
        Assert.Equal(Lowest, Sink.Pages.Keys.First());
        Assert.Equal(LargePage - 4096, Sink.Pages.Keys.Last());
        _ = Leaf(_cpu.Cr3, 1 << 30, 0 | Used, shift: 30);
        Assert.True(Touch((1 << 30) + 0x3000, PageAccess.Read));
        Assert.Equal((1UL << 30) + Ram - 4096, Sink.Pages.Keys.Last());
        Switch();
        Assert.Equal((1UL << 30) + Ram - 4096, Sink.Pages.Keys.Last());
        AssertListMatchesSink();
        _shadow.InvalidatePage((1 << 30) + 0x20_0000);
        Assert.Equal(LargePage - 4096, Sink.Pages.Keys.Last());
    }

    [Theory]
    [InlineData(0xF000UL)]
    [InlineData(Limit)]
    [InlineData(0xFFFF_8000_0000_0000UL)]
    public void What_the_process_cannot_map_is_refused_in_one_line(ulong address)
    {
        MapResult result = _shadow.Map(new ShadowPage(address, address, 0x1000, 4096, PageAccess.Read), write: false);
        Assert.Equal(MapOutcome.Refused, result.Outcome);
        Assert.Contains($"0x{address:X}", result.Message, StringComparison.Ordinal);
        Assert.Empty(Sink.Log);
    }

    [Fact]
    public void Neither_runs_nor_address_spaces_grow_without_bound()
    {
        for (ulong i = 0; i < 5000; i++)
        {
            ulong address = 0x1000_0000 + (i * 0x2000);
            Assert.Equal(
                MapResult.Mapped,
                _shadow.Map(new ShadowPage(address, address, 0x1000, 4096, PageAccess.Read), write: false)
            );
            Assert.True(_shadow.Current!.All.Count <= 4096);
        }

        AssertListMatchesSink();
        for (ulong i = 0; i < 200; i++)
        {
            _cpu.Cr3 = 0x20_0000 + (i * 0x1000);
            Switch();
            Assert.Empty(Sink.Pages);
        }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public void After_a_switch_nothing_is_mapped_that_the_tables_do_not_grant(int seed)
    {
        var random = new Random(seed);
        ulong[] roots = [NewTable(), NewTable(), NewTable()];
        _cpu.Cr3 = roots[0];
        ulong PickAddress() =>
            (0x40_0000UL * (ulong)random.Next(1, 3)) + (4096 * (ulong)random.Next(0, random.Next(2) == 0 ? 8 : 1024));
        for (int step = 0; step < 4000; step++)
        {
            ulong address = PickAddress();
            switch (random.Next(10))
            {
                case 0:
                    ulong flags = Used;
                    foreach (ulong bit in (ulong[])[Pte.Present, Pte.Writable, Pte.User, Pte.Accessed, Pte.Dirty])
                    {
                        flags &= random.Next(6) == 0 ? ~bit : ulong.MaxValue;
                    }

                    flags |= random.Next(6) == 0 ? Pte.NoExecute : 0;
                    ulong physical = 0x80_0000 + (address & 0x1F_F000) + (random.Next(4) == 0 ? 0x1_0000UL : 0);
                    _ = Leaf(roots[random.Next(3)], address, physical | flags);
                    break;
                case 1 when _nextTable < 0x70_0000:
                    _ = Leaf(
                        roots[random.Next(3)],
                        address & ~(LargePage - 1),
                        (random.Next(2) == 0 ? 0x80_0000UL : 0xE0_0000UL)
                            | (random.Next(3) == 0 ? Used & ~Pte.Dirty : Used),
                        shift: 21
                    );
                    break;
                case 2:
                    _cpu.Cr3 = roots[random.Next(3)];
                    Switch();
                    AssertGrantedNow();
                    break;
                case 3:
                    _shadow.InvalidatePage(address);
                    Assert.DoesNotContain(address, Sink.Pages.Keys);
                    break;
                case 4:
                    EnterRing(random.Next(2) * 3);
                    break;
                default:
                    PageAccess access = (PageAccess)(1 << random.Next(3));
                    if (Touch(address, access))
                    {
                        Assert.Equal(access, Sink.Pages[address].Access & access);
                    }

                    break;
            }

            if (step % 16 == 0)
            {
                AssertListMatchesSink();
            }
        }
    }

    private void AssertGrantedNow()
    {
        PageAccess user = _cpu.Cpl == 3 ? PageAccess.User : 0;
        foreach ((ulong page, (ulong physical, PageAccess access)) in Sink.Pages)
        {
            Translation t = PageWalker.Walk(_cpu, _memory, page, PageAccess.Read | user, commit: false);
            Assert.True(!t.Fault && t.Accessed && t.PhysicalAddress == physical, $"0x{page:X}");
            Assert.True((access & PageAccess.Write) == 0 || (t.Dirty && (t.Permissions & PageAccess.Write) != 0));
            Assert.True((access & PageAccess.Execute) == 0 || (t.Permissions & PageAccess.Execute) != 0);
        }
    }
}
