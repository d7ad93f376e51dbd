using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Tests.DirectExecution;

/// <summary>What the guest's own IDT gets to see of what the host's kernel made a signal of.</summary>
[Collection(CarrierCollection.Name)]
public sealed class ExceptionTests
{
    private const ulong Idt = 0x30_0000;
    private const ulong Handlers = 0x31_0000;
    private const ulong HandlerSize = 64;
    private const ulong IdtPointer = 0x32_0000;
    private const ulong LidtLength = 8;
    private const ulong NonCanonical = 0x8000_0000_0000_0000;

    private static readonly Dictionary<string, (Action<Assembler> Code, byte Vector, int Offset, uint Error)> Cases =
        new()
        {
            ["int3"] = (a => a.int3(), Vector.Breakpoint, 1, 0),
            ["int 3, two bytes"] = (a => a.db(0xCD, 0x03), Vector.Breakpoint, 2, 0),
            ["int 4"] = (a => a.@int(4), Vector.Overflow, 2, 0),
            ["int 0x80"] = (a => a.@int(0x80), 0x80, 2, 0),
            ["int 0x21"] = (a => a.@int(0x21), 0x21, 2, 0),
            ["int 13"] = (a => a.@int(13), 13, 2, 0),
            ["icebp"] = (a => a.int1(), Vector.Debug, 1, 0),
            ["ud2"] = (a => a.ud2(), Vector.InvalidOpcode, 0, 0),
            ["vmrun"] = (a => a.vmrun(), Vector.InvalidOpcode, 0, 0),
            ["invlpga"] = (a => a.invlpga(), Vector.InvalidOpcode, 0, 0),
            ["xsetbv"] = (a => a.xsetbv(), Vector.InvalidOpcode, 0, 0),
            ["sysenter"] = (a => a.sysenter(), 0, 0, 0),
            ["div"] = (
                a =>
                {
                    a.xor(ecx, ecx);
                    a.div(ecx);
                },
                Vector.DivideError,
                2,
                0
            ),
            ["load from a non-canonical address"] = (
                a =>
                {
                    a.mov(rbx, NonCanonical);
                    a.mov(rax, __qword_ptr[rbx]);
                },
                Vector.GeneralProtection,
                10,
                0
            ),
            ["load from the unmapped upper half"] = (
                a =>
                {
                    a.mov(rbx, 0xFFFF_8000_0000_0000UL);
                    a.mov(rax, __qword_ptr[rbx]);
                },
                Vector.PageFault,
                10,
                0
            ),
            ["store to an unmapped page"] = (
                a =>
                {
                    a.mov(rbx, 0x50_0000_0000UL);
                    a.mov(__qword_ptr[rbx], rax);
                },
                Vector.PageFault,
                10,
                PageFaultWrite
            ),
        };

    private const uint PageFaultWrite = 2;

    public static TheoryData<string> Names => [.. Cases.Keys];

    [Theory]
    [MemberData(nameof(Names))]
    public void An_exception_reaches_the_guests_handler_with_the_right_return_address(string name)
    {
        (Action<Assembler> code, byte vector, int offset, uint error) = Cases[name];
        using var guest = new DirectGuest(a =>
        {
            a.lidt(__[IdtPointer]);
            code(a);
            a.Exit(99);
        });
        InstallHandlers(guest);
        Assert.Equal(1, guest.RunToExit());
        if (name == "sysenter")
        {
            // AMD: #UD in long mode. Intel: MSRs of zero, so #GP; Linux makes SIGILL or a system call of it.
            Assert.Contains(guest.Result(0), new ulong[] { Vector.InvalidOpcode, Vector.GeneralProtection });
            return;
        }

        Assert.Equal(vector, guest.Result(0));
        bool software = name.StartsWith("int", StringComparison.Ordinal);
        int slot = !software && Vector.HasErrorCode(vector) ? 2 : 1;
        Assert.Equal(DirectGuest.Code + LidtLength + (ulong)offset, guest.Result(slot));
        if (slot == 2)
        {
            Assert.Equal(error, guest.Result(1));
        }
    }

    // Seen as #GP on a virtualized AMD CPU; the hypervisor may answer it too, which is the hole of this name.
    [Fact]
    public void Vmcall_is_undefined_and_named_by_the_triple_fault_that_it_becomes()
    {
        using var guest = new DirectGuest(a =>
        {
            a.vmcall();
            a.Exit(99);
        });
        RunOutcome outcome = guest.Run();
        Assert.SkipWhen(outcome.End == RunEnd.Exited, "the hypervisor under this host answers VMCALL from ring 3");
        Assert.StartsWith(
            "triple fault: #UD, RIP 0x100000 (vmcall [0F01C1]), could not be delivered",
            outcome.Message,
            StringComparison.Ordinal
        );
    }

    [Fact]
    public void A_push_to_a_non_canonical_stack_is_a_stack_fault()
    {
        using var guest = new DirectGuest(a =>
        {
            a.lidt(__[IdtPointer]);
            a.mov(rsp, NonCanonical);
            a.push(rax);
        });
        InstallHandlers(guest);
        // Its handler would push to the same stack: double fault, then triple fault, as on hardware without an IST.
        Assert.Contains("triple fault", guest.RunToFailure(), StringComparison.OrdinalIgnoreCase);
    }

    [Fact]
    public void The_trap_flag_steps_one_instruction()
    {
        using var guest = new DirectGuest(a =>
        {
            a.lidt(__[IdtPointer]);
            a.pushfq();
            a.or(__qword_ptr[rsp], (int)Rflags.Tf);
            a.popfq();
            a.mov(ebx, 1);
            a.mov(ebx, 2);
            a.Exit(99);
        });
        InstallHandlers(guest);
        Assert.Equal(1, guest.RunToExit());
        Assert.Equal(Vector.Debug, guest.Result(0));
        Assert.Equal(1UL, guest.Machine.Cpu[Gpr.Rbx]);
        Assert.NotEqual(0UL, guest.Machine.Cpu.Dr6 & (1 << 14));
    }

    [Fact]
    public void A_jump_into_the_hosts_vsyscall_page_is_a_page_fault()
    {
        using var guest = new DirectGuest(a =>
        {
            a.lidt(__[IdtPointer]);
            a.mov(eax, 0x1234);
            a.mov(rbx, 0xFFFF_FFFF_FF60_0400UL);
            a.call(rbx);
            a.Exit(99);
        });
        InstallHandlers(guest);
        Assert.Equal(1, guest.RunToExit());
        Assert.Equal(Vector.PageFault, guest.Result(0));
        Assert.Equal(0xFFFF_FFFF_FF60_0400UL, guest.Result(2));
        Assert.Equal(0xFFFF_FFFF_FF60_0400UL, guest.Machine.Cpu.Cr2);
        Assert.Equal(0, guest.Machine.Ledger.Count(TrapReason.SystemCall));
    }

    [Fact]
    public void Every_system_call_number_comes_to_the_guests_own_handler()
    {
        const int numbers = 501;
        ulong[] odd =
        [
            ulong.MaxValue,
            1UL << 30,
            (1UL << 30) | 1,
            1UL << 31,
            1UL << 32,
            (1UL << 32) | 231,
            long.MaxValue,
        ];
        using var guest = new DirectGuest(a =>
        {
            Label handler = a.CreateLabel();
            Label next = a.CreateLabel();
            Label done = a.CreateLabel();
            a.lea(rax, __[handler]);
            a.mov(rdx, rax);
            a.shr(rdx, 32);
            a.mov(ecx, Msr.Lstar);
            a.wrmsr();
            a.WriteMsr(Msr.Star, 0x8UL << 32);
            a.WriteMsr(Msr.Efer, Efer.Sce | Efer.Lme | Efer.Nxe);
            a.xor(r15d, r15d); // handled
            a.xor(r14d, r14d); // sum of the numbers seen
            a.xor(r13d, r13d);
            a.Label(ref next);
            a.mov(rax, r13);
            a.mov(rdi, 0x30_0000UL);
            a.mov(rsi, 0x1000UL);
            a.mov(edx, 3);
            a.mov(r10d, 0x11);
            a.mov(r8d, 4);
            a.xor(r9d, r9d);
            a.syscall();
            a.inc(r13);
            a.cmp(r13, numbers);
            a.jb(next);
            foreach (ulong number in odd)
            {
                a.mov(rax, number);
                a.syscall();
            }

            a.jmp(done);
            a.Label(ref handler);
            a.inc(r15);
            a.add(r14, rax);
            a.jmp(rcx);
            a.Label(ref done);
            a.mov(DirectGuest.ResultSlot(0), r15);
            a.mov(DirectGuest.ResultSlot(1), r14);
            a.Exit();
        });
        guest.RunToExit();
        ulong sum = odd.Aggregate((ulong)(numbers * (numbers - 1) / 2), (total, number) => total + number);
        Assert.Equal((ulong)(numbers + odd.Length), guest.Result(0));
        Assert.Equal(sum, guest.Result(1));
        Assert.Equal(numbers + odd.Length, guest.Machine.Ledger.Count(TrapReason.SystemCall));
    }

    private static void InstallHandlers(DirectGuest guest)
    {
        for (ulong vector = 0; vector < 256; vector++)
        {
            ulong at = Handlers + (vector * HandlerSize);
            var a = new Assembler(64);
            a.mov(DirectGuest.ResultSlot(0), (int)vector);
            a.pop(rax);
            a.mov(DirectGuest.ResultSlot(1), rax);
            a.pop(rax);
            a.mov(DirectGuest.ResultSlot(2), rax);
            a.Exit(1);
            guest.Memory.Write(at, Strategies.MachineCode.Assemble(a, at));
            ulong gate = Idt + (16 * vector);
            guest.Memory.Write(gate, (at & 0xFFFF) | (0x08UL << 16) | (0x8EUL << 40) | ((at >> 16) << 48));
            guest.Memory.Write(gate + 8, at >> 32);
        }

        guest.Memory.Write(IdtPointer, (ushort)((256 * 16) - 1));
        guest.Memory.Write(IdtPointer + 2, Idt);
    }
}
