using System.Text.RegularExpressions;
using System.Xml.Linq;

namespace VirtBench.EndToEnd;

/// <summary>Who may know whom: docs/architecture.md, section "Who may know whom".</summary>
public sealed partial class DependencyRules
{
    /// <summary>Direct project references; no arrow runs back.</summary>
    private static readonly Dictionary<string, string[]> MayReference = new()
    {
        ["Vmm"] = [],
        ["Workloads"] = ["Vmm"],
        ["Strategies"] = ["Vmm"],
        ["Measurement"] = ["Strategies", "Workloads"],
        ["Analysis"] = ["Measurement"],
        ["Reporting"] = ["Analysis"],
        ["Cli"] = ["Reporting"],
    };

    /// <summary>Folders of Strategies that others there may name: the carrier serves two engines, Native is the OS.</summary>
    private static readonly string[] SharedStrategyFolders = ["Carrier", "Native", "Shadow"];

    [Fact]
    public void Projects_reference_only_those_that_the_architecture_lets_them_know()
    {
        var found = Directory
            .EnumerateDirectories(Path.Combine(Repository.Root, "src"))
            .Select(folder => Path.GetFileName(folder)!)
            .Order()
            .ToList();
        Assert.Equal(MayReference.Keys.Order(), found);
        foreach (string project in found)
        {
            string file = Path.Combine(Repository.Root, "src", project, $"{project}.csproj");
            IEnumerable<string> references = XDocument
                .Load(file)
                .Descendants("ProjectReference")
                .Select(reference => Path.GetFileNameWithoutExtension((string)reference.Attribute("Include")!));
            Assert.Equal(MayReference[project].Order(), references.Order());
        }
    }

    [Fact]
    public void Engines_do_not_name_each_other()
    {
        string root = Path.Combine(Repository.Root, "src", "Strategies");
        var folders = Directory
            .EnumerateDirectories(root)
            .Select(folder => Path.GetFileName(folder)!)
            .Except(["bin", "obj"])
            .ToList();
        Assert.Contains("TrapAndEmulate", folders);
        var offences =
            from folder in folders
            from file in Repository.SourceFiles("src", "Strategies", folder)
            from offence in ForeignEngines(folder, folders, File.ReadAllText(file))
            select $"{Path.GetRelativePath(root, file)} names {offence}";
        Assert.Empty(offences);
    }

    [Theory]
    [InlineData("using VirtBench.Strategies.Simulation;", "Simulation")]
    [InlineData("var x = new VirtBench.Strategies.Simulation.Y();", "Simulation")]
    [InlineData("Simulation.Y z;", "Simulation")]
    public void A_planted_reference_to_another_engine_is_found(string source, string engine) =>
        Assert.Equal([engine], ForeignEngines("TrapAndEmulate", ["TrapAndEmulate", "Simulation", "Carrier"], source));

    [Fact]
    public void The_core_names_no_room_above_it()
    {
        var offences =
            from file in Repository.SourceFiles("src", "Vmm")
            let source = File.ReadAllText(file)
            where AboveTheCore().IsMatch(source)
            select file;
        Assert.Empty(offences);
        Assert.Matches(AboveTheCore(), "using VirtBench.Strategies;");
    }

    private static IEnumerable<string> ForeignEngines(string folder, IEnumerable<string> folders, string source) =>
        from other in folders
        where other != folder && !SharedStrategyFolders.Contains(other)
        where Regex.IsMatch(source, $@"(Strategies\.{other}\b|(?<![\w.]){other}\.\w)")
        select other;

    [GeneratedRegex(@"VirtBench\.(Strategies|Workloads|Measurement|Analysis|Reporting|Cli)\b")]
    private static partial Regex AboveTheCore();
}
