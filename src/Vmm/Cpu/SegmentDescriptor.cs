namespace VirtBench.Vmm.Cpu;

/// <summary>A descriptor of the GDT or LDT as it was read, once (Intel SDM vol. 3A, sections 3.4.5 and 8.2.3).</summary>
/// <param name="Address">Linear address it was read from.</param>
/// <param name="Low">First eight bytes.</param>
/// <param name="High">Next eight bytes of a 16-byte system descriptor, else 0.</param>
public readonly record struct SegmentDescriptor(ulong Address, ulong Low, ulong High)
{
    /// <summary>Offset of the byte that holds type, S, DPL and P.</summary>
    public const int AccessByteOffset = 5;

    /// <summary>Attributes in the layout of <see cref="Segment.Attributes"/>.</summary>
    public ushort Attributes => (ushort)((Low >> 40) & 0xF0FF);

    /// <summary>Type field, 0–15.</summary>
    public int Type => Attributes & 0xF;

    /// <summary>Code or data, not system.</summary>
    public bool IsCodeOrData => (Attributes & 0x10) != 0;

    /// <summary>Code segment.</summary>
    public bool IsCode => (Attributes & 0x18) == 0x18;

    /// <summary>Writable data segment.</summary>
    public bool IsWritableData => (Attributes & 0x1A) == 0x12;

    /// <summary>Data segment, or code segment that may be read.</summary>
    public bool IsReadable => IsCodeOrData && (!IsCode || (Attributes & 2) != 0);

    /// <summary>Conforming code segment.</summary>
    public bool IsConforming => IsCode && (Attributes & 4) != 0;

    /// <summary>Privilege level, 0–3.</summary>
    public int Dpl => (Attributes >> 5) & 3;

    /// <summary>Present.</summary>
    public bool Present => (Attributes & 0x80) != 0;

    /// <summary>64-bit code: L set and D clear.</summary>
    public bool Is64BitCode => (Attributes & 0x6000) == 0x2000;

    /// <summary>L and D both set, which is reserved.</summary>
    public bool HasReservedSize => (Attributes & 0x6000) == 0x6000;

    /// <summary>The Accessed bit of a code or data descriptor.</summary>
    public bool Accessed => (Attributes & 1) != 0;

    /// <summary>Type field of the upper half of a 16-byte system descriptor: 0, so that it is no descriptor itself.</summary>
    public int UpperType => (int)(High >> 40) & 0x1F;

    /// <summary>Base address: 32 bits, or 64 for a 16-byte system descriptor.</summary>
    public ulong Base => ((Low >> 16) & 0xFF_FFFF) | ((Low >> 32) & 0xFF00_0000) | (High << 32);

    /// <summary>Limit in bytes, scaled.</summary>
    public uint Limit
    {
        get
        {
            uint limit = (uint)((Low & 0xFFFF) | ((Low >> 32) & 0xF_0000));
            return (Attributes & 0x8000) != 0 ? (limit << 12) | 0xFFF : limit;
        }
    }

    /// <summary>The segment register that loading this descriptor gives, marked as accessed.</summary>
    public Segment ToSegment(ushort selector) =>
        new(selector, Base, Limit, (ushort)(IsCodeOrData ? Attributes | 1 : Attributes));
}
