using System.Runtime.InteropServices;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Shadow;

/// <summary>
/// Policy <see cref="ShadowPaging.Cached"/>: a view, in a carrier of its own, for every address space and ring that the guest uses, kept over
/// CR3 writes; the one used longest ago makes room. Every page of the guest's tables that a mapping was derived from is a
/// <em>tracked frame</em>: no view maps it writable, so that a write to it is seen, and takes back what the written entries governed.
/// So a view never holds what the tables no longer grant, and neither CR3 writes nor INVLPG have anything to take back.
/// </summary>
/// <remarks>
/// <para>
/// A frame is tracked once for every place that it has in an address space: (root, level, linear base). Tables can be shared by address spaces,
/// map themselves, or serve at two levels at once; each such use is followed by itself.
/// </para>
/// <para>
/// A frame that is written again and again and never walked between is no table any more, or one that is being built: it is let go, together
/// with all that was derived from it, and tracked again when a walk next leads through it. One whose last use is gone is let go at once; views go on
/// protecting it until the guest's next write shows that it need not be.
/// </para>
/// </remarks>
internal sealed class CachedShadow : ShadowPageTable
{
    /// <summary>Writes to a tracked frame without a walk through it after which it is let go.</summary>
    public const int MaximumWritesUnwalked = 32;

    // Bounds what a guest can make the VMM remember and search: beyond them everything is derived anew.
    private const int MaximumTables = 4096;
    private const int MaximumUses = 16384;
    private const int MaximumUsesOfOneTable = 64;

    // With more tracked frames than this in a large page, only the stretch around the fault is mapped.
    private const int MaximumHoles = 32;

    private const int EntriesPerTable = 512;
    private const ulong RootMask = Pte.AddressMask & ((1UL << PageWalker.PhysicalAddressBits) - 1);

    /// <summary>One place of a table in an address space; it governs 512 entries from the linear base on.</summary>
    private readonly record struct TableUse(ulong Root, int Level, ulong Base)
    {
        /// <summary>Linear bytes that one entry governs are 1 shifted left by this.</summary>
        public int Shift => 12 + (9 * (Level - 1));

        public ulong End => Base + ((ulong)EntriesPerTable << Shift);
    }

    private sealed class TrackedFrame(ulong frame)
    {
        public ulong Frame => frame;
        public List<TableUse> Uses { get; } = [];
        public int WritesSinceWalk { get; set; }
    }

    private sealed class View(int slot, IMappingSink sink)
    {
        public int Slot => slot;
        public MappedRuns Runs { get; } = new(sink);
        public ulong? Root { get; set; }
        public bool User { get; set; }
        public long LastUse { get; set; }
    }

    private sealed record OpenPage(ulong Frame, byte[] Copy);

    private readonly View[] _views;
    private readonly Dictionary<ulong, TrackedFrame> _tracked = [];
    private readonly HashSet<ulong> _code = [];
    private readonly List<ulong> _frames = []; // those of _tracked and of _code, ascending: no view maps them writable
    private readonly ulong[] _cached; // the same, a bit a frame, for other threads to look at
    private readonly Dictionary<TableUse, ulong> _uses = [];
    private readonly List<TableUse> _scratch = [];
    private readonly List<OpenPage> _open = [];
    private View? _current;
    private long _selections;
    private (ulong, ulong, ulong) _mode;
    private bool _dropped;

    /// <summary>Nothing is mapped or tracked.</summary>
    /// <param name="cpu">Supplies CR3, CPL and the modes of paging.</param>
    /// <param name="memory">Guest RAM.</param>
    /// <param name="lowest">First linear address that a carrier can map.</param>
    /// <param name="limit">First one above that it cannot.</param>
    /// <param name="sink">The carriers.</param>
    /// <param name="views">How many there may be.</param>
    public CachedShadow(
        VirtualCpu cpu,
        GuestMemory memory,
        ulong lowest,
        ulong limit,
        Func<int, IMappingSink> sink,
        int views
    )
        : base(cpu, memory, lowest, limit)
    {
        _cached = new ulong[((memory.Size / GuestMemory.PageSize) + 63) / 64];
        _views = [.. Enumerable.Range(0, views).Select(slot => new View(slot, sink(slot)))];
        _mode = Mode;
    }

    /// <inheritdoc/>
    public override MappedRuns? Current => _current?.Runs;

    /// <summary>How many frames are tracked; for tests.</summary>
    public int TrackedFrames => _tracked.Count;

    /// <summary>Whether this frame is tracked; for tests.</summary>
    public bool IsTracked(ulong frame) => _tracked.ContainsKey(frame);

    /// <summary>What all views hold; for tests.</summary>
    public IEnumerable<(ulong Root, bool User, MappedRuns Runs)> Views =>
        _views.Where(view => view.Root is not null).Select(view => (view.Root!.Value, view.User, view.Runs));

    private (ulong, ulong, ulong) Mode =>
        (Cpu.Cr0 & (Cr0.Pg | Cr0.Wp), Cpu.Cr4 & (Cr4.Pae | Cr4.Pge | Cr4.Pse), Cpu.Efer & Efer.Nxe);

    // ------------------------------------------------------------------------------------------------ views

    /// <inheritdoc/>
    protected override int Select(bool user)
    {
        ulong root = Cpu.Cr3 & RootMask;
        View? chosen = null;
        foreach (View view in _views)
        {
            if (view.Root == root && view.User == user)
            {
                chosen = view;
                break;
            }
        }

        chosen ??= TakeOver(root, user);
        chosen.LastUse = ++_selections;
        _current = chosen;
        return chosen.Slot;
    }

    private View TakeOver(ulong root, bool user)
    {
        View view = _views[0];
        foreach (View candidate in _views)
        {
            if (candidate.Root is null)
            {
                view = candidate;
                break;
            }

            if (candidate.LastUse < view.LastUse)
            {
                view = candidate;
            }
        }

        ulong? old = view.Root;
        view.Runs.Reset(Lowest, Limit);
        view.Root = root;
        view.User = user;
        if (old is { } gone && !_views.Any(other => other.Root == gone))
        {
            Forget(use => use.Root == gone); // nothing is left that was derived from it
        }

        return view;
    }

    /// <summary>
    /// A CR3 write only leads to other views, one with the same root as before to none. Where the rules change by which tables are read, all that
    /// was derived goes.
    /// </summary>
    public override void SwitchAddressSpace()
    {
        if (_current?.Root != (Cpu.Cr3 & RootMask))
        {
            base.SwitchAddressSpace();
        }

        if (Mode != _mode)
        {
            _mode = Mode;
            DropAll();
        }
    }

    /// <summary>Nothing to do: what INVLPG is for has happened at the write to the table.</summary>
    public override void InvalidatePage(ulong address) { }

    // ------------------------------------------------------------------------------------------------ mapping

    /// <inheritdoc/>
    protected override MapResult Map(in ShadowPage page, in MappedRun run, bool write)
    {
        View view = _current!;
        do
        {
            _dropped = false; // tracking one table may have let go of another on the same way
            TrackWalk(view.Root!.Value, page.Address);
        } while (_dropped);

        ulong address = page.Address & ~(GuestMemory.PageSize - 1);
        ulong frame = run.Physical + (address - run.Address);
        bool wanted = (run.Access & PageAccess.Write) != 0;
        if (wanted && write && _tracked.ContainsKey(frame))
        {
            return MapResult.Emulate;
        }

        if (wanted && write && _code.Contains(frame))
        {
            return MapResult.EmulateCodeWrite;
        }

        MappedRun stretch = StretchAround(run, address, out int holes);
        if (
            view.Runs.TryFind(address, out MappedRun mapped)
            && mapped.PageShift == run.PageShift
            && mapped.Physical + (address - mapped.Address) == frame
        )
        {
            // Other rights: the first write, or a frame that is tracked no more.
            view.Runs.Protect(
                stretch.Part(Math.Max(stretch.Address, mapped.Address), Math.Min(stretch.End, mapped.End))
            );
        }
        else if (!wanted || holes == 0 || holes > MaximumHoles)
        {
            view.Runs.Add(stretch);
        }
        else
        {
            view.Runs.Add(run);
            ProtectTracked(view, run);
        }

        return MapResult.Mapped;
    }

    /// <summary>The part of a run around an address that may be mapped with the same rights, given the tracked frames in it.</summary>
    private MappedRun StretchAround(in MappedRun run, ulong address, out int holes)
    {
        holes = 0;
        if ((run.Access & PageAccess.Write) == 0)
        {
            return run;
        }

        ulong frame = run.Physical + (address - run.Address);
        int first = FirstFrameFrom(run.Physical);
        int above = FirstFrameFrom(frame);
        holes = FirstFrameFrom(run.PhysicalEnd) - first;
        if (above < _frames.Count && _frames[above] == frame)
        {
            return run.Part(address, address + GuestMemory.PageSize) with { Access = run.Access & ~PageAccess.Write };
        }

        ulong start = above > first ? _frames[above - 1] + GuestMemory.PageSize : run.Physical;
        ulong end = above < _frames.Count ? Math.Min(_frames[above], run.PhysicalEnd) : run.PhysicalEnd;
        return run.Part(run.Address + (start - run.Physical), run.Address + (end - run.Physical));
    }

    private void ProtectTracked(View view, in MappedRun run)
    {
        for (int i = FirstFrameFrom(run.Physical); i < _frames.Count && _frames[i] < run.PhysicalEnd; i++)
        {
            ulong at = run.Address + (_frames[i] - run.Physical);
            view.Runs.Protect(run.Part(at, at + GuestMemory.PageSize) with { Access = run.Access & ~PageAccess.Write });
        }
    }

    // ------------------------------------------------------------------------------------------------ tracking

    // The walk that the core has just made for this address. Its tables are in RAM, or it would have faulted.
    private void TrackWalk(ulong root, ulong address)
    {
        ulong table = root;
        for (int level = 4; level > 0; level--)
        {
            var use = new TableUse(root, level, 0);
            use = use with { Base = level == 4 ? 0 : address & ~(((ulong)EntriesPerTable << use.Shift) - 1) };
            Track(use, table);
            ulong entry = Memory.Read<ulong>(table + (((address >> use.Shift) & 511) * 8));
            ulong next = entry & Pte.AddressMask;
            bool leaf = level is 2 or 3 && (entry & Pte.Large) != 0;
            if (leaf || (entry & Pte.Present) == 0 || !Memory.Contains(next, GuestMemory.PageSize))
            {
                return;
            }

            table = next;
        }
    }

    private void Track(in TableUse use, ulong frame)
    {
        if (_uses.TryGetValue(use, out ulong known))
        {
            if (known == frame)
            {
                _tracked[frame].WritesSinceWalk = 0;
                return;
            }

            // A device has written the table since the last entry, before which it could not be heard of.
            LetGo(_tracked[known]);
        }

        if (_uses.Count >= MaximumUses || _tracked.Count >= MaximumTables)
        {
            DropAll();
        }

        if (_tracked.TryGetValue(frame, out TrackedFrame? tracked) && tracked.Uses.Count >= MaximumUsesOfOneTable)
        {
            LetGo(tracked);
            tracked = null;
        }

        if (tracked is null)
        {
            tracked = new TrackedFrame(frame);
            _tracked.Add(frame, tracked);
            Protect(frame);
        }

        tracked.WritesSinceWalk = 0;
        tracked.Uses.Add(use);
        _uses.Add(use, frame);
    }

    /// <inheritdoc/>
    public override void MemoryWritten(ulong address, ulong length)
    {
        ulong end = address + length;
        int i = FirstFrameFrom(address & ~(GuestMemory.PageSize - 1));
        while (i < _frames.Count && _frames[i] < end)
        {
            ulong frame = _frames[i];
            ulong from = Math.Max(address, frame) - frame;
            ulong to = Math.Min(end - frame, GuestMemory.PageSize);
            if (_tracked.ContainsKey(frame))
            {
                EntriesWritten(frame, (int)(from / 8), (int)((to - 1) / 8));
            }

            if (_code.Contains(frame))
            {
                CodeWritten?.Invoke(frame + from, to - from);
            }

            i = FirstFrameFrom(frame + 1); // the list may have changed
        }
    }

    // What the entries governed goes from every view of the address spaces that the table is used in, and so do the uses of the tables below.
    private void EntriesWritten(ulong frame, int first, int last)
    {
        TrackedFrame tracked = _tracked[frame];
        if (++tracked.WritesSinceWalk > MaximumWritesUnwalked)
        {
            LetGo(tracked);
            return;
        }

        // One use is the usual case and needs no copy; what happens below a table that maps itself can change its list.
        if (tracked.Uses.Count == 1)
        {
            EntriesWritten(tracked.Uses[0], first, last);
            return;
        }

        TableUse[] uses = [.. tracked.Uses];
        foreach (TableUse use in uses)
        {
            EntriesWritten(use, first, last);
        }
    }

    private void EntriesWritten(TableUse use, int first, int last) =>
        DropGoverned(use, use.Base + ((ulong)first << use.Shift), use.Base + ((ulong)(last + 1) << use.Shift));

    private void DropGoverned(TableUse use, ulong start, ulong end)
    {
        foreach (View view in _views)
        {
            if (view.Root == use.Root)
            {
                _ = view.Runs.Drop(start, end);
            }
        }

        if (use.Level == 2 && end - start == 1UL << use.Shift)
        {
            Forget(new TableUse(use.Root, 1, start)); // one page table below one entry, the usual case
        }
        else if (use.Level > 1)
        {
            Forget(below =>
                below.Root == use.Root && below.Level < use.Level && below.Base >= start && below.Base < end
            );
        }
    }

    /// <summary>Tracks a frame no more; everything that was derived from it goes.</summary>
    private void LetGo(TrackedFrame tracked)
    {
        _dropped = true;
        TableUse[] uses = [.. tracked.Uses];
        foreach (TableUse use in uses)
        {
            DropGoverned(use, use.Base, use.End);
            Forget(use);
        }
    }

    private void Forget(Predicate<TableUse> which)
    {
        _scratch.Clear();
        foreach (TableUse use in _uses.Keys)
        {
            if (which(use))
            {
                _scratch.Add(use);
            }
        }

        foreach (TableUse use in _scratch)
        {
            Forget(use);
        }
    }

    private void Forget(TableUse use)
    {
        if (!_uses.Remove(use, out ulong frame))
        {
            return;
        }

        TrackedFrame tracked = _tracked[frame];
        _ = tracked.Uses.Remove(use);
        if (tracked.Uses.Count == 0)
        {
            _ = _tracked.Remove(frame);
            Unprotect(frame);
        }
    }

    /// <summary>Every view is emptied and no frame is tracked.</summary>
    private void DropAll()
    {
        _dropped = true;
        foreach (View view in _views)
        {
            view.Runs.Clear();
        }

        _uses.Clear();
        _tracked.Clear();
        _frames.Clear();
        _frames.AddRange(_code.Order());
        Array.Clear(_cached);
        foreach (ulong frame in _frames)
        {
            MarkCached(frame);
        }
    }

    // With a full barrier: what is derived from the frame is read after a device's thread can see that it is.
    private void MarkCached(ulong frame)
    {
        ulong number = frame / GuestMemory.PageSize;
        if (number / 64 < (ulong)_cached.Length)
        {
            _ = Interlocked.Or(ref _cached[number / 64], 1UL << (int)(number % 64));
        }
    }

    /// <inheritdoc/>
    public override bool Caches(ulong address, ulong length)
    {
        ulong last = (address + length - 1) / GuestMemory.PageSize;
        for (ulong number = address / GuestMemory.PageSize; number <= last; number++)
        {
            if ((Volatile.Read(ref _cached[number / 64]) & (1UL << (int)(number % 64))) != 0)
            {
                return true;
            }
        }

        return false;
    }

    // The frame has become a tracked one or one of code.
    private void Protect(ulong frame)
    {
        int i = FirstFrameFrom(frame);
        if (i < _frames.Count && _frames[i] == frame)
        {
            return;
        }

        _frames.Insert(i, frame);
        MarkCached(frame);
        foreach (View view in _views)
        {
            view.Runs.WriteProtect(frame);
        }
    }

    // Views go on protecting it until the guest's next write shows that it need not be.
    private void Unprotect(ulong frame)
    {
        if (!_tracked.ContainsKey(frame) && !_code.Contains(frame))
        {
            _frames.RemoveAt(FirstFrameFrom(frame));
            ulong number = frame / GuestMemory.PageSize;
            if (number / 64 < (ulong)_cached.Length)
            {
                _ = Interlocked.And(ref _cached[number / 64], ~(1UL << (int)(number % 64)));
            }
        }
    }

    // ------------------------------------------------------------------------------------------------ translated code

    /// <summary>Told of every write to a page of <see cref="ProtectCode"/>: guest-physical address and length within the page.</summary>
    public Action<ulong, ulong>? CodeWritten { get; set; }

    /// <summary>No view maps this page writable any more: its code has been translated.</summary>
    /// <param name="frame">Guest-physical address of the page.</param>
    public void ProtectCode(ulong frame)
    {
        if (_code.Add(frame))
        {
            Protect(frame);
        }
    }

    /// <summary>Nothing translated is left of this page.</summary>
    /// <param name="frame">Guest-physical address of the page.</param>
    public void ReleaseCode(ulong frame)
    {
        if (_code.Remove(frame))
        {
            Unprotect(frame);
        }
    }

    private int FirstFrameFrom(ulong address)
    {
        int i = _frames.BinarySearch(address);
        return i < 0 ? ~i : i;
    }

    // ------------------------------------------------------------------------------------------------ steps

    /// <inheritdoc/>
    public override void AllowInStep(in ShadowPage page)
    {
        ulong address = page.Address & ~(GuestMemory.PageSize - 1);
        ulong frame = page.PhysicalStart + (address - page.PageStart);
        if (!_open.Any(open => open.Frame == frame))
        {
            byte[] copy = new byte[(int)GuestMemory.PageSize];
            Memory.Read(frame, copy);
            _open.Add(new OpenPage(frame, copy));
        }

        const PageAccess rights = PageAccess.Read | PageAccess.Write | PageAccess.Execute;
        byte shift = _current!.Runs.TryFind(address, out MappedRun mapped)
            ? mapped.PageShift
            : (byte)ulong.TrailingZeroCount(page.Length);
        _current.Runs.Add(new MappedRun(address, GuestMemory.PageSize, frame, page.Access & rights, shift));
    }

    /// <inheritdoc/>
    public override void EndStep(bool again)
    {
        foreach (OpenPage page in _open)
        {
            FindWritten(page);
        }

        if (again)
        {
            return;
        }

        foreach (OpenPage page in _open)
        {
            if (_tracked.ContainsKey(page.Frame) || _code.Contains(page.Frame))
            {
                foreach (View view in _views)
                {
                    view.Runs.WriteProtect(page.Frame);
                }
            }
        }

        _open.Clear();
    }

    private void FindWritten(OpenPage page)
    {
        Span<byte> now = stackalloc byte[(int)GuestMemory.PageSize];
        Memory.Read(page.Frame, now);
        ReadOnlySpan<ulong> before = MemoryMarshal.Cast<byte, ulong>(page.Copy);
        ReadOnlySpan<ulong> after = MemoryMarshal.Cast<byte, ulong>(now);
        for (int first = 0; first < EntriesPerTable; first++)
        {
            int last = first;
            while (last < EntriesPerTable && before[last] != after[last])
            {
                last++;
            }

            if (last > first)
            {
                MemoryWritten(page.Frame + ((ulong)first * 8), (ulong)(last - first) * 8);
                first = last;
            }
        }

        now.CopyTo(page.Copy);
    }
}
