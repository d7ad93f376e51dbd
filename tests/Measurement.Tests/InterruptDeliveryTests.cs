using System.Runtime.Versioning;
using VirtBench.Measurement.Benchmarks;
using VirtBench.Strategies;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;

namespace VirtBench.Measurement.Tests;

/// <summary>The guest of the interrupt benchmark, which is built for both interfaces.</summary>
[SupportedOSPlatform("linux")]
public sealed class InterruptDeliveryTests
{
    public static TheoryData<string, InterruptDelivery, bool> All
    {
        get
        {
            var data = new TheoryData<string, InterruptDelivery, bool>();
            foreach (
                Strategy strategy in StrategyCatalog.All.Where(one => one.RunsPrivilegedGuests && !one.IsSimulated)
            )
            {
                foreach (InterruptDelivery delivery in new[] { InterruptDelivery.Exit, InterruptDelivery.Direct })
                {
                    data.Add(strategy.Id, delivery, false);
                    data.Add(strategy.Id, delivery, true);
                }
            }

            return data;
        }
    }

    [Theory, MemberData(nameof(All))]
    public void Each_interrupt_is_counted_once_and_what_goes_without_an_exit_is_accounted(
        string id,
        InterruptDelivery delivery,
        bool asleep
    )
    {
        Strategy strategy = InterruptLatency.With(StrategyCatalog.Find(id)!, delivery);
        Assert.SkipWhen(strategy.UnavailableReason() is not null, strategy.UnavailableReason() ?? "");
        int pulses = strategy.EmulatesRingZero ? 50 : 1000;
        using var guest = new InterruptedGuest(strategy, asleep);
        for (int i = 0; i < pulses; i++)
        {
            if (i % 2 == 0)
            {
                guest.Pulse();
            }
            else
            {
                _ = guest.Interrupt();
            }
        }

        Assert.Equal(RunEnd.Cancelled, guest.Stop()?.End);
        Assert.Equal((ulong)pulses, guest.Count);
        InterruptLineStatistics line = guest.Statistics;
        Assert.Equal((pulses, pulses), (line.Requests, line.Taken));
        if (delivery == InterruptDelivery.Exit)
        {
            Assert.Equal(0, line.Direct);
        }
        else if (!asleep)
        {
            Assert.True(line.Direct >= pulses / 4, $"{line}");
        }
    }
}
