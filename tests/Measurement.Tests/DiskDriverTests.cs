using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Disks;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Paravirtual;
using VirtBench.Workloads;

namespace VirtBench.Measurement.Tests;

/// <summary>The guests' disk drivers, as machine code on every engine that runs here.</summary>
public sealed class DiskDriverTests
{
    private const ulong Bytes = 1 << 20;
    private const int Blocks = (int)Bytes / DiskBlock.Bytes;
    private const ulong Seed = 77;
    private static readonly TimeSpan Timeout = TimeSpan.FromSeconds(60);

    public static TheoryData<string, DiskFrontEndKind> Drivers()
    {
        var data = new TheoryData<string, DiskFrontEndKind>();
        foreach (string id in StrategiesUnderTest.Privileged)
        {
            data.Add(id, DiskFrontEndKind.Ata);
            data.Add(id, DiskFrontEndKind.Virtio);
        }

        return data;
    }

    private static ulong ChecksumOf(IBlockStorage storage, int first, int count)
    {
        byte[] block = new byte[DiskBlock.Bytes];
        ulong checksum = 0;
        for (int i = 0; i < count; i++)
        {
            storage.Read((ulong)((first + i) % Blocks) * DiskBlock.Sectors, block);
            checksum = DiskBlock.Fold(checksum, block);
        }

        return checksum;
    }

    private static VirtualMachine Booted(
        Strategy strategy,
        DiskProgram program,
        Disk? disk,
        InterruptDelivery delivery = InterruptDelivery.Exit,
        params ulong[] parameters
    )
    {
        var machine = new VirtualMachine(16 << 20, strategy.CreateEngine);
        if (disk is not null)
        {
            machine.AttachDisk(disk, delivery);
        }

        machine.Load(
            program.Build(),
            new BootOptions { Parameters = parameters, Paravirtual = program.Interface == GuestInterface.Paravirtual }
        );
        return machine;
    }

    private static void AssertEnded(RunOutcome outcome, byte status = 0)
    {
        Assert.True(outcome.End == RunEnd.Exited, outcome.Message);
        Assert.Equal(status, outcome.Status);
    }

    [Theory]
    [MemberData(nameof(Drivers))]
    public void What_the_guest_reads_is_what_the_disk_holds(string id, DiskFrontEndKind frontEnd)
    {
        Strategy strategy = StrategiesUnderTest.Get(id);
        foreach (int depth in (int[])[1, 5, 32])
        {
            const int warmUp = 3;
            const int count = Blocks + 40; // once around, and the rings several times
            var program = new DiskProgram(frontEnd, strategy.Interface, depth);
            using VirtualMachine machine = Booted(
                strategy,
                program,
                new Disk(new RamStorage(Bytes, Seed)),
                InterruptDelivery.Exit,
                warmUp,
                count,
                100
            );
            AssertEnded(machine.Run(Timeout, TestContext.Current.CancellationToken));
            using var same = new RamStorage(Bytes, Seed);
            Assert.Equal(ChecksumOf(same, 100, warmUp + count), WorkloadResult.Read(machine.Memory).Checksum);
            DiskStatistics statistics = machine.Regions[0].Io!.Disk!;
            Assert.Equal((count, count, 0), (statistics.Requests, statistics.Completions, statistics.Errors));
            Assert.Equal((long)count * DiskBlock.Bytes, statistics.BytesRead);
        }
    }
}
