using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Emulation;

// CPUID, the time-stamp counter and model-specific registers.
public sealed partial class InstructionEmulator
{
    private ulong GuestTsc => _engine.Clock.Ticks + _cpu.TscOffset;

    private EmulationResult Cpuid()
    {
        CpuidResult result = PlatformCpuid.Query((uint)_cpu.Rax);
        _cpu.Rax = result.Eax;
        _cpu[Gpr.Rbx] = result.Ebx;
        _cpu[Gpr.Rcx] = result.Ecx;
        _cpu[Gpr.Rdx] = result.Edx;
        return Done();
    }

    private EmulationResult Rdtsc()
    {
        if (_cpu.Cpl != 0 && (_cpu.Cr4 & Cr4.Tsd) != 0)
        {
            return Raise(Vector.GeneralProtection);
        }

        SplitToEdxEax(GuestTsc);
        return Done();
    }

    private EmulationResult Rdtscp()
    {
        if (_cpu.Cpl != 0 && (_cpu.Cr4 & Cr4.Tsd) != 0)
        {
            return Raise(Vector.GeneralProtection);
        }

        SplitToEdxEax(GuestTsc);
        _cpu[Gpr.Rcx] = (uint)_cpu.TscAux;
        return Done();
    }

    private EmulationResult Rdmsr()
    {
        if (!Privileged(out EmulationResult refused))
        {
            return refused;
        }

        ulong value;
        switch ((uint)_cpu[Gpr.Rcx])
        {
            case Msr.TimeStampCounter:
                value = GuestTsc;
                break;
            case Msr.Pat:
                value = _cpu.Pat;
                break;
            case Msr.Efer:
                value = _cpu.Efer;
                break;
            case Msr.Star:
                value = _cpu.Star;
                break;
            case Msr.Lstar:
                value = _cpu.Lstar;
                break;
            case Msr.Cstar:
                value = _cpu.Cstar;
                break;
            case Msr.Fmask:
                value = _cpu.Fmask;
                break;
            case Msr.FsBase:
                SaveLazyState();
                value = _cpu.Fs.Base;
                break;
            case Msr.GsBase:
                SaveLazyState();
                value = _cpu.Gs.Base;
                break;
            case Msr.KernelGsBase:
                value = _cpu.KernelGsBase;
                break;
            case Msr.TscAux:
                value = _cpu.TscAux;
                break;
            default:
                return Raise(Vector.GeneralProtection);
        }

        SplitToEdxEax(value);
        return Done();
    }

    private EmulationResult Wrmsr()
    {
        if (!Privileged(out EmulationResult refused))
        {
            return refused;
        }

        ulong value = (_cpu[Gpr.Rdx] << 32) | (uint)_cpu.Rax;
        uint index = (uint)_cpu[Gpr.Rcx];
        bool holdsAddress = index is Msr.Lstar or Msr.Cstar or Msr.FsBase or Msr.GsBase or Msr.KernelGsBase;
        if (holdsAddress && !PageWalker.IsCanonical(value))
        {
            return Raise(Vector.GeneralProtection);
        }

        switch (index)
        {
            case Msr.TimeStampCounter:
                _cpu.TscOffset = value - _engine.Clock.Ticks;
                break;
            case Msr.Pat when Msr.IsValidPat(value):
                _cpu.Pat = value;
                break;
            case Msr.Efer:
                return SetEfer(value);
            case Msr.Star:
                _cpu.Star = value;
                break;
            case Msr.Lstar:
                _cpu.Lstar = value;
                break;
            case Msr.Cstar:
                _cpu.Cstar = value;
                break;
            case Msr.Fmask when value <= uint.MaxValue:
                _cpu.Fmask = value;
                break;
            case Msr.FsBase:
                SaveLazyState();
                _cpu.Fs = _cpu.Fs with { Base = value };
                LoadLazyState();
                break;
            case Msr.GsBase:
                SaveLazyState();
                _cpu.Gs = _cpu.Gs with { Base = value };
                LoadLazyState();
                break;
            case Msr.KernelGsBase:
                _cpu.KernelGsBase = value;
                break;
            case Msr.TscAux when value <= uint.MaxValue:
                _cpu.TscAux = value;
                break;
            default:
                return Raise(Vector.GeneralProtection);
        }

        return Done();
    }

    // LME cannot change while paging is on, which here is always; LMA is the processor's own.
    private EmulationResult SetEfer(ulong value)
    {
        if ((value & ~(Efer.Writable | Efer.Lma)) != 0 || (value & Efer.Lme) == 0)
        {
            return Raise(Vector.GeneralProtection);
        }

        ulong updated = (value & Efer.Writable) | (_cpu.Efer & Efer.Lma);
        ulong changed = updated ^ _cpu.Efer;
        _cpu.Efer = updated;
        if ((changed & Efer.Nxe) != 0)
        {
            SwitchAddressSpace();
        }

        return Done();
    }

    private EmulationResult Swapgs()
    {
        if (!Privileged(out EmulationResult refused))
        {
            return refused;
        }

        SaveLazyState();
        ulong kernel = _cpu.KernelGsBase;
        _cpu.KernelGsBase = _cpu.Gs.Base;
        _cpu.Gs = _cpu.Gs with { Base = kernel };
        LoadLazyState();
        return Done();
    }

    private void SplitToEdxEax(ulong value)
    {
        _cpu.Rax = (uint)value;
        _cpu[Gpr.Rdx] = value >> 32;
    }
}
