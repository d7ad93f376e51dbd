using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;

namespace VirtBench.Vmm.Tests;

/// <summary>The 8254 on a clock that stands still unless it is told to go on.</summary>
public sealed class IntervalTimerTests
{
    // Not a multiple of the 8254's frequency: a pulse is 1676.19… ticks.
    private const ulong ClockHertz = 2_000_000_000;

    private readonly StandingClock _clock = new();
    private readonly InterruptController _pic = new();
    private readonly IntervalTimer _timer;

    public IntervalTimerTests()
    {
        _timer = new IntervalTimer(_clock, _pic);
        foreach ((int offset, uint value) in ((int, uint)[])[(0, 0x11), (1, 0x20), (1, 0x04), (1, 0x01)])
        {
            _pic.Write((ushort)(InterruptController.MasterPort + offset), 1, value);
        }
    }

    private sealed class StandingClock(ulong hertz = ClockHertz) : IEngineClock
    {
        public ulong Ticks { get; set; } = 12_345;

        public double TicksPerSecond => hertz;

        public double Nanoseconds => Ticks / 2.0;

        public void ChargeEmulation(TrapReason reason) { }
    }

    // ------------------------------------------------------------------------------------------ helpers

    private ulong _pulse;

    // The clock's first tick of the pulse; the timer is told as the run loop does.
    private void GoTo(ulong pulse)
    {
        _pulse = pulse;
        _clock.Ticks = TicksOf(pulse);
        if (_clock.Ticks >= _timer.NextEvent)
        {
            _timer.Advance(_clock.Ticks);
        }
    }

    private static ulong TicksOf(ulong pulse) =>
        12_345 + (ulong)((((UInt128)pulse * ClockHertz) + IntervalTimer.Hertz - 1) / IntervalTimer.Hertz);

    private void Control(int value) => _timer.Write(IntervalTimer.FirstPort + 3, 1, (uint)value);

    private void Count(int value, int channel = 0)
    {
        _timer.Write((ushort)(IntervalTimer.FirstPort + channel), 1, (uint)value & 0xFF);
        _timer.Write((ushort)(IntervalTimer.FirstPort + channel), 1, (uint)value >> 8);
    }

    private byte Read(int channel = 0) => (byte)_timer.Read((ushort)(IntervalTimer.FirstPort + channel), 1);

    private int ReadCount(int channel = 0)
    {
        Control(channel << 6); // latch
        int low = Read(channel);
        return low | (Read(channel) << 8);
    }

    private byte Status(int channel = 0)
    {
        Control(0xE0 | (2 << channel));
        return Read(channel);
    }

    private bool Output(int channel = 0) => (Status(channel) & 0x80) != 0;

    private void Program(int mode, int count, int channel = 0, bool bcd = false)
    {
        Control((channel << 6) | 0x30 | (mode << 1) | (bcd ? 1 : 0));
        Count(count, channel);
    }

    // The guest's handler: takes the interrupt and ends it.
    private bool Take()
    {
        if (!_pic.Requested)
        {
            return false;
        }

        Assert.Equal(0x20, _pic.Acknowledge());
        _pic.Write(InterruptController.MasterPort, 1, 0x20);
        return true;
    }

    private void Mask(bool masked) => _pic.Write(InterruptController.MasterPort + 1, 1, masked ? 1u : 0u);

    // ------------------------------------------------------------------------------------------ edges

    [Theory]
    [InlineData(0, 1, 2)] // mode, count, pulses from the write to the rising edge
    [InlineData(0, 100, 101)]
    [InlineData(0, 0, 65_537)]
    [InlineData(4, 100, 102)] // low for one pulse, then high
    [InlineData(2, 100, 101)]
    [InlineData(2, 0, 65_537)]
    [InlineData(3, 100, 101)]
    [InlineData(3, 101, 102)]
    public void The_interrupt_comes_at_the_exact_pulse(int mode, int count, ulong pulses)
    {
        GoTo(1000);
        Program(mode, count);
        Assert.Equal(TicksOf(1000 + pulses), _timer.NextEvent);
        GoTo(1000 + pulses - 1);
        _timer.Advance(_clock.Ticks);
        Assert.False(_pic.Requested);
        _clock.Ticks = TicksOf(1000 + pulses) - 1;
        _timer.Advance(_clock.Ticks);
        Assert.False(_pic.Requested);
        GoTo(1000 + pulses);
        Assert.True(_pic.Requested);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(4)]
    public void A_one_shot_comes_once(int mode)
    {
        Program(mode, 50);
        GoTo(60);
        Assert.True(Take());
        Assert.Equal(ulong.MaxValue, _timer.NextEvent);
        GoTo(1_000_000);
        Assert.False(_pic.Requested);
        Count(50);
        Assert.NotEqual(ulong.MaxValue, _timer.NextEvent);
        GoTo(1_000_100);
        Assert.True(Take());
        Assert.Equal(2, _timer.Ticks);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(5)]
    public void A_mode_that_waits_for_a_trigger_waits_for_ever(int mode)
    {
        Program(mode, 50);
        Assert.Equal(ulong.MaxValue, _timer.NextEvent);
        GoTo(1000);
        Assert.False(_pic.Requested);
        Assert.Equal(50, ReadCount());
        Assert.Equal(0x40 | 0x80, Status() & 0xC0); // null count, and the output is high
    }

    [Theory]
    [InlineData(2)]
    [InlineData(3)]
    public void Periods_follow_each_other_without_drift(int mode)
    {
        const ulong count = 1193;
        Program(mode, (int)count);
        for (ulong i = 1; i <= 1_000_000; i++)
        {
            ulong due = TicksOf(1 + (i * count));
            if (_timer.NextEvent != due)
            {
                Assert.Equal((i, due), (i, _timer.NextEvent));
            }

            _clock.Ticks = due + (i % 7); // noticed a little late
            _timer.Advance(_clock.Ticks);
            if (!Take())
            {
                Assert.Fail($"no interrupt at period {i}");
            }
        }

        Assert.Equal((1_000_000, 0, 0), (_timer.Ticks, _timer.Late, _timer.Owed));
    }

    [Fact]
    public void A_count_of_one_is_a_tick_every_pulse()
    {
        Program(2, 1);
        for (ulong pulse = 2; pulse < 100; pulse++)
        {
            GoTo(pulse);
            Assert.True(Take());
        }

        Assert.Equal(98, _timer.Ticks);
    }

    // ------------------------------------------------------------------------------------------ owed ticks

    [Fact]
    public void Ticks_that_come_while_one_waits_are_requested_afterwards_and_none_is_lost_or_doubled()
    {
        Program(2, 100);
        GoTo(1 + 100 + 50);
        Assert.True(_pic.Requested);
        Assert.Equal(ulong.MaxValue, _timer.NextEvent); // nothing to do until it is taken
        GoTo(1 + 1000 + 50); // nine more
        int taken = 0;
        while (Take())
        {
            taken++;
        }

        Assert.Equal(10, taken);
        Assert.Equal((10, 9, 0), (_timer.Ticks, _timer.Late, _timer.Owed));
        Assert.Equal(TicksOf(1 + 1100), _timer.NextEvent);
    }

    [Fact]
    public void As_many_interrupts_are_taken_as_periods_have_passed_whenever_they_are_taken()
    {
        var random = new Random(7);
        Program(3, 11);
        ulong pulse = 0;
        long taken = 0;
        for (int i = 0; i < 100_000; i++)
        {
            pulse += (ulong)random.Next(40);
            GoTo(pulse);
            for (int n = random.Next(6); n > 0 && Take(); n--)
            {
                taken++;
            }
        }

        while (Take())
        {
            taken++;
        }

        Assert.Equal((long)((pulse - 1) / 11), taken);
        Assert.Equal((taken, 0), (_timer.Ticks, _timer.Owed));
        Assert.Equal(0, _timer.Masked);
    }

    [Fact]
    public void What_comes_behind_a_mask_is_dropped_but_for_one()
    {
        Program(2, 100);
        Mask(true);
        GoTo(1 + 1000);
        Mask(false);
        GoTo(1 + 1050);
        Assert.True(Take());
        Assert.False(Take());
        Assert.Equal((10, 9, 0), (_timer.Ticks, _timer.Masked, _timer.Late));
        GoTo(1 + 1100);
        Assert.True(Take());
    }

    [Fact]
    public void What_was_owed_before_the_mask_stays_owed()
    {
        Program(2, 100);
        GoTo(1 + 500); // five, of which none is taken
        Mask(true);
        GoTo(1 + 1000); // five more
        Mask(false);
        int taken = 0;
        while (Take())
        {
            taken++;
        }

        Assert.Equal((5, 5, 4), (taken, _timer.Masked, _timer.Late));
    }

    [Fact]
    public void A_tick_that_is_polled_lets_the_next_come()
    {
        Program(2, 100);
        GoTo(1 + 250);
        _pic.Write(InterruptController.MasterPort, 1, 0x0C);
        Assert.Equal(0x80u, _pic.Read(InterruptController.MasterPort, 1));
        _pic.Write(InterruptController.MasterPort, 1, 0x20);
        Assert.True(Take()); // the second, owed
        GoTo(1 + 300);
        Assert.True(Take());
    }

    [Fact]
    public void Initializing_the_controller_forgets_what_was_owed_and_the_timer_goes_on()
    {
        Program(2, 100);
        GoTo(1 + 550);
        Assert.True(_pic.Requested);
        _pic.Write(InterruptController.MasterPort, 1, 0x11);
        _pic.Write(InterruptController.MasterPort + 1, 1, 0x20);
        _pic.Write(InterruptController.MasterPort + 1, 1, 0x04);
        _pic.Write(InterruptController.MasterPort + 1, 1, 0x01);
        Assert.False(_pic.Requested);
        Assert.Equal(0, _timer.Owed);
        Assert.Equal(TicksOf(1 + 600), _timer.NextEvent);
        GoTo(1 + 600);
        Assert.True(Take());
        Assert.False(Take());
    }

    [Fact]
    public void A_new_mode_ends_what_the_old_one_owed()
    {
        Program(2, 100);
        GoTo(1 + 550);
        Program(0, 1000);
        Assert.True(Take()); // the edge that the controller has latched
        Assert.False(Take());
    }

    // ------------------------------------------------------------------------------------------ new counts

    [Fact]
    public void In_mode_2_a_new_count_takes_over_at_the_end_of_the_period()
    {
        Program(2, 100);
        GoTo(30);
        Count(40);
        Assert.Equal(0x40, Status() & 0x40); // null count
        Assert.Equal(100 - 29, ReadCount());
        Assert.Equal(TicksOf(101), _timer.NextEvent);
        GoTo(101);
        Assert.True(Take());
        Assert.Equal(0, Status() & 0x40);
        Assert.Equal(40, ReadCount());
        Assert.Equal(TicksOf(141), _timer.NextEvent);
    }

    [Theory]
    [InlineData(10, 1 + 50 + 20, 1 + 50 + 20 + 40)] // written in the high half: the low one is the new count's
    [InlineData(60, 1 + 100, 1 + 100 + 40)] // in the low half
    public void In_mode_3_a_new_count_takes_over_at_the_end_of_the_half(ulong written, ulong first, ulong second)
    {
        Program(3, 100);
        GoTo(written);
        Count(40);
        Assert.Equal(TicksOf(first), _timer.NextEvent);
        GoTo(first - 1);
        Assert.False(Output());
        Assert.Equal(2, ReadCount());
        GoTo(first);
        Assert.True(Take());
        Assert.Equal(TicksOf(second), _timer.NextEvent);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(4)]
    public void In_a_one_shot_a_new_count_starts_at_once(int mode)
    {
        Program(mode, 100);
        GoTo(60);
        Count(200);
        GoTo(60 + 200);
        Assert.False(_pic.Requested);
        GoTo(60 + 202);
        Assert.True(Take());
    }

    [Fact]
    public void In_mode_0_the_first_byte_of_a_count_stops_the_last_one()
    {
        Program(0, 100);
        _timer.Write(IntervalTimer.FirstPort, 1, 10);
        GoTo(500);
        Assert.False(_pic.Requested);
        _timer.Write(IntervalTimer.FirstPort, 1, 0);
        GoTo(511);
        Assert.True(Take());
    }

    [Fact]
    public void The_first_byte_alone_starts_nothing()
    {
        Control(0x34);
        _timer.Write(IntervalTimer.FirstPort, 1, 10);
        Assert.Equal(ulong.MaxValue, _timer.NextEvent);
    }

    [Theory]
    [InlineData(1, 0x34, 0x34)] // access: low byte only
    [InlineData(2, 0x12, 0x1200)] // high byte only
    public void One_byte_counts_have_zero_for_the_other(int access, int written, int count)
    {
        Control((access << 4) | 0x04);
        _timer.Write(IntervalTimer.FirstPort, 1, (uint)written);
        Assert.Equal(TicksOf(1 + (ulong)count), _timer.NextEvent);
        GoTo(1);
        Assert.Equal(written, Read());
        Assert.Equal(written, Read());
    }

    // ------------------------------------------------------------------------------------------ reading

    [Fact]
    public void The_count_goes_down_and_a_latch_holds_it()
    {
        Program(2, 0x1234);
        GoTo(1);
        Assert.Equal(0x1234, ReadCount());
        GoTo(1 + 0x34);
        Control(0);
        GoTo(1 + 0x100);
        Control(0); // a second latch is ignored
        Assert.Equal((0x00, 0x12), (Read(), Read()));
        Assert.Equal(0x1134, ReadCount());
    }

    [Theory]
    [InlineData(6, new[] { 6, 4, 2, 6, 4, 2, 6 }, new[] { 1, 1, 1, 0, 0, 0, 1 })]
    [InlineData(5, new[] { 4, 2, 0, 4, 2, 4 }, new[] { 1, 1, 1, 0, 0, 1 })]
    public void A_square_wave_counts_down_by_two(int count, int[] counts, int[] outputs)
    {
        Program(3, count, channel: 2);
        for (int i = 0; i < counts.Length; i++)
        {
            GoTo(1 + (ulong)i);
            Assert.Equal((counts[i], outputs[i]), (ReadCount(2), Output(2) ? 1 : 0));
        }
    }

    [Fact]
    public void A_rate_generator_is_low_for_its_last_pulse()
    {
        Program(2, 3, channel: 1);
        int[] outputs = [1, 1, 0, 1, 1, 0];
        for (int i = 0; i < outputs.Length; i++)
        {
            GoTo(1 + (ulong)i);
            Assert.Equal((3 - (i % 3), outputs[i]), (ReadCount(1), Output(1) ? 1 : 0));
        }
    }

    [Fact]
    public void A_one_shot_counts_on_through_zero()
    {
        Program(0, 2, channel: 1);
        Assert.False(Output(1));
        GoTo(3);
        Assert.True(Output(1));
        Assert.Equal(0, ReadCount(1));
        GoTo(5);
        Assert.Equal(0xFFFE, ReadCount(1));
        Assert.True(Output(1));
        Program(0, 2, channel: 2, bcd: true);
        GoTo(5 + 1 + 3);
        Assert.Equal(0x9999, ReadCount(2));
    }

    [Fact]
    public void Binary_coded_decimals_count_in_tens()
    {
        Program(2, 0x1000, bcd: true);
        Assert.Equal(TicksOf(1 + 1000), _timer.NextEvent);
        GoTo(2);
        Assert.Equal(0x0999, ReadCount());
        Program(2, 0, bcd: true);
        Assert.Equal(TicksOf(2 + 1 + 10_000), _timer.NextEvent);
        Program(2, 0xFFFF, bcd: true); // no decimal digits: some count, but no harm
        GoTo(100_000);
        _ = ReadCount();
        Assert.True(_timer.Ticks > 0);
    }

    [Fact]
    public void Read_back_gives_the_control_word_as_written_and_status_before_count()
    {
        Program(6, 100, channel: 1); // mode 2 with its unused bit set
        Assert.Equal(0x80 | 0x40 | 0x3C, Status(1)); // not loaded before the next pulse
        GoTo(11);
        Control(0xC4); // count and status of channel 1
        GoTo(50);
        Assert.Equal(0x80 | 0x3C, Read(1));
        Assert.Equal((90, 0), (Read(1), Read(1)));
        Assert.Equal(51, ReadCount(1));
    }

    [Fact]
    public void Read_back_latches_several_channels_at_once()
    {
        Program(2, 100, channel: 0);
        Program(2, 200, channel: 1);
        Program(2, 300, channel: 2);
        GoTo(11);
        Control(0xDE); // counts of all three
        GoTo(90);
        Assert.Equal((90, 0), (Read(0), Read(0)));
        Assert.Equal((190, 0), (Read(1), Read(1)));
        Assert.Equal((290 & 0xFF, 1), (Read(2), Read(2)));
    }

    [Fact]
    public void The_control_port_and_wide_reads_give_ones()
    {
        Assert.Equal(0xFFu, _timer.Read(IntervalTimer.FirstPort + 3, 1));
        Assert.Equal(0xFFFFu, _timer.Read(IntervalTimer.FirstPort + 3, 2));
        Program(2, 100);
        Assert.Equal(0xFFFF_FF00u, _timer.Read(IntervalTimer.FirstPort, 4) & 0xFFFF_FF00u);
    }

    [Fact]
    public void The_other_channels_raise_nothing()
    {
        Program(2, 10, channel: 1);
        Program(3, 10, channel: 2);
        GoTo(1000);
        Assert.Equal(ulong.MaxValue, _timer.NextEvent);
        Assert.False(_pic.Requested);
    }

    // ------------------------------------------------------------------------------------------ another clock

    [Theory]
    [InlineData(65_000_000)]
    [InlineData(3_700_000_000)]
    [InlineData(1_000_000)] // slower than the 8254
    public void A_period_that_is_under_way_ends_as_much_later_on_another_clock(ulong hertz)
    {
        Program(2, 10_000);
        GoTo(4001);
        var other = new StandingClock(hertz) { Ticks = 5 };
        _timer.SwitchClock(other);
        ulong rest = (ulong)(((UInt128)6000 * hertz) / IntervalTimer.Hertz);
        Assert.InRange(_timer.NextEvent, 5 + rest - 1, 5 + rest + 1);
        other.Ticks = _timer.NextEvent - 1;
        _timer.Advance(other.Ticks);
        Assert.False(_pic.Requested);
        other.Ticks++;
        _timer.Advance(other.Ticks);
        Assert.True(Take());
        ulong period = (ulong)(((UInt128)10_000 * hertz) / IntervalTimer.Hertz);
        Assert.InRange(_timer.NextEvent - other.Ticks, period - 1, period + 1);
    }

    [Fact]
    public void Many_changes_of_the_clock_lose_no_part_of_a_pulse()
    {
        Program(2, 100);
        IEngineClock[] clocks = [_clock, new StandingClock(65_000_000), new StandingClock(1_000_003)];
        UInt128 seconds = 0; // as a fraction of all three rates
        for (int i = 0; i < 30_000; i++)
        {
            var clock = (StandingClock)clocks[i % clocks.Length];
            _timer.SwitchClock(clock);
            ulong step = 1 + ((ulong)i % 7);
            clock.Ticks += step;
            seconds += step * (UInt128)(1_000_000_000_000_000_000 / (ulong)clock.TicksPerSecond);
            if (clock.Ticks >= _timer.NextEvent)
            {
                _timer.Advance(clock.Ticks);
                _ = Take();
            }
        }

        ulong pulses = (ulong)(seconds * IntervalTimer.Hertz / 1_000_000_000_000_000_000);
        Assert.InRange(_timer.Ticks, ((long)pulses / 100) - 1, ((long)pulses / 100) + 1);
        Assert.True(_timer.Ticks > 300);
    }

    [Fact]
    public void The_same_clock_goes_on_while_it_is_exchanged_for_itself()
    {
        Program(2, 100);
        ulong next = _timer.NextEvent;
        GoTo(50);
        _timer.SwitchClock(_clock);
        Assert.Equal(next, _timer.NextEvent);
    }

    // ------------------------------------------------------------------------------------------ hostile

    [Fact]
    public void No_sequence_of_writes_breaks_it()
    {
        var random = new Random(3);
        for (int i = 0; i < 200_000; i++)
        {
            _clock.Ticks += (ulong)random.Next(20_000_000);
            switch (random.Next(8))
            {
                case 0:
                    Control(random.Next(256));
                    break;
                case 1:
                    _ = _timer.Read((ushort)(IntervalTimer.FirstPort + random.Next(4)), 1 << random.Next(3));
                    break;
                case 2:
                    _ = Take();
                    break;
                case 3:
                    Mask(random.Next(2) == 0);
                    break;
                case 4 when _clock.Ticks >= _timer.NextEvent:
                    _timer.Advance(_clock.Ticks);
                    Assert.True(_timer.NextEvent > _clock.Ticks);
                    break;
                default:
                    _timer.Write((ushort)(IntervalTimer.FirstPort + random.Next(3)), 1, (uint)random.Next(4));
                    break;
            }
        }
    }
}
