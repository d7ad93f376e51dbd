using VirtBench.Strategies.Simulation;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Tests.Simulation;

/// <summary>What the simulated ring 3 traps, and what it lets through.</summary>
public sealed class DeprivilegedSemanticsTests
{
    public static TheoryData<string, byte[]> Privileged =>
        new()
        {
            { "cli", [0xFA] },
            { "sti", [0xFB] },
            { "hlt", [0xF4] },
            { "in al, dx", [0xEC] },
            { "out 0x80, al", [0xE6, 0x80] },
            { "rep insb", [0xF3, 0x6C] },
            { "rep outsd", [0xF3, 0x6F] },
            { "mov rax, cr0", [0x0F, 0x20, 0xC0] },
            { "mov cr3, rax", [0x0F, 0x22, 0xD8] },
            { "mov dr7, rax", [0x0F, 0x23, 0xF8] },
            { "clts", [0x0F, 0x06] },
            { "lmsw ax", [0x0F, 0x01, 0xF0] },
            { "lgdt [rax]", [0x0F, 0x01, 0x10] },
            { "lidt [rax]", [0x0F, 0x01, 0x18] },
            { "lldt ax", [0x0F, 0x00, 0xD0] },
            { "ltr ax", [0x0F, 0x00, 0xD8] },
            { "invlpg [rax]", [0x0F, 0x01, 0x38] },
            { "wbinvd", [0x0F, 0x09] },
            { "rdmsr", [0x0F, 0x32] },
            { "wrmsr", [0x0F, 0x30] },
            { "swapgs", [0x0F, 0x01, 0xF8] },
            { "iretq", [0x48, 0xCF] },
            { "retfq", [0x48, 0xCB] },
            { "sysretq", [0x48, 0x0F, 0x07] },
            { "int 0x80", [0xCD, 0x80] },
            { "int3", [0xCC] },
            { "mov ds, 0x10", [0x8E, 0xD8] },
            { "xgetbv", [0x0F, 0x01, 0xD0] },
            { "rdtsc", [0x0F, 0x31] },
            { "rdtscp", [0x0F, 0x01, 0xF9] },
        };

    [Theory]
    [MemberData(nameof(Privileged))]
    public void Privileged_instructions_exit_untouched(string name, byte[] code)
    {
        using var guest = new SimulatedGuest();
        guest.Memory.Write(SimulatedGuest.CodeStart, [0x90, .. code]);
        guest.Cpu.Rax = 0x10;
        ulong flags = guest.Cpu.Rflags;
        VmExit exit = guest.Run();
        Assert.True(exit.Reason == VmExitReason.PrivilegedInstruction, $"{name}: {exit}");
        Assert.Equal(SimulatedGuest.CodeStart + 1, guest.Cpu.Rip);
        Assert.Equal(0x10UL, guest.Cpu.Rax);
        Assert.Equal(SimulatedGuest.StackTop, guest.Cpu.Rsp);
        Assert.Equal(flags, guest.Cpu.Rflags);
    }

    [Fact]
    public void Popf_in_ring_3_leaves_the_interrupt_flag_alone()
    {
        using var guest = new SimulatedGuest();
        guest.Cpu.Rflags = Rflags.AlwaysSet;
        guest.RunToHalt(a =>
        {
            a.push((int)(Rflags.If | Rflags.Iopl | Rflags.Df | Rflags.Cf));
            a.popfq();
        });
        Assert.Equal(Rflags.AlwaysSet | Rflags.Df | Rflags.Cf, guest.Cpu.Rflags);
    }

    [Fact]
    public void Pushf_shows_the_hosts_interrupt_flag_and_the_core_keeps_the_virtual_one()
    {
        using var guest = new SimulatedGuest();
        guest.Cpu.Rflags = Rflags.AlwaysSet | Rflags.Iopl;
        guest.RunToHalt(a =>
        {
            a.stc();
            a.pushfq();
            a.pop(rax);
        });
        Assert.Equal(Rflags.AlwaysSet | Rflags.If | Rflags.Cf, guest.Cpu.Rax);
        Assert.Equal(Rflags.AlwaysSet | Rflags.Iopl | Rflags.Cf, guest.Cpu.Rflags);
    }

    [Fact]
    public void Sensitive_instructions_answer_for_the_host()
    {
        using var guest = new SimulatedGuest();
        SimulatedHost host = CostProfile.Textbook.Host;
        guest.RunToHalt(a =>
        {
            a.mov(r15, SimulatedGuest.DataStart);
            a.mov(r8d, cs);
            a.mov(r9d, ss);
            a.str(r10d);
            a.sldt(r11d);
            a.smsw(r12);
            a.sidt(__[r15]);
            a.sgdt(__[r15 + 16]);
            a.mov(eax, 0x33);
            a.lar(esi, eax);
            a.mov(edi, 0x10);
            a.verr(di);
            a.setz(bl);
            a.mov(eax, 1);
            a.cpuid();
            a.mov(r13d, ecx);
            a.mov(eax, 0x4000_0000);
            a.cpuid();
        });
        Assert.Equal(0x33UL, guest.Cpu[8]);
        Assert.Equal(0x2BUL, guest.Cpu[9]);
        Assert.Equal(host.Tr, guest.Cpu[10]);
        Assert.Equal(host.Ldt, guest.Cpu[11]);
        Assert.Equal(host.MachineStatus, guest.Cpu[12]);
        Assert.Equal(host.IdtLimit, guest.Memory.Read<ushort>(SimulatedGuest.DataStart));
        Assert.Equal(host.IdtBase, guest.Memory.Read<ulong>(SimulatedGuest.DataStart + 2));
        Assert.Equal(host.GdtBase, guest.Memory.Read<ulong>(SimulatedGuest.DataStart + 18));
        Assert.Equal(0x00AF_FB00UL, guest.Cpu[Gpr.Rsi]);
        Assert.Equal(0UL, guest.Cpu[13] >> 31);
        Assert.Equal(0UL, guest.Cpu.Rax);
    }

    [Fact]
    public void Every_hole_is_declared_and_rdtsc_is_not_one()
    {
        using var guest = new SimulatedGuest();
        string[] named = [.. guest.Engine.Capabilities.Holes.Select(hole => hole.Instruction)];
        Assert.Superset(
            new HashSet<string> { "popf", "pushf", "sgdt", "sidt", "sldt", "str", "smsw", "cpuid", "lar", "lsl" },
            new HashSet<string>(named)
        );
        Assert.True(guest.Engine.Capabilities.TrapsTimeStampCounter);
        Assert.StartsWith(
            "computed: cost profile 'textbook'",
            guest.Engine.Capabilities.TimeSource,
            StringComparison.Ordinal
        );
    }

    [Fact]
    public void Syscall_exits_behind_the_instruction()
    {
        using var guest = new SimulatedGuest();
        guest.Memory.Write(SimulatedGuest.CodeStart, [0x90, 0x0F, 0x05]);
        Assert.Equal(VmExitReason.SystemCall, guest.Run().Reason);
        Assert.Equal(SimulatedGuest.CodeStart + 3, guest.Cpu.Rip);
    }

    public static TheoryData<string, byte[], byte> Exceptions =>
        new()
        {
            { "ud2", [0x0F, 0x0B], Vector.InvalidOpcode },
            { "movbe", [0x0F, 0x38, 0xF0, 0x00], Vector.InvalidOpcode },
            { "push cs", [0x0E], Vector.InvalidOpcode },
            { "lock mov", [0xF0, 0x89, 0x00], Vector.InvalidOpcode },
            { "div by 0", [0x31, 0xC9, 0xF7, 0xF1], Vector.DivideError },
            { "movaps of an odd address", [0x0F, 0x28, 0x04, 0x25, 1, 0, 0x20, 0], Vector.GeneralProtection },
            { "ldmxcsr of a reserved bit", [0x0F, 0xAE, 0x14, 0x25, 8, 0, 0x20, 0], Vector.GeneralProtection },
        };

    [Theory]
    [MemberData(nameof(Exceptions))]
    public void Faults_go_to_the_guest(string name, byte[] code, byte vector)
    {
        using var guest = new SimulatedGuest();
        guest.Memory.Write(SimulatedGuest.CodeStart, code);
        guest.Memory.Write(SimulatedGuest.DataStart + 8, 0x0001_1F80U);
        VmExit exit = guest.Run();
        Assert.True(exit.Reason == VmExitReason.Exception && exit.Vector == vector, $"{name}: {exit}");
        Assert.InRange(guest.Cpu.Rip, SimulatedGuest.CodeStart, SimulatedGuest.CodeStart + 2);
    }

    public static TheoryData<byte[], string> Unsupported =>
        new()
        {
            { [0xD9, 0xE8], "'fld1' (D9E8)" },
            { [0x0F, 0x6F, 0xC1], "'movq mm0,mm1' (0F6FC1)" },
            { [0xC5, 0xF8, 0x58, 0xC1], "'vaddps xmm0,xmm0,xmm1' (C5F858C1)" },
            { [0xF3, 0x0F, 0xB8, 0xC1], "'popcnt eax,ecx' (F30FB8C1)" },
            { [0x66, 0x0F, 0x38, 0x00, 0xC1], "'pshufb xmm0,xmm1' (660F3800C1)" },
        };

    [Theory]
    [MemberData(nameof(Unsupported))]
    public void An_instruction_that_is_lacking_ends_the_guest_with_its_name(byte[] code, string named)
    {
        using var guest = new SimulatedGuest();
        guest.Memory.Write(SimulatedGuest.CodeStart, [0x90, .. code]);
        VmExit exit = guest.Run();
        Assert.Equal(VmExitReason.Failed, exit.Reason);
        Assert.Contains(named, exit.Message, StringComparison.Ordinal);
        Assert.Contains("RIP 0x100001", exit.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(0x1F00U)] // an unmasked exception
    [InlineData(0x3F80U)] // round down
    [InlineData(0x9F80U)] // flush to zero
    [InlineData(0x1FC0U)] // denormals are zero
    public void A_floating_point_mode_that_is_not_modelled_ends_the_guest(uint mxcsr)
    {
        using var guest = new SimulatedGuest();
        guest.Memory.Write(SimulatedGuest.DataStart, mxcsr);
        guest.Load(a => a.ldmxcsr(__dword_ptr[SimulatedGuest.DataStart]));
        VmExit exit = guest.Run();
        Assert.Equal(VmExitReason.Failed, exit.Reason);
        Assert.Contains("MXCSR", exit.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_guest_that_sets_the_trap_flag_traps_after_each_instruction_behind_the_next()
    {
        using var guest = new SimulatedGuest();
        guest.Load(a =>
        {
            a.push((int)Rflags.Tf);
            a.popfq();
            a.inc(rax); // the first that is over with TF set at its start
            a.dec(rbx);
            a.push(0);
            a.popfq(); // traps, since TF was set when it began
            a.inc(rax);
            a.hlt();
        });
        foreach (ulong behind in (ulong[])[9, 12, 14, 15])
        {
            VmExit exit = guest.Run();
            Assert.Equal((VmExitReason.Exception, Vector.Debug), (exit.Reason, exit.Vector));
            Assert.Equal(SimulatedGuest.CodeStart + behind, guest.Cpu.Rip);
            Assert.Equal(1UL << 14, guest.Cpu.Dr6 & (1UL << 14));
        }

        Assert.Equal(VmExitReason.PrivilegedInstruction, guest.Run().Reason);
        Assert.Equal(2UL, guest.Cpu.Rax);
    }

    [Fact]
    public void A_single_stepped_string_instruction_traps_after_each_iteration()
    {
        using var guest = new SimulatedGuest();
        guest.Load(a =>
        {
            a.rep.stosb();
            a.hlt();
        });
        guest.Cpu[Gpr.Rdi] = SimulatedGuest.DataStart;
        guest.Cpu[Gpr.Rcx] = 3;
        guest.Cpu.Rflags |= Rflags.Tf;
        for (ulong left = 3; left-- > 0; )
        {
            Assert.Equal(VmExitReason.Exception, guest.Run().Reason);
            Assert.Equal(left, guest.Cpu[Gpr.Rcx]);
            Assert.Equal(SimulatedGuest.CodeStart + (left == 0 ? 2UL : 0), guest.Cpu.Rip);
        }
    }

    [Fact]
    public void A_user_mode_guest_does_not_run_on_the_kernels_mappings()
    {
        using var guest = new SimulatedGuest();
        guest.RunToHalt(a => a.nop());
        long before = guest.HiddenFaults;
        guest.Cpu.Cs = guest.Cpu.Cs with { Selector = 0x33 };
        guest.Cpu.Rip = SimulatedGuest.CodeStart;
        _ = guest.Run();
        Assert.Equal(before + 1, guest.HiddenFaults);
    }

    [Fact]
    public void Fxsave_and_fxrstor_carry_the_vectors_and_the_x87_image()
    {
        using var guest = new SimulatedGuest();
        guest.RunToHalt(a =>
        {
            a.mov(eax, 0x1234);
            a.movd(xmm7, eax);
            a.fxsave(__[SimulatedGuest.DataStart]);
            a.pxor(xmm7, xmm7);
            a.fxrstor(__[SimulatedGuest.DataStart]);
            a.movd(ecx, xmm7);
        });
        Assert.Equal(0x1234UL, guest.Cpu[Gpr.Rcx]);
        Assert.Equal(0x37F, guest.Memory.Read<ushort>(SimulatedGuest.DataStart)); // FCW after FNINIT
        Assert.Equal(0x1F80U, guest.Memory.Read<uint>(SimulatedGuest.DataStart + 24));
    }

    [Fact]
    public void Lazy_state_reaches_the_core_when_it_is_saved()
    {
        using var guest = new SimulatedGuest();
        guest.RunToHalt(a =>
        {
            a.mov(eax, 0x55);
            a.movd(xmm3, eax);
        });
        guest.Engine.SaveLazyState();
        unsafe
        {
            Assert.Equal(0x55, *((byte*)guest.Cpu.Registers + GuestRegisters.XmmOffset + (3 * 16)));
        }
    }

    [Fact]
    public void Fs_and_gs_bases_and_32_bit_addresses_enter_the_address()
    {
        using var guest = new SimulatedGuest();
        guest.Cpu.Fs = guest.Cpu.Fs with { Base = SimulatedGuest.DataStart };
        guest.Memory.Write(SimulatedGuest.DataStart + 0x18, 0x1122_3344_5566_7788UL);
        guest.RunToHalt(a =>
        {
            a.mov(ebx, 8);
            a.mov(rax, __qword_ptr.fs[rbx + rbx * 2 - 0]);
            a.mov(rsi, 0x7_0000_0000UL + SimulatedGuest.DataStart);
            a.db(0x67, 0x8B, 0x4E, 0x18); // mov ecx, [esi+18h]
            a.db(0x64, 0x8B, 0x14, 0x25, 0x18, 0, 0, 0); // mov edx, fs:[18h]
        });
        Assert.Equal(0x1122_3344_5566_7788UL, guest.Cpu.Rax);
        Assert.Equal(0x5566_7788UL, guest.Cpu[Gpr.Rcx]);
        Assert.Equal(0x5566_7788UL, guest.Cpu[Gpr.Rdx]);
    }

    [Fact]
    public void An_engine_maps_no_more_rights_than_stated()
    {
        using var guest = new SimulatedGuest();
        const ulong page = SimulatedGuest.DataStart;
        Assert.Equal(MapResult.Mapped, guest.Engine.Map(new ShadowPage(page, page, page, 4096, PageAccess.Read)));
        const ulong code = SimulatedGuest.CodeStart;
        Assert.Equal(
            MapResult.Mapped,
            guest.Engine.Map(new ShadowPage(code, code, code, 4096, PageAccess.Read | PageAccess.Execute))
        );
        guest.Load(a =>
        {
            a.mov(rax, __[page]);
            a.mov(__[page], rax);
        });
        VmExit exit = guest.Engine.Run();
        Assert.Equal(VmExitReason.PageFault, exit.Reason);
        Assert.Equal(PageAccess.Write, exit.Access);
        Assert.Equal(page, exit.Address);
    }
}
