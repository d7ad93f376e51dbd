namespace VirtBench.Vmm.Devices;

/// <summary>A 16550 UART at COM1.</summary>
public sealed class SerialPort : IIoDevice
{
    /// <summary>First of its ports.</summary>
    public const ushort FirstPort = 0x3F8;

    /// <summary>How many ports it has.</summary>
    public const int PortCount = 8;

    /// <summary>Told of every byte the guest sends, on the vCPU's thread.</summary>
    public Action<byte>? Transmitted { get; set; }

    /// <inheritdoc/>
    public uint Read(ushort port, int size) => throw new NotImplementedException();

    /// <inheritdoc/>
    public void Write(ushort port, int size, uint value) => throw new NotImplementedException();
}
