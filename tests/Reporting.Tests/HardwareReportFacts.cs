using System.Text.Json;
using VirtBench.Analysis;
using VirtBench.Measurement;
using VirtBench.Reporting.Figures;

namespace VirtBench.Reporting.Tests;

/// <summary>Reports of runs with hardware assist, on modules and with counts that are made up.</summary>
public sealed class HardwareReportFacts
{
    private const long Units = 1000;

    private static readonly int[] Densities = [0, 1, 4];

    private static readonly object Emulating = new
    {
        Hypervisor = new { Present = true },
        Kvm = new
        {
            Modules = new Dictionary<string, object>
            {
                ["kvm_pvm"] = new Dictionary<string, string> { ["pvm_emul_batch"] = "512" },
            },
            Module = "kvm_pvm",
            Ring0 = "emulated",
            Ring0NanosecondsPerInstruction = 777.25,
            HostNanosecondsPerInstruction = 0.25,
            NestedPaging = false,
            Paging = "shadow paging by KVM",
            Missing = new[]
            {
                new
                {
                    Name = "KVM_CAP_IMAGINARY",
                    Effect = "nothing is imagined",
                    Required = false,
                },
            },
        },
    };

    private static readonly object Native = new
    {
        Hypervisor = new { Present = false },
        Kvm = new
        {
            Module = "kvm_intel",
            Ring0 = "native",
            Ring0NanosecondsPerInstruction = 0.5,
            HostNanosecondsPerInstruction = 0.5,
            NestedPaging = true,
            Paging = "nested paging (EPT)",
            Missing = Array.Empty<object>(),
        },
    };

    /// <summary>
    /// rdtsc, which never reaches the monitor, at 50 ns each, and port-io, which always does. The kernel counts two exits of its own
    /// in a unit, one more for each RDTSC.
    /// </summary>
    private static SyntheticRun Run(object environment, int emulatedInstructions = 0, bool withAccount = true)
    {
        var run = SyntheticRun.Empty(
            description: SyntheticRun.Description(rounds: 3) with
            {
                Strategies = [new("hardware", "Hardware (made up)", false, "measured: made up")],
                Skipped = [],
            },
            environment: environment
        );
        using var log = run.Directory.Append();
        for (var round = 0; round < 3; round++)
        {
            foreach (var workload in new[] { "rdtsc", "port-io" })
            {
                foreach (var k in Densities)
                {
                    var cell = new Cell("hardware", workload, k);
                    var traps = workload == "port-io" ? k * Units : 0;
                    var sample = new Sample(
                        round,
                        cell,
                        Units,
                        traps,
                        ((5000 + k * 50) * Units) + round,
                        1,
                        0,
                        0,
                        OutlierLabel.None,
                        SampleStatus.Ok,
                        ""
                    );
                    var kernel = (2 * Units) + (k * Units) + 2;
                    log.SampleTaken(
                        sample,
                        new SampleRecords(
                            [
                                new ExitRecord(round, cell, "region-marker", 2, null, 1, 1, null),
                                .. traps == 0
                                    ? Array.Empty<ExitRecord>()
                                    : [new ExitRecord(round, cell, "port-io", traps, null, 1, 1, null)],
                            ],
                            !withAccount
                                ? []
                                :
                                [
                                    new KernelStatisticRecord(round, cell, "exits", (ulong)kernel),
                                    .. emulatedInstructions == 0
                                        ? Array.Empty<KernelStatisticRecord>()
                                        :
                                        [
                                            new KernelStatisticRecord(
                                                round,
                                                cell,
                                                "insn_emulation",
                                                (ulong)emulatedInstructions
                                            ),
                                        ],
                                ],
                            []
                        )
                    );
                }
            }
        }
        return run;
    }

    private static (string Markdown, ReportOutcome Outcome) Report(SyntheticRun run)
    {
        var outcome = ReportWriter.Write(run.Directory, new NoRenderer());
        var markdown = File.ReadAllText(run.Directory.At("report.md")).Replace("\\", "").Replace('\u202f', ' ');
        return (markdown, outcome);
    }

    /// <summary>What stands above the summary.</summary>
    private static string Top(string markdown) => markdown[..markdown.IndexOf("## Summary", StringComparison.Ordinal)];

    [Fact]
    public void A_module_that_emulates_ring_0_is_named_as_such_above_everything_else()
    {
        using var run = Run(Emulating);
        var top = Top(Report(run).Markdown);
        Assert.Contains("Results of Hardware (made up) come from **kvm_pvm**", top);
        Assert.Contains("emulates guest ring 0 instruction by instruction", top);
        Assert.Contains("took 777 ns there and 0.250 ns in a process of this host", top);
        Assert.Contains("not that of VT-x or AMD-V", top);
        Assert.Contains("Guest memory: shadow paging by KVM.", top);
        Assert.Contains("This host is a virtual machine itself", top);
        Assert.Contains("Not offered by /dev/kvm here: KVM_CAP_IMAGINARY (nothing is imagined).", top);
    }

    [Fact]
    public void Times_of_an_emulator_have_a_panel_of_their_own_and_no_say_in_what_a_trap_costs_here()
    {
        using var run = Run(Emulating);
        Assert.Equal(["Measured, ring 0 emulated"], PanelsOf(run));
        Assert.Contains("No strategy that runs on this host's processor was measured", Report(run).Markdown);

        using var native = Run(Native);
        Assert.Equal(["Measured on this host"], PanelsOf(native));
        Assert.Contains("On this host one costs", Report(native).Markdown);
    }

    private static IEnumerable<string> PanelsOf(SyntheticRun run) =>
        RunFigures
            .Of(RunAnalysis.Of(run.Directory))
            .First(figure => figure.Id == "time-per-unit-port-io")
            .Specification["hconcat"]!
            .AsArray()
            .Select(panel => panel!["title"]!["text"]!.GetValue<string>());

    [Fact]
    public void A_module_that_runs_ring_0_natively_is_named_with_its_paging()
    {
        using var run = Run(Native);
        var top = Top(Report(run).Markdown);
        Assert.Contains("**kvm_intel**. It runs guest ring 0 on the processor itself", top);
        Assert.Contains("Guest memory: nested paging (EPT).", top);
        Assert.DoesNotContain("virtual machine itself", top);
        Assert.DoesNotContain("Not offered", top);
    }

    [Fact]
    public void An_environment_that_says_nothing_of_kvm_is_not_guessed_at()
    {
        using var run = Run(SyntheticRun.EnvironmentRecord());
        var (markdown, _) = Report(run);
        Assert.Contains("a module that the kernel does not name", Top(markdown));
        Assert.Contains("was not recorded", Top(markdown));
        Assert.Contains("Which of the two this host has was not recorded.", markdown);
    }

    [Fact]
    public void A_run_without_hardware_results_does_not_speak_of_modules()
    {
        using var run = SyntheticRun.Full(rounds: 2);
        var (markdown, _) = Report(run);
        Assert.DoesNotContain("Results of", Top(markdown));
        Assert.DoesNotContain("Exits that the kernel handled itself", markdown);
    }

    [Fact]
    public void Exits_of_the_kernel_stand_beside_those_that_reach_user_space()
    {
        using var run = Run(Native);
        var (markdown, _) = Report(run);
        Assert.Contains("## Exits that the kernel handled itself", markdown);
        // Units, exits to user space, exits in all, the difference, per unit, per instruction beyond k = 0: of three rounds.
        Assert.Contains("| rdtsc | Hardware (made up) | 0 | 3 000 | 6 | 6 006 | 6 000 | 2.00 |  |", markdown);
        Assert.Contains("| rdtsc | Hardware (made up) | 4 | 3 000 | 6 | 18 006 | 18 000 | 6.00 | 1.00 |", markdown);
        Assert.Contains("| port-io | Hardware (made up) | 4 | 3 000 | 12 006 | 18 006 | 6 000 | 2.00 | 0 |", markdown);
        Assert.Contains("(TSC offsetting)", markdown);
        Assert.Contains("This host has nested paging (EPT).", markdown);
        Assert.DoesNotContain("in an emulator", markdown);
        Assert.DoesNotContain("Emulated instructions", markdown);
    }

    [Fact]
    public void Exits_that_stand_for_batches_are_told_by_what_was_counted()
    {
        using var run = Run(Emulating, emulatedInstructions: 400_200);
        var (markdown, _) = Report(run);
        Assert.Contains("Here kvm_pvm executes guest ring 0 in an emulator.", markdown);
        Assert.Contains("| Emulated instructions |", markdown);
        // 18 samples of 400,200; exits: 3 rounds, 2 workloads, 6,000 + 5,000 + 2 × 3 of every k.
        Assert.Contains(
            "it counted 7 203 600 emulated instructions (insn_emulation) in 66 036 exits here, 109 for",
            markdown
        );
        Assert.Contains("(kvm_pvm's parameter pvm_emul_batch is 512)", markdown);
    }

    [Fact]
    public void What_an_instruction_costs_without_an_exit_to_user_space_is_no_trap_cost()
    {
        using var run = Run(Native);
        var (markdown, outcome) = Report(run);
        var fit = outcome.Analysis.Fits.Single(fit => fit.Workload == "rdtsc");
        Assert.Null(fit.TrapNanoseconds);
        Assert.Equal(FitVerdict.ZeroTraps, fit.Verdict);
        Assert.StartsWith("0 traps: no Δt; 50.0 ns", fit.VerdictText);
        Assert.EndsWith("per instruction without an exit to the VMM", fit.VerdictText);
        Assert.Contains("0 exits to user space; an instruction costs 50.0 ns", markdown);
        Assert.Contains(
            "cost per instruction without an exit to user space, not the Δt of a trap: rdtsc 50.0 ns",
            markdown
        );
        Assert.DoesNotContain("rdtsc: Δt", markdown);
        Assert.DoesNotContain(
            outcome.Analysis.Fits.Where(fit => fit.TrapNanoseconds is not null),
            fit => fit.Workload == "rdtsc"
        );
        using var figure = JsonDocument.Parse(File.ReadAllBytes(run.Directory.At("figures/trap-cost.vl.json")));
        Assert.DoesNotContain("rdtsc", figure.RootElement.GetProperty("data").GetRawText());
    }

    [Fact]
    public void A_kernel_without_counters_leaves_the_section_out()
    {
        using var run = Run(Native, withAccount: false);
        var (markdown, _) = Report(run);
        Assert.DoesNotContain("Exits that the kernel handled itself", markdown);
        Assert.Contains("**kvm_intel**", Top(markdown));
    }

    [Fact]
    public void Notes_on_samples_that_are_used_are_told()
    {
        const string note = "an abandoned vCPU thread (hardware) may have occupied a CPU meanwhile";
        using var run = SyntheticRun.Empty();
        using (var log = run.Directory.Append())
        {
            foreach (var (sample, exits) in SyntheticRun.Samples(2))
            {
                log.SampleTaken(
                    sample with
                    {
                        Note = sample.Cell.Strategy == "native" ? note : "",
                    },
                    new SampleRecords(exits, [], [])
                );
            }
        }
        var (markdown, _) = Report(run);
        Assert.Contains("Notes on samples that fits do use", markdown);
        Assert.Contains($"| 14 | native | {note} |", markdown);
    }

    [Fact]
    public void A_long_label_leaves_figures_their_size()
    {
        Assert.SkipWhen(NodeFigureRenderer.FindFolder() is null, "Vega is not installed: npm ci did not run.");
        using var run = Run(Native);
        run.Directory.Describe(
            run.Directory.Manifest.Run with
            {
                Strategies = [new("hardware", "Hardware (kvm_pvm: not VT-x)", false, "measured: made up")],
            }
        );
        ReportWriter.Write(run.Directory);
        var labels = File.ReadAllText(run.Directory.At("figures/time-per-unit-rdtsc.svg"));
        Assert.Contains("Hardware (kvm_pvm: not VT-x), measured, 0 traps", labels);
    }
}
