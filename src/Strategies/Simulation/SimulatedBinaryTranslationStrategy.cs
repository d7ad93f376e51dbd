using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Simulation;

/// <summary>A modelled binary translator on the simulated CPU: deterministic, on any host, and without a hole.</summary>
/// <param name="profile">What things cost; null for the textbook profile.</param>
public sealed class SimulatedBinaryTranslationStrategy(CostProfile? profile = null) : Strategy
{
    private readonly CostProfile _profile = profile ?? CostProfile.Textbook;

    /// <inheritdoc/>
    public override string Id => "simulated-binary-translation";

    /// <inheritdoc/>
    public override string Description =>
        $"translated guest on the simulated CPU, sensitive instructions inline or called out; time computed by cost profile '{_profile.Name}'";

    /// <inheritdoc/>
    public override string Label => "Simulated binary translation";

    /// <inheritdoc/>
    public override bool IsSimulated => true;

    /// <inheritdoc/>
    public override bool RunsPrivilegedGuests => true;

    /// <inheritdoc/>
    public override string? UnavailableReason() =>
        _profile.Translation is null
            ? $"cost profile '{_profile.Name}' has no field 'translation': add it as in Profiles/textbook.json"
            : null;

    /// <inheritdoc/>
    public override IExecutionEngine CreateEngine(VirtualCpu cpu, GuestMemory memory) =>
        new SimulatedEngine(cpu, memory, _profile, SimulatedMode.Translated);
}
