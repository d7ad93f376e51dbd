namespace VirtBench.Reporting.Reports;

/// <summary>A report as content: what it says, not how HTML or Markdown says it.</summary>
/// <param name="Title">Title.</param>
/// <param name="Blocks">What follows, in order.</param>
internal sealed record ReportDocument(string Title, IReadOnlyList<Block> Blocks);

/// <summary>A part of a report.</summary>
internal abstract record Block;

/// <summary>A section begins.</summary>
internal sealed record Heading(string Text, string Id) : Block;

/// <summary>A paragraph.</summary>
internal sealed record Paragraph(params IReadOnlyList<Span> Spans) : Block;

/// <summary>A list; each item is a paragraph.</summary>
internal sealed record BulletList(IReadOnlyList<Paragraph> Items) : Block;

/// <summary>A command or another text to copy as it is.</summary>
internal sealed record CodeBlock(string Text) : Block;

/// <summary>A table.</summary>
/// <param name="Caption">What it shows.</param>
/// <param name="Columns">Headings.</param>
/// <param name="Rows">Cells; an empty string where there is nothing to say.</param>
internal sealed record Table(string Caption, IReadOnlyList<Column> Columns, IReadOnlyList<IReadOnlyList<string>> Rows)
    : Block;

/// <summary>A column of a table.</summary>
internal sealed record Column(string Heading, bool IsNumber = false);

/// <summary>A figure, with its rendering when there is one.</summary>
internal sealed record FigureBlock(Figures.Figure Figure, string? Svg) : Block;

/// <summary>A run of text in a paragraph.</summary>
internal sealed record Span(string Text, SpanKind Kind = SpanKind.Plain, string? Address = null)
{
    public static implicit operator Span(string text) => new(text);

    public static Span Strong(string text) => new(text, SpanKind.Strong);

    public static Span Code(string text) => new(text, SpanKind.Code);

    public static Span Link(string text, string address) => new(text, SpanKind.Link, address);
}

/// <summary>What a run of text is.</summary>
internal enum SpanKind
{
    Plain,
    Strong,
    Code,
    Link,
}
