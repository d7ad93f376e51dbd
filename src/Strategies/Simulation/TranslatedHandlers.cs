using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;

namespace VirtBench.Strategies.Simulation;

/// <summary>
/// Sensitive instructions as a translator serves them inline, from the guest's own state; they leave the guest what the core's emulation
/// would. What the guest may not do, and an STI whose shadow has to outlast guest code, calls out.
/// </summary>
internal static unsafe class TranslatedHandlers
{
    // What POPF loads at any privilege (SDM vol. 2B, POPF, table 4-16).
    private const ulong Loadable = Rflags.Arithmetic | Rflags.Tf | Rflags.Df | Rflags.Nt | Rflags.Ac | Rflags.Id;

    private static bool OwnsInterruptFlag(Machine* m) => (ulong)m->Cpl <= (m->OtherFlags & Rflags.Iopl) >> 12;

    public static Op* Cli(Machine* m, Op* op)
    {
        if (!OwnsInterruptFlag(m))
        {
            return SlowPath.Privileged(m, op);
        }

        m->OtherFlags &= ~(Rflags.If | Rflags.Rf);
        return op + 1;
    }

    /// <summary>STI with the instruction that it shadows, and <see cref="EndShadow"/>, behind it.</summary>
    public static Op* Sti(Machine* m, Op* op)
    {
        if (!OwnsInterruptFlag(m))
        {
            return SlowPath.Privileged(m, op);
        }

        if ((m->OtherFlags & Rflags.If) == 0)
        {
            m->Shadow = 1;
            m->ShadowRip = op->Rip;
            m->ShadowCost = op->Cost;
        }

        m->OtherFlags = (m->OtherFlags & ~Rflags.Rf) | Rflags.If;
        return op + 1;
    }

    /// <summary>STI at the end of a block, or before an instruction that ends it: one that begins a shadow is the core's.</summary>
    public static Op* StiAlone(Machine* m, Op* op)
    {
        if (!OwnsInterruptFlag(m) || (m->OtherFlags & Rflags.If) == 0)
        {
            return SlowPath.Privileged(m, op);
        }

        m->OtherFlags &= ~Rflags.Rf;
        return op + 1;
    }

    /// <summary>The instruction in the shadow is over.</summary>
    public static Op* EndShadow(Machine* m, Op* op)
    {
        m->Shadow = 0;
        return IsWindow(m) ? OpenWindow(m, op->Rip, op->Before) : op + 1;
    }

    private static bool IsWindow(Machine* m) => m->WindowWanted != 0 && (m->OtherFlags & Rflags.If) != 0;

    private static Op* OpenWindow(Machine* m, ulong rip, ulong cycles)
    {
        m->Exit.Reason = (byte)VmExitReason.InterruptWindow;
        m->Rip = rip;
        m->Cycles += cycles;
        return null;
    }

    public static Op* Pushf<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        ulong image = (m->OtherFlags & ~(Rflags.Vm | Rflags.Rf)) | m->ArithmeticFlags | Rflags.AlwaysSet;
        ulong sp = m->Gpr[Gpr.Rsp] - (ulong)sizeof(T);
        if (!Operand.Store<T>(m, sp, image))
        {
            return SlowPath.Fault(m, op);
        }

        m->Gpr[Gpr.Rsp] = sp;
        m->OtherFlags &= ~Rflags.Rf;
        return op + 1;
    }

    public static Op* Popf<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        ulong sp = m->Gpr[Gpr.Rsp];
        byte* p = Operand.ForRead(m, sp, sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        ulong value = Operand.Get<T>(p);
        ulong mask = Loadable | (OwnsInterruptFlag(m) ? Rflags.If : 0) | (m->Cpl == 0 ? Rflags.Iopl : 0);
        mask &= (sizeof(T) == 2 ? 0xFFFFUL : ulong.MaxValue) & ~Rflags.Arithmetic;
        bool stepped = (m->OtherFlags & Rflags.Tf) != 0;
        m->OtherFlags = (m->OtherFlags & ~(mask | Rflags.Rf)) | (value & mask);
        m->ArithmeticFlags = value;
        m->Gpr[Gpr.Rsp] = sp + (ulong)sizeof(T);
        if (m->Stepping == 0 && IsWindow(m))
        {
            return OpenWindow(m, op->NextRip, op->Before + op->Cost);
        }

        return !stepped && (m->OtherFlags & Rflags.Tf) != 0 ? SlowPath.Restart(m, op) : op + 1;
    }

    public static Op* Rdtsc(Machine* m, Op* op) =>
        m->HidesTimeStampCounter != 0 ? SlowPath.Privileged(m, op) : SystemHandlers.Rdtsc(m, op);

    public static Op* Rdtscp(Machine* m, Op* op) =>
        m->HidesTimeStampCounter != 0 ? SlowPath.Privileged(m, op) : SystemHandlers.Rdtscp(m, op);

    public static Op* Cpuid(Machine* m, Op* op)
    {
        CpuidResult result = PlatformCpuid.Query((uint)m->Gpr[Gpr.Rax]);
        m->Gpr[Gpr.Rax] = result.Eax;
        m->Gpr[Gpr.Rbx] = result.Ebx;
        m->Gpr[Gpr.Rcx] = result.Ecx;
        m->Gpr[Gpr.Rdx] = result.Edx;
        return op + 1;
    }

    /// <summary>Before an SSE instruction: #UD or #NM, as CR0 and CR4 have it (SDM vol. 3A, section 14.1).</summary>
    public static Op* GuardSse(Machine* m, Op* op) => m->SseVector == 0 ? op + 1 : SlowPath.Raise(m, op, m->SseVector);

    /// <summary>Before FXSAVE and FXRSTOR.</summary>
    public static Op* GuardFxsave(Machine* m, Op* op) =>
        m->FxsaveVector == 0 ? op + 1 : SlowPath.Raise(m, op, m->FxsaveVector);
}
