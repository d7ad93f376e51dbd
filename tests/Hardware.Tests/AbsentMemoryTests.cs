using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Hardware.Tests;

public sealed class AbsentMemoryTests
{
    private const ulong NoRam = HardwareGuest.NoRam;
    private const ulong Old = 0x1111_2222_3333_4444;

    public static TheoryData<string> Strategies => [HardwareGuest.Hardware, HardwareGuest.Simulated];

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Reads_of_every_width_give_ones(string strategy)
    {
        using var guest = new HardwareGuest(
            a =>
            {
                a.mov(rbx, NoRam);
                a.mov(rax, Old);
                a.mov(al, __byte_ptr[rbx]);
                a.Store(0, rax);
                a.mov(rax, Old);
                a.mov(ax, __word_ptr[rbx + 1]);
                a.Store(1, rax);
                a.mov(rax, Old);
                a.mov(eax, __dword_ptr[rbx + 5]);
                a.Store(2, rax);
                a.mov(rax, __qword_ptr[rbx + 16]);
                a.Store(3, rax);
                a.movzx(eax, __byte_ptr[rbx]);
                a.Store(4, rax);
                a.movsx(rax, __word_ptr[rbx]);
                a.Store(5, rax);
                a.mov(rax, Old);
                a.test(__qword_ptr[rbx], rax);
                a.setnz(al);
                a.Store(6, rax);
                a.cmp(__byte_ptr[rbx], 0xFF - 0x100);
                a.sete(al);
                a.Store(7, rax);
                a.Exit();
            },
            strategy
        );
        guest.RunToExit();
        Assert.Equal(
            [
                Old | 0xFF,
                Old | 0xFFFF,
                0xFFFF_FFFF,
                ulong.MaxValue,
                0xFF,
                ulong.MaxValue,
                (Old & ~0xFFUL) | 1,
                (Old & ~0xFFUL) | 1,
            ],
            Enumerable.Range(0, 8).Select(guest.Result)
        );
        Assert.Equal(8, guest.Machine.AbsentMemory.UnclaimedAccesses);
        Assert.Equal(8, guest.Exits(TrapReason.Mmio));
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Writes_of_every_width_are_dropped_and_counted(string strategy)
    {
        using var guest = new HardwareGuest(
            a =>
            {
                a.mov(rbx, NoRam);
                a.mov(rax, Old);
                a.mov(__byte_ptr[rbx], al);
                a.mov(__word_ptr[rbx], ax);
                a.mov(__dword_ptr[rbx], eax);
                a.mov(__qword_ptr[rbx], rax);
                a.mov(__dword_ptr[rbx], 7);
                a.mov(rdi, rbx);
                a.mov(ecx, 3);
                a.cld();
                a.rep.stosq();
                a.mov(HardwareGuest.ResultSlot(0), rdi);
                a.mov(rsi, HardwareGuest.Data);
                a.movsd();
                a.mov(HardwareGuest.ResultSlot(1), rdi);
                a.mov(rax, __qword_ptr[rbx]);
                a.Store(2, rax);
                a.Exit();
            },
            strategy
        );
        guest.RunToExit();
        Assert.Equal((NoRam + 24, NoRam + 28, ulong.MaxValue), (guest.Result(0), guest.Result(1), guest.Result(2)));
        if (strategy == HardwareGuest.Hardware)
        {
            // One for each item of the string; the core's emulation writes a page's worth at once.
            Assert.Equal(10, guest.Machine.AbsentMemory.UnclaimedAccesses);
            Assert.Equal(10, guest.Exits(TrapReason.Mmio));
        }
    }

    [Fact]
    public void A_read_modify_write_reads_ones_and_writes_nothing()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.mov(rbx, NoRam);
            a.add(__dword_ptr[rbx], 1);
            a.pushfq();
            a.pop(rax);
            a.and(eax, (int)Rflags.Arithmetic);
            a.Store(0, rax);
            a.mov(rax, Old);
            a.xchg(__qword_ptr[rbx], rax);
            a.Store(1, rax);
            a.inc(__byte_ptr[rbx]);
            a.or(__qword_ptr[rbx], rax);
            a.Exit();
        });
        guest.RunToExit();
        Assert.Equal(Rflags.Cf | Rflags.Pf | Rflags.Af | Rflags.Zf, guest.Result(0));
        Assert.Equal(ulong.MaxValue, guest.Result(1));
        Assert.Equal(8, guest.Machine.AbsentMemory.UnclaimedAccesses);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void An_access_across_the_end_of_ram_has_both_halves(string strategy)
    {
        const ulong end = HardwareGuest.RamBytes;
        using var guest = new HardwareGuest(
            a =>
            {
                a.mov(rbx, end - 3);
                a.mov(rax, __qword_ptr[rbx]);
                a.Store(0, rax);
                a.mov(rax, Old);
                a.mov(__qword_ptr[rbx], rax);
                a.Exit();
            },
            strategy
        );
        guest.Memory.Write(end - 4, 0xAABB_CCDDU);
        guest.RunToExit();
        Assert.Equal(0xFFFF_FFFF_FFAA_BBCC, guest.Result(0));
        Assert.Equal(0x3344_44DDU, guest.Memory.Read<uint>(end - 4));
        Assert.Equal(2, guest.Machine.AbsentMemory.UnclaimedAccesses);
    }

    [Fact]
    public void Accesses_of_eight_bytes_that_cross_a_page_are_whole()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.mov(rbx, NoRam + 0xFFD);
            a.mov(rax, __qword_ptr[rbx]);
            a.Store(0, rax);
            a.mov(__qword_ptr[rbx], rax);
            a.Exit();
        });
        guest.RunToExit();
        Assert.Equal(ulong.MaxValue, guest.Result(0));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Strict_names_the_address_and_the_instruction(bool writes)
    {
        using var guest = new HardwareGuest(
            a =>
            {
                a.mov(rbx, NoRam);
                if (writes)
                {
                    a.mov(__byte_ptr[rbx], al);
                }
                else
                {
                    a.mov(al, __byte_ptr[rbx]);
                }

                a.Exit();
            },
            strict: true
        );
        string message = guest.RunToFailure();
        Assert.StartsWith(
            $"{(writes ? "write to" : "read of")} guest-physical 0x30000000, where there is neither RAM nor a device, at RIP 0x",
            message,
            StringComparison.Ordinal
        );
        Assert.EndsWith("(--strict)", message, StringComparison.Ordinal);
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Page_tables_may_map_what_is_no_ram(string strategy)
    {
        const ulong linear = 0x6060_1234_5000;
        const ulong physical = 0xD000_0000;
        using var guest = new HardwareGuest(
            a =>
            {
                a.mov(rbx, linear);
                a.mov(eax, __dword_ptr[rbx + 4]);
                a.Store(0, rax);
                a.mov(__dword_ptr[rbx + 8], eax);
                a.mov(__qword_ptr[0x4000_0100], rax);
                a.Exit();
            },
            strategy
        );

        const ulong table = HardwareGuest.Tables;
        const ulong rights = Pte.Present | Pte.Writable;
        ulong top = Vmm.Boot.PhysicalLayout.PageTables + ((linear >> 39 & 511) * 8);
        guest.Memory.Write(top, table | rights);
        guest.Memory.Write(table + ((linear >> 30 & 511) * 8), (table + 0x1000) | rights);
        guest.Memory.Write(table + 0x1000 + ((linear >> 21 & 511) * 8), (table + 0x2000) | rights);
        guest.Memory.Write(table + 0x2000 + ((linear >> 12 & 511) * 8), physical | rights);
        guest.MapLargePage(0x4000_0000, 0x10_0000_0000);
        guest.RunToExit();
        Assert.Equal(0xFFFF_FFFFUL, guest.Result(0));
        Assert.Equal(3, guest.Machine.AbsentMemory.UnclaimedAccesses);
        Assert.Equal(
            Pte.Accessed | Pte.Dirty,
            guest.Memory.Read<ulong>(table + 0x2000 + ((linear >> 12 & 511) * 8)) & (Pte.Accessed | Pte.Dirty)
        );
    }

    // Where PCs have their APICs: the platform has none, and KVM must not bring its own.
    [Theory]
    [InlineData(0xFEE0_0000UL)]
    [InlineData(0xFEC0_0000UL)]
    public void There_is_no_interrupt_controller_of_the_kernels(ulong address)
    {
        using var guest = new HardwareGuest(a =>
        {
            a.mov(rbx, address);
            a.mov(eax, __dword_ptr[rbx + 0x30]);
            a.Store(0, rax);
            a.Exit();
        });
        guest.MapLargePage(address);
        guest.RunToExit();
        Assert.Equal((0xFFFF_FFFFUL, 1), (guest.Result(0), guest.Machine.AbsentMemory.UnclaimedAccesses));
    }

    [Fact]
    public void Ring_three_reads_ones_too()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.mov(rbx, NoRam);
            a.mov(rax, __qword_ptr[rbx]);
            a.Store(0, rax);
            a.mov(__qword_ptr[rbx], rax);
            a.ud2();
        });
        guest.EnterInRingThree();
        guest.MapLargePageOfBoot(NoRam);
        Assert.Equal(6, guest.RunToException().Vector);
        Assert.Equal(3, (int)guest.Result(2) & 3); // CS of the frame
    }
}
