namespace VirtBench.Vmm.Memory;

/// <summary>Supplies the content of one frame.</summary>
/// <param name="frame">Guest-physical address divided by the page size.</param>
/// <param name="page">Receives it, <see cref="GuestMemory.PageSize"/> bytes.</param>
/// <exception cref="Execution.GuestFailureException">It cannot be had: one line for the user.</exception>
public delegate void PageSource(ulong frame, Span<byte> page);

/// <summary>
/// All of RAM is somewhere else at first, and each frame is fetched when it is needed: on demand by whoever touches it, or
/// ahead of that by a thread that calls <see cref="Fetch"/>.
/// </summary>
public sealed class DeferredPager : IGuestPager
{
    private readonly GuestMemory _memory;
    private readonly PageSource _source;
    private readonly ulong[] _present;
    private readonly byte[] _page = new byte[GuestMemory.PageSize];
    private readonly Lock _fetching = new();
    private long _absent;
    private long _fetched;

    /// <summary>Forgets what RAM holds; from now on every frame is absent.</summary>
    /// <param name="memory">RAM, to which the pager is not attached yet.</param>
    /// <param name="source">Where its content is; called by one thread at a time.</param>
    public DeferredPager(GuestMemory memory, PageSource source)
    {
        _memory = memory;
        _source = source;
        _absent = (long)(memory.Size / GuestMemory.PageSize);
        _present = new ulong[(_absent + 63) / 64];
        memory.Clear(0, memory.Size);
    }

    /// <summary>Frames fetched so far.</summary>
    public long Fetched => Volatile.Read(ref _fetched);

    /// <summary>Frames that are still absent.</summary>
    public long Absent => Volatile.Read(ref _absent);

    /// <inheritdoc/>
    public bool IsComplete => Absent == 0;

    /// <inheritdoc/>
    public bool IsPresent(ulong frame) => (Volatile.Read(ref _present[frame >> 6]) & (1UL << (int)(frame & 63))) != 0;

    /// <inheritdoc/>
    public void Fetch(ulong frame)
    {
        lock (_fetching)
        {
            if (IsPresent(frame))
            {
                return;
            }

            _source(frame, _page);
            _memory.Install(frame, _page);
            Volatile.Write(ref _present[frame >> 6], _present[frame >> 6] | (1UL << (int)(frame & 63)));
            _fetched++;
            _absent--;
        }
    }
}
