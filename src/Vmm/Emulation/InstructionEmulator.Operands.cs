using System.Runtime.CompilerServices;
using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Emulation;

// Registers, effective addresses and the stack as an instruction's operands name them.
public sealed partial class InstructionEmulator
{
    private ulong ReadRegister(Register register)
    {
        int number = register.GetNumber();
        switch (register.GetSize())
        {
            case 8:
                return _cpu[number];
            case 4:
                return (uint)_cpu[number];
            case 2:
                return (ushort)_cpu[number];
            default:
                return number is >= 4 and < 8 ? (byte)(_cpu[number - 4] >> 8) : (byte)_cpu[ByteRegister(number)];
        }
    }

    private void WriteRegister(Register register, ulong value)
    {
        int number = register.GetNumber();
        switch (register.GetSize())
        {
            case 8:
                _cpu[number] = value;
                break;
            case 4:
                _cpu[number] = (uint)value;
                break;
            case 2:
                _cpu[number] = (_cpu[number] & ~0xFFFFUL) | (ushort)value;
                break;
            default:
                if (number is >= 4 and < 8)
                {
                    _cpu[number - 4] = (_cpu[number - 4] & ~0xFF00UL) | ((value & 0xFF) << 8);
                }
                else
                {
                    ref ulong target = ref _cpu[ByteRegister(number)];
                    target = (target & ~0xFFUL) | (byte)value;
                }

                break;
        }
    }

    // Iced counts AL CL DL BL AH CH DH BH SPL BPL SIL DIL R8L …
    private static int ByteRegister(int number) => number < 4 ? number : number - 4;

    /// <summary>Linear address of the memory operand of the current instruction; not checked to be canonical.</summary>
    private ulong EffectiveAddress()
    {
        ref readonly Instruction instruction = ref Instruction;
        ulong address = instruction.MemoryDisplacement64;
        Register baseRegister = instruction.MemoryBase;
        if (baseRegister is not (Register.None or Register.RIP or Register.EIP))
        {
            address += ReadRegister(baseRegister);
        }

        if (instruction.MemoryIndex != Register.None)
        {
            address += ReadRegister(instruction.MemoryIndex) * (ulong)instruction.MemoryIndexScale;
        }

        if (
            baseRegister.GetSize() == 4
            || instruction.MemoryIndex.GetSize() == 4
            || (
                baseRegister == Register.None
                && instruction.MemoryIndex == Register.None
                && instruction.MemoryDisplSize == 4
            )
        )
        {
            address = (uint)address;
        }

        return address + SegmentBase(instruction.MemorySegment);
    }

    private ulong SegmentBase(Register segment)
    {
        if (segment is not (Register.FS or Register.GS))
        {
            return 0;
        }

        SaveLazyState();
        return segment == Register.FS ? _cpu.Fs.Base : _cpu.Gs.Base;
    }

    private bool TryReadOperand<T>(ulong address, PageAccess access, out T value)
        where T : unmanaged
    {
        if (_space.TryRead(address, access | User, out value, out _event))
        {
            return true;
        }

        CorrectStackFault(Instruction.MemorySegment);
        return false;
    }

    private bool TryWriteOperand<T>(ulong address, T value)
        where T : unmanaged
    {
        if (_space.TryWrite(address, value, User, out _event))
        {
            return true;
        }

        CorrectStackFault(Instruction.MemorySegment);
        return false;
    }

    // A non-canonical address is #SS(0) instead of #GP(0) when it goes through the stack segment.
    private void CorrectStackFault(Register segment)
    {
        if (segment == Register.SS && _event.Number == Vector.GeneralProtection)
        {
            _event = GuestEvent.Exception(Vector.StackFault);
        }
    }

    /// <summary>Reads the stack at RSP + offset; nothing is popped.</summary>
    private bool TryReadStack(int offset, int size, out ulong value)
    {
        value = 0;
        Span<byte> bytes = MemoryMarshalBytes(ref value)[..size];
        if (_space.TryRead(_cpu.Rsp + (ulong)offset, bytes, PageAccess.Read | User, out _event))
        {
            return true;
        }

        CorrectStackFault(Register.SS);
        return false;
    }

    private static unsafe Span<byte> MemoryMarshalBytes(ref ulong value) => new(Unsafe.AsPointer(ref value), 8);

    /// <summary>A 16-bit operand, register or memory.</summary>
    private bool TryReadWord(out ushort value)
    {
        if (Instruction.Op0Kind == OpKind.Register)
        {
            value = (ushort)ReadRegister(Instruction.Op0Register);
            return true;
        }

        return TryReadOperand(EffectiveAddress(), PageAccess.Read, out value);
    }

    /// <summary>Stores 16 bits to memory, or as much of <paramref name="wide"/> as the register operand has.</summary>
    private EmulationResult StoreWord(ushort value, ulong wide)
    {
        if (Instruction.Op0Kind == OpKind.Register)
        {
            WriteRegister(Instruction.Op0Register, wide);
            return Done();
        }

        return TryWriteOperand(EffectiveAddress(), value) ? Done() : EmulationResult.Event;
    }
}
