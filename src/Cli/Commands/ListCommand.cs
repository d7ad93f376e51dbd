using System.CommandLine;
using VirtBench.Strategies;
using VirtBench.Vmm.Paravirtual;
using VirtBench.Workloads;

namespace VirtBench.Cli.Commands;

/// <summary><c>virtbench list</c>: what there is, and what of it this host can run.</summary>
internal static class ListCommand
{
    public static Command Create(Terminal terminal)
    {
        var what = new Argument<string?>("what")
        {
            Description = "strategies or workloads; both when left out",
            Arity = ArgumentArity.ZeroOrOne,
        };
        what.AcceptOnlyFromAmong("strategies", "workloads");
        Option<bool> json = CommonOptions.Json();
        var command = new Command("list", "Strategies and workloads, and what of them this host can run")
        {
            what,
            json,
        };
        command.SetAction(parsed =>
        {
            string? word = parsed.GetValue(what);
            bool strategies = word is null or "strategies";
            bool workloads = word is null or "workloads";
            if (parsed.GetValue(json))
            {
                PrintJson(terminal, strategies, workloads);
            }
            else
            {
                PrintText(terminal, strategies, workloads);
            }

            return ExitCode.Success;
        });
        return command;
    }

    private static void PrintJson(Terminal terminal, bool strategies, bool workloads)
    {
        var result = new Dictionary<string, object>();
        if (strategies)
        {
            result["strategies"] = StrategyCatalog.All.Select(strategy =>
            {
                string? reason = strategy.UnavailableReason();
                return new
                {
                    strategy.Id,
                    Available = reason is null,
                    Reason = reason,
                    strategy.Label,
                    strategy.Description,
                    Simulated = strategy.IsSimulated,
                };
            });
        }

        if (workloads)
        {
            result["workloads"] = WorkloadCatalog.All.Select(workload => new
            {
                workload.Id,
                workload.Description,
                SensitiveInstruction = workload.Operation(GuestInterface.Native).Instruction,
                ParavirtualOperation = workload.Operation(GuestInterface.Paravirtual).Instruction,
                workload.NeedsPrivilege,
                workload.MaximumTrapsPerUnit,
            });
        }

        terminal.Output.WriteLine(Json.Serialize(result));
    }

    private static void PrintText(Terminal terminal, bool strategies, bool workloads)
    {
        if (strategies)
        {
            terminal.Output.WriteLine("Strategies");
            foreach (Strategy strategy in StrategyCatalog.All)
            {
                terminal.Output.WriteLine($"  {strategy.Id, -30}{strategy.Description}");
                if (strategy.UnavailableReason() is { } reason)
                {
                    terminal.Output.WriteLine($"  {"", -30}not available here: {reason}");
                }
            }
        }

        if (workloads)
        {
            terminal.Output.WriteLine(strategies ? "\nWorkloads" : "Workloads");
            foreach (Workload workload in WorkloadCatalog.All)
            {
                terminal.Output.WriteLine($"  {workload.Id, -30}{workload.Description}");
            }
        }
    }
}
