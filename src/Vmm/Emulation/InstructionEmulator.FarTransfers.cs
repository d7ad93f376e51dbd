using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Emulation;

// IRET, far returns, far jumps and calls through memory, INT n, SYSCALL and SYSRET: all that loads CS (Intel SDM vol. 2A,
// IRET; vol. 2B, RET; vol. 3A, sections 5.8 and 6.14). The platform runs 64-bit code only.
public sealed partial class InstructionEmulator
{
    private EmulationResult SoftwareInterrupt()
    {
        byte vector = Instruction.Mnemonic == Mnemonic.Int3 ? Vector.Breakpoint : Instruction.Immediate8;
        return Raise(GuestEvent.SoftwareInterrupt(vector, _current.Length));
    }

    // INT1 raises #DB as a trap, without a look at the gate's DPL.
    private EmulationResult Icebp()
    {
        _ = Done();
        _cpu.PendingEvent = GuestEvent.Exception(Vector.Debug);
        return EmulationResult.Done;
    }

    private EmulationResult Syscall()
    {
        if ((_cpu.Efer & Efer.Sce) == 0)
        {
            return Raise(Vector.InvalidOpcode);
        }

        _cpu.Rip = NextRip;
        SystemCalls.Enter(_cpu);
        return EmulationResult.Done;
    }

    private EmulationResult Sysret()
    {
        if (Instruction.Mnemonic == Mnemonic.Sysret && _cpu.Cpl == 0 && (_cpu.Efer & Efer.Sce) != 0)
        {
            throw new GuestFailureException(
                Unsupported("the guest returns to 32-bit code, which VirtBench does not run")
            );
        }

        return SystemCalls.TryReturn(_cpu, out _event) ? EmulationResult.Done : EmulationResult.Event;
    }

    private EmulationResult Iret() => Iret(OperandSize());

    private EmulationResult Iret(int size)
    {
        if ((_cpu.Rflags & Rflags.Nt) != 0)
        {
            return Raise(Vector.GeneralProtection); // there are no tasks to return to in long mode
        }

        if (
            !TryReadStack(0, size, out ulong rip)
            || !TryReadStack(size, size, out ulong cs)
            || !TryReadStack(2 * size, size, out ulong flags)
            || !TryReadStack(3 * size, size, out ulong rsp)
            || !TryReadStack(4 * size, size, out ulong ss)
            || !TryCheckReturn((ushort)cs, rip, out SegmentDescriptor code)
            || !TryReturnStack((ushort)ss, (ushort)cs & 3, out Segment stack)
            || !_descriptors.TryMarkAccessed(code, out _event)
        )
        {
            return EmulationResult.Event;
        }

        // The flags are loaded with the rights of the code that returns, before CS changes.
        ulong resume = size == 2 ? 0 : Rflags.Rf;
        LoadFlags(flags, size, keep: 0);
        _cpu.Rflags = (_cpu.Rflags & ~resume) | (flags & resume);
        Return((ushort)cs, code, rip, rsp, stack);
        return EmulationResult.Done;
    }

    private EmulationResult FarReturn()
    {
        int size = OperandSize();
        int release = Instruction.Op0Kind == OpKind.Immediate16 ? Instruction.Immediate16 : 0;
        if (
            !TryReadStack(0, size, out ulong rip)
            || !TryReadStack(size, size, out ulong cs)
            || !TryCheckReturn((ushort)cs, rip, out SegmentDescriptor code)
        )
        {
            return EmulationResult.Event;
        }

        ulong rsp = _cpu.Rsp + (ulong)((2 * size) + release);
        Segment stack = _cpu.Ss;
        if (((ushort)cs & 3) > _cpu.Cpl)
        {
            if (
                !TryReadStack((2 * size) + release, size, out rsp)
                || !TryReadStack((3 * size) + release, size, out ulong ss)
                || !TryReturnStack((ushort)ss, (ushort)cs & 3, out stack)
            )
            {
                return EmulationResult.Event;
            }

            rsp += (ulong)release;
        }

        if (!_descriptors.TryMarkAccessed(code, out _event))
        {
            return EmulationResult.Event;
        }

        _cpu.Rflags &= ~Rflags.Rf;
        Return((ushort)cs, code, rip, rsp, stack);
        return EmulationResult.Done;
    }

    /// <summary>JMP and CALL through a far pointer in memory, to code of the same privilege.</summary>
    private EmulationResult FarBranch()
    {
        bool call = Instruction.IsCallFarIndirect;
        int size = Instruction.MemorySize switch
        {
            MemorySize.SegPtr16 => 2,
            MemorySize.SegPtr32 => 4,
            _ => 8,
        };
        if (!TryReadFarPointer(size, out ulong rip, out ushort selector))
        {
            return EmulationResult.Event;
        }

        if (DescriptorTables.IsNull(selector))
        {
            return Raise(Vector.GeneralProtection);
        }

        uint errorCode = DescriptorTables.ErrorCode(selector);
        if (!_descriptors.TryRead(selector, system: false, out SegmentDescriptor code, out _event))
        {
            return EmulationResult.Event;
        }

        if (!code.IsCodeOrData)
        {
            throw new GuestFailureException(
                Unsupported("the guest branches through a call gate or task, which VirtBench does not emulate")
            );
        }

        bool allowed = code.IsConforming ? code.Dpl <= _cpu.Cpl : code.Dpl == _cpu.Cpl && (selector & 3) <= _cpu.Cpl;
        if (!TryCheckCode(code, allowed, errorCode, rip))
        {
            return EmulationResult.Event;
        }

        ulong rsp = _cpu.Rsp;
        if (call)
        {
            rsp -= (ulong)(2 * size);
            Span<byte> frame = stackalloc byte[16];
            frame.Clear();
            _ = BitConverter.TryWriteBytes(frame, NextRip);
            frame[size..].Clear();
            _ = BitConverter.TryWriteBytes(frame[size..], _cpu.Cs.Selector);
            if (!_space.TryWrite(rsp, frame[..(2 * size)], User, out _event))
            {
                CorrectStackFault(Register.SS);
                return EmulationResult.Event;
            }
        }

        if (!_descriptors.TryMarkAccessed(code, out _event))
        {
            return EmulationResult.Event;
        }

        _cpu.Rsp = rsp;
        _cpu.Cs = code.ToSegment((ushort)((selector & ~3) | _cpu.Cpl));
        _cpu.Rip = rip;
        _cpu.Rflags &= ~Rflags.Rf;
        return EmulationResult.Done;
    }

    private int OperandSize() =>
        Instruction.Code switch
        {
            Code.Iretw or Code.Retfw or Code.Retfw_imm16 => 2,
            Code.Iretd or Code.Retfd or Code.Retfd_imm16 => 4,
            _ => 8,
        };

    /// <summary>Checks a code segment that is returned to: never to a more privileged ring.</summary>
    private bool TryCheckReturn(ushort selector, ulong rip, out SegmentDescriptor code)
    {
        code = default;
        if (DescriptorTables.IsNull(selector))
        {
            _ = Raise(Vector.GeneralProtection);
            return false;
        }

        uint errorCode = DescriptorTables.ErrorCode(selector);
        if (!_descriptors.TryRead(selector, system: false, out code, out _event))
        {
            return false;
        }

        int rpl = selector & 3;
        bool allowed = rpl >= _cpu.Cpl && (code.IsConforming ? code.Dpl <= rpl : code.Dpl == rpl);
        return TryCheckCode(code, allowed, errorCode, rip);
    }

    private bool TryCheckCode(in SegmentDescriptor code, bool allowed, uint errorCode, ulong rip)
    {
        if (!code.IsCode || !allowed || code.HasReservedSize)
        {
            _ = Raise(Vector.GeneralProtection, errorCode);
            return false;
        }

        if (!code.Present)
        {
            _ = Raise(Vector.SegmentNotPresent, errorCode);
            return false;
        }

        if (!code.Is64BitCode)
        {
            throw new GuestFailureException(Unsupported("the guest enters 32-bit code, which VirtBench does not run"));
        }

        if (!PageWalker.IsCanonical(rip))
        {
            _ = Raise(Vector.GeneralProtection);
            return false;
        }

        return true;
    }

    /// <summary>Checks SS for a return; loading it marks its descriptor as accessed.</summary>
    private bool TryReturnStack(ushort selector, int newCpl, out Segment stack)
    {
        stack = Segment.Null with { Selector = selector };
        int rpl = selector & 3;
        if (DescriptorTables.IsNull(selector))
        {
            if (newCpl == 3 || rpl != newCpl)
            {
                _ = Raise(Vector.GeneralProtection);
                return false;
            }

            return true;
        }

        uint errorCode = DescriptorTables.ErrorCode(selector);
        if (!_descriptors.TryRead(selector, system: false, out SegmentDescriptor descriptor, out _event))
        {
            return false;
        }

        if (rpl != newCpl || !descriptor.IsWritableData || descriptor.Dpl != newCpl)
        {
            _ = Raise(Vector.GeneralProtection, errorCode);
            return false;
        }

        if (!descriptor.Present)
        {
            _ = Raise(Vector.StackFault, errorCode);
            return false;
        }

        stack = descriptor.ToSegment(selector);
        return _descriptors.TryMarkAccessed(descriptor, out _event);
    }

    private void Return(ushort selector, in SegmentDescriptor code, ulong rip, ulong rsp, in Segment stack)
    {
        int oldCpl = _cpu.Cpl;
        _cpu.Cs = code.ToSegment(selector);
        _cpu.Rip = rip;
        _cpu.Rsp = rsp;
        _cpu.Ss = stack;
        if (_cpu.Cpl > oldCpl)
        {
            SaveLazyState();
            DropSegment(Register.ES);
            DropSegment(Register.DS);
            DropSegment(Register.FS);
            DropSegment(Register.GS);
        }
    }

    // What the outer ring may not use becomes null; the base stays, as 64-bit code uses it without the segment.
    private void DropSegment(Register register)
    {
        Segment segment = SegmentRegister(register);
        bool conforming = (segment.Attributes & 0x1C) == 0x1C;
        if (segment.Present && !conforming && segment.Dpl < _cpu.Cpl)
        {
            SetSegment(register, new Segment(0, segment.Base, 0, 0));
        }
    }
}
