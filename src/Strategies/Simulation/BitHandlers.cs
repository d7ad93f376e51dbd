using System.Numerics;
using System.Runtime.CompilerServices;

namespace VirtBench.Strategies.Simulation;

/// <summary>What BT, BTS, BTR and BTC do to the bit they test.</summary>
internal interface IBitChange
{
    static abstract bool Stores { get; }

    static abstract ulong Apply(ulong value, ulong bit);
}

internal readonly struct BitTest : IBitChange
{
    public static bool Stores => false;

    public static ulong Apply(ulong value, ulong bit) => value;
}

internal readonly struct BitSet : IBitChange
{
    public static bool Stores => true;

    public static ulong Apply(ulong value, ulong bit) => value | bit;
}

internal readonly struct BitReset : IBitChange
{
    public static bool Stores => true;

    public static ulong Apply(ulong value, ulong bit) => value & ~bit;
}

internal readonly struct BitComplement : IBitChange
{
    public static bool Stores => true;

    public static ulong Apply(ulong value, ulong bit) => value ^ bit;
}

/// <summary>Bit tests and scans.</summary>
internal static unsafe class BitHandlers
{
    // Only CF is defined; OF keeps its value here, which the architecture leaves open.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void SetCarry(Machine* m, ulong cf) => m->SetCarryAndOverflow(cf, m->Of ? 1UL : 0UL);

    public static Op* RR<TChange, T>(Machine* m, Op* op)
        where TChange : struct, IBitChange
        where T : unmanaged => Register<TChange, T>(m, op, Operand.Reg<T>(m, op->B));

    public static Op* RI<TChange, T>(Machine* m, Op* op)
        where TChange : struct, IBitChange
        where T : unmanaged => Register<TChange, T>(m, op, op->Immediate);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Op* Register<TChange, T>(Machine* m, Op* op, ulong index)
        where TChange : struct, IBitChange
        where T : unmanaged
    {
        int n = (int)index & ((8 * sizeof(T)) - 1);
        ulong value = Operand.Reg<T>(m, op->A);
        SetCarry(m, (value >> n) & 1);
        if (TChange.Stores)
        {
            Operand.SetReg<T>(m, op->A, TChange.Apply(value, 1UL << n));
        }

        return op + 1;
    }

    /// <summary>A register index reaches beyond the operand: it is a signed bit offset from the address.</summary>
    public static Op* MR<TChange, T>(Machine* m, Op* op)
        where TChange : struct, IBitChange
        where T : unmanaged
    {
        long index = (long)Operand.SignExtend<T>(Operand.Reg<T>(m, op->A));
        int shift = BitOperations.Log2((uint)sizeof(T)) + 3;
        ulong address = Operand.Address(m, op) + (ulong)((index >> shift) * sizeof(T));
        return Memory<TChange, T>(m, op, address, (ulong)index);
    }

    public static Op* MI<TChange, T>(Machine* m, Op* op)
        where TChange : struct, IBitChange
        where T : unmanaged => Memory<TChange, T>(m, op, Operand.Address(m, op), op->Immediate);

    private static Op* Memory<TChange, T>(Machine* m, Op* op, ulong address, ulong index)
        where TChange : struct, IBitChange
        where T : unmanaged
    {
        byte* p = TChange.Stores ? Operand.ForWrite(m, address, sizeof(T)) : Operand.ForRead(m, address, sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        int n = (int)index & ((8 * sizeof(T)) - 1);
        ulong value = Operand.Get<T>(p);
        SetCarry(m, (value >> n) & 1);
        if (TChange.Stores)
        {
            Operand.Put<T>(p, TChange.Apply(value, 1UL << n));
            Operand.Commit(m, p);
        }

        return op + 1;
    }

    public static Op* BsfRR<T>(Machine* m, Op* op)
        where T : unmanaged => Forward<T>(m, op, Operand.Reg<T>(m, op->B));

    public static Op* BsfRM<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(T));
        return p is null ? SlowPath.Fault(m, op) : Forward<T>(m, op, Operand.Get<T>(p));
    }

    public static Op* BsrRR<T>(Machine* m, Op* op)
        where T : unmanaged => Reverse<T>(m, op, Operand.Reg<T>(m, op->B));

    public static Op* BsrRM<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(T));
        return p is null ? SlowPath.Fault(m, op) : Reverse<T>(m, op, Operand.Get<T>(p));
    }

    // A source of 0 sets ZF and leaves the destination, as every x86-64 processor does and AMD documents.
    private static Op* Forward<T>(Machine* m, Op* op, ulong value)
        where T : unmanaged
    {
        Operand.SetLogicFlags<T>(m, value);
        if (value != 0)
        {
            Operand.SetReg<T>(m, op->A, (ulong)BitOperations.TrailingZeroCount(value));
        }

        return op + 1;
    }

    private static Op* Reverse<T>(Machine* m, Op* op, ulong value)
        where T : unmanaged
    {
        Operand.SetLogicFlags<T>(m, value);
        if (value != 0)
        {
            Operand.SetReg<T>(m, op->A, (ulong)BitOperations.Log2(value));
        }

        return op + 1;
    }
}
