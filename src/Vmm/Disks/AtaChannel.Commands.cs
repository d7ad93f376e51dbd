using System.Buffers.Binary;
using System.Text;

namespace VirtBench.Vmm.Disks;

// Commands (ATA/ATAPI-6, clause 8, with their codes).
internal sealed partial class AtaChannel
{
    private const byte ReadSectors = 0x20;
    private const byte ReadSectorsNoRetry = 0x21; // obsolete, and what many drivers send
    private const byte ReadSectorsExt = 0x24;
    private const byte ReadMultipleExt = 0x29;
    private const byte WriteSectors = 0x30;
    private const byte WriteSectorsNoRetry = 0x31;
    private const byte WriteSectorsExt = 0x34;
    private const byte WriteMultipleExt = 0x39;
    private const byte ExecuteDiagnostic = 0x90;
    private const byte ReadMultiple = 0xC4;
    private const byte WriteMultiple = 0xC5;
    private const byte SetMultiple = 0xC6;
    private const byte FlushCache = 0xE7;
    private const byte FlushCacheExt = 0xEA;
    private const byte Identify = 0xEC;
    private const byte SetFeatures = 0xEF;

    private const int MaximumLba28 = 0x0FFF_FFFF;

    private byte[] _buffer = [];

    private void Command(byte command)
    {
        // A new command takes back what the one before still had to say.
        AcknowledgeInterrupt();
        _error = 0;
        _status = StatusReady | StatusSeekComplete;
        switch (command)
        {
            case ReadSectors or ReadSectorsNoRetry:
                Transfer(writes: false, extended: false, multiple: false);
                break;
            case ReadSectorsExt:
                Transfer(writes: false, extended: true, multiple: false);
                break;
            case ReadMultiple:
                Transfer(writes: false, extended: false, multiple: true);
                break;
            case ReadMultipleExt:
                Transfer(writes: false, extended: true, multiple: true);
                break;
            case WriteSectors or WriteSectorsNoRetry:
                Transfer(writes: true, extended: false, multiple: false);
                break;
            case WriteSectorsExt:
                Transfer(writes: true, extended: true, multiple: false);
                break;
            case WriteMultiple:
                Transfer(writes: true, extended: false, multiple: true);
                break;
            case WriteMultipleExt:
                Transfer(writes: true, extended: true, multiple: true);
                break;
            case FlushCache or FlushCacheExt:
                _status = StatusBusy;
                _request = new AtaRequest(this) { Operation = DiskOperation.Flush };
                Service.Submit(_request);
                break;
            case SetMultiple:
                SetMultipleMode(_registers[SectorCount]);
                break;
            case SetFeatures:
                SetFeature(_registers[ErrorOrFeatures], _registers[SectorCount]);
                break;
            case Identify:
                OfferIdentification();
                break;
            case ExecuteDiagnostic:
                // Of both devices, whichever is selected; afterwards device 0 is.
                SetSignature();
                _error = DiagnosticPassed;
                RaiseInterrupt();
                break;
            default:
                Fail(ErrorAborted);
                break;
        }
    }

    private void Fail(byte error)
    {
        _error = error;
        _status = StatusReady | StatusSeekComplete | StatusError;
        RaiseInterrupt();
    }

    private void Transfer(bool writes, bool extended, bool multiple)
    {
        bool lba = (_registers[Device] & DeviceLba) != 0;
        if (!lba || (multiple && _multiple == 0) || (writes && Service.Storage.IsReadOnly))
        {
            Fail(ErrorAborted); // cylinders and heads are obsolete since ATA/ATAPI-6
            return;
        }

        ulong sector = Lba(extended);
        int sectors = extended ? (_previous[SectorCount] << 8) | _registers[SectorCount] : _registers[SectorCount];
        if (sectors == 0)
        {
            sectors = extended ? 0x1_0000 : 0x100;
        }

        ulong capacity = Service.Storage.Sectors;
        if (sector >= capacity || (ulong)sectors > capacity - sector)
        {
            SetLba(Math.Max(sector, capacity)); // the first sector that is not there
            Fail(ErrorNotFound);
            return;
        }

        int length = sectors * IBlockStorage.SectorSize;
        Begin(
            new AtaRequest(this)
            {
                Operation = writes ? DiskOperation.Write : DiskOperation.Read,
                Bytes = length,
                Sector = sector,
                Buffer = Buffer(length),
                Length = length,
                BlockSectors = multiple ? _multiple : 1,
                TakesData = writes,
            }
        );
    }

    private void Begin(AtaRequest request)
    {
        _request = request;
        _position = 0;
        if (request.TakesData)
        {
            OfferBlock();
        }
        else
        {
            _status = StatusBusy;
            Service.Submit(request);
        }
    }

    // One command at a time has it: one that is given up by a reset no longer touches it once the service has let go of it.
    private byte[] Buffer(int length)
    {
        if (_buffer.Length < length)
        {
            _buffer = new byte[length];
        }

        return _buffer;
    }

    private ulong Lba(bool extended)
    {
        ulong low = (ulong)(_registers[LbaLow] | (_registers[LbaMid] << 8) | (_registers[LbaHigh] << 16));
        return extended
            ? low
                | ((ulong)_previous[LbaLow] << 24)
                | ((ulong)_previous[LbaMid] << 32)
                | ((ulong)_previous[LbaHigh] << 40)
            : low | ((ulong)(_registers[Device] & 0x0F) << 24);
    }

    private void SetLba(ulong sector)
    {
        _registers[LbaLow] = (byte)sector;
        _registers[LbaMid] = (byte)(sector >> 8);
        _registers[LbaHigh] = (byte)(sector >> 16);
        _previous[LbaLow] = (byte)(sector >> 24);
        _previous[LbaMid] = (byte)(sector >> 32);
        _previous[LbaHigh] = (byte)(sector >> 40);
        _registers[Device] = (byte)((_registers[Device] & 0xF0) | ((int)(sector >> 24) & 0x0F));
    }

    private void SetMultipleMode(int sectors)
    {
        if (sectors is 0 or > MaximumMultiple || !int.IsPow2(sectors))
        {
            Fail(ErrorAborted);
            return;
        }

        _multiple = sectors;
        RaiseInterrupt();
    }

    // Subcommand 03h with a PIO mode (clause 8.46.8): default modes, or flow control modes 0 to 4.
    private void SetFeature(byte feature, byte value)
    {
        const byte setTransferMode = 0x03;
        if (feature != setTransferMode || value is not (0 or 1 or >= 8 and <= 12))
        {
            Fail(ErrorAborted);
            return;
        }

        RaiseInterrupt(); // the host's speed is what it is
    }

    private void OfferIdentification()
    {
        byte[] page = new byte[IBlockStorage.SectorSize];
        ulong capacity = Service.Storage.Sectors;

        // Clause 8.15, by word.
        Word(page, 0, 0x0040); // fixed, not removable
        Word(page, 1, (ushort)Math.Min(capacity / (16 * 63), 16383));
        Word(page, 3, 16);
        Word(page, 6, 63);
        Text(page, 10, 20, VirtioBlock.SerialNumber);
        Text(page, 23, 8, "1.0");
        Text(page, 27, 40, "VirtBench disk");
        Word(page, 47, 0x8000 | MaximumMultiple);
        Word(page, 49, 0x0A00); // LBA, IORDY
        Word(page, 50, 0x4000);
        Word(page, 53, 0x0002); // words 64–70 hold
        Word(page, 59, (ushort)(_multiple == 0 ? 0 : 0x0100 | _multiple));
        uint capacity28 = (uint)Math.Min(capacity, MaximumLba28);
        Word(page, 60, (ushort)capacity28);
        Word(page, 61, (ushort)(capacity28 >> 16));
        Word(page, 64, 0x0003); // PIO modes 3 and 4
        Word(page, 67, 120); // ns in a cycle
        Word(page, 68, 120);
        Word(page, 80, 0x0070); // ATA-4 to ATA/ATAPI-6
        Word(page, 83, 0x7400); // 48-bit addresses, FLUSH CACHE, FLUSH CACHE EXT
        Word(page, 84, 0x4000);
        Word(page, 86, 0x3400);
        Word(page, 87, 0x4000);
        BinaryPrimitives.WriteUInt64LittleEndian(page.AsSpan(2 * 100), capacity);
        byte sum = 0xA5;
        page[510] = sum;
        foreach (byte value in page.AsSpan(0, 510))
        {
            sum += value;
        }

        page[511] = (byte)-sum;
        _request = new AtaRequest(this) { Buffer = page, Length = page.Length };
        _position = 0;
        OfferBlock();
        RaiseInterrupt();
    }

    private static void Word(byte[] page, int word, int value) =>
        BinaryPrimitives.WriteUInt16LittleEndian(page.AsSpan(2 * word), (ushort)value);

    // The first character of each pair in the word's high byte, filled up with blanks.
    private static void Text(byte[] page, int word, int length, string text)
    {
        byte[] characters = Encoding.ASCII.GetBytes(text.PadRight(length));
        for (int i = 0; i < length; i++)
        {
            page[(2 * word) + (i ^ 1)] = characters[i];
        }
    }
}
