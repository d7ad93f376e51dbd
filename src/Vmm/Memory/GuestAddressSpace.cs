using System.Runtime.CompilerServices;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Devices;

namespace VirtBench.Vmm.Memory;

/// <summary>
/// Reads and writes guest memory by linear address on behalf of an emulated instruction or an event delivery, with the
/// architecture's checks. Nothing is written before every byte's page has been checked, so an access that fails has
/// changed nothing, not even a Dirty bit.
/// </summary>
/// <param name="cpu">Supplies the paging registers and, for messages, RIP.</param>
/// <param name="memory">Guest RAM.</param>
/// <param name="absent">What answers where there is no RAM; null for a private bus that counts for nobody.</param>
public sealed unsafe class GuestAddressSpace(VirtualCpu cpu, GuestMemory memory, PhysicalBus? absent = null)
{
    private readonly PhysicalBus _absent = absent ?? new PhysicalBus();

    /// <summary>Copies bytes from linear memory, across any number of page boundaries.</summary>
    /// <param name="address">Linear address.</param>
    /// <param name="destination">Receives the bytes.</param>
    /// <param name="access">
    /// Read or Execute; add User for CPL 3, and Write when the bytes will be written back, so that a read-modify-write
    /// faults before it reads.
    /// </param>
    /// <param name="fault">The event to deliver when false is returned: #PF, or #GP(0) for a non-canonical address.</param>
    /// <returns>False when the access faults. Addresses without RAM read as all ones.</returns>
    public bool TryRead(ulong address, Span<byte> destination, PageAccess access, out GuestEvent fault)
    {
        if (Chunk(address, destination.Length) == destination.Length)
        {
            if (!TryTranslate(address, access, out ulong physical, out fault))
            {
                return false;
            }

            ReadPhysical(physical, destination);
            return true;
        }

        if (!TryProbe(address, destination.Length, access, out fault))
        {
            return false;
        }

        for (int done = 0; done < destination.Length; )
        {
            ulong at = address + (ulong)done;
            int chunk = Chunk(at, destination.Length - done);
            if (!TryTranslate(at, access, out ulong physical, out fault))
            {
                return false;
            }

            ReadPhysical(physical, destination.Slice(done, chunk));
            done += chunk;
        }

        return true;
    }

    /// <summary>Writes bytes to linear memory: all of them or, when any page faults, none.</summary>
    /// <param name="address">Linear address.</param>
    /// <param name="source">The bytes.</param>
    /// <param name="access">User for CPL 3; Write is added.</param>
    /// <param name="fault">The event to deliver when false is returned.</param>
    public bool TryWrite(ulong address, ReadOnlySpan<byte> source, PageAccess access, out GuestEvent fault)
    {
        access |= PageAccess.Write;
        if (Chunk(address, source.Length) == source.Length)
        {
            if (!TryTranslate(address, access, out ulong physical, out fault))
            {
                return false;
            }

            WritePhysical(physical, source);
            return true;
        }

        if (!TryProbe(address, source.Length, access, out fault))
        {
            return false;
        }

        for (int done = 0; done < source.Length; )
        {
            ulong at = address + (ulong)done;
            int chunk = Chunk(at, source.Length - done);

            // Probed above; a first chunk that overwrites the tables of the second ends like a fault, as on hardware.
            if (!TryTranslate(at, access, out ulong physical, out fault))
            {
                return false;
            }

            WritePhysical(physical, source.Slice(done, chunk));
            done += chunk;
        }

        return true;
    }

    /// <summary>
    /// Whether an access of this length would succeed; changes nothing, not even Accessed bits. In a transaction no frame that
    /// the access needs can turn out to be absent afterwards.
    /// </summary>
    public bool TryProbe(ulong address, int length, PageAccess access, out GuestEvent fault)
    {
        fault = default;
        for (int done = 0; done < length; )
        {
            ulong at = address + (ulong)done;
            if (!TryTranslate(at, access, out ulong physical, out fault, commit: false))
            {
                return false;
            }

            if (memory.Contains(physical, 1))
            {
                _ = memory.Touch(physical);
            }

            done += Chunk(at, length - done);
        }

        return true;
    }

    /// <summary>Whether an access inside one page would succeed and reach RAM; changes nothing.</summary>
    internal bool ReachesRam(ulong address, int length, PageAccess access) =>
        TryTranslate(address, access, out ulong physical, out _, commit: false)
        && memory.Contains(physical, (ulong)length);

    /// <summary>Reads one little-endian value; see <see cref="TryRead(ulong, Span{byte}, PageAccess, out GuestEvent)"/>.</summary>
    public bool TryRead<T>(ulong address, PageAccess access, out T value, out GuestEvent fault)
        where T : unmanaged
    {
        T local = default;
        bool ok = TryRead(address, new Span<byte>(&local, sizeof(T)), access, out fault);
        value = local;
        return ok;
    }

    /// <summary>Writes one little-endian value; see <see cref="TryWrite(ulong, ReadOnlySpan{byte}, PageAccess, out GuestEvent)"/>.</summary>
    public bool TryWrite<T>(ulong address, T value, PageAccess access, out GuestEvent fault)
        where T : unmanaged => TryWrite(address, new ReadOnlySpan<byte>(&value, sizeof(T)), access, out fault);

    /// <summary>Translates one linear address for one access, with Accessed and Dirty updates unless told otherwise.</summary>
    /// <returns>False with the event to deliver: #PF, or #GP(0) for a non-canonical address.</returns>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool TryTranslate(
        ulong address,
        PageAccess access,
        out ulong physical,
        out GuestEvent fault,
        bool commit = true
    )
    {
        if (!PageWalker.IsCanonical(address))
        {
            physical = 0;
            fault = GuestEvent.Exception(Vector.GeneralProtection);
            return false;
        }

        Translation t = PageWalker.Walk(cpu, memory, address, access, commit);
        physical = t.PhysicalAddress;
        fault = t.Fault ? GuestEvent.PageFault(address, t.ErrorCode) : default;
        return !t.Fault;
    }

    private static int Chunk(ulong address, int length) =>
        (int)Math.Min((ulong)length, GuestMemory.PageSize - (address & (GuestMemory.PageSize - 1)));

    // RAM is whole pages, so what lies within one page is all RAM or all absent.
    private void ReadPhysical(ulong physical, Span<byte> destination)
    {
        if (memory.Contains(physical, (ulong)destination.Length))
        {
            memory.Read(physical, destination);
        }
        else
        {
            _absent.Read(physical, destination, cpu.Rip);
        }
    }

    private void WritePhysical(ulong physical, ReadOnlySpan<byte> source)
    {
        if (memory.Contains(physical, (ulong)source.Length))
        {
            memory.Write(physical, source);
        }
        else
        {
            _absent.Write(physical, source, cpu.Rip);
        }
    }
}
