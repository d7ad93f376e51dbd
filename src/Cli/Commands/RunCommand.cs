using System.CommandLine;
using VirtBench.Measurement;
using VirtBench.Reporting;
using VirtBench.Reporting.Runs;
using VirtBench.Strategies;
using VirtBench.Vmm.Interrupts;
using VirtBench.Workloads;

namespace VirtBench.Cli.Commands;

/// <summary><c>virtbench run</c>: the main job, from guests to report.</summary>
internal static class RunCommand
{
    public static Command Create(Terminal terminal)
    {
        var profile = new Option<string>("--profile")
        {
            Description = "quick (about two minutes), standard or thorough",
            DefaultValueFactory = _ => "quick",
        };
        Option<string[]> strategies = CommonOptions.List("--strategy", "Strategy ids; all when left out");
        Option<string[]> workloads = CommonOptions.List("--workload", "Workload ids; all when left out");
        Option<string[]> densities = CommonOptions.List(
            "--traps-per-unit",
            "Sensitive instructions per work unit, e.g. 0,1,2,4,8; the control 0 is always measured"
        );
        Option<int> rounds = CommonOptions.Number<int>(
            "--rounds",
            "Samples of each cell; the profile's when left out",
            "1 to 10000"
        );
        Option<ulong> seed = CommonOptions.Number<ulong>(
            "--seed",
            "Seed of the order; drawn and recorded when left out",
            "a whole number from 0 to 18446744073709551615"
        );
        Option<string> output = CommonOptions.Path("--out", "Folder that run directories go into", "DIR");
        output.DefaultValueFactory = _ => "results";
        Option<string> resume = CommonOptions.Path("--resume", "Go on with an interrupted run", "RUN");
        Option<string> costs = CommonOptions.CostProfile();
        Option<string> shadow = CommonOptions.Shadow();
        Option<string[]> deliveries = CommonOptions.List(
            "--interrupt-delivery",
            "How device interrupts reach the guest: exit (when left out), coalesced, direct, or all; workloads without a device are measured once"
        );
        Option<bool> strict = CommonOptions.Strict();
        var command = new Command("run", "Measure, fit, draw and report: the main job")
        {
            profile,
            strategies,
            workloads,
            densities,
            rounds,
            seed,
            output,
            resume,
            costs,
            shadow,
            deliveries,
            strict,
        };
        command.SetAction(parsed =>
        {
            if (parsed.GetValue(resume) is { } run)
            {
                RefuseBeside(
                    parsed,
                    profile,
                    strategies,
                    workloads,
                    densities,
                    rounds,
                    seed,
                    output,
                    costs,
                    shadow,
                    deliveries,
                    strict
                );
                return Execute(terminal, () => RunSession.Resume(run));
            }

            IReadOnlyList<InterruptDelivery> ways = Choice.Deliveries(parsed.GetValue(deliveries)!);
            string[] ks = parsed.GetValue(densities)!;
            SweepProfile chosen = Profile(parsed.GetValue(profile)!, ks, Given(parsed, rounds));
            var options = new SweepOptions
            {
                Strategies = StrategyCatalog.Delivering(
                    Choice.Strategies(
                        parsed.GetValue(strategies)!,
                        Choice.Profile(parsed.GetValue(costs)),
                        parsed.GetValue(shadow)
                    ),
                    ways
                ),
                Workloads = Choice.Workloads(parsed.GetValue(workloads)!),
                Profile = chosen,
                Seed = Given(parsed, seed) ?? (ulong)Random.Shared.NextInt64(1, 1L << 32),
                Strict = parsed.GetValue(strict),
            };
            foreach (Workload workload in options.Workloads)
            {
                if (ks.Length > 0 && chosen.Densities[^1] > workload.MaximumTrapsPerUnit)
                {
                    throw new UsageException(
                        $"--traps-per-unit {chosen.Densities[^1]}: a unit of {workload.Id} has room for {workload.MaximumTrapsPerUnit}"
                    );
                }
            }

            return Execute(
                terminal,
                () =>
                    RunSession.Start(
                        options,
                        parsed.GetValue(output)!,
                        CommandText(options, ways, ks.Length > 0, parsed.GetValue(costs), parsed.GetValue(shadow)),
                        parsed.GetValue(costs) is { } file ? File.ReadAllBytes(file) : null
                    )
            );
        });
        return command;
    }

    private static SweepProfile Profile(string name, string[] densities, int? rounds)
    {
        SweepProfile profile =
            SweepProfile.Find(name)
            ?? throw new UsageException(
                $"there is no profile '{name}'; the profiles are {string.Join(", ", SweepProfile.All.Select(known => known.Name))}"
            );
        if (rounds is < 1 or > 10_000)
        {
            throw new UsageException($"--rounds {rounds}: give 1 to 10000");
        }

        return profile with
        {
            Rounds = rounds ?? profile.Rounds,
            Densities = densities.Length > 0 ? Choice.Densities(densities) : profile.Densities,
        };
    }

    /// <summary>The option's value, or null when it was left out.</summary>
    private static T? Given<T>(ParseResult parsed, Option<T> option)
        where T : struct => parsed.GetResult(option) is null ? null : parsed.GetValue(option);

    private static void RefuseBeside(ParseResult parsed, params Option[] others)
    {
        foreach (Option other in others)
        {
            if (parsed.GetResult(other) is { Implicit: false })
            {
                throw new UsageException(
                    $"{other.Name} cannot be given with --resume: the run's manifest says what it measures"
                );
            }
        }
    }

    /// <summary>The command line that measures the same again, in the same order.</summary>
    private static string CommandText(
        SweepOptions options,
        IReadOnlyList<InterruptDelivery> deliveries,
        bool withDensities,
        string? costProfile,
        string? shadow
    ) =>
        string.Join(
            ' ',
            "./virtbench run",
            $"--profile {options.Profile.Name}",
            $"--strategy {string.Join(',', options.Strategies.Select(strategy => strategy.Basis.Id).Distinct())}",
            $"--workload {string.Join(',', options.Workloads.Select(workload => workload.Id))}",
            $"--rounds {options.Profile.Rounds}",
            $"--seed {options.Seed}"
        )
        + (withDensities ? $" --traps-per-unit {string.Join(',', options.Profile.Densities)}" : "")
        + (costProfile is null ? "" : $" --cost-profile {Quoted(costProfile)}")
        + (shadow is null ? "" : $" --shadow {shadow}")
        + (
            deliveries is [InterruptDelivery.Exit]
                ? ""
                : $" --interrupt-delivery {string.Join(',', deliveries.Select(delivery => delivery.Name()))}"
        )
        + (options.Strict ? " --strict" : "");

    private static int Execute(Terminal terminal, Func<RunSession> open)
    {
        using var cancellation = new CancellationTokenSource();
        using IDisposable interrupt = Terminal.CancelOnInterrupt(cancellation);
        try
        {
            RunSession session = open();
            foreach (SkippedCell skipped in session.Skipped)
            {
                string what = skipped.Workload is null ? skipped.Strategy : $"{skipped.Strategy}/{skipped.Workload}";
                terminal.Error.WriteLine($"skipped {what}: {skipped.Reason}");
            }

            SessionOutcome outcome;
            using (var progress = new ProgressLine(terminal))
            {
                outcome = session.Run(progress, cancellation.Token);
            }

            return Summarize(terminal, session, outcome);
        }
        catch (RunDirectoryException e)
        {
            throw new JobException(e.Message);
        }
        catch (ArgumentOutOfRangeException e)
        {
            throw new UsageException(e.Message);
        }
    }

    private static int Summarize(Terminal terminal, RunSession session, SessionOutcome outcome)
    {
        FitTable.Print(terminal, outcome.Report.Analysis.Fits);
        foreach (string notice in outcome.Report.Notices)
        {
            terminal.Error.WriteLine($"note: {notice}");
        }

        string path = Shown(session.Directory.FullPath);
        terminal.Output.WriteLine($"\nReport: {Path.Combine(path, RunDirectory.HtmlReportFile)}");
        if (!outcome.Sweep.Complete)
        {
            terminal.Error.WriteLine($"virtbench: interrupted; go on with: ./virtbench run --resume {Quoted(path)}");
            return ExitCode.Interrupted;
        }

        int failed = outcome.Report.Analysis.Contents.Samples.Count(sample => sample.IsWrong);
        if (failed > 0)
        {
            terminal.Error.WriteLine(
                $"virtbench: {failed} of {outcome.Report.Analysis.Contents.Samples.Count} samples failed or are not as expected; the report says which and why"
            );
            return ExitCode.Failed;
        }

        return ExitCode.Success;
    }

    /// <summary>A path as the user would type it: from the current folder when it lies in there.</summary>
    private static string Shown(string path)
    {
        string relative = Path.GetRelativePath(Environment.CurrentDirectory, path);
        return relative.StartsWith("..", StringComparison.Ordinal) ? path : relative;
    }

    /// <summary>A path as one word of a shell's command line.</summary>
    private static string Quoted(string path) =>
        path.All(c => char.IsLetterOrDigit(c) || c is '/' or '.' or '-' or '_')
            ? path
            : $"'{path.Replace("'", "'\\''", StringComparison.Ordinal)}'";
}
