using VirtBench.Strategies;
using VirtBench.Tests;

namespace VirtBench.Cli.Tests;

/// <summary>Every hostile guest under every strategy, one after the other in one VMM process: it survives them all.</summary>
public sealed class HostileGuestFacts
{
    public static TheoryData<string, string> Everything
    {
        get
        {
            var all = new TheoryData<string, string>();
            foreach (Strategy strategy in StrategyCatalog.All)
            {
                foreach (string name in HostileGuests.Names)
                {
                    all.Add(strategy.Id, name);
                }
            }

            return all;
        }
    }

    [Theory]
    [MemberData(nameof(Everything))]
    public void A_hostile_guest_gives_one_line_and_the_right_exit_code(string strategyId, string name)
    {
        Strategy strategy = StrategyCatalog.Find(strategyId)!;
        Assert.SkipWhen(strategy.UnavailableReason() is not null, strategy.UnavailableReason() ?? "");
        using var folder = new TemporaryFolder();
        string file = folder.Write("guest.elf", HostileGuests.FileOf(name));

        var call = Call.Of(["exec", "--guest", file, "--strategy", strategyId, .. HostileGuests.ArgumentsOf(name)]);

        (int code, string? says) = HostileGuests.Expected(name, strategy);
        if (says is null)
        {
            call.Succeeded();
        }
        else
        {
            call.AssertFails(code, says);
        }
    }
}
