using System.Runtime.CompilerServices;

namespace VirtBench.Strategies.Simulation;

/// <summary>A two-operand integer operation that sets flags. Unary ones ignore or fix the second operand.</summary>
internal unsafe interface IAlu
{
    /// <summary>False for CMP and TEST, which only set flags.</summary>
    static abstract bool Stores { get; }

    static abstract ulong Apply<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged;
}

internal readonly unsafe struct Add : IAlu
{
    public static bool Stores => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged
    {
        ulong r = Operand.Truncate<T>(a + b);
        Operand.SetFlags<T>(m, r, (a & b) | ((a | b) & ~r));
        return r;
    }
}

internal readonly unsafe struct Adc : IAlu
{
    public static bool Stores => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged
    {
        ulong r = Operand.Truncate<T>(a + b + m->CarryIn);
        Operand.SetFlags<T>(m, r, (a & b) | ((a | b) & ~r));
        return r;
    }
}

internal readonly unsafe struct Sub : IAlu
{
    public static bool Stores => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged
    {
        ulong r = Operand.Truncate<T>(a - b);
        Operand.SetFlags<T>(m, r, (~a & b) | ((~a | b) & r));
        return r;
    }
}

internal readonly unsafe struct Sbb : IAlu
{
    public static bool Stores => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged
    {
        ulong r = Operand.Truncate<T>(a - b - m->CarryIn);
        Operand.SetFlags<T>(m, r, (~a & b) | ((~a | b) & r));
        return r;
    }
}

internal readonly unsafe struct Cmp : IAlu
{
    public static bool Stores => false;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged => Sub.Apply<T>(m, a, b);
}

internal readonly unsafe struct And : IAlu
{
    public static bool Stores => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged
    {
        Operand.SetLogicFlags<T>(m, a & b);
        return a & b;
    }
}

internal readonly unsafe struct Or : IAlu
{
    public static bool Stores => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged
    {
        Operand.SetLogicFlags<T>(m, a | b);
        return a | b;
    }
}

internal readonly unsafe struct Xor : IAlu
{
    public static bool Stores => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged
    {
        Operand.SetLogicFlags<T>(m, a ^ b);
        return a ^ b;
    }
}

internal readonly unsafe struct Test : IAlu
{
    public static bool Stores => false;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged => And.Apply<T>(m, a, b);
}

internal readonly unsafe struct Inc : IAlu
{
    public static bool Stores => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged
    {
        ulong cf = m->CarryIn;
        ulong r = Add.Apply<T>(m, a, 1);
        m->SetCarryAndOverflow(cf, (m->Carries ^ (m->Carries << 1)) >> 63);
        return r;
    }
}

internal readonly unsafe struct Dec : IAlu
{
    public static bool Stores => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged
    {
        ulong cf = m->CarryIn;
        ulong r = Sub.Apply<T>(m, a, 1);
        m->SetCarryAndOverflow(cf, (m->Carries ^ (m->Carries << 1)) >> 63);
        return r;
    }
}

internal readonly unsafe struct Neg : IAlu
{
    public static bool Stores => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged => Sub.Apply<T>(m, 0, a);
}

internal readonly unsafe struct Not : IAlu
{
    public static bool Stores => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged => Operand.Truncate<T>(~a);
}

/// <summary>The same operation where the block overwrites the flags before anything can see them.</summary>
internal readonly unsafe struct AddSilent : IAlu
{
    public static bool Stores => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged => Operand.Truncate<T>(a + b);
}

/// <inheritdoc cref="AddSilent"/>
internal readonly unsafe struct SubSilent : IAlu
{
    public static bool Stores => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged => Operand.Truncate<T>(a - b);
}

/// <inheritdoc cref="AddSilent"/>
internal readonly unsafe struct AndSilent : IAlu
{
    public static bool Stores => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged => a & b;
}

/// <inheritdoc cref="AddSilent"/>
internal readonly unsafe struct OrSilent : IAlu
{
    public static bool Stores => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged => a | b;
}

/// <inheritdoc cref="AddSilent"/>
internal readonly unsafe struct XorSilent : IAlu
{
    public static bool Stores => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged => a ^ b;
}

/// <summary>Handlers of two-operand integer instructions by operand kind: R register, M memory, I immediate.</summary>
internal static unsafe class AluHandlers
{
    public static Op* RR<TAlu, T>(Machine* m, Op* op)
        where TAlu : struct, IAlu
        where T : unmanaged
    {
        ulong r = TAlu.Apply<T>(m, Operand.Reg<T>(m, op->A), Operand.Reg<T>(m, op->B));
        if (TAlu.Stores)
        {
            Operand.SetReg<T>(m, op->A, r);
        }

        return op + 1;
    }

    public static Op* RI<TAlu, T>(Machine* m, Op* op)
        where TAlu : struct, IAlu
        where T : unmanaged
    {
        ulong r = TAlu.Apply<T>(m, Operand.Reg<T>(m, op->A), Operand.Truncate<T>(op->Immediate));
        if (TAlu.Stores)
        {
            Operand.SetReg<T>(m, op->A, r);
        }

        return op + 1;
    }

    public static Op* RM<TAlu, T>(Machine* m, Op* op)
        where TAlu : struct, IAlu
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        ulong r = TAlu.Apply<T>(m, Operand.Reg<T>(m, op->A), Operand.Get<T>(p));
        if (TAlu.Stores)
        {
            Operand.SetReg<T>(m, op->A, r);
        }

        return op + 1;
    }

    public static Op* MR<TAlu, T>(Machine* m, Op* op)
        where TAlu : struct, IAlu
        where T : unmanaged
    {
        ulong address = Operand.Address(m, op);
        byte* p = TAlu.Stores ? Operand.ForWrite(m, address, sizeof(T)) : Operand.ForRead(m, address, sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        ulong r = TAlu.Apply<T>(m, Operand.Get<T>(p), Operand.Reg<T>(m, op->A));
        if (TAlu.Stores)
        {
            Operand.Put<T>(p, r);
            Operand.Commit(m, p);
        }

        return op + 1;
    }

    public static Op* MI<TAlu, T>(Machine* m, Op* op)
        where TAlu : struct, IAlu
        where T : unmanaged
    {
        ulong address = Operand.Address(m, op);
        byte* p = TAlu.Stores ? Operand.ForWrite(m, address, sizeof(T)) : Operand.ForRead(m, address, sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        ulong r = TAlu.Apply<T>(m, Operand.Get<T>(p), Operand.Truncate<T>(op->Immediate));
        if (TAlu.Stores)
        {
            Operand.Put<T>(p, r);
            Operand.Commit(m, p);
        }

        return op + 1;
    }
}
