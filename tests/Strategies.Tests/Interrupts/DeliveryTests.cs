using Iced.Intel;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Tests.Interrupts;

/// <summary>Interrupts that another thread raises, by every way of delivery of every strategy that runs on this host's clock.</summary>
public sealed class DeliveryTests
{
    private const ulong Many = 2_000;

    public static TheoryData<string, InterruptDelivery> All =>
        new()
        {
            { "trap-and-emulate", InterruptDelivery.Exit },
            { "binary-translation", InterruptDelivery.Exit },
            { "binary-translation", InterruptDelivery.Direct },
            { "hardware", InterruptDelivery.Exit },
            { "hardware", InterruptDelivery.Direct },
        };

    // Where ring 0 is emulated each costs far more, and on one CPU a time slice.
    private static ulong PulsesOf(string strategy) =>
        StrategyCatalog.Find(strategy)!.EmulatesRingZero || Environment.ProcessorCount == 1 ? Many / 20 : Many;

    [Theory, MemberData(nameof(All))]
    public void None_is_lost_or_doubled_in_a_guest_that_spins(string strategy, InterruptDelivery delivery)
    {
        ulong pulses = PulsesOf(strategy);
        using var guest = new InterruptGuest(
            strategy,
            delivery,
            a =>
            {
                InterruptGuest.SpinUntil(a, pulses);
                InterruptGuest.Exit(a);
            }
        );
        guest.RunToExit(pulses);
        Assert.Equal(pulses, guest.Count());
        Assert.Equal(0ul, guest.Count(7));
        Assert.Equal(((long)pulses, (long)pulses), (guest.Statistics.Requests, guest.Statistics.Taken));
    }

    [Theory, MemberData(nameof(All))]
    public void None_is_lost_or_doubled_in_a_guest_that_sleeps(string strategy, InterruptDelivery delivery)
    {
        ulong pulses = PulsesOf(strategy);
        using var guest = new InterruptGuest(
            strategy,
            delivery,
            a =>
            {
                Label again = a.CreateLabel();
                Label done = a.CreateLabel();
                a.mov(rbx, pulses);
                a.Label(ref again);
                a.cli();
                a.cmp(__qword_ptr[InterruptGuest.Counts + (8 * InterruptGuest.Line)], rbx);
                a.jae(done);
                a.sti();
                a.hlt();
                a.jmp(again);
                a.Label(ref done);
                InterruptGuest.Exit(a);
            }
        );
        guest.RunToExit(pulses);
        Assert.Equal(pulses, guest.Count());
    }

    [Theory, MemberData(nameof(All))]
    public void One_raised_while_interrupts_are_off_comes_when_they_are_on(string strategy, InterruptDelivery delivery)
    {
        using var guest = new InterruptGuest(
            strategy,
            delivery,
            a =>
            {
                Label again = a.CreateLabel();
                Label wrong = a.CreateLabel();
                ulong count = InterruptGuest.Counts + (8 * InterruptGuest.Line);

                // Until the host has raised it, and for a while longer.
                a.mov(__qword_ptr[InterruptGuest.Data], 1);
                a.Label(ref again);
                a.cmp(__qword_ptr[InterruptGuest.Data], 2);
                a.jne(again);
                Label longer = a.CreateLabel();
                a.mov(ecx, 1000);
                a.Label(ref longer);
                a.cmp(__qword_ptr[count], 0);
                a.jne(wrong);
                a.dec(ecx);
                a.jne(longer);
                InterruptGuest.SpinUntil(a, 1);
                InterruptGuest.Exit(a);
                a.Label(ref wrong);
                InterruptGuest.Exit(a, 1);
            }
        );
        var device = new Thread(() =>
        {
            while (Volatile.Read(ref guest.Reference(InterruptGuest.Data)) != 1)
            {
                _ = Thread.Yield();
            }

            guest.Source.Pulse();
            Volatile.Write(ref guest.Reference(InterruptGuest.Data), 2);
        });
        device.Start();
        RunOutcome outcome = guest.Run();
        Assert.Equal((RunEnd.Exited, null, 0), (outcome.End, outcome.Message, outcome.Status));
        device.Join();
    }

    [Theory, MemberData(nameof(All))]
    public void One_raised_in_the_handler_of_the_one_before_comes_behind_it(string strategy, InterruptDelivery delivery)
    {
        // The handler waits for the host to raise the next before it ends its own.
        const ulong inHandler = InterruptGuest.Data;
        const ulong depth = InterruptGuest.Data + 8;
        const ulong deepest = InterruptGuest.Data + 16;
        ulong pulses = PulsesOf(strategy) / 10;
        using var guest = new InterruptGuest(
            strategy,
            delivery,
            a =>
            {
                InterruptGuest.SpinUntil(a, pulses);
                InterruptGuest.Exit(a);
            },
            h =>
            {
                Label wait = h.CreateLabel();
                h.inc(__qword_ptr[depth]);
                h.mov(rax, __qword_ptr[depth]);
                h.or(__qword_ptr[deepest], rax);
                h.inc(__qword_ptr[inHandler]);
                h.Label(ref wait);
                h.mov(rax, __qword_ptr[inHandler]);
                h.cmp(__qword_ptr[inHandler + 24], rax);
                h.jb(wait);
                h.dec(__qword_ptr[depth]);
            }
        );
        var device = new Thread(() =>
        {
            guest.WaitUntilReady();
            guest.Source.Pulse();
            for (ulong i = 1; i <= pulses; i++)
            {
                while (Volatile.Read(ref guest.Reference(inHandler)) < i)
                {
                    _ = Thread.Yield();
                }

                if (i < pulses)
                {
                    guest.Source.Pulse();
                }

                Volatile.Write(ref guest.Reference(inHandler + 24), i);
            }
        });
        device.Start();
        RunOutcome outcome = guest.Run();
        Assert.Equal((RunEnd.Exited, null, 0), (outcome.End, outcome.Message, outcome.Status));
        device.Join();
        Assert.Equal(pulses, guest.Count());
        Assert.Equal(1ul, guest.Reference(deepest));
    }

    [Theory, MemberData(nameof(All))]
    public void A_storm_ends_with_a_guest_that_goes_on(string strategy, InterruptDelivery delivery)
    {
        ulong wanted = PulsesOf(strategy) / 4;
        using var guest = new InterruptGuest(
            strategy,
            delivery,
            a =>
            {
                InterruptGuest.SpinUntil(a, wanted);
                InterruptGuest.Exit(a);
            }
        );
        bool ended = false;
        var device = new Thread(() =>
        {
            while (!Volatile.Read(ref ended))
            {
                guest.Source.Pulse();
                guest.Engine.Kick();
            }
        });
        device.Start();
        RunOutcome outcome = guest.Run();
        guest.Machine.Dispose();
        guest.Source.Pulse(); // of a VM that is no more
        Volatile.Write(ref ended, true);
        device.Join();
        Assert.Equal((RunEnd.Exited, null, 0), (outcome.End, outcome.Message, outcome.Status));
    }

    [Theory, MemberData(nameof(All))]
    public void A_sleeper_whose_last_source_goes_is_ended_or_cancelled(string strategy, InterruptDelivery delivery)
    {
        using var guest = new InterruptGuest(
            strategy,
            delivery,
            a =>
            {
                a.mov(__qword_ptr[InterruptGuest.Data], 1);
                a.sti();
                a.hlt();
            }
        );
        bool inKernel = guest.Engine.KernelInterrupts is not null; // which does not tell the VMM that the guest sleeps
        using var cancelled = new CancellationTokenSource();
        var device = new Thread(() =>
        {
            while (Volatile.Read(ref guest.Reference(InterruptGuest.Data)) != 1)
            {
                _ = Thread.Yield();
            }

            guest.Source.Dispose();
            if (inKernel)
            {
                cancelled.Cancel();
            }
        });
        device.Start();
        RunOutcome outcome = guest.Machine.Run(InterruptGuest.Ample, cancelled.Token);
        device.Join();
        Assert.Equal(inKernel ? RunEnd.Cancelled : RunEnd.Failed, outcome.End);
    }

    [Theory]
    [InlineData("binary-translation")]
    [InlineData("hardware")]
    public void Direct_delivery_does_without_the_exits_that_deliver(string strategy)
    {
        ulong pulses = PulsesOf(strategy);
        (long Delivering, InterruptLineStatistics Line) Count(InterruptDelivery delivery)
        {
            using var guest = new InterruptGuest(
                strategy,
                delivery,
                a =>
                {
                    InterruptGuest.SpinUntil(a, pulses);
                    InterruptGuest.Exit(a);
                }
            );
            guest.RunToExit(pulses);
            TrapLedger ledger = guest.Machine.Ledger;
            return (ledger.Count(TrapReason.Kick) + ledger.Count(TrapReason.InterruptWindow), guest.Statistics);
        }

        (long exits, InterruptLineStatistics byExits) = Count(InterruptDelivery.Exit);
        (long remaining, InterruptLineStatistics directly) = Count(InterruptDelivery.Direct);
        Assert.Equal(0, byExits.Direct);
        Assert.True(directly.Direct > 0, $"{directly}");
        Assert.True(remaining < exits / 4, $"{remaining} such exits with direct delivery, {exits} without; {directly}");
    }

    [Fact]
    public void A_guest_that_has_run_with_chips_in_the_kernel_keeps_its_engine()
    {
        using var guest = new InterruptGuest("hardware", InterruptDelivery.Direct, a => InterruptGuest.Exit(a));
        guest.RunToExit(0);
        var refusal = Assert.Throws<InvalidOperationException>(() =>
            guest.Machine.SwitchEngine(new BinaryTranslation.BinaryTranslationStrategy().CreateEngine)
        );
        Assert.Contains("host's kernel", refusal.Message);
    }
}
