using System.Runtime.InteropServices;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Simulation;

/// <summary>
/// Decoded blocks by guest-physical and linear address, coherent with writes to guest RAM. A block whose code changes
/// has all its handlers replaced, so that chains into it, and the block itself if it is running, look their way up again.
/// </summary>
/// <remarks>Memory comes from one arena; when it is full everything is dropped.</remarks>
internal sealed unsafe class BlockCache : IDisposable
{
    /// <summary>Most guest instructions in a block: bounds the work between two polls for a kick.</summary>
    public const int MaximumInstructions = 64;

    /// <summary>Room for decoded code, unless a test wants it to be full soon.</summary>
    public const int DefaultArenaBytes = 16 << 20;

    /// <summary>Most op slots that one instruction takes, with the end of its block.</summary>
    public const int SingleOps = 8;

    private const int BucketCount = 1 << 15;
    private const int SpareBytes = MaximumInstructions * 4 * 48;
    private const ulong NoPage = ulong.MaxValue;

    private readonly SimulatedEngine _engine;
    private readonly GuestMemory _memory;
    private readonly BlockDecoder _decoder;
    private readonly byte* _arena;
    private readonly int _arenaBytes;
    private readonly Block** _buckets;
    private readonly CodePage* _pages;
    private readonly ulong _pageCount;
    private readonly List<ulong> _codePages = [];
    private byte* _cursor;

    private struct CodePage
    {
        public Block* First;

        /// <summary>Bit n: a block overlaps bytes 64·n … 64·n + 63 of the page.</summary>
        public ulong Chunks;
    }

    public BlockCache(SimulatedEngine engine, GuestMemory memory, BlockDecoder decoder, int arenaBytes)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(arenaBytes, SpareBytes);
        _arenaBytes = arenaBytes;
        _engine = engine;
        _memory = memory;
        _decoder = decoder;
        _pageCount = memory.Size / GuestMemory.PageSize;
        _arena = (byte*)NativeMemory.AlignedAlloc((nuint)arenaBytes, 64);
        _buckets = (Block**)NativeMemory.AllocZeroed(BucketCount, (nuint)sizeof(Block*));
        _pages = (CodePage*)NativeMemory.AllocZeroed((nuint)_pageCount, (nuint)sizeof(CodePage));
        _cursor = _arena;
    }

    /// <summary>Counts how often everything has been dropped.</summary>
    public ulong Generation { get; private set; }

    /// <summary>True when code has been decoded from this page, so that writes to it must be looked at.</summary>
    public bool HoldsCode(ulong physical) => _pages[physical >> 12].Chunks != 0;

    /// <summary>First op of the block at a linear address, decoded if need be; null when a fault has been noted.</summary>
    public Op* Find(ulong rip)
    {
        ulong physical = _engine.ResolveFetch(rip);
        if (physical == SimulatedEngine.NoAddress)
        {
            return null;
        }

        Block** bucket = BucketOf(physical, rip);
        for (Block* block = *bucket; block is not null; block = block->NextInBucket)
        {
            if (block->Physical == physical && block->Rip == rip && block->Dead == 0)
            {
                if (block->SecondPhysical == NoPage)
                {
                    return Block.Ops(block);
                }

                ulong second = _engine.ResolveFetch((rip | 0xFFF) + 1);
                if (second == SimulatedEngine.NoAddress)
                {
                    return null;
                }

                if (second == block->SecondPhysical)
                {
                    return Block.Ops(block);
                }
            }
        }

        return Decode(rip, physical);
    }

    /// <summary>
    /// Decodes the one instruction at a linear address into ops that belong to no block and are good for one execution.
    /// </summary>
    /// <param name="rip">The address.</param>
    /// <param name="ops">Room for <see cref="SingleOps"/> ops.</param>
    /// <returns>False when a fault has been noted.</returns>
    public bool DecodeSingle(ulong rip, Op* ops)
    {
        ulong physical = _engine.ResolveFetch(rip);
        return physical != SimulatedEngine.NoAddress && DecodeSingle(rip, physical, ops, out _, out _, out _);
    }

    private bool DecodeSingle(ulong rip, ulong physical, Op* ops, out ulong second, out int length, out Op* end)
    {
        int inPage = (int)(GuestMemory.PageSize - (physical & 0xFFF));
        second = NoPage;
        length = _decoder.DecodeOne(rip, _memory.Base + physical, inPage, ops, out end);
        if (length != 0)
        {
            return true;
        }

        second = _engine.ResolveFetch((rip | 0xFFF) + 1);
        if (second == SimulatedEngine.NoAddress)
        {
            return false;
        }

        byte* joined = stackalloc byte[32];
        Buffer.MemoryCopy(_memory.Base + physical, joined, 16, inPage);
        Buffer.MemoryCopy(_memory.Base + second, joined + inPage, 16, 16);
        length = _decoder.DecodeOne(rip, joined, inPage + 16, ops, out end);
        return true;
    }

    private Block** BucketOf(ulong physical, ulong rip) =>
        _buckets + (((physical * 0x9E37_79B9_7F4A_7C15UL) ^ (rip >> 12) * 0xC2B2_AE3D_27D4_EB4FUL) >> 49);

    private Op* Decode(ulong rip, ulong physical)
    {
        if (_cursor + SpareBytes > _arena + _arenaBytes)
        {
            Clear();
        }

        var block = (Block*)_cursor;
        int inPage = (int)(GuestMemory.PageSize - (physical & 0xFFF));
        ulong second = NoPage;
        int length = _decoder.Decode(rip, _memory.Base + physical, inPage, Block.Ops(block), out Op* end);
        // Nothing when the first instruction crosses into the next page.
        if (length == 0 && !DecodeSingle(rip, physical, Block.Ops(block), out second, out length, out end))
        {
            return null;
        }

        *block = new Block
        {
            Physical = physical,
            Rip = rip,
            SecondPhysical = second,
            Length = length,
            OpCount = (int)(end - Block.Ops(block)),
        };
        _cursor = (byte*)(((nuint)end + 63) & ~(nuint)63);
        Block** bucket = BucketOf(physical, rip);
        block->NextInBucket = *bucket;
        *bucket = block;

        bool fresh = false;
        ulong page = physical >> 12;
        block->NextInFirstPage = Enter(page, block, physical & 0xFFF, Math.Min(length, inPage), ref fresh);
        if (second != NoPage)
        {
            block->NextInSecondPage = Enter(second >> 12, block, 0, Math.Max(1, length - inPage), ref fresh);
        }

        if (fresh)
        {
            _engine.ForgetWriteMappings();
        }

        _engine.Translated(_decoder.InstructionCount, length);

        return Block.Ops(block);
    }

    private Block* Enter(ulong page, Block* block, ulong offset, int length, ref bool fresh)
    {
        CodePage* p = _pages + page;
        if (p->Chunks == 0)
        {
            fresh = true;
            _codePages.Add(page);
        }

        p->Chunks |= ChunksOf(offset, (ulong)length);
        Block* next = p->First;
        p->First = block;
        return next;
    }

    private static ulong ChunksOf(ulong offset, ulong length)
    {
        int first = (int)(offset >> 6);
        int last = (int)((offset + length - 1) >> 6);
        return (ulong.MaxValue << first) & (ulong.MaxValue >> (63 - last));
    }

    /// <summary>Bytes of guest RAM have changed or are about to: drops the blocks decoded from them.</summary>
    public void Written(ulong physical, ulong length)
    {
        for (ulong at = physical, end = physical + length; at < end; )
        {
            ulong page = at >> 12;
            ulong pageEnd = Math.Min(end, (page + 1) << 12);
            CodePage* p = _pages + page;
            if (page < _pageCount && p->Chunks != 0 && (p->Chunks & ChunksOf(at & 0xFFF, pageEnd - at)) != 0)
            {
                Drop(page, at, pageEnd);
            }

            at = pageEnd;
        }
    }

    private void Drop(ulong page, ulong start, ulong end)
    {
        CodePage* p = _pages + page;
        ulong chunks = 0;
        Block** link = &p->First;
        while (*link is not null)
        {
            Block* block = *link;
            bool inFirst = block->Physical >> 12 == page;
            Block** next = inFirst ? &block->NextInFirstPage : &block->NextInSecondPage;
            ulong firstLength = Math.Min((ulong)block->Length, GuestMemory.PageSize - (block->Physical & 0xFFF));
            ulong secondLength = Math.Max(1, (ulong)block->Length - firstLength);
            // Both may hold: two linear pages can be the same physical one.
            bool inSecond = block->SecondPhysical >> 12 == page;
            if (
                block->Dead != 0
                || (inFirst && Overlap(block->Physical, firstLength, start, end))
                || (inSecond && Overlap(block->SecondPhysical, secondLength, start, end))
            )
            {
                Kill(block);
                *link = *next;
            }
            else
            {
                chunks |= inFirst ? ChunksOf(block->Physical & 0xFFF, firstLength) : 0;
                chunks |= inSecond ? ChunksOf(0, secondLength) : 0;
                link = next;
            }
        }

        p->Chunks = chunks;
        _engine.RenewEpochs(); // links to the dead blocks would work, but take the long way for ever
        if (chunks == 0)
        {
            _codePages.Remove(page);
        }
    }

    private static bool Overlap(ulong codeStart, ulong codeLength, ulong start, ulong end) =>
        codeStart < end && start < codeStart + codeLength;

    private void Kill(Block* block)
    {
        if (block->Dead != 0)
        {
            return;
        }

        block->Dead = 1;
        _engine.Invalidated();
        for (Block** link = BucketOf(block->Physical, block->Rip); *link is not null; link = &(*link)->NextInBucket)
        {
            if (*link == block)
            {
                *link = block->NextInBucket;
                break;
            }
        }

        Op* op = Block.Ops(block);
        // The last slot holds links, which a running branch may still want.
        for (int i = 0; i < block->OpCount - 1; i++, op++)
        {
            op->Handler = &SlowPath.Stale;
            op->Length = 0;
        }
    }

    /// <summary>Drops everything. No block may be running.</summary>
    public void Clear()
    {
        foreach (ulong page in _codePages)
        {
            _pages[page] = default;
        }

        _codePages.Clear();
        NativeMemory.Clear(_buckets, (nuint)(BucketCount * sizeof(Block*)));
        _cursor = _arena;
        Generation++;
        _engine.RenewEpochs();
    }

    public void Dispose()
    {
        NativeMemory.AlignedFree(_arena);
        NativeMemory.Free(_buckets);
        NativeMemory.Free(_pages);
    }
}
