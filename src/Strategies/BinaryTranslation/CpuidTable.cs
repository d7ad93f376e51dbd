using VirtBench.Vmm.Cpu;

namespace VirtBench.Strategies.BinaryTranslation;

/// <summary>
/// The platform's CPUID for translated code. Rows of 32 bytes, by the leaf's low byte plus its high byte: EAX, EBX, ECX, EDX, the negated leaf.
/// </summary>
internal static unsafe class CpuidTable
{
    /// <summary>Bytes of a row.</summary>
    public const int RowSize = 32;

    /// <summary>Bytes of the table: the sum of two bytes is less than 512.</summary>
    public const int Size = 512 * RowSize;

    /// <summary>Offset in a row of the negated leaf.</summary>
    public const int KeyOffset = 16;

    /// <summary>Writes the table at the start of a cache.</summary>
    public static void Write(byte* cache)
    {
        // A row that no leaf has must match none: its own index is never the leaf 0xFFFF_FFFF's.
        for (int i = 0; i < 512; i++)
        {
            *(uint*)(cache + (i * RowSize) + KeyOffset) = i == 0x1FE ? 0u : 1u;
        }

        foreach (uint leaf in PlatformCpuid.Leaves)
        {
            uint* row = (uint*)(cache + (((leaf & 0xFF) + (leaf >> 24)) * RowSize));
            CpuidResult result = PlatformCpuid.Query(leaf);
            (row[0], row[1], row[2], row[3]) = (result.Eax, result.Ebx, result.Ecx, result.Edx);
            row[KeyOffset / sizeof(uint)] = (uint)-(int)leaf;
        }
    }
}
