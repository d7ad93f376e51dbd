using System.CommandLine;
using VirtBench.Measurement;
using VirtBench.Strategies;
using VirtBench.Vmm.Execution;

namespace VirtBench.Cli.Commands;

/// <summary><c>virtbench reproduce</c>: published figures beside VirtBench's own.</summary>
internal static class ReproduceCommand
{
    public static Command Create(Terminal terminal)
    {
        Option<bool> json = CommonOptions.Json();
        var command = new Command(
            "reproduce",
            "The published figures that VirtBench checks itself against, beside its own, with the source"
        )
        {
            json,
        };
        command.SetAction(parsed =>
        {
            IReadOnlyList<ReproducedFigure> figures;
            try
            {
                figures = new Reproduction(StrategyCatalog.All).Run();
            }
            catch (GuestFailureException e)
            {
                throw new JobException(e.Message);
            }

            if (parsed.GetValue(json))
            {
                terminal.Output.WriteLine(Json.Serialize(new { Figures = figures }));
            }
            else
            {
                Print(terminal.Output, figures);
            }

            return figures.Any(figure => figure.Agrees == false) ? ExitCode.Failed : ExitCode.Success;
        });
        return command;
    }

    private static void Print(TextWriter output, IReadOnlyList<ReproducedFigure> figures)
    {
        output.WriteLine($"{"published", 12} {"own", 14}  {"unit", -7} {"", -14} statement");
        foreach (ReproducedFigure figure in figures)
        {
            string own = figure.Own is { } value ? $"{value:G8}" : "-";
            string verdict = figure.Agrees switch
            {
                true => "agrees",
                false => "DIFFERS",
                null => "not comparable",
            };
            output.WriteLine(
                $"{figure.Published, 12:G8} {own, 14}  {figure.Unit, -7} {verdict, -14} {figure.Statement}"
            );
        }

        output.WriteLine();
        foreach (IGrouping<string, ReproducedFigure> source in figures.GroupBy(figure => figure.Source))
        {
            output.WriteLine($"Source: {source.Key}");
        }

        foreach (IGrouping<string, ReproducedFigure> origin in figures.GroupBy(figure => figure.Origin))
        {
            output.WriteLine(
                $"Own figures, {origin.Key}: {string.Join("; ", origin.Select(figure => figure.Statement))}"
            );
        }

        foreach (ReproducedFigure figure in figures.Where(figure => figure.Remark.Length > 0))
        {
            output.WriteLine($"{figure.Statement}: {figure.Remark}");
        }
    }
}
