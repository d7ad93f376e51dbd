using System.Runtime.ExceptionServices;
using VirtBench.Vmm.Execution;

namespace VirtBench.Measurement;

/// <summary>What a run on a thread of its own came to.</summary>
/// <param name="Outcome">How the run ended.</param>
/// <param name="ElapsedNanoseconds">
/// Time of the run on the engine's clock; of an abandoned one, until it was given up.
/// </param>
/// <param name="InvoluntarySwitches">
/// Involuntary context switches of the vCPU thread meanwhile. 0 off Linux, and when the thread did not come back to tell.
/// </param>
public sealed record VcpuRun(RunOutcome Outcome, double ElapsedNanoseconds, long InvoluntarySwitches);

/// <summary>
/// Runs a VM on a thread of its own and waits for it, so that a guest from which the thread never comes back costs one thread
/// and not the process.
/// </summary>
/// <remarks>
/// <see cref="VirtualMachine.Run"/> kicks the engine itself when the time is over or the caller cancels. Every engine comes
/// back then, unless what is below it does not: some host kernels never return from certain guest instructions. Nothing
/// outside can end such a thread, so it is left where it is, together with its VM.
/// </remarks>
public static class VcpuThread
{
    /// <summary>Time that a kicked thread has to come back: far more than any engine takes to.</summary>
    public static readonly TimeSpan DefaultGrace = TimeSpan.FromSeconds(10);

    /// <summary>
    /// Runs a VM to its end, its time limit or cancellation. When its thread does not come back from the kick of the latter two,
    /// the VM is abandoned: the caller may look at what it holds, but must not run it again.
    /// </summary>
    /// <param name="machine">The VM.</param>
    /// <param name="timeout">Wall-clock limit; null for none.</param>
    /// <param name="grace">
    /// Time to come back after the limit or the cancellation; null for <see cref="DefaultGrace"/>.
    /// </param>
    /// <param name="cancellation">Kicks the guest out when signalled.</param>
    /// <remarks>What the run throws is thrown here.</remarks>
    public static VcpuRun Run(
        VirtualMachine machine,
        TimeSpan? timeout = null,
        TimeSpan? grace = null,
        CancellationToken cancellation = default
    )
    {
        double start = machine.Clock.Nanoseconds;
        byte[]? affinity = ThreadAffinity.OfCallingThread();
        VcpuRun? result = null;
        ExceptionDispatchInfo? failure = null;
        // Never disposed: an abandoned thread may set it at any later time.
        var back = new ManualResetEventSlim();
        var thread = new Thread(() =>
        {
            try
            {
                // .NET gives a new thread the affinity of the process's first one, not that of its creator.
                ThreadAffinity.SetCallingThread(affinity);
                long switches = HostDisturbance.SwitchesOfCallingThread();
                double first = machine.Clock.Nanoseconds;
                RunOutcome outcome = machine.Run(timeout, cancellation);
                result = new VcpuRun(
                    outcome,
                    machine.Clock.Nanoseconds - first,
                    HostDisturbance.SwitchesOfCallingThread() - switches
                );
            }
            catch (Exception e)
            {
                failure = ExceptionDispatchInfo.Capture(e);
            }
            finally
            {
                back.Set();
            }
        })
        {
            Name = "vCPU",
            IsBackground = true,
        };
        thread.Start();
        TimeSpan patience = grace ?? DefaultGrace;
        if (!Wait(back, timeout, cancellation) && !back.Wait(patience, CancellationToken.None))
        {
            machine.Abandon();
            return new VcpuRun(
                new RunOutcome(
                    RunEnd.Abandoned,
                    0,
                    $"the vCPU thread did not come back from guest code within {patience.TotalSeconds:0.###} s of being kicked; "
                        + "it was abandoned, and may occupy a CPU until VirtBench ends"
                ),
                machine.Clock.Nanoseconds - start,
                0
            );
        }

        failure?.Throw();
        return result!;
    }

    /// <returns>False when the time is over or the caller cancels first: the engine is being kicked.</returns>
    private static bool Wait(ManualResetEventSlim back, TimeSpan? timeout, CancellationToken cancellation)
    {
        TimeSpan limit = timeout switch
        {
            null => Timeout.InfiniteTimeSpan,
            { TotalMilliseconds: > int.MaxValue } => TimeSpan.FromMilliseconds(int.MaxValue),
            { } given when given < TimeSpan.Zero => TimeSpan.Zero,
            { } given => given,
        };
        try
        {
            return back.Wait(limit, cancellation);
        }
        catch (OperationCanceledException)
        {
            return false;
        }
    }
}
