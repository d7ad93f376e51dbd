using System.Globalization;
using System.Text;
using System.Text.Encodings.Web;
using System.Text.RegularExpressions;
using System.Text.Unicode;

namespace VirtBench.Reporting.Reports;

/// <summary>A report as one HTML file that loads nothing. Every text is escaped; only renderings are markup.</summary>
internal static partial class HtmlReport
{
    private static readonly HtmlEncoder Encoder = HtmlEncoder.Create(UnicodeRanges.All);

    public static string Write(ReportDocument report)
    {
        var html = new StringBuilder();
        html.Append(
            CultureInfo.InvariantCulture,
            $"""
            <!DOCTYPE html>
            <html lang="en">
            <head>
            <meta charset="utf-8" />
            <meta name="viewport" content="width=device-width, initial-scale=1" />
            <meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:" />
            <meta name="color-scheme" content="light dark" />
            <title>{Escape(report.Title)}</title>
            <style>
            {Style}
            </style>
            </head>
            <body>
            <header><h1>{Escape(report.Title)}</h1></header>
            <nav aria-label="Contents"><ul>

            """
        );
        foreach (var heading in report.Blocks.OfType<Heading>())
        {
            html.Append(
                CultureInfo.InvariantCulture,
                $"<li><a href=\"#{Escape(heading.Id)}\">{Escape(heading.Text)}</a></li>\n"
            );
        }
        html.Append("</ul></nav>\n<main>\n");
        var isInSection = false;
        foreach (var block in report.Blocks)
        {
            if (block is Heading heading)
            {
                html.Append(isInSection ? "</section>\n" : "");
                html.Append(
                    CultureInfo.InvariantCulture,
                    $"<section id=\"{Escape(heading.Id)}\">\n<h2>{Escape(heading.Text)}</h2>\n"
                );
                isInSection = true;
                continue;
            }
            Append(html, block);
        }
        html.Append(isInSection ? "</section>\n" : "").Append("</main>\n</body>\n</html>\n");
        return html.ToString();
    }

    private static void Append(StringBuilder html, Block block)
    {
        switch (block)
        {
            case Paragraph paragraph:
                html.Append("<p>").Append(Spans(paragraph)).Append("</p>\n");
                break;
            case BulletList list:
                html.Append("<ul>\n");
                foreach (var item in list.Items)
                {
                    html.Append("<li>").Append(Spans(item)).Append("</li>\n");
                }
                html.Append("</ul>\n");
                break;
            case CodeBlock code:
                html.Append("<pre><code>").Append(Escape(code.Text)).Append("</code></pre>\n");
                break;
            case Table table:
                Append(html, table);
                break;
            case FigureBlock figure:
                Append(html, figure);
                break;
            default:
                throw new ArgumentOutOfRangeException(nameof(block), block, "A report has no such block.");
        }
    }

    private static void Append(StringBuilder html, Table table)
    {
        // A wide table scrolls in its own box, by keyboard too, and the page stays as wide as the screen.
        html.Append(
            CultureInfo.InvariantCulture,
            $"<div class=\"table\" tabindex=\"0\" role=\"region\" aria-label=\"{Escape(table.Caption)}\">\n"
        );
        html.Append(CultureInfo.InvariantCulture, $"<table>\n<caption>{Escape(table.Caption)}</caption>\n<thead><tr>");
        foreach (var column in table.Columns)
        {
            html.Append("<th scope=\"col\"")
                .Append(column.IsNumber ? " class=\"number\">" : ">")
                .Append(Escape(column.Heading))
                .Append("</th>");
        }
        html.Append("</tr></thead>\n<tbody>\n");
        foreach (var row in table.Rows)
        {
            html.Append("<tr>");
            for (var i = 0; i < row.Count; i++)
            {
                html.Append(table.Columns[i].IsNumber ? "<td class=\"number\">" : "<td>")
                    .Append(table.Columns[i].IsNumber ? Number(row[i]) : Prose(row[i]))
                    .Append("</td>");
            }
            html.Append("</tr>\n");
        }
        html.Append("</tbody>\n</table>\n</div>\n");
    }

    private static void Append(StringBuilder html, FigureBlock block)
    {
        var figure = block.Figure;
        html.Append(CultureInfo.InvariantCulture, $"<figure id=\"figure-{Escape(figure.Id)}\">\n");
        if (block.Svg is { } svg)
        {
            html.Append(
                    CultureInfo.InvariantCulture,
                    $"<div class=\"picture\" role=\"img\" aria-label=\"{Escape(figure.Alternative)}\">\n"
                )
                .Append(Inline(svg, figure.Id))
                .Append("\n</div>\n");
        }
        else
        {
            html.Append(CultureInfo.InvariantCulture, $"<p><strong>{Escape(figure.Title)}</strong></p>\n");
            html.Append(
                CultureInfo.InvariantCulture,
                $"<p>Not rendered. {Escape(figure.Alternative)} The specification is in <code>figures/{Escape(figure.Id)}.vl.json</code>.</p>\n"
            );
        }
        html.Append(CultureInfo.InvariantCulture, $"<figcaption>{Escape(figure.Caption)}</figcaption>\n</figure>\n");
    }

    /// <summary>
    /// Every rendering numbers its definitions from 0. In one page the names must differ, or one figure's clip is another's.
    /// </summary>
    private static string Inline(string svg, string id) =>
        LocalName().Replace(svg, match => $"{match.Groups["before"].Value}{id}-{match.Groups["name"].Value}").Trim();

    [GeneratedRegex("""(?<before>\bid="|url\(#|href="#)(?<name>[A-Za-z_])""", RegexOptions.ExplicitCapture, 1000)]
    private static partial Regex LocalName();

    private static string Spans(Paragraph paragraph) =>
        string.Concat(
            paragraph.Spans.Select(span =>
                span.Kind switch
                {
                    SpanKind.Strong => $"<strong>{Prose(span.Text)}</strong>",
                    SpanKind.Code => $"<code>{Escape(span.Text)}</code>",
                    SpanKind.Link => $"<a href=\"{Escape(span.Address!)}\">{Escape(span.Text)}</a>",
                    _ => Prose(span.Text),
                }
            )
        );

    /// <summary>An interval goes under its value: tables stay narrow and values stand in one line.</summary>
    private static string Number(string text) => Escape(text).Replace(" (", "<br />(");

    /// <summary>No line ends between a number and its unit.</summary>
    private static string Prose(string text) => UnitSpace().Replace(Escape(text), "\u00a0");

    [GeneratedRegex("""(?<=[0-9]) (?=([pnµm]?s|%|×|[kMG]?/s)([^A-Za-z]|$))""", RegexOptions.ExplicitCapture, 1000)]
    private static partial Regex UnitSpace();

    private static string Escape(string text) => Encoder.Encode(text);

    private const string Style = """
        :root {
          color-scheme: light dark;
          --text: #1b1f24; --soft: #57606a; --line: #d0d7de; --back: #ffffff; --band: #f6f8fa; --link: #0b5cad;
        }
        @media (prefers-color-scheme: dark) {
          :root { --text: #e6e9ed; --soft: #a3acb7; --line: #3a424c; --back: #14181d; --band: #1d232a; --link: #79b8ff; }
        }
        * { box-sizing: border-box; }
        body {
          margin: 0 auto; padding: 1.5rem; max-width: 82rem; background: var(--back); color: var(--text);
          font: 16px/1.55 system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif;
        }
        h1 { font-size: 1.8rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
        h2 { font-size: 1.3rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
        p, li { max-width: 50rem; }
        li { margin: .35rem 0; }
        a { color: var(--link); overflow-wrap: anywhere; }
        nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: 0; padding: 0; font-size: .9rem; }
        nav li { margin: 0; }
        code, pre { font-family: ui-monospace, "Liberation Mono", Consolas, monospace; font-size: .9em; overflow-wrap: anywhere; }
        pre { background: var(--band); border: 1px solid var(--line); padding: .8rem; white-space: pre-wrap; }
        .table { overflow-x: auto; margin: 1.2rem 0; }
        table { border-collapse: collapse; font-size: .86rem; line-height: 1.4; }
        caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
        th, td { text-align: left; vertical-align: top; padding: .35rem .55rem; border-bottom: 1px solid var(--line); }
        th { background: var(--band); vertical-align: bottom; }
        td { overflow-wrap: break-word; }
        td:last-child { min-width: 14rem; }
        .number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
        td.number:last-child { min-width: 0; }
        figure { margin: 1.4rem 0 2rem; }
        .picture { background: #ffffff; border: 1px solid var(--line); border-radius: 4px; padding: .4rem; width: fit-content; max-width: 100%; }
        .picture svg { display: block; max-width: 100%; height: auto; }
        figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; max-width: 50rem; }
        @media print {
          :root { --text: #000; --soft: #333; --line: #bbb; --back: #fff; --band: #f2f2f2; --link: #000; }
          body { max-width: none; padding: 0; font-size: 10.5pt; }
          nav { display: none; }
          .table { overflow: visible; }
          table { font-size: 7.5pt; width: 100%; }
          th, td { padding: .2rem .35rem; }
          td, td:last-child { min-width: 0; }
          figure, tr, pre { break-inside: avoid; }
          h2 { break-after: avoid; }
        }
        """;
}
