using System.Buffers.Binary;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// Switches among address spaces that share code, stack and the identity map and put other pages at the same linear
/// addresses. Every slot touches the working set, after a switch in k of them; for k = 0 all touches are made in one
/// address space.
/// </summary>
/// <remarks>
/// The spaces form a ring: each one's first data page holds the CR3 of the next, and every slot loads it, whether it
/// switches or not. Each space's pages hold other numbers, so the checksum differs from k to k, and a strategy that loses a
/// switch gets a wrong one.
/// </remarks>
public sealed class Cr3Switch : SlottedWorkload
{
    /// <summary>Linear address of the working set: the second gigabyte, which the boot tables leave free.</summary>
    public const ulong WorkingSet = 0x4000_0000;

    /// <summary>Most data pages per address space: what one page table maps.</summary>
    public const int MaximumPages = 512;

    /// <summary>Most address spaces.</summary>
    public const int MaximumAddressSpaces = 16;

    private const ulong Tables = 0x20_0000;
    private const ulong DataPages = 0x40_0000;
    private const int PageSize = (int)GuestMemory.PageSize;

    /// <summary>PML4, page-directory pointers, page directory and page table.</summary>
    private const int TablesPerSpace = 4;

    /// <summary>Offset of the next space's CR3 in the first data page: its last 8 bytes.</summary>
    private const int NextOffset = PageSize - 8;

    private readonly int _addressSpaces;
    private readonly int _pages;

    /// <summary>Two address spaces of eight pages.</summary>
    public Cr3Switch()
        : this(addressSpaces: 2, pages: 8) { }

    /// <summary>Chooses the number of address spaces and the working set.</summary>
    /// <param name="addressSpaces">2 to <see cref="MaximumAddressSpaces"/>; with 1 every switch loads the same CR3.</param>
    /// <param name="pages">Pages touched in every slot, 1 to <see cref="MaximumPages"/>.</param>
    /// <exception cref="ArgumentOutOfRangeException">Outside these limits.</exception>
    public Cr3Switch(int addressSpaces, int pages)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(addressSpaces, 1);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(addressSpaces, MaximumAddressSpaces);
        ArgumentOutOfRangeException.ThrowIfLessThan(pages, 1);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(pages, MaximumPages);
        _addressSpaces = addressSpaces;
        _pages = pages;
    }

    /// <inheritdoc/>
    public override string Id => "cr3-switch";

    /// <inheritdoc/>
    public override string Description =>
        $"switches among {_addressSpaces} address spaces k times per unit and touches {_pages} pages 16 times";

    /// <inheritdoc/>
    public override SensitiveOperation Operation(GuestInterface guestInterface) =>
        guestInterface == GuestInterface.Native
            ? new("mov cr3, rsi", TrapReason.AddressSpaceSwitch)
            : new("hypercall: set page-table base", TrapReason.Hypercall);

    /// <inheritdoc/>
    public override bool NeedsPrivilege => true;

    /// <inheritdoc/>
    public override int MaximumTrapsPerUnit => 16;

    /// <inheritdoc/>
    public override int DefaultFiller => 80_000;

    /// <summary>The load of the next CR3, and two instructions for each page.</summary>
    protected override int SlotInstructions => 1 + (2 * _pages);

    /// <summary>Enters the first address space: the working set is mapped in none but these. Clobbers rax, rcx, rdi and r11.</summary>
    protected override void EmitSetup(GuestAssembler a)
    {
        a.mov(eax, (uint)Cr3Of(0));
        a.WriteCr3(rax);
    }

    /// <summary>r8 = working set. Clobbers r8.</summary>
    protected override void LoadOperands(GuestAssembler a) => a.mov(r8d, (uint)WorkingSet);

    /// <summary>rsi = CR3 of the next address space in the ring.</summary>
    protected override void EmitBefore(GuestAssembler a) => a.mov(rsi, __[r8 + NextOffset]);

    /// <summary>Clobbers rax, rcx, rdi, r11 and flags; the code and r8 mean the same in every space.</summary>
    protected override void EmitSensitive(GuestAssembler a, int index) => a.WriteCr3(rsi);

    /// <summary>Reads and writes each page; the checksum takes part in both. Clobbers flags.</summary>
    protected override void EmitAfter(GuestAssembler a)
    {
        for (int page = 0; page < _pages; page++)
        {
            a.xor(r14, __[r8 + Cell(page)]);
            a.add(__[r8 + Cell(page)], r14);
        }
    }

    /// <inheritdoc/>
    protected override IEnumerable<ImageSegment> DataSegments(GuestInterface guestInterface)
    {
        byte[] tables = new byte[_addressSpaces * TablesPerSpace * PageSize];
        byte[] data = new byte[_addressSpaces * _pages * PageSize];
        for (int space = 0; space < _addressSpaces; space++)
        {
            WriteTables(tables.AsSpan(space * TablesPerSpace * PageSize), space);
            WriteData(data.AsSpan(space * _pages * PageSize), space);
        }

        yield return new ImageSegment(Tables, tables, (ulong)tables.Length, Executable: false);
        yield return new ImageSegment(DataPages, data, (ulong)data.Length, Executable: false);
    }

    private static ulong Cr3Of(int space) => Tables + (ulong)(space * TablesPerSpace * PageSize);

    // Another cache line in every page: equal page offsets would make each load wait for the store before it (4 KiB aliasing).
    private static int Cell(int page) => (page * PageSize) + (page % 32 * 64);

    private void WriteTables(Span<byte> tables, int space)
    {
        const ulong rights = Pte.Present | Pte.Writable;
        ulong pml4 = Cr3Of(space);
        ulong pointers = pml4 + PageSize;
        ulong directory = pointers + PageSize;
        ulong table = directory + PageSize;
        Write(tables, 0, pointers | rights);
        Write(tables, PageSize, (PhysicalLayout.PageTables + (2 * PageSize)) | rights); // the boot identity map's directory
        Write(tables, PageSize + 8, directory | rights);
        Write(tables, 2 * PageSize, table | rights);
        for (int page = 0; page < _pages; page++)
        {
            ulong physical = DataPages + (ulong)(((space * _pages) + page) * PageSize);
            Write(tables, (3 * PageSize) + (page * 8), physical | rights);
        }
    }

    private void WriteData(Span<byte> data, int space)
    {
        for (int page = 0; page < _pages; page++)
        {
            Write(data, Cell(page), 0x9E37_79B9_7F4A_7C15UL * (ulong)((space * MaximumPages) + page + 1));
        }

        Write(data, NextOffset, Cr3Of((space + 1) % _addressSpaces));
    }

    private static void Write(Span<byte> bytes, int offset, ulong value) =>
        BinaryPrimitives.WriteUInt64LittleEndian(bytes[offset..], value);
}
