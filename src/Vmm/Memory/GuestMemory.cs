using System.ComponentModel;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Versioning;
using VirtBench.Vmm.Native;

namespace VirtBench.Vmm.Memory;

/// <summary>Told when the VMM itself (not guest code) writes guest RAM, so that cached translations can be dropped.</summary>
public interface IMemoryWriteObserver
{
    /// <summary>Bytes <paramref name="address"/> … +<paramref name="length"/> − 1 of guest-physical memory have changed.</summary>
    void MemoryWritten(ulong address, ulong length);

    /// <summary>
    /// From any thread: whether anything may be derived from these bytes that a write makes untrue. What is written first and asked
    /// about then is either found here, or derived from what was written.
    /// </summary>
    bool Caches(ulong address, ulong length) => true;
}

/// <summary>
/// Guest RAM, guest-physical 0 … <see cref="Size"/> − 1. On Linux a memfd whose size is sealed, so that processes that
/// map it (the carrier, /dev/kvm) can never be made to fault by a resize; elsewhere ordinary zeroed memory.
/// </summary>
/// <remarks>
/// A guest may run in another process and write at any moment: a value that decides something is read once, into a local.
/// </remarks>
public sealed unsafe class GuestMemory : IDisposable
{
    /// <summary>Bytes in a page.</summary>
    public const ulong PageSize = 4096;

    /// <summary>Least RAM a VM may have: 1 MiB.</summary>
    public const ulong MinimumSize = 1UL << 20;

    /// <summary>Most RAM a VM may have: 16 GiB.</summary>
    public const ulong MaximumSize = 16UL << 30;

    private byte* _base;
    private IGuestPager? _pager;
    private MemoryTransaction? _transaction;

    /// <summary>Allocates zeroed RAM.</summary>
    /// <param name="size">Bytes: a multiple of the page size between 1 MiB and 16 GiB.</param>
    /// <exception cref="ArgumentOutOfRangeException">The size is not such a value.</exception>
    /// <exception cref="Win32Exception">The host refuses the memory.</exception>
    public GuestMemory(ulong size)
    {
        if (size is < MinimumSize or > MaximumSize || size % PageSize != 0)
        {
            throw new ArgumentOutOfRangeException(nameof(size), size, "guest RAM is 1 MiB to 16 GiB in whole pages");
        }

        Size = size;
        if (OperatingSystem.IsLinux())
        {
            FileDescriptor = Linux.MemfdCreate("virtbench-ram", Linux.MfdCloexec | Linux.MfdAllowSealing);
            if (
                FileDescriptor < 0
                || Linux.Ftruncate(FileDescriptor, (long)size) != 0
                || Linux.Fcntl(FileDescriptor, Linux.FAddSeals, Linux.SealShrink | Linux.SealGrow | Linux.SealSeal) != 0
            )
            {
                throw Refused("cannot create a memfd for guest RAM");
            }

            nint mapped = Linux.Mmap(
                0,
                (nuint)size,
                Linux.ProtRead | Linux.ProtWrite,
                Linux.MapShared | Linux.MapNoreserve,
                FileDescriptor,
                0
            );
            if (mapped == -1)
            {
                throw Refused($"cannot map {size} bytes of guest RAM");
            }

            _base = (byte*)mapped;
        }
        else
        {
            FileDescriptor = -1;
            _base = (byte*)NativeMemory.AlignedAlloc((nuint)size, (nuint)PageSize);
            NativeMemory.Clear(_base, (nuint)size);
        }
    }

    [SupportedOSPlatform("linux")]
    private Win32Exception Refused(string what)
    {
        int error = Marshal.GetLastPInvokeError();
        if (FileDescriptor >= 0)
        {
            _ = Linux.Close(FileDescriptor);
        }

        return new Win32Exception(error, what);
    }

    /// <summary>Bytes of RAM.</summary>
    public ulong Size { get; }

    /// <summary>The memfd that holds RAM at offset 0, or −1 where the host has none.</summary>
    public int FileDescriptor { get; }

    /// <summary>
    /// Host address of guest-physical 0. Index it only with addresses checked by <see cref="Contains"/> whose frames are
    /// present; otherwise ask <see cref="Touch"/>.
    /// </summary>
    public byte* Base => _base;

    /// <summary>What brings in frames that are not on this host; null when all of RAM is.</summary>
    public IGuestPager? Pager => _pager;

    /// <summary>Told of every write made through this class; null when no engine caches code.</summary>
    public IMemoryWriteObserver? WriteObserver { get; set; }

    /// <summary>True when the whole range is RAM; never overflows.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool Contains(ulong address, ulong length) => address < Size && length <= Size - address;

    /// <summary>Whether a frame of RAM is on this host, so that guest code may reach it. Others have to be fetched first.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool IsPresent(ulong frame) => _pager is null || _pager.IsPresent(frame);

    /// <summary>Whether every frame of a range is on this host; what is not RAM does not count.</summary>
    public bool ArePresent(ulong address, ulong length)
    {
        if (_pager is null)
        {
            return true;
        }

        ulong end = Math.Min(Size, address + length);
        for (ulong at = address & ~(PageSize - 1); at < end; at += PageSize)
        {
            if (!_pager.IsPresent(at / PageSize))
            {
                return false;
            }
        }

        return true;
    }

    /// <summary>Brings a frame in that is not on this host. Not inside a transaction, which has to be rolled back first.</summary>
    public void Fetch(ulong frame) => _pager?.Fetch(frame);

    /// <summary>Lets RAM be absent. Nothing of it has been read yet, and no engine runs.</summary>
    /// <returns>The transaction to open around every emulation and event delivery.</returns>
    internal MemoryTransaction Attach(IGuestPager pager)
    {
        _pager = pager;
        return _transaction = new MemoryTransaction(this, pager);
    }

    /// <summary>The pager has nothing left to do. No transaction is open.</summary>
    internal void DetachPager()
    {
        _pager = null;
        _transaction = null;
    }

    /// <summary>
    /// Host address of one byte of RAM that the VMM is about to access, with the rest of its frame. An absent frame ends the
    /// open transaction; outside of one it is fetched.
    /// </summary>
    /// <param name="address">Guest-physical, checked by <see cref="Contains"/>.</param>
    /// <exception cref="HostPageAbsentException">In a transaction.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public byte* Touch(ulong address)
    {
        if (_pager is not null)
        {
            TouchFrames(address, 1);
        }

        return _base + address;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void TouchFrames(ulong address, ulong length)
    {
        if (length == 0)
        {
            return;
        }

        for (ulong frame = address / PageSize; frame <= (address + length - 1) / PageSize; frame++)
        {
            if (_transaction is { IsOpen: true } transaction)
            {
                transaction.Touch(frame);
            }
            else if (!_pager!.IsPresent(frame))
            {
                _pager.Fetch(frame);
            }
        }
    }

    /// <summary>Before the VMM writes a range that it has touched, by a way of its own.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal void BeforeWrite(ulong address, int length)
    {
        if (_transaction is { IsOpen: true } transaction)
        {
            transaction.Remember(address, length, observed: false);
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool PrepareWrite(ulong address, ulong length)
    {
        TouchFrames(address, length);
        if (_transaction is not { IsOpen: true } transaction)
        {
            return false;
        }

        transaction.Remember(address, (int)length, observed: true);
        return true;
    }

    /// <summary>Puts the content of an absent frame in its place, as one.</summary>
    internal void Install(ulong frame, ReadOnlySpan<byte> page)
    {
        if (!OperatingSystem.IsLinux())
        {
            page.CopyTo(new Span<byte>(_base + (frame * PageSize), (int)PageSize));
            return;
        }

        // Through the file, not the mapping, where a thread that waits for the page may be caught by userfaultfd; tmpfs holds
        // the page locked until it is written, so nobody sees half of it.
        fixed (byte* bytes = page)
        {
            nint written = Linux.Pwrite(FileDescriptor, bytes, (nuint)PageSize, (long)(frame * PageSize));
            if (written != (nint)PageSize)
            {
                throw new Execution.GuestFailureException(
                    $"the host has no memory for a page of the guest: {new Win32Exception(Marshal.GetLastPInvokeError()).Message}"
                );
            }
        }
    }

    /// <summary>
    /// Host address of RAM that a device is about to access, on its own thread or the vCPU's: absent frames are fetched. What the
    /// device does there is no part of an emulation, and no transaction undoes it.
    /// </summary>
    /// <param name="address">Guest-physical.</param>
    /// <param name="length">Bytes; all of them RAM, as <see cref="Contains"/> says.</param>
    /// <exception cref="ArgumentOutOfRangeException">The range is not RAM.</exception>
    /// <exception cref="Execution.GuestFailureException">A frame cannot be had.</exception>
    public byte* DeviceAccess(ulong address, ulong length)
    {
        if (length == 0)
        {
            return _base;
        }

        Check(address, length);
        if (_pager is { } pager)
        {
            for (ulong frame = address / PageSize; frame <= (address + length - 1) / PageSize; frame++)
            {
                if (!pager.IsPresent(frame))
                {
                    pager.Fetch(frame);
                }
            }
        }

        return _base + address;
    }

    /// <summary>A device has written what <see cref="DeviceAccess"/> gave it.</summary>
    /// <returns>Whether an engine has derived something from it, so that the guest must not go on before the engine has been left.</returns>
    public bool DeviceWritten(ulong address, ulong length)
    {
        if (WriteObserver is not { } observer)
        {
            return false;
        }

        observer.MemoryWritten(address, length);
        Interlocked.MemoryBarrier();
        return observer.Caches(address, length);
    }

    /// <summary>Reads an unaligned little-endian value of guest-physical memory.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The range is not RAM.</exception>
    public T Read<T>(ulong address)
        where T : unmanaged
    {
        Check(address, (ulong)sizeof(T));
        if (_pager is not null)
        {
            TouchFrames(address, (ulong)sizeof(T));
        }

        return Unsafe.ReadUnaligned<T>(_base + address);
    }

    /// <summary>Writes an unaligned little-endian value of guest-physical memory.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The range is not RAM.</exception>
    public void Write<T>(ulong address, T value)
        where T : unmanaged
    {
        Check(address, (ulong)sizeof(T));
        bool later = _pager is not null && PrepareWrite(address, (ulong)sizeof(T));
        Unsafe.WriteUnaligned(_base + address, value);
        if (!later)
        {
            WriteObserver?.MemoryWritten(address, (ulong)sizeof(T));
        }
    }

    /// <summary>Copies guest-physical memory out.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The range is not RAM.</exception>
    public void Read(ulong address, Span<byte> destination)
    {
        Check(address, (ulong)destination.Length);
        if (_pager is not null)
        {
            TouchFrames(address, (ulong)destination.Length);
        }

        new ReadOnlySpan<byte>(_base + address, destination.Length).CopyTo(destination);
    }

    /// <summary>Copies bytes into guest-physical memory.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The range is not RAM.</exception>
    public void Write(ulong address, ReadOnlySpan<byte> source)
    {
        Check(address, (ulong)source.Length);
        bool later = _pager is not null && PrepareWrite(address, (ulong)source.Length);
        source.CopyTo(new Span<byte>(_base + address, source.Length));
        if (!later)
        {
            WriteObserver?.MemoryWritten(address, (ulong)source.Length);
        }
    }

    /// <summary>Zeroes guest-physical memory; large ranges are given back to the host instead of being written. Not in a transaction.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The range is not RAM.</exception>
    public void Clear(ulong address, ulong length)
    {
        if (length == 0)
        {
            return;
        }

        Check(address, length);
        if (_pager is not null)
        {
            TouchFrames(address, length);
        }

        ulong firstPage = (address + PageSize - 1) & ~(PageSize - 1);
        ulong endPage = (address + length) & ~(PageSize - 1);
        if (
            OperatingSystem.IsLinux()
            && _pager is null // a page that is present has its place in the file
            && endPage > firstPage
            && endPage - firstPage >= 16 * PageSize
            && Linux.Fallocate(
                FileDescriptor,
                Linux.FallocKeepSize | Linux.FallocPunchHole,
                (long)firstPage,
                (long)(endPage - firstPage)
            ) == 0
        )
        {
            NativeMemory.Clear(_base + address, (nuint)(firstPage - address));
            NativeMemory.Clear(_base + endPage, (nuint)(address + length - endPage));
        }
        else
        {
            NativeMemory.Clear(_base + address, (nuint)length);
        }

        WriteObserver?.MemoryWritten(address, length);
    }

    private void Check(ulong address, ulong length)
    {
        if (!Contains(address, length))
        {
            throw new ArgumentOutOfRangeException(
                nameof(address),
                $"guest-physical 0x{address:X}, {length} bytes, is outside RAM of 0x{Size:X} bytes"
            );
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (_base is null)
        {
            return;
        }

        if (OperatingSystem.IsLinux())
        {
            _ = Linux.Munmap((nint)_base, (nuint)Size);
            _ = Linux.Close(FileDescriptor);
        }
        else
        {
            NativeMemory.AlignedFree(_base);
        }

        _base = null;
    }
}
