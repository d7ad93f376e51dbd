using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Disks;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Workloads.Tests;

public sealed class DiskWorkloadTests
{
    public static TheoryData<string, string> Cases
    {
        get
        {
            var cases = new TheoryData<string, string>();
            foreach (Strategy strategy in StrategyCatalog.All.Where(strategy => strategy.RunsPrivilegedGuests))
            {
                cases.Add("disk-stream", strategy.Id);
                cases.Add("disk-io", strategy.Id);
            }

            return cases;
        }
    }

    /// <summary>What a run with so many reads folds into its checksum, computed here.</summary>
    private static ulong Expected(DiskRequirement disk, int reads, int bytes)
    {
        using var storage = new RamStorage(disk.Bytes, disk.Seed);
        byte[] block = new byte[DiskBlock.Bytes];
        ulong checksum = 0;
        for (int i = 0; i < reads; i++)
        {
            storage.Read((ulong)i * DiskBlock.Sectors % storage.Sectors, block);
            checksum = DiskBlock.Fold(checksum, block.AsSpan(0, bytes));
        }

        return checksum;
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void The_blocks_are_read_in_their_order_whatever_k_and_interface(string id, string strategyId)
    {
        Strategy strategy = StrategyCatalog.Find(strategyId)!;
        Assert.SkipWhen(strategy.UnavailableReason() is not null, strategy.UnavailableReason() ?? "");
        Workload workload = WorkloadCatalog.Find(id)!;
        foreach ((int k, int units) in ((int, int)[])[(0, 3), (1, 5), (7, 3), (16, 2)])
        {
            const int warmUp = 1;
            using var machine = new VirtualMachine(16 << 20, strategy.CreateEngine);
            machine.Load(
                workload.Build(new WorkloadOptions(k, 2_000, strategy.Interface)),
                new BootOptions
                {
                    Parameters = [warmUp, (ulong)units],
                    Paravirtual = strategy.Interface == GuestInterface.Paravirtual,
                }
            );
            RunOutcome outcome = machine.Run(TimeSpan.FromMinutes(1), TestContext.Current.CancellationToken);
            Assert.True(outcome is { End: RunEnd.Exited, Status: 0 }, outcome.Message);
            Assert.Equal(
                Expected(workload.Disk!, k * (warmUp + units), id == "disk-io" ? 64 : DiskBlock.Bytes),
                machine.Memory.Read<ulong>(DiskWorkload.Checksum)
            );
            MeasuredRegion region = machine.Regions[0];
            Assert.Equal(k * units, region.Io!.Disk!.Completions);
            Assert.Equal(0, region.Io.Disk.Errors);
            if (workload.ExitsUnder(strategy.Interface, machine.Capabilities) is { } exits)
            {
                Assert.Equal(exits * k * units, region.Exits[TrapReason.PortIo]);
            }
        }
    }

    [Fact]
    public void A_guest_of_disk_io_sleeps_while_its_disk_works()
    {
        const int k = 4;
        const int units = 10;
        Strategy strategy = StrategyCatalog.Find("simulated-trap-and-emulate")!;
        Workload workload = WorkloadCatalog.Find("disk-io")!;
        using var machine = new VirtualMachine(16 << 20, strategy.CreateEngine);
        machine.Load(
            workload.Build(new WorkloadOptions(k, workload.DefaultFiller)),
            new BootOptions { Parameters = [0, units] }
        );
        Assert.Equal(RunEnd.Exited, machine.Run(TimeSpan.FromMinutes(1), TestContext.Current.CancellationToken).End);
        IoStatistics io = machine.Regions[0].Io!;

        // The service times are those of the seed, whatever strategy, and the clock is computed: what the guest does not sleep are its own exits.
        var timing = new DiskTiming
        {
            MeanNanoseconds = 1e6,
            Jitter = 0.1,
            Seed = workload.Disk!.Seed,
        };
        double service = Enumerable.Range(0, k * units).Sum(i => timing.ServiceNanoseconds((ulong)i));
        Assert.InRange(io.Disk!.LatencyTotalNanoseconds, service - (k * units), service + (k * units)); // whole ticks
        Assert.InRange(io.WaitingNanoseconds, 0.98 * service, service);
        Assert.InRange(machine.Regions[0].ElapsedNanoseconds, service, 1.05 * service);
    }
}
