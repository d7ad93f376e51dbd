using System.Text;

namespace VirtBench.Reporting.Reports;

/// <summary>A report as Markdown for a repository: the same words, figures by reference.</summary>
internal static class MarkdownReport
{
    private const string Special = @"\`*_[]<>|~&$#";

    public static string Write(ReportDocument report)
    {
        var text = new StringBuilder();
        text.Append("# ").Append(Escape(report.Title)).Append("\n\n");
        foreach (var block in report.Blocks)
        {
            switch (block)
            {
                case Heading heading:
                    text.Append("## ").Append(Escape(heading.Text)).Append('\n');
                    break;
                case Paragraph paragraph:
                    text.Append(Spans(paragraph)).Append('\n');
                    break;
                case BulletList list:
                    foreach (var item in list.Items)
                    {
                        text.Append("- ").Append(Spans(item)).Append('\n');
                    }
                    break;
                case CodeBlock code:
                    var fence = Fence(code.Text, 3);
                    text.Append(fence).Append('\n').Append(code.Text).Append('\n').Append(fence).Append('\n');
                    break;
                case Table table:
                    Append(text, table);
                    break;
                case FigureBlock figure:
                    Append(text, figure);
                    break;
                default:
                    throw new ArgumentOutOfRangeException(nameof(report), block, "A report has no such block.");
            }
            text.Append('\n');
        }
        return text.ToString().TrimEnd('\n') + "\n";
    }

    private static void Append(StringBuilder text, Table table)
    {
        text.Append("**").Append(Escape(table.Caption)).Append("**\n\n|");
        foreach (var column in table.Columns)
        {
            text.Append(' ').Append(Escape(column.Heading)).Append(" |");
        }
        text.Append("\n|");
        foreach (var column in table.Columns)
        {
            text.Append(column.IsNumber ? " ---: |" : " --- |");
        }
        foreach (var row in table.Rows)
        {
            text.Append("\n|");
            foreach (var cell in row)
            {
                text.Append(' ').Append(Escape(cell)).Append(" |");
            }
        }
        text.Append('\n');
    }

    private static void Append(StringBuilder text, FigureBlock block)
    {
        var figure = block.Figure;
        if (block.Svg is null)
        {
            text.Append($"**{Escape(figure.Title)}** (not rendered: `figures/{figure.Id}.vl.json`). ")
                .Append(Escape(figure.Alternative))
                .Append('\n');
            return;
        }
        text.Append($"![{Escape(figure.Alternative)}](figures/{figure.Id}.svg)\n\n*{Escape(figure.Caption)}*\n");
    }

    private static string Spans(Paragraph paragraph) =>
        string.Concat(
            paragraph.Spans.Select(span =>
                span.Kind switch
                {
                    SpanKind.Strong => $"**{Escape(span.Text)}**",
                    SpanKind.Code => $"{Fence(span.Text, 1)}{Line(span.Text)}{Fence(span.Text, 1)}",
                    SpanKind.Link => $"<{span.Address}>",
                    _ => Escape(span.Text),
                }
            )
        );

    /// <summary>More backticks than the text has in a row.</summary>
    private static string Fence(string text, int least)
    {
        int longest = 0,
            current = 0;
        foreach (var character in text)
        {
            current = character == '`' ? current + 1 : 0;
            longest = Math.Max(longest, current);
        }
        return new string('`', longest < least ? least : longest + 1);
    }

    private static string Escape(string text)
    {
        var escaped = new StringBuilder(text.Length);
        foreach (var character in Line(text))
        {
            if (Special.Contains(character))
            {
                escaped.Append('\\');
            }
            escaped.Append(character);
        }
        return escaped.ToString();
    }

    private static string Line(string text) => string.Concat(text.Select(c => char.IsControl(c) ? ' ' : c));
}
