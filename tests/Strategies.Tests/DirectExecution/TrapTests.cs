using System.Runtime.Intrinsics.X86;
using Iced.Intel;
using VirtBench.Strategies.TrapAndEmulate;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Tests.DirectExecution;

[Collection(CarrierCollection.Name)]
public sealed class TrapTests
{
    private static readonly AssemblerRegister64[] General =
    [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ];

    private static readonly AssemblerRegisterXMM[] Xmm =
    [
        xmm0,
        xmm1,
        xmm2,
        xmm3,
        xmm4,
        xmm5,
        xmm6,
        xmm7,
        xmm8,
        xmm9,
        xmm10,
        xmm11,
        xmm12,
        xmm13,
        xmm14,
        xmm15,
    ];

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Every_register_survives_traps(bool byIret)
    {
        const int xmmResults = 32;
        using var guest = new DirectGuest(
            a =>
            {
                a.WriteMsr(Msr.FsBase, DirectGuest.Data + 0x800);
                a.WriteMsr(Msr.GsBase, DirectGuest.Data + 0x808);
                for (int i = 0; i < 16; i++)
                {
                    a.movdqu(Xmm[i], __xmmword_ptr[DirectGuest.Data + (ulong)(16 * i)]);
                }

                a.ldmxcsr(__dword_ptr[DirectGuest.Data + 0x900]);
                a.mov(rsp, DirectGuest.Data + 0x8000);
                a.push(0xCD5); // CF PF AF ZF SF DF OF with bit 8 (TF) clear
                a.and(__qword_ptr[rsp], ~0x100);
                a.popfq();
                foreach (AssemblerRegister64 register in General)
                {
                    if (register != rsp)
                    {
                        a.mov(register, 0x1111_0000_0000_0001UL * (ulong)(1 + Array.IndexOf(General, register)));
                    }
                }

                for (int i = 0; i < 20; i++)
                {
                    a.cli();
                    a.sti();
                }

                for (int i = 0; i < 16; i++)
                {
                    a.mov(DirectGuest.ResultSlot(i), General[i]);
                }

                a.pushfq();
                a.pop(DirectGuest.ResultSlot(16));
                a.cld();
                a.stmxcsr(__dword_ptr[DirectGuest.Results + (17 * 8)]);
                a.mov(rax, __qword_ptr.fs[0]);
                a.mov(DirectGuest.ResultSlot(18), rax);
                a.mov(rax, __qword_ptr.gs[0]);
                a.mov(DirectGuest.ResultSlot(19), rax);
                for (int i = 0; i < 16; i++)
                {
                    a.movdqu(__xmmword_ptr[DirectGuest.Results + (ulong)(8 * (xmmResults + (2 * i)))], Xmm[i]);
                }

                a.Exit(7);
            },
            byIret
        );
        for (ulong i = 0; i < 32; i++)
        {
            guest.Memory.Write(DirectGuest.Data + (8 * i), 0x0123_4567_89AB_CDEFUL * (i + 3));
        }

        guest.Memory.Write(DirectGuest.Data + 0x800, 0xF5F5UL);
        guest.Memory.Write(DirectGuest.Data + 0x808, 0x6565UL);
        guest.Memory.Write(DirectGuest.Data + 0x900, 0x9FC0U); // DAZ, FTZ, all masked

        Assert.Equal(7, guest.RunToExit());

        for (int i = 0; i < 16; i++)
        {
            ulong expected = General[i] == rsp ? DirectGuest.Data + 0x8000 : 0x1111_0000_0000_0001UL * (ulong)(i + 1);
            Assert.Equal(expected, guest.Result(i));
        }

        const ulong compared = Rflags.Arithmetic | Rflags.Df;
        Assert.Equal(0xCD5UL & compared, guest.Result(16) & compared);
        Assert.Equal(0x9FC0UL, guest.Result(17));
        Assert.Equal(0xF5F5UL, guest.Result(18));
        Assert.Equal(0x6565UL, guest.Result(19));
        for (ulong i = 0; i < 32; i++)
        {
            Assert.Equal(0x0123_4567_89AB_CDEFUL * (i + 3), guest.Result(xmmResults + (int)i));
        }
    }

    [Fact]
    public void Saved_lazy_state_holds_the_guests_vector_registers_and_bases()
    {
        using var guest = new DirectGuest(a =>
        {
            a.WriteMsr(Msr.FsBase, 0x1234_5678_9000);
            a.mov(rax, 0x1122_3344_5566_7788UL);
            a.movq(xmm5, rax);
            a.Exit();
        });
        guest.RunToExit();
        unsafe
        {
            byte* block = (byte*)guest.Machine.Cpu.Registers;
            Assert.Equal(0x1122_3344_5566_7788UL, *(ulong*)(block + GuestRegisters.XmmOffset + (5 * 16)));
        }

        Assert.Equal(0x1234_5678_9000UL, guest.Machine.Cpu.Fs.Base);
    }

    [Fact]
    public void Vector_registers_survive_a_change_of_a_segment_base()
    {
        using var guest = new DirectGuest(a =>
        {
            a.mov(rax, 42UL);
            a.movq(xmm3, rax);
            a.WriteMsr(Msr.GsBase, DirectGuest.Data);
            a.movq(rbx, xmm3);
            a.mov(DirectGuest.ResultSlot(0), rbx);
            a.Exit();
        });
        guest.RunToExit();
        Assert.Equal(42UL, guest.Result(0));
    }

    [Theory]
    [InlineData(true, 5)]
    [InlineData(false, 0)]
    public void Rdtsc_traps_when_asked_to(bool trap, long expected)
    {
        using var guest = new DirectGuest(
            a =>
            {
                for (int i = 0; i < 5; i++)
                {
                    a.rdtsc();
                }

                a.Exit();
            },
            trapTimeStampCounter: trap
        );
        guest.RunToExit();
        Assert.Equal(expected, guest.Machine.Ledger.Count(TrapReason.TimeStampCounter));
    }

    [Fact]
    public void The_holes_are_as_listed()
    {
        using var guest = new DirectGuest(a =>
        {
            a.cli();
            a.pushfq();
            a.pop(DirectGuest.ResultSlot(0));
            a.sti();
            a.push(2);
            a.popfq();
            a.pushfq();
            a.pop(DirectGuest.ResultSlot(1));
            a.xor(eax, eax);
            a.cpuid();
            a.mov(DirectGuest.ResultSlot(2), rbx);
            a.xor(eax, eax);
            a.mov(eax, cs);
            a.mov(DirectGuest.ResultSlot(3), rax);
            a.mov(eax, ss);
            a.mov(DirectGuest.ResultSlot(4), rax);
            a.Exit();
        });
        guest.RunToExit();
        Assert.NotEqual(0UL, guest.Result(0) & Rflags.If); // pushf after cli
        Assert.NotEqual(0UL, guest.Result(1) & Rflags.If); // popf of 2
        Assert.NotEqual(0UL, guest.Machine.Cpu.Rflags & Rflags.If); // … which the VMM has not seen either
        Assert.Equal((uint)X86Base.CpuId(0, 0).Ebx, (uint)guest.Result(2));
        Assert.Equal(0x33UL, guest.Result(3));
        Assert.Equal(0x2BUL, guest.Result(4));
        HashSet<string> listed = [.. guest.Machine.Capabilities.Holes.Select(hole => hole.Instruction)];
        Assert.Superset(new HashSet<string> { "popf", "pushf", "cpuid", "mov r,cs", "mov r,sreg" }, listed);
        Assert.DoesNotContain("rdtsc", listed);
    }

    [Fact]
    public void The_native_strategy_lists_the_time_stamp_counter_as_a_hole()
    {
        Assert.Contains(Ring3Holes.All(trapTimeStampCounter: false), hole => hole.Instruction == "rdtsc");
    }

    [Fact]
    public void Alignment_checks_that_popf_switches_on_do_not_reach_ring_0()
    {
        using var guest = new DirectGuest(a =>
        {
            a.pushfq();
            a.or(__qword_ptr[rsp], (int)Rflags.Ac);
            a.popfq();
            a.mov(eax, __dword_ptr[DirectGuest.Data + 1]);
            a.Exit(3);
        });
        Assert.Equal(3, guest.RunToExit());
    }
}
