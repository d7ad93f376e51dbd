using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Tests;

public sealed class GuestMemoryTests : IDisposable
{
    private readonly GuestMemory _memory = new(4 << 20);

    public void Dispose() => _memory.Dispose();

    [Theory]
    [InlineData(0UL, 4UL << 20, true)]
    [InlineData(0UL, (4UL << 20) + 1, false)]
    [InlineData((4UL << 20) - 1, 1UL, true)]
    [InlineData((4UL << 20) - 1, 2UL, false)]
    [InlineData(4UL << 20, 0UL, false)]
    [InlineData(ulong.MaxValue, 2UL, false)]
    [InlineData(8UL, ulong.MaxValue, false)]
    public void A_range_is_RAM_or_not_without_overflow(ulong address, ulong length, bool contained) =>
        Assert.Equal(contained, _memory.Contains(address, length));

    [Theory]
    [InlineData(0UL)]
    [InlineData((1UL << 20) + 1)]
    [InlineData((16UL << 30) + 4096)]
    public void Sizes_outside_the_platforms_are_refused(ulong size) =>
        Assert.Throws<ArgumentOutOfRangeException>(() => new GuestMemory(size));

    [Fact]
    public void Access_outside_RAM_throws_and_writes_nothing()
    {
        Assert.Throws<ArgumentOutOfRangeException>(() => _memory.Write((4UL << 20) - 4, ulong.MaxValue));
        Assert.Equal(0u, _memory.Read<uint>((4UL << 20) - 4));
        Assert.Throws<ArgumentOutOfRangeException>(() => _memory.Read<byte>(4UL << 20));
    }

    [Theory]
    [InlineData(0x1_0000UL, 0x10UL)]
    [InlineData(0x1_0FF0UL, 0x20UL)]
    [InlineData(0x1_0123UL, 0x3_0000UL)] // large enough to be given back to the host
    [InlineData(0x1_0000UL, 0x2_0000UL)]
    public void Clear_zeroes_exactly_its_range_and_tells_the_observer(ulong address, ulong length)
    {
        byte[] ones = new byte[0x6_0000];
        Array.Fill(ones, (byte)0xFF);
        _memory.Write(0, ones);
        Observer observer = new();
        _memory.WriteObserver = observer;
        _memory.Clear(address, length);
        byte[] after = new byte[ones.Length];
        _memory.Read(0, after);
        Assert.Equal(-1, after.AsSpan((int)address, (int)length).IndexOfAnyExcept((byte)0));
        Assert.Equal(-1, after.AsSpan(0, (int)address).IndexOfAnyExcept((byte)0xFF));
        Assert.Equal(-1, after.AsSpan((int)(address + length)).IndexOfAnyExcept((byte)0xFF));
        Assert.Equal((address, length), observer.Last);
    }

    [Fact]
    public void The_memfd_cannot_be_resized()
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "guest RAM is a memfd on Linux only");
        using FileStream file = new(
            new Microsoft.Win32.SafeHandles.SafeFileHandle(_memory.FileDescriptor, ownsHandle: false),
            FileAccess.ReadWrite
        );
        Assert.ThrowsAny<Exception>(() => file.SetLength(4096));
        Assert.Equal(4L << 20, file.Length);
    }

    [Fact]
    public void Register_block_has_the_layout_that_engines_rely_on()
    {
        using VirtualCpu cpu = new();
        unsafe
        {
            byte* block = (byte*)cpu.Registers;
            cpu[Gpr.R8 + 7] = 0x1111;
            cpu.Rip = 0x2222;
            Assert.Equal(0x1111UL, *(ulong*)(block + 120));
            Assert.Equal(0x2222UL, *(ulong*)(block + 128));
            Assert.Equal(2UL, *(ulong*)(block + 136));
            Assert.Equal(0x37F, *(ushort*)(block + 256));
            Assert.Equal(0x1F80u, *(uint*)(block + GuestRegisters.MxcsrOffset));
            Assert.Equal(280, GuestRegisters.MxcsrOffset);
            Assert.Equal(416, GuestRegisters.XmmOffset);
            Assert.Equal(GuestRegisters.Size, sizeof(GuestRegisters));
            Assert.Equal(0UL, (ulong)block % 64);
        }
    }

    private sealed class Observer : IMemoryWriteObserver
    {
        public (ulong Address, ulong Length) Last { get; private set; }

        public void MemoryWritten(ulong address, ulong length) => Last = (address, length);
    }
}
