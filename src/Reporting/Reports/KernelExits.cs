using System.Globalization;
using VirtBench.Analysis;
using VirtBench.Measurement;
using VirtBench.Vmm.Execution;

namespace VirtBench.Reporting.Reports;

/// <summary>
/// The exits that reach the monitor beside all that the host's kernel counts: why an instruction can show 0 traps and yet cost
/// something.
/// </summary>
internal static class KernelExits
{
    private const string HostInterrupts = "irq_exits";
    private const string EmulatedInstructions = "insn_emulation";

    /// <summary>Emulated instructions for each exit above which the kernel's exits are counts of batches.</summary>
    private const double BatchFactor = 2;

    /// <summary>Nothing where no strategy has such an account.</summary>
    public static IReadOnlyList<Block> Of(RunAnalysis run)
    {
        var cells = Cells(run);
        if (cells.Count == 0)
        {
            return [];
        }
        var blocks = new List<Block>
        {
            new Paragraph(
                "A trap is an exit that reaches the monitor in user space, and exits.csv counts these. The kernel counts every exit "
                    + "from the guest, those included; the difference is what it handled without the monitor. Region markers are "
                    + "in both counts."
            ),
            Table(run, cells),
        };
        var kvm = new KvmEntry(run.Environment);
        blocks.Add(new BulletList([.. Explanations(run, cells, kvm)]));
        return blocks;
    }

    private static List<CellCounts> Cells(RunAnalysis run)
    {
        var usable = run
            .Contents.Samples.Where(sample => sample.Status == SampleStatus.Ok)
            .ToDictionary(sample => (sample.Round, sample.Cell));
        var kernel = run
            .Contents.KernelStatistics.Where(counter => usable.ContainsKey((counter.Round, counter.Cell)))
            .ToLookup(counter => counter.Cell);
        var toUserSpace = run
            .Contents.Exits.Where(exit => usable.ContainsKey((exit.Round, exit.Cell)))
            .ToLookup(exit => exit.Cell);
        var units = usable.Values.ToLookup(sample => sample.Cell);
        return
        [
            .. run
                .Fits.SelectMany(fit =>
                    fit.Densities.Select(at => new Cell(fit.Strategy, fit.Workload, at.TrapsPerUnit))
                )
                .Where(kernel.Contains)
                .Select(cell => new CellCounts(
                    cell,
                    units[cell].Sum(sample => (double)sample.Units),
                    toUserSpace[cell].Sum(exit => (double)exit.Count),
                    kernel[cell]
                        .GroupBy(counter => counter.Statistic)
                        .ToDictionary(group => group.Key, group => group.Sum(counter => (double)counter.Count))
                ))
                .Where(cell => cell.Statistics.ContainsKey(KernelStatistics.Exits)),
        ];
    }

    private static Table Table(RunAnalysis run, List<CellCounts> cells)
    {
        var hasInterrupts = cells.Exists(cell => cell.Statistic(HostInterrupts) > 0);
        var hasEmulation = cells.Exists(cell => cell.Statistic(EmulatedInstructions) > 0);
        return new Table(
            "Exits to user space and exits in the kernel, over all usable samples",
            [
                new("Workload"),
                new("Strategy"),
                new("k", true),
                new("Units", true),
                new("Exits to user space", true),
                new("Exits, by the kernel", true),
                new("Handled in the kernel", true),
                new("per unit", true),
                new("per instruction, beyond k = 0", true),
                .. hasInterrupts ? [new("Host interrupts", true)] : Array.Empty<Column>(),
                .. hasEmulation ? [new("Emulated instructions", true)] : Array.Empty<Column>(),
            ],
            [
                .. cells.Select(cell =>
                    (IReadOnlyList<string>)
                        [
                            cell.Cell.Workload,
                            run.Strategy(cell.Cell.Strategy).Label,
                            cell.Cell.TrapsPerUnit.ToString(CultureInfo.InvariantCulture),
                            Count(cell.Units),
                            Count(cell.ToUserSpace),
                            Count(cell.InAll),
                            Count(cell.InKernel),
                            cell.Units > 0 ? Quantity.Number(cell.InKernel / cell.Units) : "",
                            PerInstruction(run, cells, cell),
                            .. hasInterrupts ? [Count(cell.Statistic(HostInterrupts))] : Array.Empty<string>(),
                            .. hasEmulation ? [Count(cell.Statistic(EmulatedInstructions))] : Array.Empty<string>(),
                        ]
                ),
            ]
        );
    }

    private static IEnumerable<Paragraph> Explanations(RunAnalysis run, List<CellCounts> cells, KvmEntry kvm)
    {
        if (kvm.IsRingZeroEmulated == true)
        {
            yield return new Paragraph(
                $"Here {kvm.Module ?? "the module"} executes guest ring 0 in an emulator. RDTSC, CPUID and MOV to CR3 show no exit to "
                    + "user space because that emulator completes them in the kernel, like the instructions around them. With "
                    + "VT-x or AMD-V the reasons would be those of the next item."
            );
        }
        yield return new Paragraph(
            "RDTSC need not exit: the processor adds the guest's offset to its counter and goes on (TSC offsetting). CPUID exits, "
                + "and KVM answers it in the kernel. MOV to CR3 need not exit with nested paging, where the processor walks the "
                + "guest's own tables; with shadow paging it exits, and KVM changes its shadow page table in the kernel. "
                + kvm.IsPagingNested switch
                {
                    true => $"This host has {kvm.Paging ?? "nested paging"}.",
                    false => $"This host has {kvm.Paging ?? "shadow paging"}.",
                    null => "Which of the two this host has was not recorded.",
                }
        );
        yield return new Paragraph(
            $"What the kernel handled also holds what no sensitive instruction caused: interrupts of the host, for one, end guest mode "
                + $"({HostInterrupts}). The rows of k = 0 show how much that is; exits per instruction leave it out."
        );
        var emulated = cells.Sum(cell => cell.Statistic(EmulatedInstructions));
        var exits = cells.Sum(cell => cell.InAll);
        if (exits > 0 && emulated > BatchFactor * exits)
        {
            yield return new Paragraph(
                $"One exit in the kernel's count need not be one instruction: it counted {Count(emulated)} emulated instructions "
                    + $"({EmulatedInstructions}) in {Count(exits)} exits here, {Quantity.Number(emulated / exits)} for each"
                    + (kvm.EmulationBatch is { } batch ? $" (kvm_pvm's parameter pvm_emul_batch is {batch})" : "")
                    + ". Exits per instruction say little then; the cost per instruction is the slope of the fit."
            );
        }
        if (cells.Exists(cell => cell.InKernel < 0))
        {
            yield return new Paragraph(
                "Where the difference is below 0, the kernel did not count some exits that reached the monitor: it had emulated the "
                    + "instruction without entering guest mode."
            );
        }
        var rising = run
            .Fits.Where(fit =>
                fit.Verdict == FitVerdict.ZeroTraps
                && run.KernelCounted.Contains(fit.Strategy)
                && fit.UntrappedInstructionNanoseconds is { Low: > 0 }
            )
            .ToList();
        if (rising.Count > 0)
        {
            yield return new Paragraph(
                "The time of a unit rises with k although nothing reached the monitor. That slope is the cost per instruction without "
                    + "an exit to user space, not the Δt of a trap: "
                    + string.Join(
                        "; ",
                        rising.Select(fit =>
                            $"{fit.Workload} {Quantity.Time(fit.UntrappedInstructionNanoseconds!.Value)}, {run.Strategy(fit.Strategy).Label}"
                        )
                    )
                    + "."
            );
        }
    }

    /// <summary>
    /// What k sensitive instructions add to a unit, by k: a division of all exits would lay the host's interrupts at their door.
    /// </summary>
    private static string PerInstruction(RunAnalysis run, List<CellCounts> cells, CellCounts cell)
    {
        var control = cells.Find(other => other.Cell == cell.Cell with { TrapsPerUnit = 0 });
        return
            run.Workload(cell.Cell.Workload).SensitiveInstruction is not null
            && cell is { Cell.TrapsPerUnit: > 0, Units: > 0 }
            && control is { Units: > 0 }
            ? Quantity.Number(
                ((cell.InKernel / cell.Units) - (control.InKernel / control.Units)) / cell.Cell.TrapsPerUnit
            )
            : "";
    }

    private static string Count(double count) =>
        count.ToString("N0", CultureInfo.InvariantCulture).Replace(",", "\u202f").Replace("-", "\u2212");

    /// <summary>Counts of one cell, summed over its usable samples.</summary>
    private sealed record CellCounts(
        Cell Cell,
        double Units,
        double ToUserSpace,
        IReadOnlyDictionary<string, double> Statistics
    )
    {
        public double InAll => Statistic(KernelStatistics.Exits);

        public double InKernel => InAll - ToUserSpace;

        public double Statistic(string name) => Statistics.GetValueOrDefault(name);
    }
}
