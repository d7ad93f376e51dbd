using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Emulation;

// MOV to and from segment registers, PUSH and POP FS/GS, LSS/LFS/LGS (Intel SDM vol. 2B, MOV, PUSH; vol. 3A, section 5.6).
public sealed partial class InstructionEmulator
{
    private EmulationResult MovToSegment()
    {
        Register target = Instruction.Op0Register;
        if (target == Register.CS)
        {
            return Raise(Vector.InvalidOpcode);
        }

        ushort selector;
        if (Instruction.Op1Kind == OpKind.Register)
        {
            selector = (ushort)ReadRegister(Instruction.Op1Register);
        }
        else if (!TryReadOperand(EffectiveAddress(), PageAccess.Read, out selector))
        {
            return EmulationResult.Event;
        }

        if (!TryLoadDataSegment(target, selector))
        {
            return EmulationResult.Event;
        }

        _raisesShadow = target == Register.SS;
        return Done();
    }

    private EmulationResult MovFromSegment()
    {
        ushort selector = SegmentRegister(Instruction.Op1Register).Selector;
        return StoreWord(selector, selector);
    }

    private EmulationResult PushSegment()
    {
        ulong selector = SegmentRegister(Instruction.Op0Register).Selector;
        int size = -Instruction.StackPointerIncrement;
        ulong target = _cpu.Rsp - (ulong)size;
        if (!_space.TryWrite(target, MemoryMarshalBytes(ref selector)[..size], User, out _event))
        {
            CorrectStackFault(Register.SS);
            return EmulationResult.Event;
        }

        _cpu.Rsp = target;
        return Done();
    }

    private EmulationResult PopSegment()
    {
        // The slot has the operand's size, 8 bytes or 2; a selector is its low half.
        int size = Instruction.StackPointerIncrement;
        if (!TryReadStack(0, 2, out ulong selector) || !TryLoadDataSegment(Instruction.Op0Register, (ushort)selector))
        {
            return EmulationResult.Event;
        }

        _cpu.Rsp += (ulong)size;
        return Done();
    }

    private EmulationResult LoadFarPointer()
    {
        Register segment = Instruction.Mnemonic switch
        {
            Mnemonic.Lss => Register.SS,
            Mnemonic.Lfs => Register.FS,
            _ => Register.GS,
        };
        if (
            !TryReadFarPointer(Instruction.Op0Register.GetSize(), out ulong offset, out ushort selector)
            || !TryLoadDataSegment(segment, selector)
        )
        {
            return EmulationResult.Event;
        }

        WriteRegister(Instruction.Op0Register, offset);
        return Done();
    }

    /// <summary>Reads m16:16, m16:32 or m16:64.</summary>
    private bool TryReadFarPointer(int offsetSize, out ulong offset, out ushort selector)
    {
        offset = 0;
        selector = 0;
        Span<byte> bytes = stackalloc byte[10];
        bytes.Clear();
        if (!_space.TryRead(EffectiveAddress(), bytes[..(offsetSize + 2)], PageAccess.Read | User, out _event))
        {
            CorrectStackFault(Instruction.MemorySegment);
            return false;
        }

        selector = BitConverter.ToUInt16(bytes[offsetSize..]);
        bytes[offsetSize..].Clear();
        offset = BitConverter.ToUInt64(bytes);
        return true;
    }

    /// <summary>Checks a selector for a data segment register and loads it; otherwise the event is set.</summary>
    private bool TryLoadDataSegment(Register target, ushort selector)
    {
        bool stack = target == Register.SS;
        int rpl = selector & 3;
        uint code = DescriptorTables.ErrorCode(selector);
        if (DescriptorTables.IsNull(selector))
        {
            // 64-bit mode allows a null SS below ring 3, with the RPL of the CPL.
            if (stack && (_cpu.Cpl == 3 || rpl != _cpu.Cpl))
            {
                _ = Raise(Vector.GeneralProtection);
                return false;
            }

            SetSegment(target, Segment.Null with { Selector = selector });
            return true;
        }

        if (!_descriptors.TryRead(selector, system: false, out SegmentDescriptor descriptor, out _event))
        {
            return false;
        }

        int dpl = descriptor.Dpl;
        bool allowed = stack
            ? descriptor.IsWritableData && rpl == _cpu.Cpl && dpl == _cpu.Cpl
            : descriptor.IsReadable && (descriptor.IsConforming || (rpl <= dpl && _cpu.Cpl <= dpl));
        if (!allowed)
        {
            _ = Raise(Vector.GeneralProtection, code);
            return false;
        }

        if (!descriptor.Present)
        {
            _ = Raise(stack ? Vector.StackFault : Vector.SegmentNotPresent, code);
            return false;
        }

        if (!_descriptors.TryMarkAccessed(descriptor, out _event))
        {
            return false;
        }

        SetSegment(target, descriptor.ToSegment(selector));
        return true;
    }

    private Segment SegmentRegister(Register register) =>
        register switch
        {
            Register.ES => _cpu.Es,
            Register.CS => _cpu.Cs,
            Register.SS => _cpu.Ss,
            Register.DS => _cpu.Ds,
            Register.FS => _cpu.Fs,
            _ => _cpu.Gs,
        };

    // Engines hold the bases of FS and GS lazily, so those are exchanged as one.
    private void SetSegment(Register register, in Segment segment)
    {
        switch (register)
        {
            case Register.ES:
                _cpu.Es = segment;
                break;
            case Register.SS:
                _cpu.Ss = segment;
                break;
            case Register.DS:
                _cpu.Ds = segment;
                break;
            case Register.FS:
                SaveLazyState();
                _cpu.Fs = segment;
                LoadLazyState();
                break;
            default:
                SaveLazyState();
                _cpu.Gs = segment;
                LoadLazyState();
                break;
        }
    }
}
