using VirtBench.Strategies.Native;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.TrapAndEmulate;

/// <summary>A run of guest pages that is mapped in one piece.</summary>
/// <param name="Address">Linear address.</param>
/// <param name="Length">Bytes.</param>
/// <param name="Physical">Guest-physical address.</param>
/// <param name="Access">Rights.</param>
/// <param name="PageShift">Size of the guest's pages in it: 12, 21 or 30.</param>
internal readonly record struct MappedRun(
    ulong Address,
    ulong Length,
    ulong Physical,
    PageAccess Access,
    byte PageShift
)
{
    /// <summary>First address behind the run.</summary>
    public ulong End => Address + Length;

    /// <summary>True when the other run goes on where this one ends, in both address spaces and with the same rights.</summary>
    public bool Continues(in MappedRun next) =>
        End == next.Address
        && Physical + Length == next.Physical
        && Access == next.Access
        && PageShift == next.PageShift;
}

/// <summary>Where mapping commands go: the carrier's batch.</summary>
internal interface IMappingSink
{
    /// <summary>Maps guest RAM over whatever is there.</summary>
    void Map(in MappedRun run, bool populate);

    /// <summary>Changes the rights of what is mapped.</summary>
    void Protect(in MappedRun run);

    /// <summary>Removes every mapping in the range.</summary>
    void Unmap(ulong start, ulong end);
}

/// <summary>
/// The shadow page table of direct execution, policy <c>flush</c>: what a carrier has mapped for the current address
/// space. It follows the guest's tables the way a TLB does, on INVLPG and CR3 writes only. On a CR3 write the pages that
/// this address space used before are looked up again in the guest's tables, contiguous ones are merged, and only what
/// differs from what is mapped now is changed, in one batch. Guest rings 0 to 2 and guest ring 3 are two views of an
/// address space, switched between like two address spaces, because the carrier itself has one ring only.
/// </summary>
internal sealed class ShadowMappings(VirtualCpu cpu, GuestMemory memory, ulong lowest, ulong limit, IMappingSink sink)
{
    // Bounds what a guest can make the VMM remember: beyond them the working set is refaulted.
    private const int MaximumAddressSpaces = 64;
    private const int MaximumRuns = 4096;
    private const int MaximumRefillPages = 2048;

    // Refilling a run page by page in the kernel pays when the guest will touch most of it; a large page is left to
    // first touch, 512 entries being too many to make on suspicion.
    private const ulong PopulateLimit = 64 * GuestMemory.PageSize;

    private readonly Dictionary<ulong, List<MappedRun>> _workingSets = [];
    private List<MappedRun> _mapped = [];
    private List<MappedRun> _next = [];
    private ulong _view;

    /// <summary>What is mapped now, ascending, without overlap.</summary>
    public IReadOnlyList<MappedRun> Mapped => _mapped;

    /// <summary>The mappings are those of guest ring 3: <see cref="Switch"/> before another ring runs, and the reverse.</summary>
    public bool IsUserView => (_view & UserView) != 0;

    private const ulong UserView = 1; // bit 0 of CR3 is no part of the address

    private ulong CurrentView => (cpu.Cr3 & Pte.AddressMask) | (cpu.Cpl == 3 ? UserView : 0);

    /// <summary>Enters one page; null, or why the guest cannot have it.</summary>
    public string? Add(in ShadowPage page)
    {
        if (page.Address < lowest || page.Address >= limit)
        {
            string why =
                page.Address < lowest
                    ? $"below 0x{lowest:X}, where an unprivileged process can map nothing"
                    : $"at or above 0x{limit:X}, where a process has no room for guests";
            return $"the guest maps 0x{page.Address:X}, {why}; direct execution cannot run it, the simulated and the hardware "
                + "strategies can";
        }

        _view = CurrentView;
        ulong start = Math.Max(page.PageStart, lowest);
        ulong end = Math.Min(page.PageStart + page.Length, limit);
        ulong physical = page.PhysicalStart + (start - page.PageStart);
        end = Math.Min(end, start + (memory.Size - physical)); // the tail of a large page may lie beyond RAM
        var run = new MappedRun(
            start,
            end - start,
            physical,
            page.Access & (PageAccess.Read | PageAccess.Write | PageAccess.Execute),
            (byte)ulong.TrailingZeroCount(page.Length)
        );

        if (_mapped.Count >= MaximumRuns)
        {
            Drop(_mapped[0].Address, _mapped[^1].End);
        }

        if (IsMappedWithOtherRights(run))
        {
            sink.Protect(run);
        }
        else
        {
            sink.Map(run, populate: run.Length <= PopulateLimit);
        }

        Forget(run.Address, run.End);
        Insert(_mapped, run);
        return null;
    }

    /// <summary>CR3 or another register that governs paging was written, or the guest enters or leaves ring 3.</summary>
    public void Switch()
    {
        if (_workingSets.Count >= MaximumAddressSpaces && !_workingSets.ContainsKey(_view))
        {
            _workingSets.Clear();
        }

        List<MappedRun> old = _mapped;
        _workingSets[_view] = old;
        _view = CurrentView;
        _next.Clear();
        if (_workingSets.Remove(_view, out List<MappedRun>? wanted))
        {
            Revalidate(wanted, _next);
        }

        ApplyDifference(old, _next);
        (_mapped, _next) = (_next, wanted ?? []);
    }

    /// <summary>
    /// INVLPG: the whole guest page that holds the address goes, whatever its size. A page that has been mapped with two
    /// sizes goes with the larger: of that one no part may stay.
    /// </summary>
    public void Invalidate(ulong address)
    {
        const ulong largest = 1UL << 30;
        ulong first = address & ~(largest - 1);
        ulong size = 0;
        for (
            int i = FirstEndingAfter(first);
            i < _mapped.Count && _mapped[i].Address - first < largest && size < largest;
            i++
        )
        {
            ulong candidate = 1UL << _mapped[i].PageShift;
            ulong page = address & ~(candidate - 1);
            if (candidate > size && _mapped[i].Address < page + candidate && _mapped[i].End > page)
            {
                size = candidate;
            }
        }

        if (size != 0)
        {
            ulong start = address & ~(size - 1);
            Drop(Math.Max(start, lowest), Math.Min(start + size, limit));
        }
    }

    // The guest's tables are the authority: a page is refilled only if they grant it now, and as hardware would find it:
    // not before its Accessed bit is set, and not writable before its Dirty bit is.
    private void Revalidate(List<MappedRun> wanted, List<MappedRun> result)
    {
        int budget = MaximumRefillPages;
        PageAccess read = PageAccess.Read | (IsUserView ? PageAccess.User : 0);
        foreach (MappedRun run in wanted)
        {
            for (ulong at = run.Address; at < run.End && budget > 0; budget--)
            {
                Translation t = PageWalker.Walk(cpu, memory, at, read, commit: false);
                ulong size = 1UL << (t.Fault ? run.PageShift : t.PageShift); // the guest may have split a large page
                ulong next = Math.Min((at & ~(size - 1)) + size, run.End);
                if (!t.Fault && t.Accessed && memory.Contains(t.PhysicalAddress, next - at))
                {
                    PageAccess access = t.Permissions & (PageAccess.Read | PageAccess.Execute);
                    if (t.Dirty && (t.Permissions & PageAccess.Write) != 0)
                    {
                        access |= PageAccess.Write;
                    }

                    Append(result, new MappedRun(at, next - at, t.PhysicalAddress, access, t.PageShift));
                }

                at = next;
            }
        }
    }

    /// <summary>Turns the old mappings into the new with as few system calls as the lists allow.</summary>
    private void ApplyDifference(List<MappedRun> old, List<MappedRun> next)
    {
        int o = 0;
        int n = 0;
        while (o < old.Count || n < next.Count)
        {
            // One stretch between runs that stay: all old ones in it go by one munmap, all new ones come.
            int oldStart = o;
            int newStart = n;
            while (true)
            {
                if (o < old.Count && n < next.Count && old[o] == next[n])
                {
                    break;
                }

                if (o < old.Count && (n >= next.Count || old[o].Address <= next[n].Address))
                {
                    o++;
                }
                else if (n < next.Count)
                {
                    n++;
                }
                else
                {
                    break;
                }
            }

            bool replacedInPlace =
                o - oldStart == 1
                && n - newStart == 1
                && old[oldStart].Address == next[newStart].Address
                && old[oldStart].Length == next[newStart].Length;
            if (o > oldStart && !replacedInPlace)
            {
                sink.Unmap(old[oldStart].Address, old[o - 1].End);
            }

            for (int i = newStart; i < n; i++)
            {
                sink.Map(next[i], populate: next[i].Length <= PopulateLimit);
            }

            o++; // past the run that stays
            n++;
        }
    }

    private void Drop(ulong start, ulong end)
    {
        sink.Unmap(start, end);
        Forget(start, end);
    }

    /// <summary>Cuts a range out of the list.</summary>
    private void Forget(ulong start, ulong end)
    {
        for (int i = FirstEndingAfter(start); i < _mapped.Count && _mapped[i].Address < end; )
        {
            MappedRun run = _mapped[i];
            _mapped.RemoveAt(i);
            if (run.Address < start)
            {
                _mapped.Insert(i++, run with { Length = start - run.Address });
            }

            if (run.End > end)
            {
                ulong cut = end - run.Address;
                _mapped.Insert(
                    i++,
                    run with
                    {
                        Address = end,
                        Length = run.Length - cut,
                        Physical = run.Physical + cut,
                    }
                );
            }
        }
    }

    private bool IsMappedWithOtherRights(in MappedRun run)
    {
        int i = FirstEndingAfter(run.Address);
        return i < _mapped.Count
            && _mapped[i].Address <= run.Address
            && _mapped[i].End >= run.End
            && _mapped[i].PageShift == run.PageShift
            && _mapped[i].Physical + (run.Address - _mapped[i].Address) == run.Physical;
    }

    private int FirstEndingAfter(ulong address)
    {
        int low = 0;
        int high = _mapped.Count;
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (_mapped[middle].End > address)
            {
                high = middle;
            }
            else
            {
                low = middle + 1;
            }
        }

        return low;
    }

    private void Insert(List<MappedRun> runs, in MappedRun run)
    {
        int i = FirstEndingAfter(run.Address);
        MappedRun merged = run;
        if (i < runs.Count && merged.Continues(runs[i]))
        {
            merged = merged with { Length = merged.Length + runs[i].Length };
            runs.RemoveAt(i);
        }

        if (i > 0 && runs[i - 1].Continues(merged))
        {
            runs[i - 1] = runs[i - 1] with { Length = runs[i - 1].Length + merged.Length };
            return;
        }

        runs.Insert(i, merged);
    }

    private static void Append(List<MappedRun> runs, in MappedRun run)
    {
        if (runs.Count > 0 && runs[^1].Continues(run))
        {
            runs[^1] = runs[^1] with { Length = runs[^1].Length + run.Length };
            return;
        }

        runs.Add(run);
    }

    /// <summary>Rights as the carrier's mmap takes them.</summary>
    public static ulong Protection(PageAccess access) =>
        Linux.ProtRead
        | ((access & PageAccess.Write) != 0 ? (ulong)Linux.ProtWrite : 0)
        | ((access & PageAccess.Execute) != 0 ? (ulong)Linux.ProtExec : 0);
}
