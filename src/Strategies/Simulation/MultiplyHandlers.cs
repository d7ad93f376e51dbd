using System.Runtime.CompilerServices;
using VirtBench.Vmm.Cpu;

namespace VirtBench.Strategies.Simulation;

/// <summary>MUL, IMUL, DIV and IDIV.</summary>
internal static unsafe class MultiplyHandlers
{
    // CF = OF = the upper half is significant; SF, ZF, AF and PF are undefined and follow the lower half.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void SetFlags<T>(Machine* m, ulong low, bool overflow)
        where T : unmanaged
    {
        Operand.SetLogicFlags<T>(m, low);
        m->Carries = overflow ? 1UL << 63 : 0;
    }

    private static void Multiply<T>(Machine* m, ulong b)
        where T : unmanaged
    {
        ulong a = Operand.Reg<T>(m, 0);
        if (sizeof(T) == 1)
        {
            ulong r = a * b;
            *(ushort*)m = (ushort)r;
            SetFlags<T>(m, r, r > 0xFF);
        }
        else
        {
            UInt128 r = (UInt128)a * b;
            ulong low = Operand.Truncate<T>((ulong)r);
            ulong high = Operand.Truncate<T>((ulong)(r >> (8 * sizeof(T))));
            Operand.SetReg<T>(m, 0, low);
            Operand.SetReg<T>(m, 8 * Gpr.Rdx, high);
            SetFlags<T>(m, low, high != 0);
        }
    }

    private static void SignedMultiply<T>(Machine* m, ulong b)
        where T : unmanaged
    {
        long x = (long)Operand.SignExtend<T>(Operand.Reg<T>(m, 0));
        long y = (long)Operand.SignExtend<T>(b);
        if (sizeof(T) == 1)
        {
            long r = x * y;
            *(ushort*)m = (ushort)r;
            SetFlags<T>(m, (ulong)r, r != (sbyte)r);
        }
        else
        {
            Int128 r = (Int128)x * y;
            ulong low = Operand.Truncate<T>((ulong)r);
            Operand.SetReg<T>(m, 0, low);
            Operand.SetReg<T>(m, 8 * Gpr.Rdx, Operand.Truncate<T>((ulong)(r >> (8 * sizeof(T)))));
            SetFlags<T>(m, low, r != (long)Operand.SignExtend<T>(low));
        }
    }

    public static Op* MulR<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        Multiply<T>(m, Operand.Reg<T>(m, op->A));
        return op + 1;
    }

    public static Op* MulM<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        Multiply<T>(m, Operand.Get<T>(p));
        return op + 1;
    }

    public static Op* ImulR<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        SignedMultiply<T>(m, Operand.Reg<T>(m, op->A));
        return op + 1;
    }

    public static Op* ImulM<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        SignedMultiply<T>(m, Operand.Get<T>(p));
        return op + 1;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static ulong Truncating<T>(Machine* m, ulong a, ulong b)
        where T : unmanaged
    {
        long x = (long)Operand.SignExtend<T>(a);
        long y = (long)Operand.SignExtend<T>(b);
        ulong low;
        bool overflow;
        if (sizeof(T) == 8)
        {
            long high = Math.BigMul(x, y, out long lowPart);
            low = (ulong)lowPart;
            overflow = high != lowPart >> 63;
        }
        else
        {
            long r = x * y;
            low = Operand.Truncate<T>((ulong)r);
            overflow = r != (long)Operand.SignExtend<T>(low);
        }

        SetFlags<T>(m, low, overflow);
        return low;
    }

    /// <summary>IMUL r, r.</summary>
    public static Op* ImulRR<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        Operand.SetReg<T>(m, op->A, Truncating<T>(m, Operand.Reg<T>(m, op->A), Operand.Reg<T>(m, op->B)));
        return op + 1;
    }

    /// <summary>IMUL r, m.</summary>
    public static Op* ImulRM<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        Operand.SetReg<T>(m, op->A, Truncating<T>(m, Operand.Reg<T>(m, op->A), Operand.Get<T>(p)));
        return op + 1;
    }

    /// <summary>IMUL r, r, imm.</summary>
    public static Op* ImulRRI<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        Operand.SetReg<T>(m, op->A, Truncating<T>(m, Operand.Reg<T>(m, op->B), op->Immediate));
        return op + 1;
    }

    /// <summary>IMUL r, m, imm.</summary>
    public static Op* ImulRMI<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        Operand.SetReg<T>(m, op->A, Truncating<T>(m, Operand.Get<T>(p), op->Immediate));
        return op + 1;
    }

    // Divisions leave the flags alone, as current processors do; they are undefined.
    private static bool Divide<T>(Machine* m, ulong divisor)
        where T : unmanaged
    {
        if (divisor == 0)
        {
            return false;
        }

        if (sizeof(T) == 1)
        {
            uint dividend = *(ushort*)m;
            uint quotient = dividend / (uint)divisor;
            if (quotient > 0xFF)
            {
                return false;
            }

            *(ushort*)m = (ushort)(quotient | ((dividend % (uint)divisor) << 8));
            return true;
        }

        ulong low = Operand.Reg<T>(m, 0);
        ulong high = Operand.Reg<T>(m, 8 * Gpr.Rdx);
        if (high >= divisor)
        {
            return false;
        }

        if (sizeof(T) == 8)
        {
            if (high == 0)
            {
                m->Gpr[Gpr.Rax] = low / divisor;
                m->Gpr[Gpr.Rdx] = low % divisor;
            }
            else
            {
                (UInt128 q, UInt128 r) = UInt128.DivRem(new UInt128(high, low), divisor);
                m->Gpr[Gpr.Rax] = (ulong)q;
                m->Gpr[Gpr.Rdx] = (ulong)r;
            }
        }
        else
        {
            ulong dividend = low | (high << (8 * sizeof(T)));
            Operand.SetReg<T>(m, 0, dividend / divisor);
            Operand.SetReg<T>(m, 8 * Gpr.Rdx, dividend % divisor);
        }

        return true;
    }

    private static bool SignedDivide<T>(Machine* m, ulong operand)
        where T : unmanaged
    {
        long divisor = (long)Operand.SignExtend<T>(operand);
        if (divisor == 0)
        {
            return false;
        }

        if (sizeof(T) == 1)
        {
            int dividend = *(short*)m;
            int quotient = dividend / (int)divisor;
            if (quotient != (sbyte)quotient)
            {
                return false;
            }

            *(ushort*)m = (ushort)((byte)quotient | ((dividend % (int)divisor) << 8));
            return true;
        }

        ulong low = Operand.Reg<T>(m, 0);
        ulong high = Operand.Reg<T>(m, 8 * Gpr.Rdx);
        if (sizeof(T) == 8)
        {
            if ((long)high == (long)low >> 63 && divisor != -1)
            {
                m->Gpr[Gpr.Rax] = (ulong)((long)low / divisor);
                m->Gpr[Gpr.Rdx] = (ulong)((long)low % divisor);
                return true;
            }

            var dividend = new Int128(high, low);
            if (divisor == -1 && dividend == Int128.MinValue)
            {
                return false; // Int128 itself would overflow
            }

            (Int128 q, Int128 r) = Int128.DivRem(dividend, divisor);
            if (q != (long)q)
            {
                return false;
            }

            m->Gpr[Gpr.Rax] = (ulong)(long)q;
            m->Gpr[Gpr.Rdx] = (ulong)(long)r;
        }
        else
        {
            long dividend = sizeof(T) == 4 ? (long)((high << 32) | low) : (int)((uint)(high << 16) | (uint)low);
            if (divisor == -1 && dividend == long.MinValue)
            {
                return false;
            }

            long quotient = dividend / divisor;
            if (quotient != (long)Operand.SignExtend<T>((ulong)quotient))
            {
                return false;
            }

            Operand.SetReg<T>(m, 0, (ulong)quotient);
            Operand.SetReg<T>(m, 8 * Gpr.Rdx, (ulong)(dividend % divisor));
        }

        return true;
    }

    public static Op* DivR<T>(Machine* m, Op* op)
        where T : unmanaged => Divide<T>(m, Operand.Reg<T>(m, op->A)) ? op + 1 : SlowPath.DivideError(m, op);

    public static Op* DivM<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        return Divide<T>(m, Operand.Get<T>(p)) ? op + 1 : SlowPath.DivideError(m, op);
    }

    public static Op* IdivR<T>(Machine* m, Op* op)
        where T : unmanaged => SignedDivide<T>(m, Operand.Reg<T>(m, op->A)) ? op + 1 : SlowPath.DivideError(m, op);

    public static Op* IdivM<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        return SignedDivide<T>(m, Operand.Get<T>(p)) ? op + 1 : SlowPath.DivideError(m, op);
    }
}
