using VirtBench.Vmm.Execution;

namespace VirtBench.Strategies.BinaryTranslation;

/// <summary>What translation serves inline, and what it does not hide.</summary>
internal static class TranslationCapabilities
{
    /// <summary>Sensitive instructions that are served without leaving the code cache.</summary>
    public static IReadOnlyList<string> Inlined { get; } =
    [
        "cli",
        "sti",
        "pushf",
        "popf",
        "rdtsc",
        "rdtscp",
        "cpuid",
        "sgdt",
        "sidt",
        "sldt",
        "str",
        "smsw",
        "mov r,cs",
        "mov r,sreg",
        "mov r,cr",
    ];

    /// <summary>What of the guest's view is the host's.</summary>
    public static IReadOnlyList<VirtualizationHole> Holes { get; } =
    [
        new(
            "fnstenv / fnsave",
            "stores the address of translated code as that of the last x87 instruction; so does FXSAVE, on CPUs that do not leave it out"
        ),
    ];
}
