using System.Numerics;
using System.Runtime.CompilerServices;

namespace VirtBench.Strategies.Simulation;

/// <summary>A shift or rotate by a count that is already masked and not zero.</summary>
internal unsafe interface IShift
{
    static abstract ulong Apply<T>(Machine* m, ulong a, int count)
        where T : unmanaged;
}

internal readonly unsafe struct Shl : IShift
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, int count)
        where T : unmanaged
    {
        int bits = 8 * sizeof(T);
        ulong r = Operand.Truncate<T>(a << count);
        // for 8 and 16 bits the count may exceed the width: CF is then 0
        ulong cf = count > bits ? 0 : (a >> (bits - count)) & 1;
        Operand.SetLogicFlags<T>(m, r);
        ulong of = cf ^ (r >> (bits - 1));
        m->Carries = (cf << 63) | ((cf ^ of) << 62);
        return r;
    }
}

internal readonly unsafe struct Shr : IShift
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, int count)
        where T : unmanaged
    {
        int bits = 8 * sizeof(T);
        ulong r = a >> count;
        ulong cf = (a >> (count - 1)) & 1;
        Operand.SetLogicFlags<T>(m, r);
        ulong of = count == 1 ? a >> (bits - 1) : 0;
        m->Carries = (cf << 63) | ((cf ^ of) << 62);
        return r;
    }
}

internal readonly unsafe struct Sar : IShift
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, int count)
        where T : unmanaged
    {
        long s = (long)Operand.SignExtend<T>(a);
        ulong r = Operand.Truncate<T>((ulong)(s >> count));
        ulong cf = (ulong)(s >> (count - 1)) & 1;
        Operand.SetLogicFlags<T>(m, r);
        m->Carries = (cf << 63) | (cf << 62);
        return r;
    }
}

internal readonly unsafe struct Rol : IShift
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, int count)
        where T : unmanaged
    {
        int bits = 8 * sizeof(T);
        int n = count & (bits - 1);
        ulong r =
            sizeof(T) == 8 ? BitOperations.RotateLeft(a, n)
            : sizeof(T) == 4 ? BitOperations.RotateLeft((uint)a, n)
            : Operand.Truncate<T>((a << n) | (a >> (bits - n)));
        ulong cf = r & 1;
        m->SetCarryAndOverflow(cf, cf ^ (r >> (bits - 1)));
        return r;
    }
}

internal readonly unsafe struct Ror : IShift
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, int count)
        where T : unmanaged
    {
        int bits = 8 * sizeof(T);
        int n = count & (bits - 1);
        ulong r =
            sizeof(T) == 8 ? BitOperations.RotateRight(a, n)
            : sizeof(T) == 4 ? BitOperations.RotateRight((uint)a, n)
            : Operand.Truncate<T>((a >> n) | (a << (bits - n)));
        ulong cf = r >> (bits - 1);
        m->SetCarryAndOverflow(cf, cf ^ ((r >> (bits - 2)) & 1));
        return r;
    }
}

internal readonly unsafe struct Rcl : IShift
{
    public static ulong Apply<T>(Machine* m, ulong a, int count)
        where T : unmanaged
    {
        int bits = 8 * sizeof(T);
        ulong cf = m->CarryIn;
        for (int i = count % (bits + 1); i > 0; i--)
        {
            ulong top = a >> (bits - 1);
            a = Operand.Truncate<T>((a << 1) | cf);
            cf = top;
        }

        m->SetCarryAndOverflow(cf, cf ^ (a >> (bits - 1)));
        return a;
    }
}

internal readonly unsafe struct Rcr : IShift
{
    public static ulong Apply<T>(Machine* m, ulong a, int count)
        where T : unmanaged
    {
        int bits = 8 * sizeof(T);
        ulong cf = m->CarryIn;
        for (int i = count % (bits + 1); i > 0; i--)
        {
            ulong low = a & 1;
            a = (a >> 1) | (cf << (bits - 1));
            cf = low;
        }

        m->SetCarryAndOverflow(cf, (a >> (bits - 1)) ^ ((a >> (bits - 2)) & 1));
        return a;
    }
}

/// <summary>The same operation where the block overwrites the flags before anything can see them.</summary>
internal readonly unsafe struct ShlSilent : IShift
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, int count)
        where T : unmanaged => a << count;
}

/// <inheritdoc cref="ShlSilent"/>
internal readonly unsafe struct ShrSilent : IShift
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, int count)
        where T : unmanaged => a >> count;
}

/// <inheritdoc cref="ShlSilent"/>
internal readonly unsafe struct RolSilent : IShift
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, int count)
        where T : unmanaged =>
        sizeof(T) == 8 ? BitOperations.RotateLeft(a, count) : BitOperations.RotateLeft((uint)a, count);
}

/// <inheritdoc cref="ShlSilent"/>
internal readonly unsafe struct RorSilent : IShift
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(Machine* m, ulong a, int count)
        where T : unmanaged =>
        sizeof(T) == 8 ? BitOperations.RotateRight(a, count) : BitOperations.RotateRight((uint)a, count);
}

/// <summary>Handlers of shifts, rotates and double shifts.</summary>
internal static unsafe class ShiftHandlers
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static int Mask<T>(ulong count)
        where T : unmanaged => (int)count & (sizeof(T) == 8 ? 63 : 31);

    /// <summary>Register by an immediate that the decoder has masked and found not to be zero.</summary>
    public static Op* RI<TShift, T>(Machine* m, Op* op)
        where TShift : struct, IShift
        where T : unmanaged
    {
        Operand.SetReg<T>(m, op->A, TShift.Apply<T>(m, Operand.Reg<T>(m, op->A), (int)op->Immediate));
        return op + 1;
    }

    /// <summary>Register by CL; a count of 0 leaves value and flags, but a 32-bit form still clears the upper half.</summary>
    public static Op* RC<TShift, T>(Machine* m, Op* op)
        where TShift : struct, IShift
        where T : unmanaged
    {
        int count = Mask<T>(m->Gpr[1]);
        ulong a = Operand.Reg<T>(m, op->A);
        Operand.SetReg<T>(m, op->A, count == 0 ? a : TShift.Apply<T>(m, a, count));
        return op + 1;
    }

    public static Op* MI<TShift, T>(Machine* m, Op* op)
        where TShift : struct, IShift
        where T : unmanaged => Memory<TShift, T>(m, op, (int)op->Immediate);

    public static Op* MC<TShift, T>(Machine* m, Op* op)
        where TShift : struct, IShift
        where T : unmanaged => Memory<TShift, T>(m, op, Mask<T>(m->Gpr[1]));

    private static Op* Memory<TShift, T>(Machine* m, Op* op, int count)
        where TShift : struct, IShift
        where T : unmanaged
    {
        byte* p = Operand.ForWrite(m, Operand.Address(m, op), sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        if (count != 0)
        {
            Operand.Put<T>(p, TShift.Apply<T>(m, Operand.Get<T>(p), count));
        }

        Operand.Commit(m, p);
        return op + 1;
    }

    /// <summary>SHLD or SHRD of a register; Immediate is the count, or 256 for CL.</summary>
    public static Op* DoubleR<TLeft, T>(Machine* m, Op* op)
        where TLeft : struct, IDirection
        where T : unmanaged
    {
        int count = Mask<T>(op->Immediate == 256 ? m->Gpr[1] : op->Immediate);
        ulong a = Operand.Reg<T>(m, op->A);
        Operand.SetReg<T>(m, op->A, count == 0 ? a : Double<TLeft, T>(m, a, Operand.Reg<T>(m, op->B), count));
        return op + 1;
    }

    /// <inheritdoc cref="DoubleR"/>
    public static Op* DoubleM<TLeft, T>(Machine* m, Op* op)
        where TLeft : struct, IDirection
        where T : unmanaged
    {
        int count = Mask<T>(op->Immediate == 256 ? m->Gpr[1] : op->Immediate);
        byte* p = Operand.ForWrite(m, Operand.Address(m, op), sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        if (count != 0)
        {
            Operand.Put<T>(p, Double<TLeft, T>(m, Operand.Get<T>(p), Operand.Reg<T>(m, op->A), count));
        }

        Operand.Commit(m, p);
        return op + 1;
    }

    // A 16-bit count above 16 is undefined; as on current processors the pair is shifted as if repeated.
    private static ulong Double<TLeft, T>(Machine* m, ulong a, ulong b, int count)
        where TLeft : struct, IDirection
        where T : unmanaged
    {
        int bits = 8 * sizeof(T);
        ulong r;
        ulong cf;
        if (sizeof(T) == 2)
        {
            ulong wide = (a << 32) | (b << 16) | a;
            if (TLeft.Left)
            {
                cf = (wide >> (48 - count)) & 1;
                r = (wide << count >> 32) & 0xFFFF;
            }
            else
            {
                cf = (wide >> (count - 1)) & 1;
                r = (wide >> count) & 0xFFFF;
            }
        }
        else if (TLeft.Left)
        {
            r = Operand.Truncate<T>((a << count) | (b >> (bits - count)));
            cf = (a >> (bits - count)) & 1;
        }
        else
        {
            r = Operand.Truncate<T>((a >> count) | (b << (bits - count)));
            cf = (a >> (count - 1)) & 1;
        }

        Operand.SetLogicFlags<T>(m, r);
        ulong of = ((a ^ r) >> (bits - 1)) & 1;
        m->Carries = (cf << 63) | ((cf ^ of) << 62);
        return r;
    }
}

/// <summary>Left for SHLD, right for SHRD.</summary>
internal interface IDirection
{
    static abstract bool Left { get; }
}

internal readonly struct LeftWard : IDirection
{
    public static bool Left => true;
}

internal readonly struct RightWard : IDirection
{
    public static bool Left => false;
}
