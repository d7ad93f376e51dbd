using Iced.Intel;

namespace VirtBench.Strategies.Simulation;

/// <summary>Flags, exits and sensitive instructions.</summary>
internal sealed unsafe partial class BlockDecoder
{
    private static ushort HostSelectorOffset(Register segment) =>
        SystemHandlers.HostOffset(
            segment switch
            {
                Register.ES => nameof(HostSelectors.Es),
                Register.CS => nameof(HostSelectors.Cs),
                Register.SS => nameof(HostSelectors.Ss),
                Register.DS => nameof(HostSelectors.Ds),
                Register.FS => nameof(HostSelectors.Fs),
                _ => nameof(HostSelectors.Gs),
            }
        );

    private bool EmitSegmentMove(Op* op, in Instruction i)
    {
        if (IsRegister(i, 1) && i.Op1Register.IsSegmentRegister())
        {
            op->B = HostSelectorOffset(i.Op1Register);
            return EmitStoreSelector(op, i);
        }

        if (_mode == SimulatedMode.Translated)
        {
            return EmitPrivileged(op, i); // the guest's tables are asked, by the core
        }

        op->B = HostSelectorOffset(i.Op0Register);
        _mayLeave = true;
        if (IsMemory(i, 1))
        {
            SetMemory(op, i);
            return Set(op, H(&SystemHandlers.LoadSegmentM));
        }

        op->A = Offset(i.Op1Register);
        return Set(op, H(&SystemHandlers.LoadSegmentR));
    }

    /// <summary>Stores the 16-bit host value at B: to a register with zero extension, or to 2 bytes of memory.</summary>
    private bool EmitStoreSelector(Op* op, in Instruction i)
    {
        if (IsMemory(i, 0))
        {
            SetMemory(op, i);
            op->A = op->B;
            return Set(op, MovMR(2));
        }

        op->A = Offset(i.Op0Register);
        return Set(
            op,
            i.Op0Register.GetSize() switch
            {
                2 => MovRR(2),
                4 => MovzxRR(4, 2),
                _ => MovzxRR(8, 2),
            }
        );
    }

    private bool EmitSmsw(Op* op, in Instruction i)
    {
        op->B = SystemHandlers.HostOffset(nameof(HostSelectors.MachineStatus));
        if (IsMemory(i, 0))
        {
            SetMemory(op, i);
            op->A = op->B;
            return Set(op, MovMR(2));
        }

        op->A = Offset(i.Op0Register);
        return Set(op, i.Op0Register.GetSize() == 2 ? MovRR(2) : MovRR(4));
    }

    private bool EmitPrivileged(Op* op, in Instruction i)
    {
        Leaves(op, i);
        return Set(op, H(&SlowPath.Privileged));
    }

    private bool TrySystem(Op* op, in Instruction i)
    {
        if (_mode == SimulatedMode.Translated && TryTranslated(op, i))
        {
            return true;
        }

        switch (i.Mnemonic)
        {
            case Mnemonic.Nop or Mnemonic.Endbr64 or Mnemonic.Endbr32 or Mnemonic.Pause or Mnemonic.Fnop:
                _mayLeave = false;
                return i.Mnemonic != Mnemonic.Fnop && Set(op, H(&SystemHandlers.Nop));
            case Mnemonic.Prefetchnta or Mnemonic.Prefetcht0 or Mnemonic.Prefetcht1 or Mnemonic.Prefetcht2:
                _mayLeave = false;
                return Set(op, H(&SystemHandlers.Nop));
            case Mnemonic.Lfence or Mnemonic.Mfence or Mnemonic.Sfence:
                return Set(op, H(&SystemHandlers.Nop));
            case Mnemonic.Clflush:
                SetMemory(op, i);
                return Set(op, H(&SystemHandlers.Touch));
            case Mnemonic.Movnti:
                return EmitMov(op, i);
            case Mnemonic.Clc:
                return Set(op, H(&SystemHandlers.Clc));
            case Mnemonic.Stc:
                return Set(op, H(&SystemHandlers.Stc));
            case Mnemonic.Cmc:
                return Set(op, H(&SystemHandlers.Cmc));
            case Mnemonic.Cld:
                return Set(op, H(&SystemHandlers.Cld));
            case Mnemonic.Std:
                return Set(op, H(&SystemHandlers.Std));
            case Mnemonic.Lahf:
                return Set(op, H(&SystemHandlers.Lahf));
            case Mnemonic.Sahf:
                return Set(op, H(&SystemHandlers.Sahf));
            case Mnemonic.Pushfq:
                _mayLeave = true;
                return Set(op, H(&SystemHandlers.Pushf<ulong>));
            case Mnemonic.Pushf:
                _mayLeave = true;
                return Set(op, H(&SystemHandlers.Pushf<ushort>));
            case Mnemonic.Popfq:
                _mayLeave = true;
                return Set(op, H(&SystemHandlers.Popf<ulong>));
            case Mnemonic.Popf:
                _mayLeave = true;
                return Set(op, H(&SystemHandlers.Popf<ushort>));
            case Mnemonic.Cpuid:
                return Set(op, H(&SystemHandlers.Cpuid));
            case Mnemonic.Rdtsc when _mode is SimulatedMode.Native or SimulatedMode.Paravirtual:
                return Set(op, H(&SystemHandlers.Rdtsc));
            case Mnemonic.Rdtscp when _mode is SimulatedMode.Native or SimulatedMode.Paravirtual:
                return Set(op, H(&SystemHandlers.Rdtscp));
            case Mnemonic.Sgdt:
                op->B = SystemHandlers.HostOffset(nameof(HostSelectors.GdtBase));
                op->Immediate = SystemHandlers.HostOffset(nameof(HostSelectors.GdtLimit));
                SetMemory(op, i);
                return Set(op, H(&SystemHandlers.StoreTable));
            case Mnemonic.Sidt:
                op->B = SystemHandlers.HostOffset(nameof(HostSelectors.IdtBase));
                op->Immediate = SystemHandlers.HostOffset(nameof(HostSelectors.IdtLimit));
                SetMemory(op, i);
                return Set(op, H(&SystemHandlers.StoreTable));
            case Mnemonic.Sldt:
                op->B = SystemHandlers.HostOffset(nameof(HostSelectors.Ldt));
                return EmitStoreSelector(op, i);
            case Mnemonic.Str:
                op->B = SystemHandlers.HostOffset(nameof(HostSelectors.Tr));
                return EmitStoreSelector(op, i);
            case Mnemonic.Smsw:
                return EmitSmsw(op, i);
            case Mnemonic.Verr:
                return EmitOneOperand(op, i, H(&SystemHandlers.VerrR), H(&SystemHandlers.VerrM));
            case Mnemonic.Verw:
                op->Immediate = 1;
                return EmitOneOperand(op, i, H(&SystemHandlers.VerrR), H(&SystemHandlers.VerrM));
            case Mnemonic.Lar or Mnemonic.Lsl:
                op->Immediate = (i.Op0Register.GetSize() == 2 ? 2UL : 4UL) | (i.Mnemonic == Mnemonic.Lsl ? 256UL : 0);
                return Set(op, TwoOperands(op, i) == Form.RM ? H(&SystemHandlers.LarM) : H(&SystemHandlers.LarR));
            case Mnemonic.Syscall:
                Leaves(op, i);
                return Set(op, H(&SystemHandlers.Syscall));
            case Mnemonic.Vmcall when _mode == SimulatedMode.Paravirtual:
                Leaves(op, i);
                return Set(op, H(&SystemHandlers.Vmcall));
            case Mnemonic.Out:
                op->Immediate = i.Op0Kind == OpKind.Immediate8 ? i.Immediate8 : ulong.MaxValue;
                Leaves(op, i);
                return Set(op, H(&SystemHandlers.Out));
            // IRETQ and far transfers would work in ring 3 towards the host's own selectors; a guest kernel's lead to rings
            // and selectors that fault, so all of them go to the core.
            case Mnemonic.Iretq or Mnemonic.Iretd or Mnemonic.Iret or Mnemonic.Retf:
            case Mnemonic.Jmp when i.IsJmpFarIndirect:
            case Mnemonic.Call when i.IsCallFarIndirect:
            case Mnemonic.Int or Mnemonic.Int3 or Mnemonic.Int1:
            case Mnemonic.In:
            case Mnemonic.Insb or Mnemonic.Insw or Mnemonic.Insd:
            case Mnemonic.Outsb or Mnemonic.Outsw or Mnemonic.Outsd:
            case Mnemonic.Cli or Mnemonic.Sti or Mnemonic.Hlt:
            case Mnemonic.Mov: // what TryInteger left: control and debug registers
            case Mnemonic.Clts or Mnemonic.Lmsw:
            case Mnemonic.Lgdt or Mnemonic.Lidt or Mnemonic.Lldt or Mnemonic.Ltr:
            case Mnemonic.Invlpg or Mnemonic.Invd or Mnemonic.Wbinvd:
            case Mnemonic.Rdmsr or Mnemonic.Wrmsr or Mnemonic.Rdpmc:
            case Mnemonic.Rdtsc or Mnemonic.Rdtscp:
            case Mnemonic.Swapgs or Mnemonic.Sysret or Mnemonic.Sysretq or Mnemonic.Sysexit or Mnemonic.Sysexitq:
            case Mnemonic.Xsetbv or Mnemonic.Xgetbv:
            case Mnemonic.Vmcall or Mnemonic.Vmmcall:
                return EmitPrivileged(op, i);
            default:
                return false;
        }
    }
}
