using VirtBench.Strategies.Native;

namespace VirtBench.Strategies.Hardware;

/// <summary>
/// What /dev/kvm says it can do, of all that the engine has a use for. Nothing is assumed: what is missing is named, and only
/// what the engine cannot do without forbids it.
/// </summary>
internal sealed record KvmCapabilities
{
    /// <summary>General registers travel in the shared page instead of by an ioctl of their own.</summary>
    public required bool SyncRegs { get; init; }

    /// <summary>MSR accesses can be sent to user space.</summary>
    public required bool UserSpaceMsr { get; init; }

    /// <summary>MSRs can be chosen that are.</summary>
    public required bool MsrFilter { get; init; }

    /// <summary>The kernel tells its own counters.</summary>
    public required bool BinaryStats { get; init; }

    /// <summary>An instruction that KVM's emulator lacks exits instead of raising #UD in ring 3.</summary>
    public required bool ExitOnEmulationFailure { get; init; }

    /// <summary>Quirks that can be turned off.</summary>
    public required ulong Quirks { get; init; }

    /// <summary>The three-page TSS of kvm_intel can be placed.</summary>
    public required bool SetTssAddress { get; init; }

    /// <summary>Pending exceptions and the interrupt shadow can be read and set.</summary>
    public required bool VcpuEvents { get; init; }

    /// <summary>Debug registers can be read and set.</summary>
    public required bool DebugRegisters { get; init; }

    /// <summary>What is not there.</summary>
    public required IReadOnlyList<MissingCapability> Missing { get; init; }

    /// <summary>Asks an open /dev/kvm.</summary>
    public static unsafe KvmCapabilities Read(int kvm)
    {
        var missing = new List<MissingCapability>();
        int Ask(int capability, string name, string effect, bool required = false)
        {
            int value = Kvm.Ioctl(kvm, Kvm.CheckExtension, (void*)capability);
            if (value <= 0)
            {
                missing.Add(new MissingCapability(name, effect, required));
                return 0;
            }

            return value;
        }

        _ = Ask(Kvm.CapUserMemory, "KVM_CAP_USER_MEMORY", "guest RAM cannot be given to a VM", required: true);
        _ = Ask(Kvm.CapExtCpuid, "KVM_CAP_EXT_CPUID", "the guest would see the host's CPUID", required: true);
        _ = Ask(
            Kvm.CapImmediateExit,
            "KVM_CAP_IMMEDIATE_EXIT",
            "a guest could not be stopped reliably (Linux 4.12 and later have it)",
            required: true
        );
        _ = Ask(Kvm.CapXsave, "KVM_CAP_XSAVE", "x87 and SSE state could not be kept", required: true);
        const string quirks = "VMCALL and VMMCALL, MONITOR and MWAIT do something instead of raising #UD";
        ulong quirksOff = (ulong)Ask(Kvm.CapDisableQuirks2, "KVM_CAP_DISABLE_QUIRKS2", quirks);
        return new KvmCapabilities
        {
            SyncRegs =
                (
                    (ulong)Ask(
                        Kvm.CapSyncRegs,
                        "KVM_CAP_SYNC_REGS",
                        "each exit takes an ioctl more, which reads the registers"
                    ) & Kvm.SyncX86Regs
                ) != 0,
            UserSpaceMsr =
                Ask(
                    Kvm.CapX86UserSpaceMsr,
                    "KVM_CAP_X86_USER_SPACE_MSR",
                    "KVM itself answers MSRs that the platform lacks, which is listed as a hole"
                ) != 0,
            MsrFilter =
                Ask(
                    Kvm.CapX86MsrFilter,
                    "KVM_CAP_X86_MSR_FILTER",
                    "KVM itself answers MSRs that it knows and the platform lacks, which is listed as a hole"
                ) != 0,
            BinaryStats =
                Ask(
                    Kvm.CapBinaryStatsFd,
                    "KVM_CAP_BINARY_STATS_FD",
                    "exits that the kernel handles itself are not counted (Linux 5.14 and later have it)"
                ) != 0,
            ExitOnEmulationFailure =
                Ask(
                    Kvm.CapExitOnEmulationFailure,
                    "KVM_CAP_EXIT_ON_EMULATION_FAILURE",
                    "guest ring 3 gets #UD where KVM's emulator lacks an instruction"
                ) != 0,
            Quirks = quirksOff,
            SetTssAddress =
                Ask(Kvm.CapSetTssAddr, "KVM_CAP_SET_TSS_ADDR", "Intel CPUs without unrestricted guest cannot run") != 0,
            VcpuEvents =
                Ask(
                    Kvm.CapVcpuEvents,
                    "KVM_CAP_VCPU_EVENTS",
                    "a VM that stops while an exception is being delivered loses it"
                ) != 0,
            DebugRegisters =
                Ask(Kvm.CapDebugregs, "KVM_CAP_DEBUGREGS", "debug registers are the guest's only while it runs") != 0,
            Missing = missing,
        };
    }
}
