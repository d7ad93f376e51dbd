using System.Text.Json;
using VirtBench.Strategies;
using VirtBench.Strategies.Hardware;
using VirtBench.Workloads;

namespace VirtBench.Cli.Tests;

public sealed class ListFacts
{
    [Fact]
    public void Json_has_the_fields_that_scripts_rely_on()
    {
        using var json = JsonDocument.Parse(Call.Of("list", "--json").Succeeded().Output);
        Assert.Equal(["strategies", "workloads"], json.RootElement.EnumerateObject().Select(field => field.Name));
        JsonElement[] strategies = [.. json.RootElement.GetProperty("strategies").EnumerateArray()];
        Assert.Equal(
            StrategyCatalog.All.Select(strategy => strategy.Id),
            strategies.Select(strategy => strategy.GetProperty("id").GetString())
        );
        foreach (JsonElement strategy in strategies)
        {
            bool available = strategy.GetProperty("available").GetBoolean();
            Assert.Equal(
                available ? JsonValueKind.Null : JsonValueKind.String,
                strategy.GetProperty("reason").ValueKind
            );
            Assert.NotEqual("", strategy.GetProperty("label").GetString());
        }

        Assert.Equal(
            WorkloadCatalog.All.Select(workload => workload.Id),
            json.RootElement.GetProperty("workloads")
                .EnumerateArray()
                .Select(workload => workload.GetProperty("id").GetString())
        );
    }

    [Theory]
    [InlineData("strategies", "workloads")]
    [InlineData("workloads", "strategies")]
    public void One_list_alone_leaves_the_other_out(string asked, string other)
    {
        using var json = JsonDocument.Parse(Call.Of("list", asked, "--json").Succeeded().Output);
        Assert.True(json.RootElement.TryGetProperty(asked, out _));
        Assert.False(json.RootElement.TryGetProperty(other, out _));
    }

    [Fact]
    public void Text_names_everything()
    {
        string text = Call.Of("list").Succeeded().Output;
        Assert.All(StrategyCatalog.All, strategy => Assert.Contains($"  {strategy.Id} ", text));
        Assert.All(WorkloadCatalog.All, workload => Assert.Contains($"  {workload.Id} ", text));
    }

    [Fact]
    public void Hardware_is_listed_with_the_module_that_stands_behind_it()
    {
        Assert.SkipWhen(KvmHost.Current.Label is null, KvmHost.Current.UnavailableReason ?? "");
        Assert.Contains(KvmHost.Current.Label!, Call.Of("list").Succeeded().Output);
        using var json = JsonDocument.Parse(Call.Of("list", "strategies", "--json").Succeeded().Output);
        JsonElement hardware = json
            .RootElement.GetProperty("strategies")
            .EnumerateArray()
            .Single(strategy => strategy.GetProperty("id").GetString() == "hardware");
        Assert.Contains(KvmHost.Current.Label!, hardware.GetProperty("description").GetString());
        Assert.Contains(KvmHost.Current.Module ?? "kvm", hardware.GetProperty("label").GetString());
    }

    [Theory]
    [InlineData("list", "everything")]
    [InlineData("lst")]
    [InlineData]
    [InlineData("doctor", "--jsn")]
    [InlineData("reproduce", "65")]
    public void Unknown_words_are_bad_usage(params string[] words) =>
        Call.Of(words).AssertFails(ExitCode.Usage, "--help");

    [Fact]
    public void Doctor_says_the_same_in_text_and_in_json()
    {
        string text = Call.Of("doctor").Succeeded().Output;
        using var json = JsonDocument.Parse(Call.Of("doctor", "--json").Succeeded().Output);
        foreach (JsonElement finding in json.RootElement.GetProperty("findings").EnumerateArray())
        {
            Assert.Equal(
                ["id", "severity", "what", "effect", "remedy"],
                finding.EnumerateObject().Select(field => field.Name)
            );
            // What a finding has measured changes between two looks; what it means does not.
            if (finding.GetProperty("severity").GetString() == "fact")
            {
                Assert.Contains(finding.GetProperty("effect").GetString()!, text);
            }
        }
    }

    [Fact]
    public void Reproduce_agrees_with_every_published_figure()
    {
        using var json = JsonDocument.Parse(Call.Of("reproduce", "--json").Succeeded().Output);
        JsonElement[] figures = [.. json.RootElement.GetProperty("figures").EnumerateArray()];
        Assert.Equal(
            [(65, 65), (1740, 1740), (26.8, 26.8), (500, 500), (1e6, 1e6), (0.5, 0.5)],
            figures[..^1]
                .Select(figure =>
                    (figure.GetProperty("published").GetDouble(), Math.Round(figure.GetProperty("own").GetDouble(), 1))
                )
        );
        Assert.All(figures[..^1], figure => Assert.True(figure.GetProperty("agrees").GetBoolean()));
        JsonElement own = figures[^1];
        Assert.Equal(JsonValueKind.Null, own.GetProperty("agrees").ValueKind);
        string? reason =
            StrategyCatalog.Find("native")!.UnavailableReason()
            ?? StrategyCatalog.Find("trap-and-emulate")!.UnavailableReason();
        Assert.Equal(reason is null ? JsonValueKind.Number : JsonValueKind.Null, own.GetProperty("own").ValueKind);
    }
}
