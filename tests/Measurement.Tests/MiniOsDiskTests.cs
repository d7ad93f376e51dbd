using System.Buffers.Binary;
using System.Text;
using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Disks;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;
using VirtBench.Workloads;

namespace VirtBench.Measurement.Tests;

/// <summary>What mini-os reads from its disk and writes there.</summary>
public sealed class MiniOsDiskTests
{
    private const int Processes = 3;

    public static TheoryData<string> Strategies() => [.. StrategiesUnderTest.Privileged];

    private static GuestImage Build(Strategy strategy) =>
        new MiniOs(Processes).Build(new WorkloadOptions(2, 2_000, strategy.Interface));

    private static (RunOutcome Outcome, string Console, ulong Checksum) Run(
        Strategy strategy,
        GuestImage image,
        Disk? disk,
        Action<VirtualMachine>? after = null
    )
    {
        using var machine = new VirtualMachine(MiniOs.MinimumRam, strategy.CreateEngine);
        var console = new StringBuilder();
        machine.Serial.Transmitted = character => console.Append((char)character);
        if (disk is not null)
        {
            machine.AttachDisk(disk);
        }

        machine.Load(
            image,
            new BootOptions { Parameters = [3, 6], Paravirtual = strategy.Interface == GuestInterface.Paravirtual }
        );
        RunOutcome outcome = machine.Run(TimeSpan.FromMinutes(2), TestContext.Current.CancellationToken);
        after?.Invoke(machine);
        return (outcome, console.ToString(), WorkloadResult.Read(machine.Memory).Checksum);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void The_disk_holds_the_result_of_each_process_in_the_end(string id)
    {
        Strategy strategy = StrategiesUnderTest.Get(id);
        GuestImage image = Build(strategy);
        Disk disk = image.Disk!.Create();
        byte[] content = new byte[disk.Storage.Sectors * IBlockStorage.SectorSize];
        (RunOutcome outcome, string console, ulong checksum) = Run(
            strategy,
            image,
            disk,
            machine =>
            {
                disk.Storage.Read(0, content);
                Assert.Equal((1L, 0L), (machine.DiskStatistics()!.Flushes, machine.DiskStatistics()!.Errors));
            }
        );
        Assert.Equal(new RunOutcome(RunEnd.Exited, 0, null), outcome);
        int results = MiniOsStore.ResultsOffset(content);
        for (int process = 0; process <= Processes; process++)
        {
            ulong[] words =
            [
                .. Enumerable
                    .Range(0, MiniOsStore.ResultBytes / sizeof(ulong))
                    .Select(word =>
                        BinaryPrimitives.ReadUInt64LittleEndian(
                            content.AsSpan(results + (process * IBlockStorage.SectorSize) + (word * sizeof(ulong)))
                        )
                    ),
            ];
            Assert.Equal((MiniOsStore.ResultMagic, (ulong)process), (words[0], words[1]));
            Assert.Contains(
                process == 0
                    ? $"mini-os: checksum {words[2]:x16}\n"
                    : $"mini-os: process {process} checksum {words[2]:x16}\n",
                console
            );
            Assert.Equal(process == 0 ? (checksum, 0UL) : (words[2], 1UL), (words[2], words[3]));
        }
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void The_processes_run_what_the_disk_holds(string id)
    {
        Strategy strategy = StrategiesUnderTest.Get(id);
        GuestImage image = Build(strategy);
        byte[] content = image.Disk!.Content.ToArray();
        int text = content.AsSpan().IndexOf("mini-os: process"u8);
        Assert.True(text > 0);
        "MINI-OS"u8.CopyTo(content.AsSpan(text));
        (RunOutcome outcome, string console, ulong checksum) = Run(
            strategy,
            image,
            (image.Disk with { Content = content }).Create()
        );
        Assert.Equal(new RunOutcome(RunEnd.Exited, 0, null), outcome);
        Assert.Contains("MINI-OS: process 1 checksum", console);
        Assert.Equal(Run(strategy, image, null).Checksum, checksum);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Without_a_disk_it_runs_what_the_image_holds(string id)
    {
        Strategy strategy = StrategiesUnderTest.Get(id);
        GuestImage image = Build(strategy);
        Assert.Equal(Run(strategy, image, null), Run(strategy, image with { Disk = null }, null));
    }

    [Fact]
    public void A_disk_without_programs_ends_it_with_a_line()
    {
        foreach (Strategy strategy in StrategiesUnderTest.Available().Where(one => one.RunsPrivilegedGuests))
        {
            GuestImage image = Build(strategy);
            byte[] tooLong = image.Disk!.Content.ToArray();
            BinaryPrimitives.WriteUInt64LittleEndian(tooLong.AsSpan(0x10), 0x1_0001); // bytes of the program
            foreach (byte[] content in (byte[][])[new byte[IBlockStorage.SectorSize], tooLong])
            {
                (RunOutcome outcome, string console, _) = Run(
                    strategy,
                    image,
                    (image.Disk with { Content = content }).Create()
                );
                Assert.Equal(new RunOutcome(RunEnd.Exited, 1, null), outcome);
                Assert.Equal("mini-os: the disk has no program store\n", console);
            }
        }
    }
}
