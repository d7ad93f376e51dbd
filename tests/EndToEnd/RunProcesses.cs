using VirtBench.Measurement;
using VirtBench.Strategies;
using VirtBench.Tests;
using VirtBench.Workloads;

namespace VirtBench.EndToEnd;

/// <summary><c>run</c> interrupted in every way, and gone on with.</summary>
public sealed class RunProcesses
{
    private const int Samples = 40;

    [Theory]
    [InlineData("simulated-trap-and-emulate", Linux.Interrupt)]
    [InlineData("trap-and-emulate", Linux.Interrupt)]
    [InlineData("trap-and-emulate", Linux.Terminate)]
    [InlineData("trap-and-emulate", Linux.KillNow)]
    public async Task An_interrupted_run_keeps_its_samples_and_goes_on(string strategyId, int signal)
    {
        Strategy strategy = StrategyCatalog.Find(strategyId)!;
        Assert.SkipWhen(strategy.UnavailableReason() is not null, strategy.UnavailableReason() ?? "");
        using var folder = new TemporaryFolder();
        string results = folder.At("results");
        // What is computed is computed in one round only: there it takes forty densities to have as many samples.
        string plan = strategy.IsSimulated
            ? $"--traps-per-unit {string.Join(',', Enumerable.Range(0, Samples))}"
            : $"--rounds {Samples / 2} --traps-per-unit 0,1";
        using ToolProcess tool = Tool.Start(
            folder.FullPath,
            [.. $"run {plan} --workload rdtsc --strategy {strategyId} --out".Split(' '), results]
        );
        await tool.ErrorLine(line => line.StartsWith($"4 of {Samples}", StringComparison.Ordinal));

        tool.Signal(signal);

        ToolResult interrupted = tool.Finish();
        var run = RunFolder.In(results);
        string[][] kept = run.Samples;
        Assert.InRange(kept.Length, 4, Samples - 1);
        if (signal == Linux.KillNow)
        {
            tool.AssertNothingRuns();
        }
        else
        {
            Assert.Equal(130, interrupted.ExitCode);
            Assert.Contains("virtbench: interrupted; go on with: ./virtbench run --resume results/", interrupted.Error);
            Assert.True(File.Exists(run.At("report.html")));
            run.AssertSealed();
            tool.AssertNothingLeft();
        }

        ToolResult resumed = Tool.Run("run", "--resume", run.FullPath);

        Assert.True(resumed.ExitCode == 0, resumed.Error);
        string[][] all = run.Samples;
        Assert.Equal(Samples, all.Length);
        // Outliers are labelled anew among all samples; nothing else of what was measured changes.
        Assert.Equal(kept.Select(Measured), all[..kept.Length].Select(Measured));
        Assert.Equal(Samples, all.Select(row => $"{row[0]}/{row[3]}").Distinct().Count());
        Assert.All(all, row => Assert.Equal("ok", row[11]));
        Assert.All(all, row => Assert.Equal(long.Parse(row[3]) * long.Parse(row[4]), long.Parse(row[5])));
        run.AssertSealed();

        static string Measured(string[] row) => string.Join(',', [.. row[..10], .. row[11..]]);
    }

    [Fact]
    public void Every_workload_is_measured_under_every_strategy_that_can_run_it()
    {
        using var folder = new TemporaryFolder();
        ToolResult result = Tool.Run("run", "--rounds", "1", "--traps-per-unit", "1", "--out", folder.FullPath);
        Assert.True(result.ExitCode == 0, result.Error);
        var run = RunFolder.In(folder.FullPath);
        Assert.All(
            run.Samples,
            row =>
            {
                // A hole may end the guest; whatever else is wrong has no mark.
                bool marked = row[12].TrimStart('"').StartsWith("not faithful: ", StringComparison.Ordinal);
                Assert.True(row[11] == "ok" ? marked || row[12] == "" : marked, string.Join(',', row));
            }
        );
        foreach (Strategy strategy in StrategyCatalog.All.Where(one => one.UnavailableReason() is null))
        {
            Assert.Equal(
                WorkloadCatalog
                    .All.Where(one => SweepPlan.WhyNotUnder(strategy, one) is null)
                    .Select(one => one.Id)
                    .Order(StringComparer.Ordinal),
                run.Samples.Where(row => row[1] == strategy.Id)
                    .Select(row => row[2])
                    .Distinct()
                    .Order(StringComparer.Ordinal)
            );
        }

        run.AssertSealed();
    }

    [Fact]
    public void The_short_commands_succeed_as_processes()
    {
        foreach (string command in (string[])["list", "list --json", "doctor", "doctor --json", "--help", "--version"])
        {
            ToolResult result = Tool.Run(command.Split(' '));
            Assert.Equal((0, ""), (result.ExitCode, result.Error));
            Assert.NotEmpty(result.Output);
        }

        ToolResult reproduced = Tool.Run("reproduce");
        Assert.Equal((0, ""), (reproduced.ExitCode, reproduced.Error));
        foreach (string figure in (string[])["65 ", "1740 ", "26.8 ", "500 ", "0.5 "])
        {
            Assert.Contains(
                reproduced.Output.Split('\n'),
                line =>
                    line.TrimStart().StartsWith(figure, StringComparison.Ordinal)
                    && line.Contains(" agrees ", StringComparison.Ordinal)
            );
        }

        Assert.Contains("the same two loops on this host's CPU", reproduced.Output);
    }
}
