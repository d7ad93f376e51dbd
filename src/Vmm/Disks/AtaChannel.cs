using System.Buffers.Binary;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Interrupts;

namespace VirtBench.Vmm.Disks;

/// <summary>
/// The primary ATA channel of a PC with one disk, device 0, that transfers by programmed I/O (INCITS 361-2002, ATA/ATAPI-6:
/// registers in clause 7, commands in clause 8, the PIO protocols in clause 9).
/// </summary>
/// <remarks>
/// A read is one request to the service, whatever its length, and so is a write, once the guest has handed all of it over. The
/// interrupt comes as the standard has it: for a read before each DRQ block, for a write after each.
/// </remarks>
internal sealed partial class AtaChannel : DiskFrontEnd, IIoDevice
{
    /// <summary>First of the command block's eight ports.</summary>
    public const ushort FirstPort = 0x1F0;

    /// <summary>How many ports the command block has.</summary>
    public const int PortCount = 8;

    /// <summary>Alternate status when read, device control when written.</summary>
    public const ushort ControlPort = 0x3F6;

    /// <summary>Interrupt line of the primary channel.</summary>
    public const int InterruptLine = 14;

    /// <summary>Most sectors in a DRQ block of READ MULTIPLE and WRITE MULTIPLE.</summary>
    public const int MaximumMultiple = 16;

    // Registers of the command block.
    private const int Data = 0;
    private const int ErrorOrFeatures = 1;
    private const int SectorCount = 2;
    private const int LbaLow = 3;
    private const int LbaMid = 4;
    private const int LbaHigh = 5;
    private const int Device = 6;

    private const byte StatusError = 0x01;
    private const byte StatusDrq = 0x08;
    private const byte StatusSeekComplete = 0x10; // bit 4, whose meaning older drivers still test
    private const byte StatusFault = 0x20;
    private const byte StatusReady = 0x40;
    private const byte StatusBusy = 0x80;

    private const byte ErrorAborted = 0x04;
    private const byte ErrorNotFound = 0x10; // IDNF
    private const byte ErrorUncorrectable = 0x40; // UNC
    private const byte DiagnosticPassed = 0x01;

    private const byte ControlNoInterrupt = 0x02; // nIEN
    private const byte ControlReset = 0x04; // SRST
    private const byte ControlHighOrder = 0x80; // HOB

    private const byte DeviceOne = 0x10; // DEV
    private const byte DeviceLba = 0x40;

    private readonly byte[] _registers = new byte[7];
    private readonly byte[] _previous = new byte[7]; // what a 48-bit register held before the last write
    private byte _status = StatusReady | StatusSeekComplete;
    private byte _error = DiagnosticPassed;
    private int _multiple; // sectors in a DRQ block of the multiple commands; 0 until set
    private byte _control;
    private bool _pending; // INTRQ, before nIEN and the device selection

    private AtaRequest? _request; // while DRQ or BSY is set
    private int _position; // in its buffer
    private int _blockEnd;

    private readonly Lock _gate = new();
    private AtaRequest? _finished; // posted by the service
    private bool _interruptDue;
    private bool _seen; // the guest has read of the completion in the status register
    private volatile bool _enabled = true; // nIEN is clear and device 0 selected

    /// <summary>Creates the channel, as after power-on.</summary>
    public AtaChannel(DiskService service, IInterruptLine output)
        : base(service, InterruptLine, output)
    {
        service.Add(this);
        SetSignature();
    }

    private bool IsSelected => (_registers[Device] & DeviceOne) == 0;

    // ------------------------------------------------------------------------------------------------ registers

    /// <inheritdoc/>
    public uint Read(ushort port, int size)
    {
        int register = port - FirstPort;
        if (register == Data)
        {
            return size == 4 ? ReadWord() | ((uint)ReadWord() << 16)
                : size == 2 ? ReadWord()
                : (uint)ReadWord() & 0xFF;
        }

        byte value = ReadRegister(port == ControlPort ? PortCount : register);
        return size switch
        {
            1 => value,
            2 => value | 0xFF00u,
            _ => value | 0xFFFF_FF00,
        };
    }

    private byte ReadRegister(int register)
    {
        if (register >= Device + 1)
        {
            bool alternate = register == PortCount;
            if (!IsSelected)
            {
                return 0; // what device 0 answers for a device 1 that is not there
            }

            if (!alternate)
            {
                AcknowledgeInterrupt();
            }

            return _status;
        }

        if ((_status & StatusBusy) != 0)
        {
            return _status;
        }

        return register == ErrorOrFeatures ? _error
            : (_control & ControlHighOrder) != 0 && register is >= SectorCount and <= LbaHigh ? _previous[register]
            : _registers[register];
    }

    /// <inheritdoc/>
    public void Write(ushort port, int size, uint value)
    {
        int register = port - FirstPort;
        if (port == ControlPort)
        {
            WriteControl((byte)value);
        }
        else if (register == Data)
        {
            WriteWord((ushort)value);
            if (size == 4)
            {
                WriteWord((ushort)(value >> 16));
            }
        }
        else if ((_status & (StatusBusy | StatusDrq)) == 0 && (_control & ControlReset) == 0)
        {
            // Any write reads the low-order bytes back again.
            _control = (byte)(_control & ~ControlHighOrder);
            if (register <= Device)
            {
                _previous[register] = _registers[register];
                _registers[register] = (byte)value;
                EnableInterrupt();
            }
            else if (IsSelected || (byte)value == ExecuteDiagnostic)
            {
                Command((byte)value);
            }
        }
    }

    private void WriteControl(byte value)
    {
        bool wasReset = (_control & ControlReset) != 0;
        _control = value;
        bool reset = (value & ControlReset) != 0;
        if (reset && !wasReset)
        {
            GiveUp();
            _status = StatusBusy;
        }
        else if (wasReset && !reset)
        {
            _status = StatusReady | StatusSeekComplete;
            _error = DiagnosticPassed;
            SetSignature();
        }

        EnableInterrupt();
    }

    // The registers of a device without the PACKET command after a reset (clause 9.12).
    private void SetSignature()
    {
        Array.Clear(_previous);
        _registers[SectorCount] = 1;
        _registers[LbaLow] = 1;
        _registers[LbaMid] = _registers[LbaHigh] = _registers[Device] = 0;
        EnableInterrupt();
    }

    // Nothing of a command that was under way is answered any more.
    private void GiveUp()
    {
        lock (Service.Gate)
        {
            Service.Cancel(this);
            Forget();
        }

        lock (_gate)
        {
            _finished = null;
            _interruptDue = false;
        }

        _request = null;
        _pending = false;
        UpdateLine();
    }

    // ------------------------------------------------------------------------------------------------ interrupt

    private void EnableInterrupt()
    {
        _enabled = (_control & ControlNoInterrupt) == 0 && IsSelected;
        UpdateLine();
    }

    private void UpdateLine() => Drive(_pending && _enabled);

    private void RaiseInterrupt()
    {
        _pending = true;
        UpdateLine();
    }

    private void AcknowledgeInterrupt()
    {
        lock (_gate)
        {
            _seen = true;
            _interruptDue = false;
        }

        _pending = false;
        UpdateLine();
    }

    // ------------------------------------------------------------------------------------------------ completion

    /// <inheritdoc/>
    public override bool Complete(DiskRequest request)
    {
        lock (_gate)
        {
            _finished = (AtaRequest)request;
            _seen = false;
        }

        Service.Post(now: false);
        return true;
    }

    /// <inheritdoc/>
    public override void Release()
    {
        lock (_gate)
        {
            if (_seen)
            {
                return; // by polling, before its interrupt came
            }

            _interruptDue = true;

            // The register that the guest will ask is brought up to date by the exit with which it asks.
            if (Service.Delivery == InterruptDelivery.Direct && _enabled)
            {
                Drive(true);
            }
        }

        Service.Post(now: Service.Delivery != InterruptDelivery.Direct);
    }

    /// <inheritdoc/>
    public override void Drain()
    {
        AtaRequest? finished;
        bool interrupt;
        lock (_gate)
        {
            finished = _finished;
            _finished = null;
            interrupt = _interruptDue;
            _interruptDue = false;
        }

        if (finished is not null && finished == _request)
        {
            Finish(finished);
        }

        if (interrupt)
        {
            RaiseInterrupt();
        }
    }

    private void Finish(AtaRequest request)
    {
        if (request.Failed)
        {
            _request = null;
            (byte error, byte fault) = request.Operation switch
            {
                DiskOperation.Read => (ErrorUncorrectable, (byte)0),
                _ => (ErrorAborted, StatusFault),
            };
            SetLba(request.ErrorSector);
            _error = error;
            _status = (byte)(StatusReady | StatusSeekComplete | StatusError | fault);
        }
        else if (request.Operation == DiskOperation.Read)
        {
            OfferBlock();
        }
        else
        {
            _request = null;
            _status = StatusReady | StatusSeekComplete;
        }
    }

    // ------------------------------------------------------------------------------------------------ data

    private void OfferBlock()
    {
        AtaRequest request = _request!;
        _blockEnd = Math.Min(request.Length, _position + (request.BlockSectors * IBlockStorage.SectorSize));
        _status = StatusReady | StatusSeekComplete | StatusDrq;
    }

    private ushort ReadWord()
    {
        Span<byte> word = stackalloc byte[2];
        ReadData(word);
        return BinaryPrimitives.ReadUInt16LittleEndian(word);
    }

    private void WriteWord(ushort value)
    {
        Span<byte> word = stackalloc byte[2];
        BinaryPrimitives.WriteUInt16LittleEndian(word, value);
        WriteData(word);
    }

    /// <inheritdoc/>
    public void ReadString(ushort port, int size, Span<byte> destination)
    {
        if (port == FirstPort && size > 1)
        {
            ReadData(destination);
            return;
        }

        for (int done = 0; done < destination.Length; done += size)
        {
            IoBus.Store(destination[done..], size, Read(port, size));
        }
    }

    /// <inheritdoc/>
    public void WriteString(ushort port, int size, ReadOnlySpan<byte> source)
    {
        if (port == FirstPort && size > 1)
        {
            WriteData(source);
            return;
        }

        for (int done = 0; done < source.Length; done += size)
        {
            Write(port, size, IoBus.Load(source[done..], size));
        }
    }

    // Whole words, across any number of DRQ blocks.
    private void ReadData(Span<byte> destination)
    {
        while (destination.Length > 0)
        {
            if ((_status & StatusDrq) == 0 || !IsSelected || _request is not { TakesData: false } request)
            {
                destination.Fill(0xFF);
                return;
            }

            int length = Math.Min(destination.Length, _blockEnd - _position);
            request.Buffer.AsSpan(_position, length).CopyTo(destination);
            destination = destination[length..];
            _position += length;
            if (_position == _blockEnd)
            {
                EndReadBlock(request);
            }
        }
    }

    private void EndReadBlock(AtaRequest request)
    {
        if (_position == request.Length)
        {
            _request = null;
            _status = StatusReady | StatusSeekComplete;
        }
        else
        {
            OfferBlock();
            RaiseInterrupt();
        }
    }

    private void WriteData(ReadOnlySpan<byte> source)
    {
        while (source.Length > 0 && (_status & StatusDrq) != 0 && IsSelected && _request is { TakesData: true } request)
        {
            int length = Math.Min(source.Length, _blockEnd - _position);
            source[..length].CopyTo(request.Buffer.AsSpan(_position));
            source = source[length..];
            _position += length;
            if (_position == _blockEnd)
            {
                EndWriteBlock(request);
            }
        }
    }

    private void EndWriteBlock(AtaRequest request)
    {
        if (_position < request.Length)
        {
            OfferBlock();
            RaiseInterrupt();
        }
        else
        {
            _status = StatusBusy;
            Service.Submit(request);
        }
    }
}
