using Iced.Intel;
using Handler = nint;

namespace VirtBench.Strategies.Simulation;

/// <summary>
/// Turns guest code into ops, one basic block at a time: decodes with Iced, chooses the handler for each instruction's form,
/// fuses a flag-setting instruction with the conditional branch behind it, and leaves out flags that nothing can see.
/// </summary>
internal sealed unsafe partial class BlockDecoder
{
    /// <summary>Epoch of a link that has not been made; the machine never has it.</summary>
    public const ulong NoEpoch = ulong.MaxValue;

    // An x86-64-v1 CPU ignores the prefix that makes TZCNT and LZCNT of BSF and BSR.
    private const DecoderOptions Options = DecoderOptions.NoMPFX_0FBC | DecoderOptions.NoMPFX_0FBD;

    private const RflagsBits Arithmetic =
        RflagsBits.CF | RflagsBits.PF | RflagsBits.AF | RflagsBits.ZF | RflagsBits.SF | RflagsBits.OF;

    private readonly ushort[] _costs;
    private readonly SimulatedMode _mode;
    private readonly ushort _segmentMoveCost;
    private readonly ushort _segmentPushCost;
    private readonly ushort _indirectCost;
    private readonly PageReader _reader = new();
    private readonly Decoder _decoder;

    // Ops of this block whose flags nothing has been able to see so far, and their handlers without flags.
    private readonly Op*[] _silentOps = new Op*[BlockCache.MaximumInstructions];
    private readonly Handler[] _silentHandlers = new Handler[BlockCache.MaximumInstructions];
    private int _silentCount;

    // The op just emitted, if a conditional branch can be fused with it.
    private Op* _fusible;
    private FusibleForm _fusibleForm;

    private Op* _next;
    private Op* _start;
    private bool _ended;
    private uint _cycles;
    private Handler _silentHandler;
    private bool _mayLeave;

    private sealed class PageReader : CodeReader
    {
        private byte* _at;
        private byte* _end;

        public void Set(byte* at, int length)
        {
            _at = at;
            _end = at + length;
        }

        public override int ReadByte() => _at < _end ? *_at++ : -1;
    }

    /// <summary>Kind of an op that a Jcc can be fused with.</summary>
    private readonly record struct FusibleForm(FusibleAlu Alu, bool Immediate, int Size);

    private enum FusibleAlu
    {
        None,
        Cmp,
        Test,
        Sub,
        Add,
        And,
        Dec,
        Inc,
    }

    public BlockDecoder(CostProfile profile, SimulatedMode mode)
    {
        _mode = mode;
        _decoder = Decoder.Create(64, _reader, Options);
        Mnemonic[] all = Enum.GetValues<Mnemonic>();
        _costs = new ushort[all.Length];
        foreach (Mnemonic mnemonic in all)
        {
            _costs[(int)mnemonic] = (ushort)profile.CyclesOf(mnemonic);
        }

        if (mode == SimulatedMode.Translated)
        {
            TranslationCosts translation = profile.Translation!;
            foreach (Mnemonic mnemonic in all)
            {
                if (InlinedInstructions.NameOf(mnemonic) is { } name)
                {
                    _costs[(int)mnemonic] = (ushort)translation.InlineCyclesOf(name);
                }
            }

            _segmentMoveCost = (ushort)translation.InlineCyclesOf(InlinedInstructions.MovFromSegment);
            _segmentPushCost = (ushort)translation.InlineCyclesOf(InlinedInstructions.PushSegment);
            _indirectCost = (ushort)translation.IndirectCycles;
        }
    }

    /// <summary>Guest instructions that were last decoded.</summary>
    public int InstructionCount { get; private set; }

    /// <summary>Decodes a block.</summary>
    /// <param name="rip">Linear address of its first instruction.</param>
    /// <param name="code">Its bytes.</param>
    /// <param name="available">Bytes up to the end of the page.</param>
    /// <param name="ops">Room for the ops.</param>
    /// <param name="end">Behind the last op slot.</param>
    /// <returns>Bytes decoded; 0 when the first instruction crosses the end of the page.</returns>
    public int Decode(ulong rip, byte* code, int available, Op* ops, out Op* end) =>
        Decode(rip, code, available, ops, BlockCache.MaximumInstructions, out end);

    /// <summary>Decodes a block of one instruction.</summary>
    /// <inheritdoc cref="Decode(ulong, byte*, int, Op*, out Op*)"/>
    public int DecodeOne(ulong rip, byte* code, int available, Op* ops, out Op* end) =>
        Decode(rip, code, available, ops, 1, out end);

    private int Decode(ulong rip, byte* code, int available, Op* ops, int limit, out Op* end)
    {
        _reader.Set(code, available);
        _decoder.IP = rip;
        _next = _start = ops;
        _cycles = 0;
        _ended = false;
        _silentCount = 0;
        _fusible = null;
        _raising = _shadowing = null;
        InstructionCount = 0;
        ulong at = rip;
        for (int n = 0; n < limit && !_ended; n++)
        {
            _decoder.Decode(out Instruction instruction);
            if (_decoder.LastError == DecoderError.NoMoreBytes || (n > 0 && IsRepeated(instruction)))
            {
                break;
            }

            Emit(instruction);
            at = instruction.NextIP;
            InstructionCount = n + 1;
            if (_shadowing is not null)
            {
                EndShadow(instruction);
            }
        }

        if (_raising is not null)
        {
            CallOutToRaise(); // what it shadows is not in this block
        }

        if (at == rip)
        {
            end = ops;
            return 0;
        }

        if (!_ended)
        {
            Op* op = Begin(at, 0, 0);
            op->Handler = &BranchHandlers.Continue;
            End(op, at, at);
        }

        end = _next;
        return (int)(at - rip);
    }

    // Such an instruction begins a block. It can be left in its middle: entered again it is the same block as without, so
    // that the host's kicks do not move the block ends, where the guest's deadlines are looked for.
    private static bool IsRepeated(in Instruction i) => i.IsStringInstruction && (i.HasRepPrefix || i.HasRepnePrefix);

    /// <summary>Mnemonic, operands and bytes, for messages.</summary>
    public string Describe(ulong rip, ReadOnlySpan<byte> bytes)
    {
        Decoder decoder = Decoder.Create(64, bytes.ToArray(), rip, Options);
        decoder.Decode(out Instruction instruction);
        if (instruction.IsInvalid)
        {
            return $"'(bad)' ({Convert.ToHexString(bytes)})";
        }

        return $"'{instruction}' ({Convert.ToHexString(bytes[..instruction.Length])})";
    }

    private Op* Begin(ulong rip, int length, ushort cost)
    {
        Op* op = _next++;
        *op = default;
        op->Rip = rip;
        op->Length = (byte)length;
        op->Before = _cycles;
        op->Cost = cost;
        op->Base = op->Index = Machine.ZeroOffset;
        _cycles += cost;
        return op;
    }

    /// <summary>Ends the block: writes the links behind its last op.</summary>
    private void End(Op* op, ulong taken, ulong notTaken)
    {
        var links = (Links*)_next++;
        *links = new Links
        {
            TakenEpoch = NoEpoch,
            TakenRip = taken,
            NotTakenEpoch = NoEpoch,
            NotTakenRip = notTaken,
        };
        _ended = true;
    }

    private void Emit(in Instruction i)
    {
        if (i.IsJccShortOrNear && _fusible is not null && TryFuse(i))
        {
            return;
        }

        _fusible = null;
        if (_mode == SimulatedMode.Translated)
        {
            _shadowing = _raising;
            _raising = null;
            EmitSseGuard(i);
        }

        if (HasComposedAddress(i))
        {
            EmitAddressPart(i);
        }

        Op* op = Begin(i.IP, i.Length, CostOf(i));
        _silentHandler = 0;
        _mayLeave = i.Op0Kind == OpKind.Memory || i.Op1Kind == OpKind.Memory;
        FusibleForm form = default;
        if (!TryInteger(op, i, ref form) && !TrySystem(op, i) && !TrySse(op, i))
        {
            op->Handler =
                i.IsInvalid || i.Mnemonic is Mnemonic.Ud2 or Mnemonic.Ud0 or Mnemonic.Ud1 or Mnemonic.Movbe
                    ? &SlowPath.InvalidOpcode
                    : &SlowPath.Unsupported;
            Leaves(op, i);
        }

        TrackFlags(op, i);
        if (form.Alu != FusibleAlu.None)
        {
            _fusible = op;
            _fusibleForm = form;
        }
    }

    /// <summary>An op that always leaves guest code.</summary>
    private void Leaves(Op* op, in Instruction i) => End(op, i.NextIP, i.NextIP);

    private void TrackFlags(Op* op, in Instruction i)
    {
        if (_mayLeave || _ended || (i.RflagsRead & Arithmetic) != 0)
        {
            _silentCount = 0;
        }
        else if (
            (i.RflagsModified & Arithmetic) == Arithmetic
            && i.Mnemonic
                is not (
                    Mnemonic.Shl
                    or Mnemonic.Sal
                    or Mnemonic.Shr
                    or Mnemonic.Sar
                    or Mnemonic.Shld
                    or Mnemonic.Shrd
                    or Mnemonic.Rol
                    or Mnemonic.Ror
                    or Mnemonic.Rcl
                    or Mnemonic.Rcr
                    or Mnemonic.Bsf
                    or Mnemonic.Bsr
                )
        )
        {
            // Shifts may have a count of 0 and then leave the flags.
            for (int n = 0; n < _silentCount; n++)
            {
                *(Handler*)_silentOps[n] = _silentHandlers[n];
            }

            _silentCount = 0;
        }

        if (_silentHandler != 0)
        {
            _silentOps[_silentCount] = op;
            _silentHandlers[_silentCount++] = _silentHandler;
        }
    }

    private bool TryFuse(in Instruction i)
    {
        Handler handler = FusedHandler(_fusibleForm, i.ConditionCode);
        if (handler == 0)
        {
            return false;
        }

        Op* op = _fusible;
        ushort cost = _costs[(int)i.Mnemonic];
        op->Cost += cost;
        _cycles += cost;
        op->Length += (byte)i.Length;
        *(Handler*)op = handler;
        End(op, i.NearBranchTarget, i.NextIP);
        return true;
    }

    // Form with a segment base or 32-bit addressing: its base, index and displacement are summed by an op of their own.
    private static bool HasComposedAddress(in Instruction i)
    {
        if (i.Op0Kind != OpKind.Memory && i.Op1Kind != OpKind.Memory)
        {
            return false;
        }

        return i.SegmentPrefix is Register.FS or Register.GS || i.MemoryBase.IsGPR32() || i.MemoryIndex.IsGPR32();
    }

    private void EmitAddressPart(in Instruction i)
    {
        Op* op = Begin(i.IP, i.Length, 0);
        SetAddress(op, i);
        op->Handler =
            i.MemoryBase.IsGPR32() || i.MemoryIndex.IsGPR32()
                ? &MoveHandlers.AddressPart32
                : &MoveHandlers.AddressPart64;
    }

    private static void SetAddress(Op* op, in Instruction i)
    {
        if (i.IsIPRelativeMemoryOperand)
        {
            op->Displacement = i.IPRelativeMemoryAddress;
            return;
        }

        op->Displacement = i.MemoryDisplacement64;
        if (i.MemoryBase != Register.None)
        {
            op->Base = Offset(i.MemoryBase.GetFullRegister());
        }

        if (i.MemoryIndex != Register.None)
        {
            op->Index = Offset(i.MemoryIndex.GetFullRegister());
            op->Scale = (byte)System.Numerics.BitOperations.Log2((uint)i.MemoryIndexScale);
        }
    }

    /// <summary>Sets the address of an op's memory operand. LEA ignores the segment.</summary>
    private static void SetMemory(Op* op, in Instruction i)
    {
        if (!HasComposedAddress(i))
        {
            SetAddress(op, i);
            return;
        }

        op->Base = Machine.TempOffset;
        op->Index = SegmentBase(i);
    }

    private static ushort SegmentBase(in Instruction i) =>
        i.Mnemonic == Mnemonic.Lea ? (ushort)Machine.ZeroOffset
        : i.SegmentPrefix == Register.FS ? (ushort)Machine.FsBaseOffset
        : i.SegmentPrefix == Register.GS ? (ushort)Machine.GsBaseOffset
        : (ushort)Machine.ZeroOffset;

    /// <summary>Byte offset of a general or XMM register in the machine.</summary>
    public static ushort Offset(Register register)
    {
        if (register.IsGPR64())
        {
            return (ushort)((register - Register.RAX) * 8);
        }

        if (register.IsGPR32())
        {
            return (ushort)((register - Register.EAX) * 8);
        }

        if (register.IsGPR16())
        {
            return (ushort)((register - Register.AX) * 8);
        }

        if (register.IsGPR8())
        {
            int n = register - Register.AL;
            return (ushort)(
                n < 4 ? n * 8
                : n < 8 ? ((n - 4) * 8) + 1
                : (n - 4) * 8
            );
        }

        return (ushort)(Machine.XmmOffset + ((register - Register.XMM0) * 16));
    }

    private static int SizeOf(in Instruction i, int operand) =>
        i.GetOpKind(operand) == OpKind.Memory ? i.MemorySize.GetSize() : i.GetOpRegister(operand).GetSize();

    private static Handler H(delegate* <Machine*, Op*, Op*> handler) => (Handler)handler;
}
