using System.Runtime.CompilerServices;
using VirtBench.Vmm.Cpu;

namespace VirtBench.Strategies.Simulation;

/// <summary>Control transfers. Every one of them ends a block and spends its cycles.</summary>
internal static unsafe class BranchHandlers
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Op* Take(Machine* m, Op* op)
    {
        Links* links = (Links*)(op + 1);
        return links->TakenEpoch == m->LiveEpoch && m->Cycles < m->Deadline
            ? links->Taken
            : SlowPath.LinkTaken(m, links);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Op* FallThrough(Machine* m, Op* op)
    {
        Links* links = (Links*)(op + 1);
        return links->NotTakenEpoch == m->LiveEpoch && m->Cycles < m->Deadline
            ? links->NotTaken
            : SlowPath.LinkNotTaken(m, links);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Op* Indirect(Machine* m, ulong target)
    {
        JumpEntry* entry = m->JumpCache + ((target ^ (target >> 12)) & (JumpEntry.Count - 1));
        return entry->Rip == target && entry->Epoch == m->LiveEpoch && m->Cycles < m->Deadline
            ? entry->Target
            : SlowPath.JumpIndirect(m, target);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Spend(Machine* m, Op* op) => m->Cycles += op->Before + op->Cost;

    /// <summary>End of a block that was cut: no instruction of its own.</summary>
    public static Op* Continue(Machine* m, Op* op)
    {
        Spend(m, op);
        return Take(m, op);
    }

    public static Op* Jmp(Machine* m, Op* op)
    {
        Spend(m, op);
        return Take(m, op);
    }

    public static Op* Jcc<TCondition>(Machine* m, Op* op)
        where TCondition : struct, ICondition
    {
        Spend(m, op);
        return TCondition.Holds(m) ? Take(m, op) : FallThrough(m, op);
    }

    public static Op* RRJcc<TAlu, TCondition, T>(Machine* m, Op* op)
        where TAlu : struct, IAlu
        where TCondition : struct, ICondition
        where T : unmanaged
    {
        ulong r = TAlu.Apply<T>(m, Operand.Reg<T>(m, op->A), Operand.Reg<T>(m, op->B));
        if (TAlu.Stores)
        {
            Operand.SetReg<T>(m, op->A, r);
        }

        Spend(m, op);
        return TCondition.Holds(m) ? Take(m, op) : FallThrough(m, op);
    }

    public static Op* RIJcc<TAlu, TCondition, T>(Machine* m, Op* op)
        where TAlu : struct, IAlu
        where TCondition : struct, ICondition
        where T : unmanaged
    {
        ulong r = TAlu.Apply<T>(m, Operand.Reg<T>(m, op->A), Operand.Truncate<T>(op->Immediate));
        if (TAlu.Stores)
        {
            Operand.SetReg<T>(m, op->A, r);
        }

        Spend(m, op);
        return TCondition.Holds(m) ? Take(m, op) : FallThrough(m, op);
    }

    public static Op* Loop(Machine* m, Op* op)
    {
        Spend(m, op);
        return --m->Gpr[Gpr.Rcx] != 0 ? Take(m, op) : FallThrough(m, op);
    }

    public static Op* Loope(Machine* m, Op* op)
    {
        Spend(m, op);
        return --m->Gpr[Gpr.Rcx] != 0 && m->Zf ? Take(m, op) : FallThrough(m, op);
    }

    public static Op* Loopne(Machine* m, Op* op)
    {
        Spend(m, op);
        return --m->Gpr[Gpr.Rcx] != 0 && !m->Zf ? Take(m, op) : FallThrough(m, op);
    }

    public static Op* Jrcxz(Machine* m, Op* op)
    {
        Spend(m, op);
        return m->Gpr[Gpr.Rcx] == 0 ? Take(m, op) : FallThrough(m, op);
    }

    // The forms with an address-size prefix count in ECX; a 32-bit write clears the upper half.
    public static Op* Loop32(Machine* m, Op* op)
    {
        Spend(m, op);
        return Count32(m) != 0 ? Take(m, op) : FallThrough(m, op);
    }

    public static Op* Loope32(Machine* m, Op* op)
    {
        Spend(m, op);
        return Count32(m) != 0 && m->Zf ? Take(m, op) : FallThrough(m, op);
    }

    public static Op* Loopne32(Machine* m, Op* op)
    {
        Spend(m, op);
        return Count32(m) != 0 && !m->Zf ? Take(m, op) : FallThrough(m, op);
    }

    public static Op* Jecxz(Machine* m, Op* op)
    {
        Spend(m, op);
        return (uint)m->Gpr[Gpr.Rcx] == 0 ? Take(m, op) : FallThrough(m, op);
    }

    private static ulong Count32(Machine* m) => m->Gpr[Gpr.Rcx] = (uint)m->Gpr[Gpr.Rcx] - 1U;

    public static Op* JmpR(Machine* m, Op* op)
    {
        Spend(m, op);
        return Indirect(m, Operand.Reg<ulong>(m, op->A));
    }

    public static Op* JmpM(Machine* m, Op* op)
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), 8);
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        Spend(m, op);
        return Indirect(m, *(ulong*)p);
    }

    public static Op* Call(Machine* m, Op* op)
    {
        ulong sp = m->Gpr[Gpr.Rsp] - 8;
        if (!Operand.Store<ulong>(m, sp, op->NextRip))
        {
            return SlowPath.Fault(m, op);
        }

        m->Gpr[Gpr.Rsp] = sp;
        Spend(m, op);
        return Take(m, op);
    }

    public static Op* CallR(Machine* m, Op* op)
    {
        ulong target = Operand.Reg<ulong>(m, op->A);
        ulong sp = m->Gpr[Gpr.Rsp] - 8;
        if (!Operand.Store<ulong>(m, sp, op->NextRip))
        {
            return SlowPath.Fault(m, op);
        }

        m->Gpr[Gpr.Rsp] = sp;
        Spend(m, op);
        return Indirect(m, target);
    }

    public static Op* CallM(Machine* m, Op* op)
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), 8);
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        ulong target = *(ulong*)p;
        ulong sp = m->Gpr[Gpr.Rsp] - 8;
        if (!Operand.Store<ulong>(m, sp, op->NextRip))
        {
            return SlowPath.Fault(m, op);
        }

        m->Gpr[Gpr.Rsp] = sp;
        Spend(m, op);
        return Indirect(m, target);
    }

    /// <summary>RET and RET imm16: the immediate is what is released beyond the return address.</summary>
    public static Op* Ret(Machine* m, Op* op)
    {
        ulong sp = m->Gpr[Gpr.Rsp];
        byte* p = Operand.ForRead(m, sp, 8);
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        ulong target = *(ulong*)p;
        m->Gpr[Gpr.Rsp] = sp + 8 + op->Immediate;
        Spend(m, op);
        return Indirect(m, target);
    }
}
