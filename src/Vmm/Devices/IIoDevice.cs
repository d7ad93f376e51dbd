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
}
