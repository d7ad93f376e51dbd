using System.Runtime.Versioning;
using VirtBench.Strategies.Carrier;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.BinaryTranslation;

/// <summary>The translated code of one view of a guest address space, in the code cache of the carrier that holds the view.</summary>
/// <remarks>
/// Layout: a page of data that inlined instructions read, then blocks upwards, and from the end downwards one stub for each exit, which are
/// executed rarely and so kept out of the way. The cache is emptied as a whole.
/// </remarks>
[SupportedOSPlatform("linux")]
internal sealed unsafe class TranslationCache
{
    /// <summary>Bytes of one exit's stub.</summary>
    public const int StubSize = 16;

    /// <summary>Room that a block, its exits and its data never need more of.</summary>
    public const int Margin = 32 << 10;

    /// <summary>Least bytes of a cache.</summary>
    public const int MinimumSize = CpuidTable.Size + (2 * Margin);

    private readonly List<ushort> _filled = [];
    private readonly Dictionary<ulong, Block> _blocks = [];
    private readonly Dictionary<ulong, CodePage> _pages = [];
    private readonly int _size;
    private int _next = CpuidTable.Size;

    /// <summary>The carrier's part of the vCPU's memory, which it does not write.</summary>
    public TranslationCache(int slot, VcpuMemory memory)
    {
        Slot = slot;
        Code = memory.CodeCache(slot);
        Lookup = memory.LookupTable(slot);
        _size = memory.CodeCacheSize;
        new Span<ulong>(Lookup, CarrierLayout.LookupEntries).Fill(CarrierStub.Instance.LookupMissedAddress);
        CpuidTable.Write(Code);
    }

    /// <summary>Number of the carrier.</summary>
    public int Slot { get; }

    /// <summary>Where the VMM sees the cache.</summary>
    public byte* Code { get; }

    /// <summary>Where the VMM sees the lookup table.</summary>
    public ulong* Lookup { get; }

    /// <summary>What of the CPU's state the code was translated for.</summary>
    public TranslationMode Mode { get; set; }

    /// <summary>Code that may have been executed before has been changed since the last entry.</summary>
    public bool Changed { get; set; }

    /// <summary>Every exit, by number.</summary>
    public List<ExitSite> Sites { get; } = [];

    /// <summary>Every indirect branch, by number.</summary>
    public List<IndirectBranch> IndirectBranches { get; } = [];

    /// <summary>What each piece of the code means to the guest, ascending.</summary>
    public RecoveryTable Recovery { get; } = new();

    /// <summary>Offset of the routine that delivers interrupts; 0 while there is none.</summary>
    public int Delivery { get; set; }

    /// <summary>Offset at which the next block goes.</summary>
    public int Next
    {
        get => _next;
        set => _next = value;
    }

    /// <summary>Blocks, by linear address.</summary>
    public IReadOnlyDictionary<ulong, Block> Blocks => _blocks;

    /// <summary>The pages that there are blocks of, by linear address.</summary>
    public IReadOnlyDictionary<ulong, CodePage> Pages => _pages;

    /// <summary>Whether another block fits.</summary>
    public bool HasRoom => _next + Margin < _size - (Sites.Count * StubSize);

    /// <summary>The block that begins at a linear address.</summary>
    public bool TryFind(ulong rip, out Block block) => _blocks.TryGetValue(rip, out block!);

    /// <summary>
    /// A block that begins at a linear address in the middle of another one: any of its instructions can be entered, so that code which
    /// several ways lead to is there once.
    /// </summary>
    public Block? FindInside(ulong rip)
    {
        if (!_pages.TryGetValue(rip & ~(GuestMemory.PageSize - 1), out CodePage? page))
        {
            return null;
        }

        foreach (Block block in page.Blocks)
        {
            ulong distance = rip - block.Start;
            bool inTail = rip - block.TailStart < (ulong)block.TailLength;
            if (
                (distance < (ulong)block.Length || inTail)
                && !block.ChecksItself
                && Recovery.TryFindEntry(block.Entry, block.End, rip, out int entry)
            )
            {
                var part = new Block
                {
                    Start = rip,
                    Length = inTail ? block.TailLength - (int)(rip - block.TailStart) : block.Length - (int)distance,
                    TailStart = block.TailStart,
                    TailLength = inTail ? 0 : block.TailLength,
                    Entry = entry,
                    End = block.End,
                    EndsIndirectly = block.EndsIndirectly,
                };
                ulong last = rip + (ulong)part.Length - 1;
                _ = _pages.TryGetValue(last & ~(GuestMemory.PageSize - 1), out CodePage? second);
                Add(part, page, second == page ? null : second);
                return part;
            }
        }

        return null;
    }

    /// <summary>Adds a way out; the stub is written.</summary>
    /// <returns>The site's number.</returns>
    public int AddSite(in ExitSite site)
    {
        int number = Sites.Count;
        Sites.Add(site);
        var w = new CodeWriter(Code, StubOffset(number));
        w.StoreInt32(SiteField, number);
        _ = w.Jump(CarrierStub.Instance.CalloutAddress);
        return number;
    }

    private static readonly int SiteField = CodeWriter.Field(nameof(ControlPage.Site));

    /// <summary>Where a site's stub is, in the carrier.</summary>
    public ulong StubAddress(int site) => CarrierLayout.CodeCache + (ulong)StubOffset(site);

    private int StubOffset(int site) => _size - ((site + 1) * StubSize);

    /// <summary>The site in whose stub this offset lies; false when it lies in no stub.</summary>
    public bool TryFindSite(int offset, out ExitSite site)
    {
        int number = (_size - 1 - offset) / StubSize;
        bool found = offset < _size && number < Sites.Count;
        site = found ? Sites[number] : default;
        return found;
    }

    /// <summary>Makes a block known, with the pages it lies on.</summary>
    public void Add(Block block, CodePage page, CodePage? second)
    {
        _blocks[block.Start] = block;
        page.Blocks.Add(block);
        second?.Blocks.Add(block);
    }

    /// <summary>The page's blocks; made on first use.</summary>
    public CodePage PageOf(ulong address, CodeFrame frame)
    {
        ulong start = address & ~(GuestMemory.PageSize - 1);
        if (!_pages.TryGetValue(start, out CodePage? page))
        {
            page = new CodePage(this, start, frame);
            _pages.Add(start, page);
            frame.Pages.Add(page);
        }

        return page;
    }

    /// <summary>Lets a site's jump lead to a block.</summary>
    public void Link(int site, Block target)
    {
        CodeWriter.Patch(Code, Sites[site].Jump, target.Address);
        target.Incoming.Add(site);
    }

    /// <summary>Lets lookups of the block's address find it.</summary>
    public void EnterIntoLookup(Block block)
    {
        ushort index = (ushort)block.Start;
        ulong entry = CarrierLayout.CodeCache + (ulong)block.LookupEntry;
        if (Lookup[index] == CarrierStub.Instance.LookupMissedAddress)
        {
            _filled.Add(index);
        }

        Lookup[index] = entry;
    }

    /// <summary>Nothing leads to the block any more.</summary>
    public void Remove(Block block)
    {
        if (!block.IsValid)
        {
            return;
        }

        block.IsValid = false;
        if (_blocks.TryGetValue(block.Start, out Block? known) && known == block)
        {
            _ = _blocks.Remove(block.Start);
        }

        foreach (int site in block.Incoming)
        {
            CodeWriter.Patch(Code, Sites[site].Jump, StubAddress(site));
        }

        block.Incoming.Clear();
        ushort index = (ushort)block.Start;
        if (block.LookupEntry >= 0 && Lookup[index] == CarrierLayout.CodeCache + (ulong)block.LookupEntry)
        {
            Lookup[index] = CarrierStub.Instance.LookupMissedAddress;
        }

        Changed = true;
    }

    /// <summary>Forgets a page that has no blocks any more.</summary>
    public void Remove(CodePage page)
    {
        _ = _pages.Remove(page.Address);
        _ = page.Frame.Pages.Remove(page);
    }

    /// <summary>Forgets everything.</summary>
    public void Flush()
    {
        foreach (CodePage page in _pages.Values)
        {
            _ = page.Frame.Pages.Remove(page);
        }

        foreach (ushort index in _filled)
        {
            Lookup[index] = CarrierStub.Instance.LookupMissedAddress;
        }

        _filled.Clear();
        _pages.Clear();
        _blocks.Clear();
        Sites.Clear();
        IndirectBranches.Clear();
        Recovery.Clear();
        Delivery = 0;
        _next = CpuidTable.Size;
        Changed = true;
    }
}
