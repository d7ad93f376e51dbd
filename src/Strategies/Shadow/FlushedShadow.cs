using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Shadow;

/// <summary>
/// Policy <see cref="ShadowPaging.Flush"/>: two views, which follow the guest's tables the way a TLB does, on INVLPG and CR3 writes only. On a
/// CR3 write the pages that this address space used before are looked up again in the guest's tables, contiguous ones are merged, and
/// only what differs from what is mapped now is changed, in one batch. A view that the guest does not enter waits with that until it does.
/// </summary>
internal sealed class FlushedShadow(
    VirtualCpu cpu,
    GuestMemory memory,
    ulong lowest,
    ulong limit,
    Func<int, IMappingSink> sink
) : ShadowPageTable(cpu, memory, lowest, limit)
{
    // Bounds what a guest can make the VMM remember: beyond them the working set is refaulted.
    private const int MaximumAddressSpaces = 64;
    private const int MaximumRefillPages = 2048;

    private readonly View[] _views = [new View(new MappedRuns(sink(0))), new View(new MappedRuns(sink(1)))];
    private View? _current;

    private sealed class View(MappedRuns runs)
    {
        public MappedRuns Runs => runs;
        public Dictionary<ulong, List<MappedRun>> WorkingSets { get; } = [];
        public List<MappedRun> Spare { get; set; } = [];
        public ulong Root { get; set; }
        public bool Stale { get; set; } = true;
    }

    /// <inheritdoc/>
    public override MappedRuns? Current => _current?.Runs;

    /// <inheritdoc/>
    protected override int Select(bool user)
    {
        int index = user ? 1 : 0;
        _current = _views[index];
        if (_current.Stale)
        {
            Refill(_current, user);
        }

        return index;
    }

    /// <inheritdoc/>
    public override void SwitchAddressSpace()
    {
        base.SwitchAddressSpace();
        foreach (View view in _views)
        {
            view.Stale = true;
        }
    }

    /// <inheritdoc/>
    public override void InvalidatePage(ulong address)
    {
        foreach (View view in _views)
        {
            view.Runs.DropPage(address);
        }
    }

    /// <inheritdoc/>
    protected override MapResult Map(in ShadowPage page, in MappedRun run, bool write)
    {
        _current!.Runs.Add(run);
        return MapResult.Mapped;
    }

    private void Refill(View view, bool user)
    {
        view.Stale = false;
        if (view.WorkingSets.Count >= MaximumAddressSpaces && !view.WorkingSets.ContainsKey(view.Root))
        {
            view.WorkingSets.Clear();
        }

        ulong root = Cpu.Cr3 & Pte.AddressMask;
        List<MappedRun> next = view.Spare;
        next.Clear();
        List<MappedRun>? wanted = null;
        if (root == view.Root)
        {
            Revalidate(view.Runs.All, next, user);
        }
        else if (view.WorkingSets.Remove(root, out wanted))
        {
            Revalidate(wanted, next, user);
        }

        List<MappedRun> old = view.Runs.Replace(next);
        view.Spare = wanted ?? [];
        if (root != view.Root)
        {
            view.WorkingSets[view.Root] = old;
        }

        view.Root = root;
    }

    // The guest's tables are the authority: a page is refilled only if they grant it now, and as hardware would find it:
    // not before its Accessed bit is set, and not writable before its Dirty bit is.
    private void Revalidate(IReadOnlyList<MappedRun> wanted, List<MappedRun> result, bool user)
    {
        int budget = MaximumRefillPages;
        PageAccess read = PageAccess.Read | (user ? PageAccess.User : 0);
        for (int i = 0; i < wanted.Count; i++)
        {
            MappedRun run = wanted[i];
            for (ulong at = run.Address; at < run.End && budget > 0; budget--)
            {
                Translation t = PageWalker.Walk(Cpu, Memory, at, read, commit: false);
                ulong size = 1UL << (t.Fault ? run.PageShift : t.PageShift); // the guest may have split a large page
                ulong next = Math.Min((at & ~(size - 1)) + size, run.End);
                if (!t.Fault && t.Accessed && MayMapUnasked(t.PhysicalAddress, next - at))
                {
                    PageAccess access = t.Permissions & (PageAccess.Read | PageAccess.Execute);
                    if (t.Dirty && (t.Permissions & PageAccess.Write) != 0)
                    {
                        access |= PageAccess.Write;
                    }

                    MappedRuns.Append(result, new MappedRun(at, next - at, t.PhysicalAddress, access, t.PageShift));
                }

                at = next;
            }
        }
    }
}
