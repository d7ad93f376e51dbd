using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Simulation;

/// <summary>Trap-and-emulate on the simulated CPU: deterministic, on any host.</summary>
/// <param name="profile">What things cost; null for the textbook profile.</param>
public sealed class SimulatedTrapAndEmulateStrategy(CostProfile? profile = null) : Strategy
{
    private readonly CostProfile _profile = profile ?? CostProfile.Textbook;

    /// <inheritdoc/>
    public override string Id => "simulated-trap-and-emulate";

    /// <inheritdoc/>
    public override string Description =>
        $"ring-deprivileged guest on the simulated CPU, shadow paging; time computed by cost profile '{_profile.Name}'";

    /// <inheritdoc/>
    public override string Label => "Simulated trap-and-emulate";

    /// <inheritdoc/>
    public override bool IsSimulated => true;

    /// <inheritdoc/>
    public override bool RunsPrivilegedGuests => true;

    /// <inheritdoc/>
    public override string? UnavailableReason() => null;

    /// <inheritdoc/>
    public override IExecutionEngine CreateEngine(VirtualCpu cpu, GuestMemory memory) =>
        new SimulatedEngine(cpu, memory, _profile, SimulatedMode.Deprivileged);
}
