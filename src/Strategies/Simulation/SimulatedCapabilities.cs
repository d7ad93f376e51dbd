using VirtBench.Vmm.Execution;

namespace VirtBench.Strategies.Simulation;

/// <summary>What the simulated engines say of themselves.</summary>
internal static class SimulatedCapabilities
{
    // Sensitive instructions of x86-64 that ring 3 executes; the carrier's list on real hardware without UMIP.
    private static readonly VirtualizationHole[] Deprivileged =
    [
        new("popf", "leaves IF and IOPL as they are, silently"),
        new("pushf", "shows the host's IF (1) and IOPL (0)"),
        new("mov r, sreg", "shows the host's ring-3 selectors (cs 0x33, ss 0x2b)"),
        new("push fs/gs", "shows the host's selectors"),
        new("mov sreg / pop fs/gs", "loads null and the host's user selectors without the guest's tables; others exit"),
        new("sgdt", "stores the host's GDTR"),
        new("sidt", "stores the host's IDTR"),
        new("sldt", "stores the host's LDT selector"),
        new("str", "stores the host's task register"),
        new("smsw", "stores the host's CR0"),
        new("cpuid", "answers for the host: no hypervisor bit, no VirtBench leaves"),
        new("lar", "answers from the host's descriptor table"),
        new("lsl", "answers from the host's descriptor table"),
        new("verr", "answers from the host's descriptor table"),
        new("verw", "answers from the host's descriptor table"),
    ];

    public static EngineCapabilities Describe(CostProfile profile, SimulatedMode mode) =>
        mode == SimulatedMode.Translated
            ? DescribeTranslated(profile, profile.Translation!)
            : DescribeDeprivileged(profile, mode);

    private static EngineCapabilities DescribeTranslated(CostProfile profile, TranslationCosts costs) =>
        new()
        {
            TrapsPrivilegedInstructions = true,
            Inlined = InlinedInstructions.Capabilities,
            InlinesInterruptFlag = true,
            SwitchOutTicks = costs.CalloutCycles / 2,
            SwitchInTicks = costs.CalloutCycles - (costs.CalloutCycles / 2),
            ComputedTime = true,
            TimeSource =
                $"computed: cost profile '{profile.Name}', {profile.ClockHertz / 1e9:0.###} GHz, translation "
                + $"{costs.InstructionCycles} cycles an instruction, callout {costs.CalloutCycles} + emulation {profile.EmulationCycles}",
        };

    private static EngineCapabilities DescribeDeprivileged(CostProfile profile, SimulatedMode mode) =>
        new()
        {
            Holes = Deprivileged,
            TrapsTimeStampCounter = mode == SimulatedMode.Deprivileged,
            TrapsPrivilegedInstructions = true,
            SwitchOutTicks = profile.ExitCycles,
            SwitchInTicks = profile.EntryCycles,
            ComputedTime = true,
            TimeSource =
                $"computed: cost profile '{profile.Name}', {profile.ClockHertz / 1e9:0.###} GHz, exit "
                + $"{profile.ExitCycles} + entry {profile.EntryCycles} + emulation {profile.EmulationCycles} cycles"
                + (mode == SimulatedMode.Paravirtual ? $", hypercall {profile.Paravirtual!.HypercallCycles}" : ""),
        };
}
