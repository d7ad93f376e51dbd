using System.CommandLine;
using VirtBench.Measurement;
using VirtBench.Strategies;

namespace VirtBench.Cli.Commands;

/// <summary><c>virtbench doctor</c>: what on this host disturbs measurements or forbids a strategy.</summary>
internal static class DoctorCommand
{
    public static Command Create(Terminal terminal)
    {
        Option<bool> json = CommonOptions.Json();
        var command = new Command(
            "doctor",
            "What on this host will disturb measurements or forbid a strategy, and the command that mends it"
        )
        {
            json,
        };
        command.SetAction(parsed =>
        {
            IReadOnlyList<Finding> findings = Doctor.Examine(StrategyCatalog.All);
            if (parsed.GetValue(json))
            {
                terminal.Output.WriteLine(
                    Json.Serialize(
                        new
                        {
                            Findings = findings.Select(finding => new
                            {
                                finding.Id,
                                Severity = Name(finding.Severity),
                                finding.What,
                                finding.Effect,
                                finding.Remedy,
                            }),
                        }
                    )
                );
                return ExitCode.Success;
            }

            foreach (Finding finding in findings.OrderByDescending(finding => finding.Severity))
            {
                terminal.Output.WriteLine($"{Name(finding.Severity), -8} {finding.What}");
                terminal.Output.WriteLine($"{"", -8} {finding.Effect}");
                if (finding.Remedy is { } remedy)
                {
                    terminal.Output.WriteLine($"{"", -8} mend: {remedy}");
                }
            }

            if (findings.Count == 0)
            {
                terminal.Output.WriteLine("Nothing found that would disturb measurements.");
            }

            return ExitCode.Success;
        });
        return command;
    }

    private static string Name(Severity severity) => severity.ToString().ToLowerInvariant();
}
