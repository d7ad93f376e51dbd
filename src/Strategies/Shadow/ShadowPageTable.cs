using System.Runtime.CompilerServices;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Shadow;

/// <summary>
/// The shadow page tables of direct execution: what carriers have mapped of guest RAM, and where. The carrier has one ring only, so the guest's
/// rings 0 to 2 and its ring 3 are two <em>views</em> of an address space, in carriers of their own: the second holds only pages that the
/// guest's tables give to user mode. How the views follow the guest's tables is the policy, <see cref="ShadowPaging"/>.
/// </summary>
/// <param name="cpu">Supplies CR3, CPL and the modes of paging.</param>
/// <param name="memory">Guest RAM.</param>
/// <param name="lowest">First linear address that a carrier can map.</param>
/// <param name="limit">First one above that it cannot.</param>
internal abstract class ShadowPageTable(VirtualCpu cpu, GuestMemory memory, ulong lowest, ulong limit)
{
    private bool _user;
    private bool _stale = true;

    /// <summary>What the view of the last <see cref="Select()"/> holds.</summary>
    public abstract MappedRuns? Current { get; }

    /// <summary>The CPU.</summary>
    protected VirtualCpu Cpu => cpu;

    /// <summary>Guest RAM.</summary>
    protected GuestMemory Memory => memory;

    /// <summary>First linear address that a carrier can map.</summary>
    protected ulong Lowest => lowest;

    /// <summary>First linear address above that no carrier can map.</summary>
    protected ulong Limit => limit;

    /// <summary>The view selected last is the one that the CPU's CR3 and CPL call for: nothing to do before an entry.</summary>
    public bool IsSelected
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => !_stale && _user == (cpu.Cpl == 3);
    }

    /// <summary>Makes the view that the guest runs in next the current one, and brings it up to date.</summary>
    /// <returns>Number of the carrier that holds it.</returns>
    public int Select()
    {
        _user = cpu.Cpl == 3;
        _stale = false;
        return Select(_user);
    }

    /// <inheritdoc cref="Select()"/>
    protected abstract int Select(bool user);

    /// <summary>CR3 or another register that governs paging was written.</summary>
    public virtual void SwitchAddressSpace() => _stale = true;

    /// <summary>INVLPG.</summary>
    public abstract void InvalidatePage(ulong address);

    /// <summary>Enters one page into the current view.</summary>
    /// <param name="page">What the guest's tables grant.</param>
    /// <param name="write">The guest wants to write, and the answer may be that the write has to be emulated.</param>
    public MapResult Map(in ShadowPage page, bool write)
    {
        if (page.Address < lowest || page.Address >= limit)
        {
            string why =
                page.Address < lowest
                    ? $"below 0x{lowest:X}, where an unprivileged process can map nothing"
                    : $"at or above 0x{limit:X}, where a process has no room for guests";
            return MapResult.Refused(
                $"the guest maps 0x{page.Address:X}, {why}; direct execution cannot run it, the simulated and the hardware "
                    + "strategies can"
            );
        }

        return Map(page, RunOf(page), write);
    }

    /// <inheritdoc cref="Map(in ShadowPage, bool)"/>
    protected abstract MapResult Map(in ShadowPage page, in MappedRun run, bool write);

    /// <summary>Bytes of guest RAM have been written, not by the guest's own code.</summary>
    public virtual void MemoryWritten(ulong address, ulong length) { }

    /// <summary>From any thread: whether anything here is derived from these bytes. See <see cref="IMemoryWriteObserver.Caches"/>.</summary>
    public virtual bool Caches(ulong address, ulong length) => false;

    /// <summary>Lets the guest write a page that is protected, until <see cref="EndStep"/>.</summary>
    public virtual void AllowInStep(in ShadowPage page) =>
        throw new NotSupportedException("no page of this policy is protected");

    /// <summary>The step is over, or has met with another exit.</summary>
    /// <param name="again">The same instruction will be stepped again: what is open stays open.</param>
    public virtual void EndStep(bool again) { }

    /// <summary>
    /// Whether a page may be mapped that the guest has not just asked for: RAM, and on this host, since no access of the guest's has
    /// brought it in.
    /// </summary>
    protected bool MayMapUnasked(ulong physical, ulong length)
    {
        if (!memory.Contains(physical, length))
        {
            return false;
        }

        if (memory.Pager is not null)
        {
            for (ulong at = physical; at < physical + length; at += GuestMemory.PageSize)
            {
                if (!memory.IsPresent(at / GuestMemory.PageSize))
                {
                    return false;
                }
            }
        }

        return true;
    }

    // A large page is cut to what a carrier can map and to what of it is RAM. The core may hand over a part of a large page as a small one:
    // the size of the guest's page is what INVLPG goes by.
    private MappedRun RunOf(in ShadowPage page)
    {
        ulong start = Math.Max(page.PageStart, lowest);
        ulong physical = page.PhysicalStart + (start - page.PageStart);
        ulong end = Math.Min(Math.Min(page.PageStart + page.Length, limit), start + (memory.Size - physical));
        Translation t = PageWalker.Walk(cpu, memory, page.Address, PageAccess.Read, commit: false);
        byte shift = t.Fault ? (byte)ulong.TrailingZeroCount(page.Length) : t.PageShift;
        const PageAccess rights = PageAccess.Read | PageAccess.Write | PageAccess.Execute;
        return new MappedRun(start, end - start, physical, page.Access & rights, shift);
    }
}
