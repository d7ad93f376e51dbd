using System.Runtime.CompilerServices;
using VirtBench.Vmm.Cpu;

namespace VirtBench.Vmm.Memory;

/// <summary>
/// Reads and writes guest memory by linear address on behalf of an emulated instruction or an event delivery, with the
/// architecture's checks. Nothing is written before every byte's page has been checked, so an access that fails has
/// changed nothing.
/// </summary>
public sealed class GuestAddressSpace(VirtualCpu cpu, GuestMemory memory)
{
    /// <summary>
    /// Copies up to a page's worth of bytes from linear memory, across at most one page boundary per 4096 bytes.
    /// </summary>
    /// <param name="address">Linear address.</param>
    /// <param name="destination">Receives the bytes.</param>
    /// <param name="access">Read or Execute; add User for CPL 3.</param>
    /// <param name="fault">The event to deliver when false is returned: #PF, or #GP(0) for a non-canonical address.</param>
    /// <returns>False when the access faults. Addresses without RAM read as all ones.</returns>
    public bool TryRead(ulong address, Span<byte> destination, PageAccess access, out GuestEvent fault)
    {
        fault = default;
        for (int done = 0; done < destination.Length; )
        {
            ulong at = address + (ulong)done;
            int chunk = (int)Math.Min((ulong)(destination.Length - done), GuestMemory.PageSize - (at & 0xFFF));
            if (!TryTranslate(at, access, out ulong physical, out fault))
            {
                return false;
            }

            Span<byte> part = destination.Slice(done, chunk);
            if (memory.Contains(physical, (ulong)chunk))
            {
                memory.Read(physical, part);
            }
            else
            {
                part.Fill(0xFF);
            }

            done += chunk;
        }

        return true;
    }

    /// <summary>Writes bytes to linear memory: all of them or, when any page faults, none.</summary>
    /// <inheritdoc cref="TryRead(ulong, Span{byte}, PageAccess, out GuestEvent)"/>
    public bool TryWrite(ulong address, ReadOnlySpan<byte> source, PageAccess access, out GuestEvent fault)
    {
        fault = default;
        for (int done = 0; done < source.Length; )
        {
            ulong at = address + (ulong)done;
            if (!TryTranslate(at, access | PageAccess.Write, out _, out fault))
            {
                return false;
            }

            done += (int)Math.Min((ulong)(source.Length - done), GuestMemory.PageSize - (at & 0xFFF));
        }

        for (int done = 0; done < source.Length; )
        {
            ulong at = address + (ulong)done;
            int chunk = (int)Math.Min((ulong)(source.Length - done), GuestMemory.PageSize - (at & 0xFFF));
            Translation t = PageWalker.Walk(cpu, memory, at, access | PageAccess.Write);
            if (!t.Fault && memory.Contains(t.PhysicalAddress, (ulong)chunk))
            {
                memory.Write(t.PhysicalAddress, source.Slice(done, chunk));
            }

            done += chunk;
        }

        return true;
    }

    /// <summary>Reads one little-endian value; see <see cref="TryRead(ulong, Span{byte}, PageAccess, out GuestEvent)"/>.</summary>
    public unsafe bool TryRead<T>(ulong address, PageAccess access, out T value, out GuestEvent fault)
        where T : unmanaged
    {
        T local = default;
        bool ok = TryRead(address, new Span<byte>(&local, sizeof(T)), access, out fault);
        value = local;
        return ok;
    }

    /// <summary>Writes one little-endian value; see <see cref="TryWrite(ulong, ReadOnlySpan{byte}, PageAccess, out GuestEvent)"/>.</summary>
    public unsafe bool TryWrite<T>(ulong address, T value, PageAccess access, out GuestEvent fault)
        where T : unmanaged => TryWrite(address, new ReadOnlySpan<byte>(&value, sizeof(T)), access, out fault);

    /// <summary>Translates one linear address for one access, with Accessed and Dirty updates.</summary>
    /// <returns>False with the event to deliver: #PF, or #GP(0) for a non-canonical address.</returns>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool TryTranslate(ulong address, PageAccess access, out ulong physical, out GuestEvent fault)
    {
        if (!PageWalker.IsCanonical(address))
        {
            physical = 0;
            fault = GuestEvent.Exception(Vector.GeneralProtection);
            return false;
        }

        Translation t = PageWalker.Walk(cpu, memory, address, access);
        physical = t.PhysicalAddress;
        fault = t.Fault ? GuestEvent.PageFault(address, t.ErrorCode) : default;
        return !t.Fault;
    }
}
