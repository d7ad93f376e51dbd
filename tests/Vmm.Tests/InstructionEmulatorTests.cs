using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Emulation;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Vmm.Tests;

/// <summary>One sensitive instruction at a time: what it changes, what it faults with, and that a fault changes nothing.</summary>
public sealed class InstructionEmulatorTests : IDisposable
{
    private const ulong NonCanonical = 0x8000_0000_0000_0000;

    private readonly GuestMachine _guest = new();

    private VirtualCpu Cpu => _guest.Cpu;

    public void Dispose() => _guest.Dispose();

    private void Done(Action<Assembler> instruction, TrapReason? reason = null)
    {
        ulong next = Cpu.Rip;
        Assert.Equal(EmulationResult.Done, _guest.Execute(instruction));
        Assert.Equal(next + (ulong)_guest.Length, Cpu.Rip);
        if (reason is { } expected)
        {
            Assert.Equal(expected, _guest.Reason);
        }
    }

    private void Faults(Action<Assembler> instruction, byte vector, uint errorCode = 0)
    {
        string before = _guest.State();
        Assert.Equal(EmulationResult.Event, _guest.Execute(instruction));
        Assert.Equal(GuestEventKind.Exception, _guest.Event.Kind);
        Assert.Equal((vector, errorCode), (_guest.Event.Number, _guest.Event.ErrorCode));
        Assert.Equal(before, _guest.State());
    }

    [Fact]
    public void Cli_and_sti_change_the_virtual_interrupt_flag_and_sti_casts_a_shadow()
    {
        Done(a => a.cli(), TrapReason.InterruptFlag);
        Assert.Equal(0UL, Cpu.Rflags & Rflags.If);
        Done(a => a.sti(), TrapReason.InterruptFlag);
        Assert.Equal(Rflags.If, Cpu.Rflags & Rflags.If);
        Assert.True(Cpu.InterruptShadow);
        Done(a => a.sti());
        Assert.False(Cpu.InterruptShadow); // it was set already
    }

    public static TheoryData<string> PrivilegedInstructions =>
        [
            "cli",
            "sti",
            "hlt",
            "in",
            "out",
            "insb",
            "outsb",
            "mov cr3",
            "mov cr0",
            "from cr4",
            "mov dr",
            "clts",
            "lmsw",
            "invlpg",
            "wbinvd",
            "invd",
            "rdmsr",
            "wrmsr",
            "lgdt",
            "lidt",
            "lldt",
            "ltr",
            "swapgs",
            "sysretq",
            "rdpmc",
        ];

    private static readonly Dictionary<string, Action<Assembler>> Named = new()
    {
        ["cli"] = a => a.cli(),
        ["sti"] = a => a.sti(),
        ["hlt"] = a => a.hlt(),
        ["in"] = a => a.@in(al, dx),
        ["out"] = a => a.@out(0x80, al),
        ["insb"] = a => a.insb(),
        ["outsb"] = a => a.outsb(),
        ["mov cr3"] = a => a.mov(cr3, rax),
        ["mov cr0"] = a => a.mov(cr0, rax),
        ["from cr4"] = a => a.mov(rax, cr4),
        ["mov dr"] = a => a.mov(dr7, rax),
        ["clts"] = a => a.clts(),
        ["lmsw"] = a => a.lmsw(ax),
        ["invlpg"] = a => a.invlpg(__[rax]),
        ["wbinvd"] = a => a.wbinvd(),
        ["invd"] = a => a.invd(),
        ["rdmsr"] = a => a.rdmsr(),
        ["wrmsr"] = a => a.wrmsr(),
        ["lgdt"] = a => a.lgdt(__[rax]),
        ["lidt"] = a => a.lidt(__[rax]),
        ["lldt"] = a => a.lldt(ax),
        ["ltr"] = a => a.ltr(ax),
        ["swapgs"] = a => a.swapgs(),
        ["sysretq"] = a => a.sysretq(),
        ["rdpmc"] = a => a.rdpmc(),
    };

    [Fact]
    public void At_boot_efer_has_long_mode_and_no_execute_but_not_syscall() =>
        Assert.Equal(Efer.Lme | Efer.Lma | Efer.Nxe, Cpu.Efer);

    [Theory]
    [MemberData(nameof(PrivilegedInstructions))]
    public void Privileged_instructions_in_virtual_ring_3_raise_GP(string instruction)
    {
        _guest.EnterRing3();
        Cpu.Efer |= Efer.Sce;
        Faults(Named[instruction], Vector.GeneralProtection);
    }

    [Fact]
    public void Iopl_3_lets_ring_3_use_ports_and_the_interrupt_flag()
    {
        _guest.EnterRing3(iopl: 3);
        Cpu[Gpr.Rdx] = 0x500;
        Done(a => a.cli());
        Done(a => a.@in(al, dx));
        Assert.Equal(0x11, (byte)Cpu.Rax);
    }

    [Fact]
    public void Hlt_waits_behind_itself()
    {
        ulong rip = Cpu.Rip;
        Assert.Equal(EmulationResult.Halted, _guest.Execute(a => a.hlt()));
        Assert.Equal((rip + 1, TrapReason.Halt), (Cpu.Rip, _guest.Reason));
    }

    [Fact]
    public void In_writes_as_much_of_rax_as_it_reads()
    {
        Cpu[Gpr.Rdx] = 0x500;
        Cpu.Rax = ulong.MaxValue;
        Done(a => a.@in(al, dx), TrapReason.PortIo);
        Assert.Equal(0xFFFF_FFFF_FFFF_FF11, Cpu.Rax);
        Done(a => a.@in(ax, dx));
        Assert.Equal(0xFFFF_FFFF_FFFF_2211, Cpu.Rax);
        Done(a => a.@in(eax, dx));
        Assert.Equal(0x4433_2211UL, Cpu.Rax);
    }

    [Fact]
    public void Out_to_the_measurement_ports_counts_as_a_region_marker()
    {
        Cpu.Rax = 0x12345678;
        Done(a => a.@out(0xB0, eax), TrapReason.RegionMarker);
        Cpu[Gpr.Rdx] = 0xBB;
        Done(a => a.@out(dx, al), TrapReason.RegionMarker);
        Cpu[Gpr.Rsi] = GuestMachine.Data;
        Done(a => a.outsd(), TrapReason.RegionMarker);
        Cpu[Gpr.Rdx] = 0xBC;
        Done(a => a.@out(dx, al), TrapReason.PortIo);
        Done(a => a.outsd(), TrapReason.PortIo);
        Cpu[Gpr.Rdx] = 0x500;
        Done(a => a.@out(dx, ax), TrapReason.PortIo);
        Assert.Equal(["out 500 2 5678"], _guest.PortLog);
    }

    [Fact]
    public void Rep_outsb_sends_a_string_and_stops_where_it_faults()
    {
        ulong page = 0x4000_0000;
        _ = _guest.Map(page, GuestMachine.Data);
        _guest.Memory.Write(GuestMachine.Data + 0xFFE, "ab"u8);
        Cpu[Gpr.Rdx] = 0x500;
        Cpu[Gpr.Rsi] = page + 0xFFE;
        Cpu[Gpr.Rcx] = 5;
        ulong rip = Cpu.Rip;

        Assert.Equal(EmulationResult.Event, _guest.Execute(a => a.rep.outsb()));

        Assert.Equal(["out 500 1 61", "out 500 1 62"], _guest.PortLog);
        Assert.Equal(GuestEvent.PageFault(page + 0x1000, 0), _guest.Event);
        Assert.Equal((3UL, page + 0x1000, rip), (Cpu[Gpr.Rcx], Cpu[Gpr.Rsi], Cpu.Rip));
    }

    [Fact]
    public void Ins_asks_the_device_only_when_the_value_can_be_stored()
    {
        _ = _guest.Map(0x4000_0000, GuestMachine.Data, Pte.Present);
        Cpu[Gpr.Rdx] = 0x500;
        Cpu[Gpr.Rdi] = 0x4000_0010;
        Faults(a => a.insd(), Vector.PageFault, PageFaultError.Write | PageFaultError.Protection);
        Assert.Empty(_guest.PortLog);
    }

    [Theory]
    [InlineData(0xFF4, 3)] // whole words up to the page's end
    [InlineData(0xFF6, 2)] // the third would reach into the next page
    public void Rep_insd_takes_from_the_device_what_can_be_stored_and_stops_where_it_faults(ulong offset, int stored)
    {
        const ulong page = 0x4000_0000;
        _ = _guest.Map(page, GuestMachine.Data);
        _guest.Memory.Write(GuestMachine.Data + 0xFF0, new byte[16]);
        Cpu[Gpr.Rdx] = 0x500;
        Cpu[Gpr.Rdi] = page + offset;
        Cpu[Gpr.Rcx] = 5;
        ulong rip = Cpu.Rip;

        Assert.Equal(EmulationResult.Event, _guest.Execute(a => a.rep.insd()));

        Assert.Equal(stored, _guest.PortLog.Count);
        Assert.Equal(
            ((ulong)(5 - stored), page + offset + (ulong)(4 * stored), rip),
            (Cpu[Gpr.Rcx], Cpu[Gpr.Rdi], Cpu.Rip)
        );
        uint value = _guest.Memory.Read<uint>(GuestMachine.Data + offset);
        Assert.NotEqual(0u, value);
        Assert.Equal(value, _guest.Memory.Read<uint>(GuestMachine.Data + offset + (ulong)(4 * (stored - 1))));
        Assert.Equal(0u, _guest.Memory.Read<ushort>(GuestMachine.Data + offset - 2));
    }

    [Fact]
    public void A_string_of_words_is_what_as_many_single_ones_are()
    {
        const int words = 3000; // over a page, from an odd address
        byte[] text = new byte[2 * words];
        new Random(5).NextBytes(text);
        _guest.Memory.Write(GuestMachine.Data + 1, text);
        Cpu[Gpr.Rdx] = 0x500;
        Cpu[Gpr.Rsi] = GuestMachine.Data + 1;
        Cpu[Gpr.Rcx] = words;
        Done(a => a.rep.outsw());
        string[] repeated = [.. _guest.PortLog];
        Assert.Equal((0UL, GuestMachine.Data + 1 + (2 * words)), (Cpu[Gpr.Rcx], Cpu[Gpr.Rsi]));
        _guest.PortLog.Clear();
        Cpu[Gpr.Rsi] = GuestMachine.Data + 1;
        for (int i = 0; i < words; i++)
        {
            Done(a => a.outsw());
        }

        Assert.Equal(words, repeated.Length);
        Assert.Equal(_guest.PortLog, repeated);
    }

    [Fact]
    public void Rep_insw_goes_down_with_the_direction_flag_and_does_nothing_for_a_count_of_zero()
    {
        Cpu[Gpr.Rdx] = 0x500;
        Cpu[Gpr.Rdi] = GuestMachine.Data + 2;
        Cpu[Gpr.Rcx] = 2;
        Cpu.Rflags |= Rflags.Df;
        Done(a => a.rep.insw());
        Assert.Equal((0UL, GuestMachine.Data - 2), (Cpu[Gpr.Rcx], Cpu[Gpr.Rdi]));
        Assert.Equal(0x2211_2211u, _guest.Memory.Read<uint>(GuestMachine.Data));
        Done(a => a.rep.insw());
        Assert.Equal(2, _guest.PortLog.Count);
    }

    [Fact]
    public void A_huge_repeat_count_comes_back_with_progress_and_rip_still_at_the_instruction()
    {
        Cpu[Gpr.Rdx] = 0x501;
        Cpu[Gpr.Rsi] = GuestMachine.Data;
        Cpu[Gpr.Rcx] = ulong.MaxValue;
        ulong rip = Cpu.Rip;
        Assert.Equal(EmulationResult.Done, _guest.Execute(a => a.rep.outsb()));
        Assert.Equal(rip, Cpu.Rip);
        ulong done = ulong.MaxValue - Cpu[Gpr.Rcx];
        Assert.InRange(done, 1UL, 100_000UL);
        Assert.Equal(GuestMachine.Data + done, Cpu[Gpr.Rsi]);
    }

    [Fact]
    public void Outs_uses_the_lazily_held_gs_base()
    {
        Cpu.Gs = Cpu.Gs with { Base = GuestMachine.Data };
        _guest.Memory.Write(GuestMachine.Data + 8, (byte)'x');
        Cpu[Gpr.Rsi] = 8;
        Cpu[Gpr.Rdx] = 0x500;
        Assert.Equal(EmulationResult.Done, _guest.Execute([0x65, 0x6E])); // gs outsb
        Assert.Equal(["out 500 1 78"], _guest.PortLog);
        Assert.Contains("save", _guest.Engine.Calls);
    }

    [Fact]
    public void Control_registers_read_back_what_was_written()
    {
        Cpu.Rax = 0x0020_0018;
        Done(a => a.mov(cr3, rax), TrapReason.AddressSpaceSwitch);
        Assert.Equal(0x0020_0018UL, Cpu.Cr3);
        Cpu.Cr3 = Boot.PhysicalLayout.PageTables;
        Assert.Equal(["switch"], _guest.Engine.Calls);
        Cpu.Rax = 0xFFFF_8000_0000_0000;
        Done(a => a.mov(cr2, rax), TrapReason.ControlRegister);
        Done(a => a.mov(rbx, cr2));
        Assert.Equal(Cpu.Rax, Cpu[Gpr.Rbx]);
        Cpu.Rax = 9;
        Done(a => a.mov(cr8, rax));
        Done(a => a.mov(r11, cr8));
        Assert.Equal(9UL, Cpu[Gpr.R8 + 3]);
    }

    [Theory]
    [InlineData(0, Cr0.Pg | Cr0.Pe | (1UL << 32), "bits above 31")]
    [InlineData(0, Cr0.Pg, "PG without PE")]
    [InlineData(0, Cr0.Pe, "PG cleared in long mode")]
    [InlineData(0, Cr0.Pg | Cr0.Pe | Cr0.Nw, "NW without CD")]
    [InlineData(3, 1UL << PageWalker.PhysicalAddressBits, "beyond the physical width")]
    [InlineData(4, 0, "PAE cleared in long mode")]
    [InlineData(4, Cr4.Pae | (1UL << 18), "OSXSAVE without XSAVE")]
    [InlineData(4, Cr4.Pae | (1UL << 20), "SMEP")]
    [InlineData(4, Cr4.Pae | (1UL << 17), "PCID")]
    [InlineData(8, 16, "priority beyond 15")]
    public void Bad_control_register_values_raise_GP(int register, ulong value, string why)
    {
        Cpu.Rax = value;
        Faults(a => a.mov(new AssemblerRegisterCR(Register.CR0 + register), rax), Vector.GeneralProtection);
        _ = why; // names the case in the report
    }

    [Theory]
    [InlineData(1)]
    [InlineData(5)]
    [InlineData(9)]
    public void Control_registers_that_do_not_exist_raise_UD(int register) =>
        Faults(a => a.mov(rax, new AssemblerRegisterCR(Register.CR0 + register)), Vector.InvalidOpcode);

    [Fact]
    public void Only_paging_bits_switch_the_address_space()
    {
        Cpu.Rax = Cpu.Cr0 | Cr0.Ts;
        Done(a => a.mov(cr0, rax));
        Cpu.Rax = Cpu.Cr4 | Cr4.Tsd;
        Done(a => a.mov(cr4, rax));
        Assert.Empty(_guest.Engine.Calls);
        Cpu.Rax = Cpu.Cr0 & ~Cr0.Wp;
        Done(a => a.mov(cr0, rax));
        Cpu.Rax = Cpu.Cr4 & ~Cr4.Pge;
        Done(a => a.mov(cr4, rax));
        Assert.Equal(["switch", "switch"], _guest.Engine.Calls);
    }

    [Fact]
    public void Clts_lmsw_and_smsw_work_on_the_low_bits_of_cr0()
    {
        Cpu.Rax = 0xFFFE; // PE clear: it cannot be cleared
        Done(a => a.lmsw(ax), TrapReason.ControlRegister);
        Assert.Equal(Cr0.Pe | Cr0.Ts | Cr0.Em | Cr0.Mp, Cpu.Cr0 & 0xF);
        Done(a => a.clts(), TrapReason.ControlRegister);
        Assert.Equal(0UL, Cpu.Cr0 & Cr0.Ts);
        _guest.EnterRing3();
        Done(a => a.smsw(rbx), TrapReason.DescriptorTable);
        Assert.Equal(Cpu.Cr0, Cpu[Gpr.Rbx]);
        Cpu[Gpr.Rcx] = ulong.MaxValue;
        Done(a => a.smsw(cx));
        Assert.Equal(0xFFFF_FFFF_FFFF_0000 | (ushort)Cpu.Cr0, Cpu[Gpr.Rcx]);
    }

    [Fact]
    public void Invlpg_tells_the_engine_and_ignores_a_non_canonical_address()
    {
        Cpu.Rax = 0x40_0000;
        Done(a => a.invlpg(__[rax + 0x123]), TrapReason.TlbOrCache);
        Cpu.Rax = NonCanonical;
        Done(a => a.invlpg(__[rax]));
        Assert.Equal(["invalidate 400123"], _guest.Engine.Calls);
    }

    [Fact]
    public void The_time_stamp_counter_is_the_engines_clock_plus_the_offset()
    {
        Cpu.TscOffset = 0x5_0000_0000;
        Cpu.TscAux = 7;
        Done(a => a.rdtscp(), TrapReason.TimeStampCounter);
        Assert.Equal((1000UL, 5UL, 7UL), (Cpu.Rax, Cpu[Gpr.Rdx], Cpu[Gpr.Rcx]));

        (Cpu[Gpr.Rcx], Cpu[Gpr.Rdx], Cpu.Rax) = (Msr.TimeStampCounter, 0, 5);
        Done(a => a.wrmsr(), TrapReason.Msr);
        _guest.Engine.Ticks += 10;
        Done(a => a.rdtsc());
        Assert.Equal((15UL, 0UL), (Cpu.Rax, Cpu[Gpr.Rdx]));
    }

    [Fact]
    public void Cr4_tsd_forbids_rdtsc_to_ring_3_only()
    {
        Cpu.Cr4 |= Cr4.Tsd;
        Done(a => a.rdtsc());
        _guest.EnterRing3();
        Faults(a => a.rdtsc(), Vector.GeneralProtection);
        Faults(a => a.rdtscp(), Vector.GeneralProtection);
        Cpu.Cr4 &= ~Cr4.Tsd;
        Done(a => a.rdtsc());
    }

    [Theory]
    [InlineData(Msr.Star, 0x0013_0008_1234_5678UL)]
    [InlineData(Msr.Lstar, 0xFFFF_8000_0000_1000UL)]
    [InlineData(Msr.Cstar, 0x1000UL)]
    [InlineData(Msr.Fmask, 0x47700UL)]
    [InlineData(Msr.FsBase, 0x7000UL)]
    [InlineData(Msr.GsBase, 0xFFFF_FFFF_8000_0000UL)]
    [InlineData(Msr.KernelGsBase, 0x8000UL)]
    [InlineData(Msr.TscAux, 3UL)]
    [InlineData(Msr.Pat, 0x0606_0606_0606_0606UL)]
    [InlineData(Msr.Efer, Efer.Lme | Efer.Lma)]
    public void Model_specific_registers_read_back(uint index, ulong value)
    {
        (Cpu[Gpr.Rcx], Cpu[Gpr.Rdx], Cpu.Rax) = (index, value >> 32, (uint)value);
        Done(a => a.wrmsr(), TrapReason.Msr);
        (Cpu[Gpr.Rdx], Cpu.Rax) = (ulong.MaxValue, ulong.MaxValue);
        Done(a => a.rdmsr(), TrapReason.Msr);
        Assert.Equal((value >> 32, value & uint.MaxValue), (Cpu[Gpr.Rdx], Cpu.Rax));
    }

    [Theory]
    [InlineData(0x1B, 0, "not on the platform")]
    [InlineData(Msr.Lstar, NonCanonical, "not canonical")]
    [InlineData(Msr.GsBase, NonCanonical, "not canonical")]
    [InlineData(Msr.Pat, 2, "memory type 2")]
    [InlineData(Msr.Fmask, 1UL << 32, "reserved")]
    [InlineData(Msr.TscAux, 1UL << 32, "reserved")]
    [InlineData(Msr.Efer, Efer.Nxe, "LME cleared while paging")]
    [InlineData(Msr.Efer, Efer.Lme | (1UL << 12), "SVME")]
    public void Bad_model_specific_register_writes_raise_GP(uint index, ulong value, string why)
    {
        (Cpu[Gpr.Rcx], Cpu[Gpr.Rdx], Cpu.Rax) = (index, value >> 32, (uint)value);
        Faults(a => a.wrmsr(), Vector.GeneralProtection);
        _ = why; // names the case in the report
    }

    [Fact]
    public void Base_registers_are_taken_from_and_given_back_to_the_engine()
    {
        (Cpu[Gpr.Rcx], Cpu[Gpr.Rdx], Cpu.Rax) = (Msr.FsBase, 0, 0x1000);
        Done(a => a.wrmsr());
        Assert.Equal(["save", "load"], _guest.Engine.Calls);
        (Cpu.KernelGsBase, Cpu.Gs) = (5, Cpu.Gs with { Base = 6 });
        Done(a => a.swapgs(), TrapReason.SegmentOrReturn);
        Assert.Equal((6UL, 5UL), (Cpu.KernelGsBase, Cpu.Gs.Base));
        Assert.Equal(["save", "load", "save", "load"], _guest.Engine.Calls);
    }

    [Fact]
    public void No_execute_enable_switches_the_address_space()
    {
        (Cpu[Gpr.Rcx], Cpu[Gpr.Rdx], Cpu.Rax) = (Msr.Efer, 0, Efer.Lme);
        Done(a => a.wrmsr());
        Assert.Equal(["switch"], _guest.Engine.Calls);
        Assert.Equal(Efer.Lme | Efer.Lma, Cpu.Efer);
    }

    [Fact]
    public void Cpuid_shows_the_platform_and_the_hypervisor()
    {
        Cpu.Rax = 0xFFFF_FFFF_4000_0000;
        Done(a => a.cpuid(), TrapReason.Cpuid);
        byte[] name =
        [
            .. BitConverter.GetBytes((uint)Cpu[Gpr.Rbx]),
            .. BitConverter.GetBytes((uint)Cpu[Gpr.Rcx]),
            .. BitConverter.GetBytes((uint)Cpu[Gpr.Rdx]),
        ];
        Assert.Equal("VirtBenchVMM"u8, name);
        Cpu.Rax = 0x8000_0008;
        Done(a => a.cpuid());
        Assert.Equal(40UL | (48 << 8), Cpu.Rax);
        Cpu.Rax = 1;
        Done(a => a.cpuid());
        const uint osxsave = 1u << 27,
            hypervisor = 1u << 31,
            cx16 = 1u << 13;
        Assert.Equal(hypervisor | cx16, Cpu[Gpr.Rcx] & (osxsave | hypervisor | cx16));
        Assert.Equal(default, PlatformCpuid.Query(7)); // no FSGSBASE, no SMEP
        Assert.Equal(default, PlatformCpuid.Query(0xD)); // no XSAVE
    }

    [Fact]
    public void Descriptor_table_registers_load_and_store()
    {
        _guest.Memory.Write(GuestMachine.Data, (ushort)0x1234);
        _guest.Memory.Write(GuestMachine.Data + 2, 0xFFFF_8000_0000_0010);
        Cpu.Rax = GuestMachine.Data;
        Done(a => a.lidt(__[rax]), TrapReason.DescriptorTable);
        Assert.Equal(new DescriptorTable(0xFFFF_8000_0000_0010, 0x1234), Cpu.Idtr);
        _guest.EnterRing3();
        Done(a => a.sidt(__[rax + 0x20]), TrapReason.DescriptorTable);
        Assert.Equal(0x1234, _guest.Memory.Read<ushort>(GuestMachine.Data + 0x20));
        Assert.Equal(0xFFFF_8000_0000_0010, _guest.Memory.Read<ulong>(GuestMachine.Data + 0x22));
        Done(a => a.sgdt(__[rax + 0x40]));
        Assert.Equal(Cpu.Gdtr.Base, _guest.Memory.Read<ulong>(GuestMachine.Data + 0x42));
    }

    [Fact]
    public void Lgdt_refuses_a_base_that_is_not_canonical()
    {
        _guest.Memory.Write(GuestMachine.Data + 2, NonCanonical);
        Cpu.Rax = GuestMachine.Data;
        Faults(a => a.lgdt(__[rax]), Vector.GeneralProtection);
    }

    [Fact]
    public void Lgdt_across_a_missing_page_changes_nothing()
    {
        _ = _guest.Map(0x4000_0000, GuestMachine.Data);
        Cpu.Rax = 0x4000_0FFA;
        Faults(a => a.lgdt(__[rax]), Vector.PageFault);
        Assert.Equal(0x4000_1000UL, _guest.Event.FaultAddress);
    }

    [Fact]
    public void A_store_across_a_missing_page_writes_nothing_and_leaves_the_page_clean()
    {
        ulong leaf = _guest.Map(0x4000_0000, GuestMachine.Data);
        Cpu.Rax = 0x4000_0FFA;
        Faults(a => a.sidt(__[rax]), Vector.PageFault, PageFaultError.Write);
        Assert.Equal(0UL, _guest.Memory.Read<ulong>(leaf) & (Pte.Dirty | Pte.Accessed));
    }

    [Fact]
    public void Ltr_marks_the_task_busy_and_refuses_it_the_second_time()
    {
        Cpu.Rax = GuestMachine.Task;
        Done(a => a.ltr(ax), TrapReason.DescriptorTable);
        Assert.Equal((GuestMachine.Task, GuestMachine.TaskState, 0x67u), (Cpu.Tr.Selector, Cpu.Tr.Base, Cpu.Tr.Limit));
        Assert.Equal(0x8B, _guest.Memory.Read<byte>(Boot.PhysicalLayout.Gdt + GuestMachine.Task + 5));
        Done(a => a.str(rbx));
        Assert.Equal(GuestMachine.Task, Cpu[Gpr.Rbx]);
        Faults(a => a.ltr(ax), Vector.GeneralProtection, GuestMachine.Task);
    }

    [Theory]
    [InlineData(0, Vector.GeneralProtection, 0)]
    [InlineData(4, Vector.GeneralProtection, 4)]
    [InlineData(GuestMachine.KernelData, Vector.GeneralProtection, GuestMachine.KernelData)]
    [InlineData(GuestMachine.BeyondLimit, Vector.GeneralProtection, GuestMachine.BeyondLimit)]
    public void Ltr_refuses_what_is_no_task(ushort selector, byte vector, uint errorCode)
    {
        Cpu.Rax = selector;
        Faults(a => a.ltr(ax), vector, errorCode);
    }

    [Fact]
    public void System_descriptors_need_a_zero_type_in_their_upper_half()
    {
        // The upper half is a descriptor's slot of its own: where it looks like one, the table is not for 64-bit mode.
        _guest.Descriptor(GuestMachine.Task + 8, 0x00CF_9300_0000_0000);
        Cpu.Rax = GuestMachine.Task;
        Faults(a => a.ltr(ax), Vector.GeneralProtection, GuestMachine.Task);
        _guest.Descriptor(GuestMachine.Ldt + 8, 1UL << 40);
        Cpu.Rax = GuestMachine.Ldt;
        Faults(a => a.lldt(ax), Vector.GeneralProtection, GuestMachine.Ldt);
    }

    [Fact]
    public void Lldt_takes_null_and_an_ldt()
    {
        Cpu.Rax = GuestMachine.Ldt;
        Done(a => a.lldt(ax), TrapReason.DescriptorTable);
        Assert.Equal((GuestMachine.Data, 0xFFu), (Cpu.Ldtr.Base, Cpu.Ldtr.Limit));
        Done(a => a.sldt(ebx));
        Assert.Equal(GuestMachine.Ldt, Cpu[Gpr.Rbx]);
        Cpu.Rax = 0;
        Done(a => a.lldt(ax));
        Assert.False(Cpu.Ldtr.Present);
    }

    [Theory]
    [InlineData(GuestMachine.AbsentData, Vector.SegmentNotPresent, GuestMachine.AbsentData)]
    [InlineData(GuestMachine.BeyondLimit, Vector.GeneralProtection, GuestMachine.BeyondLimit)]
    [InlineData(GuestMachine.Task, Vector.GeneralProtection, GuestMachine.Task)]
    [InlineData(GuestMachine.KernelData | 3, Vector.GeneralProtection, GuestMachine.KernelData)]
    [InlineData(0x0C, Vector.GeneralProtection, 0x0C)]
    public void Segment_loads_check_the_descriptor(ushort selector, byte vector, uint errorCode)
    {
        Cpu.Rax = selector;
        Faults(a => a.mov(ds, eax), vector, errorCode);
    }

    [Fact]
    public void Segment_loads_set_the_accessed_bit_and_mov_ss_casts_a_shadow()
    {
        Cpu.Rax = GuestMachine.UserData;
        Done(a => a.mov(es, eax), TrapReason.SegmentOrReturn);
        Assert.Equal(GuestMachine.UserData, Cpu.Es.Selector);
        Assert.Equal(0xF3, _guest.Memory.Read<byte>(Boot.PhysicalLayout.Gdt + 0x18 + 5));
        Cpu.Rax = GuestMachine.KernelData;
        Done(a => a.mov(ss, eax));
        Assert.True(Cpu.InterruptShadow);
        Cpu.Rax = 3; // a null SS needs the RPL of the CPL
        Faults(a => a.mov(ss, eax), Vector.GeneralProtection);
    }

    [Fact]
    public void Pop_fs_and_lgs_load_base_and_pointer()
    {
        _guest.Memory.Write(GuestMachine.Stack, (ulong)GuestMachine.KernelData);
        Done(a => a.pop(fs), TrapReason.SegmentOrReturn);
        Assert.Equal((GuestMachine.KernelData, GuestMachine.Stack + 8), (Cpu.Fs.Selector, Cpu.Rsp));
        _guest.Memory.Write(GuestMachine.Data, 0x1122_3344_5566_7788UL);
        _guest.Memory.Write(GuestMachine.Data + 8, GuestMachine.KernelData);
        Cpu.Rax = GuestMachine.Data;
        Done(a => a.lgs(rbx, __[rax]));
        Assert.Equal((0x1122_3344_5566_7788UL, GuestMachine.KernelData), (Cpu[Gpr.Rbx], Cpu.Gs.Selector));
        Done(a => a.lss(rbx, __[rax]));
        Assert.Equal(GuestMachine.KernelData, Cpu.Ss.Selector);
        Assert.False(Cpu.InterruptShadow); // it loads RSP too, so it needs none
    }

    [Fact]
    public void Software_interrupts_become_events_at_the_instruction()
    {
        ulong rip = Cpu.Rip;
        Assert.Equal(EmulationResult.Event, _guest.Execute(a => a.@int(0x80)));
        Assert.Equal(GuestEvent.SoftwareInterrupt(0x80, 2), _guest.Event);
        Assert.Equal((rip, TrapReason.SoftwareInterrupt), (Cpu.Rip, _guest.Reason));
        Assert.Equal(EmulationResult.Event, _guest.Execute(a => a.int3()));
        Assert.Equal(GuestEvent.SoftwareInterrupt(3, 1), _guest.Event);
    }

    private void PushFrame(params ulong[] words)
    {
        for (int i = 0; i < words.Length; i++)
        {
            _guest.Memory.Write(GuestMachine.Stack + ((ulong)i * 8), words[i]);
        }
    }

    [Fact]
    public void Iretq_to_ring_3_loads_all_five_and_drops_ring_0_segments()
    {
        Cpu.Fs = Cpu.Fs with { Base = 0x1234 };
        PushFrame(0x10_2000, GuestMachine.UserCode, 0x3246, 0x12_3456, GuestMachine.UserData);
        Assert.Equal(EmulationResult.Done, _guest.Execute(a => a.iretq()));
        Assert.Equal(TrapReason.SegmentOrReturn, _guest.Reason);
        Assert.Equal((0x10_2000UL, 0x12_3456UL, 3), (Cpu.Rip, Cpu.Rsp, Cpu.Cpl));
        Assert.Equal(0x3246UL, Cpu.Rflags); // IOPL 3, IF, as ring 0 may
        Assert.Equal((0, 0, GuestMachine.UserData), (Cpu.Ds.Selector, Cpu.Es.Selector, Cpu.Ss.Selector));
        Assert.Equal(0x1234UL, Cpu.Fs.Base);
    }

    [Fact]
    public void Dropping_a_segment_keeps_the_base_that_the_engine_holds()
    {
        Cpu.Fs = Segment.KernelData(GuestMachine.KernelData) with { Base = 0x1234 };
        _guest.Engine.LazyFsBase = 0x5678;
        PushFrame(0x10_2000, GuestMachine.UserCode, 2, 0x12_3456, GuestMachine.UserData);
        Assert.Equal(EmulationResult.Done, _guest.Execute(a => a.iretq()));
        Assert.Equal((0, 0x5678UL), (Cpu.Fs.Selector, Cpu.Fs.Base));
    }

    [Fact]
    public void Iretq_in_ring_3_cannot_change_iopl_or_the_interrupt_flag()
    {
        _guest.EnterRing3();
        PushFrame(0x10_2000, GuestMachine.UserCode, 0x3002 | Rflags.Cf, 0x12_3456, GuestMachine.UserData);
        Assert.Equal(EmulationResult.Done, _guest.Execute(a => a.iretq()));
        Assert.Equal(Rflags.If | Rflags.Cf | 2, Cpu.Rflags);
    }

    [Theory]
    [InlineData(0, 0x10, 0, 0, Vector.GeneralProtection, 0)]
    [InlineData(GuestMachine.KernelData, 0x10, 0, 0, Vector.GeneralProtection, GuestMachine.KernelData)]
    [InlineData(GuestMachine.AbsentCode, 0x10, 0, 0, Vector.SegmentNotPresent, GuestMachine.AbsentCode)]
    [InlineData(GuestMachine.KernelCode, GuestMachine.UserData, 0, 0, Vector.GeneralProtection, 0x18)]
    [InlineData(GuestMachine.UserCode, 0, 0, 0, Vector.GeneralProtection, 0)]
    [InlineData(GuestMachine.KernelCode, 0x10, NonCanonical, 0, Vector.GeneralProtection, 0)]
    [InlineData(GuestMachine.KernelCode, 0x10, 0, Rflags.Nt, Vector.GeneralProtection, 0)]
    public void Iretq_checks_its_frame(ushort cs, ushort ss, ulong rip, ulong flags, byte vector, uint errorCode)
    {
        Cpu.Rflags |= flags;
        PushFrame(rip, cs, 2, 0x12_3456, ss);
        Faults(a => a.iretq(), vector, errorCode);
    }

    [Fact]
    public void Iretq_with_a_stack_that_is_not_canonical_raises_SS()
    {
        Cpu.Rsp = NonCanonical;
        Faults(a => a.iretq(), Vector.StackFault);
    }

    [Fact]
    public void Far_return_stays_in_ring_0_or_goes_out()
    {
        PushFrame(0x10_2000, GuestMachine.KernelCode);
        Assert.Equal(EmulationResult.Done, _guest.Execute([0x48, 0xCB]));
        Assert.Equal((0x10_2000UL, GuestMachine.Stack + 16), (Cpu.Rip, Cpu.Rsp));
        Cpu.Rsp = GuestMachine.Stack;
        Cpu.Rip = GuestMachine.Code;
        PushFrame(0x10_3000, GuestMachine.UserCode, 0xAAAA, 0x12_8000, GuestMachine.UserData);
        Assert.Equal(EmulationResult.Done, _guest.Execute([0x48, 0xCA, 0x08, 0x00])); // retf 8
        Assert.Equal((0x10_3000UL, 0x12_8008UL, 3), (Cpu.Rip, Cpu.Rsp, Cpu.Cpl));
    }

    [Fact]
    public void Far_call_pushes_where_it_came_from()
    {
        _guest.Memory.Write(GuestMachine.Data, 0x10_2000UL);
        _guest.Memory.Write(GuestMachine.Data + 8, GuestMachine.KernelCode);
        Cpu.Rax = GuestMachine.Data;
        Assert.Equal(EmulationResult.Done, _guest.Execute([0x48, 0xFF, 0x18])); // call far [rax]
        Assert.Equal((0x10_2000UL, GuestMachine.Stack - 16), (Cpu.Rip, Cpu.Rsp));
        Assert.Equal(GuestMachine.Code + 3, _guest.Memory.Read<ulong>(Cpu.Rsp));
        Assert.Equal(GuestMachine.KernelCode, _guest.Memory.Read<ulong>(Cpu.Rsp + 8));
    }

    [Fact]
    public void Code_that_is_not_64_bit_ends_the_guest_with_a_clear_line()
    {
        PushFrame(0x10_2000, GuestMachine.Code32, 2, 0, 0x10);
        GuestFailureException failure = Assert.Throws<GuestFailureException>(() => _guest.Execute(a => a.iretq()));
        Assert.Contains("iretq [48CF] at RIP 0x100000", failure.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Syscall_and_sysret_go_there_and_back()
    {
        Cpu.Efer |= Efer.Sce;
        Cpu.Star = (0x0010UL << 48) | (0x0008UL << 32); // SYSRET: SS 0x18, CS 0x20
        Cpu.Lstar = 0x10_5000;
        Cpu.Fmask = Rflags.If;
        _guest.EnterRing3();
        Assert.Equal(EmulationResult.Done, _guest.Execute(a => a.syscall()));
        Assert.Equal((0x10_5000UL, GuestMachine.Code + 2, 0x202UL), (Cpu.Rip, Cpu[Gpr.Rcx], Cpu[Gpr.R8 + 3]));
        Assert.Equal((0, 0UL, GuestMachine.KernelData), (Cpu.Cpl, Cpu.Rflags & Rflags.If, Cpu.Ss.Selector));
        Assert.Equal(EmulationResult.Done, _guest.Execute(a => a.sysretq()));
        Assert.Equal((GuestMachine.Code + 2, 0x202UL), (Cpu.Rip, Cpu.Rflags));
        Assert.Equal((GuestMachine.UserCode, GuestMachine.UserData), (Cpu.Cs.Selector, Cpu.Ss.Selector));
    }

    [Fact]
    public void Syscall_raises_UD_at_the_instruction_until_the_guest_enables_it()
    {
        Faults(a => a.syscall(), Vector.InvalidOpcode);
        Cpu.Rip += 2;
        SystemCalls.Enter(Cpu);
        Assert.Equal(GuestMachine.Code, Cpu.Rip);
        Assert.Equal(GuestEvent.Exception(Vector.InvalidOpcode), Cpu.PendingEvent);
        Faults(a => a.sysretq(), Vector.InvalidOpcode);
    }

    [Fact]
    public void Debug_registers_have_their_fixed_bits()
    {
        Cpu.Rax = 0;
        Done(a => a.mov(dr6, rax), TrapReason.DebugRegister);
        Done(a => a.mov(rbx, dr6));
        Assert.Equal(0xFFFF_0FF0UL, Cpu[Gpr.Rbx]);
        Cpu.Rax = 0xFFFF_FFFF;
        Cpu.Dr7 = 0x400;
        Done(a => a.mov(dr7, rax));
        Assert.Equal(0xFFFF_27FFUL, Cpu.Dr7);
        Cpu.Dr7 = 0x400;
        Cpu.Rax = 1UL << 32;
        Faults(a => a.mov(dr7, rax), Vector.GeneralProtection);
        Cpu.Cr4 |= Cr4.De;
        Faults(a => a.mov(rax, dr4), Vector.InvalidOpcode);
    }

    [Fact]
    public void General_detect_guards_the_debug_registers_once()
    {
        Cpu.Dr7 |= 1 << 13;
        Faults(a => a.mov(rax, dr0), Vector.Debug);
        Assert.Equal(1UL << 13, Cpu.Dr6 & (1 << 13));
        Done(a => a.mov(rax, dr0));
    }

    [Fact]
    public void A_set_trap_flag_raises_debug_after_the_instruction()
    {
        Cpu.Rflags |= Rflags.Tf;
        Done(a => a.cli());
        Assert.Equal(GuestEvent.Exception(Vector.Debug), Cpu.PendingEvent);
        Assert.Equal(1UL << 14, Cpu.Dr6 & (1 << 14));
    }

    [Fact]
    public void Mov_ss_holds_off_the_single_step_trap_and_sti_does_not()
    {
        Cpu.Rflags = (Cpu.Rflags & ~Rflags.If) | Rflags.Tf;
        Cpu.Rax = GuestMachine.KernelData;
        Done(a => a.mov(ss, eax));
        Assert.Equal(GuestEventKind.None, Cpu.PendingEvent.Kind);
        Done(a => a.sti());
        Assert.Equal(GuestEvent.Exception(Vector.Debug), Cpu.PendingEvent);
    }

    [Fact]
    public void A_set_trap_flag_raises_debug_after_every_repetition()
    {
        Cpu.Rflags |= Rflags.Tf;
        (Cpu[Gpr.Rdx], Cpu[Gpr.Rsi], Cpu[Gpr.Rcx]) = (0x500, GuestMachine.Data, 2);
        ulong rip = Cpu.Rip;
        Assert.Equal(EmulationResult.Done, _guest.Execute(a => a.rep.outsb()));
        Assert.Equal((1UL, rip, Vector.Debug), (Cpu[Gpr.Rcx], Cpu.Rip, Cpu.PendingEvent.Number));
        Assert.Equal(EmulationResult.Done, _guest.Step());
        Assert.Equal((0UL, rip + 2), (Cpu[Gpr.Rcx], Cpu.Rip));
    }

    [Fact]
    public void Pushf_and_popf_work_on_the_virtual_flags()
    {
        Cpu.Rflags = 0x3202;
        Done(a => a.pushfq(), TrapReason.InterruptFlag);
        Assert.Equal(0x3202UL, _guest.Memory.Read<ulong>(GuestMachine.Stack - 8));
        _guest.EnterRing3();
        _guest.Memory.Write(GuestMachine.Stack - 8, 0x3041UL);
        Done(a => a.popfq());
        Assert.Equal(0x243UL, Cpu.Rflags); // IF stays, IOPL stays 0
    }

    [Theory]
    [InlineData(new byte[] { 0x0F, 0x01, 0xD0 }, Vector.InvalidOpcode, "xgetbv")]
    [InlineData(new byte[] { 0x0F, 0x01, 0xD1 }, Vector.InvalidOpcode, "xsetbv")]
    [InlineData(new byte[] { 0x0F, 0x01, 0xC2 }, Vector.InvalidOpcode, "vmlaunch")]
    [InlineData(new byte[] { 0x0F, 0x01, 0xC1 }, Vector.InvalidOpcode, "vmcall")]
    [InlineData(new byte[] { 0x0F, 0x01, 0xD9 }, Vector.InvalidOpcode, "vmmcall")]
    [InlineData(new byte[] { 0x0F, 0x01, 0xD8 }, Vector.InvalidOpcode, "vmrun")]
    [InlineData(new byte[] { 0x0F, 0x01, 0xDF }, Vector.InvalidOpcode, "invlpga")]
    [InlineData(new byte[] { 0x0F, 0xC7, 0xF0 }, Vector.InvalidOpcode, "rdrand")]
    [InlineData(new byte[] { 0xC5, 0xF8, 0x28, 0x00 }, Vector.InvalidOpcode, "vmovaps, misaligned")]
    [InlineData(new byte[] { 0xF3, 0x0F, 0xBC, 0x00 }, Vector.GeneralProtection, "rep bsf")]
    [InlineData(new byte[] { 0x0F, 0xC7, 0x08 }, Vector.GeneralProtection, "cmpxchg8b")]
    [InlineData(new byte[] { 0x48, 0x0F, 0xC7, 0x08 }, Vector.GeneralProtection, "cmpxchg16b")]
    [InlineData(new byte[] { 0x0F, 0xAE, 0x00 }, Vector.GeneralProtection, "fxsave, misaligned")]
    [InlineData(new byte[] { 0x0F, 0xAE, 0x10 }, Vector.GeneralProtection, "ldmxcsr of a reserved bit")]
    [InlineData(new byte[] { 0x0F, 0xAE, 0x38 }, Vector.GeneralProtection, "clflush")]
    [InlineData(new byte[] { 0x66, 0x0F, 0xE7, 0x00 }, Vector.GeneralProtection, "movntdq, misaligned")]
    [InlineData(new byte[] { 0x0F, 0x6F, 0x00 }, Vector.GeneralProtection, "movq mm")]
    [InlineData(new byte[] { 0x0F, 0x46, 0x00 }, Vector.GeneralProtection, "cmovbe")]
    [InlineData(new byte[] { 0x0F, 0xB0, 0x00 }, Vector.GeneralProtection, "cmpxchg")]
    [InlineData(new byte[] { 0xDF, 0x28 }, Vector.GeneralProtection, "fild")]
    [InlineData(new byte[] { 0xDD, 0x08 }, Vector.InvalidOpcode, "fisttp, of SSE3")]
    [InlineData(new byte[] { 0x0F, 0x35 }, Vector.InvalidOpcode, "sysexit")]
    [InlineData(new byte[] { 0x0F, 0xAA }, Vector.InvalidOpcode, "rsm")]
    [InlineData(new byte[] { 0x0F, 0x28, 0x00 }, Vector.GeneralProtection, "movaps, misaligned")]
    [InlineData(new byte[] { 0x8B, 0x00 }, Vector.GeneralProtection, "mov from a non-canonical address")]
    [InlineData(
        new byte[] { 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90 },
        Vector.GeneralProtection,
        "longer than 15 bytes"
    )]
    [InlineData(new byte[] { 0x06 }, Vector.InvalidOpcode, "push es, not in 64-bit mode")]
    [InlineData(new byte[] { 0xCE }, Vector.InvalidOpcode, "into, not in 64-bit mode")]
    [InlineData(new byte[] { 0x0F, 0x0B }, Vector.InvalidOpcode, "ud2")]
    [InlineData(new byte[] { 0x0F, 0xB9, 0xC0 }, Vector.InvalidOpcode, "ud1")]
    [InlineData(new byte[] { 0x0F, 0xFF, 0xC0 }, Vector.InvalidOpcode, "ud0")]
    [InlineData(new byte[] { 0x0F, 0x34 }, Vector.InvalidOpcode, "sysenter")]
    [InlineData(new byte[] { 0xF3, 0x0F, 0xAE, 0xC0 }, Vector.InvalidOpcode, "rdfsbase")]
    [InlineData(new byte[] { 0xF3, 0x48, 0x0F, 0xAE, 0xD9 }, Vector.InvalidOpcode, "wrgsbase")]
    [InlineData(new byte[] { 0x0F, 0x01, 0xC8 }, Vector.InvalidOpcode, "monitor")]
    [InlineData(new byte[] { 0x0F, 0x01, 0xCA }, Vector.InvalidOpcode, "clac")]
    [InlineData(new byte[] { 0x0F, 0xAE, 0x20 }, Vector.InvalidOpcode, "xsave")]
    [InlineData(new byte[] { 0x66, 0x0F, 0x38, 0x82, 0x00 }, Vector.InvalidOpcode, "invpcid")]
    [InlineData(new byte[] { 0x0F, 0xC7, 0xF8 }, Vector.InvalidOpcode, "rdseed")]
    [InlineData(new byte[] { 0x0F, 0x33 }, Vector.GeneralProtection, "rdpmc")]
    [InlineData(new byte[] { 0x8E, 0xC8 }, Vector.InvalidOpcode, "mov to cs")]
    [InlineData(new byte[] { 0x8C, 0xF0 }, Vector.InvalidOpcode, "mov from a segment register that does not exist")]
    [InlineData(new byte[] { 0x0F, 0xB2, 0xC0 }, Vector.InvalidOpcode, "lss without memory")]
    [InlineData(new byte[] { 0xF0, 0x90 }, Vector.InvalidOpcode, "lock nop")]
    public void What_the_guest_is_to_blame_for_goes_to_the_guest(byte[] code, byte vector, string what)
    {
        string before = _guest.State();
        Assert.Equal(EmulationResult.Event, _guest.Execute(code));
        Assert.Equal(GuestEvent.Exception(vector), _guest.Event);
        Assert.Equal(before, _guest.State());
        _ = what; // names the case in the report
    }

    [Fact]
    public void The_next_instruction_is_described_where_it_can_be_fetched_whole()
    {
        const ulong firstPage = 0x4000_0000;
        ulong entry = _guest.Map(firstPage, GuestMachine.Data);
        byte[] vmcall = [0x0F, 0x01, 0xC1];
        _guest.Memory.Write(GuestMachine.Data + 0xFFE, vmcall.AsSpan()[..2]);
        _guest.Memory.Write(GuestMachine.Data + 0x1000, vmcall.AsSpan()[2..]);
        Cpu.Rip = firstPage + 0xFFE;
        Assert.Null(_guest.Emulator.DescribeNext());
        _ = _guest.Map(firstPage + 0x1000, GuestMachine.Data + 0x1000);
        Assert.Equal("vmcall [0F01C1]", _guest.Emulator.DescribeNext());
        Assert.Equal(0UL, _guest.Memory.Read<ulong>(entry) & Pte.Accessed);
        _guest.Memory.Write(GuestMachine.Data + 0xFFE, (byte)0x06); // no instruction of 64-bit mode
        Assert.Null(_guest.Emulator.DescribeNext());
        Cpu.Rip = NonCanonical;
        Assert.Null(_guest.Emulator.DescribeNext());
    }

    [Fact]
    public void Changed_code_is_decoded_again()
    {
        Done(a => a.cli());
        Cpu.Rip--;
        Done(a => a.sti());
        Assert.Equal(Rflags.If, Cpu.Rflags & Rflags.If);
    }

    [Fact]
    public void The_same_address_in_another_address_space_is_decoded_again()
    {
        ulong leaf = _guest.Map(0x4000_0000, 0x20_0000);
        _guest.Memory.Write(0x20_0000, (byte)0xFA);
        _guest.Memory.Write(0x20_1000, (byte)0xFB);
        Cpu.Rip = 0x4000_0000;
        Assert.Equal(EmulationResult.Done, _guest.Step());
        Assert.Equal(0UL, Cpu.Rflags & Rflags.If);
        _guest.Memory.Write(leaf, 0x20_1000 | Pte.Present);
        Cpu.Rip = 0x4000_0000;
        Assert.Equal(EmulationResult.Done, _guest.Step());
        Assert.Equal(Rflags.If, Cpu.Rflags & Rflags.If);
    }

    [Fact]
    public void An_instruction_that_crosses_a_page_faults_on_the_second_only_when_it_reaches_it()
    {
        _ = _guest.Map(0x4000_0000, 0x20_0000);
        _guest.Memory.Write(0x20_0FFF, (byte)0xFA);
        Cpu.Rip = 0x4000_0FFF;
        Assert.Equal(EmulationResult.Done, _guest.Step()); // cli, the last byte
        Assert.Equal(0UL, Cpu.Rflags & Rflags.If);

        Cpu.Rip = 0x4000_0FFF;
        _guest.Memory.Write(0x20_0FFF, (byte)0x0F);
        Assert.Equal(EmulationResult.Event, _guest.Step());
        Assert.Equal(GuestEvent.PageFault(0x4000_1000, PageFaultError.Fetch), _guest.Event);

        _ = _guest.Map(0x4000_1000, 0x21_0000);
        _guest.Memory.Write(0x21_0000, (byte)0x31);
        Assert.Equal(EmulationResult.Done, _guest.Step()); // rdtsc
        Assert.Equal((0x4000_1001UL, TrapReason.TimeStampCounter), (Cpu.Rip, _guest.Reason));

        Cpu.Rip = 0x4000_0FFF;
        _guest.Memory.Write(0x21_0000, (byte)0xA2);
        Assert.Equal(EmulationResult.Done, _guest.Step()); // cpuid: the second page has changed
        Assert.Equal(TrapReason.Cpuid, _guest.Reason);
    }

    [Fact]
    public void A_cached_instruction_is_decoded_and_emulated_without_allocation()
    {
        Done(a => a.cli());
        Cpu.Rip--;
        _ = _guest.Step();
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int i = 0; i < 1000; i++)
        {
            Cpu.Rip = GuestMachine.Code;
            _ = _guest.Step();
        }

        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
    }
}
