using VirtBench.Analysis;

namespace VirtBench.Cli;

/// <summary>Fits as a table on the terminal.</summary>
internal static class FitTable
{
    public static void Print(Terminal terminal, IReadOnlyList<OverheadFit> fits)
    {
        if (fits.Count == 0)
        {
            terminal.Output.WriteLine("No samples to fit.");
            return;
        }

        int strategy = Math.Max("strategy".Length, fits.Max(fit => fit.Strategy.Length)) + 2;
        int workload = Math.Max("workload".Length, fits.Max(fit => fit.Workload.Length)) + 2;
        const int t0 = 34;
        const int dt = 34;
        terminal.Output.WriteLine(
            "workload".PadRight(workload)
                + "strategy".PadRight(strategy)
                + "t0 per unit (95 %)".PadRight(t0)
                + "Δt per trap (95 %)".PadRight(dt)
                + "verdict"
        );
        foreach (OverheadFit fit in fits)
        {
            terminal.Output.WriteLine(
                fit.Workload.PadRight(workload)
                    + fit.Strategy.PadRight(strategy)
                    + Time(fit.UntrappedUnitNanoseconds).PadRight(t0)
                    + Time(fit.TrapNanoseconds).PadRight(dt)
                    + fit.VerdictText
            );
        }
    }

    private static string Time(Estimate? estimate) => estimate is { } known ? Quantity.Time(known) : "-";
}
