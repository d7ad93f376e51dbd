namespace VirtBench.Strategies.Hardware;

/// <summary>Whether /dev/kvm can be used.</summary>
public enum KvmAccess : byte
{
    /// <summary>It can.</summary>
    Usable,

    /// <summary>There is none: no module is loaded, or the host is not Linux on x86-64.</summary>
    NoDevice,

    /// <summary>It is there, but this user may not open it.</summary>
    NoPermission,

    /// <summary>It opens, but lacks something that the strategy cannot do without, or its self-check failed.</summary>
    Unusable,
}

/// <summary>How the module behind /dev/kvm executes guest ring-0 code.</summary>
public enum RingZeroExecution : byte
{
    /// <summary>On the CPU itself, as VT-x and AMD-V do.</summary>
    Native,

    /// <summary>Instruction by instruction, by an emulator in the host's kernel.</summary>
    Emulated,
}

/// <summary>A capability that /dev/kvm does not offer here.</summary>
/// <param name="Name">Name in linux/kvm.h.</param>
/// <param name="Effect">What is done or lost without it, in half a sentence.</param>
/// <param name="Required">The strategy cannot run without it.</param>
public sealed record MissingCapability(string Name, string Effect, bool Required);

/// <summary>What /dev/kvm is on this host, as found out by asking and by executing guest code, once per process.</summary>
public sealed record KvmHost
{
    /// <summary>Whether it can be used.</summary>
    public required KvmAccess Access { get; init; }

    /// <summary>Why it cannot, in one line that says what to do; null when it can.</summary>
    public string? UnavailableReason { get; init; }

    /// <summary>The module behind it: kvm_intel, kvm_amd, kvm_pvm; null where the kernel does not tell.</summary>
    public string? Module { get; init; }

    /// <summary>How guest ring-0 code is executed, measured; null when it was not found out.</summary>
    public RingZeroExecution? RingZero { get; init; }

    /// <summary>Time of one instruction of a counting loop in guest ring 0, in nanoseconds, measured at the same time.</summary>
    public double? RingZeroNanoseconds { get; init; }

    /// <summary>The same loop executed by this process, in nanoseconds an instruction.</summary>
    public double? HostNanoseconds { get; init; }

    /// <summary>True with EPT or NPT, false where KVM keeps shadow page tables; null where the module does not tell.</summary>
    public bool? NestedPaging { get; init; }

    /// <summary>The same in words, for labels: "nested paging (EPT)", "nested paging (NPT)", "shadow paging by KVM".</summary>
    public string? Paging { get; init; }

    /// <summary>What it does not offer, and what that means here.</summary>
    public IReadOnlyList<MissingCapability> Missing { get; init; } = [];

    /// <summary>
    /// What results must be labelled with in half a sentence, for instance that kvm_pvm's times are not those of VT-x; null
    /// when it is not usable.
    /// </summary>
    public string? Label { get; init; }

    /// <summary>This host, found out the first time it is asked for (some 20 ms where ring 0 is emulated).</summary>
    public static KvmHost Current => Found.Value;

    private static readonly Lazy<KvmHost> Found = new(KvmProbe.Examine);
}
