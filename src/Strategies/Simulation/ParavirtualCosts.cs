namespace VirtBench.Strategies.Simulation;

/// <summary>What the paravirtual interface costs on the simulated CPU, in cycles: the field <c>paravirtual</c> of a cost profile.</summary>
public sealed record ParavirtualCosts
{
    /// <summary>A hypercall: through the gate to the VMM and back, without what the VMM does there.</summary>
    public required int HypercallCycles { get; init; }
}
