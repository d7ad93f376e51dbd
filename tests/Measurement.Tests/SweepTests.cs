using VirtBench.Strategies;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;
using VirtBench.Workloads;

namespace VirtBench.Measurement.Tests;

public sealed class SweepTests
{
    private static readonly Cell RdtscOnce = new("trap-and-emulate", "rdtsc", 1);

    private static readonly SweepProfile Small = new("small", TimeSpan.FromMilliseconds(50), 3, [0, 1, 4]);

    private static SweepOptions Options(params Strategy[] strategies) =>
        new()
        {
            Strategies =
                strategies.Length > 0
                    ? strategies
                    :
                    [
                        ScriptedStrategy.Computed("simulated-trap-and-emulate"),
                        new ScriptedStrategy("trap-and-emulate"),
                        ScriptedStrategy.Native(),
                    ],
            Workloads = WorkloadCatalog.All,
            Profile = Small,
            Seed = 42,
        };

    private static (RecordingObserver Observer, SweepResult Result, Sweep Sweep) Run(
        ScriptedMachines machines,
        SweepOptions? options = null
    )
    {
        var sweep = new Sweep(options ?? Options(), machines.Run);
        var observer = new RecordingObserver();
        SweepResult result = sweep.Run(observer, cancellation: TestContext.Current.CancellationToken);
        return (observer, result, sweep);
    }

    [Fact]
    public void Every_planned_sample_is_taken_in_order()
    {
        (RecordingObserver observer, SweepResult result, Sweep sweep) = Run(new ScriptedMachines());
        Assert.True(result.Complete);
        Assert.Equal(sweep.Plan.Order, observer.Samples.Select(sample => new PlannedSample(sample.Round, sample.Cell)));
        Assert.Equal(sweep.Plan.Order.Count, result.Taken);
        Assert.All(observer.Samples, sample => Assert.Equal((SampleStatus.Ok, ""), (sample.Status, sample.Note)));
    }

    [Fact]
    public void Measured_samples_last_the_profile_s_time_and_computed_ones_have_fixed_units()
    {
        (RecordingObserver observer, _, _) = Run(new ScriptedMachines());
        Assert.All(
            observer.Samples,
            sample =>
            {
                if (sample.Cell.Strategy.StartsWith("simulated-", StringComparison.Ordinal))
                {
                    Assert.Equal(200, sample.Units);
                    Assert.Equal(0, sample.StealNanoseconds);
                }
                else
                {
                    Assert.InRange(sample.ElapsedNanoseconds, 50e6, 60e6);
                    Assert.Equal(20e6, sample.StealNanoseconds);
                    Assert.Equal(3, sample.InvoluntarySwitches);
                }
            }
        );
    }

    [Fact]
    public void A_cell_has_the_same_units_in_every_round()
    {
        (RecordingObserver observer, SweepResult result, _) = Run(new ScriptedMachines());
        foreach (IGrouping<Cell, Sample> cell in observer.Samples.GroupBy(sample => sample.Cell))
        {
            long units = Assert.Single(cell.Select(sample => sample.Units).Distinct());
            Assert.Equal(units, Assert.Single(result.Cells, prepared => prepared.Cell == cell.Key).Units);
        }
    }

    [Fact]
    public void Traps_are_those_of_the_workload_s_kind_in_the_measured_region()
    {
        (RecordingObserver observer, _, _) = Run(new ScriptedMachines());
        Assert.All(
            observer.Samples,
            sample =>
            {
                bool traps =
                    WorkloadCatalog.Find(sample.Cell.Workload)!.Operation(GuestInterface.Native).Trap is not null
                    && sample.Cell.Strategy != "native";
                Assert.Equal(traps ? sample.Cell.TrapsPerUnit * sample.Units : 0, sample.Traps);
            }
        );
    }

    [Theory]
    [InlineData("rdtsc", 1, -1)]
    [InlineData("rdtsc", 1, 1)]
    [InlineData("port-io", 4, -4)]
    [InlineData("cr3-switch", 0, 1)]
    [InlineData("compute", 4, 1)]
    public void A_trap_too_many_or_too_few_is_a_mismatch(string workload, int k, long error)
    {
        var machines = new ScriptedMachines
        {
            Bend = (call, run) =>
                call.Workload.Id != workload || call.TrapsPerUnit != k
                    ? run
                    : run with
                    {
                        Regions =
                        [
                            ScriptedMachines.Region(
                                1,
                                (ulong)call.Units,
                                run.Regions[0].ElapsedNanoseconds,
                                call.Workload.Operation(GuestInterface.Native).Trap ?? TrapReason.Kick,
                                error
                                    + (call.Workload.Operation(GuestInterface.Native).Trap is null ? 0 : k * call.Units)
                            ),
                        ],
                    },
        };
        (RecordingObserver observer, _, _) = Run(machines, Options(new ScriptedStrategy("trap-and-emulate")));
        Assert.All(
            observer.Samples,
            sample =>
            {
                bool bent = sample.Cell.Workload == workload && sample.Cell.TrapsPerUnit == k;
                Assert.Equal(bent ? SampleStatus.TrapMismatch : SampleStatus.Ok, sample.Status);
                Assert.Equal(bent, sample.Note.Contains($"observed {sample.Traps} traps", StringComparison.Ordinal));
            }
        );
    }

    [Fact]
    public void A_trap_where_none_is_expected_is_a_mismatch()
    {
        var machines = new ScriptedMachines
        {
            Bend = (call, run) =>
                run with
                {
                    Regions =
                    [
                        ScriptedMachines.Region(
                            1,
                            (ulong)call.Units,
                            60e6,
                            TrapReason.TimeStampCounter,
                            call.TrapsPerUnit
                        ),
                    ],
                },
        };
        SweepOptions options = Options(ScriptedStrategy.Native()) with { Workloads = [new Rdtsc()] };
        (RecordingObserver observer, _, _) = Run(machines, options);
        Assert.All(
            observer.Samples,
            sample => Assert.Equal(sample.Cell.TrapsPerUnit > 0, sample.Status == SampleStatus.TrapMismatch)
        );
    }

    [Fact]
    public void A_strategy_that_computes_something_else_is_found_out_though_its_samples_have_other_units()
    {
        var machines = new ScriptedMachines
        {
            Bend = (call, run) =>
                call.Strategy.Id == "native" && call.Workload.Id == "rdtsc"
                    ? run with
                    {
                        Result = new WorkloadResult(run.Result.Checksum ^ 1, run.Result.TscTicks),
                    }
                    : run,
        };
        (RecordingObserver observer, _, _) = Run(machines);
        Assert.All(
            observer.Samples,
            sample =>
            {
                bool wrong = sample.Cell is { Strategy: "native", Workload: "rdtsc" };
                Assert.Equal(wrong ? SampleStatus.ChecksumMismatch : SampleStatus.Ok, sample.Status);
                Assert.Equal(wrong, sample.Note.Contains("under simulated-trap-and-emulate", StringComparison.Ordinal));
            }
        );
    }

    [Fact]
    public void A_checksum_that_goes_wrong_in_one_round_is_found_in_that_round()
    {
        int runs = 0;
        var machines = new ScriptedMachines
        {
            Bend = (call, run) =>
                call.Workload.Id == "rdtsc"
                && call.TrapsPerUnit == 1
                && call.WarmUp > Sweep.VerificationWarmUp
                && ++runs == 3
                    ? run with
                    {
                        Result = new WorkloadResult(0, 0),
                    }
                    : run,
        };
        (RecordingObserver observer, _, _) = Run(machines, Options(new ScriptedStrategy("trap-and-emulate")));
        Sample wrong = Assert.Single(observer.Samples, sample => sample.Status == SampleStatus.ChecksumMismatch);
        Assert.Equal(RdtscOnce, wrong.Cell);
    }

    public static TheoryData<string> Failures() => ["failed", "timed-out", "status", "no-region", "units", "exception"];

    private static SampleRun Fail(string how, SampleRun run) =>
        how switch
        {
            "failed" => run with { Outcome = new RunOutcome(RunEnd.Failed, 0, "triple fault at RIP 0x1") },
            "timed-out" => run with { Outcome = new RunOutcome(RunEnd.TimedOut, 0, "did not end in time") },
            "status" => run with { Outcome = new RunOutcome(RunEnd.Exited, 3, null) },
            "no-region" => run with { Regions = [] },
            "units" => run with { Regions = [run.Regions[0] with { Units = 7 }] },
            _ => throw new IOException("the carrier\nis gone"),
        };

    [Theory]
    [MemberData(nameof(Failures))]
    public void A_guest_that_fails_makes_a_failed_sample_and_the_sweep_goes_on(string how)
    {
        int runs = 0;
        var machines = new ScriptedMachines
        {
            Bend = (call, run) =>
                call.Workload.Id == "rdtsc"
                && call.TrapsPerUnit == 1
                && call.WarmUp > Sweep.VerificationWarmUp
                && ++runs == 2
                    ? Fail(how, run)
                    : run,
        };
        (RecordingObserver observer, SweepResult result, Sweep sweep) = Run(
            machines,
            Options(new ScriptedStrategy("trap-and-emulate"))
        );
        Assert.True(result.Complete);
        Sample failed = Assert.Single(observer.Samples, sample => sample.Status == SampleStatus.Failed);
        Assert.Equal(RdtscOnce, failed.Cell);
        Assert.NotEqual("", failed.Note);
        Assert.DoesNotContain('\n', failed.Note);
        int expected = sweep.Plan.Order.Count - (how == "timed-out" ? Small.Rounds - 1 - failed.Round : 0);
        Assert.Equal(expected, observer.Samples.Count);
        Assert.Equal(sweep.Plan.Order.Count, result.Taken + result.NotTaken);
        Assert.Equal((sweep.Plan.Order.Count, sweep.Plan.Order.Count, TimeSpan.Zero), observer.Steps[^1]);
    }

    [Theory]
    [MemberData(nameof(Failures))]
    public void A_cell_that_cannot_be_prepared_fails_once(string how)
    {
        var machines = new ScriptedMachines
        {
            Bend = (call, run) => call.Workload.Id == "port-io" ? Fail(how, run) : run,
        };
        (RecordingObserver observer, SweepResult result, Sweep sweep) = Run(
            machines,
            Options(new ScriptedStrategy("trap-and-emulate"))
        );
        Assert.True(result.Complete);
        Assert.Equal(Small.Densities.Count, observer.Samples.Count(sample => sample.Status == SampleStatus.Failed));
        Assert.All(
            observer.Samples,
            sample => Assert.Equal(sample.Cell.Workload == "port-io", sample.Status == SampleStatus.Failed)
        );
        Assert.Equal(Small.Densities.Count * (Small.Rounds - 1), result.NotTaken);
        Assert.Equal(sweep.Plan.Order.Count, result.Taken + result.NotTaken);
    }

    private static SampleRun Abandon(SampleRun run) =>
        run with
        {
            Outcome = new RunOutcome(RunEnd.Abandoned, 0, "the vCPU thread did not come back"),
            Regions = [],
        };

    [Fact]
    public void A_strategy_whose_thread_was_abandoned_is_given_up_and_the_others_go_on()
    {
        int abandoned = 0;
        var machines = new ScriptedMachines
        {
            Bend = (call, run) =>
                call.Strategy.Id == "trap-and-emulate"
                && call.Workload.Id == "rdtsc"
                && call.TrapsPerUnit == 1
                && call.WarmUp > Sweep.VerificationWarmUp
                    ? Abandon(run with { Disturbance = new HostDisturbance(++abandoned, 0) })
                    : run,
        };
        (RecordingObserver observer, SweepResult result, Sweep sweep) = Run(machines);
        Assert.Equal(1, abandoned);
        Assert.True(result.Complete);
        Assert.Equal(sweep.Plan.Order.Count, result.Taken + result.NotTaken);
        int at = observer.Samples.FindIndex(sample => sample.Cell == RdtscOnce);
        Assert.Equal((SampleStatus.Failed, "the vCPU thread did not come back"), Verdict(observer.Samples[at]));
        Assert.All(observer.Samples[..at], sample => Assert.Equal((SampleStatus.Ok, ""), Verdict(sample)));
        Sample[] after = [.. observer.Samples[(at + 1)..]];
        Sample[] givenUp = [.. after.Where(sample => sample.Cell.Strategy == "trap-and-emulate")];
        int cells = sweep.Plan.Cells.Count(cell => cell.Strategy == "trap-and-emulate");
        Assert.Equal(cells - 1, givenUp.Select(sample => sample.Cell).Distinct().Count());
        Assert.Equal(cells - 1, givenUp.Length);
        Assert.All(
            givenUp,
            sample =>
                Assert.Equal(
                    (
                        SampleStatus.Failed,
                        "not run: the vCPU thread of rdtsc, k = 1, was abandoned, and another guest under trap-and-emulate "
                            + "could leave one more stuck"
                    ),
                    Verdict(sample)
                )
        );
        const string Occupied = "an abandoned vCPU thread (trap-and-emulate) may have occupied a CPU meanwhile";
        Assert.All(
            after.Except(givenUp),
            sample => Assert.Equal((SampleStatus.Ok, sample.Cell.Strategy == "native" ? Occupied : ""), Verdict(sample))
        );
        Assert.Equal(Small.Rounds, after.Except(givenUp).Max(sample => sample.Round) + 1);

        static (SampleStatus, string) Verdict(Sample sample) => (sample.Status, sample.Note);
    }

    [Fact]
    public void A_strategy_whose_thread_is_abandoned_while_it_is_prepared_runs_no_other_guest()
    {
        var machines = new ScriptedMachines
        {
            Bend = (call, run) => call.Strategy.Id == "trap-and-emulate" ? Abandon(run) : run,
        };
        (RecordingObserver observer, SweepResult result, Sweep sweep) = Run(machines);
        Assert.Single(machines.Calls, call => call.Strategy.Id == "trap-and-emulate");
        Assert.True(result.Complete);
        Assert.Equal(
            sweep.Plan.Cells.Where(cell => cell.Strategy == "trap-and-emulate").ToHashSet(),
            observer.Samples.Where(sample => sample.Status == SampleStatus.Failed).Select(s => s.Cell).ToHashSet()
        );
    }

    [Fact]
    public void A_guest_that_is_stuck_when_the_caller_cancels_leaves_no_sample()
    {
        using var stop = new CancellationTokenSource();
        var machines = new ScriptedMachines
        {
            Bend = (call, run) =>
            {
                stop.Cancel();
                return Abandon(run);
            },
        };
        var observer = new RecordingObserver();
        Assert.False(new Sweep(Options(), machines.Run).Run(observer, cancellation: stop.Token).Complete);
        Assert.Empty(observer.Samples);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(7)]
    [InlineData(30)]
    public void A_cancelled_sweep_keeps_what_it_has_and_a_resumed_one_takes_the_rest(int samples)
    {
        using var stop = new CancellationTokenSource();
        var first = new Sweep(Options(), new ScriptedMachines().Run);
        int taken = 0;
        var before = new RecordingObserver
        {
            OnSample = _ =>
            {
                if (++taken == samples)
                {
                    stop.Cancel();
                }
            },
        };
        if (samples == 0)
        {
            stop.Cancel();
        }

        SweepResult cancelled = first.Run(before, cancellation: stop.Token);
        Assert.False(cancelled.Complete);
        Assert.Equal(samples, before.Samples.Count);

        var after = new RecordingObserver();
        var machines = new ScriptedMachines();
        var second = new Sweep(Options(), machines.Run);
        SweepResult resumed = second.Run(
            after,
            [.. before.Samples.Select(sample => new CompletedSample(sample.Round, sample.Cell, sample.Units))],
            TestContext.Current.CancellationToken
        );
        Assert.True(resumed.Complete);
        Assert.Equal(
            first.Plan.Order,
            before.Samples.Concat(after.Samples).Select(sample => new PlannedSample(sample.Round, sample.Cell))
        );
    }

    [Fact]
    public void A_resumed_sweep_keeps_the_units_of_the_first()
    {
        SweepOptions options = Options(new ScriptedStrategy("trap-and-emulate"));
        var machines = new ScriptedMachines();
        var observer = new RecordingObserver();
        SweepResult result = new Sweep(options, machines.Run).Run(
            observer,
            [new CompletedSample(0, RdtscOnce, 4321)],
            TestContext.Current.CancellationToken
        );
        Assert.True(result.Complete);
        Assert.Equal(
            [4321L, 4321],
            observer.Samples.Where(sample => sample.Cell == RdtscOnce).Select(sample => sample.Units)
        );
    }

    [Fact]
    public void A_run_that_the_caller_cancels_leaves_no_sample()
    {
        using var stop = new CancellationTokenSource();
        var machines = new ScriptedMachines
        {
            Bend = (call, run) =>
            {
                if (call.WarmUp == Sweep.VerificationWarmUp)
                {
                    return run;
                }

                stop.Cancel();
                return run with { Outcome = new RunOutcome(RunEnd.Cancelled, 0, "cancelled") };
            },
        };
        var observer = new RecordingObserver();
        Assert.False(new Sweep(Options(), machines.Run).Run(observer, cancellation: stop.Token).Complete);
        Assert.All(observer.Samples, sample => Assert.Equal(SampleStatus.Ok, sample.Status));
    }

    [Fact]
    public void The_exits_of_a_sample_are_told_in_nanoseconds()
    {
        (RecordingObserver observer, _, _) = Run(new ScriptedMachines());
        ExitRecord computed = Assert.Single(
            observer.Exits,
            exit => exit.Cell == new Cell("simulated-trap-and-emulate", "rdtsc", 4) && exit.Reason == "rdtsc"
        );
        Assert.Equal(800, computed.Count);
        Assert.Equal(800 * 700 / 2.0, computed.SwitchOutNanoseconds);
        Assert.Equal(800 * 800 / 2.0, computed.SwitchInNanoseconds);
        Assert.Equal(10, computed.DispatchNanoseconds);
        Assert.Equal(100, computed.EmulateNanoseconds);
        Assert.All(
            observer.Exits.Where(exit => exit.Cell.Strategy == "trap-and-emulate"),
            exit => Assert.Null(exit.SwitchOutNanoseconds)
        );
    }

    [Fact]
    public void What_the_kernel_counted_is_told_of_every_sample_of_a_strategy_with_an_account()
    {
        var machines = new ScriptedMachines
        {
            Bend = (call, run) =>
                call.Strategy.Id != "trap-and-emulate"
                    ? run
                    : run with
                    {
                        Regions =
                        [
                            run.Regions[0] with
                            {
                                KernelStatistics = new KernelStatistics(
                                    ["halt_exits", "exits", "irq_exits"],
                                    [0, 0, (ulong)call.TrapsPerUnit]
                                ),
                            },
                        ],
                    },
        };
        (RecordingObserver observer, _, _) = Run(machines);
        foreach (Sample sample in observer.Samples)
        {
            var expected = new List<(string, ulong)>();
            if (sample.Cell.Strategy == "trap-and-emulate")
            {
                expected.Add(("exits", 0)); // 0 or not
                if (sample.Cell.TrapsPerUnit > 0)
                {
                    expected.Add(("irq_exits", (ulong)sample.Cell.TrapsPerUnit));
                }
            }

            Assert.Equal(
                expected,
                observer
                    .KernelStatistics.Where(counter => (counter.Round, counter.Cell) == (sample.Round, sample.Cell))
                    .Select(counter => (counter.Statistic, counter.Count))
            );
        }
    }

    [Fact]
    public void Progress_never_goes_back_and_ends_at_the_total()
    {
        (RecordingObserver observer, _, Sweep sweep) = Run(new ScriptedMachines());
        Assert.Equal(observer.Steps.Select(step => step.Done).Order(), observer.Steps.Select(step => step.Done));
        Assert.All(observer.Steps, step => Assert.Equal(sweep.Plan.Order.Count, step.Total));
        Assert.Null(observer.Steps[0].Remaining);
        Assert.Equal((sweep.Plan.Order.Count, TimeSpan.Zero), (observer.Steps[^1].Done, observer.Steps[^1].Remaining));
    }

    [Fact]
    public void A_filler_that_fits_no_workload_is_refused_before_anything_runs() =>
        Assert.Throws<ArgumentOutOfRangeException>(() =>
            new Sweep(Options() with { FillerInstructions = 1 }, new ScriptedMachines().Run)
        );

    [Fact]
    public void Images_are_listed_with_a_hash_that_tells_them_apart()
    {
        var sweep = new Sweep(Options(), new ScriptedMachines().Run);
        int kernels = WorkloadCatalog.All.OfType<CodeKernel>().Count();
        int slotted = WorkloadCatalog.All.Count - kernels;
        Assert.Equal((slotted * Small.Densities.Count) + kernels, sweep.Images.Count);
        // compute is one program whatever k, and measured as if it were not
        int programs = sweep.Images.Count - (Small.Densities.Count - 1);
        Assert.Equal(programs, sweep.Images.Select(image => image.Sha256).Distinct().Count());
        Assert.All(sweep.Images, image => Assert.Matches("^[0-9a-f]{64}$", image.Sha256));
    }
}
