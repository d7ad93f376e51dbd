using Iced.Intel;
using VirtBench.Strategies.Hardware;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Hardware.Tests;

/// <summary>Exceptions go through the guest's IDT, rings change, and none of it comes to the VMM.</summary>
public sealed class ExceptionTests
{
    private const ulong Start = HardwareGuest.Code + HardwareGuest.LoadIdtLength;
    private const ulong NonCanonical = 0x8000_0000_0000_0000;
    private const ulong Unmapped = 0x50_0000_0000;

    // What is executed, the vector, the offset of the frame's RIP, the error code, CR2.
    private static readonly Dictionary<
        string,
        (Action<Assembler> Code, byte Vector, int Offset, uint? Error, ulong Cr2)
    > Cases = new()
    {
        ["ud2"] = (a => a.ud2(), Vector.InvalidOpcode, 0, null, 0),
        ["div"] = (
            a =>
            {
                a.xor(ecx, ecx);
                a.div(ecx);
            },
            Vector.DivideError,
            2,
            null,
            0
        ),
        ["int3"] = (a => a.int3(), Vector.Breakpoint, 1, null, 0),
        ["int 0x80"] = (a => a.@int(0x80), 0x80, 2, null, 0),
        ["int 0x21"] = (a => a.@int(0x21), 0x21, 2, null, 0),
        ["read of an unmapped page"] = (
            a =>
            {
                a.mov(rbx, Unmapped);
                a.mov(rax, __qword_ptr[rbx]);
            },
            Vector.PageFault,
            10,
            0,
            Unmapped
        ),
        ["write to an unmapped page"] = (
            a =>
            {
                a.mov(rbx, Unmapped);
                a.mov(__byte_ptr[rbx], al);
            },
            Vector.PageFault,
            10,
            PageFaultError.Write,
            Unmapped
        ),
        ["read of a non-canonical address"] = (
            a =>
            {
                a.mov(rbx, NonCanonical);
                a.mov(rax, __qword_ptr[rbx]);
            },
            Vector.GeneralProtection,
            10,
            0,
            0
        ),
        ["segment beyond the GDT"] = (
            a =>
            {
                a.mov(eax, 0x1230);
                a.mov(ds, ax);
            },
            Vector.GeneralProtection,
            5,
            0x1230,
            0
        ),
        ["mov to CR5"] = (a => a.db(0x0F, 0x22, 0xE8), Vector.InvalidOpcode, 0, null, 0),
        ["reserved bit of CR4"] = (
            a =>
            {
                a.mov(rax, cr4);
                a.or(eax, 1 << 20); // SMEP, which the platform's CPUID lacks
                a.mov(cr4, rax);
            },
            Vector.GeneralProtection,
            8,
            0,
            0
        ),
    };

    public static TheoryData<string> Names => [.. Cases.Keys];

    [Theory]
    [MemberData(nameof(Names))]
    public void An_exception_reaches_the_guests_handler(string name)
    {
        if (name == "reserved bit of CR4")
        {
            HardwareGuest.SkipWhereHole("cpuid"); // what CR4 takes follows from the guest's CPUID
        }

        if (name.StartsWith("int", StringComparison.Ordinal))
        {
            HardwareGuest.SkipUnderPvm("does not have INT n in ring 0");
        }

        (Action<Assembler> code, byte vector, int offset, uint? error, ulong address) = Cases[name];
        using var guest = new HardwareGuest(a =>
        {
            a.LoadIdt();
            code(a);
            a.Exit(99);
        }).InstallHandlers();
        Assert.Equal(new CaughtException(vector, error, Start + (ulong)offset, address), guest.RunToException());
        Assert.Empty(guest.OtherExits);
        Assert.Equal(address, guest.Cpu.Cr2);
    }

    [Fact]
    public void A_handler_returns_to_where_the_exception_was()
    {
        using var guest = new HardwareGuest(a =>
        {
            Label handler = a.CreateLabel();
            Label start = a.CreateLabel();
            a.jmp(start);
            a.Label(ref handler);
            a.inc(r15);
            a.add(__qword_ptr[rsp], 2); // behind UD2
            a.iretq();
            a.Label(ref start);
            a.LoadIdt();
            a.lea(rax, __[handler]);
            SetGate(a, Vector.InvalidOpcode);
            a.xor(r15d, r15d);
            a.ud2();
            a.ud2();
            a.ud2();
            a.Store(0, r15);
            a.Exit();
        }).InstallHandlers();
        guest.RunToExit();
        Assert.Equal(3UL, guest.Result(0));
        Assert.Empty(guest.OtherExits);
    }

    private const ulong Idt = 0x30_0000;

    // rax = handler, below 64 KiB times 64 Ki
    private static void SetGate(Assembler a, byte vector)
    {
        ulong gate = Idt + (16UL * vector);
        a.mov(__word_ptr[gate], ax);
        a.shr(rax, 16);
        a.mov(__word_ptr[gate + 6], ax);
    }

    [Fact]
    public void Ring_three_and_back_by_an_exception_over_the_tss()
    {
        const ulong user = 0x12_0000;
        using var guest = new HardwareGuest(a =>
        {
            a.LoadIdt();
            a.mov(ax, HardwareGuest.TaskSelector);
            a.ltr(ax);
            a.push(HardwareGuest.UserData);
            a.push((int)HardwareGuest.Data);
            a.push(0x202);
            a.push(HardwareGuest.UserCode);
            a.push((int)user);
            a.iretq();
        });
        guest.InstallHandlers();
        guest.InstallUserSegments();
        guest.OpenToRingThree();
        guest.Memory.Write(user, (byte[])[0x66, 0x8C, 0xC8, 0x0F, 0x0B]); // mov ax, cs; ud2
        CaughtException caught = guest.RunToException();
        Assert.Equal(new CaughtException(Vector.InvalidOpcode, null, user + 3, 0), caught);
        if (KvmHost.Current.Module != KvmProbe.PvmModule)
        {
            Assert.Equal(HardwareGuest.UserCode, (ushort)guest.Result(7)); // RAX
        }

        Assert.Equal((HardwareGuest.UserCode, 0x202UL), ((ushort)guest.Result(2), guest.Result(3) & 0x3202));
        Assert.Equal(HardwareGuest.Data, guest.Result(4));
        Assert.Equal(0, guest.Cpu.Cpl);
        Assert.InRange(guest.Cpu.Rsp, HardwareGuest.RingZeroStack - 64, HardwareGuest.RingZeroStack);
        Assert.Empty(guest.OtherExits);
    }

    [Fact]
    public void Ring_three_and_back_by_syscall_and_sysret()
    {
        HardwareGuest.SkipWhereHole("sysretq");
        const ulong user = 0x12_0000;
        using var guest = new HardwareGuest(a =>
        {
            Label kernel = a.CreateLabel();
            Label start = a.CreateLabel();
            a.jmp(start);
            a.Label(ref kernel);
            a.Store(8, rcx);
            a.Store(9, r11);
            a.mov(rax, cs);
            a.Store(10, rax);
            a.pushfq();
            a.pop(rax);
            a.Store(11, rax);
            a.inc(r15);
            a.cmp(r15, 3);
            Label done = a.CreateLabel();
            a.je(done);
            a.sysretq();
            a.Label(ref done);
            a.Exit();
            a.Label(ref start);
            a.LoadIdt();
            a.lea(rbx, __[kernel]);
            a.mov(rax, rbx);
            a.xor(edx, edx);
            a.mov(ecx, Msr.Lstar);
            a.wrmsr();
            a.WriteMsr(Msr.Star, (0x08UL << 32) | (0x10UL << 48));
            a.WriteMsr(Msr.Fmask, Rflags.If | Rflags.Df);
            a.WriteMsr(Msr.Efer, Efer.Sce | Efer.Lme | Efer.Lma | Efer.Nxe);
            a.xor(r15d, r15d);
            a.mov(rcx, user);
            a.mov(r11d, (int)(Rflags.If | Rflags.Df | Rflags.Cf | Rflags.AlwaysSet));
            a.sysretq();
        });
        guest.InstallHandlers();
        guest.InstallUserSegments();
        guest.OpenToRingThree();
        guest.Memory.Write(user, (byte[])[0x0F, 0x05, 0xEB, 0xFC]); // syscall; jmp back
        Assert.Equal(0, guest.RunToExit());
        Assert.Equal(user + 2, guest.Result(8));
        Assert.Equal(Rflags.If | Rflags.Df | Rflags.Cf | Rflags.AlwaysSet, guest.Result(9));
        Assert.Equal(0x08UL, guest.Result(10));
        Assert.Equal(0UL, guest.Result(11) & (Rflags.If | Rflags.Df));
        Assert.Empty(guest.OtherExits);
    }

    [Theory]
    [InlineData("cli")]
    [InlineData("hlt")]
    [InlineData("mov cr3")]
    [InlineData("lgdt")]
    [InlineData("in")]
    [InlineData("out")]
    [InlineData("swapgs")]
    public void Ring_three_may_not_execute_what_is_privileged(string instruction)
    {
        using var guest = new HardwareGuest(a =>
        {
            switch (instruction)
            {
                case "cli":
                    a.cli();
                    break;
                case "hlt":
                    a.hlt();
                    break;
                case "mov cr3":
                    a.mov(cr3, rax);
                    break;
                case "lgdt":
                    a.lgdt(__[HardwareGuest.Data]);
                    break;
                case "in":
                    a.@in(al, 0x80);
                    break;
                case "out":
                    a.@out(0x80, al);
                    break;
                default:
                    a.swapgs();
                    break;
            }
        });
        guest.EnterInRingThree();
        Assert.Equal(new CaughtException(Vector.GeneralProtection, 0, HardwareGuest.Code, 0), guest.RunToException());
        Assert.Empty(guest.OtherExits);
    }

    [Fact]
    public void A_page_fault_of_ring_three_says_so()
    {
        using var guest = new HardwareGuest(a => a.mov(al, __byte_ptr[0x3F00_0000]));
        guest.EnterInRingThree();
        const uint error = PageFaultError.User | PageFaultError.Protection;
        Assert.Equal(
            new CaughtException(Vector.PageFault, error, HardwareGuest.Code, 0x3F00_0000),
            guest.RunToException()
        );
    }

    [Fact]
    public void The_flags_are_the_guests_own()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.pushfq();
            a.pop(rax);
            a.Store(0, rax);
            a.sti();
            a.nop();
            a.pushfq();
            a.pop(rax);
            a.Store(1, rax);
            a.cli();
            a.pushfq();
            a.pop(rax);
            a.Store(2, rax);
            a.push(0x3246); // IOPL 3, IF, ZF, PF
            a.popfq();
            a.pushfq();
            a.pop(rax);
            a.Store(3, rax);
            a.Exit();
        });
        guest.RunToExit();
        const ulong mask = Rflags.Privileged | Rflags.AlwaysSet;
        Assert.Equal(Rflags.AlwaysSet, guest.Result(0) & mask);
        Assert.Equal(Rflags.AlwaysSet | Rflags.If, guest.Result(1) & mask);
        Assert.Equal(Rflags.AlwaysSet, guest.Result(2) & mask);
        Assert.Equal(0x3246UL, guest.Result(3));
        Assert.Equal(0x3200UL, guest.Cpu.Rflags & (Rflags.If | Rflags.Iopl));
        Assert.Empty(guest.OtherExits);
    }

    [Fact]
    public void Sensitive_instructions_that_do_not_trap_show_the_guests_state()
    {
        HardwareGuest.SkipUnderPvm("does not have LAR and LSL in ring 0");
        using var guest = new HardwareGuest(a =>
        {
            a.LoadIdt();
            a.mov(ax, HardwareGuest.TaskSelector);
            a.ltr(ax);
            a.sgdt(__[HardwareGuest.Results]);
            a.sidt(__[HardwareGuest.Results + 16]);
            a.xor(eax, eax);
            a.sldt(eax);
            a.Store(4, rax);
            a.xor(eax, eax);
            a.str(eax);
            a.Store(5, rax);
            a.xor(eax, eax);
            a.smsw(eax);
            a.Store(6, rax);
            a.mov(rax, cr0);
            a.Store(7, rax);
            a.mov(rax, cr3);
            a.Store(8, rax);
            a.mov(rax, cr4);
            a.Store(9, rax);
            a.xor(eax, eax);
            a.mov(ax, cs);
            a.Store(10, rax);
            a.mov(ax, ss);
            a.Store(11, rax);
            a.mov(ecx, HardwareGuest.UserCode);
            a.lar(eax, ecx);
            a.Store(12, rax);
            a.mov(ecx, HardwareGuest.UserData);
            a.lsl(eax, ecx);
            a.Store(13, rax);
            a.Exit();
        });
        guest.InstallHandlers();
        guest.InstallUserSegments();
        (ulong, ulong, ulong) control = (guest.Cpu.Cr0, guest.Cpu.Cr3, guest.Cpu.Cr4);
        guest.RunToExit();
        Assert.Equal(HardwareGuest.TaskSelector + 15, guest.Memory.Read<ushort>(HardwareGuest.Results));
        Assert.Equal(Vmm.Boot.PhysicalLayout.Gdt, guest.Memory.Read<ulong>(HardwareGuest.Results + 2));
        Assert.Equal((256 * 16) - 1, guest.Memory.Read<ushort>(HardwareGuest.Results + 16));
        Assert.Equal(Idt, guest.Memory.Read<ulong>(HardwareGuest.Results + 18));
        Assert.Equal((0UL, (ulong)HardwareGuest.TaskSelector), (guest.Result(4), guest.Result(5)));
        Assert.Equal(control, (guest.Result(7), guest.Result(8), guest.Result(9)));
        Assert.Equal(control.Item1 & 0xFFFF, guest.Result(6) & 0xFFFF);
        Assert.Equal((0x08UL, 0x10UL), (guest.Result(10), guest.Result(11)));
        Assert.Equal((0x00AF_FB00UL & 0xF0_FF00, 0xFFFF_FFFFUL), (guest.Result(12) & 0xF0_FF00, guest.Result(13)));
        Assert.Empty(guest.OtherExits);
    }

    [Fact]
    public void The_task_priority_is_kept_and_lowering_it_is_counted()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.mov(eax, 9);
            a.mov(cr8, rax);
            a.mov(rbx, cr8);
            a.Store(0, rbx);
            a.mov(eax, 2);
            a.mov(cr8, rax);
            a.mov(rbx, cr8);
            a.Store(1, rbx);
            a.Exit();
        });
        guest.RunToExit();
        Assert.Equal((9UL, 2UL, 2UL), (guest.Result(0), guest.Result(1), guest.Cpu.Cr8));
        Assert.InRange(guest.Exits(TrapReason.ControlRegister), 0, 2);
    }

    [Fact]
    public void Debug_registers_are_the_guests_own()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.mov(rax, 0x1234_5678_9ABC);
            a.mov(dr0, rax);
            a.mov(rbx, dr0);
            a.Store(0, rbx);
            a.mov(rbx, dr7);
            a.Store(1, rbx);
            a.mov(rbx, dr6);
            a.Store(2, rbx);
            a.Exit();
        });
        guest.RunToExit();
        Assert.Equal((0x1234_5678_9ABCUL, 0x400UL, 0xFFFF_0FF0UL), (guest.Result(0), guest.Result(1), guest.Result(2)));
        Assert.Equal(0x1234_5678_9ABCUL, guest.Cpu.DebugAddresses[0]);
        Assert.Empty(guest.OtherExits);
    }

    [Fact]
    public void The_trap_flag_steps_one_instruction()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.LoadIdt();
            a.pushfq();
            a.or(__qword_ptr[rsp], (int)Rflags.Tf);
            a.popfq();
            a.mov(ebx, 1);
            a.mov(ebx, 2);
            a.Exit(99);
        }).InstallHandlers();
        Assert.Equal(Vector.Debug, guest.RunToException().Vector);
        Assert.Equal(1UL, guest.Cpu[Gpr.Rbx]);
        Assert.NotEqual(0UL, guest.Cpu.Dr6 & (1 << 14));
    }
}
