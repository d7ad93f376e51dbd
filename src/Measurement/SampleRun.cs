using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;
using VirtBench.Workloads;

namespace VirtBench.Measurement;

/// <summary>What one run of a workload in a fresh VM came to.</summary>
/// <param name="Outcome">How the guest ended.</param>
/// <param name="Regions">The regions it measured.</param>
/// <param name="Result">What it left in memory.</param>
/// <param name="Capabilities">The engine's capabilities.</param>
/// <param name="TicksPerSecond">Ticks per second of the engine's clock.</param>
/// <param name="Disturbance">What the host did meanwhile.</param>
internal sealed record SampleRun(
    RunOutcome Outcome,
    IReadOnlyList<MeasuredRegion> Regions,
    WorkloadResult Result,
    EngineCapabilities Capabilities,
    double TicksPerSecond,
    HostDisturbance Disturbance
)
{
    /// <summary>What the engine translated in all; null where it does not translate, or the run was abandoned.</summary>
    public TranslationStatistics? Translation { get; init; }
}

/// <summary>Runs a workload's image under a strategy with so many warm-up units and units.</summary>
internal delegate SampleRun SampleRunner(
    Strategy strategy,
    GuestImage image,
    long warmUp,
    long units,
    CancellationToken cancellation
);

/// <summary>The runner that measures: each sample in a VM of its own, so that none inherits another's state.</summary>
internal sealed class VirtualMachineRunner(SweepOptions options)
{
    public SampleRun Run(Strategy strategy, GuestImage image, long warmUp, long units, CancellationToken cancellation)
    {
        HostDisturbance before = HostDisturbance.Read();
        SampleRun run;
        using (var machine = new VirtualMachine(options.RamBytes, strategy.CreateEngine, options.Strict))
        {
            if (image.Disk is { } needed)
            {
                machine.AttachDisk(needed.Create(), strategy.Delivery);
            }

            machine.Load(
                image,
                new BootOptions
                {
                    Parameters = [(ulong)warmUp, (ulong)units],
                    Paravirtual = strategy.Interface == GuestInterface.Paravirtual,
                }
            );
            VcpuRun vcpu = VcpuThread.Run(machine, options.SampleTimeout, cancellation: cancellation);
            run = new SampleRun(
                vcpu.Outcome,
                [.. machine.Regions],
                WorkloadResult.Read(machine.Memory),
                machine.Capabilities,
                machine.Clock.TicksPerSecond,
                new HostDisturbance(0, vcpu.InvoluntarySwitches)
            )
            {
                Translation = vcpu.Outcome.End == RunEnd.Abandoned ? null : machine.TranslationStatistics(),
            };
        }

        return run with
        {
            Disturbance = run.Disturbance.And(HostDisturbance.Read().Since(before)),
        };
    }
}
