using VirtBench.Strategies;
using VirtBench.Tests;

namespace VirtBench.EndToEnd;

/// <summary>Hostile guests on the host's CPU, each against a process of its own that must outlive it.</summary>
public sealed class HostileGuestProcesses
{
    public static TheoryData<string> Everything => [.. HostileGuests.Names];

    [Theory]
    [MemberData(nameof(Everything))]
    public void A_hostile_guest_harms_nobody_but_itself(string name)
    {
        Strategy strategy = StrategyCatalog.Find("trap-and-emulate")!;
        Assert.SkipWhen(strategy.UnavailableReason() is not null, strategy.UnavailableReason() ?? "");
        using var folder = new TemporaryFolder();
        string file = folder.Write("guest.elf", HostileGuests.FileOf(name));

        ToolResult result = Tool.Run([
            "exec",
            "--guest",
            file,
            "--strategy",
            strategy.Id,
            .. HostileGuests.ArgumentsOf(name),
        ]);

        (int code, string? says) = HostileGuests.Expected(name, strategy);
        Assert.True(code == result.ExitCode, $"exit code {result.ExitCode}: {result.Error}");
        if (says is null)
        {
            Assert.Empty(result.Error);
        }
        else
        {
            result.AssertOneErrorLine(says);
        }
    }
}
