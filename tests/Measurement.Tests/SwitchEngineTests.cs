using System.Text;
using Iced.Intel;
using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;
using VirtBench.Workloads;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Measurement.Tests;

/// <summary>
/// Guests that go on under another strategy again and again, at exits and in the midst of their code, and come to the same end.
/// </summary>
public sealed class SwitchEngineTests
{
    private const ulong RamBytes = 8 << 20;
    private const int Rounds = 60; // after so many the guest ends under the strategy that it has

    private static readonly TimeSpan Ample = TimeSpan.FromMinutes(2);

    /// <summary>Every ordered pair of two strategies, and each with itself.</summary>
    public static TheoryData<string, string> Pairs
    {
        get
        {
            string[] ids = [.. StrategiesUnderTest.All];
            var pairs = new TheoryData<string, string>();
            foreach (string first in ids)
            {
                foreach (string second in ids)
                {
                    pairs.Add(first, second);
                }
            }

            return pairs;
        }
    }

    [Theory]
    [MemberData(nameof(Pairs))]
    public void Every_workload_that_both_run_faithfully_comes_to_the_same_end(string first, string second)
    {
        Strategy[] strategies = [StrategiesUnderTest.Get(first), StrategiesUnderTest.Get(second)];
        EngineCapabilities[] capabilities = [.. strategies.Select(CapabilitiesOf)];
        int workloads = 0;
        foreach (Workload workload in WorkloadCatalog.All)
        {
            bool runs =
                (!workload.NeedsPrivilege || strategies.All(strategy => strategy.RunsPrivilegedGuests))
                && !(workload.NeedsVectorUnit && strategies.Any(strategy => strategy.EmulatesRingZero));
            if (!runs || capabilities.Any(one => workload.HolesUnder(GuestInterface.Native, one).Any()))
            {
                continue;
            }

            GuestImage image = Build(workload, busy: false);
            workloads++;
            Final expected = Run(strategies[0], image, Options(workload, busy: false));
            foreach (int every in (int[])[1, 7, 23])
            {
                Final switched = RunSwitched(strategies, every, image, Options(workload, busy: false));
                Assert.Equal((workload.Id, every, expected), (workload.Id, every, switched with { Switches = 0 }));
            }
        }

        Assert.True(workloads >= 2);
    }

    /// <summary>Stopped by the clock, wherever the guest is then: mostly between two instructions that do not exit.</summary>
    [Theory]
    [MemberData(nameof(Pairs))]
    public void A_busy_guest_is_switched_in_the_midst_of_its_code(string first, string second)
    {
        Strategy[] strategies = [StrategiesUnderTest.Get(first), StrategiesUnderTest.Get(second)];
        bool privileged = strategies.All(strategy => strategy.RunsPrivilegedGuests);
        foreach (string id in privileged ? (string[])["self-modifying", "mini-os"] : ["self-modifying"])
        {
            Workload workload = WorkloadCatalog.Find(id)!;
            GuestImage image = Build(workload, busy: true);
            bool emulated = strategies.Any(strategy => strategy.IsSimulated || strategy.EmulatesRingZero);
            BootOptions options = Options(workload, busy: true, emulated);
            Final expected = Run(strategies[0], image, options);
            Final switched = RunSwitched(strategies, every: null, image, options);
            Assert.Equal((id, expected), (id, switched with { Switches = 0 }));
        }
    }

    /// <summary>
    /// A guest that exits by itself only when it has been switched often enough: it counts in registers of all kinds and compares
    /// them, so that one of them that is lost or old ends it with another status.
    /// </summary>
    [Theory]
    [MemberData(nameof(Pairs))]
    public void Registers_of_all_kinds_and_flags_are_kept_between_any_two_instructions(string first, string second)
    {
        const ulong code = 0x10_0000;
        const ulong told = 0x20_0000;
        const int switches = 40;
        Strategy[] strategies = [StrategiesUnderTest.Get(first), StrategiesUnderTest.Get(second)];
        var image = new GuestImage("counters", code, [new ImageSegment(code, Counters(code, told), 0x1000, true)]);
        using var machine = new VirtualMachine(RamBytes, strategies[0].CreateEngine);
        machine.Load(image, new BootOptions());
        for (int i = 0; i < switches; i++)
        {
            Assert.Equal(
                RunEnd.TimedOut,
                machine.Run(TimeSpan.FromMicroseconds(100 * (i % 9)), TestContext.Current.CancellationToken).End
            );
            machine.SwitchEngine(strategies[(i + 1) % 2].CreateEngine);
        }

        machine.Memory.Write(told, 1UL);
        Assert.Equal(new RunOutcome(RunEnd.Exited, 0, null), machine.Run(Ample, TestContext.Current.CancellationToken));
    }

    private static ulong Pattern(int vector) => 0x0123_4567_89AB_CDEF * (ulong)(vector + 1);

    /// <summary>Clobbers everything; ends with status 0 when it is told to, with 1 when registers do not agree.</summary>
    private static byte[] Counters(ulong at, ulong told)
    {
        var a = new Assembler(64);
        AssemblerRegister64[] registers = [rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14];
        AssemblerRegisterXMM[] vectors = [xmm0, xmm1, xmm7, xmm8, xmm15];
        Label again = a.CreateLabel();
        Label wrong = a.CreateLabel();
        Label end = a.CreateLabel();
        foreach (AssemblerRegister64 register in registers)
        {
            a.xor(register, register);
        }

        // Moves only: what emulates ring 0 on some hosts knows no other instruction with a vector register.
        a.mov(r15, told);
        for (int i = 0; i < vectors.Length; i++)
        {
            a.mov(rax, Pattern(i));
            a.mov(__qword_ptr[r15 + 16], rax);
            a.not(rax);
            a.mov(__qword_ptr[r15 + 24], rax);
            a.movdqu(vectors[i], __xmmword_ptr[r15 + 16]);
        }

        a.xor(eax, eax);
        a.Label(ref again);
        foreach (AssemblerRegister64 register in registers)
        {
            a.inc(register);
        }

        for (int i = 0; i < vectors.Length; i++)
        {
            a.movdqu(__xmmword_ptr[r15 + 32], vectors[i]);
            a.mov(r14, Pattern(i));
            a.cmp(r14, __qword_ptr[r15 + 32]);
            a.jne(wrong);
            a.not(r14);
            a.cmp(r14, __qword_ptr[r15 + 40]);
            a.jne(wrong);
        }

        a.stc();
        a.mov(r14, rax);
        a.jnc(wrong);
        foreach (AssemblerRegister64 register in registers)
        {
            a.cmp(register, rax);
            a.jne(wrong);
        }

        a.push(rax);
        a.cmp(rax, __qword_ptr[rsp]);
        a.lea(rsp, rsp + 8);
        a.jne(wrong);
        a.cmp(__qword_ptr[r15], 0);
        a.je(again);
        a.mov(al, 0);
        a.jmp(end);
        a.Label(ref wrong);
        a.mov(al, 1);
        a.Label(ref end);
        a.@out(0xF4, al);
        using var stream = new MemoryStream();
        a.Assemble(new StreamCodeWriter(stream), at);
        return stream.ToArray();
    }

    /// <summary>Once around all of them: what one leaves in the core the next can use.</summary>
    [Theory]
    [InlineData("timer-interrupt")]
    [InlineData("mini-os")]
    [InlineData("page-fault")]
    public void A_guest_goes_round_all_strategies(string id)
    {
        Workload workload = WorkloadCatalog.Find(id)!;
        Strategy[] strategies =
        [
            .. StrategiesUnderTest
                .Available()
                .Where(strategy => strategy.RunsPrivilegedGuests || !workload.NeedsPrivilege),
        ];
        GuestImage image = Build(workload, busy: false);
        Final expected = Run(strategies[0], image, Options(workload, busy: false));
        Final switched = RunSwitched(strategies, 1, image, Options(workload, busy: false));
        Assert.Equal(expected, switched with { Switches = 0 });
        Assert.True(switched.Switches >= strategies.Length);
    }

    /// <summary>Pages come from elsewhere while strategies come and go.</summary>
    [Theory]
    [MemberData(nameof(Pairs))]
    public void A_guest_whose_memory_is_elsewhere_is_switched_too(string first, string second)
    {
        Strategy[] strategies = [StrategiesUnderTest.Get(first), StrategiesUnderTest.Get(second)];
        bool privileged = strategies.All(strategy => strategy.RunsPrivilegedGuests);
        Workload workload = WorkloadCatalog.Find(privileged ? "mini-os" : "self-modifying")!;
        GuestImage image = Build(workload, busy: false);
        Final expected = Run(strategies[0], image, Options(workload, busy: false));
        using var source = new VirtualMachine(RamBytes, strategies[0].CreateEngine);
        source.Load(image, Options(workload, busy: false));
        try
        {
            Final switched = RunSwitched(strategies, 5, image, Options(workload, busy: false), source);
            Assert.Equal(expected, switched with { Switches = 0 });
        }
        catch (PlatformNotSupportedException unable)
        {
            Assert.Skip(unable.Message);
        }
    }

    private sealed record Final(RunOutcome Outcome, string Console, ulong Checksum, int Switches);

    private static EngineCapabilities CapabilitiesOf(Strategy strategy)
    {
        using var machine = new VirtualMachine(1 << 20, strategy.CreateEngine);
        return machine.Capabilities;
    }

    private static BootOptions Options(Workload workload, bool busy, bool emulated = false) =>
        new()
        {
            Parameters =
                workload is MiniOs ? [2, busy ? 200UL : 8UL, 1000, 1]
                : busy ? [1, emulated ? 2_000UL : 60_000UL]
                : [1, 2],
        };

    private static GuestImage Build(Workload workload, bool busy)
    {
        int filler = workload switch
        {
            SlottedWorkload slotted => slotted.MinimumFiller,
            MiniOs => MiniOs.MinimumFiller,
            _ => workload.DefaultFiller,
        };
        return workload.Build(
            new WorkloadOptions(Math.Min(3, workload.MaximumTrapsPerUnit), busy ? 3 * filler : filler)
        );
    }

    private static Final Run(Strategy strategy, GuestImage image, BootOptions options)
    {
        using var machine = new VirtualMachine(RamBytes, strategy.CreateEngine);
        var console = new List<byte>();
        machine.Serial.Transmitted = console.Add;
        machine.Load(image, options);
        RunOutcome outcome = machine.Run(Ample, TestContext.Current.CancellationToken);
        Assert.Equal(RunEnd.Exited, outcome.End);
        return End(machine, outcome, console, 0);
    }

    private static Final RunSwitched(
        Strategy[] strategies,
        int? every,
        GuestImage image,
        BootOptions options,
        VirtualMachine? memorySource = null
    )
    {
        CancellationTokenSource stop = new();
        EngineFactory Factory(int number)
        {
            Strategy strategy = strategies[number % strategies.Length];
            return every is { } entries
                ? (cpu, memory) => new SwitchedEngine(strategy.CreateEngine(cpu, memory), entries, () => stop.Cancel())
                : strategy.CreateEngine;
        }

        using var machine = new VirtualMachine(RamBytes, Factory(0));
        var console = new List<byte>();
        machine.Serial.Transmitted = console.Add;
        if (memorySource is null)
        {
            machine.Load(image, options);
        }
        else
        {
            machine.AttachPager(
                new DeferredPager(
                    machine.Memory,
                    (frame, page) => memorySource.Memory.Read(frame * GuestMemory.PageSize, page)
                )
            );
            machine.Cpu.CopyFrom(memorySource.Cpu);
            machine.SwitchEngine(Factory(0));
        }

        int switches = 0;
        while (switches < Rounds)
        {
            RunOutcome outcome = machine.Run(every is null ? TimeSpan.FromMilliseconds(1) : Ample, stop.Token);
            if (outcome.End is not (RunEnd.Cancelled or RunEnd.TimedOut))
            {
                return End(machine, outcome, console, switches);
            }

            TestContext.Current.CancellationToken.ThrowIfCancellationRequested();
            stop.Dispose();
            stop = new CancellationTokenSource();
            machine.SwitchEngine(Factory(++switches));
        }

        machine.SwitchEngine(strategies[switches % strategies.Length].CreateEngine);
        RunOutcome end = machine.Run(Ample, TestContext.Current.CancellationToken);
        stop.Dispose();
        return End(machine, end, console, switches);
    }

    // Which of its processes prints first is the timer's to say.
    private static Final End(VirtualMachine machine, RunOutcome outcome, List<byte> console, int switches) =>
        new(
            outcome,
            string.Join('\n', Encoding.ASCII.GetString([.. console]).Split('\n').Order(StringComparer.Ordinal)),
            WorkloadResult.Read(machine.Memory).Checksum,
            switches
        );
}
