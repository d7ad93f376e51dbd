using Iced.Intel;
using VirtBench.Strategies.Carrier;
using VirtBench.Vmm.Cpu;

namespace VirtBench.Strategies.BinaryTranslation;

// Everything that is not control flow: most of it copied, the sensitive rest inline from virtual state or left to the core.
internal sealed unsafe partial class BlockTranslator
{
    private void EmitAt(int index, int count)
    {
        ref Decoded decoded = ref _decoded[index];
        ref readonly Instruction instruction = ref decoded.Instruction;
        ulong rip = instruction.IP;
        MarkEntry(rip);
        bool shadowEnds = _inShadow;
        switch (decoded.Class)
        {
            case InstructionClass.Copy
                when _use == BlockUse.Step
                    && instruction.IsStringInstruction
                    && (instruction.HasRepPrefix || instruction.HasRepnePrefix):
                EmitRepetition(decoded);
                break;
            case InstructionClass.Copy or InstructionClass.Fault:
                if (instruction.IsIPRelativeMemoryOperand)
                {
                    EmitRipRelative(decoded);
                }
                else
                {
                    _w.Bytes(decoded.Bytes, instruction.Length);
                }

                break;
            case InstructionClass.Followed:
                break;
            case InstructionClass.ConditionalJump:
                EmitConditionalJump(decoded);
                break;
            case InstructionClass.CountedJump:
                EmitCountedJump(decoded);
                break;
            case InstructionClass.Jump:
                if (PollsBefore(instruction.NearBranchTarget, rip))
                {
                    EmitPollingLink(instruction.NearBranchTarget);
                }
                else
                {
                    EmitLink(instruction.NearBranchTarget);
                }

                break;
            case InstructionClass.Call:
                EmitCall(decoded);
                break;
            case InstructionClass.IndirectJump:
                EmitIndirect(decoded, call: false);
                break;
            case InstructionClass.IndirectCall:
                EmitIndirect(decoded, call: true);
                break;
            case InstructionClass.Return:
                EmitReturn(decoded);
                break;
            case InstructionClass.Undefined:
                EmitExit(SiteKind.Undefined, rip);
                break;
            default:
                if (!TryEmitInline(decoded, index, count))
                {
                    EmitExit(SiteKind.Instruction, rip);
                }

                break;
        }

        if (shadowEnds)
        {
            _inShadow = false;
            EmitPoll(instruction.NextIP);
            if (MayPoll && decoded.Class < InstructionClass.Jump)
            {
                EmitPollInLine(instruction.NextIP);
            }
        }
    }

    /// <summary>The sensitive instructions that are cheaper inline.</summary>
    private bool TryEmitInline(in Decoded decoded, int index, int count)
    {
        switch (decoded.Class)
        {
            case InstructionClass.Cli when ChangesInterruptFlag:
                _w.StoreByte(VirtualFlags + 1, 0);
                return true;
            case InstructionClass.Sti when ChangesInterruptFlag && CanShadow(decoded, index, count):
                _w.StoreByte(VirtualFlags + 1, (byte)(Rflags.If >> 8));
                _inShadow = true;
                _shadowed = decoded.Instruction.NextIP;
                return true;
            case InstructionClass.Pushf:
                EmitPushf(decoded);
                return true;
            case InstructionClass.Popf when _mode.OtherFlags == 0 && _use != BlockUse.Step: // which may be one of the guest's own
                EmitPopf(decoded);
                return true;
            case InstructionClass.Rdtsc when !(_mode.User && _mode.TscDisabled):
                EmitRdtsc(decoded);
                return true;
            case InstructionClass.Rdtscp when !(_mode.User && _mode.TscDisabled) && !_mode.TscOffset:
                _w.Bytes(0x0F, 0x01, 0xF9);
                _w.Load32(Gpr.Rcx, State(nameof(VirtualState.TscAux)));
                return true;
            case InstructionClass.Cpuid:
                EmitCpuid(decoded);
                return true;
            case InstructionClass.StoreTable:
                return TryEmitStoreTable(decoded);
            case InstructionClass.StoreWord:
                return TryEmitStoreWord(decoded);
            case InstructionClass.ReadControl when !_mode.User:
                return TryEmitReadControl(decoded);
            default:
                return false;
        }
    }

    private static int State(string field) =>
        CodeWriter.Field(nameof(ControlPage.Virtual))
        + (int)System.Runtime.InteropServices.Marshal.OffsetOf<VirtualState>(field);

    /// <summary>
    /// One repetition of a string instruction, which is what a single step executes of it (Intel SDM vol. 3B, section 17.3.1.4): the bytes
    /// without the prefix, and the count. That goes first: a fault of the repetition puts it back.
    /// </summary>
    private void EmitRepetition(in Decoded decoded)
    {
        ref readonly Instruction instruction = ref decoded.Instruction;
        bool shortCount = false;
        int prefixes = 0;
        for (; IsLegacyPrefix(decoded.Bytes[prefixes]) || IsRex(decoded.Bytes[prefixes]); prefixes++)
        {
            shortCount |= decoded.Bytes[prefixes] == 0x67;
        }

        int none = EmitCountIsZero(shortCount);
        _w.Store(SavedRcx, Gpr.Rcx);
        if (shortCount)
        {
            _w.Bytes(0x67, 0x8D, 0x49, 0xFF); // LEA ecx, [ecx − 1]
        }
        else
        {
            _w.Lea(Gpr.Rcx, Gpr.Rcx, -1);
        }

        Mark(instruction.IP, Repairs.Rcx);
        for (int i = 0; i < instruction.Length; i++)
        {
            if (i >= prefixes || decoded.Bytes[i] is not (0xF2 or 0xF3))
            {
                _w.Byte(decoded.Bytes[i]);
            }
        }

        bool compares =
            instruction.Mnemonic
            is Mnemonic.Cmpsb
                or Mnemonic.Cmpsw
                or Mnemonic.Cmpsd
                or Mnemonic.Cmpsq
                or Mnemonic.Scasb
                or Mnemonic.Scasw
                or Mnemonic.Scasd
                or Mnemonic.Scasq;
        RipSource source =
            !compares ? RipSource.Repeated
            : instruction.HasRepnePrefix ? RipSource.RepeatedWhileDifferent
            : RipSource.RepeatedWhileEqual;
        _cache.Recovery.Add(
            new RecoveryPoint(_w.Offset, source, Repairs.None, (byte)instruction.Length, instruction.IP)
        );
        int last = EmitCountIsZero(shortCount);
        int different = 0;
        if (compares)
        {
            _w.Bytes((byte)(instruction.HasRepnePrefix ? 0x74 : 0x75), 0); // JZ, JNZ: the comparison ends it
            different = _w.Offset - 1;
        }

        EmitExit(SiteKind.Stepped, instruction.IP);
        _w.PatchShortToHere(none);
        _w.PatchShortToHere(last);
        if (different != 0)
        {
            _w.PatchShortToHere(different);
        }

        Mark(instruction.NextIP);
    }

    private int EmitCountIsZero(bool shortCount)
    {
        if (shortCount)
        {
            _w.Byte(0x67);
        }

        _w.JumpIfRcxIsZero(0);
        return _w.Offset - 1;
    }

    // ------------------------------------------------------------------------------------------------ operands

    // An absolute address takes a SIB byte (Intel SDM vol. 2, table 2-7); where it does not fit into 32 bits, a register of the guest's is lent.
    private void EmitRipRelative(in Decoded decoded)
    {
        ref readonly Instruction instruction = ref decoded.Instruction;
        ulong address = instruction.IPRelativeMemoryAddress;
        int length = instruction.Length;
        if (instruction.MemoryBase == Register.RIP && IsNear(address) && length < LongestInstruction)
        {
            int modRm = decoded.Displacement - 1;
            _w.Bytes(decoded.Bytes, modRm);
            _w.Byte((byte)((decoded.Bytes[modRm] & 0x38) | 4));
            _w.Byte(0x25);
            _w.Int32((int)address);
            int behind = decoded.Displacement + sizeof(int);
            _w.Bytes(decoded.Bytes + behind, length - behind);
            return;
        }

        int lent = FreeRegister(instruction);
        Instruction changed = instruction;
        changed.MemoryBase = Register.RAX + lent;
        changed.MemoryDisplacement64 = 0;
        changed.MemoryDisplSize = 0;
        _w.Store(SavedOther, lent);
        Mark(instruction.IP, Repairs.Other, (byte)lent);
        _w.MoveImmediate(lent, address);
        EmitEncoded(changed, lent, instruction.IP);
        Mark(instruction.NextIP, Repairs.Other, (byte)lent);
        _w.Load(lent, SavedOther);
    }

    // R8 to R11 are no instruction's implicit operands but SYSCALL's. They need a REX prefix, with which there is no AH to BH; RSI and
    // RDI are no implicit operands beside one of those.
    private static int FreeRegister(in Instruction instruction)
    {
        bool withoutRex = IsHighByte(instruction.Op0Register) || IsHighByte(instruction.Op1Register);
        for (int register = withoutRex ? Gpr.Rsi : Gpr.R8; ; register++)
        {
            Register full = Register.RAX + register;
            bool used =
                instruction.MemoryBase.GetFullRegister() == full || instruction.MemoryIndex.GetFullRegister() == full;
            for (int i = 0; i < instruction.OpCount && !used; i++)
            {
                used =
                    instruction.GetOpKind(i) == OpKind.Register
                    && instruction.GetOpRegister(i).GetFullRegister() == full;
            }

            if (!used)
            {
                return register;
            }
        }
    }

    private static bool IsHighByte(Register register) => register is >= Register.AH and <= Register.BH;

    // What Iced does not encode is left to the core, with the lent register given back.
    private void EmitEncoded(in Instruction instruction, int lent, ulong rip)
    {
        _encoded.Length = 0;
        if (_encoder.TryEncode(instruction, _w.Address, out _, out _))
        {
            _w.Bytes(_encoded.Buffer.AsSpan(0, _encoded.Length));
        }
        else
        {
            _w.Load(lent, SavedOther);
            EmitExit(SiteKind.Instruction, rip);
        }
    }

    // ------------------------------------------------------------------------------------------------ the interrupt flag

    private bool ChangesInterruptFlag => !_mode.User && _mode.OtherFlags == 0 && _use != BlockUse.Step;

    // The shadow covers the next instruction, which must be in the block and be followed by the poll. STI is one byte: a kick goes back
    // over it.
    private bool CanShadow(in Decoded decoded, int index, int count) =>
        decoded.Instruction.Length == 1
        && index + 1 < count
        && _decoded[index + 1].Class
            is InstructionClass.Copy
                or InstructionClass.Cli
                or InstructionClass.Pushf
                or InstructionClass.Rdtsc;

    /// <summary>Leaves when an interrupt waits.</summary>
    private void EmitPoll(ulong next)
    {
        Mark(next);
        _w.Store(SavedRcx, Gpr.Rcx);
        Mark(next, Repairs.Rcx);
        _w.LoadByteIntoRcx(WindowWanted);
        const int jumpLength = 5;
        _w.JumpIfRcxIsZero(jumpLength);
        Defer(_w.Jump(CarrierLayout.CodeCache), next, SiteKind.Window, Repairs.Rcx);
        _w.Load(Gpr.Rcx, SavedRcx);
    }

    // The host's image has IF set and the other system flags clear.
    private void EmitPushf(in Decoded decoded)
    {
        ulong rip = decoded.Instruction.IP;
        ulong next = decoded.Instruction.NextIP;
        _w.Byte(0x9C);
        Mark(rip, Repairs.Push);
        _w.Store(SavedRcx, Gpr.Rcx);
        Mark(rip, Repairs.Push | Repairs.Rcx);
        _w.Store(SavedRax, Gpr.Rax);
        Mark(rip, Repairs.Push | Repairs.Rcx | Repairs.Rax);
        _w.LoadTopOfStackIntoRcx();
        _w.Load(Gpr.Rax, VirtualFlags);
        _w.AddRaxToRcx(-(int)Rflags.If);
        _w.StoreRcxAtTopOfStack();
        Mark(next, Repairs.Rcx | Repairs.Rax);
        _w.Load(Gpr.Rcx, SavedRcx);
        Mark(next, Repairs.Rax);
        _w.Load(Gpr.Rax, SavedRax);
    }

    // All flags are loaded, so what is done before may change them. An image with system flags that are not simply ignored is the core's.
    private void EmitPopf(in Decoded decoded)
    {
        const ulong rare = Rflags.Tf | Rflags.Nt | Rflags.Ac;
        ulong rip = decoded.Instruction.IP;
        ulong next = decoded.Instruction.NextIP;
        _w.Store(SavedRcx, Gpr.Rcx);
        Mark(rip, Repairs.Rcx);
        _w.LoadTopOfStackIntoRcx();
        _w.Bytes(0xF7, 0xC1); // TEST ecx, imm32
        _w.Int32((int)(rare | (_mode.User ? 0 : Rflags.Iopl)));
        Defer(_w.JumpIf(5, CarrierLayout.CodeCache), rip, SiteKind.Instruction, Repairs.Rcx);
        if (_mode.User)
        {
            // IF and IOPL stay as they are below IOPL's privilege.
            _w.Byte(0x9D);
            Mark(next, Repairs.Rcx);
            _w.Load(Gpr.Rcx, SavedRcx);
            return;
        }

        _w.Bytes(0x81, 0xE1); // AND ecx, imm32
        _w.Int32((int)Rflags.If);
        int skip = _w.Offset + 1;
        _w.Bytes(0x74, 0); // JZ: interrupts stay off
        _w.CompareByteWithZero(WindowWanted);
        Defer(_w.JumpIf(5, CarrierLayout.CodeCache), rip, SiteKind.Instruction, Repairs.Rcx);
        _w.PatchShortToHere(skip);
        _w.Byte(0x9D); // POPFQ: the host ignores IF
        Mark(next, Repairs.Rcx | Repairs.FlagsInCh);
        _w.StoreCh(VirtualFlags + 1);
        Mark(next, Repairs.Rcx);
        _w.Load(Gpr.Rcx, SavedRcx);
    }

    // ------------------------------------------------------------------------------------------------ what is read

    private void EmitRdtsc(in Decoded decoded)
    {
        _w.Bytes(0x0F, 0x31);
        if (!_mode.TscOffset)
        {
            return;
        }

        // Without arithmetic that changes flags the halves come together in memory only.
        _w.Store32(Scratch, Gpr.Rax);
        _w.Store32(Scratch + sizeof(uint), Gpr.Rdx);
        _w.Load(Gpr.Rax, Scratch);
        _w.Load(Gpr.Rdx, State(nameof(VirtualState.TscOffset)));
        _w.Bytes(0x48, 0x8D, 0x04, 0x10); // LEA rax, [rax + rdx]
        _w.Store(Scratch, Gpr.Rax);
        _w.Load32(Gpr.Rdx, Scratch + sizeof(uint));
        _w.Load32(Gpr.Rax, Scratch);
    }

    // EBX, ECX and EDX are results, so two of them serve before; a leaf that the table does not have is the core's.
    private void EmitCpuid(in Decoded decoded)
    {
        ulong rip = decoded.Instruction.IP;
        const Repairs both = Repairs.Rcx | Repairs.Other;
        _w.Store(SavedRcx, Gpr.Rcx);
        Mark(rip, Repairs.Rcx);
        _w.Store(SavedOther, Gpr.Rdx);
        Mark(rip, both, Gpr.Rdx);
        _w.Bytes(0x89, 0xC2); // MOV edx, eax
        _w.Bytes(0x0F, 0xCA); // BSWAP edx
        _w.Bytes(0x0F, 0xB6, 0xD2); // MOVZX edx, dl
        _w.Bytes(0x0F, 0xB6, 0xC8); // MOVZX ecx, al
        _w.Bytes(0x8D, 0x0C, 0x11); // LEA ecx, [rcx + rdx]
        _w.Bytes(0x8D, 0x0C, 0x8D, 0, 0, 0, 0); // LEA ecx, [rcx * 4]
        _w.Bytes(0x48, 0x8D, 0x15); // LEA rdx, [table]
        _w.Int32(-(_w.Offset + sizeof(int)));
        _w.Bytes(0x48, 0x8D, 0x14, 0xCA); // LEA rdx, [rdx + rcx * 8]
        _w.Bytes(0x8B, 0x4A, CpuidTable.KeyOffset); // MOV ecx, [rdx + …]
        _w.Bytes(0x8D, 0x0C, 0x01); // LEA ecx, [rcx + rax]
        const int jumpLength = 5;
        _w.JumpIfRcxIsZero(jumpLength);
        Defer(_w.Jump(CarrierLayout.CodeCache), rip, SiteKind.Instruction, both);
        _w.Store(SavedRax, Gpr.Rax);
        Mark(rip, both | Repairs.Rax, Gpr.Rdx);
        _w.Move(Gpr.Rax, Gpr.Rdx);
        _w.Bytes(0x8B, 0x58, 4); // MOV ebx, [rax + 4]
        _w.Bytes(0x8B, 0x48, 8); // MOV ecx, [rax + 8]
        _w.Bytes(0x8B, 0x50, 12); // MOV edx, [rax + 12]
        _w.Bytes(0x8B, 0x00); // MOV eax, [rax]: done by this one
    }

    private bool TryEmitReadControl(in Decoded decoded)
    {
        string? field = decoded.Instruction.Op1Register switch
        {
            Register.CR0 => nameof(VirtualState.Cr0),
            Register.CR2 => nameof(VirtualState.Cr2),
            Register.CR3 => nameof(VirtualState.Cr3),
            Register.CR4 => nameof(VirtualState.Cr4),
            _ => null,
        };
        if (field is null)
        {
            return false;
        }

        _w.Load(decoded.Instruction.Op0Register.GetNumber(), State(field));
        return true;
    }

    private bool TryEmitStoreWord(in Decoded decoded)
    {
        ref readonly Instruction instruction = ref decoded.Instruction;
        int field = instruction.Mnemonic switch
        {
            Mnemonic.Sldt => State(nameof(VirtualState.Ldtr)),
            Mnemonic.Str => State(nameof(VirtualState.Tr)),
            Mnemonic.Smsw => State(nameof(VirtualState.Cr0)),
            _ => State(nameof(VirtualState.Selectors)) + (sizeof(ulong) * (instruction.Op1Register - Register.ES)),
        };
        if (instruction.Op0Kind == OpKind.Register)
        {
            Register register = instruction.Op0Register;
            int number = register.GetNumber();
            switch (register.GetSize())
            {
                case 8:
                    _w.Load(number, field);
                    break;
                case 4:
                    _w.Load32(number, field);
                    break;
                default:
                    _w.Load16(number, field);
                    break;
            }

            return true;
        }

        if (!TryOperand(instruction, 0, out MemoryOperand memory))
        {
            return false;
        }

        int lent = FreeRegister(instruction);
        _w.Store(SavedOther, lent);
        Mark(instruction.IP, Repairs.Other, (byte)lent);
        _w.Load32(lent, field);
        EmitEncoded(Instruction.Create(Code.Mov_rm16_r16, memory, Register.AX + lent), lent, instruction.IP);
        Mark(instruction.NextIP, Repairs.Other, (byte)lent);
        _w.Load(lent, SavedOther);
        return true;
    }

    // Two stores: a fault of the second finds the first done, which is done again.
    private bool TryEmitStoreTable(in Decoded decoded)
    {
        ref readonly Instruction instruction = ref decoded.Instruction;
        bool gdt = instruction.Mnemonic == Mnemonic.Sgdt;
        if (
            !TryOperand(instruction, 0, out MemoryOperand limit)
            || !TryOperand(instruction, sizeof(ushort), out MemoryOperand address)
        )
        {
            return false;
        }

        int lent = FreeRegister(instruction);
        _w.Store(SavedOther, lent);
        Mark(instruction.IP, Repairs.Other, (byte)lent);
        _w.Load32(lent, State(gdt ? nameof(VirtualState.GdtLimit) : nameof(VirtualState.IdtLimit)));
        EmitEncoded(Instruction.Create(Code.Mov_rm16_r16, limit, Register.AX + lent), lent, instruction.IP);
        _w.Load(lent, State(gdt ? nameof(VirtualState.GdtBase) : nameof(VirtualState.IdtBase)));
        EmitEncoded(Instruction.Create(Code.Mov_rm64_r64, address, Register.RAX + lent), lent, instruction.IP);
        Mark(instruction.NextIP, Repairs.Other, (byte)lent);
        _w.Load(lent, SavedOther);
        return true;
    }

    // The instruction's memory operand, so many bytes on, for another instruction; false where that cannot be written down.
    private static bool TryOperand(in Instruction instruction, int offset, out MemoryOperand operand)
    {
        operand = default;
        bool ripRelative = instruction.IsIPRelativeMemoryOperand;
        long displacement =
            (ripRelative ? (long)instruction.IPRelativeMemoryAddress : (long)instruction.MemoryDisplacement64) + offset;
        if ((ripRelative && instruction.MemoryBase != Register.RIP) || displacement != (int)displacement)
        {
            return false;
        }

        operand = new MemoryOperand(
            ripRelative ? Register.None : instruction.MemoryBase,
            instruction.MemoryIndex,
            instruction.MemoryIndexScale,
            displacement,
            instruction.MemoryBase.GetSize() == 4 || instruction.MemoryIndex.GetSize() == 4 ? 4 : 8,
            false,
            instruction.SegmentPrefix
        );
        return true;
    }
}
