using System.Diagnostics;
using Iced.Intel;
using VirtBench.Strategies.Carrier;
using VirtBench.Vmm.Cpu;

namespace VirtBench.Strategies.BinaryTranslation;

// Control flow. Return addresses on the guest's stack are guest addresses; what is not constant is looked up.
internal sealed unsafe partial class BlockTranslator
{
    private void EmitConditionalJump(in Decoded decoded)
    {
        int condition = (int)decoded.Instruction.ConditionCode - (int)ConditionCode.o;
        ulong target = decoded.Instruction.NearBranchTarget;
        if (PollsBefore(target, decoded.Instruction.IP))
        {
            _w.Bytes((byte)(0x70 | (Conditions[condition] ^ 1)), 0); // not taken
            int over = _w.Offset - 1;
            EmitPollingLink(target);
            _w.PatchShortToHere(over);
            Mark(decoded.Instruction.NextIP);
            return;
        }

        int jump = _w.JumpIf(Conditions[condition], CarrierLayout.CodeCache);
        PointToStub(decoded.Instruction.NearBranchTarget, jump);
    }

    // Iced's order of conditions to the encoding's (Intel SDM vol. 2, appendix B.1.4.7).
    private static readonly byte[] Conditions =
    [
        .. new[]
        {
            ConditionCode.o,
            ConditionCode.no,
            ConditionCode.b,
            ConditionCode.ae,
            ConditionCode.e,
            ConditionCode.ne,
            ConditionCode.be,
            ConditionCode.a,
            ConditionCode.s,
            ConditionCode.ns,
            ConditionCode.p,
            ConditionCode.np,
            ConditionCode.l,
            ConditionCode.ge,
            ConditionCode.le,
            ConditionCode.g,
        }
            .Select((condition, code) => (condition, code))
            .OrderBy(pair => pair.condition)
            .Select(pair => (byte)pair.code),
    ];

    // LOOPcc and JRCXZ reach 127 bytes only: taken, they jump to a jump.
    private void EmitCountedJump(in Decoded decoded)
    {
        int length = decoded.Instruction.Length;
        _w.Bytes(decoded.Bytes, length - 1);
        _w.Byte(2);
        Mark(decoded.Instruction.NextIP);
        if (PollsBefore(decoded.Instruction.NearBranchTarget, decoded.Instruction.IP))
        {
            _w.Bytes(0xEB, 0);
            int over = _w.Offset - 1;
            EmitPollingLink(decoded.Instruction.NearBranchTarget);
            _w.PatchShortToHere(over);
            Mark(decoded.Instruction.NextIP);
            return;
        }

        _w.Bytes(0xEB, 5);
        Mark(decoded.Instruction.NearBranchTarget);
        int jump = _w.Jump(CarrierLayout.CodeCache);
        PointToStub(decoded.Instruction.NearBranchTarget, jump);
    }

    private void EmitCall(in Decoded decoded)
    {
        ulong target = decoded.Instruction.NearBranchTarget;
        ulong returnAddress = decoded.Instruction.NextIP;
        if (IsNear(returnAddress))
        {
            _w.Byte(0x68); // PUSH imm32, sign-extended
            _w.Int32((int)returnAddress);
        }
        else
        {
            _w.Store(SavedR11, R11);
            Mark(decoded.Instruction.IP, Repairs.R11);
            _w.MoveImmediate(R11, returnAddress);
            _w.PushR11();
            Mark(target, Repairs.R11);
            _w.Load(R11, SavedR11);
        }

        Mark(target);
        EmitLink(target);
    }

    private void EmitReturn(in Decoded decoded)
    {
        ulong rip = decoded.Instruction.IP;
        _w.Store(SavedRcx, Gpr.Rcx);
        Mark(rip, Repairs.Rcx);
        if (MayPoll)
        {
            EmitPollWithRcxFree(rip);
        }

        _w.LoadTopOfStackIntoRcx();
        int pops = sizeof(ulong) + (decoded.Instruction.Code == Code.Retnq_imm16 ? decoded.Instruction.Immediate16 : 0);
        IndirectBranch branch = AddBranch(rip, pops, 0);
        EmitChain(branch);
        _w.LeaStack(pops);
        EmitLookup(branch);
    }

    private void EmitIndirect(in Decoded decoded, bool call)
    {
        ulong rip = decoded.Instruction.IP;
        _w.Store(SavedRcx, Gpr.Rcx);
        Mark(rip, Repairs.Rcx);
        if (!call && MayPoll)
        {
            EmitPollWithRcxFree(rip);
        }

        LoadTarget(decoded);
        Repairs repairs = Repairs.Rcx;
        if (call)
        {
            ulong returnAddress = decoded.Instruction.NextIP;
            if (IsNear(returnAddress))
            {
                _w.Byte(0x68);
                _w.Int32((int)returnAddress);
            }
            else
            {
                _w.Store(SavedR11, R11);
                repairs |= Repairs.R11;
                Mark(rip, repairs);
                _w.MoveImmediate(R11, returnAddress);
                _w.PushR11();
            }
        }

        MarkComputed(RipSource.Rcx, repairs);
        IndirectBranch branch = AddBranch(rip, 0, call ? sizeof(ulong) : 0);
        if (repairs == Repairs.Rcx)
        {
            EmitChain(branch);
        }

        EmitLookup(branch, repairs);
    }

    // MOV rcx, operand: the operand of JMP or CALL r/m64 (FF /4, FF /2) becomes that of MOV r64, r/m64 (8B /1).
    private void LoadTarget(in Decoded decoded)
    {
        ref readonly Instruction instruction = ref decoded.Instruction;
        if (instruction.Op0Kind == OpKind.Register)
        {
            int register = instruction.Op0Register.GetNumber();
            if (register != Gpr.Rcx)
            {
                _w.Move(Gpr.Rcx, register);
            }

            return;
        }

        byte* bytes = decoded.Bytes;
        int length = instruction.Length;
        int at = 0;
        int prefixes = 0;
        byte rex = 0; // of several the last one, if no other prefix follows it
        for (; IsLegacyPrefix(bytes[at]) || IsRex(bytes[at]); at++)
        {
            rex = (byte)(IsRex(bytes[at]) ? bytes[at] & 3 : 0);
            if (bytes[at] is 0x64 or 0x65 or 0x67)
            {
                _w.Byte(bytes[at]); // FS, GS, and the size of addresses
                prefixes++;
            }
        }

        at++; // FF
        if (!instruction.IsIPRelativeMemoryOperand)
        {
            _w.Bytes((byte)(0x48 | rex), 0x8B, (byte)((bytes[at] & 0xC7) | (Gpr.Rcx << 3)));
            at++;
            _w.Bytes(bytes + at, length - at);
            return;
        }

        // Behind a prefix for the size of addresses this has 32 bits; a segment's prefix has to be that of the access.
        Register segment = instruction.SegmentPrefix;
        _w.Offset -= prefixes;
        _w.MoveImmediate(Gpr.Rcx, instruction.IPRelativeMemoryAddress);
        if (segment is Register.FS or Register.GS)
        {
            _w.Byte((byte)(segment == Register.FS ? 0x64 : 0x65));
        }

        _w.Bytes(0x48, 0x8B, 0x09); // MOV rcx, [rcx]
    }

    private static bool IsLegacyPrefix(byte value) =>
        value is 0x26 or 0x2E or 0x36 or 0x3E or (>= 0x64 and <= 0x67) or 0xF0 or 0xF2 or 0xF3;

    private static bool IsRex(byte value) => (value & 0xF0) == 0x40;

    private IndirectBranch AddBranch(ulong rip, int pops, int pushes)
    {
        var branch = new IndirectBranch
        {
            Owner = _block,
            Number = _cache.IndirectBranches.Count,
            Rip = rip,
            Pops = pops,
            Pushes = pushes,
        };
        _cache.IndirectBranches.Add(branch);
        return branch;
    }

    // Room for comparisons, each with a jump of its own, which ExtendChain fills in as the targets become known; behind it follows the lookup. An
    // empty place is a jump to the chain's end.
    private void EmitChain(IndirectBranch branch)
    {
        if (_use == BlockUse.Step)
        {
            return;
        }

        branch.Chain = _w.Offset;
        int end = _w.Offset + (ChainLength * ComparisonSize);
        for (int i = 0; i < ChainLength; i++)
        {
            MarkChain(branch, RipSource.RcxAndChain, Repairs.Rcx, i - 1);
            int next = _w.Offset + ComparisonSize;
            _ = _w.Jump(CarrierLayout.CodeCache + (ulong)end);
            _w.Offset = next - JumpIfRcxSize;
            MarkChain(branch, RipSource.RcxAndChain, Repairs.Rcx, i);
            _w.Offset = next;
        }

        MarkChain(branch, RipSource.RcxAndChain, Repairs.Rcx, IndirectBranch.Last);
        _w.Lea(Gpr.Rcx, Gpr.Rcx, 0);
        MarkChain(branch, RipSource.Rcx, Repairs.Rcx, 0);
        branch.Unknown = _w.Jump(CarrierLayout.CodeCache);
        branch.Hits = _w.Offset;
        for (int i = 0; i < ChainLength; i++)
        {
            int next = _w.Offset + HitSize;
            MarkChain(branch, RipSource.Chain, Repairs.Rcx, i);
            EmitCount(ref _w);
            _w.Load(Gpr.Rcx, SavedRcx);
            MarkChain(branch, RipSource.Chain, Repairs.None, i);
            if (branch.Pops > 0)
            {
                _w.LeaStack(branch.Pops);
                _cache.Recovery.Add(ChainPoint(branch, RipSource.Chain, Repairs.None, i)); // now it is done
            }

            _w.Offset = next;
        }

        branch.Lookup = _w.Address;
        MarkChain(branch, RipSource.Rcx, Repairs.Rcx, 0);
        _indirect.Add(branch);
    }

    // A return is given up as long as its address is on the stack.
    private void MarkChain(IndirectBranch branch, RipSource source, Repairs repairs, int target)
    {
        if (branch.Pops > 0)
        {
            Mark(branch.Rip, repairs);
        }
        else
        {
            _cache.Recovery.Add(ChainPoint(branch, target < 0 ? RipSource.Rcx : source, repairs, target));
        }
    }

    private RecoveryPoint ChainPoint(IndirectBranch branch, RipSource source, Repairs repairs, int target) =>
        new(_w.Offset, source, repairs, (byte)target, (ulong)branch.Number);

    private const int JumpIfRcxSize = 2;

    // LEA rcx, [rcx − …] and JRCXZ.
    private const int ComparisonSize = 9;

    // MOV rcx, [saved]; LEA rsp, [rsp + …]; JMP. And the count: MOV, LEA, MOV.
    private int HitSize => CountsLookups ? 41 : 20;

    // With RCX free.
    private void EmitCount(ref CodeWriter w)
    {
        if (CountsLookups)
        {
            w.Load(Gpr.Rcx, LookupHits);
            w.Lea(Gpr.Rcx, Gpr.Rcx, 1);
            w.Store(LookupHits, Gpr.Rcx);
        }
    }

    private void EmitUnknownTarget(IndirectBranch branch)
    {
        CodeWriter.Patch(_cache.Code, branch.Unknown, _w.Address);
        MarkChain(branch, RipSource.Rcx, Repairs.Rcx, 0);
        _w.Store(LookupTarget, Gpr.Rcx);
        _w.Load(Gpr.Rcx, SavedRcx);
        if (branch.Pops > 0)
        {
            Mark(branch.Rip);
        }
        else
        {
            MarkComputed(RipSource.LookupTarget, Repairs.None);
        }

        EmitExit(SiteKind.Indirect, (ulong)branch.Number);
    }

    // Too many targets: it looks them up from now on. The lookup of a return follows behind; another branch's goes into the chain's own place, where the
    // piece that begins behind the first instruction of a comparison is the one that begins behind the first instruction of the lookup.
    private static void GiveUpChain(TranslationCache cache, IndirectBranch branch, CodeWriter w)
    {
        if (branch.Pops > 0)
        {
            _ = w.Jump(branch.Lookup);
            return;
        }

        const Repairs both = Repairs.Rcx | Repairs.R11;
        int end = (int)(branch.Lookup - CarrierLayout.CodeCache);
        cache.Recovery.Overwrite(branch.Chain, branch.Chain + 1, new(0, RipSource.Rcx, Repairs.Rcx, 0, 0));
        cache.Recovery.Overwrite(branch.Chain + 1, end, new(0, RipSource.Rcx, both, 0, 0));
        w.Store(SavedR11, R11);
        Debug.Assert(w.Offset == branch.Chain + ComparisonSize - JumpIfRcxSize);
        EmitTableJump(ref w, branch);
    }

    /// <summary>Lets an indirect branch know one more target.</summary>
    /// <param name="cache">The cache that it is in.</param>
    /// <param name="branch">The branch.</param>
    /// <param name="target">The guest address that it has led to.</param>
    public void ExtendChain(TranslationCache cache, IndirectBranch branch, ulong target)
    {
        int count = branch.Targets.Count;
        var w = new CodeWriter(cache.Code, branch.Chain);
        if (count == ChainLength || !IsNear(target))
        {
            GiveUpChain(cache, branch, w);
            return;
        }

        ulong less = count == 0 ? 0 : branch.Targets[^1];
        branch.Targets.Add(target);
        w.Offset = branch.Chain + (count * ComparisonSize);
        w.Lea(Gpr.Rcx, Gpr.Rcx, (int)(less - target));
        int hit = branch.Hits + (count * HitSize);
        w.JumpIfRcxIsZero(hit - (w.Offset + 2));
        w.Offset = branch.Chain + (ChainLength * ComparisonSize);
        w.Lea(Gpr.Rcx, Gpr.Rcx, (int)target);

        w.Offset = hit;
        EmitCount(ref w);
        w.Load(Gpr.Rcx, SavedRcx);
        if (branch.Pops > 0)
        {
            w.LeaStack(branch.Pops);
        }

        _cache = cache;
        _block = branch.Owner;
        _use = BlockUse.Linked;
        _w = w;
        int firstSite = cache.Sites.Count;
        EmitLink(target);
        LinkSites(firstSite);
    }

    /// <summary>
    /// Goes on at the guest address in RCX, the guest's own RCX being saved. The low 16 bits choose an entry of the table; the block there finds out
    /// whether it is the one that is meant, see <see cref="EmitLookupEntry"/>.
    /// </summary>
    private void EmitLookup(IndirectBranch branch, Repairs repairs = Repairs.Rcx)
    {
        MarkComputed(RipSource.Rcx, repairs);
        if (_use == BlockUse.Step)
        {
            _w.Store(LookupTarget, Gpr.Rcx);
            MarkComputed(RipSource.LookupTarget, repairs);
            _w.Load(Gpr.Rcx, SavedRcx);
            if ((repairs & Repairs.R11) != 0)
            {
                MarkComputed(RipSource.LookupTarget, Repairs.R11);
                _w.Load(R11, SavedR11);
            }

            MarkComputed(RipSource.LookupTarget, Repairs.None);
            EmitExit(SiteKind.SteppedIndirectly, (ulong)branch.Number);
            return;
        }

        if ((repairs & Repairs.R11) == 0)
        {
            _w.Store(SavedR11, R11);
            MarkComputed(RipSource.Rcx, Repairs.Rcx | Repairs.R11);
        }

        EmitTableJump(ref _w, branch);
    }

    private static void EmitTableJump(ref CodeWriter w, IndirectBranch branch)
    {
        w.StoreInt32(BranchNumber, branch.Number);
        w.MoveImmediate(R11, CarrierLayout.LookupTable / sizeof(ulong));
        w.MoveCxIntoR11();
        w.LoadR11TimesEight();
        w.JumpR11();
    }

    /// <summary>
    /// Where lookups enter a block: RCX holds the guest address, RCX and R11 of the guest's are saved. Any block whose address has the same low
    /// 16 bits may be found here.
    /// </summary>
    private void EmitLookupEntry(Block block)
    {
        const Repairs both = Repairs.Rcx | Repairs.R11;
        ulong rip = block.Start;
        ulong negated = (ulong)-(long)rip;
        block.LookupEntry = _w.Offset;
        MarkComputed(RipSource.Rcx, both);
        AddToRcx(negated);
        MarkComputed(RipSource.RcxAndConstant, both, rip);
        int match = _w.Offset + 1;
        _w.JumpIfRcxIsZero(0);
        AddToRcx(rip);
        MarkComputed(RipSource.Rcx, both);
        _ = _w.Jump(CarrierStub.Instance.LookupMissedAddress);
        _w.PatchShortToHere(match);
        Mark(rip, both);
        EmitCount(ref _w);
        _w.Load(Gpr.Rcx, SavedRcx);
        Mark(rip, Repairs.R11);
        _w.Load(R11, SavedR11);
        Mark(rip);
    }

    private void AddToRcx(ulong value)
    {
        if (IsNear(value))
        {
            _w.Lea(Gpr.Rcx, Gpr.Rcx, (int)value);
        }
        else
        {
            _w.MoveImmediate(R11, value);
            _w.AddR11ToRcx();
        }
    }

    /// <summary>
    /// Compares the guest's code with what is translated. For pages that are written again and again: an instruction that may write is the
    /// last of its block there, so what it changes is found before it is executed.
    /// </summary>
    private void EmitSelfCheck(ulong rip, int length)
    {
        const Repairs both = Repairs.Rcx | Repairs.R11;
        Mark(rip);
        _w.Store(SavedRcx, Gpr.Rcx);
        Mark(rip, Repairs.Rcx);
        _w.Store(SavedR11, R11);
        Mark(rip, both | Repairs.ReadsCode);
        byte* code = _decoded[0].Bytes;
        for (int at = 0; at < length; )
        {
            int size =
                length - at >= 8 ? 8
                : length - at >= 4 ? 4
                : length - at >= 2 ? 2
                : 1;
            ulong expected = size switch
            {
                8 => *(ulong*)(code + at),
                4 => *(uint*)(code + at),
                2 => *(ushort*)(code + at),
                _ => code[at],
            };
            _w.MoveImmediate(R11, rip + (ulong)at);
            switch (size)
            {
                case 8:
                    _w.Bytes(0x49, 0x8B, 0x0B); // MOV rcx, [r11]
                    break;
                case 4:
                    _w.Bytes(0x41, 0x8B, 0x0B); // MOV ecx, [r11]
                    break;
                case 2:
                    _w.Bytes(0x41, 0x0F, 0xB7, 0x0B); // MOVZX ecx, word [r11]
                    break;
                default:
                    _w.Bytes(0x41, 0x0F, 0xB6, 0x0B); // MOVZX ecx, byte [r11]
                    break;
            }

            _w.MoveImmediate(R11, (ulong)-(long)expected);
            _w.AddR11ToRcx();
            const int jumpLength = 5;
            _w.JumpIfRcxIsZero(jumpLength);
            Defer(_w.Jump(CarrierLayout.CodeCache), rip, SiteKind.CodeChanged, both);
            at += size;
        }

        _w.Load(Gpr.Rcx, SavedRcx);
        Mark(rip, Repairs.R11);
        _w.Load(R11, SavedR11);
    }

    private static bool IsNear(ulong value) => (long)value == (int)value;
}
