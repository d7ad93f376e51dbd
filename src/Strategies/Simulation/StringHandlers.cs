using System.Runtime.CompilerServices;
using VirtBench.Vmm.Cpu;

namespace VirtBench.Strategies.Simulation;

/// <summary>How a string instruction repeats.</summary>
internal enum Repeat
{
    None,
    Always,
    WhileEqual,
    WhileNotEqual,
}

/// <summary>A repeat prefix as a type.</summary>
internal interface IRepeat
{
    static abstract Repeat Kind { get; }
}

internal readonly struct Once : IRepeat
{
    public static Repeat Kind => Repeat.None;
}

internal readonly struct Rep : IRepeat
{
    public static Repeat Kind => Repeat.Always;
}

internal readonly struct Repe : IRepeat
{
    public static Repeat Kind => Repeat.WhileEqual;
}

internal readonly struct Repne : IRepeat
{
    public static Repeat Kind => Repeat.WhileNotEqual;
}

/// <summary>One iteration of a string instruction.</summary>
internal unsafe interface IStringStep
{
    /// <summary>False after a fault has been noted; nothing has then happened.</summary>
    static abstract bool Step<T>(Machine* m, Op* op, ulong step)
        where T : unmanaged;
}

internal readonly unsafe struct Movs : IStringStep
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Step<T>(Machine* m, Op* op, ulong step)
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, StringHandlers.Source(m, op), sizeof(T));
        if (p is null || !Operand.Store<T>(m, m->Gpr[Gpr.Rdi], Operand.Get<T>(p)))
        {
            return false;
        }

        m->Gpr[Gpr.Rsi] += step;
        m->Gpr[Gpr.Rdi] += step;
        return true;
    }
}

internal readonly unsafe struct Stos : IStringStep
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Step<T>(Machine* m, Op* op, ulong step)
        where T : unmanaged
    {
        if (!Operand.Store<T>(m, m->Gpr[Gpr.Rdi], m->Gpr[Gpr.Rax]))
        {
            return false;
        }

        m->Gpr[Gpr.Rdi] += step;
        return true;
    }
}

internal readonly unsafe struct Lods : IStringStep
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Step<T>(Machine* m, Op* op, ulong step)
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, StringHandlers.Source(m, op), sizeof(T));
        if (p is null)
        {
            return false;
        }

        Operand.SetReg<T>(m, 0, Operand.Get<T>(p));
        m->Gpr[Gpr.Rsi] += step;
        return true;
    }
}

internal readonly unsafe struct Scas : IStringStep
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Step<T>(Machine* m, Op* op, ulong step)
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, m->Gpr[Gpr.Rdi], sizeof(T));
        if (p is null)
        {
            return false;
        }

        _ = Sub.Apply<T>(m, Operand.Reg<T>(m, 0), Operand.Get<T>(p));
        m->Gpr[Gpr.Rdi] += step;
        return true;
    }
}

internal readonly unsafe struct Cmps : IStringStep
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Step<T>(Machine* m, Op* op, ulong step)
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, StringHandlers.Source(m, op), sizeof(T));
        if (p is null)
        {
            return false;
        }

        ulong a = Operand.Get<T>(p); // before the second access may reuse the bounce buffer
        p = Operand.ForRead(m, m->Gpr[Gpr.Rdi], sizeof(T));
        if (p is null)
        {
            return false;
        }

        _ = Sub.Apply<T>(m, a, Operand.Get<T>(p));
        m->Gpr[Gpr.Rsi] += step;
        m->Gpr[Gpr.Rdi] += step;
        return true;
    }
}

/// <summary>
/// String instructions. A repeated one is as many instructions as it has iterations, for the cost model as for faults and
/// kicks: each leaves the guest between two iterations with RIP at the instruction.
/// </summary>
internal static unsafe class StringHandlers
{
    /// <summary>RSI with the segment base that the op's base offset names.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Source(Machine* m, Op* op) => m->Gpr[Gpr.Rsi] + *(ulong*)((byte*)m + op->Base);

    public static Op* Run<TStep, TRepeat, T>(Machine* m, Op* op)
        where TStep : struct, IStringStep
        where TRepeat : struct, IRepeat
        where T : unmanaged
    {
        ulong step = (m->OtherFlags & Rflags.Df) != 0 ? (ulong)-sizeof(T) : (ulong)sizeof(T);
        if (TRepeat.Kind == Repeat.None)
        {
            return TStep.Step<T>(m, op, step) ? op + 1 : SlowPath.Fault(m, op);
        }

        ulong count = m->Gpr[Gpr.Rcx];
        if (count == 0)
        {
            return op + 1;
        }

        for (; ; )
        {
            if (!TStep.Step<T>(m, op, step))
            {
                return SlowPath.Fault(m, op);
            }

            m->Gpr[Gpr.Rcx] = --count;
            if (
                count == 0
                || (TRepeat.Kind == Repeat.WhileEqual && !m->Zf)
                || (TRepeat.Kind == Repeat.WhileNotEqual && m->Zf)
            )
            {
                return op + 1; // the op's own cost, which its block spends, pays for the last iteration
            }

            m->Cycles += op->Cost;
            bool looksUp =
                Volatile.Read(ref m->LiveEpoch) == 0 // a kick, or single steps
                || m->Cycles + op->Before >= m->Deadline
                || op->Length == 0;
            if (looksUp && SlowPath.BreaksOff(m, op, out Op* next))
            {
                return next;
            }
        }
    }
}
