#pragma warning disable CA1416 // DirectGuest has asked for Linux
using Iced.Intel;
using VirtBench.Strategies.Carrier;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Tests.DirectExecution;

/// <summary>Guests that attack the monitor window. Each must end with one clear line, and the VMM go on.</summary>
[Collection(CarrierCollection.Name)]
public sealed class HostileGuestTests
{
    // A guest that hangs is stopped by the time-out; one that cannot be stopped is killed when the grace is over. Neither
    // decides whether a test passes.
    private static readonly TimeSpan Timeout = TimeSpan.FromMilliseconds(20);
    private static readonly TimeSpan Grace = TimeSpan.FromMilliseconds(20);

    public static TheoryData<ulong> WindowAddresses =>
        [
            CarrierLayout.Window - 8,
            CarrierLayout.Stub + 0x800,
            CarrierLayout.Control,
            CarrierLayout.Control + CarrierLayout.ControlSize,
            CarrierLayout.RegisterFile,
            CarrierLayout.RegisterFile + CarrierLayout.FirstFrameOffset,
            CarrierLayout.RegisterFile + CarrierLayout.SignalStackOffset,
            CarrierLayout.RegisterFile + CarrierLayout.SignalStackOffset + 8,
            CarrierLayout.RegisterFile + 0x8000,
            CarrierLayout.WindowEnd - 8,
            CarrierLayout.WindowEnd,
            0x8000_0000_0000,
            0x8000_0000_0000_0000,
            0xFFFF_8000_0000_0000,
            0x18,
            0,
        ];

    /// <summary>What the registers hold at the jump: nothing of use, what the stub expects, or forged frames.</summary>
    public static TheoryData<int> RegisterSets => [0, 1, 2, 3];

    [Theory]
    [MemberData(nameof(RegisterSets))]
    public void A_jump_to_any_instruction_of_the_stub_ends_the_guest_at_worst(int registers)
    {
        DirectGuest.SkipUnlessAvailable();
        byte[] stub = CarrierStub.Instance.Code;
        var decoder = Decoder.Create(64, stub, CarrierLayout.Stub);
        while (decoder.IP < CarrierLayout.Stub + (ulong)stub.Length)
        {
            ulong target = decoder.Decode().IP;
            using var guest = new DirectGuest(
                a =>
                {
                    SetRegisters(a, registers);
                    a.mov(__qword_ptr[rsp - 8], rax);
                    a.mov(rax, target);
                    a.xchg(__qword_ptr[rsp - 8], rax);
                    a.jmp(__qword_ptr[rsp - 8]);
                },
                kickGrace: Grace
            );
            AssertEnds(guest.Run(Timeout), $"0x{target - CarrierLayout.Stub:X}, register set {registers}");
        }
    }

    [Theory]
    [InlineData(0x1000UL)]
    [InlineData(0x10000UL)]
    [InlineData(0x12000UL)]
    [InlineData(0x1F000UL)]
    [InlineData(0x20000UL)]
    public void A_jump_into_the_rest_of_the_window_is_named(ulong offset)
    {
        using var guest = new DirectGuest(a => a.JumpTo(CarrierLayout.Window + offset));
        RunOutcome outcome = guest.Run();
        Assert.Equal(RunEnd.Failed, outcome.End);
        if (offset < CarrierLayout.WindowEnd - CarrierLayout.Window)
        {
            Assert.Contains("jumped into the monitor window", outcome.Message, StringComparison.Ordinal);
        }
    }

    [Theory]
    [MemberData(nameof(WindowAddresses))]
    public void A_trap_with_any_stack_pointer_harms_the_guest_only(ulong stackPointer)
    {
        using var guest = new DirectGuest(
            a =>
            {
                a.mov(rsp, stackPointer);
                for (int i = 0; i < 3; i++)
                {
                    a.cli();
                }

                a.Exit(5);
            },
            kickGrace: Grace
        );
        RunOutcome outcome = guest.Run();
        if (outcome.End != RunEnd.Exited)
        {
            AssertEnds(outcome, $"RSP 0x{stackPointer:X}");
            return;
        }

        Assert.Equal(5, outcome.Status);
        Assert.Equal(stackPointer, guest.Machine.Cpu.Rsp);
    }

    [Theory]
    [InlineData(0UL)]
    [InlineData(ulong.MaxValue)]
    [InlineData(0x4141_4141_4141_4141UL)]
    public void Overwriting_the_control_memory_harms_the_guest_only(ulong pattern)
    {
        (ulong Start, ulong Length)[] areas =
        [
            (CarrierLayout.Control, 0x1000),
            (CarrierLayout.Control + 0x40, 0xFC0),
            (CarrierLayout.Control + CarrierLayout.BatchOffset, 0x4000),
            (CarrierLayout.RegisterFile, CarrierLayout.RegisterFileSize),
        ];
        foreach ((ulong start, ulong length) in areas)
        {
            using var guest = new DirectGuest(
                a =>
                {
                    a.mov(rdi, start);
                    a.mov(rcx, length / 8);
                    a.mov(rax, pattern);
                    a.rep.stosq();
                    a.cli();
                    a.mov(rbx, __qword_ptr[DirectGuest.Data]); // a hidden fault, so a batch
                    a.cli();
                    a.Exit();
                },
                kickGrace: Grace
            );
            RunOutcome outcome = guest.Run(Timeout);
            if (outcome.End != RunEnd.Exited)
            {
                AssertEnds(outcome, $"0x{start:X}");
            }
        }
    }

    [Theory]
    [InlineData(0U)]
    [InlineData(1U)]
    [InlineData(2U)]
    [InlineData(3U)]
    [InlineData(4U)] // "the carrier is dead"
    [InlineData(5U)]
    [InlineData(0x8000_0000U)]
    public void A_forged_handshake_word_cannot_hang_the_vmm(uint state)
    {
        using var guest = new DirectGuest(
            a =>
            {
                Label forever = a.CreateLabel();
                a.mov(rbx, CarrierLayout.Control);
                a.mov(__dword_ptr[rbx + 4], 0); // VmmSleeps
                a.Label(ref forever);
                a.mov(__dword_ptr[rbx], state);
                a.jmp(forever);
            },
            kickGrace: Grace
        );
        AssertEnds(guest.Run(TimeSpan.FromMilliseconds(200)), $"state {state}");
    }

    [Fact]
    public void A_guest_that_hides_in_the_stub_from_being_interrupted_is_killed()
    {
        using var guest = new DirectGuest(
            a =>
            {
                // Into a tight wait: the stub's spin loop, with EBP equal to the state that the VMM has posted.
                a.mov(rbx, CarrierLayout.Control);
                a.mov(ebp, __dword_ptr[rbx]);
                a.mov(__dword_ptr[rbx + 0x84], -1); // SpinCount
                a.JumpTo(WaitLoop());
            },
            kickGrace: Grace
        );
        string message = guest.RunToFailure(Timeout);
        Assert.Contains("did not stop when it was interrupted", message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(9L, 0x11, 4, false)] // mmap of guest RAM: allowed
    [InlineData(9L, 0x8011, 4, false)]
    [InlineData(9L, 0x22, 4, true)] // anonymous
    [InlineData(9L, 0x31, 4, true)]
    [InlineData(9L, 0x12, 4, true)] // private
    [InlineData(9L, 0x01, 4, true)] // not fixed
    [InlineData(9L, 0x11, 3, true)] // another descriptor
    [InlineData(28L, 0, 0, true)] // madvise
    [InlineData(39L, 0, 0, true)] // getpid
    [InlineData(62L, 0, 0, true)] // kill
    [InlineData(59L, 0, 0, true)] // execve
    [InlineData(1L << 30 | 9, 0x11, 4, true)] // x32
    [InlineData(202L, 0, 0, true)] // futex, of any kind but wait and wake: here PRIVATE
    public void The_stubs_system_call_instruction_does_only_what_the_filter_allows(
        long number,
        int flags,
        int descriptor,
        bool refused
    )
    {
        DirectGuest.SkipUnlessAvailable();
        using var guest = new DirectGuest(
            a =>
            {
                a.mov(rdi, 0x40_0000_0000UL);
                a.mov(rsi, number == 202 ? 128UL : 0x1000UL);
                a.mov(edx, 3);
                a.mov(r10d, flags);
                a.mov(r8d, descriptor);
                a.xor(r9d, r9d);
                a.mov(rbx, CarrierLayout.Control);
                a.mov(r12, CarrierLayout.Control + CarrierLayout.BatchOffset);
                a.mov(r13d, 1);
                a.mov(r14d, CarrierState.Batch);
                a.mov(r11, BatchSystemCall());
                a.mov(rax, (ulong)number);
                a.jmp(r11);
            },
            kickGrace: Grace
        );
        RunOutcome outcome = guest.Run(Timeout);
        AssertEnds(outcome, $"{number}");
        unsafe
        {
            // The stub stores the result of a call that the kernel has made; SIGSYS comes instead of a refused one.
            var entry = (BatchEntry*)((byte*)guest.Engine.Carrier!.Control + CarrierLayout.BatchOffset);
            Assert.Equal(refused, entry->Result != 0x40_0000_0000);
        }

        if (refused)
        {
            Assert.Contains("jumped into the monitor window", outcome.Message, StringComparison.Ordinal);
        }
    }

    [Theory]
    [InlineData(CarrierLayout.Stub)]
    [InlineData(CarrierLayout.Window - 0x1000)]
    [InlineData(0x7FFE_0000_0000UL)]
    [InlineData(0x7FFD_FFFF_F000UL)]
    public void The_filter_keeps_mappings_away_from_the_window(ulong address)
    {
        using var guest = new DirectGuest(
            a =>
            {
                a.mov(rdi, address);
                a.mov(rsi, CarrierLayout.WindowEnd - address);
                a.mov(rbx, CarrierLayout.Control);
                a.mov(r12, CarrierLayout.Control + CarrierLayout.BatchOffset);
                a.mov(r13d, 1);
                a.mov(r14d, CarrierState.Batch);
                a.mov(r11, BatchSystemCall());
                a.mov(eax, 11); // munmap
                a.jmp(r11);
            },
            kickGrace: Grace
        );
        Assert.Contains("jumped into the monitor window", guest.RunToFailure(), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(0x8000UL, "below 0x10000")]
    [InlineData(0x0UL, "below 0x10000")]
    public void A_guest_that_touches_low_memory_is_told(ulong address, string expected)
    {
        using var guest = new DirectGuest(a =>
        {
            a.mov(rbx, address);
            a.mov(rax, __qword_ptr[rbx]);
            a.Exit();
        });
        Assert.Contains(expected, guest.RunToFailure(), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(0xFFFF_8000_0000_0000UL)]
    [InlineData(0xFFFF_FFFF_8000_0000UL)]
    [InlineData(CarrierLayout.GuestLimit)]
    [InlineData(0x7FFF_C000_1000UL)]
    public void A_guest_that_maps_what_no_process_can_have_is_told(ulong address)
    {
        const ulong table = 0x40_0000;
        using var guest = new DirectGuest(a =>
        {
            a.mov(rbx, address);
            a.mov(rax, __qword_ptr[rbx]);
            a.Exit();
        });
        // The boot tables with one more 1 GiB page over physical 0.
        guest.Memory.Write(table + (((address >> 30) & 511) * 8), 0x83UL);
        ulong top = 0x1_3000 + (((address >> 39) & 511) * 8);
        guest.Memory.Write(top, table | 3);
        Assert.Contains($"the guest maps 0x{address:X}", guest.RunToFailure(), StringComparison.Ordinal);
    }

    [Fact]
    public void A_triple_fault_ends_the_guest()
    {
        using var guest = new DirectGuest(a => a.ud2());
        Assert.Contains("triple fault", guest.RunToFailure(), StringComparison.OrdinalIgnoreCase);
    }

    private static void SetRegisters(Assembler a, int set)
    {
        AssemblerRegister64[] registers = [rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
        ulong value = set switch
        {
            0 => 0,
            1 => CarrierLayout.Control,
            2 => DirectGuest.Data,
            _ => CarrierLayout.RegisterFile + CarrierLayout.SignalStackOffset + 0x8000,
        };
        foreach (AssemblerRegister64 register in registers)
        {
            a.mov(register, value);
        }

        a.mov(rsp, DirectGuest.Data + 0x8000);
        if (set == 1)
        {
            a.mov(ebp, __dword_ptr[rbx]);
            a.mov(eax, CarrierState.BatchThenRun);
            a.mov(r13d, 0x1000);
        }
    }

    private static ulong WaitLoop() => Find(Mnemonic.Pause, ahead: 5);

    private static ulong BatchSystemCall() => Find(Mnemonic.Js, ahead: -1);

    // The address of the instruction so many before the first of its kind (after it, for a negative number).
    private static ulong Find(Mnemonic mnemonic, int ahead)
    {
        byte[] stub = CarrierStub.Instance.Code;
        var decoder = Decoder.Create(64, stub, CarrierLayout.Stub);
        var seen = new List<Instruction>();
        while (decoder.IP < CarrierLayout.Stub + (ulong)stub.Length)
        {
            seen.Add(decoder.Decode());
        }

        return seen[seen.FindIndex(instruction => instruction.Mnemonic == mnemonic) - ahead].IP;
    }

    private static void AssertEnds(RunOutcome outcome, string what)
    {
        Assert.True(outcome.End is RunEnd.Failed or RunEnd.TimedOut, $"{what}: {outcome}");
        Assert.False(string.IsNullOrEmpty(outcome.Message), what);
        Assert.DoesNotContain('\n', outcome.Message);
    }
}
