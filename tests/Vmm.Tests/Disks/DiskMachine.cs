using VirtBench.Vmm.Disks;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;

namespace VirtBench.Vmm.Tests.Disks;

/// <summary>
/// A VM with a disk whose registers a test touches as guest code would. On a computed clock of 2 GHz, unless it has the disk's
/// thread.
/// </summary>
internal sealed class DiskMachine : IDisposable
{
    public const int SectorSize = IBlockStorage.SectorSize;
    public const ulong Seed = 7;
    public const byte FirstVector = 0x20;

    private static readonly EngineCapabilities Computed = new()
    {
        TimeSource = "computed: script",
        ComputedTime = true,
    };

    private static readonly EngineCapabilities Measured = new() { TimeSource = "measured: script" };

    public DiskMachine(
        IBlockStorage? storage = null,
        DiskTiming? timing = null,
        InterruptDelivery delivery = InterruptDelivery.Exit,
        bool thread = false,
        Func<int, IInterruptLine>? directLine = null
    )
    {
        ScriptedEngine engine = null!;
        Vm = new VirtualMachine(
            4 << 20,
            (cpu, _) =>
                engine = new ScriptedEngine(cpu) { Capabilities = thread ? Measured : Computed, UsesHostClock = thread }
        );
        Engine = engine;
        Storage = storage ?? new RamStorage(1 << 20, Seed);
        Vm.AttachDisk(new Disk(Storage, timing), delivery, directLine);
        HasThread = thread;
        foreach (
            (ushort port, uint value) in ((ushort, uint)[])
                [
                    (0x20, 0x11),
                    (0x21, FirstVector),
                    (0x21, 4),
                    (0x21, 1),
                    (0xA0, 0x11),
                    (0xA1, FirstVector + 8),
                    (0xA1, 2),
                    (0xA1, 1),
                ]
        )
        {
            Vm.Ports.Write(port, 1, value, 0);
        }
    }

    public VirtualMachine Vm { get; }

    public ScriptedEngine Engine { get; }

    public IBlockStorage Storage { get; }

    public bool HasThread { get; }

    public DiskService Service => Vm.DiskService!;

    public DiskStatistics Statistics => Vm.DiskStatistics()!;

    public AtaChannel Ata => Service.FrontEnds.OfType<AtaChannel>().Single();

    public VirtioBlock Virtio => Service.FrontEnds.OfType<VirtioBlock>().Single();

    /// <summary>Lets everything of the disk happen that comes up to a time: all of it unless said.</summary>
    public void Pass(ulong until = ulong.MaxValue)
    {
        if (HasThread)
        {
            Assert.True(SpinWait.SpinUntil(() => !Service.MayYetComplete(), TimeSpan.FromSeconds(30)));
        }

        while (!HasThread && Service.NextEvent <= until && Service.NextEvent != ulong.MaxValue)
        {
            Engine.Ticks = Math.Max(Engine.Ticks, Service.NextEvent);
            Service.Advance(Engine.Ticks);
        }

        if (!HasThread && until != ulong.MaxValue)
        {
            Engine.Ticks = Math.Max(Engine.Ticks, until);
        }

        Drain();
    }

    public void Drain()
    {
        if (Service.HasPosted)
        {
            Service.Drain();
        }
    }

    public byte In(int port) => (byte)Vm.Ports.Read((ushort)port, 1, 0);

    public void Out(int port, int value) => Vm.Ports.Write((ushort)port, 1, (uint)value, 0);

    public uint ReadRegister(int register)
    {
        byte[] value = new byte[4];
        Vm.AbsentMemory.Read(VirtioBlock.Address + (ulong)register, value, 0);
        return BitConverter.ToUInt32(value);
    }

    public void WriteRegister(int register, uint value) =>
        Vm.AbsentMemory.Write(VirtioBlock.Address + (ulong)register, BitConverter.GetBytes(value), 0);

    /// <summary>What a seeded disk holds.</summary>
    public static byte[] Content(ulong sector, int sectors)
    {
        using var disk = new RamStorage(1 << 20, Seed);
        byte[] content = new byte[sectors * SectorSize];
        disk.Read(sector, content);
        return content;
    }

    public static byte[] Pattern(int length, int seed)
    {
        byte[] bytes = new byte[length];
        new Random(seed).NextBytes(bytes);
        return bytes;
    }

    /// <summary>The line's interrupts that have been requested so far.</summary>
    public long Requests(int line) => Vm.Interrupts.Requests[line];

    public void Dispose() => Vm.Dispose();
}

/// <summary>Storage that fails where a test wants it to.</summary>
internal sealed class FailingStorage(ulong sectors) : IBlockStorage
{
    private readonly RamStorage _data = new(1 << 20, DiskMachine.Seed);

    public ulong FailsFrom { get; set; } = ulong.MaxValue;

    public bool FailsToFlush { get; set; }

    public int Flushes { get; private set; }

    public ulong Sectors => sectors;

    public bool IsReadOnly { get; init; }

    public bool IsDisposed { get; private set; }

    public void Read(ulong sector, Span<byte> destination)
    {
        Check(sector, destination.Length);
        _data.Read(sector, destination);
    }

    public void Write(ulong sector, ReadOnlySpan<byte> source)
    {
        Check(sector, source.Length);
        _data.Write(sector, source);
    }

    private void Check(ulong sector, int length)
    {
        if (sector + (ulong)(length / DiskMachine.SectorSize) > FailsFrom)
        {
            throw new DiskErrorException("no space left on device", Math.Max(sector, FailsFrom));
        }
    }

    public void Flush()
    {
        if (FailsToFlush)
        {
            throw new DiskErrorException("cannot be flushed", 0);
        }

        Flushes++;
    }

    public void Dispose() => IsDisposed = true;
}
