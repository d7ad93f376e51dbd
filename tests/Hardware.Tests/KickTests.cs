using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Hardware.Tests;

/// <summary>A guest can be stopped at any moment, and goes on as if it had not been.</summary>
public sealed class KickTests
{
    private static readonly TimeSpan Short = TimeSpan.FromMilliseconds(20);

    // Under an emulated VT-x a guest with interrupts off cannot be interrupted by the host either: open them first.
    private static void LoopForEver(Assembler a)
    {
        a.sti();
        a.LoopForEver();
    }

    private static void OutForEver(Assembler a)
    {
        Label again = a.CreateLabel();
        a.sti();
        a.mov(dx, 0x3FF);
        a.Label(ref again);
        a.@out(dx, al);
        a.jmp(again);
    }

    private static void ReadNoRamForEver(Assembler a)
    {
        Label again = a.CreateLabel();
        a.sti();
        a.mov(rbx, HardwareGuest.NoRam);
        a.Label(ref again);
        a.add(__dword_ptr[rbx], 1);
        a.jmp(again);
    }

    private static void StringForEver(Assembler a)
    {
        Label again = a.CreateLabel();
        a.sti();
        a.mov(dx, 0x80);
        a.Label(ref again);
        a.mov(rdi, HardwareGuest.Data);
        a.mov(ecx, 0x10_0000);
        a.rep.insb();
        a.jmp(again);
    }

    private static void FaultForEver(Assembler a)
    {
        Label again = a.CreateLabel();
        a.sti();
        a.mov(ecx, 0x1B);
        a.Label(ref again);
        a.rdmsr();
        a.jmp(again);
    }

    private static readonly Dictionary<string, Action<Assembler>> Endless = new()
    {
        ["a loop"] = LoopForEver,
        ["nothing but OUT"] = OutForEver,
        ["read-modify-writes without RAM"] = ReadNoRamForEver,
        ["string input"] = StringForEver,
        ["an MSR that is not there"] = FaultForEver,
    };

    public static TheoryData<string> EndlessGuests => [.. Endless.Keys];

    [Theory]
    [MemberData(nameof(EndlessGuests))]
    public void An_endless_guest_times_out_and_goes_on_where_it_was(string kind)
    {
        using var guest = new HardwareGuest(Endless[kind]);
        if (kind == "an MSR that is not there")
        {
            guest.InstallHandlers();
            guest.Cpu.Idtr = new DescriptorTable(0x30_0000, 0xFFF);
            guest.SetGate(13, HardwareGuest.Code + 1); // the loop itself is the handler; the stack goes down
            guest.Cpu.Rsp = HardwareGuest.RamBytes;
        }

        for (int i = 0; i < 3; i++)
        {
            RunOutcome outcome = guest.Run(Short);
            Assert.Equal(RunEnd.TimedOut, outcome.End);
            Assert.DoesNotContain('\n', outcome.Message!);
            Assert.InRange(guest.Cpu.Rip, HardwareGuest.Code, HardwareGuest.Code + 64);
        }
    }

    [Fact]
    public void A_loop_with_interrupts_off_times_out()
    {
        HardwareGuest.SkipUnlessAvailable();
        Assert.SkipWhen(EmulatedMachine.IsBochs, "under Bochs a guest that spins with IF=0 cannot be interrupted");
        using var guest = new HardwareGuest(a => a.LoopForEver());
        Assert.Equal(RunEnd.TimedOut, guest.Run(Short).End);
        Assert.Equal(HardwareGuest.Code, guest.Cpu.Rip);
    }

    [Fact]
    public void No_time_at_all_is_enough_to_end()
    {
        using var guest = new HardwareGuest(LoopForEver);
        Assert.Equal(RunEnd.TimedOut, guest.Run(TimeSpan.Zero).End);
    }

    [Fact]
    public void Cancelling_stops_the_guest_and_so_does_having_cancelled_before()
    {
        using var guest = new HardwareGuest(LoopForEver);
        using var cancellation = new CancellationTokenSource(Short);
        Assert.Equal(RunEnd.Cancelled, guest.RunUntil(cancellation.Token).End);
        Assert.Equal(RunEnd.Cancelled, guest.RunUntil(cancellation.Token).End);
    }

    [Fact]
    public void A_kick_before_the_start_makes_one_exit_and_after_disposal_does_nothing()
    {
        var guest = new HardwareGuest(a => a.Exit(4));
        guest.Engine.Kick();
        guest.Engine.Kick();
        Assert.Equal(4, guest.RunToExit());
        Assert.Equal(1, guest.Exits(TrapReason.Kick));
        guest.Dispose();
        guest.Engine.Kick();
        guest.Dispose();
    }

    [Fact]
    public void The_engine_itself_reports_a_kick_once()
    {
        using var guest = new HardwareGuest(a => a.Exit(4));
        guest.Engine.AttachThread();
        guest.Engine.Kick();
        Assert.Equal(VmExitReason.Interrupted, guest.Engine.Run().Reason);
        Assert.Equal(VmExitReason.PortIo, guest.Engine.Run().Reason);

        // With the instruction not yet completed
        guest.Engine.Kick();
        Assert.Equal(VmExitReason.Interrupted, guest.Engine.Run().Reason);
        guest.Engine.SaveLazyState();
        Assert.Equal(HardwareGuest.Code + 4, guest.Cpu.Rip);
        guest.Engine.DetachThread();
    }

    [Fact]
    public void A_kick_while_an_instruction_is_being_completed_is_not_lost()
    {
        using var guest = new HardwareGuest(OutForEver);
        guest.Engine.AttachThread();
        for (int i = 0; i < 200; i++)
        {
            Assert.Equal(VmExitReason.PortIo, guest.Engine.Run().Reason);
            var kicker = new Thread(guest.Engine.Kick);
            kicker.Start();
            guest.Engine.SaveLazyState();
            kicker.Join();
            Assert.Equal(VmExitReason.Interrupted, guest.Engine.Run().Reason);
        }

        guest.Engine.DetachThread();
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_guest_that_counts_loses_nothing_in_a_storm_of_kicks(bool withoutSyncRegs)
    {
        const int kickers = 3;
        const int kicks = 300;
        using var guest = new HardwareGuest(
            a =>
            {
                Label again = a.CreateLabel();
                Label next = a.CreateLabel();
                a.sti();
                a.xor(r15d, r15d);
                a.xor(r14d, r14d);
                a.mov(dx, 0x3FF);
                a.mov(rbx, HardwareGuest.NoRam);
                a.Label(ref again);
                a.mov(ecx, 20);
                a.Label(ref next);
                a.inc(r15);
                a.inc(__qword_ptr[HardwareGuest.Data + 8]);
                a.dec(ecx);
                a.jne(next);
                a.mov(eax, r15d);
                a.@out(dx, al);
                a.@in(al, dx); // what has just been written, whatever came in between
                a.cmp(al, r15b);
                a.setne(al);
                a.movzx(eax, al);
                a.add(r14, rax);
                a.mov(__dword_ptr[rbx], eax);
                a.mov(eax, __dword_ptr[rbx]);
                a.inc(eax);
                a.add(r14, rax);
                a.cmp(__qword_ptr[HardwareGuest.Data], 0);
                a.je(again);
                a.mov(HardwareGuest.ResultSlot(0), r15);
                a.mov(HardwareGuest.ResultSlot(1), r14);
                a.Exit();
            },
            without: withoutSyncRegs ? offered => offered with { SyncRegs = false } : null
        );
        int left = kickers;
        Thread[] threads =
        [
            .. Enumerable
                .Range(0, kickers)
                .Select(_ => new Thread(() =>
                {
                    Assert.True(
                        SpinWait.SpinUntil(
                            () => guest.Memory.Read<ulong>(HardwareGuest.Data + 8) > 0,
                            HardwareGuest.Ample
                        )
                    );
                    for (int i = 0; i < kicks; i++)
                    {
                        guest.Engine.Kick();
                        if (i % 8 == 0)
                        {
                            Thread.Yield();
                        }
                    }

                    if (Interlocked.Decrement(ref left) == 0)
                    {
                        guest.Memory.Write(HardwareGuest.Data, 1UL);
                    }
                })),
        ];
        Array.ForEach(threads, thread => thread.Start());
        RunOutcome outcome = guest.Run();
        Array.ForEach(threads, thread => thread.Join());

        Assert.Equal((RunEnd.Exited, null), (outcome.End, outcome.Message));
        Assert.NotEqual(0UL, guest.Result(0));
        Assert.Equal(0UL, guest.Result(1));
        Assert.Equal(guest.Result(0), guest.Memory.Read<ulong>(HardwareGuest.Data + 8));
        Assert.Equal((long)guest.Result(0) / 20 * 2, guest.Machine.AbsentMemory.UnclaimedAccesses);
        Assert.Equal(((long)guest.Result(0) / 20 * 2) + 1, guest.Exits(TrapReason.PortIo));
        Assert.InRange(guest.Exits(TrapReason.Kick), 1, kickers * kicks);

        // None is left over for the next run.
        guest.Machine.Load(HardwareGuest.Assemble(a => a.nop()), new Vmm.Boot.BootOptions());
    }

    [Fact]
    public void Stopped_at_every_access_to_a_port_a_guest_comes_to_the_same_result()
    {
        const ushort port = 0x900;
        using var guest = new HardwareGuest(a =>
        {
            Label again = a.CreateLabel();
            a.cld();
            a.sti();
            a.mov(dx, port);
            a.mov(ebp, 8);
            a.xor(r15d, r15d);
            a.Label(ref again);
            a.mov(eax, ebp);
            a.@out(dx, al);
            a.xor(eax, eax);
            a.@in(al, dx);
            a.add(r15, rax);
            a.mov(rdi, HardwareGuest.Data);
            a.mov(ecx, 5);
            a.rep.insw();
            a.mov(rsi, HardwareGuest.Data);
            a.mov(ecx, 10);
            a.rep.outsb();
            a.add(r15, __qword_ptr[HardwareGuest.Data]);
            a.lea(r15, __[r15 + rsi + 1]);
            a.add(r15, rdi);
            a.dec(ebp);
            a.jnz(again);
            a.Store(0, r15);
            a.Exit();
        });
        var device = new StoppingDevice();
        guest.Machine.Ports.Attach(device, port, 1);
        int runs = 0;
        RunOutcome outcome;
        do
        {
            using var cancellation = new CancellationTokenSource();
            device.Cancellation = cancellation;
            outcome = guest.RunUntil(cancellation.Token);
            Assert.InRange(guest.Cpu.Rip, HardwareGuest.Code, HardwareGuest.Code + 128);
        } while (outcome.End == RunEnd.Cancelled && ++runs < 1000);

        Assert.Equal((RunEnd.Exited, null), (outcome.End, outcome.Message));
        ulong expected = 0;
        byte input = 0;
        var written = new List<byte>();
        for (byte i = 8; i > 0; i--)
        {
            written.Add(i);
            expected += ++input;
            ushort[] words = [.. Enumerable.Range(0, 5).Select(_ => (ushort)(0xAA00 | ++input))];
            byte[] bytes = [.. words.SelectMany(BitConverter.GetBytes)];
            written.AddRange(bytes);
            expected += BitConverter.ToUInt64(bytes) + HardwareGuest.Data + 10 + 1 + HardwareGuest.Data + 10;
        }

        Assert.Equal(written, device.Written);
        Assert.Equal(expected, guest.Result(0));
        Assert.InRange(runs, 16, 1000);
    }

    /// <summary>Counts up in what it gives, keeps what it gets, and asks each time for the guest to be stopped.</summary>
    private sealed class StoppingDevice : Vmm.Devices.IIoDevice
    {
        private byte _next;

        public CancellationTokenSource? Cancellation { get; set; }

        public List<byte> Written { get; } = [];

        public uint Read(ushort port, int size)
        {
            Cancellation!.Cancel();
            return size == 1 ? ++_next : (uint)(0xAA00 | ++_next);
        }

        public void Write(ushort port, int size, uint value)
        {
            Cancellation!.Cancel();
            Written.Add((byte)value);
        }
    }

    [Fact]
    public unsafe void Stopped_between_the_read_and_the_write_of_one_instruction_both_happen()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.mov(rbx, HardwareGuest.NoRam);
            a.add(__dword_ptr[rbx], 5);
            a.Exit(3);
        });
        HardwareEngineDriver drive = new(guest);
        VmExit read = drive.Run(VmExitReason.Mmio);
        Assert.Equal(PageAccess.Read, read.Access);
        *(uint*)read.Data = 7;
        guest.Engine.Kick();
        drive.Run(VmExitReason.Interrupted);
        guest.Engine.SaveLazyState();
        guest.Engine.SaveLazyState();
        VmExit write = drive.Run(VmExitReason.Mmio);
        Assert.Equal((PageAccess.Write, 4, 12U), (write.Access, write.Size, *(uint*)write.Data));
        guest.Engine.SaveLazyState();
        VmExit exit = drive.Run(VmExitReason.PortIo);
        Assert.Equal((0xF4UL, (byte)3), (exit.Address, *(byte*)exit.Data));
    }

    [Fact]
    public unsafe void Stopped_within_a_string_instruction_each_item_comes_from_the_core_once()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.cld();
            a.mov(rsi, HardwareGuest.NoRam);
            a.mov(rdi, HardwareGuest.Data);
            a.mov(ecx, 4);
            a.rep.movsb();
            a.Exit(3);
        });
        HardwareEngineDriver drive = new(guest);
        for (uint i = 0; i < 4; i++)
        {
            VmExit read = drive.Run(VmExitReason.Mmio);
            Assert.Equal((HardwareGuest.NoRam + i, 1, PageAccess.Read), (read.Address, read.Size, read.Access));
            *(byte*)read.Data = (byte)(0x11 * (i + 1));
            for (int stops = 0; stops < 2; stops++)
            {
                guest.Engine.Kick();
                drive.Run(VmExitReason.Interrupted);
                guest.Engine.SaveLazyState();
            }
        }

        drive.Run(VmExitReason.PortIo);
        Assert.Equal(0x4433_2211U, guest.Memory.Read<uint>(HardwareGuest.Data));
    }

    [Fact]
    public unsafe void What_is_loaded_anew_does_not_get_the_exits_of_what_was_there()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.cld();
            a.mov(rsi, HardwareGuest.NoRam);
            a.mov(rdi, HardwareGuest.Code);
            a.mov(ecx, 4);
            a.rep.movsb();
        });
        HardwareEngineDriver drive = new(guest);
        drive.Run(VmExitReason.Mmio);
        guest.Engine.SaveLazyState(); // the next read is now held back; what it gives must not get into the new code
        guest.Machine.Load(HardwareGuest.Assemble(a => a.Exit(6)), new Vmm.Boot.BootOptions());
        VmExit exit = drive.Run(VmExitReason.PortIo);
        Assert.Equal((0xF4UL, (byte)6), (exit.Address, *(byte*)exit.Data));
    }

    [Fact]
    public void A_register_changed_while_the_guest_stands_still_stays_changed()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.sti();
            a.LoopForEver();
            a.Exit(9);
        });
        Assert.Equal(RunEnd.TimedOut, guest.Run(Short).End);
        guest.Cpu.Rip = HardwareGuest.Code + 3;
        guest.Cpu[Gpr.R8] = 77;
        Assert.Equal(RunEnd.Cancelled, guest.RunUntil(new CancellationToken(canceled: true)).End);
        Assert.Equal(HardwareGuest.Code + 3, guest.Cpu.Rip);
        Assert.Equal(9, guest.RunToExit());
        Assert.Equal(77UL, guest.Cpu[Gpr.R8]);
    }

    [Fact]
    public void An_event_that_is_pending_is_still_so_when_the_guest_was_stopped_before_it_started()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.LoadIdt();
            a.LoopForEver();
        }).InstallHandlers();
        guest.Cpu.Idtr = new DescriptorTable(0x30_0000, 0xFFF);
        guest.Cpu.PendingEvent = GuestEvent.Exception(Vector.StackFault, 0x44);
        Assert.Equal(RunEnd.Cancelled, guest.RunUntil(new CancellationToken(canceled: true)).End);
        Assert.Equal(GuestEvent.Exception(Vector.StackFault, 0x44), guest.Cpu.PendingEvent);
        Assert.Equal(new CaughtException(Vector.StackFault, 0x44, HardwareGuest.Code, 0), guest.RunToException());
    }

    // ------------------------------------------------------------------------------------------ deadlines

    private static ulong Ahead(HardwareGuest guest, double seconds) =>
        guest.Engine.Clock.Ticks + (ulong)(seconds * guest.Engine.Clock.TicksPerSecond);

    [Fact]
    public void A_deadline_ends_an_entry_and_never_before_its_time()
    {
        using var guest = new HardwareGuest(LoopForEver);
        guest.Engine.AttachThread();
        for (int i = 0; i < 100; i++)
        {
            guest.Engine.Deadline = Ahead(guest, 0.0002);
            Assert.Equal(VmExitReason.Interrupted, guest.Engine.Run().Reason);
            Assert.True(guest.Engine.Clock.Ticks >= guest.Engine.Deadline);
        }

        guest.Engine.DetachThread();
    }

    [Fact]
    public void Entries_whose_deadline_is_over_get_on()
    {
        using var guest = new HardwareGuest(a =>
        {
            Label again = a.CreateLabel();
            a.sti();
            a.Label(ref again);
            a.inc(rbx);
            a.jmp(again);
        });
        guest.Engine.AttachThread();
        guest.Engine.Deadline = 0;
        int entries = 0;
        for (; entries < 1000 && guest.Cpu[Gpr.Rbx] < 1000; entries++)
        {
            Assert.Equal(VmExitReason.Interrupted, guest.Engine.Run().Reason);
        }

        Assert.True(guest.Cpu[Gpr.Rbx] >= 1000, $"RBX {guest.Cpu[Gpr.Rbx]} after {entries} entries");
        guest.Engine.DetachThread();
    }

    [Fact]
    public void A_deadline_that_is_moved_away_does_not_end_the_entry_and_one_that_comes_nearer_does()
    {
        using var guest = new HardwareGuest(a =>
        {
            Label again = a.CreateLabel();
            a.sti();
            a.@out(0x80, al);
            a.mov(ecx, 100_000);
            a.Label(ref again);
            a.dec(ecx);
            a.jnz(again);
            a.@out(0x80, al);
            a.LoopForEver();
        });
        guest.Engine.AttachThread();
        VmExit exit;
        do
        {
            guest.Engine.Deadline = Ahead(guest, 0.001);
            exit = guest.Engine.Run();
        } while (exit.Reason == VmExitReason.Interrupted); // a slow host

        Assert.Equal(VmExitReason.PortIo, exit.Reason);
        guest.Engine.Deadline = ulong.MaxValue; // the timer still runs
        Assert.Equal(VmExitReason.PortIo, guest.Engine.Run().Reason);
        guest.Engine.Deadline = Ahead(guest, 3600);
        guest.Engine.Deadline = Ahead(guest, 0.001);
        Assert.Equal(VmExitReason.Interrupted, guest.Engine.Run().Reason);
        guest.Engine.DetachThread();
    }

    [Fact]
    public void Idling_ends_at_the_deadline_and_not_before()
    {
        using var guest = new HardwareGuest(LoopForEver);
        guest.Engine.AttachThread();
        for (int i = 0; i < 20; i++)
        {
            guest.Engine.Deadline = Ahead(guest, 0.0005);
            guest.Engine.Idle();
            Assert.True(guest.Engine.Clock.Ticks >= guest.Engine.Deadline);
        }

        guest.Engine.Idle(); // it is over
        guest.Engine.DetachThread();
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_kick_ends_idling_for_ever_and_is_taken_by_it(bool attached)
    {
        using var guest = new HardwareGuest(a => a.Exit());
        if (attached)
        {
            guest.Engine.AttachThread();
        }

        for (int i = 0; i < 200; i++)
        {
            var kicker = new Thread(guest.Engine.Kick);
            kicker.Start();
            guest.Engine.Idle();
            kicker.Join();
        }

        Assert.Equal(VmExitReason.PortIo, guest.Engine.Run().Reason);
        if (attached)
        {
            guest.Engine.DetachThread();
        }
    }

    [Fact]
    public void Time_limits_end_a_guest_that_is_interrupted_all_the_time()
    {
        using var guest = new HardwareGuest(LoopForEver);
        guest.Engine.AttachThread();
        using var limit = new CancellationTokenSource(Short);
        using CancellationTokenRegistration kick = limit.Token.Register(guest.Engine.Kick);
        guest.Engine.Deadline = 0; // each entry is ended by it, so that a kick is one among many
        while (!limit.IsCancellationRequested)
        {
            Assert.Equal(VmExitReason.Interrupted, guest.Engine.Run().Reason);
        }

        guest.Engine.DetachThread();
    }

    // ------------------------------------------------------------------------------------------ interrupts given and not taken

    [Fact]
    public void An_interrupt_that_a_kick_came_before_is_the_pending_event_of_a_stopped_machine()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.sti();
            a.LoopForEver();
        }).InstallHandlers();
        guest.Cpu.Idtr = new DescriptorTable(0x30_0000, 0xFFF);
        guest.Engine.AttachThread();
        guest.Engine.LoadLazyState();
        guest.Engine.RequestInterruptWindow();
        Assert.Equal(VmExitReason.InterruptWindow, guest.Engine.Run().Reason);
        Assert.True(guest.Engine.AcceptsInterrupt);
        guest.Engine.Inject(GuestEvent.Interrupt(0x33));
        Assert.False(guest.Engine.AcceptsInterrupt); // one at a time
        guest.Engine.Kick();
        Assert.Equal(VmExitReason.Interrupted, guest.Engine.Run().Reason);
        guest.Engine.SaveLazyState();
        Assert.Equal(GuestEvent.Interrupt(0x33), guest.Cpu.PendingEvent);
        guest.Engine.DetachThread();

        // Given once more, it comes once: the handler is the guest's end.
        guest.Cpu.Rflags |= Rflags.If;
        Assert.Equal(1, guest.RunToExit());
        Assert.Equal(0x33UL, guest.Result(0));
    }

    [Fact]
    public void Before_the_first_entry_the_cpus_own_flags_say_whether_an_interrupt_is_accepted()
    {
        using var guest = new HardwareGuest(a => a.Exit());
        Assert.False(guest.Engine.AcceptsInterrupt);
        guest.Cpu.Rflags |= Rflags.If;
        Assert.True(guest.Engine.AcceptsInterrupt);
        guest.Cpu.InterruptShadow = true;
        Assert.False(guest.Engine.AcceptsInterrupt);
    }

    [Fact]
    public void A_window_that_is_not_asked_for_again_does_not_open()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.@out(0x80, al);
            a.sti();
            a.nop();
            a.@out(0x80, al);
            a.LoopForEver();
        });
        guest.Engine.AttachThread();
        guest.Engine.RequestInterruptWindow();
        Assert.Equal(VmExitReason.PortIo, guest.Engine.Run().Reason);
        Assert.Equal(VmExitReason.PortIo, guest.Engine.Run().Reason);
        guest.Engine.RequestInterruptWindow();
        Assert.Equal(VmExitReason.InterruptWindow, guest.Engine.Run().Reason);
        Assert.True(guest.Engine.AcceptsInterrupt);
        guest.Engine.Deadline = Ahead(guest, 0.002);
        Assert.Equal(VmExitReason.Interrupted, guest.Engine.Run().Reason);
        guest.Engine.DetachThread();
    }
}

/// <summary>Runs an engine without its core.</summary>
internal sealed class HardwareEngineDriver(HardwareGuest guest)
{
    public VmExit Run(VmExitReason expected)
    {
        guest.Engine.AttachThread();
        VmExit exit = guest.Engine.Run();
        guest.Engine.DetachThread();
        Assert.Equal((expected, null), (exit.Reason, exit.Message));
        return exit;
    }
}
