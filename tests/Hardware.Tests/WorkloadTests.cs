using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Workloads;

namespace VirtBench.Hardware.Tests;

public sealed class WorkloadTests
{
    private const ulong Units = 3;
    private const int Filler = 600; // where ring 0 is emulated, 0.7 µs an instruction

    public static TheoryData<string, int> Cases
    {
        get
        {
            var cases = new TheoryData<string, int>();
            foreach (Workload workload in WorkloadCatalog.All)
            {
                cases.Add(workload.Id, 0);
                cases.Add(workload.Id, 1);
                cases.Add(workload.Id, workload.MaximumTrapsPerUnit);
            }

            return cases;
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_workload_leaves_the_same_under_every_strategy(string id, int k)
    {
        HardwareGuest.SkipUnlessAvailable();
        (ulong Checksum, string Console) expected = Run(HardwareGuest.Simulated, id, k);
        Assert.NotEqual(0UL, expected.Checksum);
        Assert.Equal(expected, Run(HardwareGuest.Hardware, id, k));
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_workload_leaves_the_same_as_under_trap_and_emulate(string id, int k) =>
        Assert.Equal(Run(HardwareGuest.TrapAndEmulate, id, k), Run(HardwareGuest.Hardware, id, k));

    private static (ulong Checksum, string Console) Run(string strategy, string id, int k)
    {
        Workload workload = WorkloadCatalog.Find(id)!;
        int filler = Math.Max(Filler, ((SlottedWorkload)workload).MinimumFiller);
        using var guest = new HardwareGuest(
            workload.Build(new WorkloadOptions(k, filler)),
            strategy,
            options: new BootOptions { Parameters = [1, Units] }
        );
        Assert.Equal(0, guest.RunToExit());
        MeasuredRegion region = Assert.Single(guest.Machine.Regions);
        Assert.Equal((Workload.MeasuredRegionId, Units), (region.Id, region.Units));
        if (strategy == HardwareGuest.Hardware)
        {
            long expected = workload.TrapsUnder(guest.Engine.Capabilities) ? k * (long)Units : 0;
            Assert.Equal(expected, region.Exits.Counts.Sum() - Markers(region) - region.Exits[TrapReason.Kick]);
        }

        return (WorkloadResult.Read(guest.Memory).Checksum, guest.Console);
    }

    // Begin and the high half of the units
    private static long Markers(MeasuredRegion region)
    {
        Assert.Equal(2, region.Exits[TrapReason.RegionMarker]);
        return 2;
    }
}
