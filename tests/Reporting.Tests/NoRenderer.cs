using VirtBench.Reporting.Figures;

namespace VirtBench.Reporting.Tests;

/// <summary>A renderer on a machine that has none.</summary>
internal sealed class NoRenderer : IFigureRenderer
{
    public const string Notice = "no renderer here";

    public IReadOnlyList<string> Render(IReadOnlyList<string> specifications) => [Notice];
}
