using VirtBench.Strategies;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Measurement.Tests;

/// <summary>
/// A strategy of the native interface with guests of the paravirtual one: their hypercalls come to the core as VMCALL. No strategy that anybody is
/// offered, but a way to run these guests on engines that know nothing of them.
/// </summary>
internal sealed class ParavirtualVariant(Strategy strategy) : Strategy
{
    private const string Suffix = ", paravirtual guest";

    private static readonly string[] Varied =
    [
        "trap-and-emulate",
        "binary-translation",
        "simulated-trap-and-emulate",
        "simulated-binary-translation",
    ];

    /// <summary>Every way to run a paravirtual guest, by id: the strategies for it, and those that can be had for it.</summary>
    public static TheoryData<string> Ids =>
        [
            .. StrategyCatalog
                .All.Where(one => one.Interface == GuestInterface.Paravirtual)
                .Select(one => one.Id)
                .Concat(Varied.Select(id => id + Suffix)),
        ];

    public static Strategy Get(string id) =>
        id.EndsWith(Suffix, StringComparison.Ordinal)
            ? new ParavirtualVariant(StrategiesUnderTest.Get(id[..^Suffix.Length]))
            : StrategiesUnderTest.Get(id);

    public override string Id => strategy.Id + Suffix;

    public override string Description => strategy.Description;

    public override string Label => strategy.Label + Suffix;

    public override bool IsSimulated => strategy.IsSimulated;

    public override bool RunsPrivilegedGuests => strategy.RunsPrivilegedGuests;

    public override bool EmulatesRingZero => strategy.EmulatesRingZero;

    public override GuestInterface Interface => GuestInterface.Paravirtual;

    public override string? UnavailableReason() => strategy.UnavailableReason();

    public override IExecutionEngine CreateEngine(VirtualCpu cpu, GuestMemory memory) =>
        strategy.CreateEngine(cpu, memory);
}
