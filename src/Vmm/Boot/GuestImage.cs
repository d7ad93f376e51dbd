namespace VirtBench.Vmm.Boot;

/// <summary>Bytes to place at a guest-physical address.</summary>
/// <param name="PhysicalAddress">Where the first byte goes.</param>
/// <param name="Content">The bytes.</param>
/// <param name="MemorySize">Bytes the segment occupies; what is beyond the content stays zero.</param>
/// <param name="Executable">The segment holds code.</param>
public sealed record ImageSegment(
    ulong PhysicalAddress,
    ReadOnlyMemory<byte> Content,
    ulong MemorySize,
    bool Executable
);

/// <summary>A guest program ready to be loaded, whether assembled by a workload or read from an ELF file.</summary>
/// <param name="Name">For messages.</param>
/// <param name="Entry">Where execution starts: a linear address, which is identity-mapped at boot.</param>
/// <param name="Segments">What goes where.</param>
public sealed record GuestImage(string Name, ulong Entry, IReadOnlyList<ImageSegment> Segments);

/// <summary>An image that cannot be a guest: not ELF64, truncated, segments outside RAM… The message is one line.</summary>
public sealed class GuestImageException(string message) : Exception(message);
