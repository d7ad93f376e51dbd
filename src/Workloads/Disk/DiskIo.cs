namespace VirtBench.Workloads;

/// <summary>
/// I/O-bound: the disk takes 1 ms for a request, of which there is one at a time, and the guest sleeps until it is over. The same exits as in
/// <see cref="DiskStream"/> hide in waiting. The guest looks at the start of each block only, and has little else to do.
/// </summary>
public sealed class DiskIo : DiskWorkload
{
    /// <inheritdoc/>
    public override string Id => "disk-io";

    /// <inheritdoc/>
    public override string Description =>
        "reads k blocks of 4 KiB per unit, one after the other, from a disk that takes 1 ms ± 10 % for each, and sleeps meanwhile";

    /// <inheritdoc/>
    public override int MaximumTrapsPerUnit => 16;

    /// <inheritdoc/>
    public override int DefaultFiller => 2_000;

    /// <inheritdoc/>
    private protected override int Depth => 1;

    /// <inheritdoc/>
    private protected override int BytesLookedAt => 64;

    /// <inheritdoc/>
    private protected override double ServiceNanoseconds => 1e6;

    /// <inheritdoc/>
    private protected override double Jitter => 0.1;
}
