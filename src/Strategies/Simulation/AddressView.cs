using System.Runtime.InteropServices;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Simulation;

/// <summary>
/// The shadow page table as one privilege level of the guest sees it: direct-mapped arrays for reads, writes and fetches
/// in front of a complete table by page size. Guest kernel and guest user have one each, as user code must not see
/// supervisor pages.
/// </summary>
internal sealed unsafe class AddressView : IDisposable
{
    // A guest may map without bound; a TLB may forget at any time.
    private const int MostMappings = 1 << 18;
    private const int LargeTable = 1 << 12;

    private readonly Dictionary<ulong, Mapping>[] _bySize =
    [
        [],
        [],
        [],
    ];
    private static readonly int[] Shifts = [12, 21, 30];

    private readonly record struct Mapping(ulong Physical, PageAccess Access);

    public AddressView()
    {
        Read = Allocate();
        Write = Allocate();
        Fetch = Allocate();
        FlushArrays();
    }

    public TlbEntry* Read { get; }

    public TlbEntry* Write { get; }

    /// <summary>As the others, but adds up to a guest-physical address.</summary>
    public TlbEntry* Fetch { get; }

    /// <summary>Identifies the present mappings: links between blocks are valid for one epoch.</summary>
    public ulong Epoch { get; set; }

    private static TlbEntry* Allocate() =>
        (TlbEntry*)NativeMemory.AlignedAlloc((nuint)(TlbEntry.Count * sizeof(TlbEntry)), 64);

    public static TlbEntry* EntryOf(TlbEntry* array, ulong address) => array + ((address >> 12) & (TlbEntry.Count - 1));

    /// <summary>Enters a page; true when one that was there before has changed, so that links may be wrong.</summary>
    public bool Enter(in ShadowPage page)
    {
        int size = page.Length switch
        {
            1UL << 12 => 0,
            1UL << 21 => 1,
            _ => 2,
        };
        bool changed = false;
        for (int i = 0; i < 3; i++)
        {
            ulong key = page.Address >> Shifts[i];
            if (_bySize[i].Remove(key, out Mapping old))
            {
                changed |= i != size || old.Physical != page.PhysicalStart || (old.Access & ~page.Access) != 0;
            }
        }

        if (_bySize[size].Count >= MostMappings)
        {
            Flush();
            changed = true;
        }

        _bySize[size][page.Address >> Shifts[size]] = new Mapping(page.PhysicalStart, page.Access);
        if (changed)
        {
            FlushArrays();
        }

        return changed;
    }

    /// <summary>Guest-physical address of a byte, if the table grants all of the access.</summary>
    public bool TryTranslate(ulong address, PageAccess access, out ulong physical)
    {
        for (int i = 0; i < 3; i++)
        {
            if (
                _bySize[i].Count != 0
                && _bySize[i].TryGetValue(address >> Shifts[i], out Mapping mapping)
                && (mapping.Access & access) == access
            )
            {
                physical = mapping.Physical + (address & ((1UL << Shifts[i]) - 1));
                return true;
            }
        }

        physical = 0;
        return false;
    }

    public void Invalidate(ulong address)
    {
        bool large = false;
        for (int i = 0; i < 3; i++)
        {
            large |= _bySize[i].Remove(address >> Shifts[i]) && i != 0;
        }

        if (large)
        {
            FlushArrays();
            return;
        }

        EntryOf(Read, address)->Tag = TlbEntry.Empty;
        EntryOf(Write, address)->Tag = TlbEntry.Empty;
        EntryOf(Fetch, address)->Tag = TlbEntry.Empty;
    }

    public void Flush()
    {
        foreach (ref Dictionary<ulong, Mapping> table in _bySize.AsSpan())
        {
            if (table.Count > LargeTable)
            {
                table = [];
            }
            else
            {
                table.Clear();
            }
        }

        FlushArrays();
    }

    public void FlushArrays()
    {
        FlushArray(Read);
        FlushArray(Fetch);
        FlushWrites();
    }

    public void FlushWrites() => FlushArray(Write);

    private static void FlushArray(TlbEntry* array) =>
        new Span<TlbEntry>(array, TlbEntry.Count).Fill(new TlbEntry { Tag = TlbEntry.Empty });

    public void Dispose()
    {
        NativeMemory.AlignedFree(Read);
        NativeMemory.AlignedFree(Write);
        NativeMemory.AlignedFree(Fetch);
    }
}
