using Iced.Intel;
using VirtBench.Strategies.Simulation;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Tests.Simulation;

/// <summary>Shadow paging, page crossings, self-modifying code, kicks, and what stays the same from run to run.</summary>
public sealed class MemoryAndCodeTests
{
    private const ulong Data = SimulatedGuest.DataStart;
    private const ulong Code = SimulatedGuest.CodeStart;

    [Fact]
    public void Code_that_overwrites_the_next_instruction_runs_the_new_one()
    {
        using var guest = new SimulatedGuest();
        guest.RunToHalt(a =>
        {
            Label patched = a.CreateLabel();
            a.lea(rbx, __[patched]);
            a.mov(__byte_ptr[rbx + 1], 42);
            a.Label(ref patched);
            a.mov(eax, 1);
        });
        Assert.Equal(42UL, guest.Cpu.Rax);
    }

    [Fact]
    public void A_loop_that_patches_itself_runs_each_version()
    {
        using var guest = new SimulatedGuest();
        guest.RunToHalt(a =>
        {
            Label patched = a.CreateLabel();
            a.lea(rbx, __[patched]);
            a.xor(eax, eax);
            a.mov(ecx, 10);
            a.Label(ref patched);
            a.add(eax, 1);
            a.inc(__byte_ptr[rbx + 1]); // the immediate of ADD EAX, imm32
            a.dec(ecx);
            a.jnz(patched);
        });
        Assert.Equal(55UL, guest.Cpu.Rax); // 1 + 2 + … + 10
    }

    [Fact]
    public void A_repeated_store_over_its_own_code_takes_effect_at_once()
    {
        using var guest = new SimulatedGuest();
        // rep stosb fills from itself on with HLT: the second iteration must fetch the new byte.
        guest.Memory.Write(Code, [0xF3, 0xAA, 0x90, 0x90, 0x90, 0x90]);
        guest.Cpu.Rax = 0xF4;
        guest.Cpu[Gpr.Rcx] = 6;
        guest.Cpu[Gpr.Rdi] = Code;
        VmExit exit = guest.Run();
        Assert.Equal(VmExitReason.PrivilegedInstruction, exit.Reason);
        Assert.Equal(Code, guest.Cpu.Rip);
        Assert.Equal(5UL, guest.Cpu[Gpr.Rcx]);
    }

    [Fact]
    public void Code_written_through_an_alias_is_seen()
    {
        using var guest = new SimulatedGuest(pageBits: 0);
        // linear 0x500000 is another name of the code page
        guest.Memory.Write(SimulatedGuest.PteOf(0x50_0000), Code | Pte.Present | Pte.Writable | Pte.User);
        byte[] target = SimulatedGuest.Assemble(
            a =>
            {
                a.mov(eax, 1);
                a.ret();
            },
            Code + 0x800
        );
        guest.Memory.Write(Code + 0x800, target);
        guest.RunToHalt(a =>
        {
            a.call(Code + 0x800);
            a.mov(ebx, eax);
            a.mov(__byte_ptr[0x50_0801UL], 2);
            a.call(Code + 0x800);
        });
        Assert.Equal(1UL, guest.Cpu[Gpr.Rbx]);
        Assert.Equal(2UL, guest.Cpu.Rax);
    }

    [Fact]
    public void Code_written_by_the_core_is_seen()
    {
        using var guest = new SimulatedGuest();
        guest.RunToHalt(a => a.mov(eax, 1));
        guest.Memory.Write(Code + 1, (byte)7);
        guest.Cpu.Rip = Code;
        _ = guest.Run();
        Assert.Equal(7UL, guest.Cpu.Rax);
    }

    [Fact]
    public void One_page_of_code_at_two_addresses_runs_at_both()
    {
        using var guest = new SimulatedGuest(pageBits: 0);
        guest.Memory.Write(SimulatedGuest.PteOf(0x50_0000), Code | Pte.Present | Pte.Writable | Pte.User);
        guest.Load(a =>
        {
            Label here = a.CreateLabel();
            a.Label(ref here);
            a.lea(rax, __[here]); // RIP-relative: differs by where it runs
            a.hlt();
        });
        _ = guest.Run();
        Assert.Equal(Code, guest.Cpu.Rax);
        guest.Cpu.Rip = 0x50_0000;
        _ = guest.Run();
        Assert.Equal(0x50_0000UL, guest.Cpu.Rax);
    }

    [Fact]
    public void An_instruction_across_two_pages_follows_both_and_both_can_change()
    {
        using var guest = new SimulatedGuest(pageBits: 0);
        const ulong at = Code + 0xFFD; // MOV EAX, imm32 with two bytes of the immediate in the next page
        guest.Memory.Write(at, [0xB8, 0x44, 0x33, 0x22, 0x11, 0xF4]);
        guest.Cpu.Rip = at;
        _ = guest.Run();
        Assert.Equal(0x1122_3344UL, guest.Cpu.Rax);
        guest.Memory.Write(at + 4, (byte)0x99);
        guest.Cpu.Rip = at;
        _ = guest.Run();
        Assert.Equal(0x9922_3344UL, guest.Cpu.Rax);
        // the next page becomes another one
        guest.Memory.Write(0x30_0000, [0x66, 0x55, 0xF4]);
        guest.Memory.Write(SimulatedGuest.PteOf(at + 4), 0x30_0000 | Pte.Present | Pte.Writable | Pte.User);
        guest.Engine.InvalidatePage(at + 4);
        guest.Cpu.Rip = at;
        _ = guest.Run();
        Assert.Equal(0x5566_3344UL, guest.Cpu.Rax);
    }

    [Theory]
    [InlineData(0xFFF)]
    [InlineData(0xFFC)]
    [InlineData(0xFF9)]
    public void Accesses_across_a_page_boundary_reach_both_pages(int offset)
    {
        using var guest = new SimulatedGuest(pageBits: 0);
        // neighbours in linear memory, far apart in physical
        guest.Memory.Write(SimulatedGuest.PteOf(Data + 0x1000), 0x40_0000 | Pte.Present | Pte.Writable | Pte.User);
        ulong at = Data + (ulong)offset;
        guest.RunToHalt(a =>
        {
            a.mov(rbx, at);
            a.mov(rax, 0x1122_3344_5566_7788UL);
            a.mov(__[rbx], rax);
            a.add(__qword_ptr[rbx], 1);
            a.mov(rcx, __[rbx]);
            a.movups(xmm1, __[rbx - 3]);
            a.movups(__[rbx - 3], xmm1);
            a.mov(rdx, __[rbx]);
        });
        Assert.Equal(0x1122_3344_5566_7789UL, guest.Cpu[Gpr.Rcx]);
        Assert.Equal(0x1122_3344_5566_7789UL, guest.Cpu[Gpr.Rdx]);
        int first = 0x1000 - offset;
        Assert.Equal((byte)(0x1122_3344_5566_7789UL >> (8 * first)), guest.Memory.Read<byte>(0x40_0000));
    }

    [Fact]
    public void A_crossing_write_whose_second_page_faults_writes_nothing()
    {
        using var guest = new SimulatedGuest(pageBits: 0);
        guest.Memory.Write(SimulatedGuest.PteOf(Data + 0x1000), 0UL);
        guest.Load(a =>
        {
            a.mov(rbx, Data + 0xFFC);
            a.mov(rax, -1L);
            a.mov(__[rbx], rax);
        });
        VmExit exit = guest.Run();
        Assert.Equal(VmExitReason.PageFault, exit.Reason);
        Assert.Equal(Data + 0x1000, exit.Address);
        Assert.Equal(PageAccess.Write, exit.Access);
        Assert.Equal(0U, guest.Memory.Read<uint>(Data + 0xFFC));
    }

    [Fact]
    public void A_string_move_that_faults_has_done_the_iterations_before()
    {
        using var guest = new SimulatedGuest(pageBits: 0);
        guest.Memory.Write(SimulatedGuest.PteOf(Data + 0x1000), 0UL);
        guest.Load(a =>
        {
            a.mov(rdi, Data + 0xFF0);
            a.mov(ecx, 100);
            a.mov(al, 0x5A);
            a.rep.stosb();
            a.hlt();
        });
        VmExit exit = guest.Run();
        Assert.Equal(VmExitReason.PageFault, exit.Reason);
        Assert.Equal(84UL, guest.Cpu[Gpr.Rcx]);
        Assert.Equal(Data + 0x1000, guest.Cpu[Gpr.Rdi]);
        guest.Memory.Write(
            SimulatedGuest.PteOf(Data + 0x1000),
            (Data + 0x1000) | Pte.Present | Pte.Writable | Pte.User
        );
        Assert.Equal(VmExitReason.PrivilegedInstruction, guest.Run().Reason);
        Assert.Equal(0UL, guest.Cpu[Gpr.Rcx]);
        Assert.Equal(0x5A, guest.Memory.Read<byte>(Data + 0xFF0 + 99));
    }

    [Fact]
    public void An_address_without_ram_exits_every_time()
    {
        using var guest = new SimulatedGuest(pageBits: 0);
        guest.Memory.Write(SimulatedGuest.PteOf(Data), 0xD000_0000 | Pte.Present | Pte.Writable | Pte.User);
        guest.Load(a => a.mov(rax, __[Data]));
        for (int i = 0; i < 2; i++)
        {
            VmExit exit = guest.Run();
            Assert.Equal(VmExitReason.PageFault, exit.Reason);
            Assert.Equal(Code, guest.Cpu.Rip);
        }
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void A_non_canonical_address_is_reported_as_such(bool native)
    {
        using var guest = new SimulatedGuest(native);
        guest.Load(a =>
        {
            a.mov(rbx, 0x8000_0000_0000_0000UL);
            a.mov(rax, __[rbx]);
        });
        VmExit exit = guest.Run();
        Assert.Equal(VmExitReason.PageFault, exit.Reason);
        Assert.False(PageWalker.IsCanonical(exit.Address));
    }

    [Fact]
    public void A_write_after_a_read_faults_again_so_that_the_dirty_bit_is_set()
    {
        using var guest = new SimulatedGuest(pageBits: 0);
        guest.RunToHalt(a => a.mov(rax, __[Data]));
        Assert.Equal(0UL, guest.Memory.Read<ulong>(SimulatedGuest.PteOf(Data)) & Pte.Dirty);
        guest.RunToHalt(a => a.mov(__[Data], rax));
        Assert.NotEqual(0UL, guest.Memory.Read<ulong>(SimulatedGuest.PteOf(Data)) & Pte.Dirty);
    }

    [Fact]
    public void Switching_the_address_space_drops_every_mapping_and_every_link()
    {
        using var guest = new SimulatedGuest(pageBits: 0);
        guest.Memory.Write(Data, 1UL);
        guest.Memory.Write(Data + 0x1000, 2UL);
        guest.RunToHalt(a => a.mov(rax, __[Data]));
        Assert.Equal(1UL, guest.Cpu.Rax);
        guest.Memory.Write(SimulatedGuest.PteOf(Data), (Data + 0x1000) | Pte.Present | Pte.Writable | Pte.User);
        guest.Cpu.Rip = Code;
        _ = guest.Run();
        Assert.Equal(1UL, guest.Cpu.Rax); // a stale translation is what a TLB gives
        guest.Engine.SwitchAddressSpace();
        long before = guest.HiddenFaults;
        guest.Cpu.Rip = Code;
        _ = guest.Run();
        Assert.Equal(2UL, guest.Cpu.Rax);
        Assert.Equal(before + 2, guest.HiddenFaults);
    }

    [Fact]
    public void A_large_page_is_mapped_as_a_whole()
    {
        using var guest = new SimulatedGuest();
        guest.RunToHalt(a =>
        {
            for (int i = 0; i < 100; i++)
            {
                a.mov(rax, __[Data + (ulong)(i * 4096)]);
            }
        });
        Assert.Equal(2, guest.HiddenFaults); // code, data
    }

    [Fact]
    public void A_kick_before_the_run_ends_it_at_once_and_only_once()
    {
        using var guest = new SimulatedGuest();
        guest.Load(a => a.hlt());
        guest.Engine.Kick();
        guest.Engine.Kick();
        Assert.Equal(VmExitReason.Interrupted, guest.Run().Reason);
        Assert.Equal(Code, guest.Cpu.Rip);
        Assert.Equal(VmExitReason.PrivilegedInstruction, guest.Run().Reason);
    }

    public static TheoryData<string, byte[]> Endless =>
        new()
        {
            { "jmp $", [0xEB, 0xFE] },
            { "a chain of blocks", [0x75, 0x00, 0x90, 0xEB, 0xFB] },
            { "call and ret", [0xE8, 0x02, 0, 0, 0, 0xEB, 0xF9, 0xC3] },
            { "rep stosb", [0xF3, 0xAA, 0xEB, 0xFC] },
        };

    [Theory]
    [MemberData(nameof(Endless))]
    public async Task A_kick_ends_code_that_never_would(string name, byte[] code)
    {
        Assert.NotEmpty(name);
        using var guest = new SimulatedGuest();
        guest.Memory.Write(Code, code);
        guest.Cpu[Gpr.Rcx] = 0x1F_0000; // REP STOSB stays within RAM; afterwards it loops with nothing to do
        guest.Cpu[Gpr.Rdi] = Data;

        using var started = new SemaphoreSlim(0);
        Task<VmExit> run = Task.Run(
            () =>
            {
                started.Release();
                return guest.Run();
            },
            TestContext.Current.CancellationToken
        );
        await started.WaitAsync(TestContext.Current.CancellationToken);
        guest.Engine.Kick();
        VmExit exit = await run;
        Assert.Equal(VmExitReason.Interrupted, exit.Reason);
    }

    [Fact]
    public void Kicking_a_disposed_engine_does_nothing()
    {
        var guest = new SimulatedGuest();
        guest.Dispose();
        guest.Engine.Kick();
        Assert.Equal(0UL, guest.Engine.Clock.Ticks);
    }

    [Fact]
    public void The_same_guest_takes_the_same_cycles_every_time()
    {
        static ulong Cycles()
        {
            using var guest = new SimulatedGuest(pageBits: 0);
            guest.RunToHalt(a =>
            {
                Label loop = a.CreateLabel();
                a.mov(rdi, Data);
                a.mov(edx, 300);
                a.Label(ref loop);
                a.mov(ecx, 50);
                a.rep.stosb();
                a.push(rdi);
                a.pop(rbx);
                a.dec(edx);
                a.jnz(loop);
            });
            return guest.Engine.Clock.Ticks;
        }

        Assert.Equal(Cycles(), Cycles());
    }

    [Fact]
    public void A_fault_in_the_middle_of_a_block_charges_what_was_executed_before()
    {
        using var guest = new SimulatedGuest(native: true);
        guest.Load(a =>
        {
            a.nop();
            a.nop();
            a.cmp(eax, 0);
            a.hlt();
        });
        ulong start = guest.Engine.Clock.Ticks;
        _ = guest.Run();
        Assert.Equal(3UL + 1500, guest.Engine.Clock.Ticks - start);
    }

    [Fact]
    public void Fused_instructions_cost_two()
    {
        using var guest = new SimulatedGuest(native: true);
        guest.Load(a =>
        {
            Label end = a.CreateLabel();
            a.cmp(eax, 0);
            a.je(end);
            a.Label(ref end);
            a.hlt();
        });
        _ = guest.Run();
        Assert.Equal(2UL + 1500, guest.Engine.Clock.Ticks);
    }

    [Fact]
    public void Enough_code_to_overflow_the_block_cache_still_runs()
    {
        using var guest = new SimulatedGuest(native: true);
        // every byte of 256 KiB starts a block of its own: NOPs entered one after the other
        guest.Memory.Write(0x40_0000, Enumerable.Repeat((byte)0x90, 0x4_0000).Append((byte)0xF4).ToArray());
        for (ulong at = 0x40_0000; at < 0x44_0000; at += 31)
        {
            guest.Cpu.Rip = at;
            guest.Cpu.Rax = at;
            Assert.Equal(VmExitReason.PrivilegedInstruction, guest.Run().Reason);
            Assert.Equal(0x44_0000UL, guest.Cpu.Rip);
            if (at > 0x40_0400)
            {
                at += 4096 - 31;
            }
        }
    }

    [Fact]
    public void A_full_block_cache_changes_neither_results_nor_cycles()
    {
        static (ulong Sum, ulong Flags, ulong Cycles, ulong Generation) Outcome(int arenaBytes)
        {
            using var guest = new SimulatedGuest(arenaBytes: arenaBytes);
            guest.RunToHalt(a =>
            {
                Label loop = a.CreateLabel();
                Label function = a.CreateLabel();
                Label end = a.CreateLabel();
                a.xor(eax, eax);
                a.mov(ebx, 40);
                a.Label(ref loop);
                for (int i = 0; i < 60; i++)
                {
                    // Direct and conditional branches both ways, calls, returns: every kind of link into what is dropped.
                    Label skip = a.CreateLabel();
                    a.add(rax, i + 3);
                    a.test(eax, 1 << (i % 8));
                    a.jnz(skip);
                    a.call(function);
                    a.Label(ref skip);
                    a.rol(rax, 5);
                }

                a.dec(ebx);
                a.jnz(loop);
                a.jmp(end);
                a.Label(ref function);
                a.imul(rax, rax, 0x2F);
                a.ret();
                a.Label(ref end);
                a.cmp(rax, rbx);
            });
            return (
                guest.Cpu.Rax,
                guest.Cpu.Rflags,
                guest.Engine.Clock.Ticks,
                ((SimulatedEngine)guest.Engine).Blocks.Generation
            );
        }

        (ulong sum, ulong flags, ulong cycles, ulong never) = Outcome(BlockCache.DefaultArenaBytes);
        Assert.Equal(0UL, never);
        foreach (int arenaBytes in (int[])[12_288, 14_000, 16_384, 20_000, 24_000])
        {
            (ulong s, ulong f, ulong c, ulong generation) = Outcome(arenaBytes);
            Assert.Equal((sum, flags, cycles), (s, f, c));
            Assert.True(generation > 10, $"{arenaBytes} bytes: only {generation} times full");
        }
    }

    [Fact]
    public void Kicks_cost_the_guest_no_cycles()
    {
        static ulong Cycles(bool kicked)
        {
            using var guest = new SimulatedGuest();
            guest.Load(a =>
            {
                for (int i = 0; i < 5; i++)
                {
                    a.mov(edi, (uint)Data);
                    a.mov(ecx, 100);
                    a.rep.stosb();
                    a.cli();
                }

                a.hlt();
            });
            for (; ; )
            {
                for (int i = 0; kicked && i < 3; i++)
                {
                    guest.Engine.Kick();
                    Assert.Equal(VmExitReason.Interrupted, guest.Run().Reason);
                    guest.Engine.Clock.ChargeEmulation(TrapReason.Kick);
                }

                Assert.Equal(VmExitReason.PrivilegedInstruction, guest.Run().Reason);
                guest.Engine.Clock.ChargeEmulation(TrapReason.InterruptFlag);
                if (guest.Memory.Read<byte>(guest.Cpu.Rip++) == 0xF4)
                {
                    return guest.Engine.Clock.Ticks;
                }
            }
        }

        Assert.Equal(Cycles(kicked: false), Cycles(kicked: true));
    }

    [Fact]
    public async Task Kicks_at_any_moment_change_neither_results_nor_cycles()
    {
        static void Load(SimulatedGuest guest) =>
            guest.Load(a =>
            {
                Label loop = a.CreateLabel();
                a.xor(eax, eax);
                a.mov(ebx, 2000);
                a.Label(ref loop);
                a.mov(edi, (uint)Data);
                a.mov(ecx, 500);
                a.rep.stosb();
                a.adc(rax, rbx);
                a.rol(rax, 7);
                a.dec(ebx);
                a.jnz(loop);
                a.hlt();
            });

        static void RunOn(SimulatedGuest guest)
        {
            while (guest.Run().Reason == VmExitReason.Interrupted)
            {
                guest.Engine.Clock.ChargeEmulation(TrapReason.Kick);
            }
        }

        using var quiet = new SimulatedGuest();
        Load(quiet);
        RunOn(quiet);
        using var kicked = new SimulatedGuest();
        Load(kicked);
        bool done = false;
        Task kicks = Task.Run(
            () =>
            {
                while (!Volatile.Read(ref done))
                {
                    kicked.Engine.Kick();
                }
            },
            TestContext.Current.CancellationToken
        );
        RunOn(kicked);
        Volatile.Write(ref done, true);
        await kicks;
        Assert.Equal(quiet.Cpu.Rax, kicked.Cpu.Rax);
        Assert.Equal(quiet.Cpu.Rflags, kicked.Cpu.Rflags);
        Assert.Equal(quiet.Engine.Clock.Ticks, kicked.Engine.Clock.Ticks);
    }

    [Fact]
    public void An_instruction_that_crosses_into_its_own_page_again_can_change_at_both_ends()
    {
        using var guest = new SimulatedGuest(pageBits: 0);
        // Both linear pages are one physical page, so the immediate's upper half lies at the page's start.
        const ulong page = Code + 0x1000;
        guest.Memory.Write(SimulatedGuest.PteOf(page + 0x1000), page | Pte.Present | Pte.Writable | Pte.User);
        const ulong at = page + 0xFFD;
        guest.Memory.Write(at, [0xB8, 0x44, 0x33]);
        guest.Memory.Write(page, [0x22, 0x11, 0xF4]);
        foreach (ulong written in (ulong[])[page + 1, at + 1, page])
        {
            guest.Cpu.Rip = at;
            _ = guest.Run();
            Assert.Equal(Expected(), guest.Cpu.Rax);
            guest.Memory.Write(written, (byte)0x99);
            guest.Cpu.Rip = at;
            _ = guest.Run();
            Assert.Equal(Expected(), guest.Cpu.Rax);
        }

        ulong Expected() => guest.Memory.Read<ushort>(at + 1) | ((ulong)guest.Memory.Read<ushort>(page) << 16);
    }

    private static readonly Action<Assembler>[] WaysToLeave =
    [
        a => a.mov(rax, __[r13]),
        a => a.mov(__[r13], rax),
        a => a.xadd(__[r13], rax),
        a => a.div(r12),
        a => a.idiv(r12d),
        a => a.push(__qword_ptr[r13]),
        a => a.movaps(xmm0, __[r11 + 1]),
        a => a.cmpxchg16b(__[r11 + 8]),
        a => a.rep.movsb(),
        a => a.popfq(),
        a => a.ldmxcsr(__[r13]),
        a => a.ud2(),
        a => a.@int(0x80),
        a => a.mov(ss, r12w),
        a => a.syscall(),
        a => a.jmp(__qword_ptr[r13]),
        a => a.call(__qword_ptr[r13]),
        a => a.leave(),
    ];

    private static readonly Action<Assembler>[] FlagWriters =
    [
        a => a.add(rax, rbx),
        a => a.sub(eax, 77),
        a => a.xor(rbx, rax),
        a => a.and(ebx, 0x55AA),
        a => a.or(rbx, -3),
        a => a.shl(rax, 3),
        a => a.shr(ebx, 5),
        a => a.rol(rax, 9),
        a => a.ror(ebx, 1),
        a => a.inc(rbx),
        a => a.dec(ax),
        a => a.neg(rbx),
        a => a.adc(rax, rbx),
        a => a.sbb(ebx, eax),
        a => a.imul(rbx, rax),
        a => a.cmp(rax, rbx),
        a => a.test(al, bl),
        a => a.cmc(),
        a => a.bt(rax, 17),
        a => a.lea(rbx, __[rax + rbx * 2]),
    ];

    /// <summary>Flags that a later instruction of the block overwrites must be there all the same when it is left before.</summary>
    [Fact]
    public void Flags_are_whole_at_every_way_out_of_the_middle_of_a_block()
    {
        var random = new Random(11);
        using var guest = new SimulatedGuest();
        for (int way = 0; way < WaysToLeave.Length; way++)
        {
            for (int n = 0; n < 60; n++)
            {
                int[] before = [.. Enumerable.Range(0, 6).Select(_ => random.Next(FlagWriters.Length))];
                ulong rax = (ulong)random.NextInt64();
                ulong expected = FlagsAfter(before, null, rax);
                ulong actual = FlagsAfter(before, WaysToLeave[way], rax);
                Assert.True(
                    expected == actual,
                    $"way {way} after {string.Join(',', before)}: {actual:X}, not {expected:X}"
                );
            }
        }

        ulong FlagsAfter(int[] before, Action<Assembler>? leave, ulong rax)
        {
            guest.Load(a =>
            {
                foreach (int writer in before)
                {
                    FlagWriters[writer](a);
                }

                leave?.Invoke(a);
                a.xor(edx, edx);
                a.add(rdx, 1);
                a.hlt();
            });
            if (leave is null)
            {
                // The same block, cut by an exit that nothing can hide.
                guest.Load(a =>
                {
                    foreach (int writer in before)
                    {
                        FlagWriters[writer](a);
                    }

                    a.hlt();
                });
            }

            guest.Cpu.Rip = Code;
            guest.Cpu.Rax = rax;
            guest.Cpu[Gpr.Rbx] = rax * 0x9E37_79B9_7F4A_7C15;
            guest.Cpu[Gpr.Rcx] = 1;
            guest.Cpu[Gpr.Rdx] = 7;
            guest.Cpu[12] = 0;
            guest.Cpu[11] = Data;
            guest.Cpu[13] = guest.Cpu[Gpr.Rsi] = guest.Cpu[Gpr.Rdi] = guest.Cpu[Gpr.Rbp] = 1UL << 40;
            guest.Cpu.Rsp = 1UL << 40;
            guest.Cpu.Rflags = Rflags.AlwaysSet | Rflags.Cf | Rflags.Of | Rflags.Zf | Rflags.Af;
            Assert.NotEqual(VmExitReason.Failed, guest.Run().Reason);
            Assert.NotEqual(1UL, guest.Cpu[Gpr.Rdx]);
            return guest.Cpu.Rflags;
        }
    }

    [Fact]
    public void Compare_and_exchange_leaves_an_unequal_32_bit_destination_whole()
    {
        using var guest = new SimulatedGuest();
        guest.RunToHalt(a =>
        {
            a.mov(rbx, 0xDEAD_BEEF_1234_5678UL);
            a.mov(rax, 0x1111_1111_2222_2222UL);
            a.cmpxchg(ebx, ecx);
        });
        Assert.Equal(0xDEAD_BEEF_1234_5678UL, guest.Cpu[Gpr.Rbx]);
        Assert.Equal(0x1234_5678UL, guest.Cpu.Rax);
    }

    [Fact]
    public void Cmpxchg8b_changes_no_flag_but_zero()
    {
        using var guest = new SimulatedGuest();
        guest.Memory.Write(Data, 5UL);
        guest.RunToHalt(a =>
        {
            a.xor(edx, edx);
            a.mov(eax, -1);
            a.add(eax, eax); // CF, SF, AF
            a.mov(eax, 5);
            a.cmpxchg8b(__qword_ptr[Data]);
        });
        const ulong flags = Rflags.Cf | Rflags.Sf | Rflags.Af | Rflags.Zf;
        Assert.Equal(flags, guest.Cpu.Rflags & (flags | Rflags.Of));
    }

    [Fact]
    public void Bsf_of_zero_leaves_the_whole_destination()
    {
        using var guest = new SimulatedGuest();
        guest.RunToHalt(a =>
        {
            a.mov(rbx, 0xDEAD_BEEF_1234_5678UL);
            a.xor(ecx, ecx);
            a.bsf(ebx, ecx);
        });
        Assert.Equal(0xDEAD_BEEF_1234_5678UL, guest.Cpu[Gpr.Rbx]);
        Assert.NotEqual(0UL, guest.Cpu.Rflags & Rflags.Zf);
    }

    [Fact]
    public void Enter_with_levels_builds_the_display()
    {
        using var guest = new SimulatedGuest();
        guest.RunToHalt(a =>
        {
            a.mov(rbp, SimulatedGuest.StackTop - 0x100);
            a.mov(__qword_ptr[rbp - 8], 0x77);
            a.enter(32, 2);
        });
        ulong frame = SimulatedGuest.StackTop - 8;
        Assert.Equal(frame, guest.Cpu[Gpr.Rbp]);
        Assert.Equal(frame - 16 - 32, guest.Cpu.Rsp);
        Assert.Equal(SimulatedGuest.StackTop - 0x100, guest.Memory.Read<ulong>(frame));
        Assert.Equal(0x77UL, guest.Memory.Read<ulong>(frame - 8));
        Assert.Equal(frame, guest.Memory.Read<ulong>(frame - 16));
    }
}
