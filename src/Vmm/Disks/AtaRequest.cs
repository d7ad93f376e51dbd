namespace VirtBench.Vmm.Disks;

/// <summary>An ATA command that needs the storage.</summary>
internal sealed class AtaRequest(AtaChannel channel) : DiskRequest(channel)
{
    /// <summary>First sector.</summary>
    public ulong Sector { get; init; }

    /// <summary>The data, of which <see cref="Length"/> bytes count.</summary>
    public byte[] Buffer { get; init; } = [];

    /// <summary>Bytes of data.</summary>
    public int Length { get; init; }

    /// <summary>Sectors in a DRQ block.</summary>
    public int BlockSectors { get; init; } = 1;

    /// <summary>The guest gives data.</summary>
    public bool TakesData { get; init; }

    /// <inheritdoc/>
    public override void Execute(IBlockStorage storage)
    {
        switch (Operation)
        {
            case DiskOperation.Read:
                storage.Read(Sector, Buffer.AsSpan(0, Length));
                break;
            case DiskOperation.Write:
                storage.Write(Sector, Buffer.AsSpan(0, Length));
                break;
            case DiskOperation.Flush:
                storage.Flush();
                break;
        }
    }
}
