using VirtBench.Vmm.Execution;

namespace VirtBench.Strategies.TrapAndEmulate;

/// <summary>
/// The sensitive instructions of x86-64 that ring 3 may execute, and what a deprivileged ring-0 guest gets from them on
/// Linux (Robin and Irvine, USENIX Security 2000, for the classes; the effects as observed in a carrier).
/// </summary>
internal static class Ring3Holes
{
    private static readonly VirtualizationHole[] Always =
    [
        new("popf", "leaves the interrupt flag as it was, silently; an alignment-check flag lasts until the next exit"),
        new("pushf", "shows the host's interrupt flag, always set"),
        new("cpuid", "answers for the host's CPU"),
        new("mov r,cs", "shows the host's ring-3 code selector"),
        new("mov r,sreg", "shows the host's selector in SS, DS, ES, FS and GS, PUSH FS and PUSH GS too"),
        new("mov sreg,r", "loads a null or host ring-3 data selector without the VMM seeing it"),
        new("lar", "reads the host's descriptor table"),
        new("lsl", "reads the host's descriptor table"),
        new("verr", "reads the host's descriptor table"),
        new("verw", "reads the host's descriptor table"),
        new("sgdt", "answered with a host value (a fixed one where Linux emulates it under UMIP)"),
        new("sidt", "answered with a host value (a fixed one where Linux emulates it under UMIP)"),
        new("sldt", "answered with a host value (a fixed one where Linux emulates it under UMIP)"),
        new("str", "answered with a host value (a fixed one where Linux emulates it under UMIP)"),
        new("smsw", "answered with a host value (a fixed one where Linux emulates it under UMIP)"),
        new("xgetbv", "shows the host's XCR0 instead of raising #UD"),
        new(
            "wrfsbase",
            "RDFSBASE to WRGSBASE, AVX and other instructions of the host's CPU that the platform lacks execute"
        ),
        new("vmcall", "may be answered by a hypervisor under the host instead of raising #UD"),
        new("vmmcall", "may be answered by a hypervisor under the host instead of raising #UD"),
    ];

    private static readonly VirtualizationHole[] TimeStampCounter =
    [
        new("rdtsc", "reads the host's time-stamp counter without an exit"),
        new("rdtscp", "reads the host's time-stamp counter and TSC_AUX without an exit"),
    ];

    /// <summary>The holes, with or without trapping of the time-stamp counter.</summary>
    public static IReadOnlyList<VirtualizationHole> All(bool trapTimeStampCounter) =>
        trapTimeStampCounter ? Always : [.. Always, .. TimeStampCounter];
}
