using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// A store to a page that is not present. The guest's handler reads the address, adds it and the error code to sums, and returns behind the
/// store. The sums get into the checksum, so a fault that is lost, comes twice or says something untrue shows.
/// </summary>
public sealed class PageFault : SlottedWorkload
{
    /// <summary>A linear address in the second gigabyte, which the boot tables leave free.</summary>
    private const ulong NotPresent = 0x4000_0008;

    private const ulong Sums = SystemArea.Data;

    /// <summary>Bytes of the store, which the handler skips.</summary>
    private const int StoreLength = 3;

    /// <inheritdoc/>
    public override string Id => "page-fault";

    /// <inheritdoc/>
    public override string Description =>
        "stores k times per unit to a page that is not present; the guest's handler reads the address and skips the store";

    /// <inheritdoc/>
    public override SensitiveOperation Operation(GuestInterface guestInterface) =>
        guestInterface == GuestInterface.Native
            ? new("mov [rdi], rsi (#PF)", TrapReason.GuestPageFault) { Names = ["iretq"] }
            : new("mov [rdi], rsi (#PF); hypercall: iret", TrapReason.GuestPageFault);

    /// <inheritdoc/>
    public override bool NeedsPrivilege => true;

    /// <inheritdoc/>
    public override int DefaultFiller => 20_000;

    /// <summary>The handler: clobbers rax; the return restores the flags.</summary>
    internal override IReadOnlyList<InterruptGate> EmitSystemCode(GuestAssembler a)
    {
        Label handler = a.CreateLabel("page-fault");
        a.Label(ref handler);
        a.ReadFaultAddress(rax);
        a.add(__qword_ptr[Sums], rax);
        a.pop(rax); // the error code
        a.add(__qword_ptr[Sums + 8], rax);
        a.add(__qword_ptr[rsp], StoreLength);
        a.InterruptReturn();
        return [new InterruptGate(Vector.PageFault, handler)];
    }

    /// <summary>Clobbers rdi.</summary>
    protected override void LoadOperands(GuestAssembler a) => a.mov(edi, (uint)NotPresent);

    /// <summary>Clobbers rax.</summary>
    protected override void EmitSensitive(GuestAssembler a, int index) => a.mov(__[rdi], rsi);

    /// <summary>Clobbers flags.</summary>
    protected override void FoldIntoChecksum(GuestAssembler a, bool afterSensitive)
    {
        a.add(r14, __qword_ptr[Sums]);
        a.rol(r14, 17);
        a.add(r14, __qword_ptr[Sums + 8]);
    }

    /// <inheritdoc/>
    protected override IEnumerable<ImageSegment> DataSegments(GuestInterface guestInterface) =>
        [SystemArea.EmptyData()];
}
