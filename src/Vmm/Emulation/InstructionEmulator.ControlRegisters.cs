using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Emulation;

// MOV to and from control registers, CLTS, LMSW, INVLPG (Intel SDM vol. 2B, MOV; vol. 3A, section 2.5).
public sealed partial class InstructionEmulator
{
    private const ulong PagingCr0 = Cr0.Pg | Cr0.Wp;
    private const ulong PagingCr4 = Cr4.Pae | Cr4.Pge | Cr4.Pse;
    private const ulong ReservedCr3 = ~((1UL << PageWalker.PhysicalAddressBits) - 1);

    private EmulationResult MovToControl()
    {
        if (!Privileged(out EmulationResult refused))
        {
            return refused;
        }

        ulong value = _cpu[Instruction.Op1Register.GetNumber()];
        switch (Instruction.Op0Register)
        {
            case Register.CR0:
                return SetCr0(value);
            case Register.CR2:
                _cpu.Cr2 = value;
                return Done();
            case Register.CR3:
                if ((value & ReservedCr3) != 0)
                {
                    return Raise(Vector.GeneralProtection);
                }

                _cpu.Cr3 = value;
                SwitchAddressSpace();
                return Done();
            case Register.CR4:
                // Long mode needs PAE for as long as it lasts.
                if ((value & ~Cr4.Allowed) != 0 || (value & Cr4.Pae) == 0)
                {
                    return Raise(Vector.GeneralProtection);
                }

                ulong changed = value ^ _cpu.Cr4;
                _cpu.Cr4 = value;
                if ((changed & PagingCr4) != 0)
                {
                    SwitchAddressSpace();
                }

                return Done();
            case Register.CR8:
                if (value > 15)
                {
                    return Raise(Vector.GeneralProtection);
                }

                _cpu.Cr8 = value;
                return Done();
            default:
                return Raise(Vector.InvalidOpcode);
        }
    }

    private EmulationResult MovFromControl()
    {
        if (!Privileged(out EmulationResult refused))
        {
            return refused;
        }

        ulong value;
        switch (Instruction.Op1Register)
        {
            case Register.CR0:
                value = _cpu.Cr0;
                break;
            case Register.CR2:
                value = _cpu.Cr2;
                break;
            case Register.CR3:
                value = _cpu.Cr3;
                break;
            case Register.CR4:
                value = _cpu.Cr4;
                break;
            case Register.CR8:
                value = _cpu.Cr8;
                break;
            default:
                return Raise(Vector.InvalidOpcode);
        }

        _cpu[Instruction.Op0Register.GetNumber()] = value;
        return Done();
    }

    // Clearing PG in 64-bit code is #GP(0), so the way out of long mode is closed; so is clearing PE with PG set.
    private EmulationResult SetCr0(ulong value)
    {
        bool cacheBitsClash = (value & (Cr0.Nw | Cr0.Cd)) == Cr0.Nw;
        if (value > uint.MaxValue || (value & (Cr0.Pg | Cr0.Pe)) != (Cr0.Pg | Cr0.Pe) || cacheBitsClash)
        {
            return Raise(Vector.GeneralProtection);
        }

        value = (value & Cr0.Defined) | Cr0.Et;
        ulong changed = value ^ _cpu.Cr0;
        _cpu.Cr0 = value;
        if ((changed & PagingCr0) != 0)
        {
            SwitchAddressSpace();
        }

        return Done();
    }

    private EmulationResult Clts()
    {
        if (!Privileged(out EmulationResult refused))
        {
            return refused;
        }

        _cpu.Cr0 &= ~Cr0.Ts;
        return Done();
    }

    private EmulationResult Lmsw()
    {
        if (!Privileged(out EmulationResult refused))
        {
            return refused;
        }

        if (!TryReadWord(out ushort value))
        {
            return EmulationResult.Event;
        }

        // PE can be set by LMSW but not cleared.
        const ulong writable = Cr0.Mp | Cr0.Em | Cr0.Ts;
        _cpu.Cr0 = (_cpu.Cr0 & ~writable) | (value & writable) | (value & Cr0.Pe);
        return Done();
    }

    private EmulationResult Invlpg()
    {
        if (!Privileged(out EmulationResult refused))
        {
            return refused;
        }

        // The operand is not accessed, and a non-canonical one is no fault.
        ulong address = EffectiveAddress();
        if (PageWalker.IsCanonical(address))
        {
            InvalidatePage(address);
        }

        return Done();
    }
}
