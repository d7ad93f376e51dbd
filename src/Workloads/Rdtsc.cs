using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Workloads;

/// <summary>
/// Reads the time, and discards it: RDTSC, sensitive, and privileged only where the engine makes it so; or the paravirtual clock, which
/// takes one RDTSC that needs no trap. The checksum is equal for every k, as nothing of the time gets into it.
/// </summary>
public sealed class Rdtsc : SlottedWorkload
{
    /// <inheritdoc/>
    public override string Id => "rdtsc";

    /// <inheritdoc/>
    public override string Description => "reads the time k times per unit";

    /// <inheritdoc/>
    public override SensitiveOperation Operation(GuestInterface guestInterface) =>
        guestInterface == GuestInterface.Native
            ? new("rdtsc", TrapReason.TimeStampCounter) { Names = ["rdtsc"] }
            : new("paravirtual clock", TrapReason.TimeStampCounter);

    /// <inheritdoc/>
    public override bool NeedsPrivilege => false;

    /// <inheritdoc/>
    public override int DefaultFiller => 20_000;

    /// <summary>Clobbers rax, rcx, rdx, r8 and flags, of which nothing else in the unit keeps anything.</summary>
    protected override void EmitSensitive(GuestAssembler a, int index) => a.ReadTime();
}
