using VirtBench.Vmm.Cpu;

namespace VirtBench.Strategies.BinaryTranslation;

/// <summary>What translated code takes for granted of the CPU: code for another mode is not used.</summary>
/// <param name="User">CPL 1 to 3: what is privileged is refused.</param>
/// <param name="OtherFlags">The virtual bits of RFLAGS that code changes rarely: IOPL, NT, AC, VIF, VIP.</param>
/// <param name="TscOffset">The guest's TSC is not the host's.</param>
/// <param name="TscDisabled">CR4.TSD.</param>
internal readonly record struct TranslationMode(bool User, ulong OtherFlags, bool TscOffset, bool TscDisabled)
{
    /// <summary>
    /// The guest's flags that are the host's while translated code runs. IF and the other system flags are virtual: the host's ring 3 does
    /// not let them be changed, or suffers from it.
    /// </summary>
    public const ulong HostFlags = Rflags.Arithmetic | Rflags.Df | Rflags.Id;

    /// <summary>The flags that <see cref="Carrier.ControlPage.VirtualFlags"/> holds.</summary>
    public const ulong VirtualFlags = Rflags.If | Rflags.Tf | RareFlags;

    private const ulong RareFlags = Rflags.Iopl | Rflags.Nt | Rflags.Ac | Rflags.Vif | Rflags.Vip;

    /// <summary>The mode that the CPU is in.</summary>
    public static TranslationMode Of(VirtualCpu cpu) =>
        new(cpu.Cpl != 0, cpu.Rflags & RareFlags, cpu.TscOffset != 0, (cpu.Cr4 & Cr4.Tsd) != 0);
}
