using VirtBench.Strategies.Native;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Shadow;

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

    /// <summary>First guest-physical address behind the run.</summary>
    public ulong PhysicalEnd => Physical + Length;

    /// <summary>True when the other run goes on where this one ends, in both address spaces and with the same rights.</summary>
    public bool Continues(in MappedRun next) =>
        End == next.Address
        && Physical + Length == next.Physical
        && Access == next.Access
        && PageShift == next.PageShift;

    /// <summary>The part of the run between two linear addresses that lie in it.</summary>
    public MappedRun Part(ulong start, ulong end) =>
        this with
        {
            Address = start,
            Length = end - start,
            Physical = Physical + (start - Address),
        };
}

/// <summary>Where mapping commands go: a carrier's batch.</summary>
internal interface IMappingSink
{
    /// <summary>Maps guest RAM over whatever is there.</summary>
    void Map(in MappedRun run, bool populate);

    /// <summary>Changes the rights of what is mapped.</summary>
    void Protect(in MappedRun run);

    /// <summary>Removes every mapping in the range.</summary>
    void Unmap(ulong start, ulong end);
}

/// <summary>What one carrier has mapped, ascending by linear address, without overlap; every change goes to the carrier too.</summary>
internal sealed class MappedRuns(IMappingSink sink)
{
    /// <summary>Bounds what a guest can make the VMM remember.</summary>
    public const int MaximumRuns = 4096;

    // Making a run's entries in the kernel page by page pays when the guest will touch most of it; a large page is left to
    // first touch, 512 entries being too many to make on suspicion.
    private const ulong PopulateLimit = 64 * GuestMemory.PageSize;

    private List<MappedRun> _runs = [];

    /// <summary>The runs.</summary>
    public IReadOnlyList<MappedRun> All => _runs;

    /// <summary>The run that holds this address; false when nothing is mapped there.</summary>
    public bool TryFind(ulong address, out MappedRun run)
    {
        int i = FirstEndingAfter(address);
        bool found = i < _runs.Count && _runs[i].Address <= address;
        run = found ? _runs[i] : default;
        return found;
    }

    /// <summary>
    /// Maps a run. Where the same pages are mapped with other rights, only those are changed. A list that has grown too long is
    /// emptied first: the working set is faulted in again.
    /// </summary>
    public void Add(in MappedRun run)
    {
        if (_runs.Count >= MaximumRuns)
        {
            Clear();
        }

        if (IsMappedWithOtherRights(run))
        {
            sink.Protect(run);
        }
        else
        {
            sink.Map(run, populate: run.Length <= PopulateLimit);
        }

        Cut(run.Address, run.End);
        Insert(run);
    }

    /// <summary>Changes the rights of a part of a run that is mapped.</summary>
    public void Protect(in MappedRun part)
    {
        sink.Protect(part);
        Cut(part.Address, part.End);
        Insert(part);
    }

    /// <summary>Takes Write away wherever this page of guest RAM is mapped.</summary>
    /// <param name="frame">Guest-physical address of the page.</param>
    public void WriteProtect(ulong frame)
    {
        for (int i = 0; i < _runs.Count; i++)
        {
            MappedRun run = _runs[i];
            if (frame - run.Physical < run.Length && (run.Access & PageAccess.Write) != 0)
            {
                ulong address = run.Address + (frame - run.Physical);
                Protect(
                    run.Part(address, address + GuestMemory.PageSize) with
                    {
                        Access = run.Access & ~PageAccess.Write,
                    }
                );
                i = FirstEndingAfter(address); // the list has changed: go on behind this page
            }
        }

        if (_runs.Count > MaximumRuns)
        {
            Clear();
        }
    }

    /// <summary>Unmaps what lies between two linear addresses.</summary>
    /// <returns>False when nothing did.</returns>
    public bool Drop(ulong start, ulong end)
    {
        int first = FirstEndingAfter(start);
        int last = first;
        while (last < _runs.Count && _runs[last].Address < end)
        {
            last++;
        }

        if (last == first)
        {
            return false;
        }

        sink.Unmap(Math.Max(start, _runs[first].Address), Math.Min(end, _runs[last - 1].End));
        Cut(start, end);
        return true;
    }

    /// <summary>
    /// Unmaps everything that the carrier may have: what a guest has made the stub map behind the VMM's back goes too.
    /// </summary>
    public void Reset(ulong lowest, ulong limit)
    {
        sink.Unmap(lowest, limit);
        _runs.Clear();
    }

    /// <summary>Unmaps everything.</summary>
    public void Clear()
    {
        if (_runs.Count > 0)
        {
            sink.Unmap(_runs[0].Address, _runs[^1].End);
            _runs.Clear();
        }
    }

    /// <summary>
    /// INVLPG: the whole guest page that holds the address goes, whatever its size. A page that has been mapped with two
    /// sizes goes with the larger: of that one no part may stay.
    /// </summary>
    public void DropPage(ulong address)
    {
        const ulong largest = 1UL << 30;
        ulong first = address & ~(largest - 1);
        ulong size = 0;
        for (
            int i = FirstEndingAfter(first);
            i < _runs.Count && _runs[i].Address - first < largest && size < largest;
            i++
        )
        {
            ulong candidate = 1UL << _runs[i].PageShift;
            ulong page = address & ~(candidate - 1);
            if (candidate > size && _runs[i].Address < page + candidate && _runs[i].End > page)
            {
                size = candidate;
            }
        }

        if (size != 0)
        {
            ulong start = address & ~(size - 1);
            _ = Drop(start, start + size);
        }
    }

    /// <summary>Turns what is mapped into this list, with as few system calls as the two allow.</summary>
    /// <param name="next">Taken over.</param>
    /// <returns>The list until now, for reuse.</returns>
    public List<MappedRun> Replace(List<MappedRun> next)
    {
        List<MappedRun> old = _runs;
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

        _runs = next;
        return old;
    }

    /// <summary>Adds a run behind all others of a list, merged with the last one where it goes on.</summary>
    public static void Append(List<MappedRun> runs, in MappedRun run)
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

    // Out of the list only.
    private void Cut(ulong start, ulong end)
    {
        for (int i = FirstEndingAfter(start); i < _runs.Count && _runs[i].Address < end; )
        {
            MappedRun run = _runs[i];
            _runs.RemoveAt(i);
            if (run.Address < start)
            {
                _runs.Insert(i++, run.Part(run.Address, start));
            }

            if (run.End > end)
            {
                _runs.Insert(i++, run.Part(end, run.End));
            }
        }
    }

    private bool IsMappedWithOtherRights(in MappedRun run) =>
        TryFind(run.Address, out MappedRun mapped)
        && mapped.End >= run.End
        && mapped.PageShift == run.PageShift
        && mapped.Physical + (run.Address - mapped.Address) == run.Physical;

    private int FirstEndingAfter(ulong address)
    {
        int low = 0;
        int high = _runs.Count;
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (_runs[middle].End > address)
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

    private void Insert(in MappedRun run)
    {
        int i = FirstEndingAfter(run.Address);
        MappedRun merged = run;
        if (i < _runs.Count && merged.Continues(_runs[i]))
        {
            merged = merged with { Length = merged.Length + _runs[i].Length };
            _runs.RemoveAt(i);
        }

        if (i > 0 && _runs[i - 1].Continues(merged))
        {
            _runs[i - 1] = _runs[i - 1] with { Length = _runs[i - 1].Length + merged.Length };
            return;
        }

        _runs.Insert(i, merged);
    }
}
