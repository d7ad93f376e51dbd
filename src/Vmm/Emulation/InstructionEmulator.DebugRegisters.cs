using Iced.Intel;
using VirtBench.Vmm.Cpu;

namespace VirtBench.Vmm.Emulation;

// MOV to and from debug registers (Intel SDM vol. 3B, section 18.2). They hold their values; engines set no breakpoints.
public sealed partial class InstructionEmulator
{
    private const ulong Dr6FixedOnes = 0xFFFF_0FF0;
    private const ulong Dr6Writable = 0xE00F; // B0–B3, BD, BS, BT
    private const ulong Dr6AccessDetected = 1UL << 13;
    private const ulong Dr6SingleStep = 1UL << 14;
    private const ulong Dr7FixedOne = 1UL << 10;
    private const ulong Dr7GeneralDetect = 1UL << 13;
    private const ulong Dr7Writable = 0xFFFF_23FF;

    private EmulationResult MovToDebug()
    {
        if (!TryDebugRegister(Instruction.Op0Register, out int number))
        {
            return EmulationResult.Event;
        }

        ulong value = _cpu[Instruction.Op1Register.GetNumber()];
        if (number >= 6 && value > uint.MaxValue)
        {
            return Raise(Vector.GeneralProtection);
        }

        switch (number)
        {
            case 6:
                _cpu.Dr6 = (value & Dr6Writable) | Dr6FixedOnes;
                break;
            case 7:
                _cpu.Dr7 = (value & Dr7Writable) | Dr7FixedOne;
                break;
            default:
                _cpu.DebugAddresses[number] = value;
                break;
        }

        return Done();
    }

    private EmulationResult MovFromDebug()
    {
        if (!TryDebugRegister(Instruction.Op1Register, out int number))
        {
            return EmulationResult.Event;
        }

        _cpu[Instruction.Op0Register.GetNumber()] = number switch
        {
            6 => _cpu.Dr6,
            7 => _cpu.Dr7,
            _ => _cpu.DebugAddresses[number],
        };
        return Done();
    }

    private bool TryDebugRegister(Register register, out int number)
    {
        number = register - Register.DR0;
        if (number >= 8 || (number is 4 or 5 && (_cpu.Cr4 & Cr4.De) != 0))
        {
            _ = Raise(Vector.InvalidOpcode);
            return false;
        }

        if (!Privileged(out _))
        {
            return false;
        }

        // DR4 and DR5 are other names of DR6 and DR7 unless debugging extensions are on.
        number = number is 4 or 5 ? number + 2 : number;
        if ((_cpu.Dr7 & Dr7GeneralDetect) != 0)
        {
            // The debugger that guards the registers may use them in its handler: the processor clears GD on entry.
            _cpu.Dr6 |= Dr6AccessDetected;
            _cpu.Dr7 &= ~Dr7GeneralDetect;
            _ = Raise(Vector.Debug);
            return false;
        }

        return true;
    }
}
