using VirtBench.Strategies.Carrier;
using VirtBench.Strategies.Shadow;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.BinaryTranslation;

// Translations follow the guest's code: what is written, mapped differently or executed in another mode is translated anew. The translator
// reads code through the shadow page table, so whatever changes a mapping says so there.
internal sealed unsafe partial class TranslationEngine : ICodeSource
{
    /// <summary>Emulated writes to a page after which it is no longer protected, and its blocks check themselves.</summary>
    private const int MaximumEmulatedWrites = 16;

    private readonly CachedShadow _shadow;
    private readonly Dictionary<ulong, CodeFrame> _codeFrames = [];
    private readonly List<(int Slot, ulong Start, ulong End, ulong Physical)> _mappingChanges = [];
    private long _links;
    private long _lookupMisses;
    private long _invalidations;
    private long _flushes;
    private ulong _ticks;

    /// <inheritdoc/>
    public override TranslationStatistics TranslationStatistics =>
        new(
            _translator.Blocks,
            _translator.Instructions,
            _translator.GuestBytes,
            _translator.HostBytes,
            _ticks,
            _links,
            _lookupMisses,
            CountLookupHits(),
            _invalidations,
            _flushes
        );

    private long? CountLookupHits()
    {
        if (!_translator.CountsLookups)
        {
            return null;
        }

        ulong hits = 0;
        for (int slot = 0; slot < CarrierLayout.MaximumCarriers; slot++)
        {
            hits += Pool[slot] is { } carrier ? Volatile.Read(ref carrier.Control->LookupHits) : 0;
        }

        return (long)(hits & long.MaxValue); // a guest may have written anything there
    }

    /// <inheritdoc/>
    public bool TryFetch(ulong address, out byte* page, out CodeFrame frame)
    {
        page = null;
        frame = null!;
        if (
            !_shadow.Current!.TryFind(address, out MappedRun run)
            || (run.Access & PageAccess.Execute) == 0
            || Memory.Pager is not null
                && !Memory.IsPresent((run.Physical + (address - run.Address)) / GuestMemory.PageSize)
        )
        {
            return false;
        }

        ulong physical = (run.Physical + (address - run.Address)) & ~(GuestMemory.PageSize - 1);
        if (!_codeFrames.TryGetValue(physical, out frame!))
        {
            frame = new CodeFrame(physical);
            _codeFrames.Add(physical, frame);
        }

        if (!frame.ChecksItself)
        {
            _shadow.ProtectCode(physical);
        }

        page = Memory.Base + physical;
        return true;
    }

    /// <inheritdoc/>
    public override MapResult Map(in ShadowPage page)
    {
        if (_faultedInShadow)
        {
            Cpu.InterruptShadow = true; // the instruction is still to come
        }

        MapResult result = base.Map(page);
        if (result.Outcome != MapOutcome.EmulateCodeWrite)
        {
            return result;
        }

        ulong physical = (page.PhysicalStart + (page.Address - page.PageStart)) & ~(GuestMemory.PageSize - 1);
        if (!_codeFrames.TryGetValue(physical, out CodeFrame? frame) || frame.Pages.Count == 0)
        {
            _ = _codeFrames.Remove(physical); // what was translated of it is gone
            return MapReleased(page, physical);
        }

        if (++frame.Writes <= MaximumEmulatedWrites)
        {
            return result;
        }

        frame.ChecksItself = true;
        foreach (CodePage code in (CodePage[])[.. frame.Pages])
        {
            GiveUp(code);
        }

        return MapReleased(page, physical);
    }

    private MapResult MapReleased(in ShadowPage page, ulong frame)
    {
        _shadow.ReleaseCode(frame);
        MapResult result = base.Map(page);
        return result.Outcome == MapOutcome.Mapped ? MapResult.MappedAfterCodeWrite : result;
    }

    /// <summary>Before an entry or a translation: the cache is in step with mappings and mode, and has room.</summary>
    /// <returns>True when it was emptied.</returns>
    private bool PrepareCache(TranslationCache cache)
    {
        if (_mappingChanges.Count > 0)
        {
            ApplyMappingChanges();
        }

        TranslationMode mode = TranslationMode.Of(Cpu);
        if (cache.Mode == mode && cache.HasRoom)
        {
            return false;
        }

        cache.Mode = mode;
        _flushes++;
        Flush(cache);
        return true;
    }

    private void Flush(TranslationCache cache)
    {
        CodeFrame[] frames = [.. cache.Pages.Values.Select(page => page.Frame).Distinct()];
        cache.Flush();
        foreach (CodeFrame frame in frames)
        {
            ReleaseIfUnused(frame);
        }
    }

    /// <inheritdoc/>
    protected override bool ExecutesGuestPages => false;

    /// <inheritdoc/>
    protected override void MappingChanged(int slot, ulong start, ulong end, ulong physical) =>
        _mappingChanges.Add((slot, start, end, physical));

    // Not at once: the shadow page table is in the middle of its own change when it says so.
    private void ApplyMappingChanges()
    {
        foreach ((int slot, ulong start, ulong end, ulong physical) in _mappingChanges)
        {
            if (_caches[slot] is not { Pages.Count: > 0 } cache)
            {
                continue;
            }

            foreach (CodePage page in PagesIn(cache, start, end))
            {
                if (physical == Unmapped || page.Frame.Frame != physical + (page.Address - start))
                {
                    GiveUp(page);
                }
            }
        }

        _mappingChanges.Clear();
    }

    private static CodePage[] PagesIn(TranslationCache cache, ulong start, ulong end)
    {
        if (end - start <= 16 * GuestMemory.PageSize)
        {
            var pages = new List<CodePage>();
            for (ulong at = start & ~(GuestMemory.PageSize - 1); at < end; at += GuestMemory.PageSize)
            {
                if (cache.Pages.TryGetValue(at, out CodePage? page))
                {
                    pages.Add(page);
                }
            }

            return [.. pages];
        }

        return [.. cache.Pages.Values.Where(page => page.Address >= start && page.Address < end)];
    }

    /// <summary>Guest RAM with translated code in it was written.</summary>
    private void CodeWritten(ulong address, ulong length)
    {
        ulong start = address & ~(GuestMemory.PageSize - 1);
        if (!_codeFrames.TryGetValue(start, out CodeFrame? frame))
        {
            return;
        }

        foreach (CodePage page in (CodePage[])[.. frame.Pages])
        {
            ulong from = page.Address + (address - start);
            foreach (Block block in (Block[])[.. page.Blocks])
            {
                if (block.Overlaps(from, length))
                {
                    GiveUp(page.Cache, block);
                }
            }
        }
    }

    private void GiveUp(CodePage page)
    {
        foreach (Block block in (Block[])[.. page.Blocks])
        {
            GiveUp(page.Cache, block);
        }
    }

    private void GiveUp(TranslationCache cache, Block block)
    {
        if (!block.IsValid)
        {
            return;
        }

        _invalidations++;
        cache.Remove(block);
        ulong last = block.Start + (ulong)block.Length - 1;
        for (ulong at = block.Start & ~(GuestMemory.PageSize - 1); at <= last; at += GuestMemory.PageSize)
        {
            if (cache.Pages.TryGetValue(at, out CodePage? page))
            {
                _ = page.Blocks.Remove(block);
                if (page.Blocks.Count == 0)
                {
                    cache.Remove(page);
                }
            }
        }
    }

    // Left protected, a page without blocks costs a fault at its next write, which then finds that nothing is translated of it.
    private void ReleaseIfUnused(CodeFrame frame)
    {
        if (frame.Pages.Count == 0 && !frame.ChecksItself)
        {
            _shadow.ReleaseCode(frame.Frame);
            _ = _codeFrames.Remove(frame.Frame);
        }
    }
}
