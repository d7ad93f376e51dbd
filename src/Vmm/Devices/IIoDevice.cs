namespace VirtBench.Vmm.Devices;

/// <summary>A device behind I/O ports.</summary>
public interface IIoDevice
{
    /// <summary>IN: returns the value in the low <paramref name="size"/> bytes.</summary>
    /// <param name="port">Port number, within the range registered.</param>
    /// <param name="size">1, 2 or 4 bytes.</param>
    uint Read(ushort port, int size);

    /// <summary>OUT.</summary>
    /// <param name="port">Port number.</param>
    /// <param name="size">1, 2 or 4 bytes.</param>
    /// <param name="value">The value; bits above the size are zero.</param>
    void Write(ushort port, int size, uint value);

    /// <summary>So many INs one after the other. A device with a data port may have a faster way.</summary>
    /// <param name="port">Port number.</param>
    /// <param name="size">1, 2 or 4 bytes.</param>
    /// <param name="destination">Receives the values, little endian; a multiple of the size.</param>
    void ReadString(ushort port, int size, Span<byte> destination)
    {
        for (; destination.Length > 0; destination = destination[size..])
        {
            IoBus.Store(destination, size, Read(port, size));
        }
    }

    /// <summary>So many OUTs one after the other.</summary>
    /// <param name="port">Port number.</param>
    /// <param name="size">1, 2 or 4 bytes.</param>
    /// <param name="source">The values, little endian; a multiple of the size.</param>
    void WriteString(ushort port, int size, ReadOnlySpan<byte> source)
    {
        for (; source.Length > 0; source = source[size..])
        {
            Write(port, size, IoBus.Load(source, size));
        }
    }
}
