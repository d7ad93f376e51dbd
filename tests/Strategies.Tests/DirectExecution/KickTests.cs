#pragma warning disable CA1416 // DirectGuest has asked for Linux
using System.Diagnostics;
using Iced.Intel;
using VirtBench.Strategies.Native;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Tests.DirectExecution;

[Collection(CarrierCollection.Name)]
public sealed class KickTests
{
    private const ulong Counted = DirectGuest.Data + 0x100;

    private static void LoopForEver(Assembler a)
    {
        Label forever = a.CreateLabel();
        a.Label(ref forever);
        a.jmp(forever);
    }

    private static void TrapForEver(Assembler a)
    {
        Label forever = a.CreateLabel();
        a.Label(ref forever);
        a.cli();
        a.jmp(forever);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void An_endless_loop_times_out(bool trapping)
    {
        using var guest = new DirectGuest(trapping ? TrapForEver : LoopForEver);
        Assert.Equal(RunEnd.TimedOut, guest.Run(TimeSpan.FromMilliseconds(20)).End);
        Assert.Equal(RunEnd.TimedOut, guest.Run(TimeSpan.FromMilliseconds(20)).End); // and goes on where it was
    }

    [Fact]
    public void A_kick_while_the_carrier_starts_is_not_lost()
    {
        // Later and later in the start, and a little beyond it.
        for (int microseconds = 0; microseconds < 3000; microseconds += 25)
        {
            using var guest = new DirectGuest(LoopForEver);
            using var cancellation = new CancellationTokenSource();
            using var start = new ManualResetEventSlim();
            var kicker = new Thread(() =>
            {
                start.Wait(CancellationToken.None);
                long until = Stopwatch.GetTimestamp() + (microseconds * Stopwatch.Frequency / 1_000_000);
                while (Stopwatch.GetTimestamp() < until) { }

                cancellation.Cancel();
            });
            kicker.Start();
            start.Set();
            Assert.Equal(RunEnd.Cancelled, guest.RunUntil(cancellation.Token).End);
            kicker.Join();
        }
    }

    [Fact]
    public void Cancelling_stops_the_guest()
    {
        using var guest = new DirectGuest(LoopForEver);
        using var cancellation = new CancellationTokenSource(TimeSpan.FromMilliseconds(20));
        Assert.Equal(RunEnd.Cancelled, guest.RunUntil(cancellation.Token).End);
        Assert.Equal(RunEnd.Cancelled, guest.RunUntil(cancellation.Token).End);
    }

    [Fact]
    public void A_kick_before_the_start_and_after_disposal_does_nothing_bad()
    {
        var guest = new DirectGuest(a => a.Exit(4));
        guest.Engine.Kick();
        Assert.Equal(4, guest.RunToExit());
        guest.Dispose();
        guest.Engine.Kick();
    }

    [Theory]
    [InlineData(true, true)]
    [InlineData(true, false)]
    [InlineData(false, true)]
    [InlineData(false, false)]
    public void A_guest_that_counts_loses_nothing_in_a_storm_of_kicks(bool byIret, bool pastTheEngine)
    {
        const int kickers = 2;
        const int kicks = 5000;
        using var guest = new DirectGuest(
            a =>
            {
                Label again = a.CreateLabel();
                Label next = a.CreateLabel();
                a.WriteMsr(Vmm.Cpu.Msr.FsBase, Counted);
                a.xor(r15d, r15d);
                a.pxor(xmm7, xmm7);
                a.mov(eax, 1);
                a.movq(xmm6, rax);
                a.Label(ref again);
                a.mov(ecx, 50);
                a.Label(ref next);
                a.inc(r15);
                a.paddq(xmm7, xmm6);
                a.inc(__qword_ptr.fs[0]);
                a.dec(ecx);
                a.jne(next);
                a.cli();
                a.cmp(__qword_ptr[DirectGuest.Data], 0);
                a.je(again);
                a.mov(DirectGuest.ResultSlot(0), r15);
                a.movq(rax, xmm7);
                a.mov(DirectGuest.ResultSlot(1), rax);
                a.Exit();
            },
            byIret
        );
        int left = kickers;
        Thread[] threads =
        [
            .. Enumerable
                .Range(0, kickers)
                .Select(kicker => new Thread(() =>
                {
                    Assert.True(SpinWait.SpinUntil(() => guest.Memory.Read<ulong>(Counted) > 0, DirectGuest.Ample));
                    for (int i = 0; i < kicks; i++)
                    {
                        if (pastTheEngine)
                        {
                            // No lock, and no waiting for an answer
                            _ = guest.Engine.Carrier is { } carrier
                                ? Linux.Syscall(Linux.SysKill, carrier.ProcessId, Linux.SigUsr1)
                                : 0;
                        }
                        else
                        {
                            guest.Engine.Kick();
                        }
                    }

                    if (Interlocked.Decrement(ref left) == 0)
                    {
                        guest.Memory.Write(DirectGuest.Data, 1UL);
                    }
                })),
        ];
        Array.ForEach(threads, thread => thread.Start());
        RunOutcome outcome = guest.Run();
        Array.ForEach(threads, thread => thread.Join());

        Assert.Equal((RunEnd.Exited, null), (outcome.End, outcome.Message));
        Assert.NotEqual(0UL, guest.Result(0));
        Assert.Equal(guest.Result(0), guest.Result(1));
        Assert.Equal(guest.Result(0), guest.Memory.Read<ulong>(Counted));
        Assert.Equal((long)guest.Result(0) / 50, guest.Machine.Ledger.Count(TrapReason.InterruptFlag));
    }
}
