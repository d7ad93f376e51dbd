using Iced.Intel;
using VirtBench.Vmm.Cpu;

namespace VirtBench.Vmm.Emulation;

// CLI, STI, HLT, PUSHF and POPF.
public sealed partial class InstructionEmulator
{
    /// <summary>Flags that POPF and IRET may load at any privilege, above those of the 16-bit forms too.</summary>
    private const ulong LoadableFlags = Rflags.Arithmetic | Rflags.Tf | Rflags.Df | Rflags.Nt | Rflags.Ac | Rflags.Id;

    private int Iopl => (int)((_cpu.Rflags & Rflags.Iopl) >> 12);

    private EmulationResult Cli()
    {
        if (_cpu.Cpl > Iopl)
        {
            return Raise(Vector.GeneralProtection);
        }

        _cpu.Rflags &= ~Rflags.If;
        return Done();
    }

    private EmulationResult Sti()
    {
        if (_cpu.Cpl > Iopl)
        {
            return Raise(Vector.GeneralProtection);
        }

        _raisesShadow = (_cpu.Rflags & Rflags.If) == 0;
        _cpu.Rflags |= Rflags.If;
        return Done();
    }

    private EmulationResult Hlt()
    {
        if (!Privileged(out EmulationResult refused))
        {
            return refused;
        }

        _ = Done();
        return EmulationResult.Halted;
    }

    private EmulationResult Pushf()
    {
        ulong image = _cpu.Rflags & ~(Rflags.Vm | Rflags.Rf);
        bool wide = Instruction.Mnemonic == Mnemonic.Pushfq;
        ulong target = _cpu.Rsp - (wide ? 8UL : 2UL);
        bool written = wide
            ? _space.TryWrite(target, image, User, out _event)
            : _space.TryWrite(target, (ushort)image, User, out _event);
        if (!written)
        {
            CorrectStackFault(Register.SS);
            return EmulationResult.Event;
        }

        _cpu.Rsp = target;
        return Done();
    }

    private EmulationResult Popf()
    {
        int size = Instruction.Mnemonic == Mnemonic.Popfq ? 8 : 2;
        if (!TryReadStack(0, size, out ulong image))
        {
            return EmulationResult.Event;
        }

        _cpu.Rsp += (ulong)size;
        LoadFlags(image, size, keep: Rflags.Vif | Rflags.Vip);
        return Done();
    }

    /// <summary>Loads RFLAGS as far as CPL and IOPL allow (Intel SDM vol. 2B, POPF, and vol. 2A, IRET).</summary>
    private void LoadFlags(ulong image, int size, ulong keep)
    {
        ulong mask = LoadableFlags;
        if (_cpu.Cpl <= Iopl)
        {
            mask |= Rflags.If;
        }

        if (_cpu.Cpl == 0)
        {
            mask |= Rflags.Iopl | Rflags.Vif | Rflags.Vip;
        }

        mask &= ~keep;
        if (size == 2)
        {
            mask &= 0xFFFF;
        }

        _cpu.Rflags = (_cpu.Rflags & ~mask) | (image & mask) | Rflags.AlwaysSet;
    }
}
