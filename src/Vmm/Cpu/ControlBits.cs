namespace VirtBench.Vmm.Cpu;

/// <summary>Bits of CR0 (Intel SDM vol. 3A, section 2.5).</summary>
public static class Cr0
{
    /// <summary>Protection enable.</summary>
    public const ulong Pe = 1UL << 0;

    /// <summary>Monitor coprocessor.</summary>
    public const ulong Mp = 1UL << 1;

    /// <summary>x87 emulation.</summary>
    public const ulong Em = 1UL << 2;

    /// <summary>Task switched.</summary>
    public const ulong Ts = 1UL << 3;

    /// <summary>Extension type, fixed to 1.</summary>
    public const ulong Et = 1UL << 4;

    /// <summary>Numeric error.</summary>
    public const ulong Ne = 1UL << 5;

    /// <summary>Write protect: ring 0 obeys read-only pages.</summary>
    public const ulong Wp = 1UL << 16;

    /// <summary>Alignment mask.</summary>
    public const ulong Am = 1UL << 18;

    /// <summary>Not write-through.</summary>
    public const ulong Nw = 1UL << 29;

    /// <summary>Cache disable.</summary>
    public const ulong Cd = 1UL << 30;

    /// <summary>Paging.</summary>
    public const ulong Pg = 1UL << 31;

    /// <summary>All bits that the architecture defines.</summary>
    public const ulong Defined = Pe | Mp | Em | Ts | Et | Ne | Wp | Am | Nw | Cd | Pg;
}

/// <summary>Bits of CR4 that the platform's CPUID baseline allows (Intel SDM vol. 3A, section 2.5).</summary>
public static class Cr4
{
    /// <summary>Time-stamp disable: RDTSC is privileged.</summary>
    public const ulong Tsd = 1UL << 2;

    /// <summary>Debugging extensions.</summary>
    public const ulong De = 1UL << 3;

    /// <summary>Page-size extension; ignored in long mode.</summary>
    public const ulong Pse = 1UL << 4;

    /// <summary>Physical-address extension; must be 1 in long mode.</summary>
    public const ulong Pae = 1UL << 5;

    /// <summary>Global pages.</summary>
    public const ulong Pge = 1UL << 7;

    /// <summary>Performance-counter enable.</summary>
    public const ulong Pce = 1UL << 8;

    /// <summary>FXSAVE/FXRSTOR and SSE.</summary>
    public const ulong Osfxsr = 1UL << 9;

    /// <summary>Unmasked SIMD exceptions.</summary>
    public const ulong Osxmmexcpt = 1UL << 10;

    /// <summary>Bits a guest may set; any other raises #GP(0) because CPUID does not report the feature.</summary>
    public const ulong Allowed = Tsd | De | Pse | Pae | Pge | Pce | Osfxsr | Osxmmexcpt;
}

/// <summary>Bits of the EFER model-specific register (AMD APM vol. 2, section 3.1.7).</summary>
public static class Efer
{
    /// <summary>SYSCALL enable.</summary>
    public const ulong Sce = 1UL << 0;

    /// <summary>Long mode enable.</summary>
    public const ulong Lme = 1UL << 8;

    /// <summary>Long mode active; read-only.</summary>
    public const ulong Lma = 1UL << 10;

    /// <summary>No-execute enable.</summary>
    public const ulong Nxe = 1UL << 11;

    /// <summary>Bits a guest may write.</summary>
    public const ulong Writable = Sce | Lme | Nxe;
}
