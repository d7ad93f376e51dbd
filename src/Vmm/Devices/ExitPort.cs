namespace VirtBench.Vmm.Devices;

/// <summary>Port 0xF4: a byte written there ends the guest with that status.</summary>
public sealed class ExitPort : IIoDevice
{
    /// <summary>The port.</summary>
    public const ushort Port = 0xF4;

    /// <summary>The status written, or null while the guest has not asked to end.</summary>
    public byte? Status { get; private set; }

    /// <summary>A guest is to be run anew.</summary>
    internal void Reset() => Status = null;

    /// <inheritdoc/>
    public uint Read(ushort port, int size) => size == 4 ? uint.MaxValue : (1u << (8 * size)) - 1;

    /// <inheritdoc/>
    public void Write(ushort port, int size, uint value) => Status ??= (byte)value;
}
