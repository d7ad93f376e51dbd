namespace VirtBench.Workloads;

/// <summary>
/// I/O-intensive: the disk is in memory and takes no time of its own, so the processor is the limit, and what virtualization costs shows in
/// full. The ATA driver has one request at a time, virtio-blk all of a unit's.
/// </summary>
public sealed class DiskStream : DiskWorkload
{
    /// <inheritdoc/>
    public override string Id => "disk-stream";

    /// <inheritdoc/>
    public override string Description =>
        "reads k blocks of 4 KiB per unit from a disk that takes no time, by ATA PIO or in one batch by virtio-blk";

    /// <inheritdoc/>
    public override int MaximumTrapsPerUnit => DiskArea.MaximumDepth;

    /// <inheritdoc/>
    public override int DefaultFiller => 20_000;

    /// <inheritdoc/>
    private protected override int Depth => DiskArea.MaximumDepth;

    /// <inheritdoc/>
    private protected override int BytesLookedAt => DiskBlock.Bytes;

    /// <inheritdoc/>
    private protected override double ServiceNanoseconds => 0;

    /// <inheritdoc/>
    private protected override double Jitter => 0;
}
