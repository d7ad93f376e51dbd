using System.Runtime.InteropServices;

namespace VirtBench.Vmm.Disks;

/// <summary>A disk in the VMM's own memory: zeros, or content that a seed determines. It is gone with the VM.</summary>
public sealed class RamStorage : IBlockStorage
{
    /// <summary>Most bytes a disk in memory may have: 16 GiB, as guest RAM.</summary>
    public const ulong MaximumBytes = 16UL << 30;

    private const int ChunkBytes = 1 << 20;

    private readonly byte[]?[] _chunks;
    private readonly ulong? _seed;

    /// <summary>Creates a disk; its memory is taken piece by piece, when a piece is first touched.</summary>
    /// <param name="bytes">Capacity: whole MiB up to 16 GiB.</param>
    /// <param name="seed">Content: see <see cref="Content"/>; null for zeros.</param>
    /// <param name="readOnly">Nothing can be written.</param>
    public RamStorage(ulong bytes, ulong? seed = null, bool readOnly = false)
    {
        if (bytes is 0 or > MaximumBytes || bytes % ChunkBytes != 0)
        {
            throw new ArgumentOutOfRangeException(
                nameof(bytes),
                bytes,
                "a disk in memory is 1 MiB to 16 GiB in whole MiB"
            );
        }

        _chunks = new byte[bytes / ChunkBytes][];
        _seed = seed;
        Sectors = bytes / IBlockStorage.SectorSize;
        IsReadOnly = readOnly;
    }

    /// <inheritdoc/>
    public ulong Sectors { get; }

    /// <inheritdoc/>
    public bool IsReadOnly { get; }

    /// <summary>What a seeded disk holds at first: little-endian quadword number <paramref name="index"/>, by SplitMix64.</summary>
    public static ulong Content(ulong seed, ulong index) => SplitMix64.At(seed, index);

    /// <inheritdoc/>
    public void Read(ulong sector, Span<byte> destination)
    {
        ulong offset = sector * IBlockStorage.SectorSize;
        while (destination.Length > 0)
        {
            Span<byte> part = Part(offset, destination.Length);
            part.CopyTo(destination);
            destination = destination[part.Length..];
            offset += (ulong)part.Length;
        }
    }

    /// <inheritdoc/>
    public void Write(ulong sector, ReadOnlySpan<byte> source)
    {
        ulong offset = sector * IBlockStorage.SectorSize;
        while (source.Length > 0)
        {
            Span<byte> part = Part(offset, source.Length);
            source[..part.Length].CopyTo(part);
            source = source[part.Length..];
            offset += (ulong)part.Length;
        }
    }

    private Span<byte> Part(ulong offset, int length)
    {
        int within = (int)(offset % ChunkBytes);
        return Chunk((int)(offset / ChunkBytes)).AsSpan(within, Math.Min(length, ChunkBytes - within));
    }

    private byte[] Chunk(int number)
    {
        if (_chunks[number] is { } chunk)
        {
            return chunk;
        }

        chunk = new byte[ChunkBytes];
        if (_seed is { } seed)
        {
            Span<ulong> words = MemoryMarshal.Cast<byte, ulong>(chunk.AsSpan());
            ulong first = (ulong)number * (ulong)words.Length;
            for (int i = 0; i < words.Length; i++)
            {
                words[i] = Content(seed, first + (ulong)i);
            }
        }

        return _chunks[number] = chunk;
    }

    /// <inheritdoc/>
    public void Flush() { }

    /// <inheritdoc/>
    public void Dispose() { }
}
