using Iced.Intel;
using VirtBench.Vmm.Execution;

namespace VirtBench.Vmm.Emulation;

/// <summary>An instruction that has been decoded, with the bytes it was decoded from.</summary>
internal sealed class DecodedInstruction
{
    /// <summary>Linear address; the initial value is not canonical and matches nothing.</summary>
    public ulong Rip = 1UL << 63;

    public ulong Low;
    public ulong High;
    public ulong LowMask;
    public ulong HighMask;
    public int Length;
    public Operation Operation;
    public TrapReason Reason;
    public Instruction Instruction;
}

/// <summary>
/// Direct-mapped cache of decoded instructions. An entry matches by address and by content, so that neither
/// self-modifying code nor another address space ever gets a stale one and nothing has to be flushed.
/// </summary>
internal sealed class DecodeCache
{
    private const int Entries = 1024;

    private readonly DecodedInstruction[] _entries = new DecodedInstruction[Entries];
    private readonly CodeBytes _reader = new();
    private readonly Decoder _decoder;

    public DecodeCache()
    {
        for (int i = 0; i < Entries; i++)
        {
            _entries[i] = new DecodedInstruction();
        }

        _decoder = Decoder.Create(64, _reader);
    }

    /// <summary>Finds the instruction among those decoded before.</summary>
    /// <param name="rip">Its address.</param>
    /// <param name="low">Its first eight bytes.</param>
    /// <param name="high">The next eight.</param>
    /// <param name="available">How many of the bytes are real.</param>
    /// <param name="entry">Its slot, to be filled by <see cref="TryDecode"/> when false is returned.</param>
    public bool TryFind(ulong rip, ulong low, ulong high, int available, out DecodedInstruction entry)
    {
        entry = _entries[(int)(rip ^ (rip >> 10)) & (Entries - 1)];
        return entry.Rip == rip
            && entry.Length <= available
            && (((low ^ entry.Low) & entry.LowMask) | ((high ^ entry.High) & entry.HighMask)) == 0;
    }

    /// <summary>Decodes into a slot.</summary>
    /// <param name="entry">The slot; unchanged when the bytes do not suffice.</param>
    /// <param name="rip">Address of the instruction.</param>
    /// <param name="low">First eight bytes.</param>
    /// <param name="high">The next eight.</param>
    /// <param name="available">How many of the bytes are real, at most 16.</param>
    /// <returns>False when the instruction reaches beyond the bytes that are available.</returns>
    public bool TryDecode(DecodedInstruction entry, ulong rip, ulong low, ulong high, int available)
    {
        _reader.Set(low, high, Math.Min(available, 15));
        _decoder.IP = rip;
        _decoder.Decode(out Instruction instruction);
        if (_decoder.LastError == DecoderError.NoMoreBytes && available < 15)
        {
            return false;
        }

        entry.Rip = rip;
        entry.Low = low;
        entry.High = high;
        entry.Instruction = instruction;
        if (instruction.IsInvalid)
        {
            // Longer than 15 bytes is #GP(0), anything else that cannot be decoded #UD. All the bytes seen matter.
            entry.Length = Math.Min(available, 15);
            entry.Operation = _reader.Consumed == 15 ? Operation.Unprivileged : Operation.Undefined;
            entry.Reason = TrapReason.GuestException;
        }
        else
        {
            entry.Length = instruction.Length;
            (entry.Operation, entry.Reason) = OperationTable.Classify(instruction);
        }

        int length = entry.Length;
        entry.LowMask = length >= 8 ? ulong.MaxValue : (1UL << (8 * length)) - 1;
        entry.HighMask = length <= 8 ? 0 : (1UL << (8 * (length - 8))) - 1;
        return true;
    }

    private sealed class CodeBytes : CodeReader
    {
        private ulong _low;
        private ulong _high;
        private int _at;
        private int _count;

        /// <summary>Bytes that the decoder has taken.</summary>
        public int Consumed => _at;

        public void Set(ulong low, ulong high, int count)
        {
            _low = low;
            _high = high;
            _at = 0;
            _count = count;
        }

        public override int ReadByte()
        {
            if (_at >= _count)
            {
                return -1;
            }

            int at = _at++;
            return (byte)(at < 8 ? _low >> (8 * at) : _high >> (8 * (at - 8)));
        }
    }
}
