namespace VirtBench.Vmm.Execution;

/// <summary>
/// What an exit was for: the ledger's account, finer than <see cref="VmExitReason"/> because the core has decoded the
/// instruction by then. Names in files are the lower-case words given by <see cref="TrapReasons.Name"/>.
/// </summary>
public enum TrapReason : byte
{
    /// <summary>IN, OUT, INS, OUTS, except on the measurement ports.</summary>
    PortIo,

    /// <summary>OUT to a measurement port: outside every region by definition, so never part of a sample's traps.</summary>
    RegionMarker,

    /// <summary>RDTSC and RDTSCP.</summary>
    TimeStampCounter,

    /// <summary>MOV to or from CR0, CR2, CR4, CR8; CLTS, LMSW.</summary>
    ControlRegister,

    /// <summary>MOV to CR3.</summary>
    AddressSpaceSwitch,

    /// <summary>MOV to or from a debug register.</summary>
    DebugRegister,

    /// <summary>CLI, STI, and POPF or PUSHF where an engine traps them.</summary>
    InterruptFlag,

    /// <summary>HLT.</summary>
    Halt,

    /// <summary>RDMSR, WRMSR and XGETBV.</summary>
    Msr,

    /// <summary>CPUID.</summary>
    Cpuid,

    /// <summary>LGDT, LIDT, LLDT, LTR, SGDT, SIDT, SLDT, STR, SMSW.</summary>
    DescriptorTable,

    /// <summary>INVLPG and WBINVD.</summary>
    TlbOrCache,

    /// <summary>INT n, INT3.</summary>
    SoftwareInterrupt,

    /// <summary>IRETQ, far returns, segment loads, SWAPGS.</summary>
    SegmentOrReturn,

    /// <summary>SYSCALL, SYSRET.</summary>
    SystemCall,

    /// <summary>A fault that only the shadow page tables caused; the guest never learns of it.</summary>
    HiddenPageFault,

    /// <summary>A page fault that the guest's own tables call for.</summary>
    GuestPageFault,

    /// <summary>Another exception that goes to the guest.</summary>
    GuestException,

    /// <summary>A data access to an address without RAM.</summary>
    Mmio,

    /// <summary>A kick from another thread, or a timer's deadline.</summary>
    Kick,

    /// <summary>A write to a page table of the guest's that the engine keeps its shadow page tables in step with.</summary>
    PageTableWrite,

    /// <summary>
    /// An instruction executed by itself: the one in an interrupt shadow, or a write to a page table that the core does not
    /// emulate.
    /// </summary>
    SingleStep,

    /// <summary>The guest became able to take an external interrupt that was waiting.</summary>
    InterruptWindow,

    /// <summary>A write to a page that holds code which the engine has translated.</summary>
    CodeWrite,

    /// <summary>A call of the paravirtual interface that was not served in the guest's own ring.</summary>
    Hypercall,
}

/// <summary>Names of <see cref="TrapReason"/> in files and JSON.</summary>
public static class TrapReasons
{
    private static readonly string[] Names =
    [
        "port-io",
        "region-marker",
        "rdtsc",
        "control-register",
        "cr3-switch",
        "debug-register",
        "interrupt-flag",
        "halt",
        "msr",
        "cpuid",
        "descriptor-table",
        "tlb-or-cache",
        "software-interrupt",
        "segment-or-return",
        "syscall",
        "hidden-page-fault",
        "guest-page-fault",
        "guest-exception",
        "mmio",
        "kick",
        "page-table-write",
        "single-step",
        "interrupt-window",
        "code-write",
        "hypercall",
    ];

    /// <summary>How many reasons there are.</summary>
    public static int Count => Names.Length;

    /// <summary>The reason's name in exits.csv and <c>exec --json</c>.</summary>
    public static string Name(this TrapReason reason) => Names[(int)reason];
}
