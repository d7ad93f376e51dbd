using VirtBench.Strategies.Hardware;

namespace VirtBench.Measurement;

/// <summary>
/// What a report discloses about the host: environment.json. A fact that the host does not tell is null, never guessed.
/// </summary>
/// <param name="HostName">Host name.</param>
/// <param name="Utc">When this was captured.</param>
/// <param name="Cpu">The processor.</param>
/// <param name="System">Operating system, memory, clocks, load.</param>
/// <param name="Hypervisor">What is below this host.</param>
/// <param name="Kvm">What this host offers of KVM.</param>
/// <param name="Process">What this process may do.</param>
/// <param name="Runtime">.NET.</param>
/// <param name="Project">Which VirtBench this is.</param>
public sealed record HostEnvironment(
    string HostName,
    DateTimeOffset Utc,
    CpuFacts Cpu,
    SystemFacts System,
    HypervisorFacts Hypervisor,
    KvmFacts Kvm,
    ProcessFacts Process,
    RuntimeFacts Runtime,
    ProjectFacts Project
);

/// <summary>The processor.</summary>
/// <param name="Architecture">Architecture of this process.</param>
/// <param name="Vendor">Vendor string.</param>
/// <param name="Model">Brand string.</param>
/// <param name="Family">Family, extended one included.</param>
/// <param name="ModelNumber">Model, extended one included.</param>
/// <param name="Stepping">Stepping.</param>
/// <param name="Microcode">Microcode revision as the kernel writes it.</param>
/// <param name="LogicalCpus">Online logical CPUs.</param>
/// <param name="Caches">Caches of CPU 0.</param>
/// <param name="SmtActive">Two threads share a core.</param>
/// <param name="TurboEnabled">The clock may rise above its base.</param>
/// <param name="Governor">Frequency governor of CPU 0.</param>
/// <param name="InvariantTsc">The time-stamp counter runs at one rate whatever the clock.</param>
/// <param name="TscHz">Its frequency, measured against CLOCK_MONOTONIC_RAW.</param>
/// <param name="Mitigations">State of each known vulnerability in the kernel's words.</param>
/// <param name="VirtualizationFlags">
/// Of the kernel's CPU flags those that tell of hardware assist: vmx (VT-x) or svm (AMD-V), ept or npt (nested paging). Null
/// where there are no such flags to look at.
/// </param>
public sealed record CpuFacts(
    string Architecture,
    string? Vendor,
    string? Model,
    int? Family,
    int? ModelNumber,
    int? Stepping,
    string? Microcode,
    int LogicalCpus,
    IReadOnlyList<CacheFacts> Caches,
    bool? SmtActive,
    bool? TurboEnabled,
    string? Governor,
    bool? InvariantTsc,
    double? TscHz,
    IReadOnlyDictionary<string, string> Mitigations,
    IReadOnlyList<string>? VirtualizationFlags
);

/// <summary>One cache.</summary>
/// <param name="Level">Level.</param>
/// <param name="Type">Data, Instruction or Unified.</param>
/// <param name="Size">Size as the kernel writes it.</param>
/// <param name="SharedCpus">Logical CPUs that share it.</param>
public sealed record CacheFacts(int Level, string Type, string Size, string? SharedCpus);

/// <summary>Operating system, memory, clocks, load.</summary>
/// <param name="OperatingSystem">Description by .NET.</param>
/// <param name="Kernel">Kernel release.</param>
/// <param name="KernelBuild">Kernel build.</param>
/// <param name="Clocksource">The kernel's clocksource.</param>
/// <param name="MemoryBytes">Memory.</param>
/// <param name="LoadAverage">One-minute load average.</param>
/// <param name="StealShare">Share of all CPUs' time since boot that the hypervisor below took, 0–1.</param>
/// <param name="MemfdNoexec">vm.memfd_noexec: 2 forbids executable memfds.</param>
/// <param name="MmapMinAddress">vm.mmap_min_addr: lowest address that a process may map.</param>
public sealed record SystemFacts(
    string OperatingSystem,
    string? Kernel,
    string? KernelBuild,
    string? Clocksource,
    long? MemoryBytes,
    double? LoadAverage,
    double? StealShare,
    int? MemfdNoexec,
    long? MmapMinAddress
);

/// <summary>What is below this host.</summary>
/// <param name="Present">CPUID says that a hypervisor is there; null where there is no CPUID.</param>
/// <param name="Vendor">Its CPUID signature.</param>
/// <param name="Type">/sys/hypervisor/type.</param>
/// <param name="Machine">DMI system vendor and product.</param>
/// <param name="Container">What container this process is in, as far as the system says so.</param>
public sealed record HypervisorFacts(bool? Present, string? Vendor, string? Type, string? Machine, string? Container);

/// <summary>What this host offers of KVM.</summary>
/// <param name="Modules">Loaded KVM modules, each with its parameters.</param>
/// <param name="DevicePresent">/dev/kvm exists.</param>
/// <param name="DeviceUsable">This user may open it for reading and writing.</param>
/// <param name="Access">Whether the hardware strategy can use it.</param>
/// <param name="Module">The module behind it; null where the kernel does not tell.</param>
/// <param name="Ring0">How it executes guest ring-0 code, measured; null when that was not found out.</param>
/// <param name="Ring0NanosecondsPerInstruction">Time of one instruction of a counting loop in guest ring 0.</param>
/// <param name="HostNanosecondsPerInstruction">Time of one instruction of the same loop in this process.</param>
/// <param name="NestedPaging">
/// True with EPT or NPT, false where KVM keeps shadow page tables; null where the module does not tell.
/// </param>
/// <param name="Paging">The same in words.</param>
/// <param name="Missing">Capabilities that it does not offer, and what that means.</param>
/// <param name="Label">What results of the hardware strategy are labelled with; null when it cannot be used.</param>
public sealed record KvmFacts(
    IReadOnlyDictionary<string, IReadOnlyDictionary<string, string>> Modules,
    bool DevicePresent,
    bool DeviceUsable,
    KvmAccess Access,
    string? Module,
    RingZeroExecution? Ring0,
    double? Ring0NanosecondsPerInstruction,
    double? HostNanosecondsPerInstruction,
    bool? NestedPaging,
    string? Paging,
    IReadOnlyList<MissingCapability> Missing,
    string? Label
);

/// <summary>What this process may do.</summary>
/// <param name="AllowedCpus">CPUs it may use, as the kernel lists them.</param>
/// <param name="AllowedCpuCount">How many these are.</param>
/// <param name="SeccompMode">Seccomp mode that it runs under already: 0 none, 2 filter.</param>
/// <param name="SeccompActions">Actions that the kernel's seccomp offers; null where it has none.</param>
/// <param name="NoNewPrivileges">no_new_privs is set.</param>
public sealed record ProcessFacts(
    string? AllowedCpus,
    int AllowedCpuCount,
    int? SeccompMode,
    string? SeccompActions,
    bool? NoNewPrivileges
);

/// <summary>.NET.</summary>
/// <param name="Version">Runtime's description.</param>
/// <param name="ServerGc">Server garbage collection.</param>
/// <param name="ConcurrentGc">Concurrent garbage collection.</param>
/// <param name="GcLatencyMode">GC latency mode.</param>
/// <param name="TieredCompilation">Tiered compilation as configured; null when nothing is configured.</param>
/// <param name="TieredPgo">Tiered PGO as configured; null when nothing is configured.</param>
public sealed record RuntimeFacts(
    string Version,
    bool ServerGc,
    bool? ConcurrentGc,
    string GcLatencyMode,
    bool? TieredCompilation,
    bool? TieredPgo
);

/// <summary>Which VirtBench this is.</summary>
/// <param name="Version">Version.</param>
/// <param name="Commit">Commit that it was built from.</param>
public sealed record ProjectFacts(string Version, string? Commit);
