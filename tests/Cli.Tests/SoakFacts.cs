using System.Text.Json;

namespace VirtBench.Cli.Tests;

public sealed class SoakFacts
{
    [Fact]
    public void Json_has_the_fields_that_scripts_rely_on()
    {
        var call = Call.Of(
            "soak",
            "mini-os",
            "--strategy",
            "simulated-trap-and-emulate",
            "--minutes",
            "0.01",
            "--json"
        );
        Assert.Equal(0, call.ExitCode);
        using var json = JsonDocument.Parse(call.Output);
        JsonElement root = json.RootElement;
        Assert.True(root.GetProperty("holds").GetBoolean());
        Assert.Equal("exited", root.GetProperty("end").GetString());
        Assert.True(root.GetProperty("guest_ns").GetDouble() >= 0.6e9);
        Assert.Equal(
            root.GetProperty("ticks").GetProperty("taken").GetInt64(),
            root.GetProperty("kernel").GetProperty("ticks").GetInt64()
        );
        Assert.Equal(4, root.GetProperty("kernel").GetProperty("calls").GetProperty("exit").GetInt64());
        Assert.True(root.GetProperty("exits").GetProperty("syscall").GetInt64() > 0);
        Assert.All(
            root.GetProperty("checks").EnumerateArray(),
            check => Assert.True(check.GetProperty("holds").GetBoolean(), check.GetProperty("detail").GetString())
        );
    }

    [Fact]
    public void Text_shows_the_console_the_counts_and_the_verdicts()
    {
        var call = Call.Of(
            "soak",
            "--strategy",
            "simulated-trap-and-emulate",
            "--minutes",
            "0.01",
            "--processes",
            "2",
            "--hertz",
            "1000"
        );
        Assert.Equal(0, call.ExitCode);
        Assert.Contains("mini-os: 2 processes", call.Output);
        Assert.Contains(" timer ticks", call.Output);
        Assert.Contains("ok  no tick was lost", call.Output);
        Assert.DoesNotContain("OFF", call.Output);
    }

    [Theory]
    [InlineData("--minutes 0", "more than 0 and at most 1440")]
    [InlineData("--minutes x", "more than 0 and at most 1440")]
    [InlineData("--processes 9", "1 to 8 processes")]
    [InlineData("--hertz 99", "100 to 1000 Hz")]
    public void What_makes_no_sense_is_refused(string words, string says) =>
        Call.Of(["soak", "--strategy", "simulated-trap-and-emulate", .. words.Split(' ')]).AssertFails(2, says);

    [Fact]
    public void A_strategy_without_ring_0_is_refused() =>
        Call.Of("soak", "--strategy", "simulated-native").AssertFails(2, "needs ring 0");
}
