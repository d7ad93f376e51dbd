namespace VirtBench.Vmm.Boot;

/// <summary>
/// Where the boot protocol puts things in guest-physical memory (identity-mapped, so also linear). Everything lies above
/// 64 KiB, because an unprivileged host process can map nothing lower.
/// </summary>
public static class PhysicalLayout
{
    /// <summary>Boot information, one page.</summary>
    public const ulong BootInfo = 0x1_0000;

    /// <summary>Hypercall page.</summary>
    public const ulong HypercallPage = 0x1_1000;

    /// <summary>Shared info page.</summary>
    public const ulong SharedInfoPage = 0x1_2000;

    /// <summary>PML4; page-directory pointers and page directory follow, one page each.</summary>
    public const ulong PageTables = 0x1_3000;

    /// <summary>GDT: null, ring-0 code (0x08), ring-0 data (0x10).</summary>
    public const ulong Gdt = 0x1_6000;

    /// <summary>Lowest byte of the 64 KiB boot stack.</summary>
    public const ulong StackBottom = 0x2_0000;

    /// <summary>
    /// End of the boot stack. The initial RSP is 8 below, at a return address of 0: entry finds the stack as a called
    /// function does, so that a C function with the boot information as its argument can be the entry.
    /// </summary>
    public const ulong StackTop = 0x3_0000;

    /// <summary>First byte that a guest image may occupy.</summary>
    public const ulong ImageStart = StackTop;
}
