using VirtBench.Vmm.Disks;

namespace VirtBench.Vmm.Execution;

/// <summary>Input and output of a guest at one moment, or over a time: how long its CPU slept, and what its disk did.</summary>
/// <param name="WaitingNanoseconds">
/// Time on the engine's clock that the virtual CPU was halted, until the VMM was back from waiting. The rest of the time is CPU time: the guest's
/// own and what virtualizing it took.
/// </param>
/// <param name="Disk">The disk's account; null without one.</param>
public sealed record IoStatistics(double WaitingNanoseconds, DiskStatistics? Disk)
{
    /// <summary>What has been added since an earlier account of the same VM; a maximum stays that of the VM's life.</summary>
    public IoStatistics Since(IoStatistics earlier) =>
        new(
            WaitingNanoseconds - earlier.WaitingNanoseconds,
            Disk is not null && earlier.Disk is not null ? Disk.Since(earlier.Disk) : Disk
        );
}
