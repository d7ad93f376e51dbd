namespace VirtBench.Vmm.Disks;

/// <summary>The disk that a guest program needs: in memory, with content that a seed determines.</summary>
/// <param name="Bytes">Capacity in bytes: whole MiB.</param>
/// <param name="Seed">Content, as <see cref="RamStorage.Content"/> has it; the sequence of service times starts from it too.</param>
/// <param name="ServiceNanoseconds">Mean service time of a request; 0 for as fast as the host is.</param>
/// <param name="Jitter">Service times are uniform in mean ± this fraction of it.</param>
/// <param name="QueueDepth">Requests in service at once.</param>
public sealed record DiskRequirement(
    ulong Bytes,
    ulong Seed,
    double ServiceNanoseconds = 0,
    double Jitter = 0,
    int QueueDepth = 32
)
{
    /// <summary>What the disk begins with, in whole sectors, instead of what the seed says.</summary>
    public ReadOnlyMemory<byte> Content { get; init; }

    /// <summary>Such a disk, new.</summary>
    public Disk Create()
    {
        var storage = new RamStorage(Bytes, Seed);
        storage.Write(0, Content.Span);
        return new Disk(
            storage,
            new DiskTiming
            {
                MeanNanoseconds = ServiceNanoseconds,
                Jitter = Jitter,
                QueueDepth = QueueDepth,
                Seed = Seed,
            }
        );
    }
}
