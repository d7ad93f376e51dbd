using System.Runtime.InteropServices;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Tests;

public sealed class BootLoaderTests : IDisposable
{
    private readonly VirtualCpu _cpu = new();
    private readonly GuestMemory _memory = new(1 << 20);

    public void Dispose()
    {
        _cpu.Dispose();
        _memory.Dispose();
    }

    private static ImageSegment Segment(ulong address, ulong memorySize = 0x1000, bool executable = true) =>
        new(address, new byte[] { 0x90, 0xF4 }, memorySize, executable);

    private void Load(ulong entry, params ImageSegment[] segments) =>
        BootLoader.Load(new GuestImage("g", entry, segments), new BootOptions(), _cpu, _memory, 1e9);

    [Fact]
    public void Boot_information_has_the_platforms_layout()
    {
        BootLoader.Load(
            new GuestImage("g", 0x4_0000, [Segment(0x4_0000)]),
            new BootOptions { Parameters = [11, 22], Paravirtual = true },
            _cpu,
            _memory,
            2_100_000_000.4
        );
        Assert.Equal(PhysicalLayout.BootInfo, _cpu[Gpr.Rdi]);
        byte[] magic = new byte[8];
        _memory.Read(PhysicalLayout.BootInfo, magic);
        Assert.Equal("VBNCHv1\0"u8, magic);
        ulong[] fields =
        [
            .. Enumerable.Range(1, 8).Select(i => _memory.Read<ulong>(PhysicalLayout.BootInfo + ((ulong)i * 8))),
        ];
        Assert.Equal(
            [1 << 20, 2_100_000_000, 1, PhysicalLayout.HypercallPage, PhysicalLayout.SharedInfoPage, 2, 11, 22],
            fields
        );
        Assert.Equal(56, Marshal.SizeOf<BootInformation>());
        Assert.Equal(48, (int)Marshal.OffsetOf<BootInformation>(nameof(BootInformation.ParameterCount)));
    }

    [Fact]
    public void Without_the_paravirtual_interface_its_pages_are_not_named()
    {
        Load(0x4_0000, Segment(0x4_0000));
        for (ulong field = 3; field <= 6; field++)
        {
            Assert.Equal(0UL, _memory.Read<ulong>(PhysicalLayout.BootInfo + (field * 8)));
        }
    }

    [Fact]
    public void The_cpu_enters_long_mode_ring_0_with_the_stack_of_a_called_function()
    {
        Load(0x4_0001, Segment(0x4_0000));
        Assert.Equal((0x4_0001UL, 0, 2UL), (_cpu.Rip, _cpu.Cpl, _cpu.Rflags));
        Assert.Equal(8UL, _cpu.Rsp % 16);
        Assert.Equal(PhysicalLayout.StackTop, _cpu.Rsp + 8);
        Assert.Equal(0UL, _memory.Read<ulong>(_cpu.Rsp));
        Assert.Equal((PhysicalLayout.Gdt, 23), (_cpu.Gdtr.Base, _cpu.Gdtr.Limit));
        Assert.Equal(_cpu.Cs, new SegmentDescriptor(0, _memory.Read<ulong>(PhysicalLayout.Gdt + 8), 0).ToSegment(8));
        Assert.Equal(_cpu.Ss, new SegmentDescriptor(0, _memory.Read<ulong>(PhysicalLayout.Gdt + 16), 0).ToSegment(16));
    }

    [Theory]
    [InlineData(0UL, true)]
    [InlineData(0x3FFF_FFFFUL, true)]
    [InlineData(0x1234_5678UL, true)]
    [InlineData(0x4000_0000UL, false)]
    [InlineData(0xFFFF_8000_0000_0000UL, false)]
    public void The_first_GiB_is_identity_mapped_for_the_supervisor(ulong address, bool mapped)
    {
        Load(0x4_0000, Segment(0x4_0000));
        Translation t = PageWalker.Walk(_cpu, _memory, address, PageAccess.Execute, commit: false);
        Assert.Equal(mapped, !t.Fault);
        if (mapped)
        {
            Assert.Equal((address, (byte)21), (t.PhysicalAddress, t.PageShift));
            Assert.Equal(PageAccess.Read | PageAccess.Write | PageAccess.Execute, t.Permissions);
        }
    }

    [Fact]
    public void Loading_again_forgets_what_was_there()
    {
        _memory.Write(0x4_0800, 0x55UL);
        _memory.Write(PhysicalLayout.StackBottom + 0x100, 0x55UL);
        _cpu.Rax = 5;
        Load(0x4_0000, Segment(0x4_0000));
        Assert.Equal(0xF490, _memory.Read<ushort>(0x4_0000));
        Assert.Equal(0UL, _memory.Read<ulong>(0x4_0800));
        Assert.Equal(0UL, _memory.Read<ulong>(PhysicalLayout.StackBottom + 0x100));
        Assert.Equal(0UL, _cpu.Rax);
    }

    [Theory]
    [InlineData(0x4_0000UL, 0x2_F000UL, 0x1000UL, "boot area")]
    [InlineData(0x4_0000UL, 0UL, 0x1000UL, "boot area")]
    [InlineData(0x4_0000UL, 0xF_F000UL, 0x1001UL, "does not fit into 1 MiB")]
    [InlineData(0x4_0000UL, 1UL << 40, 0x1000UL, "does not fit")]
    [InlineData(0x4_0000UL, 0x4_0FFFUL, 0x1000UL, "overlaps")]
    [InlineData(0x4_0000UL, ulong.MaxValue - 2, 0x1000UL, "beyond the address space")]
    [InlineData(0x4_0000UL, 0x5_0000UL, 1UL, "more content")]
    [InlineData(0x6_0000UL, 0x5_0000UL, 0x1000UL, "no executable segment")]
    public void Segments_that_do_not_fit_are_refused(ulong entry, ulong address, ulong size, string why)
    {
        GuestImageException e = Assert.Throws<GuestImageException>(() =>
            Load(entry, Segment(0x4_0000), Segment(address, size))
        );
        Assert.Contains(why, e.Message, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', e.Message);
    }

    [Fact]
    public void An_entry_in_data_and_an_image_of_nothing_are_refused()
    {
        Assert.Throws<GuestImageException>(() => Load(0x4_0000, Segment(0x4_0000, executable: false)));
        Assert.Throws<GuestImageException>(() => Load(0x4_0000));
    }

    [Fact]
    public void Parameters_fill_the_page_and_no_more()
    {
        GuestImage image = new("g", 0x4_0000, [Segment(0x4_0000)]);
        ulong[] most = [.. Enumerable.Repeat(7UL, BootOptions.MaximumParameters)];
        BootLoader.Load(image, new BootOptions { Parameters = most }, _cpu, _memory, 1e9);
        Assert.Equal(7UL, _memory.Read<ulong>(PhysicalLayout.BootInfo + 4088));
        Assert.Equal(0UL, _memory.Read<ulong>(PhysicalLayout.BootInfo + 4096));
        Assert.Throws<ArgumentException>(() =>
            BootLoader.Load(image, new BootOptions { Parameters = [.. most, 7] }, _cpu, _memory, 1e9)
        );
    }
}
