using VirtBench.Measurement;
using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;
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
    public void A_workload_leaves_the_same_as_on_the_simulated_cpu(string id, int k) =>
        Compare(HardwareGuest.Simulated, id, k);

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_workload_leaves_the_same_as_under_trap_and_emulate(string id, int k) =>
        Compare(HardwareGuest.TrapAndEmulate, id, k);

    /// <summary>
    /// Where neither engine lets anything through both leave the same; where only the other one does, the workload is made to
    /// show it.
    /// </summary>
    private static void Compare(string other, string id, int k)
    {
        HardwareGuest.SkipUnlessAvailable();
        string? refusal = SweepPlan.WhyNotUnder(
            StrategyCatalog.Find(HardwareGuest.Hardware)!,
            WorkloadCatalog.Find(id)!
        );
        Assert.SkipWhen(refusal is not null, refusal ?? "");
        if (id == "timer-interrupt")
        {
            InterruptShadow.SkipWhereEntriesLoseIt(); // its one interrupt may then come before the HLT that waits for it
        }

        Left left = Run(other, id, k);
        Left right = Run(HardwareGuest.Hardware, id, k);
        Assert.NotEqual(0UL, left.Checksum);
        if (right.HasHole)
        {
            return; // as kvm_pvm: what it makes of it is stated elsewhere
        }

        Assert.NotEqual(0UL, right.Checksum);
        Assert.Equal(left.HasHole, left.Checksum != right.Checksum);
        Assert.Equal(left.Console.Split('\n').Order(), right.Console.Split('\n').Order()); // processes end when they end
    }

    private static Left Run(string strategy, string id, int k)
    {
        Workload workload = WorkloadCatalog.Find(id)!;
        int filler = workload is SlottedWorkload slotted
            ? Math.Max(Filler, slotted.MinimumFiller)
            : workload.DefaultFiller;
        using var guest = new HardwareGuest(
            workload.Build(new WorkloadOptions(k, filler)),
            strategy,
            options: new BootOptions { Parameters = [1, Units] }
        );
        VirtualizationHole[] holes =
            k == 0 ? [] : [.. workload.HolesUnder(GuestInterface.Native, guest.Machine.Capabilities)];
        if (holes.Any(hole => hole.EndsGuest))
        {
            Assert.Equal(RunEnd.Failed, guest.Run().End);
            return new Left(0, "", true);
        }

        Assert.Equal(0, guest.RunToExit());
        MeasuredRegion region = Assert.Single(guest.Machine.Regions);
        Assert.Equal((Workload.MeasuredRegionId, Units), (region.Id, region.Units));
        if (strategy == HardwareGuest.Hardware && workload is SlottedWorkload { Disk: null })
        {
            // Port I/O and halts leave the kernel, nothing else does.
            long traps = workload.TrapsUnder(GuestInterface.Native, guest.Machine.Capabilities) ? k * (long)Units : 0;
            long exits = traps * (workload is TimerInterrupt ? 1 + TimerPortAccesses : 1);
            long asynchronous = region.Exits[TrapReason.Kick] + region.Exits[TrapReason.InterruptWindow];
            Assert.Equal(exits, region.Exits.Counts.Sum() - Markers(region) - asynchronous);
            Assert.Equal(traps, workload.Operation(GuestInterface.Native).Trap is { } kind ? region.Exits[kind] : 0);
        }

        return new Left(WorkloadResult.Read(guest.Memory).Checksum, guest.Console, holes.Length > 0);
    }

    /// <summary>Two to set the 8254, one to end the interrupt.</summary>
    private const int TimerPortAccesses = 3;

    private sealed record Left(ulong Checksum, string Console, bool HasHole);

    // Begin and the high half of the units
    private static long Markers(MeasuredRegion region)
    {
        Assert.Equal(2, region.Exits[TrapReason.RegionMarker]);
        return 2;
    }
}
