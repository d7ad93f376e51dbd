using System.Buffers.Binary;
using System.Security.Cryptography;
using VirtBench.Vmm.Boot;

namespace VirtBench.Measurement;

/// <summary>
/// SHA-256 of what a guest image puts into memory: entry, then of each segment its guest-physical address, size in memory,
/// length of its content (8 bytes each, little endian) and the content. The name does not count.
/// </summary>
public static class GuestImageHash
{
    /// <summary>The hash in lower-case hexadecimal.</summary>
    public static string Of(GuestImage image)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        Append(hash, image.Entry);
        foreach (ImageSegment segment in image.Segments)
        {
            Append(hash, segment.PhysicalAddress);
            Append(hash, segment.MemorySize);
            Append(hash, (ulong)segment.Content.Length);
            hash.AppendData(segment.Content.Span);
        }

        return Convert.ToHexStringLower(hash.GetHashAndReset());
    }

    private static void Append(IncrementalHash hash, ulong value)
    {
        Span<byte> bytes = stackalloc byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, value);
        hash.AppendData(bytes);
    }
}
