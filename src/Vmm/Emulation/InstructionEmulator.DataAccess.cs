using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using BitOperations = System.Numerics.BitOperations;

namespace VirtBench.Vmm.Emulation;

// Ordinary instructions that touch an address without RAM, which no engine can map: moves, string moves, simple arithmetic
// and the SSE moves that compilers copy with.
public sealed partial class InstructionEmulator
{
    /// <summary>
    /// Whether <see cref="EmulateDataAccess"/> knows the instruction that <see cref="TryDecode"/> has just decoded.
    /// </summary>
    /// <remarks>What the platform lacks and the host executes has to be executed by the host.</remarks>
    public bool CanEmulateDataAccess =>
        _current.Operation is not (Operation.Unprivileged or Operation.Undefined) || IsEmulatedDataAccess();

    private bool IsEmulatedDataAccess() =>
        Instruction.IsStringInstruction
        || Instruction.Mnemonic switch
        {
            Mnemonic.Mov
            or Mnemonic.Movzx
            or Mnemonic.Movsx
            or Mnemonic.Movsxd
            or Mnemonic.Add
            or Mnemonic.Sub
            or Mnemonic.Cmp
            or Mnemonic.And
            or Mnemonic.Or
            or Mnemonic.Xor
            or Mnemonic.Test
            or Mnemonic.Movups
            or Mnemonic.Movupd
            or Mnemonic.Movdqu
            or Mnemonic.Movaps
            or Mnemonic.Movapd
            or Mnemonic.Movdqa => true,
            Mnemonic.Movq or Mnemonic.Movd or Mnemonic.Movss or Mnemonic.Movsd => (
                Instruction.Op0Kind == OpKind.Memory ? Instruction.Op1Register : Instruction.Op0Register
            ).IsXMM(),
            _ => false,
        };

    private EmulationResult AccessData()
    {
        if (Instruction.IsStringInstruction)
        {
            return AccessString();
        }

        switch (Instruction.Mnemonic)
        {
            case Mnemonic.Mov when Instruction.Op0Kind == OpKind.Memory:
                return Store(SourceValue());
            case Mnemonic.Mov or Mnemonic.Movzx:
                return TryLoad(PageAccess.Read, out ulong value) ? SetAndFinish(value) : EmulationResult.Event;
            case Mnemonic.Movsx or Mnemonic.Movsxd:
                return TryLoad(PageAccess.Read, out value)
                    ? SetAndFinish(SignExtend(value, MemoryOperandSize))
                    : EmulationResult.Event;
            case Mnemonic.Add
            or Mnemonic.Sub
            or Mnemonic.Cmp
            or Mnemonic.And
            or Mnemonic.Or
            or Mnemonic.Xor
            or Mnemonic.Test:
                return AccessArithmetic();
            case Mnemonic.Movups or Mnemonic.Movupd or Mnemonic.Movdqu:
                return MoveVector(aligned: false);
            case Mnemonic.Movaps or Mnemonic.Movapd or Mnemonic.Movdqa:
                return MoveVector(aligned: true);
            case Mnemonic.Movq
            or Mnemonic.Movd
            or Mnemonic.Movss
            or Mnemonic.Movsd
                when (Instruction.Op0Kind == OpKind.Memory ? Instruction.Op1Register : Instruction.Op0Register).IsXMM():
                return MoveVector(aligned: false);
            default:
                throw new GuestFailureException(
                    Unsupported(
                        "the guest accesses memory where there is no RAM with an instruction that is not emulated there"
                    )
                );
        }
    }

    private int MemoryOperandSize => Instruction.MemorySize.GetSize();

    private bool TryLoad(PageAccess access, out ulong value)
    {
        value = 0;
        Span<byte> bytes = MemoryMarshalBytes(ref value)[..MemoryOperandSize];
        if (_space.TryRead(EffectiveAddress(), bytes, access | User, out _event))
        {
            return true;
        }

        CorrectStackFault(Instruction.MemorySegment);
        return false;
    }

    private EmulationResult Store(ulong value)
    {
        Span<byte> bytes = MemoryMarshalBytes(ref value)[..MemoryOperandSize];
        if (_space.TryWrite(EffectiveAddress(), bytes, User, out _event))
        {
            return Done();
        }

        CorrectStackFault(Instruction.MemorySegment);
        return EmulationResult.Event;
    }

    private ulong SourceValue() =>
        Instruction.Op1Kind == OpKind.Register ? ReadRegister(Instruction.Op1Register) : Instruction.GetImmediate(1);

    private EmulationResult SetAndFinish(ulong value)
    {
        WriteRegister(Instruction.Op0Register, value);
        return Done();
    }

    private static ulong SignExtend(ulong value, int size)
    {
        int unused = 64 - (8 * size);
        return (ulong)((long)(value << unused) >> unused);
    }

    private EmulationResult AccessArithmetic()
    {
        bool toMemory = Instruction.Op0Kind == OpKind.Memory;
        bool compares = Instruction.Mnemonic is Mnemonic.Cmp or Mnemonic.Test;
        bool writesMemory = toMemory && !compares;
        if (!TryLoad(PageAccess.Read | (writesMemory ? PageAccess.Write : 0), out ulong memory))
        {
            return EmulationResult.Event;
        }

        ulong left = toMemory ? memory : ReadRegister(Instruction.Op0Register);
        ulong right = toMemory ? SourceValue() : memory;
        ulong flags = Compute(left, right, MemoryOperandSize, out ulong result);
        if (writesMemory)
        {
            if (Store(result) == EmulationResult.Event)
            {
                return EmulationResult.Event;
            }
        }
        else
        {
            if (!compares)
            {
                WriteRegister(Instruction.Op0Register, result);
            }

            _ = Done();
        }

        _cpu.Rflags = (_cpu.Rflags & ~Rflags.Arithmetic) | flags;
        return EmulationResult.Done;
    }

    private ulong Compute(ulong left, ulong right, int size, out ulong result)
    {
        ulong mask = size == 8 ? ulong.MaxValue : (1UL << (8 * size)) - 1;
        ulong sign = 1UL << ((8 * size) - 1);
        left &= mask;
        right &= mask;
        ulong flags = 0;
        switch (Instruction.Mnemonic)
        {
            case Mnemonic.Add:
                result = (left + right) & mask;
                flags |= result < left ? Rflags.Cf : 0;
                flags |= ((left ^ result) & (right ^ result) & sign) != 0 ? Rflags.Of : 0;
                flags |= (left ^ right ^ result) & Rflags.Af;
                break;
            case Mnemonic.Sub or Mnemonic.Cmp:
                result = (left - right) & mask;
                flags |= left < right ? Rflags.Cf : 0;
                flags |= ((left ^ right) & (left ^ result) & sign) != 0 ? Rflags.Of : 0;
                flags |= (left ^ right ^ result) & Rflags.Af;
                break;
            case Mnemonic.And or Mnemonic.Test:
                result = left & right;
                break;
            case Mnemonic.Or:
                result = left | right;
                break;
            default:
                result = left ^ right;
                break;
        }

        flags |= result == 0 ? Rflags.Zf : 0;
        flags |= (result & sign) != 0 ? Rflags.Sf : 0;
        flags |= (BitOperations.PopCount((byte)result) & 1) == 0 ? Rflags.Pf : 0;
        return flags;
    }

    private unsafe EmulationResult MoveVector(bool aligned)
    {
        ulong address = EffectiveAddress();
        if (aligned && (address & 15) != 0)
        {
            return Raise(Vector.GeneralProtection);
        }

        bool stores = Instruction.Op0Kind == OpKind.Memory;
        Register register = stores ? Instruction.Op1Register : Instruction.Op0Register;
        SaveLazyState();
        Span<byte> xmm = new((byte*)_cpu.Registers + GuestRegisters.XmmOffset + (16 * register.GetNumber()), 16);
        Span<byte> value = stackalloc byte[16];
        value.Clear(); // loads of less than 16 bytes zero the rest
        Span<byte> part = value[..MemoryOperandSize];
        if (stores)
        {
            xmm[..part.Length].CopyTo(part);
        }

        bool done = stores
            ? _space.TryWrite(address, part, User, out _event)
            : _space.TryRead(address, part, PageAccess.Read | User, out _event);
        if (!done)
        {
            CorrectStackFault(Instruction.MemorySegment);
            return EmulationResult.Event;
        }

        if (!stores)
        {
            value.CopyTo(xmm);
            LoadLazyState();
        }

        return Done();
    }

    private EmulationResult AccessString()
    {
        bool loads,
            stores;
        switch (Instruction.Mnemonic)
        {
            case Mnemonic.Movsb or Mnemonic.Movsw or Mnemonic.Movsd or Mnemonic.Movsq:
                loads = stores = true;
                break;
            case Mnemonic.Stosb or Mnemonic.Stosw or Mnemonic.Stosd or Mnemonic.Stosq:
                loads = false;
                stores = true;
                break;
            case Mnemonic.Lodsb or Mnemonic.Lodsw or Mnemonic.Lodsd or Mnemonic.Lodsq:
                loads = true;
                stores = false;
                break;
            default:
                throw new GuestFailureException(
                    Unsupported(
                        "the guest accesses memory where there is no RAM with an instruction that is not emulated there"
                    )
                );
        }

        int size = MemoryOperandSize;
        ulong addressMask = StringAddressMask();
        ulong segmentBase = loads ? SegmentBase(Instruction.MemorySegment) : 0;
        ulong left = Repetitions(addressMask, out bool repeats);
        int limit = RepetitionLimit;
        for (int done = RepetitionsDone; left > 0 && done < limit; done++)
        {
            ulong value = _cpu.Rax;
            if (Transaction is not null && loads && stores)
            {
                // The read may be a device's, which must not be asked twice: the place for what it gives must not turn out to
                // be absent afterwards. Whether the guest may write there is found out in its turn.
                _ = _space.TryProbe(_cpu[Gpr.Rdi] & addressMask, size, PageAccess.Write | User, out _);
            }

            Span<byte> bytes = MemoryMarshalBytes(ref value)[..size];
            if (
                loads
                && !_space.TryRead(
                    segmentBase + (_cpu[Gpr.Rsi] & addressMask),
                    bytes,
                    PageAccess.Read | User,
                    out _event
                )
            )
            {
                CorrectStackFault(Instruction.MemorySegment);
                return EmulationResult.Event;
            }

            if (stores && !_space.TryWrite(_cpu[Gpr.Rdi] & addressMask, bytes, User, out _event))
            {
                return EmulationResult.Event;
            }

            if (!stores)
            {
                WriteRegister(Instruction.Op0Register, value);
            }

            if (loads)
            {
                Step(Gpr.Rsi, size, addressMask);
            }

            if (stores)
            {
                Step(Gpr.Rdi, size, addressMask);
            }

            left = EndRepetition(addressMask, repeats);
        }

        return left > 0 ? EmulationResult.Done : Done();
    }

    private ulong StringAddressMask()
    {
        for (int operand = 0; operand < 2; operand++)
        {
            if (Instruction.GetOpKind(operand) is OpKind.MemoryESEDI or OpKind.MemorySegESI)
            {
                return uint.MaxValue;
            }
        }

        return ulong.MaxValue;
    }
}
