using System.Text.Json.Nodes;
using VirtBench.Analysis;

namespace VirtBench.Reporting.Reports;

/// <summary>
/// What stands near the top of every report with results of hardware assist: which module they come from, how it executes guest
/// ring 0, and how it translates guest addresses. All of it is environment.json's.
/// </summary>
internal static class HardwareParagraph
{
    public static IEnumerable<Block> Of(RunAnalysis run)
    {
        var strategies = run
            .Fits.Select(fit => run.Strategy(fit.Strategy))
            .Where(strategy => !strategy.IsComputed && KvmEntry.IsOf(strategy.Id))
            .DistinctBy(strategy => strategy.Id)
            .ToList();
        if (strategies.Count == 0)
        {
            yield break;
        }
        var kvm = new KvmEntry(run.Environment);
        var labels = string.Join(", ", strategies.Select(strategy => strategy.Label));
        yield return new Paragraph(
            $"Results of {labels} come from ",
            Span.Strong(kvm.Module ?? "a module that the kernel does not name"),
            ". ",
            RingZero(kvm) + Paging(kvm) + BelowThisHost(run.Environment)
        );
        if (kvm.Missing.Count > 0)
        {
            yield return new Paragraph($"Not offered by /dev/kvm here: {string.Join("; ", kvm.Missing)}.");
        }
    }

    private static string RingZero(KvmEntry kvm)
    {
        var measured = kvm is { RingZeroNanoseconds: { } inside, HostNanoseconds: { } outside }
            ? $" (an instruction of a counting loop took {Quantity.Time(inside)} there and {Quantity.Time(outside)} in a process "
                + "of this host, measured when the run began)"
            : "";
        return kvm.IsRingZeroEmulated switch
        {
            true =>
                $"It emulates guest ring 0 instruction by instruction in the host's kernel{measured}: how long a guest takes is "
                    + "the emulator's time, not that of VT-x or AMD-V, and some instructions answer otherwise (docs/strategies.md).",
            false => $"It runs guest ring 0 on the processor itself{measured}.",
            null => "How it executes guest ring 0 was not recorded.",
        };
    }

    private static string Paging(KvmEntry kvm) =>
        kvm.Paging is { } words ? $" Guest memory: {words}." : " Whether paging was nested or shadow was not recorded.";

    private static string BelowThisHost(JsonNode environment) =>
        KvmEntry.Member(environment, "hypervisor", "present") is JsonValue value
        && value.TryGetValue(out bool present)
        && present
            ? " This host is a virtual machine itself: what a module asks of virtualization hardware goes through the hypervisor below."
            : "";
}
