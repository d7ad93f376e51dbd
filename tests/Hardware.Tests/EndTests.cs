using VirtBench.Strategies.Hardware;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Hardware.Tests;

/// <summary>How guests end that do not write the exit port: in one line that says what happened.</summary>
public sealed class EndTests
{
    [Theory]
    [InlineData(HardwareGuest.Hardware)]
    [InlineData(HardwareGuest.Simulated)]
    [InlineData(HardwareGuest.TrapAndEmulate)]
    public void Hlt_ends_the_guest_and_names_the_place(string strategy)
    {
        using var guest = new HardwareGuest(
            a =>
            {
                a.nop();
                a.hlt();
                a.nop();
            },
            strategy
        );
        string message = guest.RunToFailure();
        Assert.Equal("the guest executed HLT before RIP 0x100002 and interrupts are off", message);
        Assert.True(guest.Cpu.Halted);
        Assert.Equal(1, guest.Exits(TrapReason.Halt));
        Assert.Equal(message, guest.RunToFailure());
    }

    [Fact]
    public void A_triple_fault_ends_the_guest()
    {
        using var guest = new HardwareGuest(a => a.ud2());
        string message = guest.RunToFailure();
        Assert.StartsWith("triple fault", message, StringComparison.Ordinal);
        Assert.Equal(message, guest.RunToFailure());
    }

    [Fact]
    public void A_guest_that_failed_can_be_loaded_anew()
    {
        using var guest = new HardwareGuest(a => a.ud2());
        guest.RunToFailure();
        guest.Machine.Load(HardwareGuest.Assemble(a => a.Exit(5)), new Vmm.Boot.BootOptions());
        Assert.Equal(5, guest.RunToExit());
    }

    [Theory]
    [InlineData(0xDEAD_BEEF_0000UL)] // not canonical
    [InlineData(0x6EAD_BEEF_0000UL)] // not mapped
    [InlineData(0x8000_0000_0000_0000UL)]
    public void A_jump_to_nowhere_is_a_triple_fault(ulong target)
    {
        using var guest = new HardwareGuest(a => a.JumpTo(target));
        Assert.StartsWith("triple fault", guest.RunToFailure(), StringComparison.Ordinal);
    }

    [Fact]
    public void A_jump_to_where_there_is_no_ram_is_named()
    {
        using var guest = new HardwareGuest(a => a.JumpTo(HardwareGuest.NoRam + 0x10));
        Assert.Equal(
            "the guest fetches an instruction at RIP 0x30000010, guest-physical 0x30000010, where there is no RAM",
            guest.RunToFailure()
        );
    }

    [Theory]
    [InlineData("x87")]
    [InlineData("sse")]
    public void An_instruction_that_cannot_be_emulated_without_ram_is_named(string kind)
    {
        using var guest = new HardwareGuest(a =>
        {
            a.mov(rbx, HardwareGuest.NoRam);
            if (kind == "x87")
            {
                a.fbstp(__tbyte_ptr[rbx]);
            }
            else
            {
                a.pshufd(xmm0, __xmmword_ptr[rbx], 0);
            }

            a.Exit();
        });
        string message = guest.RunToFailure();
        Assert.Contains(kind == "x87" ? "'fbstp'" : "'pshufd'", message, StringComparison.Ordinal);
        Assert.Contains("0x10000", message, StringComparison.Ordinal);
        Assert.StartsWith("the instruction emulator of ", message, StringComparison.Ordinal);
    }

    [Fact]
    public void So_it_is_in_ring_three()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.mov(ebx, (int)HardwareGuest.NoRam);
            a.fbstp(__tbyte_ptr[rbx]);
        });
        guest.EnterInRingThree();
        guest.MapLargePageOfBoot(HardwareGuest.NoRam);
        Assert.Contains("'fbstp' at RIP 0x100005 in ring 3", guest.RunToFailure(), StringComparison.Ordinal);
    }

    [Fact]
    public void A_stack_where_there_is_no_ram_ends_in_one_line_or_not_at_all()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.LoadIdt();
            a.mov(rsp, HardwareGuest.NoRam);
            a.ud2();
        }).InstallHandlers();

        // Hardware pushes the frame to where nobody keeps it; KVM may do so, or give up.
        RunOutcome outcome = guest.Run(TimeSpan.FromSeconds(2));
        Assert.True(outcome.End is RunEnd.Failed or RunEnd.Exited or RunEnd.TimedOut, outcome.ToString());
        Assert.DoesNotContain('\n', outcome.Message ?? "");
    }

    [Fact]
    public void Page_tables_where_there_is_no_ram_end_the_guest()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.mov(eax, 0x7FFF_F000);
            a.mov(cr3, rax);
            a.Exit();
        });
        RunOutcome outcome = guest.Run(TimeSpan.FromSeconds(2));
        Assert.True(outcome.End is RunEnd.Failed or RunEnd.TimedOut, outcome.ToString());
        Assert.DoesNotContain('\n', outcome.Message!);
    }

    [Theory]
    [InlineData(GuestMemory.MinimumSize)]
    [InlineData((1UL << 20) + 4096)]
    [InlineData(5UL << 30)]
    public void Any_amount_of_ram_will_do(ulong ram)
    {
        const ulong code = 0x4_0000;
        using var guest = new HardwareGuest(
            new Vmm.Boot.GuestImage(
                "test",
                code,
                [
                    new Vmm.Boot.ImageSegment(
                        code,
                        Bytes(
                            code,
                            a =>
                            {
                                a.mov(rax, 0xABCD_EF01_2345_6789);
                                a.mov(rbx, ram - 8);
                                if (ram > 1UL << 30)
                                {
                                    a.mov(rbx, 0x4000_0000 + 0x1F_FFF8);
                                    a.mov(__qword_ptr[0x6000_1000], rax); // where kvm_intel would like to have a TSS
                                }

                                a.mov(__qword_ptr[rbx], rax);
                                a.Exit(3);
                            }
                        ),
                        0x1000,
                        Executable: true
                    ),
                ]
            ),
            ram: ram
        );
        if (ram > 1UL << 30)
        {
            guest.MapLargePage(0x4000_0000, ram - (2UL << 20), tables: 0x6_0000);
            guest.MapLargePage(0x6000_0000, 0xFFFA_0000, tables: 0x6_0000);
        }

        Assert.Equal(3, guest.RunToExit());
        Assert.Equal(0xABCD_EF01_2345_6789, guest.Memory.Read<ulong>(ram - 8));
        Assert.Equal(0, guest.Machine.AbsentMemory.UnclaimedAccesses);
    }

    private static byte[] Bytes(ulong at, Action<Iced.Intel.Assembler> program)
    {
        var a = new Iced.Intel.Assembler(64);
        program(a);
        return Strategies.MachineCode.Assemble(a, at);
    }

    [Fact]
    public void A_register_that_the_cpu_cannot_have_ends_the_guest_in_one_line()
    {
        using var guest = new HardwareGuest(a => a.Exit());
        guest.Cpu.Cr4 |= 1UL << 40;
        Assert.Contains("KVM_SET_SREGS", guest.RunToFailure(), StringComparison.Ordinal);
    }

    [Fact]
    public void Words_for_what_seldom_happens()
    {
        using var guest = new HardwareGuest(a => a.ud2());
        foreach (uint suberror in (uint[])[1, 2, 3, 4, 99])
        {
            string words = KvmFailure.InternalError(suberror, guest.Cpu, guest.Memory, "kvm_test");
            Assert.Contains("0x100000", words, StringComparison.Ordinal);
            Assert.DoesNotContain('\n', words);
        }

        guest.Cpu.Rip = ulong.MaxValue;
        Assert.DoesNotContain('\n', KvmFailure.InternalError(1, guest.Cpu, guest.Memory, "kvm_test"));
        guest.Cpu.Rip = 0xFFF0;
        Assert.Contains("where, this CPU does not tell", KvmFailure.Shutdown(guest.Cpu), StringComparison.Ordinal);
    }
}
