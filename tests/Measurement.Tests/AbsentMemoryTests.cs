using System.Text;
using Microsoft.Win32.SafeHandles;
using VirtBench.Strategies;
using VirtBench.Tests;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using VirtBench.Workloads;

namespace VirtBench.Measurement.Tests;

/// <summary>Whole guests on a host that does not have all of their memory.</summary>
public sealed class AbsentMemoryTests
{
    private const ulong RamBytes = 8 << 20;
    private const string Deterministic = "simulated-trap-and-emulate";

    /// <summary>Runs that one workload may take; of more accesses than this an even sample is faulted, and the output says so.</summary>
    private const long MostRuns = 1200;

    public static TheoryData<string> Workloads => [.. WorkloadCatalog.All.Select(workload => workload.Id)];

    public static TheoryData<string, string> StrategiesAndWorkloads
    {
        get
        {
            var all = new TheoryData<string, string>();
            foreach (Strategy strategy in StrategyCatalog.All)
            {
                foreach (Workload workload in WorkloadCatalog.All)
                {
                    if (SweepPlan.WhyNotUnder(strategy, workload) is null)
                    {
                        all.Add(strategy.Id, workload.Id);
                    }
                }
            }

            return all;
        }
    }

    /// <summary>Every host access of every emulation and event delivery of a run, one fault a run.</summary>
    [Theory]
    [MemberData(nameof(Workloads))]
    public void A_fault_of_the_host_at_any_access_leaves_the_run_as_it_is(string workload)
    {
        Strategy strategy = StrategiesUnderTest.Get(Deterministic);
        GuestImage image = Build(workload);
        Final undisturbed = Run(strategy, image, null);
        Assert.Equal(RunEnd.Exited, undisturbed.Outcome.End);
        var counting = new TransientPager();
        AssertSame(undisturbed, Run(strategy, image, counting), "no fault");
        long accesses = counting.Touches;
        Assert.True(accesses > 0);

        long runs = Math.Min(accesses, MostRuns);
        TestContext.Current.TestOutputHelper?.WriteLine($"{workload}: {accesses} accesses, {runs} of them faulted");
        for (long run = 0; run < runs; run++)
        {
            long at = run * accesses / runs;
            var pager = new TransientPager { RefuseAt = at };
            AssertSame(undisturbed, Run(strategy, image, pager), $"a fault at access {at} of {accesses}");
            Assert.Equal(1, pager.Fetches);
        }
    }

    /// <summary>The same on a real CPU, where times differ from run to run: a few accesses of each run, and what it computes.</summary>
    [Theory]
    [MemberData(nameof(Workloads))]
    public void A_fault_of_the_host_leaves_what_a_real_cpu_computes_as_it_is(string workload)
    {
        const long runs = 8;
        Strategy strategy = StrategiesUnderTest.Get("trap-and-emulate");
        GuestImage image = Build(workload);
        var counting = new TransientPager();
        Final undisturbed = Run(strategy, image, counting);
        Assert.Equal(RunEnd.Exited, undisturbed.Outcome.End);
        for (long run = 0; run < runs; run++)
        {
            var pager = new TransientPager { RefuseAt = run * counting.Touches / runs };
            Final disturbed = Run(strategy, image, pager);
            Assert.Equal(
                (undisturbed.Outcome, Lines(undisturbed.Console), undisturbed.Checksum),
                (disturbed.Outcome, Lines(disturbed.Console), disturbed.Checksum)
            );
        }
    }

    /// <summary>
    /// All that a guest has, its code and page tables too, is elsewhere when it begins to run, and comes when it is asked for.
    /// </summary>
    [Theory]
    [MemberData(nameof(StrategiesAndWorkloads))]
    public void A_guest_without_any_page_gets_to_the_same_end(string strategyId, string workload)
    {
        Strategy strategy = StrategyCatalog.All.Single(strategy => strategy.Id == strategyId);
        Assert.SkipWhen(strategy.UnavailableReason() is not null, strategy.UnavailableReason() ?? "");
        GuestImage image = Build(workload);
        using var source = new VirtualMachine(RamBytes, strategy.CreateEngine);
        source.Load(image, Options);
        Final expected = Run(strategy, image, null);

        IExecutionEngine engine = null!;
        using var machine = new VirtualMachine(RamBytes, (cpu, memory) => engine = strategy.CreateEngine(cpu, memory));
        var pager = new DeferredPager(
            machine.Memory,
            (frame, page) => source.Memory.Read(frame * GuestMemory.PageSize, page)
        );
        try
        {
            machine.AttachPager(pager);
        }
        catch (PlatformNotSupportedException unable)
        {
            Assert.Skip(unable.Message);
        }

        if (image.Disk is { } disk)
        {
            machine.AttachDisk(disk.Create());
        }

        machine.Cpu.CopyFrom(source.Cpu);
        engine.LoadLazyState();
        engine.SwitchAddressSpace();
        var console = new List<byte>();
        machine.Serial.Transmitted = console.Add;
        RunOutcome outcome = machine.Run(TimeSpan.FromMinutes(2), TestContext.Current.CancellationToken);

        Assert.Equal(expected.Outcome, outcome);
        Assert.Equal(Lines(expected.Console), Lines(Encoding.ASCII.GetString([.. console])));
        Assert.True(pager.Fetched > 0);
        Assert.True(pager.Absent > 0);
        Assert.Equal(expected.Checksum, WorkloadResult.Read(machine.Memory).Checksum);
    }

    private static BootOptions Options => new() { Parameters = [0, 1] };

    private static GuestImage Build(string id)
    {
        Workload workload = WorkloadCatalog.Find(id)!;
        int filler = workload switch
        {
            SlottedWorkload slotted => slotted.MinimumFiller,
            MiniOs => MiniOs.MinimumFiller,
            _ => workload.DefaultFiller,
        };
        return workload.Build(new WorkloadOptions(Math.Min(2, workload.MaximumTrapsPerUnit), filler));
    }

    private sealed record Final(
        RunOutcome Outcome,
        string Console,
        string Cpu,
        string Devices,
        string Ledger,
        ulong Ticks,
        ulong Checksum,
        byte[] Memory
    );

    private static Final Run(Strategy strategy, GuestImage image, IGuestPager? pager)
    {
        using var machine = new VirtualMachine(RamBytes, strategy.CreateEngine);
        if (pager is not null)
        {
            machine.AttachPager(pager);
        }

        var console = new List<byte>();
        machine.Serial.Transmitted = console.Add;
        machine.Load(image, Options);
        RunOutcome outcome = machine.Run(TimeSpan.FromMinutes(2), TestContext.Current.CancellationToken);
        return new Final(
            outcome,
            Encoding.ASCII.GetString([.. console]),
            StateDump.Of(machine.Cpu),
            StateDump.OfDevice(machine.Serial)
                + StateDump.OfDevice(machine.Interrupts)
                + StateDump.OfDevice(machine.Timer)
                + $"\n{machine.Ports.UnclaimedAccesses} {machine.AbsentMemory.UnclaimedAccesses}",
            string.Join(' ', machine.Ledger.Snapshot().Counts),
            machine.Clock.Ticks,
            WorkloadResult.Read(machine.Memory).Checksum,
            Content(machine.Memory)
        );
    }

    // Through the file where there is one: reading a mapping would fill the holes of RAM.
    private static byte[] Content(GuestMemory memory)
    {
        byte[] content = GC.AllocateUninitializedArray<byte>((int)memory.Size);
        if (memory.FileDescriptor < 0)
        {
            memory.Read(0, content);
            return content;
        }

        using var file = new SafeFileHandle(memory.FileDescriptor, ownsHandle: false);
        Assert.Equal(content.Length, RandomAccess.Read(file, content, 0));
        return content;
    }

    // Which of its processes prints first is the timer's to say, on a real CPU.
    private static string Lines(string console) => string.Join('\n', console.Split('\n').Order(StringComparer.Ordinal));

    private static void AssertSame(Final expected, Final actual, string when)
    {
        Assert.Equal((expected.Outcome, when), (actual.Outcome, when));
        Assert.Equal((expected.Cpu, when), (actual.Cpu, when));
        Assert.Equal((expected.Devices, when), (actual.Devices, when));
        Assert.Equal((expected.Console, when), (actual.Console, when));
        Assert.Equal((expected.Ledger, when), (actual.Ledger, when));
        Assert.Equal((expected.Ticks, when), (actual.Ticks, when));
        int difference = expected.Memory.AsSpan().CommonPrefixLength(actual.Memory);
        Assert.True(difference == expected.Memory.Length, $"memory differs at 0x{difference:X} after {when}");
    }
}
