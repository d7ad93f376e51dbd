using System.Buffers.Binary;
using VirtBench.Vmm.Cpu;

namespace VirtBench.Strategies.Simulation;

/// <summary>Data movement, stack, extension, conditional moves and exchanges.</summary>
internal static unsafe class MoveHandlers
{
    public static Op* MovRR<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        Operand.SetReg<T>(m, op->A, Operand.Reg<T>(m, op->B));
        return op + 1;
    }

    public static Op* MovRI<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        Operand.SetReg<T>(m, op->A, op->Immediate);
        return op + 1;
    }

    public static Op* MovRM<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        Operand.SetReg<T>(m, op->A, Operand.Get<T>(p));
        return op + 1;
    }

    public static Op* MovMR<T>(Machine* m, Op* op)
        where T : unmanaged =>
        Operand.Store<T>(m, Operand.Address(m, op), Operand.Reg<T>(m, op->A)) ? op + 1 : SlowPath.Fault(m, op);

    public static Op* MovMI<T>(Machine* m, Op* op)
        where T : unmanaged =>
        Operand.Store<T>(m, Operand.Address(m, op), op->Immediate) ? op + 1 : SlowPath.Fault(m, op);

    public static Op* MovzxRR<TTo, TFrom>(Machine* m, Op* op)
        where TTo : unmanaged
        where TFrom : unmanaged
    {
        Operand.SetReg<TTo>(m, op->A, Operand.Reg<TFrom>(m, op->B));
        return op + 1;
    }

    public static Op* MovzxRM<TTo, TFrom>(Machine* m, Op* op)
        where TTo : unmanaged
        where TFrom : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(TFrom));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        Operand.SetReg<TTo>(m, op->A, Operand.Get<TFrom>(p));
        return op + 1;
    }

    public static Op* MovsxRR<TTo, TFrom>(Machine* m, Op* op)
        where TTo : unmanaged
        where TFrom : unmanaged
    {
        Operand.SetReg<TTo>(m, op->A, Operand.SignExtend<TFrom>(Operand.Reg<TFrom>(m, op->B)));
        return op + 1;
    }

    public static Op* MovsxRM<TTo, TFrom>(Machine* m, Op* op)
        where TTo : unmanaged
        where TFrom : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(TFrom));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        Operand.SetReg<TTo>(m, op->A, Operand.SignExtend<TFrom>(Operand.Get<TFrom>(p)));
        return op + 1;
    }

    public static Op* Lea<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        Operand.SetReg<T>(m, op->A, Operand.Address(m, op));
        return op + 1;
    }

    public static Op* Push64(Machine* m, Op* op) => Push<ulong>(m, op, Operand.Reg<ulong>(m, op->A));

    public static Op* Push16(Machine* m, Op* op) => Push<ushort>(m, op, Operand.Reg<ushort>(m, op->A));

    public static Op* PushI<T>(Machine* m, Op* op)
        where T : unmanaged => Push<T>(m, op, op->Immediate);

    public static Op* PushM<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(T));
        return p is null ? SlowPath.Fault(m, op) : Push<T>(m, op, Operand.Get<T>(p));
    }

    private static Op* Push<T>(Machine* m, Op* op, ulong value)
        where T : unmanaged
    {
        ulong sp = m->Gpr[Gpr.Rsp] - (ulong)sizeof(T);
        if (!Operand.Store<T>(m, sp, value))
        {
            return SlowPath.Fault(m, op);
        }

        m->Gpr[Gpr.Rsp] = sp;
        return op + 1;
    }

    /// <summary>POP r. POP RSP keeps the value read: the register is written after the pointer has moved.</summary>
    public static Op* PopR<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        ulong sp = m->Gpr[Gpr.Rsp];
        byte* p = Operand.ForRead(m, sp, sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        ulong value = Operand.Get<T>(p);
        m->Gpr[Gpr.Rsp] = sp + (ulong)sizeof(T);
        Operand.SetReg<T>(m, op->A, value);
        return op + 1;
    }

    /// <summary>POP m: an address based on RSP uses the pointer after the pop (SDM vol. 2B, POP).</summary>
    public static Op* PopM<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        ulong sp = m->Gpr[Gpr.Rsp];
        byte* p = Operand.ForRead(m, sp, sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        ulong value = Operand.Get<T>(p);
        m->Gpr[Gpr.Rsp] = sp + (ulong)sizeof(T);
        if (!Operand.Store<T>(m, Operand.Address(m, op), value))
        {
            m->Gpr[Gpr.Rsp] = sp;
            return SlowPath.Fault(m, op);
        }

        return op + 1;
    }

    public static Op* Leave(Machine* m, Op* op)
    {
        ulong bp = m->Gpr[Gpr.Rbp];
        byte* p = Operand.ForRead(m, bp, 8);
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        m->Gpr[Gpr.Rbp] = *(ulong*)p;
        m->Gpr[Gpr.Rsp] = bp + 8;
        return op + 1;
    }

    public static Op* Leave16(Machine* m, Op* op)
    {
        ulong bp = m->Gpr[Gpr.Rbp];
        byte* p = Operand.ForRead(m, bp, 2);
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        *(ushort*)&m->Gpr[Gpr.Rbp] = *(ushort*)p;
        m->Gpr[Gpr.Rsp] = bp + 2;
        return op + 1;
    }

    /// <summary>ENTER with 64-bit operands. Immediate: frame bytes in bits 0–15, nesting level from bit 16.</summary>
    public static Op* Enter(Machine* m, Op* op)
    {
        ulong bytes = op->Immediate & 0xFFFF;
        int level = (int)(op->Immediate >> 16) & 31;
        ulong sp = m->Gpr[Gpr.Rsp] - 8;
        ulong frame = sp;
        if (!Operand.Store<ulong>(m, sp, m->Gpr[Gpr.Rbp]))
        {
            return SlowPath.Fault(m, op);
        }

        // Stores below RSP are invisible until RSP moves, so a fault on the way can simply restart the instruction.
        ulong bp = m->Gpr[Gpr.Rbp];
        for (int i = 1; i < level; i++)
        {
            bp -= 8;
            byte* p = Operand.ForRead(m, bp, 8);
            sp -= 8;
            if (p is null || !Operand.Store<ulong>(m, sp, *(ulong*)p))
            {
                return SlowPath.Fault(m, op);
            }
        }

        if (level > 0)
        {
            sp -= 8;
            if (!Operand.Store<ulong>(m, sp, frame))
            {
                return SlowPath.Fault(m, op);
            }
        }

        // The new top of stack must be writable before anything is committed (SDM vol. 2A, ENTER).
        byte* top = Operand.ForWrite(m, sp - bytes, 8);
        if (top is null)
        {
            return SlowPath.Fault(m, op);
        }

        m->Gpr[Gpr.Rbp] = frame;
        m->Gpr[Gpr.Rsp] = sp - bytes;
        return op + 1;
    }

    public static Op* XchgRR<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        ulong a = Operand.Reg<T>(m, op->A);
        ulong b = Operand.Reg<T>(m, op->B);
        Operand.SetReg<T>(m, op->A, b);
        Operand.SetReg<T>(m, op->B, a);
        return op + 1;
    }

    public static Op* XchgMR<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        byte* p = Operand.ForWrite(m, Operand.Address(m, op), sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        ulong old = Operand.Get<T>(p);
        Operand.Put<T>(p, Operand.Reg<T>(m, op->A));
        Operand.Commit(m, p);
        Operand.SetReg<T>(m, op->A, old);
        return op + 1;
    }

    public static Op* XaddRR<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        ulong a = Operand.Reg<T>(m, op->A);
        ulong r = Add.Apply<T>(m, a, Operand.Reg<T>(m, op->B));
        Operand.SetReg<T>(m, op->B, a);
        Operand.SetReg<T>(m, op->A, r);
        return op + 1;
    }

    public static Op* XaddMR<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        byte* p = Operand.ForWrite(m, Operand.Address(m, op), sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        ulong a = Operand.Get<T>(p);
        Operand.Put<T>(p, Add.Apply<T>(m, a, Operand.Reg<T>(m, op->A)));
        Operand.Commit(m, p);
        Operand.SetReg<T>(m, op->A, a);
        return op + 1;
    }

    public static Op* CmpxchgRR<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        ulong accumulator = Operand.Reg<T>(m, 0);
        ulong destination = Operand.Reg<T>(m, op->A);
        ulong source = Operand.Reg<T>(m, op->B);
        _ = Sub.Apply<T>(m, accumulator, destination);
        if (accumulator == destination)
        {
            Operand.SetReg<T>(m, op->A, source);
        }
        else
        {
            Operand.SetReg<T>(m, 0, destination);
        }

        return op + 1;
    }

    public static Op* CmpxchgMR<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        // The destination is written in either case, so it must be writable (SDM vol. 2A, CMPXCHG).
        byte* p = Operand.ForWrite(m, Operand.Address(m, op), sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        ulong accumulator = Operand.Reg<T>(m, 0);
        ulong destination = Operand.Get<T>(p);
        _ = Sub.Apply<T>(m, accumulator, destination);
        if (accumulator == destination)
        {
            Operand.Put<T>(p, Operand.Reg<T>(m, op->A));
        }
        else
        {
            Operand.SetReg<T>(m, 0, destination);
        }

        Operand.Commit(m, p);
        return op + 1;
    }

    public static Op* Cmpxchg8b(Machine* m, Op* op)
    {
        byte* p = Operand.ForWrite(m, Operand.Address(m, op), 8);
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        ulong expected = (uint)m->Gpr[Gpr.Rax] | (m->Gpr[Gpr.Rdx] << 32);
        ulong old = *(ulong*)p;
        if (old == expected)
        {
            *(ulong*)p = (uint)m->Gpr[Gpr.Rbx] | (m->Gpr[Gpr.Rcx] << 32);
            m->ZeroResult = 0;
        }
        else
        {
            m->Gpr[Gpr.Rax] = (uint)old;
            m->Gpr[Gpr.Rdx] = old >> 32;
            m->ZeroResult = 1;
        }

        Operand.Commit(m, p);
        return op + 1;
    }

    public static Op* Cmpxchg16b(Machine* m, Op* op)
    {
        ulong address = Operand.Address(m, op);
        if ((address & 15) != 0)
        {
            return SlowPath.GeneralProtection(m, op);
        }

        byte* p = Operand.ForWrite(m, address, 16);
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        ulong* q = (ulong*)p;
        if (q[0] == m->Gpr[Gpr.Rax] && q[1] == m->Gpr[Gpr.Rdx])
        {
            q[0] = m->Gpr[Gpr.Rbx];
            q[1] = m->Gpr[Gpr.Rcx];
            m->ZeroResult = 0;
        }
        else
        {
            m->Gpr[Gpr.Rax] = q[0];
            m->Gpr[Gpr.Rdx] = q[1];
            m->ZeroResult = 1;
        }

        return op + 1;
    }

    public static Op* SetccR<TCondition>(Machine* m, Op* op)
        where TCondition : struct, ICondition
    {
        *((byte*)m + op->A) = TCondition.Holds(m) ? (byte)1 : (byte)0;
        return op + 1;
    }

    public static Op* SetccM<TCondition>(Machine* m, Op* op)
        where TCondition : struct, ICondition =>
        Operand.Store<byte>(m, Operand.Address(m, op), TCondition.Holds(m) ? 1UL : 0UL)
            ? op + 1
            : SlowPath.Fault(m, op);

    public static Op* CmovRR<TCondition, T>(Machine* m, Op* op)
        where TCondition : struct, ICondition
        where T : unmanaged
    {
        // A 32-bit form clears the upper half even when it does not move.
        Operand.SetReg<T>(m, op->A, Operand.Reg<T>(m, TCondition.Holds(m) ? op->B : op->A));
        return op + 1;
    }

    public static Op* CmovRM<TCondition, T>(Machine* m, Op* op)
        where TCondition : struct, ICondition
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        Operand.SetReg<T>(m, op->A, TCondition.Holds(m) ? Operand.Get<T>(p) : Operand.Reg<T>(m, op->A));
        return op + 1;
    }

    /// <summary>BSWAP of 16 bits is undefined; current processors clear the register.</summary>
    public static Op* Bswap16(Machine* m, Op* op)
    {
        Operand.SetReg<ushort>(m, op->A, 0);
        return op + 1;
    }

    public static Op* Bswap32(Machine* m, Op* op)
    {
        Operand.SetReg<uint>(m, op->A, BinaryPrimitives.ReverseEndianness((uint)Operand.Reg<uint>(m, op->A)));
        return op + 1;
    }

    public static Op* Bswap64(Machine* m, Op* op)
    {
        Operand.SetReg<ulong>(m, op->A, BinaryPrimitives.ReverseEndianness(Operand.Reg<ulong>(m, op->A)));
        return op + 1;
    }

    public static Op* Cbw(Machine* m, Op* op)
    {
        *(ushort*)m = (ushort)*(sbyte*)m;
        return op + 1;
    }

    public static Op* Cwde(Machine* m, Op* op)
    {
        m->Gpr[Gpr.Rax] = (uint)*(short*)m;
        return op + 1;
    }

    public static Op* Cdqe(Machine* m, Op* op)
    {
        m->Gpr[Gpr.Rax] = (ulong)*(int*)m;
        return op + 1;
    }

    public static Op* Cwd(Machine* m, Op* op)
    {
        *(ushort*)&m->Gpr[Gpr.Rdx] = (ushort)(*(short*)m >> 15);
        return op + 1;
    }

    public static Op* Cdq(Machine* m, Op* op)
    {
        m->Gpr[Gpr.Rdx] = (uint)(*(int*)m >> 31);
        return op + 1;
    }

    public static Op* Cqo(Machine* m, Op* op)
    {
        m->Gpr[Gpr.Rdx] = (ulong)(*(long*)m >> 63);
        return op + 1;
    }

    public static Op* Xlat(Machine* m, Op* op)
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op) + *(byte*)m, 1);
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        *(byte*)m = *p;
        return op + 1;
    }

    /// <summary>The address part of a form with a segment base or 32-bit addressing; belongs to the op behind it.</summary>
    public static Op* AddressPart64(Machine* m, Op* op)
    {
        m->Temp = Operand.Address(m, op);
        return op + 1;
    }

    /// <inheritdoc cref="AddressPart64"/>
    public static Op* AddressPart32(Machine* m, Op* op)
    {
        m->Temp = (uint)Operand.Address(m, op);
        return op + 1;
    }
}
