using System.Buffers;
using System.Text;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Disks;

/// <summary>A piece of guest memory.</summary>
/// <param name="Address">Guest-physical, checked.</param>
/// <param name="Length">Bytes.</param>
internal readonly record struct VirtioSegment(ulong Address, uint Length);

/// <summary>A virtio-blk request (virtio 1.2, section 5.2.6), taken from the ring and checked. Used again for others.</summary>
internal sealed unsafe class VirtioRequest(VirtioBlock device, GuestMemory memory) : DiskRequest(device)
{
    /// <summary>Most bytes of data in a request: far beyond what drivers ask for, and a bound on the work of one.</summary>
    public const ulong MaximumBytes = 16 << 20;

    private readonly List<VirtioSegment> _readable = [];
    private readonly List<VirtioSegment> _writable = [];
    private ulong _readableLength;
    private ulong _writableLength;
    private ulong _statusAddress;
    private uint _type;
    private ulong _sector;
    private bool _outside;

    /// <summary>Index of the chain's head descriptor.</summary>
    public ushort Head { get; private set; }

    /// <summary>What goes into the status byte.</summary>
    public byte Status { get; private set; }

    /// <summary>Bytes of the writable part that the device may have written, the status among them.</summary>
    public uint Written { get; private set; }

    /// <summary>An engine has derived something from what this request has overwritten.</summary>
    public bool WroteCached { get; private set; }

    /// <summary>Begins a new request.</summary>
    public void Reset(ushort head)
    {
        Head = head;
        _readable.Clear();
        _writable.Clear();
        _readableLength = _writableLength = 0;
        _outside = false;
        Failed = false;
        WroteCached = false;
        ErrorSector = 0;
        Bytes = 0;
        Written = 1;
        Operation = DiskOperation.Other;
        Status = VirtioLayout.StatusOk;
    }

    /// <summary>Adds what a descriptor names; a part outside RAM makes the request fail.</summary>
    /// <returns>False when a readable part follows a writable one.</returns>
    public bool TryAdd(ulong address, uint length, bool writable)
    {
        if (!writable && _writable.Count > 0)
        {
            return false;
        }

        if (length == 0)
        {
            return true;
        }

        bool inside = memory.Contains(address, length);
        _outside |= !inside;
        (writable ? _writable : _readable).Add(new VirtioSegment(inside ? address : ulong.MaxValue, length));
        if (writable)
        {
            _writableLength += length;
        }
        else
        {
            _readableLength += length;
        }

        return true;
    }

    /// <summary>Reads the header and checks the request as a whole.</summary>
    /// <param name="storage">For its capacity.</param>
    /// <param name="identifies">Whether it can be answered: there is a status byte, and it is RAM.</param>
    public void Check(IBlockStorage storage, out bool identifies)
    {
        identifies = _writable.Count > 0 && _writable[^1].Address != ulong.MaxValue;
        if (!identifies)
        {
            return;
        }

        _statusAddress = _writable[^1].Address + _writable[^1].Length - 1;
        Span<byte> header = stackalloc byte[VirtioLayout.RequestHeader];
        if (_outside || _readableLength < VirtioLayout.RequestHeader)
        {
            Refuse(VirtioLayout.StatusIoError);
            return;
        }

        _ = Gather(0, header);
        _type = BitConverter.ToUInt32(header);
        _sector = BitConverter.ToUInt64(header[8..]);
        ulong data =
            _type == VirtioLayout.RequestOut ? _readableLength - VirtioLayout.RequestHeader : _writableLength - 1;
        switch (_type)
        {
            case VirtioLayout.RequestIn or VirtioLayout.RequestOut:
                Operation = _type == VirtioLayout.RequestOut ? DiskOperation.Write : DiskOperation.Read;
                if (
                    data > MaximumBytes
                    || data % IBlockStorage.SectorSize != 0
                    || _sector > storage.Sectors
                    || data / IBlockStorage.SectorSize > storage.Sectors - _sector
                    || (Operation == DiskOperation.Write && storage.IsReadOnly)
                )
                {
                    Refuse(VirtioLayout.StatusIoError);
                    return;
                }

                Bytes = (long)data;
                break;
            case VirtioLayout.RequestFlush:
                Operation = DiskOperation.Flush;
                break;
            case VirtioLayout.RequestGetId:
                break;
            default:
                Refuse(VirtioLayout.StatusUnsupported);
                break;
        }
    }

    private void Refuse(byte status)
    {
        Status = status;
        Failed = true;
    }

    /// <summary>Called when the service is over: what the storage could not do is an I/O error.</summary>
    public void Settle()
    {
        if (Failed && Status == VirtioLayout.StatusOk)
        {
            Status = VirtioLayout.StatusIoError;
        }

        *memory.DeviceAccess(_statusAddress, 1) = Status;
        Wrote(_statusAddress, 1);
    }

    /// <inheritdoc/>
    public override void Execute(IBlockStorage storage)
    {
        switch (_type)
        {
            case VirtioLayout.RequestIn:
                Move(storage, _writable, 0, toGuest: true);
                Written = (uint)Bytes + 1;
                break;
            case VirtioLayout.RequestOut:
                Move(storage, _readable, VirtioLayout.RequestHeader, toGuest: false);
                break;
            case VirtioLayout.RequestFlush:
                storage.Flush();
                break;
            case VirtioLayout.RequestGetId:
                Span<byte> name = stackalloc byte[VirtioLayout.IdentificationLength];
                name.Clear();
                _ = Encoding.ASCII.GetBytes(VirtioBlock.SerialNumber, name);
                name = name[..(int)Math.Min((ulong)name.Length, _writableLength - 1)];
                Scatter(name);
                Written = (uint)name.Length + 1;
                break;
        }
    }

    // Straight between storage and guest memory, when every segment holds whole sectors.
    private void Move(IBlockStorage storage, List<VirtioSegment> segments, ulong skip, bool toGuest)
    {
        ulong left = (ulong)Bytes;
        if (!AreWholeSectors(segments, skip, left))
        {
            MoveThroughBuffer(storage, skip, toGuest);
            return;
        }

        ulong sector = _sector;
        foreach (VirtioSegment segment in segments)
        {
            ulong skipped = Math.Min(skip, segment.Length);
            skip -= skipped;
            ulong length = Math.Min(left, segment.Length - skipped);
            if (length == 0)
            {
                continue;
            }

            ulong address = segment.Address + skipped;
            var memoryPart = new Span<byte>(memory.DeviceAccess(address, length), (int)length);
            if (toGuest)
            {
                try
                {
                    storage.Read(sector, memoryPart);
                }
                finally
                {
                    Wrote(address, length); // some of it, if not all
                }
            }
            else
            {
                storage.Write(sector, memoryPart);
            }

            sector += length / IBlockStorage.SectorSize;
            left -= length;
        }
    }

    private static bool AreWholeSectors(List<VirtioSegment> segments, ulong skip, ulong left)
    {
        foreach (VirtioSegment segment in segments)
        {
            ulong skipped = Math.Min(skip, segment.Length);
            skip -= skipped;
            ulong length = Math.Min(left, segment.Length - skipped);
            left -= length;
            if (length % IBlockStorage.SectorSize != 0)
            {
                return false;
            }
        }

        return true;
    }

    private void MoveThroughBuffer(IBlockStorage storage, ulong skip, bool toGuest)
    {
        byte[] buffer = ArrayPool<byte>.Shared.Rent((int)Bytes);
        try
        {
            Span<byte> data = buffer.AsSpan(0, (int)Bytes);
            if (toGuest)
            {
                storage.Read(_sector, data);
                Scatter(data);
            }
            else
            {
                _ = Gather(skip, data);
                storage.Write(_sector, data);
            }
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }
    }

    private int Gather(ulong skip, Span<byte> destination)
    {
        int done = 0;
        foreach (VirtioSegment segment in _readable)
        {
            ulong skipped = Math.Min(skip, segment.Length);
            skip -= skipped;
            int length = (int)Math.Min((ulong)(destination.Length - done), segment.Length - skipped);
            if (length > 0)
            {
                byte* from = memory.DeviceAccess(segment.Address + skipped, (ulong)length);
                new ReadOnlySpan<byte>(from, length).CopyTo(destination[done..]);
                done += length;
            }
        }

        return done;
    }

    private void Scatter(ReadOnlySpan<byte> source)
    {
        foreach (VirtioSegment segment in _writable)
        {
            int length = (int)Math.Min((uint)source.Length, segment.Length);
            if (length > 0)
            {
                source[..length].CopyTo(new Span<byte>(memory.DeviceAccess(segment.Address, (ulong)length), length));
                Wrote(segment.Address, (ulong)length);
                source = source[length..];
            }
        }
    }

    private void Wrote(ulong address, ulong length) => WroteCached |= memory.DeviceWritten(address, length);
}
