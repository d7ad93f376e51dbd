namespace VirtBench.Vmm.Cpu;

/// <summary>Indices of the model-specific registers that the platform has (Intel SDM vol. 4, table 2-2).</summary>
public static class Msr
{
    /// <summary>IA32_TIME_STAMP_COUNTER.</summary>
    public const uint TimeStampCounter = 0x10;

    /// <summary>IA32_PAT.</summary>
    public const uint Pat = 0x277;

    /// <summary>IA32_EFER.</summary>
    public const uint Efer = 0xC000_0080;

    /// <summary>IA32_STAR.</summary>
    public const uint Star = 0xC000_0081;

    /// <summary>IA32_LSTAR.</summary>
    public const uint Lstar = 0xC000_0082;

    /// <summary>IA32_CSTAR.</summary>
    public const uint Cstar = 0xC000_0083;

    /// <summary>IA32_FMASK.</summary>
    public const uint Fmask = 0xC000_0084;

    /// <summary>IA32_FS_BASE.</summary>
    public const uint FsBase = 0xC000_0100;

    /// <summary>IA32_GS_BASE.</summary>
    public const uint GsBase = 0xC000_0101;

    /// <summary>IA32_KERNEL_GS_BASE.</summary>
    public const uint KernelGsBase = 0xC000_0102;

    /// <summary>IA32_TSC_AUX.</summary>
    public const uint TscAux = 0xC000_0103;

    /// <summary>True when each of the eight bytes is a memory type: 0, 1, 4, 5, 6 or 7 (SDM vol. 3A, table 12-10).</summary>
    public static bool IsValidPat(ulong value)
    {
        for (int shift = 0; shift < 64; shift += 8)
        {
            if ((byte)(value >> shift) is 2 or 3 or > 7)
            {
                return false;
            }
        }

        return true;
    }
}
