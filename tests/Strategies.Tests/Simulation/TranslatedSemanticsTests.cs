using Iced.Intel;
using VirtBench.Strategies.Simulation;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Tests.Simulation;

/// <summary>The simulated CPU under a modelled translator: what the guest sees, and what it costs. Textbook profile.</summary>
public sealed unsafe class TranslatedSemanticsTests
{
    private static readonly CostProfile Costs = CostProfile.Textbook;
    private static readonly TranslationCosts Translation = Costs.Translation!;

    private static SimulatedGuest Create() => new(translated: true);

    // Past the hidden page faults of code, data and stack, all of them written to.
    private static SimulatedGuest Warm(Action<Assembler> write)
    {
        SimulatedGuest guest = Create();
        guest.RunToHalt(a =>
        {
            a.push(rax);
            a.pop(rax);
            a.mov(__qword_ptr[SimulatedGuest.DataStart], rax);
            a.mov(__qword_ptr[SimulatedGuest.CodeStart + 0x800], rax);
        });
        guest.Load(write);
        guest.Cpu.Rip = SimulatedGuest.CodeStart;
        return guest;
    }

    private static VmExit RunTo(SimulatedGuest guest, byte opcode)
    {
        VmExit exit = guest.Run();
        Assert.Equal(VmExitReason.PrivilegedInstruction, exit.Reason);
        Assert.Equal(opcode, guest.Memory.Read<byte>(guest.Cpu.Rip));
        return exit;
    }

    [Fact]
    public void There_is_no_hole()
    {
        using SimulatedGuest guest = Create();
        Assert.Empty(guest.Engine.Capabilities.Holes);
        Assert.True(guest.Engine.Capabilities.InlinesInterruptFlag);
        Assert.False(guest.Engine.Capabilities.TrapsTimeStampCounter);
        Assert.All(
            (string[])["cli", "popf", "mov r,sreg", "mov r,cs", "cpuid"],
            name => Assert.Contains(name, guest.Engine.Capabilities.Inlined)
        );
    }

    [Fact]
    public void Loads_of_system_state_show_the_guests_own()
    {
        using SimulatedGuest guest = Create();
        guest.Cpu.Idtr = new DescriptorTable(0x1234_5678_9ABC, 0x3FF);
        guest.Cpu.Gdtr = new DescriptorTable(0x4321_0000, 0x27);
        guest.Cpu.Tr = guest.Cpu.Tr with { Selector = 0x28 };
        guest.Cpu.Ldtr = guest.Cpu.Ldtr with { Selector = 0x38 };
        guest.Cpu.Gs = guest.Cpu.Gs with { Selector = 0x1B };
        guest.RunToHalt(a =>
        {
            a.mov(rbx, SimulatedGuest.DataStart);
            a.sidt(__[rbx]);
            a.sgdt(__[rbx + 16]);
            a.str(ecx);
            a.sldt(edx);
            a.smsw(rsi);
            a.mov(edi, cs);
            a.mov(r8w, ss);
            a.push(gs);
            a.pop(r9);
        });
        Assert.Equal(0x3FF, guest.Memory.Read<ushort>(SimulatedGuest.DataStart));
        Assert.Equal(0x1234_5678_9ABCUL, guest.Memory.Read<ulong>(SimulatedGuest.DataStart + 2));
        Assert.Equal(0x27, guest.Memory.Read<ushort>(SimulatedGuest.DataStart + 16));
        Assert.Equal(0x4321_0000UL, guest.Memory.Read<ulong>(SimulatedGuest.DataStart + 18));
        Assert.Equal(0x28UL, guest.Cpu[Gpr.Rcx]);
        Assert.Equal(0x38UL, guest.Cpu[Gpr.Rdx]);
        Assert.Equal(guest.Cpu.Cr0, guest.Cpu[Gpr.Rsi]);
        Assert.Equal(0x08UL, guest.Cpu[Gpr.Rdi]);
        Assert.Equal(0x10UL, guest.Cpu[8]);
        Assert.Equal(0x1BUL, guest.Cpu[9]);
    }

    [Fact]
    public void Cpuid_shows_the_platform_with_its_hypervisor_bit()
    {
        using SimulatedGuest guest = Create();
        guest.RunToHalt(a =>
        {
            a.mov(eax, 1);
            a.cpuid();
        });
        Assert.Equal(PlatformCpuid.Query(1).Ecx, (uint)guest.Cpu[Gpr.Rcx]);
        Assert.NotEqual(0u, (uint)guest.Cpu[Gpr.Rcx] & (1u << 31));
    }

    [Fact]
    public void The_interrupt_flag_is_the_guests_and_pushf_shows_it()
    {
        using SimulatedGuest guest = Create();
        guest.RunToHalt(a =>
        {
            a.pushfq();
            a.pop(rbx);
            a.sti();
            a.nop();
            a.pushfq();
            a.pop(rcx);
            a.cli();
            a.pushfq();
            a.pop(rdx);
            a.push(0x3202); // IF and IOPL 3
            a.popfq();
            a.pushfq();
            a.pop(rsi);
        });
        Assert.Equal(0UL, guest.Cpu[Gpr.Rbx] & Rflags.If);
        Assert.Equal(Rflags.If, guest.Cpu[Gpr.Rcx] & Rflags.If);
        Assert.Equal(0UL, guest.Cpu[Gpr.Rdx] & Rflags.If);
        Assert.Equal(0x3202UL, guest.Cpu[Gpr.Rsi] & 0x3202);
        Assert.Equal(0x3200UL, guest.Cpu.Rflags & (Rflags.If | Rflags.Iopl));
    }

    [Theory]
    [InlineData(0, true)]
    [InlineData(3, false)]
    public void In_ring_3_cli_calls_out_unless_iopl_allows_it(int iopl, bool callsOut)
    {
        using SimulatedGuest guest = Create();
        guest.Cpu.Cs = guest.Cpu.Cs with { Selector = 0x2B };
        guest.Cpu.Rflags |= Rflags.If | ((ulong)iopl << 12);
        guest.Load(a =>
        {
            a.cli();
            a.hlt();
        });
        _ = RunTo(guest, callsOut ? (byte)0xFA : (byte)0xF4);
        Assert.Equal(callsOut ? Rflags.If : 0, guest.Cpu.Rflags & Rflags.If);
    }

    [Fact]
    public void In_ring_3_popf_leaves_what_is_not_its_own_alone()
    {
        using SimulatedGuest guest = Create();
        guest.Cpu.Cs = guest.Cpu.Cs with { Selector = 0x2B };
        guest.Cpu.Rflags |= Rflags.If;
        guest.RunToHalt(a =>
        {
            a.push(0x3402); // no IF, IOPL 3, DF
            a.popfq();
        });
        Assert.Equal(Rflags.If | Rflags.Df, guest.Cpu.Rflags & (Rflags.If | Rflags.Iopl | Rflags.Df));
    }

    [Fact]
    public void A_guest_kept_from_the_time_stamp_counter_calls_out()
    {
        using SimulatedGuest guest = Create();
        guest.Cpu.Cs = guest.Cpu.Cs with { Selector = 0x2B };
        guest.Cpu.Cr4 |= Cr4.Tsd;
        guest.Load(a => a.rdtsc());
        _ = RunTo(guest, 0x0F);
    }

    [Fact]
    public void A_segment_load_calls_out()
    {
        using SimulatedGuest guest = Create();
        guest.Load(a => a.mov(ds, eax));
        _ = RunTo(guest, 0x8E);
    }

    [Theory]
    [InlineData(0UL, 0UL, null)]
    [InlineData(Cr0.Ts, 0UL, Vector.DeviceNotAvailable)]
    [InlineData(Cr0.Em, 0UL, Vector.InvalidOpcode)]
    [InlineData(0UL, Cr4.Osfxsr, Vector.InvalidOpcode)]
    public void Sse_is_there_when_the_guests_control_registers_say_so(ulong set, ulong clear, byte? vector)
    {
        using SimulatedGuest guest = Create();
        guest.Cpu.Cr0 |= set;
        guest.Cpu.Cr4 &= ~clear;
        guest.Load(a =>
        {
            a.nop();
            a.pxor(xmm0, xmm0);
            a.hlt();
        });
        VmExit exit = guest.Run();
        Assert.Equal(vector is null ? VmExitReason.PrivilegedInstruction : VmExitReason.Exception, exit.Reason);
        Assert.Equal(vector ?? 0, exit.Vector);
        Assert.Equal(SimulatedGuest.CodeStart + (vector is null ? 5UL : 1), guest.Cpu.Rip);
    }

    [Fact]
    public void A_window_opens_after_the_instruction_that_sti_shadows()
    {
        using SimulatedGuest guest = Warm(a =>
        {
            a.sti();
            a.inc(rbx);
            a.inc(rcx);
            a.hlt();
        });
        (guest.Cpu[Gpr.Rbx], guest.Cpu[Gpr.Rcx]) = (0, 0);
        guest.Engine.RequestInterruptWindow();
        Assert.Equal(VmExitReason.InterruptWindow, guest.Run().Reason);
        Assert.Equal((1UL, 0UL), (guest.Cpu[Gpr.Rbx], guest.Cpu[Gpr.Rcx]));
        Assert.Equal(SimulatedGuest.CodeStart + 4, guest.Cpu.Rip);
        _ = RunTo(guest, 0xF4); // asked once, told once
    }

    [Fact]
    public void A_window_opens_at_once_after_popf()
    {
        using SimulatedGuest guest = Warm(a =>
        {
            a.push(0x202);
            a.popfq();
            a.inc(rcx);
            a.hlt();
        });
        guest.Cpu[Gpr.Rcx] = 0;
        guest.Engine.RequestInterruptWindow();
        Assert.Equal(VmExitReason.InterruptWindow, guest.Run().Reason);
        Assert.Equal(0UL, guest.Cpu[Gpr.Rcx]);
        Assert.Equal(SimulatedGuest.StackTop, guest.Cpu.Rsp);
    }

    [Fact]
    public void No_window_opens_where_the_shadowed_instruction_is_cli()
    {
        using SimulatedGuest guest = Warm(a =>
        {
            a.sti();
            a.cli();
            a.hlt();
        });
        guest.Engine.RequestInterruptWindow();
        _ = RunTo(guest, 0xF4);
        Assert.Equal(0UL, guest.Cpu.Rflags & Rflags.If);
    }

    public static TheoryData<string> EndsOfBlocks => ["hlt", "ret", "jmp", "popf", "sti", "rep"];

    /// <summary>The core keeps a shadow that outlasts guest code: so it has to see the STI.</summary>
    [Theory]
    [MemberData(nameof(EndsOfBlocks))]
    public void Sti_calls_out_where_its_shadow_would_outlast_the_block(string what)
    {
        using SimulatedGuest guest = Warm(a =>
        {
            a.push(0x202);
            a.sti();
            switch (what)
            {
                case "hlt":
                    break;
                case "ret":
                    a.ret();
                    break;
                case "jmp":
                    Label next = a.CreateLabel();
                    a.jmp(next);
                    a.Label(ref next);
                    break;
                case "popf":
                    a.popfq();
                    break;
                case "sti":
                    a.sti();
                    break;
                case "rep":
                    a.rep.stosb();
                    break;
            }

            a.hlt();
        });
        _ = RunTo(guest, 0xFB);
        Assert.Equal(0UL, guest.Cpu.Rflags & Rflags.If);
    }

    [Fact]
    public void An_sti_whose_shadowed_instruction_faults_is_taken_back()
    {
        const ulong absent = 0x4000_0000;
        using SimulatedGuest guest = Warm(a =>
        {
            a.mov(rbx, absent);
            a.sti();
            a.mov(rax, __qword_ptr[rbx]);
            a.hlt();
        });
        _ = RunTo(guest, 0xFB);
        Assert.Equal(0UL, guest.Cpu.Rflags & Rflags.If);
        // As the core does, which then keeps the shadow itself.
        guest.Cpu.Rip++;
        guest.Cpu.Rflags |= Rflags.If;
        guest.Cpu.InterruptShadow = true;
        VmExit exit = guest.Engine.Run();
        Assert.Equal((VmExitReason.PageFault, absent), (exit.Reason, exit.Address));
        Assert.True(guest.Cpu.InterruptShadow);
    }

    [Fact]
    public void A_shadowed_instruction_that_overwrites_what_follows_ends_the_shadow()
    {
        using SimulatedGuest guest = Warm(a =>
        {
            Label next = a.CreateLabel();
            a.lea(rbx, __[next]);
            a.sti();
            a.mov(__byte_ptr[rbx], 0x90);
            a.Label(ref next);
            a.hlt();
            a.inc(rcx);
            a.hlt();
        });
        guest.Cpu[Gpr.Rcx] = 0;
        _ = RunTo(guest, 0xF4);
        Assert.Equal(1UL, guest.Cpu[Gpr.Rcx]);
        Assert.Equal(Rflags.If, guest.Cpu.Rflags & Rflags.If);
    }

    private static ulong CyclesOf(SimulatedGuest guest)
    {
        ulong start = guest.Engine.Clock.Ticks;
        _ = RunTo(guest, 0xF4);
        return guest.Engine.Clock.Ticks - start;
    }

    [Fact]
    public void A_block_is_translated_once_and_again_after_a_write_to_its_code()
    {
        using SimulatedGuest guest = Warm(a =>
        {
            a.inc(rax);
            a.inc(rbx);
            a.cli();
            a.hlt();
        });
        TranslationStatistics before = guest.Engine.TranslationStatistics!;
        ulong once = 2 + (ulong)Translation.InlineCyclesOf("cli") + (ulong)Translation.CalloutCycles;
        ulong translating = 4 * (ulong)Translation.InstructionCycles;
        Assert.Equal(once + translating, CyclesOf(guest));
        guest.Cpu.Rip = SimulatedGuest.CodeStart;
        Assert.Equal(once, CyclesOf(guest));
        guest.Memory.Write(SimulatedGuest.CodeStart, guest.Memory.Read<byte>(SimulatedGuest.CodeStart));
        guest.Cpu.Rip = SimulatedGuest.CodeStart;
        Assert.Equal(once + translating, CyclesOf(guest));

        TranslationStatistics done = guest.Engine.TranslationStatistics!.Since(before);
        Assert.Equal((2L, 8L, 16L, 0L), (done.Blocks, done.GuestInstructions, done.GuestBytes, done.HostBytes));
        Assert.Equal((2 * translating, 1L), (done.Ticks, done.Invalidations));
        Assert.Null(done.LookupHits);
    }

    [Fact]
    public void A_page_fault_costs_a_world_switch_and_a_callout_does_not()
    {
        using SimulatedGuest guest = Create();
        guest.Load(a => a.hlt());
        ulong start = guest.Engine.Clock.Ticks;
        Assert.Equal(VmExitReason.PageFault, guest.Engine.Run().Reason);
        // The first entry is of its own kind: nothing has exited before it.
        int entry = Translation.CalloutCycles - (Translation.CalloutCycles / 2);
        Assert.Equal((ulong)(entry + Costs.ExitCycles), guest.Engine.Clock.Ticks - start);
    }

    [Fact]
    public void A_return_costs_the_search_for_its_target()
    {
        using SimulatedGuest guest = Warm(a =>
        {
            Label f = a.CreateLabel();
            a.call(f);
            a.hlt();
            a.Label(ref f);
            a.ret();
        });
        _ = CyclesOf(guest);
        guest.Cpu.Rip = SimulatedGuest.CodeStart;
        Assert.Equal((ulong)(2 + Translation.IndirectCycles + Translation.CalloutCycles), CyclesOf(guest));
    }

    [Fact]
    public void Engines_that_do_not_translate_have_no_statistics_and_none_here_makes_code()
    {
        using var trapping = new SimulatedGuest();
        Assert.Null(trapping.Engine.TranslationStatistics);
        Assert.Throws<NotSupportedException>(trapping.Engine.RequestInterruptWindow);
        using SimulatedGuest guest = Create();
        Assert.False(guest.Engine.ObserveTranslation(null));
    }

    [Fact]
    public void A_profile_without_translation_is_readable_and_only_cannot_translate()
    {
        CostProfile profile = Costs with { Translation = null };
        Assert.Null(new SimulatedTrapAndEmulateStrategy(profile).UnavailableReason());
        string reason = new SimulatedBinaryTranslationStrategy(profile).UnavailableReason()!;
        Assert.Contains("has no field 'translation'", reason, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', reason);
    }
}
