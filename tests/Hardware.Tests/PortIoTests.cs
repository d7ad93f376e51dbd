using Iced.Intel;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Hardware.Tests;

public sealed class PortIoTests
{
    private const ushort Scratch = 0x3FF;
    private const ushort Nobody = 0x500;

    [Theory]
    [InlineData(HardwareGuest.Hardware)]
    [InlineData(HardwareGuest.Simulated)]
    [InlineData(HardwareGuest.TrapAndEmulate)]
    public void Text_reaches_the_console_byte_by_byte_and_as_a_string(string strategy)
    {
        using var guest = new HardwareGuest(
            a =>
            {
                a.mov(dx, 0x3F8);
                foreach (char c in "Hello, ")
                {
                    a.mov(al, (byte)c);
                    a.@out(dx, al);
                }

                a.mov(rsi, HardwareGuest.Data);
                a.mov(ecx, 7);
                a.cld();
                a.rep.outsb();
                a.mov(HardwareGuest.ResultSlot(0), rsi);
                a.mov(HardwareGuest.ResultSlot(1), rcx);

                // Downwards, to show that the string goes the way the flag says
                a.mov(rsi, HardwareGuest.Data + 0x102);
                a.mov(ecx, 3);
                a.std();
                a.rep.outsb();
                a.mov(HardwareGuest.ResultSlot(2), rsi);
                a.cld();
                a.Exit(7);
            },
            strategy
        );
        guest.Memory.Write(HardwareGuest.Data, "world.\n"u8);
        guest.Memory.Write(HardwareGuest.Data + 0x100, "cba"u8);
        Assert.Equal(7, guest.RunToExit());
        Assert.Equal("Hello, world.\nabc", guest.Console);
        Assert.Equal((HardwareGuest.Data + 7, 0UL), (guest.Result(0), guest.Result(1)));
        Assert.Equal(HardwareGuest.Data + 0xFF, guest.Result(2));
    }

    [Fact]
    public void A_long_string_arrives_whole_across_pages()
    {
        const int length = 4096 + 300;
        using var guest = new HardwareGuest(a =>
        {
            a.mov(dx, 0x3F8);
            a.mov(rsi, HardwareGuest.Data + 0xF80);
            a.mov(ecx, length);
            a.rep.outsb();
            a.Exit();
        });
        byte[] text = new byte[length];
        for (int i = 0; i < length; i++)
        {
            text[i] = (byte)(i * 7);
        }

        guest.Memory.Write(HardwareGuest.Data + 0xF80, text);
        guest.RunToExit();
        Assert.Equal(System.Text.Encoding.Latin1.GetString(text), guest.Console);
    }

    [Theory]
    [InlineData(HardwareGuest.Hardware)]
    [InlineData(HardwareGuest.Simulated)]
    public void Every_width_reads_what_the_port_has_and_ones_where_nobody_is(string strategy)
    {
        using var guest = new HardwareGuest(
            a =>
            {
                a.mov(dx, Scratch);
                a.mov(eax, 0x1234_5678);
                a.@out(dx, al);
                ReadAllWidths(a, 0);
                a.mov(dx, Nobody);
                ReadAllWidths(a, 3);
                a.@out(dx, al);
                a.@out(dx, ax);
                a.@out(dx, eax);
                a.@in(al, 0x80);
                a.@out(0x80, eax);
                a.Exit();
            },
            strategy
        );
        guest.RunToExit();
        const ulong old = 0x1111_2222_3333_4444;
        Assert.Equal((old & ~0xFFUL) | 0x78, guest.Result(0));
        Assert.Equal((old & ~0xFFFFUL) | 0xFF78, guest.Result(1));
        Assert.Equal(0xFFFF_FF78UL, guest.Result(2));
        Assert.Equal(old | 0xFF, guest.Result(3));
        Assert.Equal(old | 0xFFFF, guest.Result(4));
        Assert.Equal(0xFFFF_FFFFUL, guest.Result(5));
        Assert.Equal(8, guest.Machine.Ports.UnclaimedAccesses);
        Assert.Equal(13, guest.Exits(TrapReason.PortIo)); // and the exit port
    }

    private static void ReadAllWidths(Assembler a, int slot)
    {
        a.mov(rax, 0x1111_2222_3333_4444UL);
        a.@in(al, dx);
        a.mov(HardwareGuest.ResultSlot(slot), rax);
        a.mov(rax, 0x1111_2222_3333_4444UL);
        a.@in(ax, dx);
        a.mov(HardwareGuest.ResultSlot(slot + 1), rax);
        a.mov(rax, 0x1111_2222_3333_4444UL);
        a.@in(eax, dx);
        a.mov(HardwareGuest.ResultSlot(slot + 2), rax);
    }

    [Theory]
    [InlineData(HardwareGuest.Hardware)]
    [InlineData(HardwareGuest.Simulated)]
    public void Strings_of_every_width_are_read(string strategy)
    {
        using var guest = new HardwareGuest(
            a =>
            {
                a.cld();
                a.mov(dx, Scratch);
                a.mov(al, 0x5A);
                a.@out(dx, al);
                a.mov(rdi, HardwareGuest.Results);
                a.mov(ecx, 3);
                a.rep.insb();
                a.mov(ecx, 2);
                a.rep.insw();
                a.mov(dx, Nobody);
                a.mov(ecx, 2);
                a.rep.insd();
                a.insb();
                a.xor(ecx, ecx);
                a.rep.insd();
                a.mov(HardwareGuest.ResultSlot(8), rdi);
                a.Exit();
            },
            strategy
        );
        guest.RunToExit();
        byte[] expected =
        [
            .. new byte[] { 0x5A, 0x5A, 0x5A, 0x5A, 0xFF, 0x5A, 0xFF },
            .. Enumerable.Repeat((byte)0xFF, 9),
            0,
        ];
        byte[] got = new byte[expected.Length];
        guest.Memory.Read(HardwareGuest.Results, got);
        Assert.Equal(expected, got);
        Assert.Equal(HardwareGuest.Results + 16, guest.Result(8));
        Assert.Equal(3, guest.Machine.Ports.UnclaimedAccesses);
    }

    [Fact]
    public void Strict_names_the_port_and_the_instruction()
    {
        using var guest = new HardwareGuest(
            a =>
            {
                a.mov(dx, Nobody);
                a.@in(al, dx);
                a.Exit();
            },
            strict: true
        );
        Assert.Equal("IN from port 0x500, which has no device, at RIP 0x100004 (--strict)", guest.RunToFailure());
    }

    [Theory]
    [InlineData(HardwareGuest.Hardware)]
    [InlineData(HardwareGuest.Simulated)]
    [InlineData(HardwareGuest.TrapAndEmulate)]
    public void Regions_carry_their_units_and_their_exits(string strategy)
    {
        using var guest = new HardwareGuest(
            a =>
            {
                a.mov(eax, 77);
                a.@out(0xB0, eax);
                a.@in(al, 0x80);
                a.@in(al, 0x80);
                a.mov(eax, 2);
                a.@out(0xB8, eax);
                a.mov(eax, 5);
                a.@out(0xB4, eax);
                a.mov(eax, 78);
                a.@out(0xB0, eax);
                a.mov(eax, 9);
                a.@out(0xB4, eax);
                a.Exit();
            },
            strategy
        );
        guest.RunToExit();
        Assert.Equal(
            [(77U, 0x2_0000_0005UL, 2L, 2L), (78U, 9UL, 0L, 1L)],
            guest.Machine.Regions.Select(region =>
                (region.Id, region.Units, region.Exits[TrapReason.PortIo], region.Exits[TrapReason.RegionMarker])
            )
        );
        Assert.Equal(5, guest.Exits(TrapReason.RegionMarker));
        Assert.Equal(3, guest.Exits(TrapReason.PortIo));
        Assert.All(guest.Machine.Regions, region => Assert.True(region.ElapsedNanoseconds > 0));
    }

    [Fact]
    public void A_byte_to_a_measurement_port_ends_the_guest_in_one_line()
    {
        using var guest = new HardwareGuest(a => a.@out(0xB0, al));
        Assert.Contains("a write of 1 bytes to measurement port 0xB0", guest.RunToFailure(), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(HardwareGuest.Hardware)]
    [InlineData(HardwareGuest.Simulated)]
    public void A_string_input_that_faults_on_its_second_page_keeps_what_it_has_done(string strategy)
    {
        const ulong start = HardwareGuest.Data + 0x1000 - 4;
        using var guest = new HardwareGuest(
            a =>
            {
                a.LoadIdt();
                a.cld();
                a.mov(dx, Nobody);
                a.mov(rdi, start);
                a.mov(ecx, 10);
                a.rep.insb();
                a.Exit(99);
            },
            strategy
        ).InstallHandlers();
        ulong table = guest.SplitLargePage(HardwareGuest.Data);
        guest.Memory.Write(table + 8, 0UL);
        CaughtException caught = guest.RunToException();
        Assert.Equal((14, 2UL, HardwareGuest.Data + 0x1000), (caught.Vector, caught.ErrorCode!.Value, caught.Cr2));
        Assert.Equal(HardwareGuest.Data + 0x1000, guest.Cpu[7]);
        Assert.Equal(6UL, guest.Cpu[1]);
        Assert.Equal(uint.MaxValue, guest.Memory.Read<uint>(start));
    }
}
