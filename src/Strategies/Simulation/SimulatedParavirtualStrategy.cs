using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Strategies.Simulation;

/// <summary>Guests of the paravirtual interface on the simulated CPU: deterministic, on any host.</summary>
/// <param name="profile">What things cost; null for the textbook profile.</param>
public sealed class SimulatedParavirtualStrategy(CostProfile? profile = null) : Strategy
{
    private readonly CostProfile _profile = profile ?? CostProfile.Textbook;

    /// <inheritdoc/>
    public override string Id => "simulated-paravirtual";

    /// <inheritdoc/>
    public override string Description =>
        $"ring-deprivileged guest on the simulated CPU that asks by hypercalls; time computed by cost profile '{_profile.Name}'";

    /// <inheritdoc/>
    public override string Label => "Simulated paravirtual";

    /// <inheritdoc/>
    public override bool IsSimulated => true;

    /// <inheritdoc/>
    public override bool RunsPrivilegedGuests => true;

    /// <inheritdoc/>
    public override GuestInterface Interface => GuestInterface.Paravirtual;

    /// <inheritdoc/>
    public override string? WhyNotDelivered(InterruptDelivery delivery) => null;

    /// <inheritdoc/>
    public override string? UnavailableReason() =>
        _profile.Paravirtual is null
            ? $"cost profile '{_profile.Name}' has no field 'paravirtual': add it as in Profiles/textbook.json"
            : null;

    /// <inheritdoc/>
    public override IExecutionEngine CreateEngine(VirtualCpu cpu, GuestMemory memory) =>
        new SimulatedEngine(cpu, memory, _profile, SimulatedMode.Paravirtual);
}
