using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Emulation;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Vmm.Tests;

/// <summary>LAR, LSL, VERR, VERW and PUSH FS/GS: what ring 3 executes without a trap and a translator leaves to the core.</summary>
public sealed class DescriptorQueryTests : IDisposable
{
    private const ulong Before = 0xDEAD_BEEF_CAFE_F00D;
    private const ushort Tested = 0x58; // the upper half of the LDT's descriptor, which nothing here loads
    private const ulong Table = 0x4000_0000;

    private readonly GuestMachine _guest = new();

    private VirtualCpu Cpu => _guest.Cpu;

    public void Dispose() => _guest.Dispose();

    private void Done(Action<Assembler> instruction, TrapReason reason)
    {
        ulong next = Cpu.Rip;
        Assert.Equal(EmulationResult.Done, _guest.Execute(instruction));
        Assert.Equal((next + (ulong)_guest.Length, reason), (Cpu.Rip, _guest.Reason));
    }

    private void Faults(Action<Assembler> instruction, GuestEvent expected)
    {
        string before = _guest.State();
        Assert.Equal(EmulationResult.Event, _guest.Execute(instruction));
        Assert.Equal(expected, _guest.Event);
        Assert.Equal(before, _guest.State());
    }

    /// <summary>Executes with the selector in EAX and the result in RBX, with all arithmetic flags set; only ZF may change.</summary>
    private ulong? Ask(Action<Assembler> instruction, ushort selector)
    {
        const ulong others = Rflags.Arithmetic & ~Rflags.Zf;
        bool zeroFirst = (selector & 8) != 0;
        Cpu.Rax = 0xFFFF_FFFF_FFFF_0000 | selector;
        Cpu[Gpr.Rbx] = Before;
        Cpu.Rflags = (Cpu.Rflags & ~Rflags.Arithmetic) | others | (zeroFirst ? Rflags.Zf : 0);
        Done(instruction, TrapReason.DescriptorTable);
        Assert.Equal(others, Cpu.Rflags & others);
        bool answered = (Cpu.Rflags & Rflags.Zf) != 0;
        if (!answered)
        {
            Assert.Equal(Before, Cpu[Gpr.Rbx]);
        }

        return answered ? Cpu[Gpr.Rbx] : null;
    }

    private ulong? Lar(ushort selector) => Ask(a => a.lar(ebx, eax), selector);

    private ulong? Lsl(ushort selector) => Ask(a => a.lsl(ebx, eax), selector);

    private bool Verr(ushort selector) => Ask(a => a.verr(ax), selector) is not null;

    private bool Verw(ushort selector) => Ask(a => a.verw(ax), selector) is not null;

    [Fact]
    public void Lar_and_lsl_give_as_much_as_the_operand_holds()
    {
        _guest.Descriptor(Tested, 0x12CF_F234_5678_9ABC);
        Assert.Equal(0x00CF_F200UL, Lar(Tested));
        // With REX.W, which the assembler has no method for: as with 32 bits.
        Assert.Equal(0x00CF_F200UL, Ask(a => a.db(0x48, 0x0F, 0x02, 0xD8), Tested));
        Assert.Equal(0xDEAD_BEEF_CAFE_F200, Ask(a => a.lar(bx, ax), Tested));
        Assert.Equal(0xF9AB_CFFFUL, Lsl(Tested));
        Assert.Equal(0xF9AB_CFFFUL, Ask(a => a.db(0x48, 0x0F, 0x03, 0xD8), Tested));
        Assert.Equal(0xDEAD_BEEF_CAFE_CFFF, Ask(a => a.lsl(bx, ax), Tested));
        _guest.Descriptor(Tested, 0x124F_F234_5678_9ABC); // the limit in bytes
        Assert.Equal(0xF9ABCUL, Lsl(Tested));
    }

    [Fact]
    public void The_selector_may_be_in_memory()
    {
        _guest.Memory.Write(GuestMachine.Data, GuestMachine.KernelCode);
        Cpu[Gpr.Rsi] = GuestMachine.Data;
        Assert.Equal(0x00AF_9A00UL, Ask(a => a.lar(ebx, __word_ptr[rsi]), 0) & ~0x100UL); // accessed or not
        Assert.Equal(uint.MaxValue, Ask(a => a.lsl(ebx, __word_ptr[rsi]), 0));
        Assert.NotNull(Ask(a => a.verr(__word_ptr[rsi]), 0));
        Assert.Null(Ask(a => a.verw(__word_ptr[rsi]), 0));
        Cpu[Gpr.Rsi] = Table;
        Faults(a => a.lar(ebx, __word_ptr[rsi]), GuestEvent.PageFault(Table, 0));
        Faults(a => a.verw(__word_ptr[rsi]), GuestEvent.PageFault(Table, 0));
    }

    [Fact]
    public void An_operand_in_memory_is_a_word_even_at_the_end_of_a_page()
    {
        _ = _guest.Map(Table, GuestMachine.Data);
        _guest.Memory.Write(GuestMachine.Data + 0xFFE, GuestMachine.KernelData);
        Cpu[Gpr.Rsi] = Table + 0xFFE;
        Assert.NotNull(Ask(a => a.db(0x48, 0x0F, 0x02, 0x1E), 0));
        Assert.NotNull(Ask(a => a.db(0x48, 0x0F, 0x03, 0x1E), 0));
    }

    // SDM vol. 2A, tables 3-53 and 3-56, the columns for IA-32e mode.
    [Theory]
    [InlineData(0, false, false)]
    [InlineData(1, false, false)]
    [InlineData(2, true, true)]
    [InlineData(3, false, false)]
    [InlineData(4, false, false)]
    [InlineData(5, false, false)]
    [InlineData(6, false, false)]
    [InlineData(7, false, false)]
    [InlineData(8, false, false)]
    [InlineData(9, true, true)]
    [InlineData(10, false, false)]
    [InlineData(11, true, true)]
    [InlineData(12, true, false)]
    [InlineData(13, false, false)]
    [InlineData(14, false, false)]
    [InlineData(15, false, false)]
    public void Of_system_descriptors_some_types_are_known(int type, bool lar, bool lsl)
    {
        _guest.Descriptor(Tested, 0x0000_8000_0000_0067 | ((ulong)type << 40));
        Assert.Equal(lar ? 0x8000UL | ((ulong)type << 8) : null, Lar(Tested));
        Assert.Equal(lsl ? 0x67UL : null, Lsl(Tested));
        Assert.False(Verr(Tested));
        Assert.False(Verw(Tested));
    }

    [Theory]
    [InlineData(0x90, true, false, "read-only data")]
    [InlineData(0x92, true, true, "data")]
    [InlineData(0x94, true, false, "expand-down, read-only")]
    [InlineData(0x96, true, true, "expand-down")]
    [InlineData(0x98, false, false, "execute-only code")]
    [InlineData(0x9A, true, false, "code")]
    [InlineData(0x9C, false, false, "conforming execute-only code")]
    [InlineData(0x9E, true, false, "conforming code")]
    [InlineData(0x12, true, true, "data that is not present")]
    public void Code_and_data_are_always_known_and_readable_or_writable_by_type(
        ulong access,
        bool readable,
        bool writable,
        string what
    )
    {
        _guest.Descriptor(Tested, 0x0000_0000_0000_0FFF | (access << 40));
        Assert.Equal(access << 8, Lar(Tested));
        Assert.Equal(0xFFFUL, Lsl(Tested));
        Assert.Equal((readable, writable), (Verr(Tested), Verw(Tested)));
        _ = what; // names the case in the report
    }

    [Fact]
    public void A_question_leaves_the_descriptor_as_it_is()
    {
        ulong address = Boot.PhysicalLayout.Gdt + (GuestMachine.UserData & ~7UL);
        ulong before = _guest.Memory.Read<ulong>(address);
        Assert.NotNull(Lar(GuestMachine.UserData));
        Assert.NotNull(Lsl(GuestMachine.UserData));
        Assert.True(Verr(GuestMachine.UserData));
        Assert.True(Verw(GuestMachine.UserData));
        Assert.Equal(before, _guest.Memory.Read<ulong>(address));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(3)]
    [InlineData(GuestMachine.BeyondLimit)]
    [InlineData(0x0C)] // of an LDT that is not loaded
    [InlineData(0xFFFF)]
    public void A_selector_of_nothing_is_answered_by_a_clear_zero_flag(int selector)
    {
        Assert.Null(Lar((ushort)selector));
        Assert.Null(Lsl((ushort)selector));
        Assert.False(Verr((ushort)selector));
        Assert.False(Verw((ushort)selector));
    }

    [Fact]
    public void Neither_the_current_ring_nor_the_selectors_may_be_outside_the_descriptors()
    {
        Assert.Null(Lar(GuestMachine.KernelData | 1));
        Assert.NotNull(Lar(GuestMachine.KernelData));
        _guest.Descriptor(Tested, 0x0040_9E00_0000_FFFF); // conforming
        _guest.EnterRing3();
        Assert.Null(Lar(GuestMachine.KernelData));
        Assert.Null(Lsl(GuestMachine.KernelCode));
        Assert.Null(Lsl(GuestMachine.Task));
        Assert.False(Verr(GuestMachine.KernelCode));
        Assert.False(Verw(GuestMachine.KernelData));
        Assert.True(Verr(GuestMachine.UserCode));
        Assert.True(Verw(GuestMachine.UserData));
        Assert.True(Verr(Tested | 3));
        Assert.NotNull(Lar(Tested | 3));
        Assert.Equal(0xFFFFUL, Lsl(Tested | 3));
    }

    [Fact]
    public void The_table_is_read_with_supervisor_rights_and_its_absent_page_is_a_page_fault()
    {
        _guest.EnterRing3();
        ulong leaf = _guest.Map(Table, Boot.PhysicalLayout.Gdt, Pte.Present); // the supervisor's
        Cpu.Gdtr = new DescriptorTable(Table + (Boot.PhysicalLayout.Gdt & 0xFFF), 0x5F);
        Assert.NotNull(Lar(GuestMachine.UserData));
        _guest.Memory.Write(leaf, 0UL);
        Cpu.Rax = GuestMachine.UserData;
        GuestEvent fault = GuestEvent.PageFault(Cpu.Gdtr.Base + (GuestMachine.UserData & ~7UL), 0);
        Faults(a => a.lar(ebx, eax), fault);
        Faults(a => a.lsl(ebx, eax), fault);
        Faults(a => a.verr(ax), fault);
        Faults(a => a.verw(ax), fault);
        Cpu.Rax = 0;
        Assert.Null(Lar(0)); // for which the table is not asked
    }

    [Fact]
    public void A_local_table_is_asked_while_one_is_loaded()
    {
        Cpu.Rax = GuestMachine.Ldt;
        Assert.Equal(EmulationResult.Done, _guest.Execute(a => a.lldt(ax)));
        _guest.Memory.Write(GuestMachine.Data + 8, 0x00CF_9200_0000_FFFFUL);
        Assert.Equal(0x00CF_9200UL, Lar(0x0C));
        Assert.True(Verw(0x0C));
        Assert.Null(Lar(0x104)); // beyond its limit
    }

    [Fact]
    public void Push_of_fs_and_gs_stores_the_guests_selector_as_wide_as_the_operand()
    {
        Cpu.Fs = Cpu.Fs with { Selector = GuestMachine.UserData };
        Cpu.Gs = Cpu.Gs with { Selector = GuestMachine.KernelData };
        _guest.Memory.Write(GuestMachine.Stack - 8, ulong.MaxValue);
        _guest.Memory.Write(GuestMachine.Stack - 16, ulong.MaxValue);
        Done(a => a.push(fs), TrapReason.SegmentOrReturn);
        Assert.Equal(GuestMachine.Stack - 8, Cpu.Rsp);
        Assert.Equal(GuestMachine.UserData, _guest.Memory.Read<ulong>(Cpu.Rsp));
        Assert.Equal(EmulationResult.Done, _guest.Execute([0x66, 0x0F, 0xA8])); // push gs, 16 bits
        Assert.Equal(GuestMachine.Stack - 10, Cpu.Rsp);
        Assert.Equal(GuestMachine.KernelData, _guest.Memory.Read<ushort>(Cpu.Rsp));
        Assert.Equal(0xFFFF_FFFF_FFFFUL, _guest.Memory.Read<ulong>(GuestMachine.Stack - 16) & 0xFFFF_FFFF_FFFF);
    }

    [Fact]
    public void Push_of_fs_that_faults_leaves_the_stack_pointer_alone()
    {
        Cpu.Rsp = Table + 8;
        Faults(a => a.push(fs), GuestEvent.PageFault(Table, PageFaultError.Write));
        Cpu.Rsp = 0x8000_0000_0000_0008;
        Faults(a => a.push(gs), GuestEvent.Exception(Vector.StackFault));
    }

    [Fact]
    public void Every_form_of_mov_from_a_segment_register_gives_the_guests_selector()
    {
        Cpu.Fs = Cpu.Fs with { Selector = GuestMachine.UserData };
        Cpu.Rax = Before;
        Done(a => a.mov(ax, fs), TrapReason.SegmentOrReturn);
        Assert.Equal((Before & ~0xFFFFUL) | GuestMachine.UserData, Cpu.Rax);
        Done(a => a.mov(eax, fs), TrapReason.SegmentOrReturn);
        Assert.Equal(GuestMachine.UserData, Cpu.Rax);
        Cpu.Rax = Before;
        Done(a => a.mov(rax, cs), TrapReason.SegmentOrReturn);
        Assert.Equal(GuestMachine.KernelCode, Cpu.Rax);
        _guest.Memory.Write(GuestMachine.Data, ulong.MaxValue);
        Cpu[Gpr.Rsi] = GuestMachine.Data;
        Done(a => a.mov(__word_ptr[rsi], ss), TrapReason.SegmentOrReturn);
        Assert.Equal(0xFFFF_FFFF_FFFF_0000 | GuestMachine.KernelData, _guest.Memory.Read<ulong>(GuestMachine.Data));
        Assert.Equal(EmulationResult.Done, _guest.Execute([0x48, 0x8C, 0x1E])); // mov [rsi],ds with REX.W: a word all the same
        Assert.Equal(0xFFFF_FFFF_FFFF_0000 | GuestMachine.KernelData, _guest.Memory.Read<ulong>(GuestMachine.Data));
    }

    [Theory]
    [InlineData(Register.DS)]
    [InlineData(Register.ES)]
    [InlineData(Register.FS)]
    [InlineData(Register.GS)]
    public void A_null_selector_loads_into_every_data_segment_register_in_every_ring(Register register)
    {
        var target = new AssemblerRegisterSegment(register);
        _guest.EnterRing3();
        for (ushort selector = 0; selector < 4; selector++)
        {
            Cpu.Rax = selector;
            Done(a => a.mov(target, eax), TrapReason.SegmentOrReturn);
            Done(a => a.mov(ebx, target), TrapReason.SegmentOrReturn);
            Assert.Equal(selector, Cpu[Gpr.Rbx]);
        }

        Cpu.Rax = 0;
        Faults(a => a.mov(ss, eax), GuestEvent.Exception(Vector.GeneralProtection));
    }
}
