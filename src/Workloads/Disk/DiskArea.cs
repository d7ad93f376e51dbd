using VirtBench.Vmm.Boot;

namespace VirtBench.Workloads;

/// <summary>Where guests that use a disk keep their driver's memory and their buffers: identity-mapped, behind <see cref="SystemArea"/>.</summary>
internal static class DiskArea
{
    /// <summary>The driver's own memory, <see cref="DiskDriver.MemoryBytes"/>.</summary>
    public const ulong Driver = 0x1A_0000;

    /// <summary>What the program around the driver keeps. One page.</summary>
    public const ulong State = Driver + DiskDriver.MemoryBytes;

    /// <summary>Buffers, a page each.</summary>
    public const ulong Buffers = 0x1B_0000;

    /// <summary>Buffers that there are.</summary>
    public const int MaximumDepth = 32;

    /// <summary>All of it: zeros but for what <see cref="State"/> begins with.</summary>
    public static IEnumerable<ImageSegment> Segments(ReadOnlyMemory<byte> state = default)
    {
        yield return new(Driver, Array.Empty<byte>(), DiskDriver.MemoryBytes, Executable: false);
        yield return new(State, state, Buffers + ((ulong)MaximumDepth * DiskBlock.Bytes) - State, Executable: false);
    }
}
