namespace VirtBench.Vmm.Disks;

/// <summary>What a disk has done for its guest so far, by both front ends.</summary>
/// <param name="Requests">Requests seen: ATA commands that move data or flush, virtio requests that were understood.</param>
/// <param name="Completions">Requests completed, failed ones among them.</param>
/// <param name="Errors">Completed with an error, whosever fault it was.</param>
/// <param name="BytesRead">Bytes given to the guest.</param>
/// <param name="BytesWritten">Bytes taken from it.</param>
/// <param name="Flushes">Flushes that reached the storage.</param>
/// <param name="Interrupts">Times that an interrupt line rose: for ATA one a DRQ block.</param>
/// <param name="LatencyTotalNanoseconds">Sum over completions of the time from a request's being seen, on the disk's clock.</param>
/// <param name="LatencyMaximumNanoseconds">The longest of these times.</param>
public sealed record DiskStatistics(
    long Requests,
    long Completions,
    long Errors,
    long BytesRead,
    long BytesWritten,
    long Flushes,
    long Interrupts,
    double LatencyTotalNanoseconds,
    double LatencyMaximumNanoseconds
)
{
    /// <summary>What has been added since an earlier account of the same disk; the maximum stays that of its life.</summary>
    public DiskStatistics Since(DiskStatistics earlier) =>
        new(
            Requests - earlier.Requests,
            Completions - earlier.Completions,
            Errors - earlier.Errors,
            BytesRead - earlier.BytesRead,
            BytesWritten - earlier.BytesWritten,
            Flushes - earlier.Flushes,
            Interrupts - earlier.Interrupts,
            LatencyTotalNanoseconds - earlier.LatencyTotalNanoseconds,
            LatencyMaximumNanoseconds
        );
}
