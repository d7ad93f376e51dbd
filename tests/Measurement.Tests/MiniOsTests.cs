using System.Text;
using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Paravirtual;
using VirtBench.Workloads;

namespace VirtBench.Measurement.Tests;

/// <summary>The operating system in miniature, on every strategy that runs a kernel.</summary>
public sealed class MiniOsTests
{
    private const int Filler = 4_000;

    public static TheoryData<string> Strategies() => [.. StrategiesUnderTest.Privileged];

    /// <summary>A run that is over, with what can be asked of it.</summary>
    private sealed class Run : IDisposable
    {
        private readonly MemoryStream _console = new();

        public Run(
            string strategy,
            int callsPerUnit = 4,
            ulong warmUp = 8,
            ulong units = 40,
            int processes = 4,
            ulong hertz = 0,
            ulong quantum = 0,
            ulong runTicks = 0,
            ulong restTicks = 0,
            MiniOsMisbehaviour misbehaviour = MiniOsMisbehaviour.None,
            ulong ram = MiniOs.MinimumRam
        )
        {
            Machine = new VirtualMachine(ram, StrategiesUnderTest.Get(strategy).CreateEngine, strict: true);
            Machine.Serial.Transmitted = _console.WriteByte;
            Machine.Load(
                new MiniOs(processes).Build(new WorkloadOptions(callsPerUnit, Filler)),
                new BootOptions
                {
                    Parameters = [warmUp, units, hertz, quantum, runTicks, restTicks, (ulong)misbehaviour],
                }
            );
            Outcome = VcpuThread
                .Run(Machine, TimeSpan.FromSeconds(120), cancellation: TestContext.Current.CancellationToken)
                .Outcome;
            Statistics = MiniOsStatistics.Read(Machine.Memory);
            Console = Encoding.Latin1.GetString(_console.ToArray());
        }

        public VirtualMachine Machine { get; }

        public RunOutcome Outcome { get; }

        public MiniOsStatistics Statistics { get; }

        public string Console { get; }

        public string[] Lines => Console.Split('\n', StringSplitOptions.RemoveEmptyEntries);

        public ulong Checksum => WorkloadResult.Read(Machine.Memory).Checksum;

        public Run Succeeded()
        {
            Assert.Equal(new RunOutcome(RunEnd.Exited, 0, null), Outcome);
            return this;
        }

        public void Dispose() => Machine.Dispose();
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void The_checksum_is_that_of_the_simulated_cpu(string id)
    {
        using Run expected = new Run("simulated-trap-and-emulate").Succeeded();
        using Run run = new Run(id).Succeeded();
        Assert.Equal(expected.Checksum, run.Checksum);
        Assert.Equal(expected.Console, run.Console);
        Assert.Contains($"mini-os: checksum {run.Checksum:x16}", run.Lines);
        Assert.Contains("mini-os: 4 processes, 40 work units", run.Lines);
    }

    [Fact]
    public void Neither_timer_nor_quantum_nor_their_order_changes_the_checksum()
    {
        var checksums = new HashSet<ulong>();
        var orders = new HashSet<string>();
        foreach ((ulong hertz, ulong quantum) in ((ulong, ulong)[])[(100, 1), (250, 2), (997, 1), (1000, 1), (1000, 7)])
        {
            using Run run = new Run(
                "simulated-trap-and-emulate",
                units: 400,
                hertz: hertz,
                quantum: quantum
            ).Succeeded();
            checksums.Add(run.Checksum);
            orders.Add($"{run.Statistics.Preemptions} {run.Statistics.ContextSwitches}");
        }

        Assert.Single(checksums);
        Assert.True(orders.Count > 1);
    }

    [Fact]
    public void The_checksum_tells_work_processes_and_system_calls_apart()
    {
        const string strategy = "simulated-trap-and-emulate";
        using Run one = new Run(strategy).Succeeded();
        using Run more = new Run(strategy, units: 41).Succeeded();
        using Run fewer = new Run(strategy, processes: 3).Succeeded();
        using Run calls = new Run(strategy, callsPerUnit: 5).Succeeded();
        Assert.Equal(4, new[] { one, more, fewer, calls }.Select(run => run.Checksum).Distinct().Count());
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void A_region_holds_as_many_units_as_told_and_k_system_calls_for_each(string id)
    {
        foreach (int k in (int[])[0, 1, 7, 16])
        {
            using Run run = new Run(id, callsPerUnit: k, units: 10).Succeeded();
            MeasuredRegion region = Assert.Single(run.Machine.Regions);
            Assert.Equal((Workload.MeasuredRegionId, 10UL), (region.Id, region.Units));
            long expected = new MiniOs().TrapsUnder(GuestInterface.Native, run.Machine.Capabilities) ? 10 * k : 0;
            Assert.Equal(expected, region.Exits[TrapReason.SystemCall]);
            Assert.True(WorkloadResult.Read(run.Machine.Memory).TscTicks > 0);
        }
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void No_tick_is_lost_and_no_frame_either(string id)
    {
        using Run run = new Run(id, units: 40, hertz: 500, runTicks: 100, restTicks: 3).Succeeded();
        MiniOsStatistics kernel = run.Statistics;
        IntervalTimer timer = run.Machine.Timer;
        int waiting = run.Machine.Interrupts.IsPending(IntervalTimer.Line) ? 1 : 0;
        Assert.True(kernel.Ticks >= 100);
        Assert.Equal((ulong)run.Machine.Interrupts.Acknowledgements[IntervalTimer.Line], kernel.Ticks);
        Assert.Equal(timer.Ticks, (long)kernel.Ticks + timer.Owed + waiting);
        Assert.Equal(IntervalTimer.Hertz / 500, kernel.TimerReload);
        Assert.Equal(0UL, kernel.Spurious);
        Assert.Equal(1024UL, kernel.FreeFramesAtStart);
        Assert.Equal(1024UL, kernel.FreeFramesAtEnd);
        Assert.InRange(kernel.FewestFreeFrames, 1UL, 1023UL);
        Assert.Equal(0UL, kernel.DeviatingRounds);
        Assert.True(kernel.Rounds >= 4);
        Assert.Equal(kernel.Units, Assert.Single(run.Machine.Regions).Units);
    }

    [Fact]
    public void Interrupts_come_in_ring_3_and_in_the_idle_loop()
    {
        using Run run = new Run(
            "simulated-trap-and-emulate",
            units: 400,
            hertz: 1000,
            quantum: 1,
            runTicks: 60,
            restTicks: 10
        ).Succeeded();
        MiniOsStatistics kernel = run.Statistics;
        Assert.True(kernel.IdleTicks > 0);
        Assert.True(kernel.Ticks > kernel.IdleTicks);
        Assert.True(kernel.Halts >= kernel.IdleTicks);
        Assert.True(kernel.Preemptions > 0);
        Assert.True(kernel.ContextSwitches > kernel.Preemptions);
        Assert.All(kernel.Calls, count => Assert.True(count > 0));
        Assert.Equal(0UL, kernel.UnknownCalls);
    }

    [Fact]
    public void Every_first_touch_of_a_page_is_a_page_fault()
    {
        using Run none = new Run("simulated-trap-and-emulate", callsPerUnit: 0, units: 400).Succeeded();
        const ulong heapPages = 64;
        const ulong stackPages = 2; // the top, and the one far below it
        Assert.Equal(4 * (heapPages + stackPages), none.Statistics.PageFaults);
        using Run discards = new Run("simulated-trap-and-emulate", callsPerUnit: 7, units: 400).Succeeded();
        Assert.True(discards.Statistics.PageFaults > none.Statistics.PageFaults);
        Assert.True(discards.Statistics.Calls[(int)MiniOsCall.Discard] > 0);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(8)]
    public void One_to_eight_processes_run(int processes)
    {
        using Run run = new Run("simulated-trap-and-emulate", processes: processes, units: 20).Succeeded();
        Assert.Equal((ulong)processes, run.Statistics.Processes);
        Assert.Equal((ulong)processes, run.Statistics.Calls[(int)MiniOsCall.Exit]);
        Assert.Equal(20UL, Assert.Single(run.Machine.Regions).Units);
        for (int process = 1; process <= processes; process++)
        {
            Assert.StartsWith(
                $"mini-os: process {process} checksum ",
                run.Lines[process - 1],
                StringComparison.Ordinal
            );
        }

        Assert.Equal(1024UL, run.Statistics.FreeFramesAtEnd);
    }

    [Fact]
    public void No_units_is_an_empty_region()
    {
        using Run run = new Run("simulated-trap-and-emulate", warmUp: 0, units: 0).Succeeded();
        MeasuredRegion region = Assert.Single(run.Machine.Regions);
        Assert.Equal(0UL, region.Units);
        Assert.Equal(0, region.Exits[TrapReason.SystemCall]);
    }

    public static TheoryData<string, MiniOsMisbehaviour, string> Misbehaviours()
    {
        (MiniOsMisbehaviour Kind, string Line)[] kinds =
        [
            (MiniOsMisbehaviour.ReadKernel, "vector 0x0e, error 0x05, cr2 0x202000"),
            (MiniOsMisbehaviour.Privileged, "vector 0x0d, error 0x00"),
            (MiniOsMisbehaviour.WriteCode, "vector 0x0e, error 0x07, cr2 0x40000000"),
            (MiniOsMisbehaviour.BeyondHeap, "vector 0x0e, error 0x04, cr2 0x40200000"),
            (MiniOsMisbehaviour.KernelStack, "vector 0x08, error 0x00, cr2 0x206ff8"),
        ];
        var data = new TheoryData<string, MiniOsMisbehaviour, string>();
        foreach (string strategy in StrategiesUnderTest.Privileged)
        {
            foreach ((MiniOsMisbehaviour kind, string line) in kinds)
            {
                data.Add(strategy, kind, line);
            }
        }

        return data;
    }

    [Theory]
    [MemberData(nameof(Misbehaviours))]
    public void What_may_not_be_ends_in_one_line_that_says_what_it_was(
        string id,
        MiniOsMisbehaviour misbehaviour,
        string expected
    )
    {
        using var run = new Run(id, misbehaviour: misbehaviour);
        Assert.Equal(new RunOutcome(RunEnd.Exited, 1, null), run.Outcome);
        string line = Assert.Single(run.Lines);
        Assert.StartsWith("mini-os: panic: ", line, StringComparison.Ordinal);
        foreach (string part in expected.Split(", "))
        {
            string[] field = part.Split(" 0x");
            Assert.Contains($"{field[0]} 0x{field[1].PadLeft(16, '0')}", line, StringComparison.Ordinal);
        }
    }

    [Theory]
    [InlineData(99)]
    [InlineData(1001)]
    public void A_timer_that_it_does_not_want_is_refused_in_one_line(ulong hertz)
    {
        using var run = new Run("simulated-trap-and-emulate", hertz: hertz);
        Assert.Equal(new RunOutcome(RunEnd.Exited, 1, null), run.Outcome);
        Assert.Equal(["mini-os: the timer has 100 to 1000 Hz"], run.Lines);
    }

    [Fact]
    public void Too_little_memory_is_refused_in_one_line()
    {
        using var run = new Run("simulated-trap-and-emulate", ram: MiniOs.MinimumRam - 4096);
        Assert.Equal(new RunOutcome(RunEnd.Exited, 1, null), run.Outcome);
        Assert.Equal(["mini-os: needs 8 MiB of RAM"], run.Lines);
    }

    [Fact]
    public void What_does_not_fit_is_refused_with_the_limits()
    {
        var workload = new MiniOs();
        Assert.Contains(
            "0 to 16 traps",
            Assert.Throws<ArgumentOutOfRangeException>(() => workload.Build(new WorkloadOptions(17, Filler))).Message,
            StringComparison.Ordinal
        );
        Assert.Contains(
            $"at least {MiniOs.MinimumFiller} instructions",
            Assert
                .Throws<ArgumentOutOfRangeException>(() =>
                    workload.Build(new WorkloadOptions(0, MiniOs.MinimumFiller - 1))
                )
                .Message,
            StringComparison.Ordinal
        );
        Assert.Throws<ArgumentOutOfRangeException>(() => new MiniOs(0));
        Assert.Throws<ArgumentOutOfRangeException>(() => new MiniOs(9));
    }

    [Fact]
    public void Under_a_deprivileged_kernel_nothing_in_it_falls_through_a_hole_but_the_reading_of_the_clock()
    {
        GuestImage image = new MiniOs().Build(new WorkloadOptions(16, Filler));
        foreach (Strategy strategy in StrategiesUnderTest.Available().Where(strategy => strategy.RunsPrivilegedGuests))
        {
            using var machine = new VirtualMachine(1 << 20, strategy.CreateEngine);
            EngineCapabilities capabilities = machine.Capabilities;
            if (capabilities.TrapsPrivilegedInstructions)
            {
                IEnumerable<HoleOccurrence> found = HoleScan.Find(image, capabilities.Holes);
                Assert.DoesNotContain(found, one => one.Hole.Instruction != "rdtsc");
            }
        }
    }
}
