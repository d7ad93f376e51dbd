using VirtBench.Tests;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using VirtBench.Workloads;

namespace VirtBench.Measurement.Tests;

/// <summary>No time is measured here: a grace of nothing or for ever makes every outcome certain.</summary>
public sealed class VcpuThreadTests
{
    private static readonly TimeSpan ForEver = Timeout.InfiniteTimeSpan;

    private static VirtualMachine Machine(StuckStrategy strategy) =>
        new(GuestMemory.MinimumSize, strategy.CreateEngine);

    private static CancellationToken Test => TestContext.Current.CancellationToken;

    private static VcpuRun CancelInside(StuckStrategy strategy, VirtualMachine machine, TimeSpan grace)
    {
        using var stop = CancellationTokenSource.CreateLinkedTokenSource(Test);
        Task canceller = Task.Run(
            () =>
            {
                strategy.Inside.Wait(Test);
                stop.Cancel();
            },
            Test
        );
        VcpuRun run = VcpuThread.Run(machine, null, grace, stop.Token);
        canceller.Wait(Test);
        return run;
    }

    private static void AssertAbandoned(StuckStrategy strategy, VirtualMachine machine, RunOutcome outcome)
    {
        Assert.Equal(RunEnd.Abandoned, outcome.End);
        Assert.StartsWith("the vCPU thread did not come back from guest code", outcome.Message);
        Assert.Contains("may occupy a CPU until VirtBench ends", outcome.Message);
        Assert.DoesNotContain('\n', outcome.Message!);
        machine.Dispose();
        Assert.False(strategy.Disposed);
        machine.Memory.Write(0, 1); // still there for the thread that may go on

        // It comes back after all, and finds everything in its place.
        strategy.LetGo.Set();
        strategy.Detached.Wait(Test);
        Assert.False(strategy.Disposed);
    }

    [Fact]
    public void A_thread_that_ignores_cancellation_is_abandoned()
    {
        var strategy = new StuckStrategy();
        VirtualMachine machine = Machine(strategy);
        AssertAbandoned(strategy, machine, CancelInside(strategy, machine, TimeSpan.Zero).Outcome);
    }

    [Fact]
    public void A_thread_that_ignores_its_time_limit_is_abandoned()
    {
        var strategy = new StuckStrategy();
        VirtualMachine machine = Machine(strategy);
        VcpuRun run = VcpuThread.Run(machine, TimeSpan.FromMilliseconds(1), TimeSpan.Zero, Test);
        Assert.Contains("within 0 s of being kicked", run.Outcome.Message);
        AssertAbandoned(strategy, machine, run.Outcome);
    }

    [Fact]
    public async Task Without_kick_there_is_no_grace_to_be_over()
    {
        var strategy = new StuckStrategy { After = () => new VmExit(VmExitReason.Failed, Message: "the end") };
        using VirtualMachine machine = Machine(strategy);
        var run = Task.Run(() => VcpuThread.Run(machine, null, TimeSpan.Zero, Test), Test);
        strategy.Inside.Wait(Test);
        strategy.LetGo.Set();
        Assert.Equal(new RunOutcome(RunEnd.Failed, 0, "the end"), (await run).Outcome);
    }

    [Fact]
    public void A_thread_that_comes_back_in_time_is_cancelled()
    {
        var strategy = new StuckStrategy { HeedsKicks = true };
        using VirtualMachine machine = Machine(strategy);
        Assert.Equal(RunEnd.Cancelled, CancelInside(strategy, machine, ForEver).Outcome.End);
    }

    [Fact]
    public void A_thread_that_comes_back_in_time_has_timed_out()
    {
        using VirtualMachine machine = Machine(new StuckStrategy { HeedsKicks = true });
        Assert.Equal(RunEnd.TimedOut, VcpuThread.Run(machine, TimeSpan.FromMilliseconds(1), ForEver, Test).Outcome.End);
    }

    [Fact]
    public void What_the_run_throws_is_thrown_to_the_caller()
    {
        using VirtualMachine machine = Machine(
            new StuckStrategy { Before = () => throw new IOException("the carrier is gone") }
        );
        var thrown = Assert.Throws<IOException>(() => VcpuThread.Run(machine, cancellation: Test));
        Assert.Equal("the carrier is gone", thrown.Message);
    }

    [Fact]
    public void The_guest_runs_on_a_background_thread_of_its_own_on_the_caller_s_CPUs()
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "threads can be pinned on Linux only");
        static string Allowed() =>
            File.ReadLines("/proc/thread-self/status")
                .First(line => line.StartsWith("Cpus_allowed_list:", StringComparison.Ordinal));
        int cpu = int.Parse(Allowed().Split('\t')[1].Split(',', '-')[^1]);
        Thread? vcpu = null;
        bool isBackground = false;
        string? inside = null;
        string? outside = null;
        void Body()
        {
            using var pinned = new ThreadAffinity(cpu);
            var strategy = new StuckStrategy
            {
                Before = () =>
                    (vcpu, isBackground, inside) = (Thread.CurrentThread, Thread.CurrentThread.IsBackground, Allowed()),
                After = () => new VmExit(VmExitReason.Failed, Message: "the end"),
            };
            strategy.LetGo.Set();
            using VirtualMachine machine = Machine(strategy);
            VcpuThread.Run(machine, cancellation: Test);
            outside = Allowed();
        }

        var caller = new Thread(Body);
        caller.Start();
        caller.Join();
        Assert.NotSame(caller, vcpu);
        Assert.True(isBackground);
        Assert.Equal($"Cpus_allowed_list:\t{cpu}", inside);
        Assert.Equal(inside, outside);
    }

    [Fact]
    public void A_guest_program_that_is_stuck_is_told_as_abandoned()
    {
        var strategy = new StuckStrategy();
        GuestImage image = new Compute().Build(new WorkloadOptions(0, 100));
        GuestRunResult result = GuestRun.Execute(
            strategy,
            image,
            new GuestRunOptions { Timeout = TimeSpan.FromMilliseconds(1), Grace = TimeSpan.Zero },
            null,
            Test
        );
        Assert.Equal(RunEnd.Abandoned, result.Outcome.End);
        Assert.Empty(result.Regions);
        strategy.LetGo.Set();
        strategy.Detached.Wait(Test);
        Assert.False(strategy.Disposed);
    }
}
