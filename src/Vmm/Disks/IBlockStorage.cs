namespace VirtBench.Vmm.Disks;

/// <summary>
/// What a disk keeps its sectors in. Called by one thread at a time; the range of a read or write lies inside the capacity.
/// </summary>
public interface IBlockStorage : IDisposable
{
    /// <summary>Bytes in a sector.</summary>
    const int SectorSize = 512;

    /// <summary>Capacity in sectors of 512 bytes; constant.</summary>
    ulong Sectors { get; }

    /// <summary>Nothing can be written.</summary>
    bool IsReadOnly { get; }

    /// <summary>Reads whole sectors.</summary>
    /// <exception cref="DiskErrorException">The host cannot read them.</exception>
    void Read(ulong sector, Span<byte> destination);

    /// <summary>Writes whole sectors.</summary>
    /// <exception cref="DiskErrorException">The host cannot write them.</exception>
    void Write(ulong sector, ReadOnlySpan<byte> source);

    /// <summary>Returns when everything written so far is where a power failure of the host does not reach it.</summary>
    /// <exception cref="DiskErrorException">The host cannot.</exception>
    void Flush();
}

/// <summary>The host could not do what the guest asked of its disk: an I/O error to the guest, one line to the user.</summary>
/// <param name="message">The line.</param>
/// <param name="sector">First sector that was not read or written.</param>
public sealed class DiskErrorException(string message, ulong sector) : Exception(message)
{
    /// <summary>First sector that was not read or written.</summary>
    public ulong Sector { get; } = sector;
}

/// <summary>A disk cannot be had: one line says why and what to do.</summary>
public sealed class DiskUnavailableException(string message) : Exception(message);
