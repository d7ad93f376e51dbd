using Iced.Intel;
using VirtBench.Vmm.Execution;

namespace VirtBench.Workloads;

/// <summary>
/// RDTSC, the counter discarded: sensitive, and privileged only where the engine makes it so. The checksum is equal for
/// every k, as nothing of the counter gets into it.
/// </summary>
public sealed class Rdtsc : SlottedWorkload
{
    /// <inheritdoc/>
    public override string Id => "rdtsc";

    /// <inheritdoc/>
    public override string Description => "reads the time-stamp counter k times per unit";

    /// <inheritdoc/>
    public override string? SensitiveInstruction => "rdtsc";

    /// <inheritdoc/>
    public override IReadOnlyList<string> SensitiveNames => ["rdtsc"];

    /// <inheritdoc/>
    public override TrapReason? ExpectedTrap => TrapReason.TimeStampCounter;

    /// <inheritdoc/>
    public override bool NeedsPrivilege => false;

    /// <inheritdoc/>
    public override int DefaultFiller => 20_000;

    /// <summary>Clobbers rax and rdx, which nothing else in the unit uses.</summary>
    protected override void EmitSensitive(Assembler a, int index) => a.rdtsc();
}
