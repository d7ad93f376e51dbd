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

    /// <summary>The sensitive operation, of which a unit holds k: what it is lowered to.</summary>
    public abstract SensitiveOperation Operation(GuestInterface guestInterface);

    /// <summary>True when the units run in ring 3, where an engine may have holes that ring 0 does not have.</summary>
    public virtual bool RunsInUserMode => false;

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

    /// <summary>The disk that its guests need, apart from its content; null for none. The images say it in full.</summary>
    public virtual DiskRequirement? Disk => null;

    /// <summary>Largest k that a unit of this workload has room for.</summary>
    public virtual int MaximumTrapsPerUnit => 64;

    /// <summary>Filler instructions per unit in the standard sweep.</summary>
    public abstract int DefaultFiller { get; }

    /// <summary>
    /// Exits of the operation's kind that one sensitive operation is expected to take under an engine with these capabilities: none where
    /// one of its instructions falls through a hole or is served inline, or a hypercall is code of the guest's own ring 0. Null where the
    /// workload does not predict it.
    /// </summary>
    public virtual int? ExitsUnder(GuestInterface guestInterface, EngineCapabilities capabilities)
    {
        SensitiveOperation operation = Operation(guestInterface);
        bool exits = operation.Trap switch
        {
            null => false,
            TrapReason.TimeStampCounter => capabilities.TrapsTimeStampCounter,
            TrapReason.PortIo or TrapReason.Mmio or TrapReason.Halt => true, // the devices are the VMM's under every engine
            TrapReason.Hypercall => true,
            _ => capabilities.TrapsPrivilegedInstructions
                && !HolesUnder(guestInterface, capabilities).Any()
                && !operation.Names.Any(capabilities.Inlined.Contains),
        };
        return !exits ? 0
            : operation.Trap == TrapReason.Hypercall && !capabilities.TrapsPrivilegedInstructions
                ? operation.ExitsWithOwnRing0
            : operation.Exits;
    }

    /// <summary>Whether each sensitive operation is expected to trap: see <see cref="ExitsUnder"/>.</summary>
    public bool TrapsUnder(GuestInterface guestInterface, EngineCapabilities capabilities) =>
        ExitsUnder(guestInterface, capabilities) != 0;

    /// <summary>The holes of an engine that this workload's sensitive operations fall through when k is at least 1.</summary>
    public IEnumerable<VirtualizationHole> HolesUnder(GuestInterface guestInterface, EngineCapabilities capabilities) =>
        capabilities.Holes.Where(hole =>
            (RunsInUserMode || !hole.InUserModeOnly) && hole.Names.Any(Operation(guestInterface).Names.Contains)
        );

    /// <summary>Assembles the program.</summary>
    /// <exception cref="ArgumentOutOfRangeException">k or the filler does not fit; the message says the limits.</exception>
    public abstract GuestImage Build(WorkloadOptions options);
}

/// <summary>What a workload's sensitive operation is lowered to.</summary>
/// <param name="Instruction">As an assembler writes it, in short; null when there is none (<c>compute</c>).</param>
/// <param name="Trap">How the ledger counts the operation's traps; null when nothing of it ever traps.</param>
public sealed record SensitiveOperation(string? Instruction, TrapReason? Trap)
{
    /// <summary>No operation.</summary>
    public static SensitiveOperation None { get; } = new(null, null);

    /// <summary>
    /// What its instructions are called among an engine's holes (<see cref="VirtualizationHole.Names"/>). An engine that lists one of
    /// them does not run the workload faithfully, unless k = 0.
    /// </summary>
    public IReadOnlyList<string> Names { get; init; } = [];

    /// <summary>
    /// Exits of the kind <see cref="Trap"/> that one operation takes where it traps; null where that is not predicted. Exits of other
    /// kinds may accompany them.
    /// </summary>
    public int? Exits { get; init; } = 1;

    /// <summary>
    /// The same of a <see cref="TrapReason.Hypercall"/> where the guest's ring 0 executes privileged instructions itself, so that some
    /// hypercalls are code of its own.
    /// </summary>
    public int? ExitsWithOwnRing0 { get; init; } = 0;
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
