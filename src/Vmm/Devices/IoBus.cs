using System.Buffers.Binary;

namespace VirtBench.Vmm.Devices;

/// <summary>
/// The 64 Ki I/O ports. A port without a device reads all ones; writes to it are dropped and counted, or, when strict, end
/// the guest with an error naming port and RIP.
/// </summary>
public sealed class IoBus
{
    private readonly IIoDevice?[] _devices = new IIoDevice?[65536];

    /// <summary>End the guest when it touches a port without a device.</summary>
    public bool Strict { get; init; }

    /// <summary>Accesses to ports without a device so far.</summary>
    public long UnclaimedAccesses { get; private set; }

    /// <summary>Puts a device on ports <paramref name="first"/> … <paramref name="first"/> + <paramref name="count"/> − 1.</summary>
    /// <exception cref="InvalidOperationException">Another device is there.</exception>
    public void Attach(IIoDevice device, ushort first, int count)
    {
        for (int port = first; port < first + count; port++)
        {
            if (_devices[port] is not null)
            {
                throw new InvalidOperationException($"I/O port 0x{port:X} has a device already");
            }

            _devices[port] = device;
        }
    }

    /// <summary>IN from a port.</summary>
    /// <param name="port">Port.</param>
    /// <param name="size">1, 2 or 4 bytes.</param>
    /// <param name="rip">For the error message.</param>
    /// <exception cref="Execution.GuestFailureException">Strict, and nobody is there.</exception>
    public uint Read(ushort port, int size, ulong rip)
    {
        if (_devices[port] is { } device)
        {
            return device.Read(port, size);
        }

        Unclaimed("IN from", port, rip);
        return size == 4 ? uint.MaxValue : (1u << (8 * size)) - 1;
    }

    /// <summary>OUT to a port.</summary>
    /// <param name="port">Port.</param>
    /// <param name="size">1, 2 or 4 bytes.</param>
    /// <param name="value">Value, zero above its size.</param>
    /// <param name="rip">For the error message.</param>
    /// <exception cref="Execution.GuestFailureException">Strict, and nobody is there.</exception>
    public void Write(ushort port, int size, uint value, ulong rip)
    {
        if (_devices[port] is { } device)
        {
            device.Write(port, size, value);
            return;
        }

        Unclaimed("OUT to", port, rip);
    }

    /// <summary>As <see cref="Read"/>, many times: what REP INS does.</summary>
    /// <param name="port">Port.</param>
    /// <param name="size">1, 2 or 4 bytes.</param>
    /// <param name="destination">Receives the values, little endian; a multiple of the size.</param>
    /// <param name="rip">For the error message.</param>
    /// <exception cref="Execution.GuestFailureException">Strict, and nobody is there.</exception>
    public void ReadString(ushort port, int size, Span<byte> destination, ulong rip)
    {
        if (_devices[port] is { } device)
        {
            device.ReadString(port, size, destination);
            return;
        }

        for (int done = 0; done < destination.Length; done += size)
        {
            Store(destination[done..], size, Read(port, size, rip));
        }
    }

    /// <summary>As <see cref="Write"/>, many times: what REP OUTS does.</summary>
    /// <param name="port">Port.</param>
    /// <param name="size">1, 2 or 4 bytes.</param>
    /// <param name="source">The values, little endian; a multiple of the size.</param>
    /// <param name="rip">For the error message.</param>
    /// <exception cref="Execution.GuestFailureException">Strict, and nobody is there.</exception>
    public void WriteString(ushort port, int size, ReadOnlySpan<byte> source, ulong rip)
    {
        if (_devices[port] is { } device)
        {
            device.WriteString(port, size, source);
            return;
        }

        for (int done = 0; done < source.Length; done += size)
        {
            Write(port, size, Load(source[done..], size), rip);
        }
    }

    internal static void Store(Span<byte> destination, int size, uint value)
    {
        switch (size)
        {
            case 1:
                destination[0] = (byte)value;
                break;
            case 2:
                BinaryPrimitives.WriteUInt16LittleEndian(destination, (ushort)value);
                break;
            default:
                BinaryPrimitives.WriteUInt32LittleEndian(destination, value);
                break;
        }
    }

    internal static uint Load(ReadOnlySpan<byte> source, int size) =>
        size switch
        {
            1 => source[0],
            2 => BinaryPrimitives.ReadUInt16LittleEndian(source),
            _ => BinaryPrimitives.ReadUInt32LittleEndian(source),
        };

    private void Unclaimed(string what, ushort port, ulong rip)
    {
        UnclaimedAccesses++;
        if (Strict)
        {
            throw new Execution.GuestFailureException(
                $"{what} port 0x{port:X}, which has no device, at RIP 0x{rip:X} (--strict)"
            );
        }
    }
}
