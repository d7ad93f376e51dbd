using System.Globalization;
using Iced.Intel;
using VirtBench.Vmm.Execution;

namespace VirtBench.Cli;

/// <summary>
/// Prints every block that an engine translates: a line about the block, then the guest's instructions on the left and on the right
/// what became of each. Text is in NASM's syntax, addresses are hexadecimal and those of each side's own address space.
/// </summary>
/// <param name="output">Where to. The caller closes it.</param>
internal sealed class TranslationListing(TextWriter output) : ITranslationObserver
{
    private const int LongestInstruction = 15;

    private readonly NasmFormatter _formatter = new()
    {
        Options =
        {
            HexPrefix = "0x",
            HexSuffix = null,
            UppercaseHex = false,
            SpaceAfterOperandSeparator = true,
            ShowBranchSize = false,
            BranchLeadingZeros = false,
        },
    };

    private readonly StringOutput _text = new();

    /// <summary>Blocks printed so far.</summary>
    public int Count { get; private set; }

    /// <inheritdoc/>
    public void Translated(in TranslatedBlock block)
    {
        IReadOnlyList<TranslatedInstruction> instructions = block.Instructions;
        int guestBytes = instructions.Sum(instruction => instruction.GuestBytes.Length);
        int hostBytes =
            block.Entry.Bytes.Length
            + block.Exits.Bytes.Length
            + instructions.Sum(instruction => instruction.Host.Bytes.Length);
        ulong guestEnd = instructions is [.., var last]
            ? last.GuestAddress + (ulong)last.GuestBytes.Length
            : block.GuestAddress;
        Count++;
        output.WriteLine(
            $"block {Count}: guest {Hex(block.GuestAddress)} to {Hex(guestEnd)}, "
                + $"{instructions.Count} instruction{(instructions.Count == 1 ? "" : "s")}, {guestBytes} bytes; "
                + $"host {Hex(block.Entry.Address)} to {Hex(EndOf(block))}, {hostBytes} bytes"
        );
        Write("(entry)", block.Entry);
        foreach (TranslatedInstruction instruction in instructions)
        {
            Write(
                Line(instruction.GuestAddress, instruction.GuestBytes.Span, out _),
                instruction.Host,
                evenIfEmpty: true
            );
        }

        Write("(exits)", block.Exits);
        output.WriteLine();
    }

    private static ulong EndOf(in TranslatedBlock block)
    {
        HostCode last =
            block.Exits.Bytes.Length > 0 ? block.Exits
            : block.Instructions.LastOrDefault(one => one.Host.Bytes.Length > 0) is { Host.Bytes.Length: > 0 } one
                ? one.Host
            : block.Entry;
        return last.Address + (ulong)last.Bytes.Length;
    }

    private void Write(string left, HostCode host, bool evenIfEmpty = false)
    {
        if (host.Bytes.IsEmpty && evenIfEmpty)
        {
            output.WriteLine($"  {left}");
        }

        ReadOnlySpan<byte> rest = host.Bytes.Span;
        ulong at = host.Address;
        while (!rest.IsEmpty)
        {
            string right = Line(at, rest, out int length);
            output.WriteLine($"  {left, -72} | {right.TrimEnd()}");
            left = "";
            rest = rest[length..];
            at += (ulong)length;
        }
    }

    /// <summary>Address, bytes and text of the instruction that begins here; a byte that begins none is data.</summary>
    private string Line(ulong address, ReadOnlySpan<byte> bytes, out int length)
    {
        byte[] code = bytes[..Math.Min(LongestInstruction, bytes.Length)].ToArray();
        Decoder decoder = Decoder.Create(64, code, address);
        decoder.Decode(out Instruction instruction);
        length = instruction.IsInvalid ? 1 : instruction.Length;
        string text = $"db {Hex(code[0])}";
        if (!instruction.IsInvalid)
        {
            _formatter.Format(instruction, _text);
            text = _text.ToStringAndReset();
        }

        return $"{address, 12:x}  {Convert.ToHexStringLower(code.AsSpan(0, length)), -22} {text}";
    }

    private static string Hex(ulong value) => string.Create(CultureInfo.InvariantCulture, $"0x{value:x}");
}
