using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Simulation;

/// <summary>Ring 3 on the simulated CPU with nothing trapped that ring 3 may do: the baseline of the simulated strategies.</summary>
/// <param name="profile">What things cost; null for the textbook profile.</param>
public sealed class SimulatedNativeStrategy(CostProfile? profile = null) : Strategy
{
    private readonly CostProfile _profile = profile ?? CostProfile.Textbook;

    /// <inheritdoc/>
    public override string Id => "simulated-native";

    /// <inheritdoc/>
    public override string Description =>
        $"ring 3 of the simulated CPU, nothing trapped; time computed by cost profile '{_profile.Name}'";

    /// <inheritdoc/>
    public override string Label => "Simulated native";

    /// <inheritdoc/>
    public override bool IsSimulated => true;

    /// <inheritdoc/>
    public override bool RunsPrivilegedGuests => false;

    /// <inheritdoc/>
    public override string? UnavailableReason() => null;

    /// <inheritdoc/>
    public override IExecutionEngine CreateEngine(VirtualCpu cpu, GuestMemory memory) =>
        new SimulatedEngine(cpu, memory, _profile, SimulatedMode.Native);
}
