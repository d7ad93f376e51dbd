using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Disks;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Workloads;

/// <summary>What a workload's program is built for. Run-time values (units) are boot parameters, not part of the image.</summary>
/// <param name="TrapsPerUnit">k: sensitive instructions per work unit; 0 is the control.</param>
/// <param name="FillerInstructions">
/// Instructions one work unit executes besides the k sensitive ones, loop control included: exactly this many for every k. The
/// unit of a <see cref="CodeKernel"/> is as many whole repetitions as have room in it.
/// </param>
/// <param name="Interface">What the program's operations on the machine are lowered to.</param>
public sealed record WorkloadOptions(
    int TrapsPerUnit,
    int FillerInstructions,
    GuestInterface Interface = GuestInterface.Native
);

/// <summary>
/// A guest program with a work unit that holds k sensitive instructions and is otherwise the same for every k. Boot
/// parameters: [0] units to warm up with outside the region, [1] units to measure.
/// </summary>
public abstract class Workload
{
    /// <summary>Region id of the measured region.</summary>
    public const uint MeasuredRegionId = 1;

    /// <summary>Stable id used on the command line and in files.</summary>
    public abstract string Id { get; }

    /// <summary>One line for <c>virtbench list</c>.</summary>
    public abstract string Description { get; }

    /// <summary>The sensitive instruction as an assembler writes it, or null when there is none (<c>compute</c>).</summary>
    public abstract string? SensitiveInstruction { get; }

    /// <summary>
    /// What the sensitive instructions are called among an engine's holes (<see cref="VirtualizationHole.Names"/>). An engine
    /// that lists one of them does not run this workload faithfully, unless k = 0.
    /// </summary>
    public virtual IReadOnlyList<string> SensitiveNames => [];

    /// <summary>True when the units run in ring 3, where an engine may have holes that ring 0 does not have.</summary>
    public virtual bool RunsInUserMode => false;

    /// <summary>How the ledger counts the sensitive operation's traps; null when nothing of it ever traps.</summary>
    public abstract TrapReason? ExpectedTrap { get; }

    /// <summary>Exits of that kind that one operation takes where it traps. Exits of other kinds may accompany them.</summary>
    public virtual int ExitsPerOperation => 1;

    /// <summary>True when the region executes instructions that ring 3 may not; such a workload cannot run natively.</summary>
    public abstract bool NeedsPrivilege { get; }

    /// <summary>
    /// True when the region executes SSE2 instructions in ring 0: an emulator of ring 0 may lack them
    /// (<c>kvm_pvm</c>'s does).
    /// </summary>
    public virtual bool NeedsVectorUnit => false;

    /// <summary>
    /// False when the program is the same for every k, and that is no matter of interest: a sweep then measures the least k
    /// only.
    /// </summary>
    public virtual bool DependsOnDensity => true;

    /// <summary>
    /// True when devices interrupt the region: a strategy with another way of delivering interrupts is of interest here only.
    /// </summary>
    public virtual bool UsesDeviceInterrupts => false;

    /// <summary>The disk that its guests need; null for none. The images say the same.</summary>
    public virtual DiskRequirement? Disk => null;

    /// <summary>Largest k that a unit of this workload has room for.</summary>
    public virtual int MaximumTrapsPerUnit => 64;

    /// <summary>Filler instructions per unit in the standard sweep.</summary>
    public abstract int DefaultFiller { get; }

    /// <summary>
    /// Whether, under an engine with these capabilities, each sensitive operation is expected to trap: not where one of its
    /// instructions falls through a hole, or is served inline.
    /// </summary>
    public virtual bool TrapsUnder(EngineCapabilities capabilities) =>
        ExpectedTrap switch
        {
            null => false,
            TrapReason.TimeStampCounter => capabilities.TrapsTimeStampCounter,
            TrapReason.PortIo or TrapReason.Mmio or TrapReason.Halt => true, // the devices are the VMM's under every engine
            _ => capabilities.TrapsPrivilegedInstructions
                && !HolesUnder(capabilities).Any()
                && !SensitiveNames.Any(capabilities.Inlined.Contains),
        };

    /// <summary>The holes of an engine that this workload's sensitive instructions fall through when k is at least 1.</summary>
    public IEnumerable<VirtualizationHole> HolesUnder(EngineCapabilities capabilities) =>
        capabilities.Holes.Where(hole =>
            (RunsInUserMode || !hole.InUserModeOnly) && hole.Names.Any(SensitiveNames.Contains)
        );

    /// <summary>Assembles the program.</summary>
    /// <exception cref="ArgumentOutOfRangeException">k or the filler does not fit; the message says the limits.</exception>
    public abstract GuestImage Build(WorkloadOptions options);
}

/// <summary>What a workload leaves in guest memory when it ends.</summary>
/// <param name="Checksum">
/// Result of the work done; equal on every strategy for the same options, warm-up units and units. Whether it depends on k is
/// each workload's to say.
/// </param>
/// <param name="TscTicks">TSC difference that the guest itself took around the region markers.</param>
public readonly record struct WorkloadResult(ulong Checksum, ulong TscTicks)
{
    /// <summary>Guest-physical address of the result block: checksum, then TSC ticks, 8 bytes each.</summary>
    public const ulong Address = 0x3_0000;

    /// <summary>Reads the block from guest RAM.</summary>
    public static WorkloadResult Read(Vmm.Memory.GuestMemory memory) =>
        new(memory.Read<ulong>(Address), memory.Read<ulong>(Address + 8));
}
