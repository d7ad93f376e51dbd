namespace VirtBench.Vmm.Memory;

/// <summary>
/// What the VMM does to guest RAM while one instruction is emulated or one event delivered: it can be undone as long as it
/// is not committed. A frame once touched stays usable until the end, so a transaction can meet an absent frame at its
/// first touch only.
/// </summary>
/// <remarks>
/// Undone are writes and the page walker's Accessed and Dirty bits. The guest does not run meanwhile; nobody sees what is
/// undone, and <see cref="GuestMemory.WriteObserver"/> hears of a write when it is committed.
/// </remarks>
public sealed unsafe class MemoryTransaction
{
    private readonly GuestMemory _memory;
    private readonly IGuestPager _pager;
    private readonly HashSet<ulong> _touched = [];
    private readonly List<(ulong Address, int Length, bool Observed)> _writes = [];
    private byte[] _before = new byte[256];
    private int _beforeLength;

    internal MemoryTransaction(GuestMemory memory, IGuestPager pager)
    {
        _memory = memory;
        _pager = pager;
    }

    /// <summary>True between <see cref="Begin"/> and <see cref="Commit"/>.</summary>
    public bool IsOpen { get; private set; }

    /// <summary>Opens the transaction.</summary>
    public void Begin() => IsOpen = true;

    /// <summary>Makes everything since <see cref="Begin"/> last, tells the write observer, and closes the transaction.</summary>
    public void Commit()
    {
        IsOpen = false;
        _touched.Clear();
        if (_writes.Count == 0)
        {
            return;
        }

        foreach ((ulong address, int length, bool observed) in _writes)
        {
            if (observed)
            {
                _memory.WriteObserver?.MemoryWritten(address, (ulong)length);
            }
        }

        ForgetWrites();
    }

    /// <summary>Undoes everything since <see cref="Begin"/>; the transaction stays open.</summary>
    public void RollBack()
    {
        for (int i = _writes.Count - 1; i >= 0; i--)
        {
            (ulong address, int length, _) = _writes[i];
            _beforeLength -= length;
            _before.AsSpan(_beforeLength, length).CopyTo(new Span<byte>(_memory.Base + address, length));
        }

        ForgetWrites();
        _touched.Clear();
    }

    private void ForgetWrites()
    {
        _writes.Clear();
        _beforeLength = 0;
    }

    internal void Touch(ulong frame)
    {
        if (_touched.Contains(frame))
        {
            return;
        }

        if (!_pager.MayTouch(frame))
        {
            throw new HostPageAbsentException(frame);
        }

        _ = _touched.Add(frame);
    }

    /// <summary>Notes what a range that has been touched holds, before it is written.</summary>
    internal void Remember(ulong address, int length, bool observed)
    {
        if (_beforeLength + length > _before.Length)
        {
            Array.Resize(ref _before, Math.Max(2 * _before.Length, _beforeLength + length));
        }

        new ReadOnlySpan<byte>(_memory.Base + address, length).CopyTo(_before.AsSpan(_beforeLength));
        _beforeLength += length;
        _writes.Add((address, length, observed));
    }
}
