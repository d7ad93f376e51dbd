namespace VirtBench.Vmm.Cpu;

/// <summary>What CPUID returns for one leaf.</summary>
public readonly record struct CpuidResult(uint Eax, uint Ebx, uint Ecx, uint Edx);

/// <summary>
/// The platform's fixed CPUID: an x86-64-v1 CPU with CMPXCHG16B, NX, RDTSCP and 1 GiB pages, and nothing of the host's.
/// Bit positions are those of the Intel SDM vol. 2A, CPUID, and of the AMD APM vol. 3, appendix E.
/// </summary>
public static class PlatformCpuid
{
    /// <summary>
    /// Highest basic leaf. It has nothing to say: CPUs of Intel's kind, and KVM for one of an unknown vendor, answer any leaf
    /// beyond the highest with the highest one's, and that must be zeros here too.
    /// </summary>
    public const uint MaximumBasicLeaf = 7;

    /// <summary>First and only hypervisor leaf.</summary>
    public const uint HypervisorLeaf = 0x4000_0000;

    /// <summary>Highest extended leaf.</summary>
    public const uint MaximumExtendedLeaf = 0x8000_0008;

    /// <summary>Bits of a linear address.</summary>
    public const int LinearAddressBits = 48;

    private const uint Signature = 0x0000_0610; // family 6, model 1, stepping 0

    private const uint Features1Ecx =
        (1u << 13) // CMPXCHG16B
        | (1u << 31); // a hypervisor is present

    private const uint Features1Edx =
        (1u << 0) // x87
        | (1u << 2) // CR4.DE
        | (1u << 3) // CR4.PSE
        | (1u << 4) // TSC
        | (1u << 5) // RDMSR, WRMSR
        | (1u << 6) // PAE
        | (1u << 8) // CMPXCHG8B
        | (1u << 13) // CR4.PGE
        | (1u << 15) // CMOV
        | (1u << 16) // PAT
        | (1u << 19) // CLFLUSH
        | (1u << 23) // MMX
        | (1u << 24) // FXSAVE
        | (1u << 25) // SSE
        | (1u << 26); // SSE2

    private const uint ExtendedFeaturesEdx =
        (1u << 11) // SYSCALL
        | (1u << 20) // NX
        | (1u << 26) // 1 GiB pages
        | (1u << 27) // RDTSCP
        | (1u << 29); // long mode

    private const uint ClflushLineAndCount = (8u << 8) | (1u << 16); // 64-byte lines, one logical CPU

    private const uint InvariantTsc = 1u << 8;

    /// <summary>The leaves below each maximum, for whoever must be told the platform's CPUID leaf by leaf.</summary>
    public static IReadOnlyList<uint> Leaves { get; } =
    [
        .. Enumerable.Range(0, (int)MaximumBasicLeaf + 1).Select(leaf => (uint)leaf),
        HypervisorLeaf,
        .. Enumerable.Range(0, (int)(MaximumExtendedLeaf - 0x8000_0000) + 1).Select(leaf => 0x8000_0000 + (uint)leaf),
    ];

    /// <summary>The result for a leaf; leaves that the platform does not have are all zeros. No leaf has subleaves.</summary>
    public static CpuidResult Query(uint leaf) =>
        leaf switch
        {
            0 => Vendor(MaximumBasicLeaf, "VirtBenchX64"u8),
            1 => new(Signature, ClflushLineAndCount, Features1Ecx, Features1Edx),
            HypervisorLeaf => Hypervisor(HypervisorLeaf, "VirtBenchVMM"u8),
            0x8000_0000 => Vendor(MaximumExtendedLeaf, "VirtBenchX64"u8),
            0x8000_0001 => new(Signature, 0, 0, ExtendedFeaturesEdx),
            >= 0x8000_0002 and <= 0x8000_0004 => Brand((int)(leaf - 0x8000_0002)),
            0x8000_0007 => new(0, 0, 0, InvariantTsc),
            0x8000_0008 => new(Memory.PageWalker.PhysicalAddressBits | (LinearAddressBits << 8), 0, 0, 0),
            _ => default,
        };

    // A vendor's name stands in EBX, EDX, ECX; a hypervisor's in EBX, ECX, EDX.
    private static CpuidResult Vendor(uint maximum, ReadOnlySpan<byte> name) =>
        new(maximum, Word(name, 0), Word(name, 8), Word(name, 4));

    private static CpuidResult Hypervisor(uint maximum, ReadOnlySpan<byte> name) =>
        new(maximum, Word(name, 0), Word(name, 4), Word(name, 8));

    private static CpuidResult Brand(int part)
    {
        ReadOnlySpan<byte> name = "VirtBench virtual CPU, x86-64-v1 baseline\0\0\0\0\0\0\0"u8;
        ReadOnlySpan<byte> words = name.Slice(part * 16, 16);
        return new(Word(words, 0), Word(words, 4), Word(words, 8), Word(words, 12));
    }

    private static uint Word(ReadOnlySpan<byte> text, int at) =>
        System.Buffers.Binary.BinaryPrimitives.ReadUInt32LittleEndian(text[at..]);
}
