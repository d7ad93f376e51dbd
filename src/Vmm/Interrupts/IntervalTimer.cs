using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Execution;

namespace VirtBench.Vmm.Interrupts;

/// <summary>
/// The 8254 of a PC at ports 0x40–0x43 (Intel 82C54 data sheet, order number 231244), its channel 0 on interrupt line 0. Its
/// 1.193182 MHz are counted on the engine's clock from the VM's creation on, so that no tick is ever early or late by more
/// than its own delivery: periods do not drift.
/// </summary>
/// <remarks>
/// The gates are tied high, as channel 0's and 1's are on a PC: modes 1 and 5 wait for a trigger that never comes. The
/// outputs of channels 1 and 2 lead nowhere.
/// <para>
/// A period that ends while the one before still waits to be taken is not lost: it is owed, and requested again as soon as
/// the CPU has taken the other. A guest on a busy host gets its ticks late, but gets as many as time has passed.
/// </para>
/// </remarks>
public sealed class IntervalTimer : IIoDevice, ITimer
{
    /// <summary>First of its ports: a data port per channel, then the control port.</summary>
    public const ushort FirstPort = 0x40;

    /// <summary>How many ports it has.</summary>
    public const int PortCount = 4;

    /// <summary>Interrupt line of channel 0.</summary>
    public const int Line = 0;

    /// <summary>Input frequency: a twelfth of 14.31818 MHz, four times NTSC's colour subcarrier, as every PC has it.</summary>
    public const ulong Hertz = 1_193_182;

    private IEngineClock _clock;
    private readonly InterruptController _controller;
    private readonly Channel[] _channels = [new(), new(), new()];
    private ulong _start;
    private ulong _ticksPerSecond;
    private ulong _startPulse; // what Now was at the start on this clock
    private UInt128 _startPart; // and how much of the next pulse was over, in pulses times ticks a second
    private long _owed;

    /// <summary>Creates the timer; all channels are idle until they are programmed.</summary>
    public IntervalTimer(IEngineClock clock, InterruptController controller)
    {
        _clock = clock;
        _controller = controller;
        _start = clock.Ticks;
        _ticksPerSecond = (ulong)Math.Round(clock.TicksPerSecond);
        controller.Acknowledged += line =>
        {
            if (line == Line)
            {
                Taken();
            }
        };
        controller.Changing += CatchUp; // with the masks that held so far
        controller.Changed += () =>
        {
            if (!controller.IsPending(Line))
            {
                _owed = 0; // the controller has been initialized, which forgets requests
            }

            Schedule();
        };
    }

    /// <inheritdoc/>
    public ulong NextEvent { get; private set; } = ulong.MaxValue;

    /// <summary>Ticks of channel 0 so far: rising edges of its output.</summary>
    public long Ticks { get; private set; }

    /// <summary>
    /// Of these, how many came while the one before still waited: they are requested when it is taken, unless the guest
    /// programs the timer or the controller anew before.
    /// </summary>
    public long Late { get; private set; }

    /// <summary>Of all, how many came while the one before waited behind the guest's mask: nothing is made up for these.</summary>
    public long Masked { get; private set; }

    /// <summary>Ticks that are owed at this moment.</summary>
    public long Owed => _owed;

    /// <inheritdoc/>
    public void Advance(ulong now)
    {
        if (now >= NextEvent)
        {
            CatchUp();
            Schedule();
        }
    }

    /// <summary>
    /// Goes on counting on another clock, from where it is: what of a period is over stays over. The time of a clock that is
    /// the same goes on too.
    /// </summary>
    internal void SwitchClock(IEngineClock clock)
    {
        if (ReferenceEquals(clock, _clock))
        {
            return;
        }

        UInt128 counted = Counted(_clock.Ticks);
        ulong before = _ticksPerSecond;
        _ticksPerSecond = (ulong)Math.Round(clock.TicksPerSecond);
        _startPulse += (ulong)(counted / before);
        _startPart = counted % before * _ticksPerSecond / before;
        _clock = clock;
        _start = clock.Ticks;
        Schedule();
    }

    /// <inheritdoc/>
    public uint Read(ushort port, int size)
    {
        CatchUp(); // a new period may have begun, with another count
        Schedule();
        int channel = port - FirstPort;
        uint value = channel == 3 ? 0xFFu : _channels[channel].Read(Now());
        return size switch
        {
            1 => value,
            2 => value | 0xFF00,
            _ => value | 0xFFFF_FF00,
        };
    }

    /// <inheritdoc/>
    public void Write(ushort port, int size, uint value)
    {
        CatchUp();
        ulong now = Now();
        int channel = port - FirstPort;
        byte data = (byte)value;
        if (channel < 3)
        {
            _channels[channel].WriteCount(data, now);
        }
        else if (data >> 6 < 3)
        {
            _channels[channel = data >> 6].WriteControl(data, now);
            if (channel == 0 && (data & 0x30) != 0)
            {
                _owed = 0; // a new mode: what the old one owed is over
            }
        }
        else
        {
            ReadBack(data, now);
        }

        Schedule();
    }

    private void ReadBack(byte command, ulong now)
    {
        for (int i = 0; i < 3; i++)
        {
            if ((command & (2 << i)) != 0)
            {
                _channels[i].ReadBack(count: (command & 0x20) == 0, status: (command & 0x10) == 0, now);
            }
        }
    }

    private void CatchUp()
    {
        Channel channel = _channels[0];
        ulong now = Now();
        foreach (Channel other in _channels.AsSpan(1))
        {
            while (other.NextEdge is { } edge && edge <= now)
            {
                other.Pass(other.EdgesUntil(now));
            }

            other.Settle(now);
        }

        while (channel.NextEdge is { } edge && edge <= now)
        {
            long passed = 1;
            if (!channel.IsPeriodic || !_controller.IsPending(Line))
            {
                _controller.Pulse(Line);
            }
            else
            {
                // What a guest has masked it does not wait for.
                passed = channel.EdgesUntil(now);
                if (_controller.IsMasked(Line))
                {
                    Masked += passed;
                }
                else
                {
                    Late += passed;
                    _owed += passed;
                }
            }

            Ticks += passed;
            channel.Pass(passed);
        }

        channel.Settle(now);
    }

    private void Taken()
    {
        if (_owed > 0 && !_controller.IsPending(Line))
        {
            _owed--;
            _controller.Pulse(Line);
        }

        Schedule();
    }

    // While an interrupt waits to be taken, further periods can do nothing but be owed: they are counted when it is taken, so
    // that a short period does not keep the guest from ever getting there.
    private void Schedule()
    {
        Channel channel = _channels[0];
        bool waits = channel.IsPeriodic && _controller.IsPending(Line);
        NextEvent = !waits && channel.NextEdge is { } edge ? TicksOf(edge) : ulong.MaxValue;
    }

    /// <summary>The 8254's clock pulses since the VM's creation.</summary>
    private ulong Now() => _startPulse + (ulong)(Counted(_clock.Ticks) / _ticksPerSecond);

    // Since the start on this clock, in pulses times ticks a second.
    private UInt128 Counted(ulong ticks) => ((UInt128)(ticks - _start) * Hertz) + _startPart;

    // The first tick of the clock at which Now has reached the pulse.
    private ulong TicksOf(ulong pulse) =>
        pulse <= _startPulse
            ? _start
            : _start + (ulong)((((UInt128)(pulse - _startPulse) * _ticksPerSecond) - _startPart + (Hertz - 1)) / Hertz);

    /// <summary>One counter.</summary>
    private sealed class Channel
    {
        private int _mode;
        private int _control; // as written: bits 5–0
        private bool _bcd;
        private int _access = 3; // 1 low byte, 2 high byte, 3 low then high
        private bool _counts; // a count has been written since the control word
        private uint _reload = 0x10000;
        private uint? _nextReload; // mode 2: from the next period on; mode 3: from the next half on
        private long _loaded; // pulse at which the current count was loaded; before 0 when it was as if
        private bool _inHigh; // mode 3: the count that waits was written in the period's high half
        private bool _edgeDone; // one-shot modes: the output has risen
        private bool _writesHigh;
        private byte _lowByte;
        private bool _readsHigh;
        private ushort? _latch;
        private bool _latchedReadsHigh;
        private byte? _status;

        public bool IsPeriodic => _mode is 2 or 3;

        /// <summary>Pulse of the output's next rising edge.</summary>
        public ulong? NextEdge =>
            !_counts ? null
            : _nextReload is { } next && _inHigh ? (ulong)(_loaded + High(_reload) + (next - High(next)))
            : IsPeriodic ? (ulong)(_loaded + _reload)
            : _edgeDone || _mode is not (0 or 4) ? null
            : (ulong)(_loaded + _reload + (_mode == 4 ? 1 : 0));

        // Mode 3: pulses of the period's high half.
        private static long High(uint count) => (count + 1) / 2;

        /// <summary>Rising edges up to a pulse, as far as the period stays the same; at least one.</summary>
        public long EdgesUntil(ulong now) => _nextReload is null ? 1 + (((long)now - _loaded - _reload) / _reload) : 1;

        public void Pass(long edges)
        {
            if (!IsPeriodic)
            {
                _edgeDone = true;
                return;
            }

            if (_nextReload is { } next)
            {
                _loaded = _inHigh ? _loaded + High(_reload) + (next - High(next)) : _loaded + _reload;
                _reload = next;
                _nextReload = null;
            }
            else
            {
                _loaded += edges * _reload;
            }
        }

        /// <summary>Takes over a count that waits for the end of a high half which is over.</summary>
        public void Settle(ulong now)
        {
            if (_nextReload is { } next && _inHigh && (long)now >= _loaded + High(_reload))
            {
                _loaded += High(_reload) - High(next);
                _reload = next;
                _nextReload = null;
            }
        }

        public void WriteControl(byte control, ulong now)
        {
            int access = (control >> 4) & 3;
            if (access == 0)
            {
                LatchCount(now);
                return;
            }

            int mode = (control >> 1) & 7;
            _mode = mode > 5 ? mode - 4 : mode; // the high bit of modes 2 and 3 is ignored
            _control = control & 0x3F;
            _bcd = (control & 1) != 0;
            _access = access;
            _counts = false;
            _edgeDone = false;
            _nextReload = null;
            _writesHigh = _readsHigh = false;
            _latch = null;
            _status = null;
        }

        public void WriteCount(byte value, ulong now)
        {
            switch (_access)
            {
                case 1:
                    Load(value, now);
                    break;
                case 2:
                    Load((ushort)(value << 8), now);
                    break;
                default:
                    if (_writesHigh)
                    {
                        Load((ushort)((value << 8) | _lowByte), now);
                    }
                    else
                    {
                        _lowByte = value;
                        _counts &= _mode != 0; // in mode 0 the first byte stops the count
                    }

                    _writesHigh = !_writesHigh;
                    break;
            }
        }

        public byte Read(ulong now)
        {
            if (_status is { } status)
            {
                _status = null;
                return status;
            }

            if (_latch is { } latched)
            {
                bool high = _access == 2 || (_access == 3 && _latchedReadsHigh);
                bool last = _access != 3 || _latchedReadsHigh;
                _latch = last ? null : _latch;
                _latchedReadsHigh = !last;
                return (byte)(high ? latched >> 8 : latched);
            }

            ushort count = Encode(Count(now));
            bool readsHigh = _access == 2 || (_access == 3 && _readsHigh);
            _readsHigh = _access == 3 && !_readsHigh;
            return (byte)(readsHigh ? count >> 8 : count);
        }

        public void ReadBack(bool count, bool status, ulong now)
        {
            if (status)
            {
                const int nullCount = 0x40;
                _status ??= (byte)((Output(now) ? 0x80 : 0) | (IsLoaded(now) ? 0 : nullCount) | _control);
            }

            if (count)
            {
                LatchCount(now);
            }
        }

        private void LatchCount(ulong now)
        {
            if (_latch is null)
            {
                _latch = Encode(Count(now));
                _latchedReadsHigh = false;
            }
        }

        private void Load(ushort value, ulong now)
        {
            uint count = Decode(value);
            if (IsPeriodic && _counts && (long)now >= _loaded)
            {
                _nextReload = count;
                _inHigh = _mode == 3 && (long)now - _loaded < High(_reload);
                return;
            }

            // The counting element takes the count over at the pulse after the write.
            _reload = count;
            _loaded = (long)now + 1;
            _counts = true;
            _edgeDone = false;
        }

        // Null count of the status byte: the count written last is not yet the one that counts. Modes 1 and 5 wait for a trigger.
        private bool IsLoaded(ulong now) =>
            _counts && _nextReload is null && (long)now >= _loaded && _mode is not (1 or 5);

        private ulong Elapsed(ulong now) =>
            _counts && _mode is not (1 or 5) && (long)now > _loaded ? (ulong)((long)now - _loaded) : 0;

        private uint Count(ulong now)
        {
            ulong modulus = _bcd ? 10_000u : 0x1_0000u;
            ulong elapsed = Elapsed(now);
            return _mode switch
            {
                2 => _reload - (uint)(elapsed % _reload),
                3 => SquareWaveCount(elapsed % _reload),
                _ => (uint)((_reload + modulus - (elapsed % modulus)) % modulus),
            };
        }

        // Counts down by two, twice a period; an odd count stays odd for one pulse less in its low half (data sheet, mode 3).
        private uint SquareWaveCount(ulong elapsed)
        {
            ulong high = (ulong)High(_reload);
            ulong even = _reload & ~1u;
            return (uint)(elapsed < high ? even - Math.Min(even, 2 * elapsed) : even - (2 * (elapsed - high)));
        }

        private bool Output(ulong now)
        {
            ulong elapsed = Elapsed(now);
            return _mode switch
            {
                0 => _counts && elapsed >= _reload,
                2 => !_counts || _reload - (elapsed % _reload) != 1,
                3 => !_counts || elapsed % _reload < (ulong)High(_reload),
                4 => !_counts || elapsed != _reload,
                _ => true,
            };
        }

        private uint Decode(ushort value)
        {
            if (!_bcd)
            {
                return value == 0 ? 0x1_0000u : value;
            }

            uint count = (uint)(
                ((value >> 12) * 1000) + (((value >> 8) & 15) * 100) + (((value >> 4) & 15) * 10) + (value & 15)
            );
            return count == 0 ? 10_000u : count;
        }

        private ushort Encode(uint count) =>
            !_bcd
                ? (ushort)count
                : (ushort)(
                    ((count / 1000 % 10) << 12) | ((count / 100 % 10) << 8) | ((count / 10 % 10) << 4) | (count % 10)
                );
    }
}
