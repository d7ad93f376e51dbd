using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Workloads;

/// <summary>
/// Filler alone. The image is the same for every k, so any slope over k that a sweep finds here is the harness's own error:
/// its null experiment. The checksum depends on filler, warm-up and units only.
/// </summary>
public sealed class Compute : SlottedWorkload
{
    /// <inheritdoc/>
    public override string Id => "compute";

    /// <inheritdoc/>
    public override string Description =>
        "arithmetic only, no sensitive instruction; the program is the same for every k: the harness's null experiment";

    /// <inheritdoc/>
    public override SensitiveOperation Operation(GuestInterface guestInterface) => SensitiveOperation.None;

    /// <inheritdoc/>
    public override bool NeedsPrivilege => false;

    /// <inheritdoc/>
    public override int DefaultFiller => 20_000;

    /// <inheritdoc/>
    protected override void EmitSensitive(GuestAssembler a, int index) { }
}
