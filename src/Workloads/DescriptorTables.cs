using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// SIDT and SGDT in turns, an SIDT first. What they stored gets into the checksum: zeros for k = 0, the IDT's address and limit for
/// k = 1, both tables' for every k ≥ 2.
/// </summary>
public sealed class DescriptorTables : SlottedWorkload
{
    /// <summary>Where SIDT stores; SGDT stores 16 bytes further on.</summary>
    private const ulong Stored = SystemArea.Data + 0x800;

    /// <inheritdoc/>
    public override string Id => "descriptor-tables";

    /// <inheritdoc/>
    public override string Description => "stores IDTR and GDTR in turns, k times per unit";

    /// <inheritdoc/>
    public override SensitiveOperation Operation(GuestInterface guestInterface) =>
        new("sidt, sgdt", TrapReason.DescriptorTable) { Names = ["sidt", "sgdt"] };

    /// <summary>Ring 3 may execute both: that is the hole.</summary>
    public override bool NeedsPrivilege => false;

    /// <inheritdoc/>
    public override int DefaultFiller => 20_000;

    /// <summary>A gate is there so that IDTR holds something; nothing ever comes through it.</summary>
    internal override IReadOnlyList<InterruptGate> EmitSystemCode(GuestAssembler a) =>
        [TimerInterruptSource.EmitHandler(a)];

    /// <summary>Clobbers rsi and rdi.</summary>
    protected override void LoadOperands(GuestAssembler a)
    {
        a.mov(edi, (uint)Stored);
        a.mov(esi, (uint)Stored + 16);
    }

    /// <summary>Clobbers nothing.</summary>
    protected override void EmitSensitive(GuestAssembler a, int index)
    {
        if (index % 2 == 0)
        {
            a.sidt(__[rdi]);
        }
        else
        {
            a.sgdt(__[rsi]);
        }
    }

    /// <summary>Limit and low bytes of the base, then all of the base, of each. Clobbers flags.</summary>
    protected override void FoldIntoChecksum(GuestAssembler a, bool afterSensitive)
    {
        foreach (int offset in (int[])[0, 2, 16, 18])
        {
            a.add(r14, __[rdi + offset]);
            a.rol(r14, 17);
        }
    }

    /// <inheritdoc/>
    protected override IEnumerable<ImageSegment> DataSegments(GuestInterface guestInterface) =>
        [SystemArea.EmptyData()];
}
