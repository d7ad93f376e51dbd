using VirtBench.Vmm.Disks;

namespace VirtBench.Measurement;

/// <summary>The disk that a guest program is to have: a file, or memory.</summary>
public sealed record GuestDisk
{
    /// <summary>A file of the host's; null for a disk in memory.</summary>
    public string? Path { get; init; }

    /// <summary>The file is opened for reading only.</summary>
    public bool IsReadOnly { get; init; }

    /// <summary>Bytes of a disk in memory, which holds zeros at first: whole MiB up to 16 GiB.</summary>
    public ulong RamBytes { get; init; }

    /// <summary>How long it takes for a request.</summary>
    public DiskTiming Timing { get; init; } = new();

    /// <summary>Opens it.</summary>
    /// <exception cref="DiskUnavailableException">The file cannot serve as a disk: one line says why and what to do.</exception>
    public Disk Open()
    {
        IBlockStorage storage = Path is { } path ? new FileStorage(path, IsReadOnly) : new RamStorage(RamBytes);
        return new Disk(storage, Timing);
    }
}
