using System.Text.RegularExpressions;
using System.Xml;
using System.Xml.Linq;
using VirtBench.Measurement;
using VirtBench.Reporting.Figures;
using VirtBench.Reporting.Runs;

namespace VirtBench.Reporting.Tests;

public sealed partial class ReportFacts
{
    private const string Evil = "<script>alert(\"x\")</script> & 'quotes' | pipe `tick` </td>";

    [Fact]
    public void A_report_says_what_a_trap_costs_and_how_sure_it_is()
    {
        using var run = SyntheticRun.Full();
        ReportWriter.Write(run.Directory, new NoRenderer());
        var text = Parse(run).Root!.Value.Replace('\u00a0', ' ');

        Assert.Contains("On this host one costs from 2.", text);
        Assert.Contains("rdtsc under Trap and emulate", text);
        Assert.Contains("cr3-switch under Trap and emulate", text);
        Assert.Contains("times as long with 16", text);
        Assert.Contains("How sure: ", text);
        Assert.Contains("rdtsc, Simulated trap and emulate, computed: 1.6", text);
        Assert.Contains("no traps; the instruction itself takes", text);
        Assert.Contains("/dev/kvm is missing", text);
        Assert.Contains("timed out, \"after\" 5 s", text);
        Assert.Contains("virtbench run --profile quick --seed 42", text);
        Assert.Contains("Imaginary CPU 3000", text);
        Assert.Contains(NoRenderer.Notice, text);
    }

    [Fact]
    public void A_report_is_well_formed_and_loads_nothing()
    {
        using var run = SyntheticRun.Full();
        ReportWriter.Write(run.Directory);
        var html = Parse(run);

        Assert.DoesNotContain(
            html.Descendants(),
            e => e.Name.LocalName is "script" or "link" or "iframe" or "object" or "img"
        );
        var loads = html.Descendants()
            .SelectMany(e => e.Attributes().Select(a => (Element: e.Name.LocalName, Name: a.Name.LocalName, a.Value)))
            .Where(a => a.Name is "src" or "href" or "data" or "srcset" or "action" && !a.Value.StartsWith('#'));
        Assert.All(loads, load => Assert.Equal(("a", "href"), (load.Element, load.Name)));
        Assert.DoesNotContain("url(http", html.ToString());
        Assert.DoesNotContain("@import", html.ToString());
        var ids = html.Descendants().Attributes("id").Select(a => a.Value).ToList();
        Assert.Equal(ids.Distinct(), ids);
        var contents = html.Descendants()
            .Where(e => e.Name.LocalName == "nav")
            .Descendants()
            .Attributes("href")
            .ToList();
        Assert.NotEmpty(contents);
        Assert.All(contents, link => Assert.Contains(link.Value[1..], ids));
    }

    [Fact]
    public void Renderings_are_inlined_with_names_of_their_own()
    {
        Assert.SkipWhen(NodeFigureRenderer.FindFolder() is null, "Vega is not installed: npm ci did not run.");
        using var run = SyntheticRun.Full();
        var outcome = ReportWriter.Write(run.Directory);
        var html = Parse(run);

        Assert.Empty(outcome.Notices);
        var pictures = html.Descendants().Where(e => (string?)e.Attribute("class") == "picture").ToList();
        Assert.Equal(RunFigures.Of(outcome.Analysis).Count, pictures.Count);
        Assert.All(pictures, picture => Assert.False(string.IsNullOrEmpty((string?)picture.Attribute("aria-label"))));
        var ids = html.Descendants().Attributes("id").Select(a => a.Value).ToHashSet();
        Assert.All(
            LocalReference().Matches(html.ToString()).Select(match => match.Groups[1].Value),
            name => Assert.Contains(name, ids)
        );
        Assert.InRange(new FileInfo(run.Directory.At("report.html")).Length, 10_000, 3_000_000);
    }

    [Fact]
    public void Hostile_text_stays_text()
    {
        var description = SyntheticRun.Description() with
        {
            Command = "virtbench run " + Evil,
            Profile = Evil,
            Commit = Evil,
            Strategies = [new("trap-and-emulate", Evil, false, Evil), new("native", "Native", false, "clock")],
            Workloads = [new("rdtsc", Evil, Evil)],
            Skipped = [new("hardware", null, Evil)],
        };
        using var run = SyntheticRun.Empty(Evil, description);
        using (var log = run.Directory.Append())
        {
            foreach (var (sample, exits) in SyntheticRun.Samples(3))
            {
                log.SampleTaken(
                    sample with
                    {
                        Note = Evil,
                    },
                    new SampleRecords(
                        [.. exits.Select(exit => exit with { Reason = Evil })],
                        [new(sample.Round, sample.Cell, Evil, 1)],
                        []
                    )
                );
            }
        }
        ReportWriter.Write(run.Directory);

        Assert.DoesNotContain("<script", File.ReadAllText(run.Directory.At("report.html")));
        var html = Parse(run);
        Assert.DoesNotContain(html.Descendants(), e => e.Name.LocalName == "script");
        Assert.Contains(Evil, html.Root!.Value);
        var markdown = File.ReadAllText(run.Directory.At("report.md"));
        Assert.DoesNotMatch(@"(?<!\\)<script", OutsideCode().Replace(markdown, ""));
        Assert.DoesNotContain("<script", Markdig.Markdown.ToHtml(markdown));
    }

    [Fact]
    public void Markdown_tables_have_as_many_cells_in_every_row()
    {
        using var run = SyntheticRun.Full();
        ReportWriter.Write(run.Directory, new NoRenderer());
        var width = 0;
        foreach (var line in File.ReadAllLines(run.Directory.At("report.md")))
        {
            var cells = UnescapedPipe().Count(line);
            if (!line.StartsWith('|'))
            {
                width = 0;
                continue;
            }
            Assert.True(width == 0 || cells == width, line);
            width = cells;
        }
    }

    [Fact]
    public void Without_a_renderer_figures_stay_specifications()
    {
        using var run = SyntheticRun.Full();
        ReportWriter.Write(run.Directory);
        var outcome = ReportWriter.Write(run.Directory, new NodeFigureRenderer("no-such-node-anywhere"));

        Assert.Contains(".vl.json", Assert.Single(outcome.Notices));
        Assert.Empty(Directory.GetFiles(run.Directory.At("figures"), "*.svg"));
        Assert.NotEmpty(Directory.GetFiles(run.Directory.At("figures"), "*.vl.json"));
        Assert.Contains("Not rendered.", File.ReadAllText(run.Directory.At("report.html")));
    }

    [Fact]
    public void The_same_samples_give_the_same_report()
    {
        using var run = SyntheticRun.Full();
        ReportWriter.Write(run.Directory);
        var first = run.Directory.Manifest.Files;
        var again = RunDirectory.Open(run.Directory.FullPath);
        ReportWriter.Write(again);

        Assert.Equal(first, again.Manifest.Files);
    }

    private static readonly Dictionary<string, Func<Sample, Sample?>> PoorRuns = new()
    {
        ["empty"] = _ => null,
        ["one sample"] = s => s is { Round: 0, Cell: ("trap-and-emulate", "rdtsc", 4) } ? s : null,
        ["one cell"] = s => s.Cell is ("trap-and-emulate", "rdtsc", 4) ? s : null,
        ["one round"] = s => s.Round == 0 ? s : null,
        ["only k = 0"] = s => s.Cell.TrapsPerUnit == 0 ? s : null,
        ["all failed"] = s => s with { Status = SampleStatus.Failed, Units = 0, ElapsedNanoseconds = 0 },
        ["unknown strategy"] = s =>
            s.Cell.Strategy == "native" ? s with { Cell = s.Cell with { Strategy = "other" } } : null,
        ["nothing trapped"] = s => s with { Traps = 0 },
        ["traps that cost nothing"] = s => s with { ElapsedNanoseconds = 1000.0 * s.Units },
        ["more traps, less time"] = s => s with { ElapsedNanoseconds = (1000.0 - s.Cell.TrapsPerUnit) * s.Units },
        ["cost lost in scatter"] = s =>
            s with
            {
                ElapsedNanoseconds = (1000.0 + (s.Round == 0 ? s.Cell.TrapsPerUnit : 0)) * s.Units,
            },
        ["t0 below 0"] = s => s with { ElapsedNanoseconds = (1 + Math.Pow(s.Cell.TrapsPerUnit, 3)) * s.Units },
    };

    public static TheoryData<string> PoorRunNames() => [.. PoorRuns.Keys];

    [Theory]
    [MemberData(nameof(PoorRunNames))]
    public void A_poor_run_still_gets_a_report(string name)
    {
        using var run = SyntheticRun.Empty();
        var samples = SyntheticRun.Samples(2).Select(at => PoorRuns[name](at.Sample)).OfType<Sample>().ToList();
        using (var log = run.Directory.Append())
        {
            foreach (var sample in samples)
            {
                log.SampleTaken(sample, new SampleRecords([], [], []));
            }
        }
        var outcome = ReportWriter.Write(run.Directory);

        if (NodeFigureRenderer.FindFolder() is not null)
        {
            Assert.Empty(outcome.Notices);
        }
        Assert.Contains($"{samples.Count} ", Parse(run).Root!.Value);
    }

    [Theory]
    [InlineData("empty", "No strategy that runs on this host's processor was measured in this run.")]
    [InlineData("one sample", "took traps, but the samples do not suffice to say what one costs")]
    [InlineData("one cell", "took traps, but the samples do not suffice to say what one costs")]
    [InlineData("all failed", "No sample of a strategy that runs on this host's processor succeeded")]
    [InlineData("nothing trapped", "No strategy that runs on this host's processor took a trap in this run.")]
    [InlineData("traps that cost nothing", "took traps, but the samples do not suffice to say what one costs")]
    [InlineData("cost lost in scatter", "took traps, but the samples do not suffice to say what one costs")]
    public void A_summary_claims_no_more_than_the_samples_show(string name, string expected)
    {
        var text = SummaryOf(name);
        Assert.Contains(expected, text);
        Assert.DoesNotContain("On this host one costs", text);
    }

    [Theory]
    [InlineData("empty", "0 of 2 planned samples were taken.")]
    [InlineData("one sample", "1 of 2 planned samples was taken, and it is usable.")]
    public void Few_samples_are_counted_in_whole_sentences(string name, string expected) =>
        Assert.Contains(expected, SummaryOf(name));

    [Theory]
    [MemberData(nameof(PoorRunNames))]
    public void A_report_has_no_table_without_rows(string name)
    {
        using var run = PoorRun(name);
        ReportWriter.Write(run.Directory, new NoRenderer());
        Assert.All(
            Parse(run).Descendants().Where(e => e.Name.LocalName == "tbody"),
            body => Assert.NotEmpty(body.Elements())
        );
    }

    private static string SummaryOf(string name)
    {
        using var run = PoorRun(name);
        ReportWriter.Write(run.Directory, new NoRenderer());
        return Parse(run).Root!.Value.Replace('\u00a0', ' ');
    }

    private static SyntheticRun PoorRun(string name)
    {
        var run = SyntheticRun.Empty();
        using var log = run.Directory.Append();
        foreach (var sample in SyntheticRun.Samples(2).Select(at => PoorRuns[name](at.Sample)).OfType<Sample>())
        {
            log.SampleTaken(
                sample,
                new SampleRecords([new ExitRecord(sample.Round, sample.Cell, "kick", 1, null, 40, 900, null)], [], [])
            );
        }
        return run;
    }

    [Fact]
    public void A_run_that_a_crash_cut_off_is_reported_with_a_notice()
    {
        using var run = SyntheticRun.Full(rounds: 2);
        File.AppendAllText(run.Directory.At("samples.csv"), "1,trap-and-em");
        var outcome = ReportWriter.Write(RunDirectory.Open(run.Directory.FullPath), new NoRenderer());

        Assert.Contains("cut off", outcome.Notices[0]);
        Assert.Contains("cut off", Parse(run).Root!.Value);
    }

    private static XDocument Parse(SyntheticRun run)
    {
        // HTML that is XML too: a parser without mercy stands in for a validator.
        using var reader = XmlReader.Create(
            run.Directory.At("report.html"),
            new XmlReaderSettings { DtdProcessing = DtdProcessing.Ignore, XmlResolver = null }
        );
        return XDocument.Load(reader);
    }

    [GeneratedRegex(@"url\(#([^)]+)\)")]
    private static partial Regex LocalReference();

    [GeneratedRegex(@"(?<!\\)\|")]
    private static partial Regex UnescapedPipe();

    [GeneratedRegex(@"(?s)(`+).*?\1")]
    private static partial Regex OutsideCode();
}
