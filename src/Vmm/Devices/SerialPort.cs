namespace VirtBench.Vmm.Devices;

/// <summary>
/// A 16550A UART at COM1 as polling and interrupt-driven drivers probe and use it (PC16550D data sheet, National
/// Semiconductor, section 8). Sending takes no time: the transmitter is always empty. Nothing is ever received except what
/// the guest sends itself in loopback mode. Its interrupt goes through the gate that OUT2 opens on a PC: the line is up while OUT2
/// is set, loopback off, and the interrupt identification register names a cause.
/// </summary>
public sealed class SerialPort : IIoDevice
{
    /// <summary>First of its ports.</summary>
    public const ushort FirstPort = 0x3F8;

    /// <summary>How many ports it has.</summary>
    public const int PortCount = 8;

    /// <summary>Interrupt line of COM1.</summary>
    public const int Line = 4;

    private const int FifoSize = 16;

    private const byte IerReceive = 0x01;
    private const byte IerTransmit = 0x02;
    private const byte IerLineStatus = 0x04;
    private const byte IerModemStatus = 0x08;
    private const byte FcrEnable = 0x01;
    private const byte FcrClearReceive = 0x02;
    private const byte LcrDivisorLatch = 0x80;
    private const byte McrOut2 = 0x08;
    private const byte McrLoopback = 0x10;

    // Interrupt identification (data sheet, table II), the lowest priority last.
    private const byte IirLineStatus = 0x06;
    private const byte IirReceive = 0x04;
    private const byte IirTransmit = 0x02;
    private const byte IirModemStatus = 0x00;
    private const byte IirNone = 0x01;
    private const byte LsrDataReady = 0x01;
    private const byte LsrOverrun = 0x02;
    private const byte LsrTransmitterEmpty = 0x60; // holding register and shift register

    private readonly byte[] _received = new byte[FifoSize];
    private int _receivedCount;
    private int _receivedFirst;
    private byte _interruptEnable;
    private byte _lineControl;
    private byte _modemControl;
    private byte _scratch;
    private byte _divisorLow = 12; // 9600 baud, what firmware leaves
    private byte _divisorHigh;
    private byte _modemDelta;
    private bool _fifoEnabled;
    private bool _overrun;
    private bool _transmitInterrupt;

    /// <summary>Told of every byte the guest sends, on the vCPU's thread.</summary>
    public Action<byte>? Transmitted { get; set; }

    /// <summary>Told when the interrupt line rises or falls.</summary>
    public Action<bool>? InterruptChanged { get; set; }

    private bool _interrupts;

    private bool Loopback => (_modemControl & McrLoopback) != 0;

    private int Capacity => _fifoEnabled ? FifoSize : 1;

    /// <inheritdoc/>
    public uint Read(ushort port, int size)
    {
        // The device is 8 bits wide: the bus fills what is above with ones.
        uint value = ReadByte(port - FirstPort);
        DriveLine();
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
        WriteByte(port - FirstPort, (byte)value);
        DriveLine();
    }

    private void DriveLine()
    {
        bool up = (_modemControl & (McrOut2 | McrLoopback)) == McrOut2 && Cause != IirNone;
        if (up != _interrupts)
        {
            _interrupts = up;
            InterruptChanged?.Invoke(up);
        }
    }

    private byte ReadByte(int register)
    {
        bool latch = (_lineControl & LcrDivisorLatch) != 0;
        switch (register)
        {
            case 0:
                return latch ? _divisorLow : TakeReceived();
            case 1:
                return latch ? _divisorHigh : _interruptEnable;
            case 2:
                return InterruptIdentification();
            case 3:
                return _lineControl;
            case 4:
                return _modemControl;
            case 5:
                byte line = (byte)(
                    LsrTransmitterEmpty | (_receivedCount > 0 ? LsrDataReady : 0) | (_overrun ? LsrOverrun : 0)
                );
                _overrun = false;
                return line;
            case 6:
                byte modem = (byte)(ModemLines(_modemControl) | _modemDelta);
                _modemDelta = 0;
                return modem;
            default:
                return _scratch;
        }
    }

    private void WriteByte(int register, byte value)
    {
        bool latch = (_lineControl & LcrDivisorLatch) != 0;
        switch (register)
        {
            case 0 when latch:
                _divisorLow = value;
                break;
            case 0:
                Transmit(value);
                break;
            case 1 when latch:
                _divisorHigh = value;
                break;
            case 1:
                // Enabling the transmitter interrupt while the transmitter is empty raises it at once.
                _transmitInterrupt |= (value & IerTransmit) != 0 && (_interruptEnable & IerTransmit) == 0;
                _interruptEnable = (byte)(value & 0x0F);
                break;
            case 2:
                bool enable = (value & FcrEnable) != 0;
                if (enable != _fifoEnabled || (value & FcrClearReceive) != 0)
                {
                    _receivedCount = 0;
                }

                _fifoEnabled = enable;
                break;
            case 3:
                _lineControl = value;
                break;
            case 4:
                byte before = ModemLines(_modemControl);
                _modemControl = (byte)(value & 0x1F);
                byte after = ModemLines(_modemControl);
                byte changed = (byte)((before ^ after) >> 4);

                // The ring indicator counts by its trailing edge only.
                _modemDelta |= (byte)((changed & 0b1011) | (changed & (before >> 4) & 0b0100));
                break;
            case 7:
                _scratch = value;
                break;
        }
    }

    private void Transmit(byte value)
    {
        // The byte fills the holding register, which is empty again at once: an edge of its own for each byte.
        _transmitInterrupt = false;
        DriveLine();
        _transmitInterrupt = true;
        if (!Loopback)
        {
            Transmitted?.Invoke(value);
            return;
        }

        if (_receivedCount == Capacity)
        {
            _overrun = true;
            return;
        }

        _received[(_receivedFirst + _receivedCount) % FifoSize] = value;
        _receivedCount++;
    }

    private byte TakeReceived()
    {
        if (_receivedCount == 0)
        {
            return 0;
        }

        byte value = _received[_receivedFirst];
        _receivedFirst = (_receivedFirst + 1) % FifoSize;
        _receivedCount--;
        return value;
    }

    private byte Cause =>
        _overrun && (_interruptEnable & IerLineStatus) != 0 ? IirLineStatus
        : _receivedCount > 0 && (_interruptEnable & IerReceive) != 0 ? IirReceive
        : _transmitInterrupt && (_interruptEnable & IerTransmit) != 0 ? IirTransmit
        : _modemDelta != 0 && (_interruptEnable & IerModemStatus) != 0 ? IirModemStatus
        : IirNone;

    private byte InterruptIdentification()
    {
        byte cause = Cause;
        if (cause == IirTransmit)
        {
            _transmitInterrupt = false; // reading it acknowledges it
        }

        return (byte)((_fifoEnabled ? 0xC0 : 0) | cause);
    }

    // In loopback the four outputs come back as the four inputs; otherwise a terminal that is there and ready.
    private static byte ModemLines(byte modemControl)
    {
        if ((modemControl & McrLoopback) == 0)
        {
            return 0xB0; // carrier, data set ready, clear to send
        }

        int dtr = modemControl & 1;
        int rts = (modemControl >> 1) & 1;
        int out1 = (modemControl >> 2) & 1;
        int out2 = (modemControl >> 3) & 1;
        return (byte)((rts << 4) | (dtr << 5) | (out1 << 6) | (out2 << 7));
    }
}
