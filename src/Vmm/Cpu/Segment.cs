namespace VirtBench.Vmm.Cpu;

/// <summary>A segment register with its hidden part (Intel SDM vol. 3A, section 3.4.3).</summary>
/// <param name="Selector">Visible part.</param>
/// <param name="Base">Linear base address.</param>
/// <param name="Limit">Limit in bytes, after scaling by the granularity bit.</param>
/// <param name="Attributes">
/// Bits 8–15 and 20–23 of the descriptor's second doubleword, shifted down by 8: type (0–3), S (4), DPL (5–6), P (7),
/// AVL (12), L (13), D/B (14), G (15). The layout of VMCS access rights and of KVM, without the unusable bit.
/// </param>
public readonly record struct Segment(ushort Selector, ulong Base, uint Limit, ushort Attributes)
{
    /// <summary>Descriptor type field, 0–15.</summary>
    public int Type => Attributes & 0xF;

    /// <summary>True for code and data segments, false for system segments.</summary>
    public bool IsCodeOrData => (Attributes & 0x10) != 0;

    /// <summary>Descriptor privilege level, 0–3.</summary>
    public int Dpl => (Attributes >> 5) & 3;

    /// <summary>Present bit.</summary>
    public bool Present => (Attributes & 0x80) != 0;

    /// <summary>64-bit code segment (L bit).</summary>
    public bool Is64Bit => (Attributes & 0x2000) != 0;

    /// <summary>A null data segment.</summary>
    public static Segment Null => default;

    /// <summary>Ring-0 64-bit code with the given selector: type 11 (execute, read, accessed), present, L.</summary>
    public static Segment KernelCode(ushort selector) => new(selector, 0, 0xFFFF_FFFF, 0xA09B);

    /// <summary>Ring-0 data with the given selector: type 3 (read, write, accessed), present, 32-bit.</summary>
    public static Segment KernelData(ushort selector) => new(selector, 0, 0xFFFF_FFFF, 0xC093);
}

/// <summary>GDTR or IDTR.</summary>
/// <param name="Base">Linear address of the table.</param>
/// <param name="Limit">Offset of the table's last byte.</param>
public readonly record struct DescriptorTable(ulong Base, ushort Limit);
