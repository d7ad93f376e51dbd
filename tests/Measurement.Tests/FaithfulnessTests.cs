using VirtBench.Vmm.Execution;
using VirtBench.Workloads;

namespace VirtBench.Measurement.Tests;

public sealed class FaithfulnessTests
{
    private const string Ring3Effect = "leaves the interrupt flag as it was";

    private static ScriptedStrategy WithHole(string id, VirtualizationHole hole) =>
        new(id)
        {
            Capabilities = new EngineCapabilities
            {
                TrapsPrivilegedInstructions = true,
                TrapsTimeStampCounter = true,
                Holes = [hole],
                TimeSource = "measured: scripted",
            },
        };

    private static ScriptedStrategy Deprivileged(string id = "trap-and-emulate") =>
        WithHole(id, new VirtualizationHole("popf", Ring3Effect));

    private static List<Sample> Run(ScriptedMachines machines, Workload workload, params ScriptedStrategy[] strategies)
    {
        var options = new SweepOptions
        {
            Strategies = strategies,
            Workloads = [workload],
            Profile = new SweepProfile("small", TimeSpan.FromMilliseconds(50), 2, [0, 1, 4]),
            Seed = 42,
        };
        var observer = new RecordingObserver();
        _ = new Sweep(options, machines.Run).Run(observer, cancellation: TestContext.Current.CancellationToken);
        return observer.Samples;
    }

    private static ScriptedMachines OtherChecksum(string strategy) =>
        new()
        {
            Bend = (call, run) =>
                call.Strategy.Id == strategy && call.TrapsPerUnit > 0
                    ? run with
                    {
                        Result = new WorkloadResult(~run.Result.Checksum, 0),
                    }
                    : run,
        };

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void A_hole_that_changes_the_checksum_is_marked_and_no_error_whatever_the_order(bool faithfulFirst)
    {
        var faithful = new ScriptedStrategy("hardware");
        ScriptedStrategy hole = Deprivileged();
        ScriptedStrategy[] order = faithfulFirst ? [faithful, hole] : [hole, faithful];
        List<Sample> samples = Run(OtherChecksum("trap-and-emulate"), new Popf(), order);
        Assert.All(
            samples,
            sample =>
            {
                bool marked = sample.Cell is { Strategy: "trap-and-emulate", TrapsPerUnit: > 0 };
                Assert.Equal(
                    (SampleStatus.Ok, marked ? "not faithful: popf; another checksum than under hardware" : ""),
                    (sample.Status, sample.Note)
                );
                Assert.False(sample.IsWrong);
                Assert.Equal(marked, sample.Mark is { Seen: true });
            }
        );
    }

    [Fact]
    public void A_hole_that_the_checksum_does_not_show_is_marked_all_the_same()
    {
        List<Sample> samples = Run(
            new ScriptedMachines(),
            new Popf(),
            Deprivileged(),
            new ScriptedStrategy("hardware")
        );
        Assert.All(
            samples.Where(sample => sample.Cell is { Strategy: "trap-and-emulate", TrapsPerUnit: > 0 }),
            sample => Assert.Equal("not faithful: popf; the same checksum as under hardware", sample.Note)
        );
    }

    [Fact]
    public void Without_a_faithful_strategy_nothing_is_said_of_checksums_that_differ()
    {
        List<Sample> samples = Run(OtherChecksum("other"), new Popf(), Deprivileged(), Deprivileged("other"));
        Assert.All(
            samples,
            sample =>
                Assert.Equal(
                    (SampleStatus.Ok, sample.Cell.TrapsPerUnit > 0 ? "not faithful: popf" : ""),
                    (sample.Status, sample.Note)
                )
        );
    }

    [Fact]
    public void A_checksum_that_differs_without_a_hole_is_an_error_though_a_strategy_with_a_hole_came_first()
    {
        List<Sample> samples = Run(
            OtherChecksum("other"),
            new Popf(),
            Deprivileged(),
            new ScriptedStrategy("hardware"),
            new ScriptedStrategy("other")
        );
        Assert.All(
            samples,
            sample =>
                Assert.Equal(
                    sample.Cell is { Strategy: "other", TrapsPerUnit: > 0 },
                    sample.Status == SampleStatus.ChecksumMismatch
                )
        );
        Assert.All(
            samples.Where(sample => sample.IsWrong),
            sample => Assert.Contains("under hardware", sample.Note, StringComparison.Ordinal)
        );
    }

    [Fact]
    public void A_hole_of_an_instruction_that_the_workload_is_not_about_is_no_mark()
    {
        // Every image reads the time-stamp counter around its region.
        ScriptedStrategy strategy = WithHole("native-like", new VirtualizationHole("rdtsc", "reads the host's"));
        Assert.All(Run(new ScriptedMachines(), new InterruptFlag(), strategy), sample => Assert.Equal("", sample.Note));
    }

    [Fact]
    public void A_hole_in_ring_3_only_is_no_mark_of_a_guest_in_ring_0()
    {
        ScriptedStrategy strategy = WithHole(
            "hardware",
            new VirtualizationHole("popf", "in ring 3 leaves IOPL") { InUserModeOnly = true }
        );
        Assert.All(Run(new ScriptedMachines(), new Popf(), strategy), sample => Assert.Equal("", sample.Note));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void A_guest_that_ends_is_excused_only_by_a_hole_that_ends_guests(bool ends)
    {
        var machines = new ScriptedMachines
        {
            Bend = (call, run) =>
                call.TrapsPerUnit > 0
                    ? run with
                    {
                        Outcome = new RunOutcome(RunEnd.Failed, 0, "triple fault"),
                        Regions = [],
                    }
                    : run,
        };
        var hole = new VirtualizationHole("sysretq", "ends the guest") { EndsGuest = ends };
        List<Sample> samples = Run(machines, new Syscall(), WithHole("hardware", hole));
        Sample[] failed = [.. samples.Where(sample => sample.Status == SampleStatus.Failed)];
        Assert.Equal(2, failed.Length); // once for each k, not once a round
        Assert.All(failed, sample => Assert.Equal(!ends, sample.IsWrong));
        Assert.All(
            failed,
            sample =>
                Assert.Equal(
                    ends ? "not faithful: sysretq; the guest ended: triple fault" : "triple fault",
                    sample.Note
                )
        );
    }

    [Fact]
    public void Two_exits_of_one_operation_are_one_trap()
    {
        List<Sample> samples = Run(new ScriptedMachines(), new Syscall(), new ScriptedStrategy("trap-and-emulate"));
        Assert.All(
            samples,
            sample =>
                Assert.Equal((SampleStatus.Ok, sample.Cell.TrapsPerUnit * sample.Units), (sample.Status, sample.Traps))
        );
    }

    [Theory]
    [InlineData("not faithful: popf")]
    [InlineData("not faithful: sidt, sgdt; another checksum than under hardware")]
    [InlineData("not faithful: cpuid; the same checksum as under hardware")]
    public void A_mark_is_read_back_from_its_note(string note)
    {
        Assert.Equal(note, FaithfulnessMark.Of(note)?.ToString());
        Assert.Equal(note, FaithfulnessMark.Of(note + "; observed 3 traps, expected 4")?.ToString());
        Assert.Null(FaithfulnessMark.Of("the guest said: " + note));
    }
}
