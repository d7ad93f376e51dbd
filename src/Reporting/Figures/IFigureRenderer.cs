namespace VirtBench.Reporting.Figures;

/// <summary>Makes pictures of figure specifications.</summary>
public interface IFigureRenderer
{
    /// <summary>
    /// Renders every <c>NAME.vl.json</c> given to <c>NAME.svg</c> beside it. Never throws for a renderer that is missing or
    /// fails: a run is worth keeping without its pictures.
    /// </summary>
    /// <param name="specifications">Full paths.</param>
    /// <returns>What was not rendered and why, a line each; empty when all was.</returns>
    IReadOnlyList<string> Render(IReadOnlyList<string> specifications);
}
