using System.Runtime.InteropServices;
using System.Text;
using VirtBench.Strategies;
using VirtBench.Tests;
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
    private const byte EioStatus = 5;
    private const byte EnxioStatus = 6;
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
        Strategy varied = delivery == InterruptDelivery.Exit ? strategy : new StrategyWithDelivery(strategy, delivery);
        var machine = new VirtualMachine(16 << 20, varied.CreateEngine);
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

    [Theory]
    [MemberData(nameof(Drivers))]
    public void What_the_guest_has_written_is_in_the_file_when_it_is_opened_again(string id, DiskFrontEndKind frontEnd)
    {
        Strategy strategy = StrategiesUnderTest.Get(id);
        using var folder = new TemporaryFolder();
        string path = folder.Write("disk", new byte[Bytes]);
        const int first = 200; // around the end
        using (
            VirtualMachine machine = Booted(
                strategy,
                new DiskProgram(frontEnd, strategy.Interface, 16, Writes: true),
                new Disk(new FileStorage(path, readOnly: false)),
                InterruptDelivery.Exit,
                7,
                Blocks - 7,
                first
            )
        )
        {
            AssertEnded(machine.Run(Timeout, TestContext.Current.CancellationToken));
            DiskStatistics statistics = machine.DiskStatistics()!;
            Assert.Equal(((long)Bytes, 2L, 0L), (statistics.BytesWritten, statistics.Flushes, statistics.Errors));
        }

        ReadOnlySpan<ulong> written = MemoryMarshal.Cast<byte, ulong>(File.ReadAllBytes(path));
        Assert.Equal((int)Bytes / sizeof(ulong), written.Length);
        for (int i = 0; i < written.Length; i++)
        {
            const int words = DiskBlock.Bytes / sizeof(ulong);
            Assert.Equal(DiskBlock.Pattern(i / words, i % words), written[i]);
        }

        using VirtualMachine reader = Booted(
            strategy,
            new DiskProgram(frontEnd, strategy.Interface, 4),
            new Disk(new FileStorage(path, readOnly: true)),
            InterruptDelivery.Exit,
            0,
            Blocks
        );
        AssertEnded(reader.Run(Timeout, TestContext.Current.CancellationToken));
        using var again = new FileStorage(path, readOnly: true);
        Assert.Equal(ChecksumOf(again, 0, Blocks), WorkloadResult.Read(reader.Memory).Checksum);
    }

    [Theory]
    [InlineData(DiskFrontEndKind.Ata, "disk: the ATA device reports an error\n")]
    [InlineData(DiskFrontEndKind.Virtio, "disk: the virtio device reports an error\n")]
    public void An_error_of_the_disk_ends_the_guest_with_a_line_and_its_status(DiskFrontEndKind frontEnd, string line)
    {
        foreach (Strategy strategy in StrategiesUnderTest.Available().Where(one => one.RunsPrivilegedGuests))
        {
            using VirtualMachine machine = Booted(
                strategy,
                new DiskProgram(frontEnd, strategy.Interface, 4, Writes: true),
                new Disk(new RamStorage(Bytes, Seed, readOnly: true)),
                InterruptDelivery.Exit,
                0,
                4
            );
            var console = new StringBuilder();
            machine.Serial.Transmitted = character => console.Append((char)character);
            AssertEnded(machine.Run(Timeout, TestContext.Current.CancellationToken), EioStatus);
            Assert.Equal(line, console.ToString());
        }
    }

    [Theory]
    [InlineData(DiskFrontEndKind.Ata)]
    [InlineData(DiskFrontEndKind.Virtio)]
    public void A_guest_that_finds_no_disk_says_so(DiskFrontEndKind frontEnd)
    {
        foreach (Strategy strategy in StrategiesUnderTest.Available().Where(one => one.RunsPrivilegedGuests))
        {
            using VirtualMachine machine = Booted(
                strategy,
                new DiskProgram(frontEnd, strategy.Interface, 1),
                disk: null,
                InterruptDelivery.Exit,
                0,
                1
            );
            var console = new StringBuilder();
            machine.Serial.Transmitted = character => console.Append((char)character);
            AssertEnded(machine.Run(Timeout, TestContext.Current.CancellationToken), EnxioStatus);
            Assert.Equal("disk: no disk is attached\n", console.ToString());
        }
    }

    [Theory]
    [MemberData(nameof(Drivers))]
    public void However_interrupts_are_delivered_no_completion_is_lost(string id, DiskFrontEndKind frontEnd)
    {
        Strategy strategy = StrategiesUnderTest.Get(id);
        const int count = 100;
        foreach (InterruptDelivery delivery in Enum.GetValues<InterruptDelivery>())
        {
            if (strategy.WhyNotDelivered(delivery) is not null)
            {
                continue;
            }

            foreach (double service in (double[])[0, 20_000])
            {
                using VirtualMachine machine = Booted(
                    strategy,
                    new DiskProgram(frontEnd, strategy.Interface, 32),
                    new Disk(
                        new RamStorage(Bytes, Seed),
                        new DiskTiming
                        {
                            MeanNanoseconds = service,
                            Jitter = 0.9,
                            QueueDepth = 4,
                        }
                    ),
                    delivery,
                    0,
                    count
                );
                AssertEnded(machine.Run(Timeout, TestContext.Current.CancellationToken));
                using var same = new RamStorage(Bytes, Seed);
                Assert.Equal(ChecksumOf(same, 0, count), WorkloadResult.Read(machine.Memory).Checksum);
                DiskStatistics statistics = machine.Regions[0].Io!.Disk!;
                Assert.Equal(count, statistics.Completions);
                Assert.InRange(statistics.Interrupts, 0, count);
            }
        }
    }

    [Fact]
    public void An_ata_request_of_a_block_takes_these_exits()
    {
        const int count = 12;
        Strategy strategy = StrategiesUnderTest.Get("simulated-trap-and-emulate");
        using VirtualMachine machine = Booted(
            strategy,
            new DiskProgram(DiskFrontEndKind.Ata, GuestInterface.Native, 1),
            new Disk(new RamStorage(Bytes, Seed), new DiskTiming { MeanNanoseconds = 50_000 }),
            InterruptDelivery.Exit,
            2,
            count
        );
        AssertEnded(machine.Run(Timeout, TestContext.Current.CancellationToken));
        MeasuredRegion region = machine.Regions[0];

        // Six registers, the status, the data, an end of interrupt at both controllers.
        Assert.Equal(10 * count, region.Exits[TrapReason.PortIo]);
        Assert.Equal(count, region.Exits[TrapReason.Halt]);
        Assert.Equal(count, region.Io!.Disk!.Interrupts);
        Assert.InRange(region.Io.WaitingNanoseconds, 0.9 * count * 50_000, count * 50_000);
    }

    [Fact]
    public void A_batch_of_virtio_requests_takes_one_notification_and_interrupts_only_a_guest_that_sleeps()
    {
        const int depth = 32;
        const int batches = 5;
        Strategy strategy = StrategiesUnderTest.Get("simulated-trap-and-emulate");

        // All of a batch are in service at once and over at once, so that one interrupt tells of them.
        foreach ((double service, int interrupts) in ((double, int)[])[(0, 0), (50_000, batches)])
        {
            using VirtualMachine machine = Booted(
                strategy,
                new DiskProgram(DiskFrontEndKind.Virtio, GuestInterface.Native, depth),
                new Disk(new RamStorage(Bytes, Seed), new DiskTiming { MeanNanoseconds = service, QueueDepth = depth }),
                InterruptDelivery.Exit,
                0,
                depth * batches
            );
            AssertEnded(machine.Run(Timeout, TestContext.Current.CancellationToken));
            MeasuredRegion region = machine.Regions[0];
            Assert.Equal(depth * batches, region.Io!.Disk!.Completions);
            Assert.Equal(interrupts, region.Io.Disk.Interrupts);

            // The notification, and with each interrupt its status and acknowledgement.
            Assert.Equal(batches + (2 * interrupts), region.Exits[TrapReason.Mmio]);
            Assert.Equal(interrupts, region.Exits[TrapReason.Halt]);
        }
    }
}
