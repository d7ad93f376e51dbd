namespace VirtBench.Vmm.Cpu;

/// <summary>Bits of RFLAGS (Intel SDM vol. 1, section 3.4.3).</summary>
public static class Rflags
{
    /// <summary>Carry.</summary>
    public const ulong Cf = 1 << 0;

    /// <summary>Bit 1 is always set.</summary>
    public const ulong AlwaysSet = 1 << 1;

    /// <summary>Parity.</summary>
    public const ulong Pf = 1 << 2;

    /// <summary>Auxiliary carry.</summary>
    public const ulong Af = 1 << 4;

    /// <summary>Zero.</summary>
    public const ulong Zf = 1 << 6;

    /// <summary>Sign.</summary>
    public const ulong Sf = 1 << 7;

    /// <summary>Trap (single step).</summary>
    public const ulong Tf = 1 << 8;

    /// <summary>Interrupt enable.</summary>
    public const ulong If = 1 << 9;

    /// <summary>Direction.</summary>
    public const ulong Df = 1 << 10;

    /// <summary>Overflow.</summary>
    public const ulong Of = 1 << 11;

    /// <summary>I/O privilege level, two bits.</summary>
    public const ulong Iopl = 3 << 12;

    /// <summary>Nested task.</summary>
    public const ulong Nt = 1 << 14;

    /// <summary>Resume.</summary>
    public const ulong Rf = 1 << 16;

    /// <summary>Virtual-8086 mode; cannot be set in long mode.</summary>
    public const ulong Vm = 1 << 17;

    /// <summary>Alignment check.</summary>
    public const ulong Ac = 1 << 18;

    /// <summary>Virtual interrupt flag of the architecture (VME/PVI), not VirtBench's.</summary>
    public const ulong Vif = 1 << 19;

    /// <summary>Virtual interrupt pending (VME/PVI).</summary>
    public const ulong Vip = 1 << 20;

    /// <summary>Identification.</summary>
    public const ulong Id = 1 << 21;

    /// <summary>The flags that arithmetic instructions write.</summary>
    public const ulong Arithmetic = Cf | Pf | Af | Zf | Sf | Of;

    /// <summary>Flags that only ring 0 owns: under ring deprivileging these live in the VMM, not in the host's RFLAGS.</summary>
    public const ulong Privileged = If | Iopl | Vm | Vif | Vip;
}
