using VirtBench.Vmm.Devices;

namespace VirtBench.Vmm.Interrupts;

/// <summary>
/// The two 8259A of a PC: the master at ports 0x20 and 0x21, the slave at 0xA0 and 0xA1 behind the master's input 2 (Intel 8259A
/// data sheet, order number 231468). The guest programs vectors, masks and modes by ICW1–4 and OCW1–3; buffered mode and the
/// 8080's CALL instructions mean nothing on a PC and are ignored.
/// </summary>
public sealed class InterruptController : IIoDevice
{
    /// <summary>The master's two ports, of which the command port comes first.</summary>
    public const ushort MasterPort = 0x20;

    /// <summary>The slave's two ports.</summary>
    public const ushort SlavePort = 0xA0;

    /// <summary>Ports of each chip.</summary>
    public const int PortCount = 2;

    /// <summary>Interrupt lines of both chips; line 2 is the slave's own.</summary>
    public const int Lines = 16;

    private const int CascadeLine = 2;

    private readonly Chip _master = new(isMaster: true);
    private readonly Chip _slave = new(isMaster: false);
    private readonly long[] _requests = new long[Lines];
    private readonly long[] _acknowledgements = new long[Lines];

    /// <summary>Whether the guest has initialized either chip.</summary>
    public bool IsUsed => _master.IsInitialized || _slave.IsInitialized;

    /// <summary>INTR: an interrupt waits for the CPU to take it.</summary>
    public bool Requested { get; private set; }

    /// <summary>Requests so far by line: rising edges, or levels that became active.</summary>
    public IReadOnlyList<long> Requests => _requests;

    /// <summary>Interrupts that the CPU has taken so far, by line. What both chips call spurious is not among them.</summary>
    public IReadOnlyList<long> Acknowledgements => _acknowledgements;

    /// <summary>Acknowledge cycles that found no request any more: the CPU got the vector of line 7 or 15.</summary>
    public long Spurious { get; private set; }

    /// <summary>Told of the line whose interrupt the CPU has just taken, or the guest by polling.</summary>
    public Action<int>? Acknowledged { get; set; }

    /// <summary>
    /// Told that an interrupt is about to be taken, or that the guest is about to write a command or a mask: until now
    /// requests were as they were.
    /// </summary>
    public Action? Changing { get; set; }

    /// <summary>Told that the guest has written one.</summary>
    public Action? Changed { get; set; }

    /// <summary>Whether a request of this line has not been taken yet.</summary>
    public bool IsPending(int line) => line < 8 ? _master.IsRequested(line) : _slave.IsRequested(line - 8);

    /// <summary>Whether the guest has masked this line, or for one of the slave's the slave itself.</summary>
    public bool IsMasked(int line) =>
        line < 8 ? _master.IsMasked(line) : _slave.IsMasked(line - 8) || _master.IsMasked(CascadeLine);

    /// <summary>Drives an interrupt line, 0–15. An edge-triggered chip notes a rising edge, a level-triggered one the level.</summary>
    public void SetLine(int line, bool active)
    {
        Chip chip = line < 8 ? _master : _slave;
        if (chip.SetLine(line & 7, active))
        {
            _requests[line]++;
        }

        Update();
    }

    /// <summary>A rising edge and a falling one.</summary>
    public void Pulse(int line)
    {
        SetLine(line, true);
        Release(line);
    }

    /// <summary>The line falls, its request stays: a pulse that outlasts the acknowledge cycle.</summary>
    public void Release(int line)
    {
        Chip chip = line < 8 ? _master : _slave;
        chip.ReleaseLine(line & 7);
        Update();
    }

    /// <summary>Counts what may have changed the answers to all questions.</summary>
    internal long Version { get; private set; }

    /// <summary>
    /// The vector that the CPU would be given if a line rose now and nothing else did, to be ended by an end of interrupt; null when there is none.
    /// </summary>
    internal byte? VectorIfRaised(int line) =>
        line < 8 ? (line == CascadeLine ? null : _master.VectorIfRaised(line))
        : _master.VectorIfRaised(CascadeLine) is null ? null
        : _slave.VectorIfRaised(line - 8);

    /// <summary>The CPU takes an interrupt: the two INTA cycles. Call only while <see cref="Requested"/>.</summary>
    /// <returns>The vector.</returns>
    public byte Acknowledge()
    {
        Changing?.Invoke();
        byte vector = _master.Acknowledge(out int line);
        if (line == CascadeLine)
        {
            vector = _slave.Acknowledge(out int slaveLine);
            line = slaveLine < 0 ? -1 : slaveLine + 8;
        }

        if (line < 0)
        {
            Spurious++;
        }
        else
        {
            Took(line);
        }

        Update();
        return vector;
    }

    private void Took(int line)
    {
        _acknowledgements[line]++;
        Acknowledged?.Invoke(line);
    }

    /// <inheritdoc/>
    public uint Read(ushort port, int size)
    {
        Chip chip = port < SlavePort ? _master : _slave;
        if (chip.IsPolled)
        {
            Changing?.Invoke();
        }

        uint value = (port & 1) != 0 ? chip.ReadMask(out int polled) : chip.ReadCommand(out polled);
        if (polled >= 0 && (chip == _slave || polled != CascadeLine))
        {
            Took(chip == _slave ? polled + 8 : polled);
        }

        Update();
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
        Changing?.Invoke();
        Chip chip = port < SlavePort ? _master : _slave;
        if ((port & 1) != 0)
        {
            chip.WriteData((byte)value);
        }
        else
        {
            chip.WriteCommand((byte)value);
        }

        Update();
        Changed?.Invoke();
    }

    private void Update()
    {
        _master.SetCascade(_slave.Wants());
        Requested = _master.Wants();
        Version++;
    }

    /// <summary>One 8259A.</summary>
    private sealed class Chip(bool isMaster)
    {
        private byte _lines;
        private byte _requested; // IRR
        private byte _inService; // ISR
        private byte _mask = 0xFF; // IMR; what firmware that hands over to nobody leaves
        private byte _vectorBase;
        private byte _lowestPriority = 7;
        private int _initialization; // the ICW expected next: 2, 3, 4; 0 when initialized
        private bool _expectsIcw4;
        private bool _single;
        private bool _levelTriggered;
        private bool _automaticEoi;
        private bool _rotatesOnAutomaticEoi;
        private bool _fullyNested; // special fully nested mode
        private bool _specialMask;
        private bool _readsInService;
        private bool _poll;
        private bool _initialized;

        /// <summary>It has had its first ICW1.</summary>
        public bool IsInitialized => _initialized;

        /// <summary>The next read answers a poll command.</summary>
        public bool IsPolled => _poll;

        public bool IsRequested(int line) => (_requested & (1 << line)) != 0;

        public bool IsMasked(int line) => !_initialized || (_mask & (1 << line)) != 0;

        /// <returns>Whether this is a new request.</returns>
        public bool SetLine(int line, bool active)
        {
            byte bit = (byte)(1 << line);
            bool rises = active && (_lines & bit) == 0;
            _lines = (byte)(active ? _lines | bit : _lines & ~bit);
            if (rises)
            {
                _requested |= bit;
            }
            else if (!active)
            {
                // The latch needs the input to stay up until the first INTA (data sheet, "IR triggering by edge").
                _requested &= (byte)~bit;
            }

            return rises;
        }

        /// <summary>The line falls, its request stays: a device whose pulse outlasts the acknowledge cycle.</summary>
        public void ReleaseLine(int line) => _lines &= (byte)~(1 << line);

        public void SetCascade(bool active)
        {
            byte bit = 1 << CascadeLine;
            _lines = (byte)(active ? _lines | bit : _lines & ~bit);
            _requested = (byte)(active ? _requested | bit : _requested & ~bit);
        }

        /// <summary>INT: a request that is neither masked nor held back by one of its own or a higher priority in service.</summary>
        public bool Wants() => _initialized && _initialization == 0 && Next() >= 0;

        /// <summary>
        /// The vector of a line that rose now; null when it would not be served next, or its service would end without the guest's saying so.
        /// </summary>
        public byte? VectorIfRaised(int line) =>
            _initialized
            && _initialization == 0
            && !_poll
            && !_levelTriggered
            && !_automaticEoi
            && (_lines & (1 << line)) == 0
            && Next(_requested | (1 << line)) == line
                ? (byte)(_vectorBase | line)
                : null;

        public byte Acknowledge(out int line)
        {
            line = Next();
            if (line < 0)
            {
                return (byte)(_vectorBase | 7);
            }

            Take(line);
            return (byte)(_vectorBase | line);
        }

        /// <summary>The register that OCW3 has chosen, or the answer to its poll command.</summary>
        /// <param name="polled">The line that has been taken by polling; −1 for none.</param>
        public byte ReadCommand(out int polled)
        {
            polled = -1;
            return _poll ? Poll(out polled)
                : _readsInService ? _inService
                : _requested;
        }

        /// <summary>The mask. A poll command is answered at either port.</summary>
        public byte ReadMask(out int polled)
        {
            polled = -1;
            return _poll ? Poll(out polled) : _mask;
        }

        private byte Poll(out int line)
        {
            _poll = false;
            line = _initialization == 0 ? Next() : -1;
            if (line < 0)
            {
                return 0;
            }

            Take(line);
            return (byte)(0x80 | line);
        }

        public void WriteCommand(byte value)
        {
            if ((value & 0x10) != 0)
            {
                BeginInitialization(value);
            }
            else if ((value & 0x08) != 0)
            {
                WriteOcw3(value);
            }
            else
            {
                WriteOcw2(value);
            }
        }

        public void WriteData(byte value)
        {
            switch (_initialization)
            {
                case 2:
                    _vectorBase = (byte)(value & 0xF8);
                    _initialization =
                        !_single ? 3
                        : _expectsIcw4 ? 4
                        : 0;
                    break;
                case 3:
                    _initialization = _expectsIcw4 ? 4 : 0; // the wiring is the PC's, whatever the guest says
                    break;
                case 4:
                    _automaticEoi = (value & 0x02) != 0;
                    _fullyNested = (value & 0x10) != 0;
                    _initialization = 0;
                    break;
                default:
                    _mask = value;
                    break;
            }
        }

        // ICW1: forgets edges seen so far, masks nothing, line 7 is lowest (data sheet, "Initialization command words").
        private void BeginInitialization(byte icw1)
        {
            _initialized = true;
            _expectsIcw4 = (icw1 & 0x01) != 0;
            _single = (icw1 & 0x02) != 0;
            _levelTriggered = (icw1 & 0x08) != 0;
            _requested = _levelTriggered ? _lines : (byte)0;
            _inService = 0;
            _mask = 0;
            _lowestPriority = 7;
            _automaticEoi = false;
            _rotatesOnAutomaticEoi = false;
            _fullyNested = false;
            _specialMask = false;
            _readsInService = false;
            _poll = false;
            _initialization = 2;
        }

        private void WriteOcw2(byte value)
        {
            int line = value & 7;
            switch (value >> 5)
            {
                case 0: // rotate in automatic EOI mode: clear
                    _rotatesOnAutomaticEoi = false;
                    break;
                case 4: // … set
                    _rotatesOnAutomaticEoi = true;
                    break;
                case 1: // non-specific EOI
                    _ = EndHighest();
                    break;
                case 5: // rotate on non-specific EOI
                    int ended = EndHighest();
                    _lowestPriority = ended < 0 ? _lowestPriority : (byte)ended;
                    break;
                case 3: // specific EOI
                    End(line);
                    break;
                case 7: // rotate on specific EOI
                    End(line);
                    _lowestPriority = (byte)line;
                    break;
                case 6: // set priority
                    _lowestPriority = (byte)line;
                    break;
            }
        }

        private void WriteOcw3(byte value)
        {
            if ((value & 0x40) != 0)
            {
                _specialMask = (value & 0x20) != 0;
            }

            _poll = (value & 0x04) != 0;
            if ((value & 0x02) != 0)
            {
                _readsInService = (value & 0x01) != 0;
            }
        }

        private void Take(int line)
        {
            byte bit = (byte)(1 << line);
            bool staysUp = _levelTriggered && (_lines & bit) != 0;
            if (!staysUp)
            {
                _requested &= (byte)~bit;
            }

            if (!_automaticEoi)
            {
                _inService |= bit;
            }
            else if (_rotatesOnAutomaticEoi)
            {
                _lowestPriority = (byte)line;
            }
        }

        private void End(int line) => _inService &= (byte)~(1 << line);

        private int EndHighest()
        {
            for (int i = 1; i <= 8; i++)
            {
                int line = (_lowestPriority + i) & 7;
                bool hidden = _specialMask && (_mask & (1 << line)) != 0;
                if (!hidden && (_inService & (1 << line)) != 0)
                {
                    End(line);
                    return line;
                }
            }

            return -1;
        }

        /// <summary>The line to serve next, or −1.</summary>
        private int Next() => Next(_requested);

        private int Next(int requested)
        {
            int wanting = requested & ~_mask;
            if (wanting == 0)
            {
                return -1;
            }

            for (int i = 1; i <= 8; i++)
            {
                int line = (_lowestPriority + i) & 7;
                int bit = 1 << line;
                bool inService = (_inService & bit) != 0;
                bool slaveAgain = _fullyNested && isMaster && line == CascadeLine;
                if ((wanting & bit) != 0 && (!inService || slaveAgain))
                {
                    return line;
                }

                // In special mask mode a line in service that the guest has masked holds back nothing but itself.
                bool masked = (_mask & bit) != 0;
                if (inService && !(_specialMask && masked))
                {
                    return -1;
                }
            }

            return -1;
        }
    }
}
