using VirtBench.Vmm.Execution;

namespace VirtBench.Strategies.Hardware;

/// <summary>
/// Instructions that a guest under /dev/kvm gets another answer from than the platform gives, without the VMM seeing it. The
/// sensitive instructions of x86 are none of them: that is what the hardware is for.
/// </summary>
internal static class HardwareHoles
{
    private static readonly VirtualizationHole[] Always =
    [
        new(
            "popcnt",
            "POPCNT, BMI and other instructions of the host's CPU that the platform lacks execute, unless a control register "
                + "switches them off as it does AVX"
        ),
    ];

    private static readonly VirtualizationHole[] WithoutMsrFilter =
    [
        new("rdmsr", "KVM itself answers MSRs that it knows and the platform lacks"),
        new("wrmsr", "KVM itself takes MSRs that it knows and the platform lacks"),
    ];

    private static readonly VirtualizationHole[] WithoutQuirks =
    [
        new("monitor", "executed as a no-operation instead of raising #UD"),
        new("mwait", "executed as a no-operation instead of raising #UD"),
    ];

    private const string HostsTable = "reads the host's descriptor table";

    // What kvm_pvm's emulator of ring 0 does otherwise, and what the host's CPU does in ring 3 without asking it.
    private static readonly VirtualizationHole[] OfPvm =
    [
        InRing3("wrfsbase", "RDFSBASE to WRGSBASE, AVX and other instructions that the platform lacks execute"),
        new("cpuid", "shows features of the host's CPU: all of them in ring 3, many in ring 0"),
        new(
            "rdtscp",
            "ends the guest in ring 0, where kvm_pvm does not have it, and shows the host's TSC_AUX in ring 3"
        ),
        new("wrmsr", "does not change the time-stamp counter, raises #GP for TSC_AUX, and takes any value for PAT"),
        InRing3("popf", "leaves IOPL as it was"),
        InRing3("pushf", "shows the host's interrupt flag, always set"),
        InRing3("mov r,cs", "shows the host's selector"),
        InRing3("mov r,sreg", "shows the host's selectors in SS, DS, ES, FS and GS"),
        InRing3("mov sreg,r", "loads the host's segments"),
        InRing3("lar", HostsTable),
        InRing3("lsl", HostsTable),
        InRing3("verr", HostsTable),
        InRing3("verw", HostsTable),
        InRing3("xgetbv", "shows the host's XCR0 instead of raising #UD"),
        InRing3(
            "syscall",
            "enters the handler without leaving ring 3, so that its first fetch from a supervisor page faults"
        ),
        new("sysretq", "ends the guest with a triple fault in a handler that SYSCALL has entered") { EndsGuest = true },
        new(
            "int",
            "in ring 3 raises #UD for vector 0x80, and ends the guest in ring 0, where kvm_pvm does not have it"
        ),
    ];

    private static VirtualizationHole InRing3(string instruction, string effect) =>
        new(instruction, $"in ring 3 {effect}") { InUserModeOnly = true };

    /// <summary>The holes of the module found.</summary>
    public static IReadOnlyList<VirtualizationHole> Of(KvmHost host)
    {
        var holes = new List<VirtualizationHole>(Always);
        bool Lacks(string capability) => host.Missing.Any(missing => missing.Name == capability);

        // A CPU's own hypercall exits to KVM, which answers an unknown number with an error; the other vendor's is #UD once
        // the quirk that would patch it is off, but KVM looks at the privilege level first.
        bool patches = Lacks("KVM_CAP_DISABLE_QUIRKS2");
        holes.Add(Hypercall("vmcall", patches || host.Module is not (KvmProbe.AmdModule or KvmProbe.PvmModule)));
        holes.Add(Hypercall("vmmcall", patches || host.Module is not KvmProbe.IntelModule));
        if (patches)
        {
            holes.AddRange(WithoutQuirks);
        }

        // kvm_intel's short cut for IA32_TSC_DEADLINE past the filter is not listed: it would make every WRMSR suspect.
        if (host.Module == KvmProbe.PvmModule)
        {
            holes.AddRange(OfPvm);
        }

        if (Lacks("KVM_CAP_X86_MSR_FILTER") || Lacks("KVM_CAP_X86_USER_SPACE_MSR"))
        {
            holes.AddRange(WithoutMsrFilter);
        }

        return holes;
    }

    private static VirtualizationHole Hypercall(string instruction, bool answered) =>
        new(
            instruction,
            answered
                ? "answered by KVM with an error in RAX instead of raising #UD"
                : "raises #GP in ring 3 instead of #UD"
        );
}
