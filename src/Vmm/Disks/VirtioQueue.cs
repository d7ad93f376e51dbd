using System.Runtime.CompilerServices;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Disks;

/// <summary>The guest's ring makes no sense, and the request that it stands for cannot be answered: the device needs a reset.</summary>
internal sealed class VirtioRingException(string message) : Exception(message);

/// <summary>
/// The device's side of a split virtqueue (virtio 1.2, section 2.7). The guest may write any of it at any time: each value is read
/// once, and checked.
/// </summary>
internal sealed unsafe class VirtioQueue
{
    /// <summary>Most descriptors.</summary>
    public const int MaximumSize = 256;

    private readonly GuestMemory _memory;
    private readonly int _size;
    private readonly ulong _descriptors;
    private readonly ulong _available;
    private readonly ulong _used;
    private readonly bool _indirect;
    private readonly bool _eventIndex;
    private ushort _lastAvailable;
    private ushort _usedIndex;
    private ushort _signalled; // the used index when the guest was last told
    private int _taken; // chains that have not been given back
    private bool _quiet; // the guest has been told that it need not notify

    private VirtioQueue(GuestMemory memory, int size, ulong descriptors, ulong available, ulong used, ulong features)
    {
        _memory = memory;
        _size = size;
        _descriptors = descriptors;
        _available = available;
        _used = used;
        _indirect = (features & VirtioLayout.FeatureIndirect) != 0;
        _eventIndex = (features & VirtioLayout.FeatureEventIndex) != 0;
    }

    /// <summary>A queue whose three parts lie in RAM, aligned as section 2.7 demands; null when they do not.</summary>
    public static VirtioQueue? Create(
        GuestMemory memory,
        int size,
        ulong descriptors,
        ulong available,
        ulong used,
        ulong features
    )
    {
        const int eventIndex = 2;
        bool sound =
            size is > 0 and <= MaximumSize
            && int.IsPow2(size)
            && descriptors % 16 == 0
            && available % 2 == 0
            && used % 4 == 0
            && memory.Contains(descriptors, (ulong)(size * VirtioLayout.DescriptorSize))
            && memory.Contains(available, (ulong)(VirtioLayout.RingHeader + (2 * size) + eventIndex))
            && memory.Contains(
                used,
                (ulong)(VirtioLayout.RingHeader + (size * VirtioLayout.UsedElementSize) + eventIndex)
            );
        return sound ? new VirtioQueue(memory, size, descriptors, available, used, features) : null;
    }

    // ------------------------------------------------------------------------------------------------ available

    /// <summary>Takes the next chain that the guest has made available.</summary>
    /// <param name="request">Receives it.</param>
    /// <returns>False when there is none.</returns>
    /// <exception cref="VirtioRingException">The ring or the chain makes no sense.</exception>
    public bool TryTake(VirtioRequest request)
    {
        ushort waiting = Waiting();
        if (waiting == 0)
        {
            return false;
        }

        if (waiting > _size - _taken)
        {
            throw new VirtioRingException("more chains are available than the queue has descriptors");
        }

        if (!_eventIndex && !_quiet)
        {
            _quiet = true;
            Write16(_used, VirtioLayout.UsedNoNotify);
        }

        Interlocked.MemoryBarrier(); // the entry is read after the index that says it is there
        ushort head = Read16(_available + VirtioLayout.RingHeader + (2UL * (uint)(_lastAvailable & (_size - 1))));
        if (head >= _size)
        {
            throw new VirtioRingException("a chain begins behind the queue's last descriptor");
        }

        _lastAvailable++;
        _taken++;
        request.Reset(head);
        ReadChain(request, head);
        return true;
    }

    /// <summary>Whether there is a chain to take.</summary>
    public bool HasAvailable => Waiting() != 0;

    private ushort Waiting() => (ushort)(Read16(_available + 2) - _lastAvailable);

    private void ReadChain(VirtioRequest request, ushort head)
    {
        ulong table = _descriptors;
        int tableSize = _size;
        int index = head;
        bool inIndirect = false;

        // No chain has more descriptors than the queue: what does goes round in circles.
        for (int count = 0; count < _size; count++)
        {
            ulong at = table + (ulong)(index * VirtioLayout.DescriptorSize);
            byte* descriptor = _memory.DeviceAccess(at, VirtioLayout.DescriptorSize);
            ulong address = Unsafe.ReadUnaligned<ulong>(descriptor);
            uint length = Unsafe.ReadUnaligned<uint>(descriptor + 8);
            ushort flags = Unsafe.ReadUnaligned<ushort>(descriptor + 12);
            ushort next = Unsafe.ReadUnaligned<ushort>(descriptor + 14);
            if ((flags & VirtioLayout.DescriptorIndirect) != 0)
            {
                if (
                    !_indirect
                    || inIndirect
                    || (flags & VirtioLayout.DescriptorNext) != 0
                    || length == 0
                    || length % VirtioLayout.DescriptorSize != 0
                    || length / VirtioLayout.DescriptorSize > (uint)_size
                    || !_memory.Contains(address, length)
                )
                {
                    throw new VirtioRingException("an indirect table is where none may be, or not a table");
                }

                inIndirect = true;
                table = address;
                tableSize = (int)length / VirtioLayout.DescriptorSize;
                index = 0;
                count = -1;
                continue;
            }

            if (!request.TryAdd(address, length, (flags & VirtioLayout.DescriptorWrite) != 0))
            {
                throw new VirtioRingException("a part to read follows one to write");
            }

            if ((flags & VirtioLayout.DescriptorNext) == 0)
            {
                return;
            }

            index = next;
            if (index >= tableSize)
            {
                throw new VirtioRingException("a chain leads behind its table's last descriptor");
            }
        }

        throw new VirtioRingException("a chain has no end");
    }

    /// <summary>The device will not look at the ring any more until the guest notifies it.</summary>
    /// <returns>False when there is something in it already.</returns>
    public bool AllowNotifications()
    {
        if (_eventIndex)
        {
            Write16(_used + VirtioLayout.RingHeader + (ulong)(_size * VirtioLayout.UsedElementSize), _lastAvailable);
        }
        else if (_quiet)
        {
            _quiet = false;
            Write16(_used, 0);
        }

        // The guest looks whether to notify after it has moved the index; this side looks at the index after it has said so.
        Interlocked.MemoryBarrier();
        return !HasAvailable;
    }

    // ------------------------------------------------------------------------------------------------ used

    /// <summary>Gives a chain back.</summary>
    public void Publish(ushort head, uint written)
    {
        ulong element =
            _used + VirtioLayout.RingHeader + ((ulong)(_usedIndex & (_size - 1)) * VirtioLayout.UsedElementSize);
        byte* entry = _memory.DeviceAccess(element, VirtioLayout.UsedElementSize);
        Unsafe.WriteUnaligned(entry, (ulong)head | ((ulong)written << 32));
        _ = _memory.DeviceWritten(element, VirtioLayout.UsedElementSize);
        _usedIndex++;
        _taken--;
        Write16(_used + 2, _usedIndex);
    }

    /// <summary>Whether the guest wants to be interrupted for what was published since it was told the last time, as it now is.</summary>
    public bool MustInterrupt()
    {
        if (_usedIndex == _signalled)
        {
            return false;
        }

        Interlocked.MemoryBarrier(); // the guest writes what it wants, then looks at the index once more
        bool wanted = _eventIndex
            ? VirtioLayout.NeedsEvent(
                Read16(_available + VirtioLayout.RingHeader + (2UL * (uint)_size)),
                _usedIndex,
                _signalled
            )
            : (Read16(_available) & VirtioLayout.AvailableNoInterrupt) == 0;
        _signalled = _usedIndex;
        return wanted;
    }

    private ushort Read16(ulong address) => Volatile.Read(ref *(ushort*)_memory.DeviceAccess(address, 2));

    private void Write16(ulong address, ushort value)
    {
        Volatile.Write(ref *(ushort*)_memory.DeviceAccess(address, 2), value);
        _ = _memory.DeviceWritten(address, 2);
    }
}
