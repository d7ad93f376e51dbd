using Iced.Intel;

namespace VirtBench.Strategies.Simulation;

/// <summary>The sensitive instructions that the modelled translator serves without a callout, by the names that holes have.</summary>
internal static class InlinedInstructions
{
    public const string MovFromSegment = "mov r,sreg";
    public const string PushSegment = "push fs/gs";

    /// <summary>As a cost profile names them.</summary>
    public static IReadOnlyList<string> Names { get; } =
    [
        "cli",
        "sti",
        "pushf",
        "popf",
        "rdtsc",
        "rdtscp",
        "sidt",
        "sgdt",
        "sldt",
        "str",
        "smsw",
        "cpuid",
        MovFromSegment,
        PushSegment,
    ];

    /// <summary>As capabilities list them: every name that a workload may call one of them by.</summary>
    public static IReadOnlyList<string> Capabilities { get; } =
    [
        .. Names.Where(name => name is not (MovFromSegment or PushSegment)),
        MovFromSegment,
        "mov r,cs",
        "push fs",
        "push gs",
    ];

    /// <summary>The name of a mnemonic all of whose forms are inlined; null for others.</summary>
    public static string? NameOf(Mnemonic mnemonic) =>
        mnemonic switch
        {
            Mnemonic.Pushf or Mnemonic.Pushfq => "pushf",
            Mnemonic.Popf or Mnemonic.Popfq => "popf",
            _ when Names.Contains(mnemonic.ToString().ToLowerInvariant()) => mnemonic.ToString().ToLowerInvariant(),
            _ => null,
        };
}
