using VirtBench.Vmm.Disks;

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
public sealed record GuestImage(string Name, ulong Entry, IReadOnlyList<ImageSegment> Segments)
{
    /// <summary>The disk that it finds unless another one is attached; null when it needs none.</summary>
    public DiskRequirement? Disk { get; init; }

    /// <summary>Checks what does not depend on the VM: sizes, overlaps, and that the entry lies in code.</summary>
    /// <exception cref="GuestImageException">Something is wrong; the message says what.</exception>
    internal void CheckSegments()
    {
        if (Segments.Count == 0)
        {
            throw new GuestImageException($"{Name}: there is nothing to load");
        }

        ImageSegment[] ordered = [.. Segments.OrderBy(segment => segment.PhysicalAddress)];
        ulong end = 0;
        bool entryIsCode = false;
        foreach (ImageSegment segment in ordered)
        {
            ulong start = segment.PhysicalAddress;
            if ((ulong)segment.Content.Length > segment.MemorySize)
            {
                throw new GuestImageException(
                    $"{Name}: the segment at 0x{start:X} has more content ({segment.Content.Length} bytes) than memory "
                        + $"(0x{segment.MemorySize:X} bytes)"
                );
            }

            if (segment.MemorySize > ulong.MaxValue - start)
            {
                throw new GuestImageException(
                    $"{Name}: the segment at 0x{start:X} of 0x{segment.MemorySize:X} bytes reaches beyond the address space"
                );
            }

            if (start < end)
            {
                throw new GuestImageException(
                    $"{Name}: the segment at 0x{start:X} overlaps the one before, which ends at 0x{end:X}"
                );
            }

            end = start + segment.MemorySize;
            entryIsCode |= segment.Executable && Entry >= start && Entry < end;
        }

        if (!entryIsCode)
        {
            throw new GuestImageException($"{Name}: the entry 0x{Entry:X} lies in no executable segment");
        }
    }
}

/// <summary>An image that cannot be a guest: not ELF64, truncated, segments outside RAM… The message is one line.</summary>
public sealed class GuestImageException(string message) : Exception(message);
