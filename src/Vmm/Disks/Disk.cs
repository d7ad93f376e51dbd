namespace VirtBench.Vmm.Disks;

/// <summary>
/// A disk to attach to a VM (<see cref="Execution.VirtualMachine.AttachDisk"/>), which then owns it. The guest sees one and the same
/// disk through two front ends, ATA PIO on the primary channel and virtio-blk, and picks its driver.
/// </summary>
/// <param name="storage">What holds the sectors; disposed with the disk.</param>
/// <param name="timing">How long it takes; null for as fast as the host is.</param>
public sealed class Disk(IBlockStorage storage, DiskTiming? timing = null) : IDisposable
{
    /// <summary>What holds the sectors.</summary>
    public IBlockStorage Storage { get; } = storage;

    /// <summary>How long it takes for a request.</summary>
    public DiskTiming Timing { get; } = Valid(timing ?? new DiskTiming());

    private static DiskTiming Valid(DiskTiming timing) =>
        timing.MeanNanoseconds is not (>= 0 and <= 1e11)
            ? throw new ArgumentOutOfRangeException(nameof(timing), "a mean service time is 0 to 100 s")
        : timing.Jitter is not (>= 0 and <= 1)
            ? throw new ArgumentOutOfRangeException(nameof(timing), "jitter is a fraction, 0 to 1")
        : timing.QueueDepth is < 1 or > DiskTiming.MaximumQueueDepth
            ? throw new ArgumentOutOfRangeException(
                nameof(timing),
                $"a queue depth is 1 to {DiskTiming.MaximumQueueDepth}"
            )
        : timing;

    /// <inheritdoc/>
    public void Dispose() => Storage.Dispose();
}
