using VirtBench.Tests;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;

namespace VirtBench.Hardware.Tests;

/// <summary>
/// The hostile guests of all strategies: whatever becomes of them under hardware assist, it is one of the ends that a guest can
/// have, in one line, and the process lives.
/// </summary>
public sealed class HostileGuestTests
{
    private static readonly TimeSpan Limit = TimeSpan.FromSeconds(0.5);

    public static TheoryData<string> Everything => [.. HostileGuests.Names];

    [Theory]
    [MemberData(nameof(Everything))]
    public void A_hostile_guest_harms_nobody_but_itself(string name)
    {
        HardwareGuest.SkipUnlessAvailable();
        Assert.SkipWhen(
            EmulatedMachine.IsBochs && name.StartsWith("endless", StringComparison.Ordinal),
            "under Bochs a guest that spins with IF=0 cannot be interrupted"
        );
        GuestImage image = ElfImage.Parse(HostileGuests.FileOf(name), name);
        bool strict = HostileGuests.ArgumentsOf(name).Contains("--strict");
        using var guest = new HardwareGuest(image, ram: 64 << 20, strict: strict);
        RunOutcome outcome = guest.Run(Limit);
        Assert.True(outcome.End == RunEnd.Exited == outcome.Message is null, outcome.ToString());
        Assert.DoesNotContain('\n', outcome.Message ?? "");

        // The next one finds all as it was.
        using var next = new HardwareGuest(a => a.Exit(7));
        Assert.Equal(7, next.RunToExit());
    }
}
