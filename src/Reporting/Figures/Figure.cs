using System.Text.Json.Nodes;

namespace VirtBench.Reporting.Figures;

/// <summary>A figure as data.</summary>
/// <param name="Id">File name without ending; unique in a run.</param>
/// <param name="Title">What it shows, in a few plain words.</param>
/// <param name="Alternative">What a reader who cannot see it needs to know: what is drawn, and the result.</param>
/// <param name="Caption">How to read it.</param>
/// <param name="Specification">The Vega-Lite specification, with its data.</param>
public sealed record Figure(string Id, string Title, string Alternative, string Caption, JsonObject Specification);
