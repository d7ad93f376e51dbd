namespace VirtBench.Vmm.Tests.Disks;

/// <summary>A descriptor as a driver writes it.</summary>
internal readonly record struct Part(ulong Address, uint Length, bool Writable = false);

/// <summary>The guest's side of a split ring, driven by a test: descriptors are given out in turn.</summary>
internal sealed class VirtioDriver
{
    public const ulong Descriptors = 0x10_0000;
    public const ulong Available = 0x10_2000;
    public const ulong Used = 0x10_3000;
    public const ulong Headers = 0x11_0000;
    public const ulong Data = 0x12_0000;
    public const ulong Features = 1UL << 32;
    public const ulong EventIndex = 1UL << 29;
    public const ulong Indirect = 1UL << 28;

    private readonly DiskMachine _machine;
    private int _next;
    private ushort _seen;

    public VirtioDriver(DiskMachine machine, ulong features = Features, int size = 256, bool start = true)
    {
        _machine = machine;
        Size = size;
        machine.WriteRegister(0x70, 0);
        machine.WriteRegister(0x70, 1);
        machine.WriteRegister(0x70, 3);
        machine.WriteRegister(0x24, 0);
        machine.WriteRegister(0x20, (uint)features);
        machine.WriteRegister(0x24, 1);
        machine.WriteRegister(0x20, (uint)(features >> 32));
        machine.WriteRegister(0x70, 11);
        if (start)
        {
            SetUp(size, Descriptors, Available, Used);
            machine.WriteRegister(0x70, 15);
        }
    }

    public int Size { get; }

    /// <summary>Index of the available ring, counting as the ring does.</summary>
    public ushort Index { get; set; }

    public ushort UsedIndex => _machine.Vm.Memory.Read<ushort>(Used + 2);

    public ushort AvailableEvent => _machine.Vm.Memory.Read<ushort>(Used + 4 + (8 * (ulong)Size));

    public ushort UsedFlags => _machine.Vm.Memory.Read<ushort>(Used);

    public ushort UsedEvent
    {
        set => _machine.Vm.Memory.Write(Available + 4 + (2 * (ulong)Size), value);
    }

    public uint InterruptStatus => _machine.ReadRegister(0x60);

    public bool NeedsReset => (_machine.ReadRegister(0x70) & 64) != 0;

    public void SetUp(int size, ulong descriptors, ulong available, ulong used)
    {
        _machine.WriteRegister(0x30, 0);
        _machine.WriteRegister(0x38, (uint)size);
        _machine.WriteRegister(0x80, (uint)descriptors);
        _machine.WriteRegister(0x84, (uint)(descriptors >> 32));
        _machine.WriteRegister(0x90, (uint)available);
        _machine.WriteRegister(0x94, (uint)(available >> 32));
        _machine.WriteRegister(0xA0, (uint)used);
        _machine.WriteRegister(0xA4, (uint)(used >> 32));
        _machine.WriteRegister(0x44, 1);
    }

    public void Acknowledge() => _machine.WriteRegister(0x64, InterruptStatus);

    public void Notify() => _machine.WriteRegister(0x50, 0);

    public void WriteDescriptor(ulong table, int index, ulong address, uint length, int flags, int next)
    {
        ulong at = table + (16 * (ulong)index);
        _machine.Vm.Memory.Write(at, address);
        _machine.Vm.Memory.Write(at + 8, length);
        _machine.Vm.Memory.Write(at + 12, (ushort)flags);
        _machine.Vm.Memory.Write(at + 14, (ushort)next);
    }

    /// <summary>Makes a chain available that begins at this descriptor.</summary>
    public void Offer(int head)
    {
        _machine.Vm.Memory.Write(Available + 4 + (2UL * (ulong)(Index % Size)), (ushort)head);
        _machine.Vm.Memory.Write(Available + 2, ++Index);
    }

    /// <summary>Writes a chain and makes it available.</summary>
    public int Add(params Part[] parts)
    {
        int head = _next;
        for (int i = 0; i < parts.Length; i++)
        {
            bool last = i == parts.Length - 1;
            int index = _next;
            _next = (_next + 1) % Size;
            int flags = (last ? 0 : 1) | (parts[i].Writable ? 2 : 0);
            WriteDescriptor(Descriptors, index, parts[i].Address, parts[i].Length, flags, last ? 0 : _next);
        }

        Offer(head);
        return head;
    }

    public ulong Header(uint type, ulong sector, int slot = 0)
    {
        ulong at = Headers + (32 * (ulong)slot);
        _machine.Vm.Memory.Write(at, type);
        _machine.Vm.Memory.Write(at + 4, 0u);
        _machine.Vm.Memory.Write(at + 8, sector);
        _machine.Vm.Memory.Write(at + 16, (byte)0xEE);
        return at;
    }

    public static ulong StatusOf(int slot = 0) => Headers + (32 * (ulong)slot) + 16;

    public byte Status(int slot = 0) => _machine.Vm.Memory.Read<byte>(StatusOf(slot));

    public int Read(ulong sector, int sectors, int slot = 0, ulong data = Data) =>
        Add(
            new Part(Header(0, sector, slot), 16),
            new Part(data, (uint)sectors * 512, true),
            new Part(StatusOf(slot), 1, true)
        );

    public int Write(ulong sector, int sectors, int slot = 0, ulong data = Data) =>
        Add(
            new Part(Header(1, sector, slot), 16),
            new Part(data, (uint)sectors * 512),
            new Part(StatusOf(slot), 1, true)
        );

    /// <summary>Takes the next element of the used ring.</summary>
    public (uint Head, uint Written) TakeUsed()
    {
        Assert.NotEqual(_seen, UsedIndex);
        ulong at = Used + 4 + (8UL * (ulong)(_seen++ % Size));
        return (_machine.Vm.Memory.Read<uint>(at), _machine.Vm.Memory.Read<uint>(at + 4));
    }

    public byte[] Bytes(ulong address, int length)
    {
        byte[] bytes = new byte[length];
        _machine.Vm.Memory.Read(address, bytes);
        return bytes;
    }
}
