#pragma warning disable CA1416 // DirectGuest has asked for Linux
using Iced.Intel;
using VirtBench.Strategies.Shadow;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Tests.DirectExecution;

[Collection(CarrierCollection.Name)]
public sealed class DeadlineTests
{
    private static void CountForEver(Assembler a)
    {
        Label forever = a.CreateLabel();
        a.mov(rbx, DirectGuest.Results);
        a.Label(ref forever);
        a.inc(__qword_ptr[rbx]);
        a.jmp(forever);
    }

    // Faults its pages in, so that from then on only a deadline or a kick makes it stop.
    private static DirectGuest Counting()
    {
        var guest = new DirectGuest(CountForEver);
        using var cancellation = new CancellationTokenSource();
        var canceller = new Thread(() =>
        {
            Assert.True(SpinWait.SpinUntil(() => guest.Result(0) > 0, DirectGuest.Ample));
            cancellation.Cancel();
        });
        canceller.Start();
        Assert.Equal(RunEnd.Cancelled, guest.RunUntil(cancellation.Token).End);
        canceller.Join();
        return guest;
    }

    private static ulong Ticks(double seconds) => (ulong)(seconds * HostClock.Instance.TicksPerSecond);

    [Fact]
    public void A_deadline_stops_a_guest_that_nobody_kicks()
    {
        using DirectGuest guest = Counting();
        foreach (double seconds in (double[])[0, 20e-6, 200e-6, 5e-3, 150e-3])
        {
            ulong deadline = HostClock.Instance.Ticks + Ticks(seconds);
            guest.Engine.Deadline = deadline;
            VmExit exit = guest.Engine.Run();
            while (exit.Reason == VmExitReason.Interrupted && HostClock.Instance.Ticks < deadline)
            {
                exit = guest.Engine.Run(); // a kick that was answered twice
            }

            Assert.Equal(VmExitReason.Interrupted, exit.Reason);
            Assert.True(HostClock.Instance.Ticks >= deadline);
        }
    }

    [Fact]
    public void A_guest_whose_deadline_is_always_over_gets_on()
    {
        using DirectGuest guest = Counting();
        guest.Engine.Deadline = 1;
        ulong before = guest.Result(0);
        int idle = 0;
        for (int i = 0; i < 200; i++)
        {
            Assert.Equal(VmExitReason.Interrupted, guest.Engine.Run().Reason);
            ulong now = guest.Result(0);
            idle = now == before ? idle + 1 : 0;
            Assert.True(idle < 5, "the guest does not get on");
            before = now;
        }
    }

    [Fact]
    public void A_halted_cpu_sleeps_until_its_deadline()
    {
        using DirectGuest guest = Counting();
        foreach (double seconds in (double[])[0, 1e-3, 30e-3])
        {
            ulong deadline = HostClock.Instance.Ticks + Ticks(seconds);
            guest.Engine.Deadline = deadline;
            guest.Engine.Idle();
            Assert.True(HostClock.Instance.Ticks >= deadline);
        }
    }

    [Fact]
    public void A_kick_wakes_a_halted_cpu_and_is_taken()
    {
        using DirectGuest guest = Counting();
        for (int i = 0; i < 500; i++)
        {
            var kicker = new Thread(guest.Engine.Kick);
            kicker.Start(); // before, while or after this thread falls asleep
            guest.Engine.Idle();
            kicker.Join();
        }

        guest.Engine.Kick();
        guest.Engine.Idle(); // at once
        guest.Engine.Deadline = HostClock.Instance.Ticks + Ticks(1e-3);
        guest.Engine.Idle();
        Assert.True(HostClock.Instance.Ticks >= guest.Engine.Deadline);
    }

    [Theory]
    [InlineData(ShadowPaging.Flush, 16)]
    [InlineData(ShadowPaging.Cached, 16)]
    [InlineData(ShadowPaging.Cached, 2)]
    public void Kicks_and_deadlines_in_a_storm_of_address_space_and_ring_switches_lose_nothing(
        ShadowPaging policy,
        int carriers
    )
    {
        const int roots = 3;
        const int kicks = 3000;
        const ulong root = CoherenceGuest.Tables;
        ulong Root(int i) => root + ((ulong)i * 0x1_0000);
        using var guest = new CoherenceGuest(
            policy,
            Root(0),
            carriers,
            memory =>
            {
                for (int i = 0; i < roots; i++)
                {
                    CoherenceGuest.BuildRoot(memory, Root(i), Root(i) + 0x4000);
                    const ulong rights = Vmm.Memory.Pte.Present | Vmm.Memory.Pte.Writable | Vmm.Memory.Pte.User;
                    memory.Write(Root(i) + 0x4000, (0x60_0000 + ((ulong)i << 21)) | rights | Vmm.Memory.Pte.Large);
                }
            }
        );
        Assert.Null(guest.Run());
        const ulong data = 0x4000_0000;
        ulong[] values = new ulong[roots];
        int steps = 0;
        while (!guest.IsFull && steps < 2000)
        {
            int i = steps++ % roots;
            guest.Add(GuestOperation.LoadCr3, Root(i));
            guest.Add(GuestOperation.EnterUser);
            guest.Add(GuestOperation.Read, data, values[i]);
            guest.Add(GuestOperation.Write, data, ++values[i]);
            guest.Add(GuestOperation.EnterKernel);
            guest.Add(GuestOperation.Read, data, values[i]);
        }

        bool ended = false;
        var kicker = new Thread(() =>
        {
            for (int i = 0; i < kicks && !Volatile.Read(ref ended); i++)
            {
                guest.Engine.Kick();
                Thread.SpinWait(i % 300);
            }
        });
        kicker.Start();
        string? wrong = guest.Run();
        Volatile.Write(ref ended, true);
        kicker.Join();
        Assert.Null(wrong);
    }
}
