namespace VirtBench.Vmm.Disks;

/// <summary>How long a disk takes for a request, whatever its storage: nothing by default, as fast as the host.</summary>
public sealed record DiskTiming
{
    /// <summary>Most requests in service at once that can be asked for.</summary>
    public const int MaximumQueueDepth = 1024;

    /// <summary>Mean service time of a request in nanoseconds. Storage that is slower makes a request late.</summary>
    public double MeanNanoseconds { get; init; }

    /// <summary>Service times are uniform in mean ± this fraction of it: 0 to 1.</summary>
    public double Jitter { get; init; }

    /// <summary>How many requests are in service at once; further ones wait in the order in which they were seen.</summary>
    public int QueueDepth { get; init; } = 32;

    /// <summary>What the jitter's sequence starts from.</summary>
    public ulong Seed { get; init; } = 1;

    /// <summary>
    /// Service time in nanoseconds of a request, counted from 0 in the order in which service begins: the same for the same
    /// seed on every host.
    /// </summary>
    public double ServiceNanoseconds(ulong number) =>
        MeanNanoseconds == 0 || Jitter == 0
            ? MeanNanoseconds
            : MeanNanoseconds * (1 + (Jitter * SplitMix64.SymmetricAt(Seed, number)));
}
