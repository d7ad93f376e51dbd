namespace VirtBench.Vmm.Devices;

/// <summary>A device behind guest-physical addresses where there is no RAM. Called on the vCPU thread.</summary>
public interface IMmioDevice
{
    /// <summary>A read that lies inside the device's range.</summary>
    /// <param name="offset">Bytes from the range's start.</param>
    /// <param name="destination">Receives every byte of it.</param>
    void Read(ulong offset, Span<byte> destination);

    /// <summary>A write that lies inside the device's range.</summary>
    /// <param name="offset">Bytes from the range's start.</param>
    /// <param name="source">The bytes.</param>
    void Write(ulong offset, ReadOnlySpan<byte> source);
}
