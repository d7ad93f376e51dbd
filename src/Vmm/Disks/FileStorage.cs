using Microsoft.Win32.SafeHandles;

namespace VirtBench.Vmm.Disks;

/// <summary>A file of the host's, sector 0 at offset 0. What is behind its last whole sector is not part of the disk.</summary>
/// <remarks>
/// The size is taken once. A file that somebody shortens meanwhile gives errors for what is gone; it is never made longer again by
/// a write, which would leave a hole of zeros where data had been.
/// </remarks>
public sealed class FileStorage : IBlockStorage
{
    private readonly SafeFileHandle _file;
    private readonly string _path;

    /// <summary>Opens an existing file. One that is written is closed to other programs that ask (flock).</summary>
    /// <param name="path">The file.</param>
    /// <param name="readOnly">Open it for reading only.</param>
    /// <exception cref="DiskUnavailableException">The file cannot serve as a disk.</exception>
    public FileStorage(string path, bool readOnly)
    {
        _path = path;
        IsReadOnly = readOnly;
        if (Directory.Exists(path))
        {
            throw new DiskUnavailableException($"disk {path} is a directory: name a file");
        }

        try
        {
            // Asked before opening: opening a pipe would wait for a writer. Pipes and devices have length 0.
            if (new FileInfo(path).Length < IBlockStorage.SectorSize)
            {
                throw new DiskUnavailableException(
                    $"disk {path} is empty or not a regular file: it needs at least one sector of {IBlockStorage.SectorSize} bytes"
                );
            }

            _file = File.OpenHandle(
                path,
                FileMode.Open,
                readOnly ? FileAccess.Read : FileAccess.ReadWrite,
                readOnly ? FileShare.ReadWrite : FileShare.None
            );
        }
        catch (Exception e) when (e is FileNotFoundException or DirectoryNotFoundException)
        {
            throw new DiskUnavailableException(
                $"disk {path} does not exist: create it, for instance with truncate -s 64M"
            );
        }
        catch (UnauthorizedAccessException)
        {
            throw new DiskUnavailableException(
                readOnly
                    ? $"disk {path} cannot be read: permission denied"
                    : $"disk {path} cannot be written: permission denied; change that, or attach it read-only"
            );
        }
        catch (Exception e) when (e is IOException or ArgumentException or NotSupportedException)
        {
            throw new DiskUnavailableException($"disk {path} cannot be opened: {e.Message}");
        }

        Sectors = (ulong)RandomAccess.GetLength(_file) / IBlockStorage.SectorSize;
    }

    /// <inheritdoc/>
    public ulong Sectors { get; }

    /// <inheritdoc/>
    public bool IsReadOnly { get; }

    /// <inheritdoc/>
    public void Read(ulong sector, Span<byte> destination)
    {
        long offset = (long)(sector * IBlockStorage.SectorSize);
        int done = 0;
        try
        {
            while (done < destination.Length)
            {
                int read = RandomAccess.Read(_file, destination[done..], offset + done);
                if (read == 0)
                {
                    throw Shorter(First(sector, done));
                }

                done += read;
            }
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ObjectDisposedException)
        {
            throw new DiskErrorException($"disk {_path} cannot be read: {e.Message}", First(sector, done));
        }
    }

    /// <inheritdoc/>
    public void Write(ulong sector, ReadOnlySpan<byte> source)
    {
        long offset = (long)(sector * IBlockStorage.SectorSize);
        try
        {
            long length = RandomAccess.GetLength(_file);
            if (offset + source.Length > length)
            {
                throw Shorter(Math.Max(sector, (ulong)length / IBlockStorage.SectorSize));
            }

            RandomAccess.Write(_file, source, offset);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ObjectDisposedException)
        {
            throw new DiskErrorException($"disk {_path} cannot be written: {e.Message}", sector);
        }
    }

    /// <inheritdoc/>
    public void Flush()
    {
        try
        {
            RandomAccess.FlushToDisk(_file);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ObjectDisposedException)
        {
            throw new DiskErrorException($"disk {_path} cannot be flushed: {e.Message}", 0);
        }
    }

    private static ulong First(ulong sector, int done) => sector + (ulong)(done / IBlockStorage.SectorSize);

    private DiskErrorException Shorter(ulong sector) =>
        new($"disk {_path} has become shorter than the {Sectors} sectors it had: sector {sector} is gone", sector);

    /// <inheritdoc/>
    public void Dispose() => _file.Dispose();
}
