using Iced.Intel;
using VirtBench.Strategies.BinaryTranslation;
using VirtBench.Strategies.Carrier;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;
using static VirtBench.Strategies.Tests.Translated.BehaviourGuest;

namespace VirtBench.Strategies.Tests.Translated;

/// <summary>The code cache when it is full, and what a guest can do to it.</summary>
public sealed class CodeCacheTests
{
    private const string Translation = "binary-translation";
    private const int ReadableOffset = 0x4000; // behind the table at its start

    [Theory]
    [InlineData(0)]
    [InlineData(3)]
    public void A_guest_with_more_code_than_the_cache_holds_goes_on(int ring)
    {
        const int jumps = 40_000; // each is a block with two exits
        const int rounds = 3;
        using var guest = new BehaviourGuest(
            new BinaryTranslationStrategy { CodeCacheSize = 1 << 20 },
            ring,
            a => a.nop()
        );
        const ulong code = Spare;
        guest.Write(
            code,
            a =>
            {
                Label again = a.CreateLabel();
                a.xor(ebx, ebx);
                a.mov(r12d, rounds);
                a.Label(ref again);
                for (int i = 0; i < jumps; i++)
                {
                    Label next = a.CreateLabel();
                    a.add(rbx, i);
                    a.jmp(next);
                    a.int3();
                    a.Label(ref next);
                }

                a.dec(r12d);
                a.jnz(again);
                a.mov(ResultSlot(0), rbx);
                a.End();
            }
        );
        guest.Machine.Cpu.Rip = code;
        Assert.Equal(0, guest.Run());
        Assert.Equal((ulong)rounds * jumps * (jumps - 1) / 2, guest.Result(0));
        TranslationStatistics done = guest.Machine.TranslationStatistics()!;
        Assert.True(done.Flushes >= rounds, $"{done}");
        Assert.True(done.Blocks >= rounds * jumps, $"{done}");
    }

    [Theory]
    [InlineData(0)]
    [InlineData(3)]
    public void A_jump_into_the_cache_is_a_fault_of_the_fetch(int ring)
    {
        const ulong target = CarrierLayout.CodeCache + ReadableOffset;
        using var guest = new BehaviourGuest(Translation, ring, a => a.nop());
        guest.Write(
            Start,
            a =>
            {
                Label behind = a.CreateLabel();
                a.lea(rax, __[behind]);
                a.mov(__qword_ptr[Resume], rax);
                a.mov(rax, target);
                a.jmp(rax);
                a.Label(ref behind);
                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        GuestException one = Assert.Single(guest.Exceptions);
        Assert.Equal((14UL, target, target), (one.Vector, one.Rip, one.Cr2));
    }

    [Fact]
    public void What_a_guest_reads_in_the_cache_changes_nothing()
    {
        using var guest = new BehaviourGuest(
            Translation,
            0,
            a =>
            {
                a.mov(rax, CarrierLayout.CodeCache + ReadableOffset);
                a.mov(rbx, __qword_ptr[rax]);
                a.mov(ecx, 5);
                a.mov(ResultSlot(0), rcx);
                a.End();
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal(5UL, guest.Result(0));
    }

    public static TheoryData<int, ulong> ControlWords
    {
        get
        {
            var all = new TheoryData<int, ulong>();
            for (int offset = 0; offset < 0x300; offset += 8)
            {
                all.Add(offset, ulong.MaxValue);
                all.Add(offset, 1);
            }

            return all;
        }
    }

    // The handshake words too. A guest may end itself in any way, but only itself, and in time.
    [Theory]
    [MemberData(nameof(ControlWords))]
    public void A_guest_that_overwrites_the_control_page_harms_itself_only(int offset, ulong value)
    {
        using var guest = new BehaviourGuest(
            Translation,
            0,
            a =>
            {
                Label again = a.CreateLabel();
                Label function = a.CreateLabel();
                a.mov(r8, CarrierLayout.Control + (ulong)offset);
                a.mov(r9, value);
                a.mov(r14d, 20);
                a.Label(ref again);
                a.mov(__qword_ptr[r8], r9);
                a.call(function);
                a.pushfq();
                a.popfq();
                a.mov(__qword_ptr[r8], r9);
                a.@in(al, 0x80);
                a.dec(r14d);
                a.jnz(again);
                a.End();
                a.Label(ref function);
                a.ret();
            }
        );
        RunOutcome outcome = guest.Machine.Run(TimeSpan.FromSeconds(2), TestContext.Current.CancellationToken);
        Assert.Contains(outcome.End, (RunEnd[])[RunEnd.Exited, RunEnd.Failed, RunEnd.TimedOut]);
        Assert.Equal(0UL, guest.Machine.Cpu.Rflags & (Rflags.Iopl | Rflags.Vm));
        using var other = new BehaviourGuest(Translation, 0, a => a.End());
        Assert.Equal(0, other.Run());
    }

    [Theory]
    [InlineData(0)]
    [InlineData(3)]
    public void Every_indirect_branch_has_hit_or_missed_where_that_is_counted(int ring)
    {
        const int calls = 1000;
        const int functions = 6; // more than a chain has room for
        using var guest = new BehaviourGuest(
            new BinaryTranslationStrategy { CountsLookups = true },
            ring,
            a =>
            {
                Label again = a.CreateLabel();
                Label[] targets = [.. Enumerable.Range(0, functions).Select(_ => a.CreateLabel())];
                a.mov(r12d, calls);
                a.xor(ebx, ebx);
                a.Label(ref again);
                foreach (ref Label target in targets.AsSpan())
                {
                    a.lea(rax, __[target]);
                    a.call(rax);
                }

                a.dec(r12d);
                a.jnz(again);
                a.mov(ResultSlot(0), rbx);
                a.End();
                for (int i = 0; i < functions; i++)
                {
                    a.Label(ref targets[i]);
                    a.add(rbx, i);
                    a.ret();
                }
            }
        );
        Assert.Equal(0, guest.Run());
        Assert.Equal((ulong)calls * functions * (functions - 1) / 2, guest.Result(0));
        TranslationStatistics done = guest.Machine.TranslationStatistics()!;
        Assert.Equal(2L * calls * functions, done.LookupHits + done.LookupMisses);
        Assert.InRange(done.LookupMisses, 2 * functions, 100);
    }

    [Theory]
    [InlineData((1 << 20) - 4096)]
    [InlineData((64 << 20) + 4096)]
    [InlineData((1 << 20) + 1)]
    public void A_size_that_no_cache_can_have_is_refused(int bytes) =>
        Assert.Throws<ArgumentOutOfRangeException>(() => new BinaryTranslationStrategy { CodeCacheSize = bytes });
}
