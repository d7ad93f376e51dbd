using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Hardware.Tests;

/// <summary>The guest's page tables are obeyed, whatever the hardware makes of them, without an exit to the VMM.</summary>
public sealed class PagingTests
{
    private const ulong High = 0xFFFF_8000_0000_0000;
    private const ulong Rights = Pte.Present | Pte.Writable;

    [Theory]
    [InlineData(High)]
    [InlineData(0xFFFF_FFFF_8000_0000UL)]
    [InlineData(0x7FFF_C000_0000UL)]
    public void Code_and_data_lie_anywhere(ulong top)
    {
        using var guest = new HardwareGuest(a =>
        {
            Label there = a.CreateLabel();
            a.mov(rbx, top);
            a.lea(rax, __[there]);
            a.add(rax, rbx);
            a.jmp(rax);
            a.Label(ref there);
            a.lea(rax, __[there]);
            a.Store(0, rax);
            a.mov(rax, 0x1122_3344);
            a.mov(__qword_ptr[rbx + (int)HardwareGuest.Data], rax);
            a.mov(__qword_ptr[rbx], rax);
            a.mov(rsp, top + HardwareGuest.Data + 0x1000);
            a.push(rax);
            a.Exit();
        });
        Map2MiB(guest, top, 0, 8);
        guest.RunToExit();
        Assert.InRange(guest.Result(0), top + HardwareGuest.Code, top + HardwareGuest.Code + 100);
        Assert.Equal(0x1122_3344UL, guest.Memory.Read<ulong>(HardwareGuest.Data));
        Assert.Equal(0x1122_3344UL, guest.Memory.Read<ulong>(HardwareGuest.Data + 0xFF8));
        Assert.Equal(0x1122_3344UL, guest.Memory.Read<ulong>(0));
        Assert.InRange(guest.Cpu.Rip, top, top + HardwareGuest.RamBytes);
        Assert.Empty(guest.OtherExits);
    }

    // Tables for 2 MiB pages from linear to physical on
    private static void Map2MiB(HardwareGuest guest, ulong linear, ulong physical, int pages)
    {
        const ulong table = HardwareGuest.Tables;
        Entry(guest, PhysicalLayout.PageTables, linear, 39, table | Rights);
        Entry(guest, table, linear, 30, (table + 0x1000) | Rights);
        for (int i = 0; i < pages; i++)
        {
            ulong offset = (ulong)i << 21;
            Entry(guest, table + 0x1000, linear + offset, 21, (physical + offset) | Rights | Pte.Large);
        }
    }

    private static void Entry(HardwareGuest guest, ulong table, ulong linear, int shift, ulong value) =>
        guest.Memory.Write(table + (((linear >> shift) & 511) * 8), value);

    [Fact]
    public void Tables_that_are_written_while_the_guest_is_stopped_hold_when_it_is_loaded_again()
    {
        const ulong linear = 1UL << 30;
        const ulong table = HardwareGuest.Tables + 0x1000;
        GuestImage image = HardwareGuest.Assemble(a =>
        {
            a.mov(rbx, __qword_ptr[linear]);
            a.Store(0, rbx);
            a.Exit();
        });
        using var guest = new HardwareGuest(image);
        for (ulong run = 1; run <= 3; run++)
        {
            if (run > 1)
            {
                guest.Machine.Load(image, new BootOptions());
            }

            ulong page = HardwareGuest.Data + (run * 0x1000);
            guest.Memory.Write(PhysicalLayout.PageTables + 0x1000 + 8, HardwareGuest.Tables | Rights);
            guest.Memory.Write(HardwareGuest.Tables, table | Rights);
            guest.Memory.Write(table, page | Rights);
            guest.Memory.Write(page, run);
            guest.RunToExit();
            Assert.Equal(run, guest.Result(0));
        }
    }

    [Fact]
    public void Pages_may_have_a_gibibyte()
    {
        HardwareGuest.SkipUnderPvm("takes a 1 GiB page for a reserved bit");
        using var guest = new HardwareGuest(a =>
        {
            a.mov(rbx, High + HardwareGuest.Data);
            a.mov(__qword_ptr[rbx], rbx);
            a.Exit();
        });
        guest.MapGigabyte(High, 0);
        guest.RunToExit();
        Assert.Equal(High + HardwareGuest.Data, guest.Memory.Read<ulong>(HardwareGuest.Data));
    }

    [Fact]
    public void Accessed_and_dirty_bits_appear_in_the_guests_tables()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.mov(al, __byte_ptr[HardwareGuest.Data]);
            a.mov(__byte_ptr[HardwareGuest.Data + 0x1000], al);
            a.mov(al, __byte_ptr[HardwareGuest.Data + 0x3000]);
            a.mov(__byte_ptr[HardwareGuest.Data + 0x3000], al);
            a.Exit();
        });
        ulong table = guest.SplitLargePage(HardwareGuest.Data);
        guest.RunToExit();
        const ulong both = Pte.Accessed | Pte.Dirty;
        Assert.Equal(
            [Pte.Accessed, both, 0, both],
            Enumerable.Range(0, 4).Select(i => guest.Memory.Read<ulong>(table + (8 * (ulong)i)) & both)
        );
        ulong directory = PhysicalLayout.PageTables + 0x2000 + (HardwareGuest.Data >> 21 << 3);
        Assert.Equal(Pte.Accessed, guest.Memory.Read<ulong>(directory) & Pte.Accessed);
        Assert.Empty(guest.OtherExits);
    }

    [Fact]
    public void A_switch_of_cr3_shows_the_other_address_space()
    {
        const ulong linear = 0x4000_0000;
        const ulong second = HardwareGuest.Tables + 0x8000;
        using var guest = new HardwareGuest(a =>
        {
            Label again = a.CreateLabel();
            a.mov(rsi, cr3);
            a.mov(rdi, second);
            a.mov(ecx, 5);
            a.xor(r15d, r15d);
            a.Label(ref again);
            a.add(r15, __qword_ptr[linear]);
            a.mov(cr3, rdi);
            a.shl(r15, 1);
            a.add(r15, __qword_ptr[linear]);
            a.inc(__qword_ptr[linear]);
            a.mov(cr3, rsi);
            a.dec(ecx);
            a.jnz(again);
            a.Store(0, r15);
            a.mov(rax, cr3);
            a.Store(1, rax);
            a.Exit();
        });
        Map2MiB(guest, linear, 0x80_0000, 1); // writes its PML4 entry, which the identity map needs
        guest.Memory.Write(PhysicalLayout.PageTables, (PhysicalLayout.PageTables + 0x1000) | Rights);
        Entry(guest, PhysicalLayout.PageTables + 0x1000, linear, 30, (HardwareGuest.Tables + 0x1000) | Rights);
        Entry(guest, second, 0, 39, (second + 0x1000) | Rights);
        Entry(guest, second + 0x1000, 0, 30, (PhysicalLayout.PageTables + 0x2000) | Rights);
        Entry(guest, second + 0x1000, linear, 30, (second + 0x2000) | Rights);
        Entry(guest, second + 0x2000, linear, 21, 0xA0_0000 | Rights | Pte.Large);
        guest.Memory.Write(0x80_0000, 3UL);
        guest.Memory.Write(0xA0_0000, 100UL);
        guest.RunToExit();
        ulong sum = 0;
        for (ulong i = 0; i < 5; i++)
        {
            sum = ((sum + 3) * 2) + 100 + i;
        }

        Assert.Equal((sum, PhysicalLayout.PageTables), (guest.Result(0), guest.Result(1)));
        Assert.Equal(105UL, guest.Memory.Read<ulong>(0xA0_0000));
        Assert.Empty(guest.OtherExits);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Ring_zero_obeys_read_only_pages_only_with_write_protect(bool protect)
    {
        using var guest = new HardwareGuest(a =>
        {
            a.LoadIdt();
            if (!protect)
            {
                a.mov(rax, cr0);
                a.and(eax, ~(int)Cr0.Wp);
                a.mov(cr0, rax);
            }

            a.mov(ebx, 0x77);
            a.mov(__dword_ptr[HardwareGuest.Data], ebx);
            a.Exit(9);
        }).InstallHandlers();
        ulong table = guest.SplitLargePage(HardwareGuest.Data);
        guest.Memory.Write(table, HardwareGuest.Data | Pte.Present);
        if (protect)
        {
            CaughtException caught = guest.RunToException();
            Assert.Equal(
                (Vector.PageFault, PageFaultError.Write | PageFaultError.Protection, HardwareGuest.Data),
                (caught.Vector, caught.ErrorCode!.Value, caught.Cr2)
            );
            return;
        }

        Assert.Equal(9, guest.RunToExit());
        Assert.Equal(0x77U, guest.Memory.Read<uint>(HardwareGuest.Data));
        Assert.Equal(0UL, guest.Cpu.Cr0 & Cr0.Wp);
    }

    [Fact]
    public void A_page_without_execution_is_not_executed()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.LoadIdt();
            a.JumpTo(HardwareGuest.Data);
        }).InstallHandlers();
        ulong table = guest.SplitLargePage(HardwareGuest.Data);
        guest.Memory.Write(table, HardwareGuest.Data | Rights | Pte.NoExecute);
        Assert.Equal(
            new CaughtException(
                Vector.PageFault,
                PageFaultError.Fetch | PageFaultError.Protection,
                HardwareGuest.Data,
                HardwareGuest.Data
            ),
            guest.RunToException()
        );
    }

    [Fact]
    public void Invlpg_makes_a_changed_mapping_seen()
    {
        ulong table = 0;
        using var guest = new HardwareGuest(a =>
        {
            const ulong slot = HardwareGuest.Tables + (HardwareGuest.Data >> 21 << 12);
            a.mov(rbx, __qword_ptr[HardwareGuest.Data]);
            a.mov(rax, (HardwareGuest.Data + 0x5000) | Rights);
            a.mov(__qword_ptr[slot], rax);
            a.invlpg(__byte_ptr[HardwareGuest.Data]);
            a.mov(rcx, __qword_ptr[HardwareGuest.Data]);
            a.Store(0x400, rbx);
            a.Store(0x401, rcx);
            a.Exit();
        });
        table = guest.SplitLargePage(HardwareGuest.Data);
        Assert.Equal(HardwareGuest.Tables + (HardwareGuest.Data >> 21 << 12), table);
        guest.Memory.Write(HardwareGuest.Data, 1UL);
        guest.Memory.Write(HardwareGuest.Data + 0x5000, 2UL);
        guest.RunToExit();
        Assert.Equal((1UL, 2UL), (guest.Result(0x400), guest.Result(0x401)));
    }
}
