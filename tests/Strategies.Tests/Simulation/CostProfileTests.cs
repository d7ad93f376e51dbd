using System.Text;
using VirtBench.Strategies.Simulation;

namespace VirtBench.Strategies.Tests.Simulation;

public sealed class CostProfileTests
{
    private const string Good = """
        {
          "name": "x", "clockHertz": 1e9, "instructionCycles": 1, "instructions": { "cpuid": 100 },
          "exitCycles": 10, "entryCycles": 20, "emulationCycles": 30,
          "host": { "gdtBase": "0", "gdtLimit": "0", "idtBase": "0", "idtLimit": "0", "ldt": "0", "tr": "0", "machineStatus": "0x33" }
        }
        """;

    private static CostProfile Parse(string json) => CostProfile.Parse(Encoding.UTF8.GetBytes(json), "test");

    [Fact]
    public void The_textbook_says_what_the_text_says()
    {
        CostProfile p = CostProfile.Textbook;
        Assert.Equal(1500, p.ExitCycles + p.EntryCycles);
        Assert.Equal(200, p.EmulationCycles);
        Assert.Equal(25, p.CyclesOf(Iced.Intel.Mnemonic.Rdtsc));
        Assert.Equal(1, p.CyclesOf(Iced.Intel.Mnemonic.Add));
        Assert.Equal(500, 1700 / p.ClockHertz * 1e9, 9);
    }

    [Fact]
    public void A_profile_sets_the_cost_of_a_mnemonic() =>
        Assert.Equal(100, Parse(Good).CyclesOf(Iced.Intel.Mnemonic.Cpuid));

    [Theory]
    [InlineData("\"exitCycles\": 10", "\"exitCycles\": -1", "'exitCycles' must be a whole number")]
    [InlineData("\"exitCycles\": 10,", "", "field 'exitCycles' is missing")]
    [InlineData("\"exitCycles\"", "\"exitCycle\"", "unknown field 'exitCycle'")]
    [InlineData("\"cpuid\": 100", "\"cpuidd\": 100", "'cpuidd' is not an x86 mnemonic")]
    [InlineData("\"cpuid\": 100", "\"1\": 100", "'1' is not an x86 mnemonic")]
    [InlineData("1e9", "0", "'clockHertz' must be a number")]
    [InlineData("\"x\"", "\"\"", "'name' must be a string")]
    [InlineData("\"0x33\"", "\"0x1ffffffff\"", "'host.machineStatus'")]
    [InlineData("{ \"cpuid\": 100 }", "[]", "'instructions' must be an object")]
    public void A_bad_field_is_named_in_one_line(string old, string replacement, string message)
    {
        string json = Good.Replace(old, replacement, StringComparison.Ordinal);
        string said = Assert.Throws<CostProfileException>(() => Parse(json)).Message;
        Assert.Contains(message, said, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', said);
    }

    private const string Translating = """
        , "translation": {
          "instructionCycles": 7, "inlineCycles": 8, "inline": { "cli": 1, "mov r,sreg": 2 }, "calloutCycles": 9, "indirectCycles": 0
        } }
        """;

    private static string With(string translation) => Good.TrimEnd()[..^1] + translation;

    [Fact]
    public void What_a_translator_costs_can_be_said_or_left_out()
    {
        Assert.Null(Parse(Good).Translation);
        TranslationCosts costs = Parse(With(Translating)).Translation!;
        Assert.Equal((7, 9, 0), (costs.InstructionCycles, costs.CalloutCycles, costs.IndirectCycles));
        Assert.Equal(
            (1, 2, 8),
            (costs.InlineCyclesOf("cli"), costs.InlineCyclesOf("mov r,sreg"), costs.InlineCyclesOf("sti"))
        );
    }

    [Theory]
    [InlineData("\"calloutCycles\": 9,", "", "field 'translation.calloutCycles' is missing")]
    [InlineData("\"calloutCycles\": 9", "\"calloutCycles\": -9", "'translation.calloutCycles' must be a whole number")]
    [InlineData("\"calloutCycles\": 9", "\"callout\": 9", "unknown field 'translation.callout'")]
    [InlineData("\"cli\": 1", "\"hlt\": 1", "'translation.inline.hlt' is not served inline; these are: cli; sti;")]
    [InlineData("\"cli\": 1", "\"cli\": 0.5", "'translation.inline.cli' must be a whole number")]
    [InlineData("{ \"cli\": 1, \"mov r,sreg\": 2 }", "3", "'translation.inline' must be an object")]
    public void A_bad_field_of_the_translator_is_named_in_one_line(string old, string replacement, string message)
    {
        string json = With(Translating.Replace(old, replacement, StringComparison.Ordinal));
        string said = Assert.Throws<CostProfileException>(() => Parse(json)).Message;
        Assert.Contains(message, said, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', said);
    }

    [Theory]
    [InlineData("")]
    [InlineData("{")]
    [InlineData("[1]")]
    public void What_is_no_profile_at_all_is_one_line_too(string json) =>
        Assert.DoesNotContain('\n', Assert.Throws<CostProfileException>(() => Parse(json)).Message);

    [Fact]
    public void A_file_that_is_not_there_is_one_line() =>
        Assert.Contains(
            "cannot read cost profile",
            Assert.Throws<CostProfileException>(() => CostProfile.Load("/nowhere/x.json")).Message,
            StringComparison.Ordinal
        );
}
