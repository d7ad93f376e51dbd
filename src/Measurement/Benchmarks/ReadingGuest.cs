using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Disks;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Paravirtual;
using VirtBench.Workloads;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>A guest that reads a disk in memory, block after block, in a machine of its own for every run.</summary>
internal sealed class ReadingGuest
{
    private const ulong RamBytes = 16 << 20;
    private const ulong Seed = 11;
    private static readonly DiskRequirement Requirement = new(1 << 20, Seed);

    private readonly GuestImage _image;

    /// <summary>Assembles the guest.</summary>
    /// <exception cref="PlatformNotSupportedException">This host cannot run the strategy so; the message says why.</exception>
    public ReadingGuest(Strategy strategy, InterruptDelivery delivery, DiskFrontEndKind frontEnd, int depth)
    {
        Strategy = delivery == InterruptDelivery.Exit ? strategy : new StrategyWithDelivery(strategy, delivery);
        FrontEnd = frontEnd;
        Depth = depth;
        if (Strategy.UnavailableReason() is { } reason)
        {
            throw new PlatformNotSupportedException(reason);
        }

        _image = new DiskProgram(frontEnd, strategy.Interface, depth).Build();
    }

    /// <summary>The strategy, with its way of delivering interrupts.</summary>
    public Strategy Strategy { get; }

    /// <summary>What the guest drives.</summary>
    public DiskFrontEndKind FrontEnd { get; }

    /// <summary>Requests in flight at once, if the driver has so many.</summary>
    public int Depth { get; }

    /// <summary>So many reads, after some that are not measured.</summary>
    /// <exception cref="InvalidOperationException">The guest did not end as it should, or has read something else.</exception>
    public MeasuredRegion Run(int reads)
    {
        const int warmUp = 64;
        using var machine = new VirtualMachine(RamBytes, Strategy.CreateEngine);
        machine.AttachDisk(Requirement.Create(), Strategy.Delivery);
        machine.Load(
            _image,
            new BootOptions
            {
                Parameters = [warmUp, (ulong)reads, 0],
                Paravirtual = Strategy.Interface == GuestInterface.Paravirtual,
            }
        );
        RunOutcome outcome = machine.Run(TimeSpan.FromMinutes(1));
        if (outcome is not { End: RunEnd.Exited, Status: 0 } || machine.Regions.Count != 1)
        {
            throw new InvalidOperationException(
                $"{Strategy.Id}: {outcome.Message ?? $"the guest ended with status {outcome.Status}"}"
            );
        }

        return WorkloadResult.Read(machine.Memory).Checksum == Checksum(warmUp + reads)
            ? machine.Regions[0]
            : throw new InvalidOperationException(
                $"{Strategy.Id}: the guest has read something else than the disk holds"
            );
    }

    private static ulong Checksum(int reads)
    {
        using var storage = new RamStorage(Requirement.Bytes, Seed);
        byte[] block = new byte[DiskBlock.Bytes];
        ulong checksum = 0;
        for (int i = 0; i < reads; i++)
        {
            storage.Read((ulong)i * DiskBlock.Sectors % storage.Sectors, block);
            checksum = DiskBlock.Fold(checksum, block);
        }

        return checksum;
    }
}
