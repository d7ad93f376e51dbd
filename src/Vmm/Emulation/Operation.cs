using Iced.Intel;
using VirtBench.Vmm.Execution;

namespace VirtBench.Vmm.Emulation;

/// <summary>What the emulator does with an instruction: one handler each.</summary>
internal enum Operation : byte
{
    /// <summary>Not a sensitive instruction: when it faults, the guest is at fault.</summary>
    Unprivileged,

    /// <summary>The platform's CPUID does not report it.</summary>
    Undefined,

    /// <summary>Privileged, and neither emulated nor absent from the platform.</summary>
    Unsupported,
    Cli,
    Sti,
    Hlt,
    Pushf,
    Popf,
    In,
    Out,
    Ins,
    Outs,
    MovToControl,
    MovFromControl,
    MovToDebug,
    MovFromDebug,
    Clts,
    Lmsw,
    Smsw,
    Invlpg,
    WriteBackCaches,
    Rdtsc,
    Rdtscp,
    Rdpmc,
    Rdmsr,
    Wrmsr,
    Cpuid,
    Lgdt,
    Lidt,
    Lldt,
    Ltr,
    Sgdt,
    Sidt,
    Sldt,
    Str,
    Swapgs,
    Iret,
    FarReturn,
    FarBranch,
    SoftwareInterrupt,
    Icebp,
    MovToSegment,
    MovFromSegment,
    PushSegment,
    PopSegment,
    LoadFarPointer,
    Lar,
    Lsl,
    Verr,
    Verw,
    Syscall,
    Sysret,

    /// <summary>VMCALL: undefined unless the platform offers the paravirtual interface.</summary>
    Hypercall,
}

/// <summary>Which handler and which account of the ledger an instruction has.</summary>
internal static class OperationTable
{
    public static (Operation Operation, TrapReason Reason) Classify(in Instruction instruction)
    {
        switch (instruction.Mnemonic)
        {
            case Mnemonic.Cli:
                return (Operation.Cli, TrapReason.InterruptFlag);
            case Mnemonic.Sti:
                return (Operation.Sti, TrapReason.InterruptFlag);
            case Mnemonic.Pushf or Mnemonic.Pushfq:
                return (Operation.Pushf, TrapReason.InterruptFlag);
            case Mnemonic.Popf or Mnemonic.Popfq:
                return (Operation.Popf, TrapReason.InterruptFlag);
            case Mnemonic.Hlt:
                return (Operation.Hlt, TrapReason.Halt);
            case Mnemonic.In:
                return (Operation.In, TrapReason.PortIo);
            case Mnemonic.Out:
                return (Operation.Out, TrapReason.PortIo);
            case Mnemonic.Insb or Mnemonic.Insw or Mnemonic.Insd:
                return (Operation.Ins, TrapReason.PortIo);
            case Mnemonic.Outsb or Mnemonic.Outsw or Mnemonic.Outsd:
                return (Operation.Outs, TrapReason.PortIo);
            case Mnemonic.Mov:
                return ClassifyMov(instruction);
            case Mnemonic.Clts:
                return (Operation.Clts, TrapReason.ControlRegister);
            case Mnemonic.Lmsw:
                return (Operation.Lmsw, TrapReason.ControlRegister);
            case Mnemonic.Smsw:
                return (Operation.Smsw, TrapReason.DescriptorTable);
            case Mnemonic.Invlpg:
                return (Operation.Invlpg, TrapReason.TlbOrCache);
            case Mnemonic.Wbinvd or Mnemonic.Invd:
                return (Operation.WriteBackCaches, TrapReason.TlbOrCache);
            case Mnemonic.Rdtsc:
                return (Operation.Rdtsc, TrapReason.TimeStampCounter);
            case Mnemonic.Rdtscp:
                return (Operation.Rdtscp, TrapReason.TimeStampCounter);
            case Mnemonic.Rdpmc:
                return (Operation.Rdpmc, TrapReason.GuestException);
            case Mnemonic.Rdmsr:
                return (Operation.Rdmsr, TrapReason.Msr);
            case Mnemonic.Wrmsr:
                return (Operation.Wrmsr, TrapReason.Msr);
            case Mnemonic.Xgetbv or Mnemonic.Xsetbv:
                return (Operation.Undefined, TrapReason.Msr);
            case Mnemonic.Ud0 or Mnemonic.Ud1 or Mnemonic.Ud2:
                return (Operation.Undefined, TrapReason.GuestException);
            case Mnemonic.Cpuid:
                return (Operation.Cpuid, TrapReason.Cpuid);
            case Mnemonic.Lgdt:
                return (Operation.Lgdt, TrapReason.DescriptorTable);
            case Mnemonic.Lidt:
                return (Operation.Lidt, TrapReason.DescriptorTable);
            case Mnemonic.Lldt:
                return (Operation.Lldt, TrapReason.DescriptorTable);
            case Mnemonic.Ltr:
                return (Operation.Ltr, TrapReason.DescriptorTable);
            case Mnemonic.Sgdt:
                return (Operation.Sgdt, TrapReason.DescriptorTable);
            case Mnemonic.Sidt:
                return (Operation.Sidt, TrapReason.DescriptorTable);
            case Mnemonic.Sldt:
                return (Operation.Sldt, TrapReason.DescriptorTable);
            case Mnemonic.Str:
                return (Operation.Str, TrapReason.DescriptorTable);
            case Mnemonic.Swapgs:
                return (Operation.Swapgs, TrapReason.SegmentOrReturn);
            case Mnemonic.Iret or Mnemonic.Iretd or Mnemonic.Iretq:
                return (Operation.Iret, TrapReason.SegmentOrReturn);
            case Mnemonic.Retf:
                return (Operation.FarReturn, TrapReason.SegmentOrReturn);
            case Mnemonic.Call or Mnemonic.Jmp when instruction.IsCallFarIndirect || instruction.IsJmpFarIndirect:
                return (Operation.FarBranch, TrapReason.SegmentOrReturn);
            case Mnemonic.Lss or Mnemonic.Lfs or Mnemonic.Lgs:
                return (Operation.LoadFarPointer, TrapReason.SegmentOrReturn);
            case Mnemonic.Lar:
                return (Operation.Lar, TrapReason.DescriptorTable);
            case Mnemonic.Lsl:
                return (Operation.Lsl, TrapReason.DescriptorTable);
            case Mnemonic.Verr:
                return (Operation.Verr, TrapReason.DescriptorTable);
            case Mnemonic.Verw:
                return (Operation.Verw, TrapReason.DescriptorTable);
            case Mnemonic.Push when instruction.Op0Register is Register.FS or Register.GS:
                return (Operation.PushSegment, TrapReason.SegmentOrReturn);
            case Mnemonic.Pop when instruction.Op0Register is Register.FS or Register.GS:
                return (Operation.PopSegment, TrapReason.SegmentOrReturn);
            case Mnemonic.Int or Mnemonic.Int3:
                return (Operation.SoftwareInterrupt, TrapReason.SoftwareInterrupt);
            case Mnemonic.Int1:
                return (Operation.Icebp, TrapReason.SoftwareInterrupt);
            case Mnemonic.Syscall:
                return (Operation.Syscall, TrapReason.SystemCall);
            case Mnemonic.Sysret or Mnemonic.Sysretq:
                return (Operation.Sysret, TrapReason.SystemCall);
            case Mnemonic.Vmcall:
                return (Operation.Hypercall, TrapReason.Hypercall);
            default:
                return (ClassifyOther(instruction), TrapReason.GuestException);
        }
    }

    private static (Operation Operation, TrapReason Reason) ClassifyMov(in Instruction instruction)
    {
        if (instruction.Op0Register.IsCR())
        {
            return (
                Operation.MovToControl,
                instruction.Op0Register == Register.CR3 ? TrapReason.AddressSpaceSwitch : TrapReason.ControlRegister
            );
        }

        if (instruction.Op1Register.IsCR())
        {
            return (Operation.MovFromControl, TrapReason.ControlRegister);
        }

        if (instruction.Op0Register.IsDR())
        {
            return (Operation.MovToDebug, TrapReason.DebugRegister);
        }

        if (instruction.Op1Register.IsDR())
        {
            return (Operation.MovFromDebug, TrapReason.DebugRegister);
        }

        if (instruction.Op0Register.IsSegmentRegister())
        {
            return (Operation.MovToSegment, TrapReason.SegmentOrReturn);
        }

        return instruction.Op1Register.IsSegmentRegister()
            ? (Operation.MovFromSegment, TrapReason.SegmentOrReturn)
            : (Operation.Unprivileged, TrapReason.GuestException);
    }

    // An instruction of an extension that the platform's CPUID does not report is undefined, privileged or not: what the
    // host makes of it is the host's own (a hypervisor under it may turn the #UD of VMCALL into #GP). A privileged one of
    // the basic architecture that has no handler is our gap.
    private static Operation ClassifyOther(in Instruction instruction)
    {
        // Two that older CPUs know as REP BSF and REP BSR.
        if (instruction.Mnemonic is not (Mnemonic.Tzcnt or Mnemonic.Lzcnt))
        {
            foreach (CpuidFeature feature in instruction.CpuidFeatures)
            {
                if (!IsPlatformFeature(feature))
                {
                    return Operation.Undefined;
                }
            }
        }

        return instruction.IsPrivileged ? Operation.Unsupported : Operation.Unprivileged;
    }

    private static bool IsPlatformFeature(CpuidFeature feature) =>
        feature
            is CpuidFeature.INTEL8086
                or CpuidFeature.INTEL186
                or CpuidFeature.INTEL286
                or CpuidFeature.INTEL386
                or CpuidFeature.INTEL486
                or CpuidFeature.X64
                or CpuidFeature.CPUID
                or CpuidFeature.MSR
                or CpuidFeature.TSC
                or CpuidFeature.CX8
                or CpuidFeature.CMPXCHG16B
                or CpuidFeature.CMOV
                or CpuidFeature.CLFSH
                or CpuidFeature.MULTIBYTENOP
                or CpuidFeature.PAUSE
                or CpuidFeature.FPU
                or CpuidFeature.FPU287
                or CpuidFeature.FPU387
                or CpuidFeature.MMX
                or CpuidFeature.FXSR
                or CpuidFeature.SSE
                or CpuidFeature.SSE2
                or CpuidFeature.CET_IBT; // ENDBR is a no-operation without it
}
