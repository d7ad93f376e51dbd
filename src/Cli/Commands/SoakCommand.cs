using System.CommandLine;
using VirtBench.Measurement;
using VirtBench.Strategies;
using VirtBench.Vmm.Execution;
using VirtBench.Workloads;

namespace VirtBench.Cli.Commands;

/// <summary><c>virtbench soak</c>: mini-os for minutes, with every count checked.</summary>
internal static class SoakCommand
{
    public static Command Create(Terminal terminal)
    {
        var workload = new Argument<string>("workload")
        {
            Description = "mini-os",
            DefaultValueFactory = _ => "mini-os",
        };
        workload.AcceptOnlyFromAmong("mini-os");
        var strategyId = new Option<string>("--strategy") { Description = "Strategy id", Required = true };
        Option<double> minutes = CommonOptions.Number<double>(
            "--minutes",
            "Guest time in minutes, 10 when left out",
            "minutes, more than 0 and at most 1440"
        );
        minutes.DefaultValueFactory = _ => 10;
        Option<int> processes = CommonOptions.Number<int>(
            "--processes",
            $"Processes of the guest, 1 to {MiniOs.MaximumProcesses}; 4 when left out",
            $"1 to {MiniOs.MaximumProcesses}"
        );
        processes.DefaultValueFactory = _ => 4;
        Option<int> hertz = CommonOptions.Number<int>(
            "--hertz",
            $"Frequency of the guest's timer; {SoakOptions.DefaultTimerHertz} when left out",
            $"{MiniOs.MinimumTimerHertz} to {MiniOs.MaximumTimerHertz} Hz"
        );
        hertz.DefaultValueFactory = _ => SoakOptions.DefaultTimerHertz;
        Option<string> costs = CommonOptions.CostProfile();
        Option<bool> json = CommonOptions.Json();
        var command = new Command(
            "soak",
            "Run mini-os for minutes and check every count: ticks, frames, results, memory. Exit code 1 when one is off"
        )
        {
            workload,
            strategyId,
            minutes,
            processes,
            hertz,
            costs,
            json,
        };
        command.SetAction(parsed =>
        {
            double given = parsed.GetValue(minutes);
            if (!(given is > 0 and <= 1440))
            {
                throw new UsageException($"--minutes {given}: give minutes, more than 0 and at most 1440");
            }

            var options = new SoakOptions
            {
                Duration = TimeSpan.FromMinutes(given),
                Processes = parsed.GetValue(processes),
                TimerHertz = parsed.GetValue(hertz),
            };
            if (options.Processes is < 1 or > MiniOs.MaximumProcesses)
            {
                throw new UsageException(
                    $"--processes {options.Processes}: mini-os has 1 to {MiniOs.MaximumProcesses} processes"
                );
            }

            if (options.TimerHertz is < MiniOs.MinimumTimerHertz or > MiniOs.MaximumTimerHertz)
            {
                throw new UsageException(
                    $"--hertz {options.TimerHertz}: the timer has {MiniOs.MinimumTimerHertz} to {MiniOs.MaximumTimerHertz} Hz"
                );
            }

            Strategy strategy = Choice.AvailableStrategy(
                parsed.GetValue(strategyId)!,
                Choice.Profile(parsed.GetValue(costs))
            );
            return strategy.RunsPrivilegedGuests
                ? Execute(terminal, strategy, options, parsed.GetValue(json))
                : throw new UsageException($"--strategy {strategy.Id}: an operating system needs ring 0");
        });
        return command;
    }

    private static int Execute(Terminal terminal, Strategy strategy, SoakOptions options, bool json)
    {
        using var cancellation = new CancellationTokenSource();
        using IDisposable interrupt = Terminal.CancelOnInterrupt(cancellation);
        int lastDecile = 0;
        SoakResult result = Soak.Run(
            strategy,
            options,
            (done, total) =>
            {
                int decile = (int)(10 * done / total);
                if (decile != lastDecile)
                {
                    lastDecile = decile;
                    terminal.Error.WriteLine($"{done} of {total} ticks");
                }
            },
            cancellation.Token
        );
        if (json)
        {
            terminal.Output.WriteLine(Json.Serialize(AsJson(result)));
        }
        else
        {
            Print(terminal.Output, result);
        }

        return result.Outcome.End == RunEnd.Cancelled ? ExitCode.Interrupted
            : result.Holds ? ExitCode.Success
            : ExitCode.Failed;
    }

    private static void Print(TextWriter output, SoakResult result)
    {
        MiniOsStatistics counted = result.Statistics;
        output.Write(result.Console);
        output.WriteLine(
            $"-- {result.Strategy}: {result.GuestNanoseconds / 1e9:F3} s of guest time in {result.HostNanoseconds / 1e9:F3} s "
                + $"({result.TimeSource})"
        );
        (string Name, ulong Count)[] counts =
        [
            ("work units", counted.Units),
            ("rounds", counted.Rounds),
            ("timer ticks", counted.Ticks),
            ("of these in the idle loop", counted.IdleTicks),
            ("of these late", (ulong)result.TicksLate),
            ("context switches", counted.ContextSwitches),
            ("preemptions", counted.Preemptions),
            ("page faults", counted.PageFaults),
            ("system calls", counted.Calls.Aggregate(0UL, (sum, count) => sum + count)),
            ("exits", (ulong)result.Ledger.Values.Sum()),
        ];
        foreach ((string name, ulong count) in counts)
        {
            output.WriteLine($"   {count, 12} {name}");
        }

        foreach (SoakCheck check in result.Checks)
        {
            output.WriteLine($"   {(check.Holds ? "ok " : "OFF")} {check.Name}: {check.Detail}");
        }
    }

    private static object AsJson(SoakResult result) =>
        new
        {
            result.Strategy,
            result.Holds,
            End = result.Outcome.End.ToString().ToLowerInvariant(),
            Status = result.Outcome.End == RunEnd.Exited ? (int?)result.Outcome.Status : null,
            Error = result.Outcome.Message,
            result.Console,
            GuestNs = Math.Round(result.GuestNanoseconds, 1),
            EngineNs = Math.Round(result.EngineNanoseconds, 1),
            HostNs = Math.Round(result.HostNanoseconds, 1),
            Ticks = new
            {
                Made = result.TimerTicks,
                Taken = result.TicksTaken,
                Late = result.TicksLate,
                Owed = result.TicksOwed,
                Least = result.TicksLeast,
                Most = result.TicksMost,
            },
            Kernel = new
            {
                result.Statistics.Ticks,
                result.Statistics.IdleTicks,
                result.Statistics.Spurious,
                result.Statistics.ContextSwitches,
                result.Statistics.Preemptions,
                result.Statistics.Halts,
                result.Statistics.PageFaults,
                result.Statistics.FreeFramesAtStart,
                result.Statistics.FreeFramesAtEnd,
                result.Statistics.FewestFreeFrames,
                result.Statistics.Rounds,
                result.Statistics.DeviatingRounds,
                result.Statistics.Units,
                result.Statistics.UnknownCalls,
                Calls = Enum.GetValues<MiniOsCall>()
                    .Zip(result.Statistics.Calls)
                    .ToDictionary(call => call.First.ToString().ToLowerInvariant(), call => call.Second),
            },
            Exits = result.Ledger,
            result.MemoryBefore,
            result.MemoryAfter,
            result.Checks,
            result.TimeSource,
        };
}
