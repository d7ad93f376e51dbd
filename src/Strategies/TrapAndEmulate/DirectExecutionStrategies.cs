using VirtBench.Strategies.Carrier;
using VirtBench.Strategies.Shadow;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Strategies.TrapAndEmulate;

/// <summary>Whether this host can run guests directly.</summary>
internal static class DirectExecutionProbe
{
    private static readonly CarrierProbe Instance = new(
        (cpu, memory, byIret) =>
            OperatingSystem.IsLinux()
                ? new DirectExecutionEngine(
                    cpu,
                    memory,
                    new DirectExecutionOptions
                    {
                        TrapTimeStampCounter = true,
                        ReturnByIret = byIret,
                        TimeSource = "self-check",
                    }
                )
                : throw new PlatformNotSupportedException()
    );

    /// <inheritdoc cref="CarrierProbe.UnavailableReason"/>
    public static string? UnavailableReason => Instance.UnavailableReason;

    /// <inheritdoc cref="CarrierProbe.IretRefusal"/>
    public static string? IretRefusal => Instance.IretRefusal;
}

/// <summary>What the strategies that run guest code directly in a carrier have in common.</summary>
public abstract class DirectExecutionStrategy : Strategy
{
    /// <inheritdoc/>
    public override bool IsSimulated => false;

    /// <summary>RDTSC and RDTSCP exit to the VMM.</summary>
    protected abstract bool TrapsTimeStampCounter { get; }

    /// <summary>How the shadow page tables follow the guest's.</summary>
    protected abstract ShadowPaging ShadowPolicy { get; }

    /// <inheritdoc/>
    public override string? UnavailableReason() => DirectExecutionProbe.UnavailableReason;

    /// <inheritdoc/>
    public override IExecutionEngine CreateEngine(VirtualCpu cpu, GuestMemory memory)
    {
        if (!OperatingSystem.IsLinux() || UnavailableReason() is not null)
        {
            throw new PlatformNotSupportedException(UnavailableReason());
        }

        bool byIret = DirectExecutionProbe.IretRefusal is null;
        return new DirectExecutionEngine(
            cpu,
            memory,
            new DirectExecutionOptions
            {
                TrapTimeStampCounter = TrapsTimeStampCounter,
                ReturnByIret = byIret,
                Shadow = ShadowPolicy,
                TimeSource =
                    $"measured on this host; exits are signals"
                    + (Interface == GuestInterface.Paravirtual ? ", hypercalls a gate without one" : "")
                    + $", return by {(byIret ? "xrstor+iretq" : "rt_sigreturn")}"
                    + (
                        RunsPrivilegedGuests ? $"; shadow page tables {ShadowPolicy.ToString().ToLowerInvariant()}" : ""
                    ),
            }
        );
    }
}

/// <summary>Classic trap-and-emulate by ring deprivileging: guest ring 0 runs in the host's ring 3.</summary>
public sealed class TrapAndEmulateStrategy : DirectExecutionStrategy
{
    /// <inheritdoc/>
    public override string Id => "trap-and-emulate";

    /// <inheritdoc/>
    public override string Label => "Trap-and-emulate";

    /// <inheritdoc/>
    public override string Description =>
        "guest ring 0 runs directly in the host's ring 3; privileged instructions trap and are emulated";

    /// <inheritdoc/>
    public override bool RunsPrivilegedGuests => true;

    /// <summary>How the shadow page tables follow the guest's.</summary>
    public ShadowPaging Shadow { get; init; } = ShadowPaging.Cached;

    /// <inheritdoc/>
    protected override bool TrapsTimeStampCounter => true;

    /// <inheritdoc/>
    protected override ShadowPaging ShadowPolicy => Shadow;
}

/// <summary>
/// Direct execution as for <see cref="TrapAndEmulateStrategy"/>, of guests that help: their hypercalls leave by a gate instead of a fault, and
/// RDTSC is left alone, since they read the time from it by the paravirtual clock.
/// </summary>
public sealed class ParavirtualStrategy : DirectExecutionStrategy
{
    /// <inheritdoc/>
    public override string Id => "paravirtual";

    /// <inheritdoc/>
    public override string Label => "Paravirtual";

    /// <inheritdoc/>
    public override string Description =>
        "guest ring 0 runs directly in the host's ring 3 and asks by hypercalls, through a gate without a signal";

    /// <inheritdoc/>
    public override bool RunsPrivilegedGuests => true;

    /// <inheritdoc/>
    public override GuestInterface Interface => GuestInterface.Paravirtual;

    /// <inheritdoc/>
    public override string? WhyNotDelivered(InterruptDelivery delivery) => null;

    /// <inheritdoc/>
    protected override bool TrapsTimeStampCounter => false;

    /// <inheritdoc/>
    protected override ShadowPaging ShadowPolicy => ShadowPaging.Cached;
}

/// <summary>The baseline: guest code runs directly in ring 3 and nothing in a region traps.</summary>
public sealed class NativeStrategy : DirectExecutionStrategy
{
    /// <inheritdoc/>
    public override string Id => "native";

    /// <inheritdoc/>
    public override string Label => "Native";

    /// <inheritdoc/>
    public override string Description =>
        "the baseline: ring 3, RDTSC not trapped; only workloads that need no privilege";

    /// <inheritdoc/>
    public override bool RunsPrivilegedGuests => false;

    /// <inheritdoc/>
    protected override bool TrapsTimeStampCounter => false;

    /// <summary>Nothing in its guests' regions writes CR3, so nothing is to be kept.</summary>
    protected override ShadowPaging ShadowPolicy => ShadowPaging.Flush;
}
