namespace VirtBench.Vmm.Disks;

/// <summary>What a request is to the account.</summary>
internal enum DiskOperation : byte
{
    Read,
    Write,
    Flush,

    /// <summary>Neither: answered without the storage.</summary>
    Other,
}

/// <summary>A request on its way through the service. Only one context at a time has it.</summary>
internal abstract class DiskRequest(DiskFrontEnd frontEnd)
{
    /// <summary>Who answers the guest.</summary>
    public DiskFrontEnd FrontEnd { get; } = frontEnd;

    /// <summary>What it counts as.</summary>
    public DiskOperation Operation { get; set; }

    /// <summary>Bytes that it moves when it succeeds.</summary>
    public long Bytes { get; set; }

    /// <summary>Clock ticks at which it was seen.</summary>
    public ulong Seen { get; set; }

    /// <summary>Clock ticks at which its service is over.</summary>
    public ulong Due { get; set; }

    /// <summary>It ends with an error.</summary>
    public bool Failed { get; set; }

    /// <summary>First sector that the storage could not read or write.</summary>
    public ulong ErrorSector { get; set; }

    /// <summary>Does the input or output, in the service's context.</summary>
    /// <exception cref="DiskErrorException">The storage cannot.</exception>
    public abstract void Execute(IBlockStorage storage);
}
