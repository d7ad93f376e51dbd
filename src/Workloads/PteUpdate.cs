using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// Puts another page at a linear address: writes the page-table entry and drops the page from the TLB. Every slot then reads the address, whether its entry was
/// changed or not. Two pages take turns, and each holds the entry that maps the other, so a change that is lost shows in the checksum,
/// which differs from k to k.
/// </summary>
public sealed class PteUpdate : SlottedWorkload
{
    /// <summary>The linear address, in the second gigabyte, which the boot tables leave free.</summary>
    private const ulong Window = 0x4000_0000;

    /// <summary>PML4, page-directory pointers, page directory and page table, a page each.</summary>
    private const ulong Tables = 0x20_0000;

    private const ulong Pages = 0x40_0000;
    private const int PageSize = (int)GuestMemory.PageSize;
    private const ulong Entry = Tables + (3 * PageSize);

    // Accessed and Dirty set: what is measured is the change of the mapping, not the bits that follow a first access.
    private const ulong LeafRights = Pte.Present | Pte.Writable | Pte.Accessed | Pte.Dirty;

    /// <inheritdoc/>
    public override string Id => "pte-update";

    /// <inheritdoc/>
    public override string Description =>
        "changes a page-table entry k times per unit, flushes its page, and reads the page 16 times";

    /// <inheritdoc/>
    public override SensitiveOperation Operation(GuestInterface guestInterface) =>
        guestInterface == GuestInterface.Native
            ? new("mov [r9], r8; invlpg [r10]", TrapReason.TlbOrCache) { Names = ["invlpg"] }
            : new("hypercall: update page tables", TrapReason.Hypercall);

    /// <inheritdoc/>
    public override bool NeedsPrivilege => true;

    /// <inheritdoc/>
    public override int MaximumTrapsPerUnit => 16;

    /// <inheritdoc/>
    public override int DefaultFiller => 20_000;

    /// <inheritdoc/>
    protected override int SlotInstructions => 2;

    /// <summary>Enters the address space. Clobbers rax, rcx, rdi and r11.</summary>
    protected override void EmitSetup(GuestAssembler a)
    {
        a.mov(eax, (uint)Tables);
        a.WriteCr3(rax);
    }

    /// <summary>Clobbers r9 and r10.</summary>
    protected override void LoadOperands(GuestAssembler a)
    {
        a.mov(r10d, (uint)Window);
        a.mov(r9d, (uint)Entry);
    }

    /// <summary>r8 = the entry that maps the other page.</summary>
    protected override void EmitBefore(GuestAssembler a) => a.mov(r8, __[r10 + 8]);

    /// <summary>Clobbers rax, rcx, rsi, rdi, r11 and flags.</summary>
    protected override void EmitSensitive(GuestAssembler a, int index) => a.UpdatePageTableEntry(r9, r8, r10);

    /// <summary>Clobbers flags.</summary>
    protected override void EmitAfter(GuestAssembler a) => a.xor(r14, __[r10]);

    /// <inheritdoc/>
    protected override IEnumerable<ImageSegment> DataSegments(GuestInterface guestInterface)
    {
        const ulong rights = Pte.Present | Pte.Writable;
        byte[] tables = new byte[4 * PageSize];
        SystemArea.Write(tables, 0, (Tables + PageSize) | rights);
        SystemArea.Write(tables, PageSize, (PhysicalLayout.PageTables + (2 * PageSize)) | rights); // the boot identity map's directory
        SystemArea.Write(tables, PageSize + 8, (Tables + (2 * PageSize)) | rights);
        SystemArea.Write(tables, 2 * PageSize, Entry | rights);
        SystemArea.Write(tables, 3 * PageSize, EntryOf(0));
        yield return new ImageSegment(Tables, tables, (ulong)tables.Length, Executable: false);

        byte[] pages = new byte[2 * PageSize];
        for (int page = 0; page < 2; page++)
        {
            SystemArea.Write(pages, page * PageSize, 0x9E37_79B9_7F4A_7C15UL * (ulong)(page + 1));
            SystemArea.Write(pages, (page * PageSize) + 8, EntryOf(1 - page));
        }

        yield return new ImageSegment(Pages, pages, (ulong)pages.Length, Executable: false);
    }

    private static ulong EntryOf(int page) => (Pages + (ulong)(page * PageSize)) | LeafRights;
}
