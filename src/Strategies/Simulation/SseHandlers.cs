using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using VirtBench.Vmm.Cpu;

namespace VirtBench.Strategies.Simulation;

/// <summary>SSE and SSE2: V is an XMM register, M memory of 16 bytes, Mn memory of the element's size.</summary>
internal static unsafe class SseHandlers
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static ref Vector128<byte> Xmm(Machine* m, ushort offset) => ref *(Vector128<byte>*)((byte*)m + offset);

    public static Op* VV<TVector>(Machine* m, Op* op)
        where TVector : struct, IVector
    {
        Xmm(m, op->A) = TVector.Apply(Xmm(m, op->A), Xmm(m, op->B));
        return op + 1;
    }

    /// <summary>Memory must be aligned to 16 bytes (SDM vol. 2, exception type 4 without VEX).</summary>
    public static Op* VM<TVector>(Machine* m, Op* op)
        where TVector : struct, IVector
    {
        ulong address = Operand.Address(m, op);
        if ((address & 15) != 0)
        {
            return SlowPath.GeneralProtection(m, op);
        }

        byte* p = Operand.ForRead(m, address, 16);
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        Xmm(m, op->A) = TVector.Apply(Xmm(m, op->A), *(Vector128<byte>*)p);
        return op + 1;
    }

    public static Op* VMn<TVector, T>(Machine* m, Op* op)
        where TVector : struct, IVector
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        Vector128<byte> b = Vector128.CreateScalar(Operand.Get<T>(p)).AsByte();
        Xmm(m, op->A) = TVector.Apply(Xmm(m, op->A), b);
        return op + 1;
    }

    public static Op* VVI<TVector>(Machine* m, Op* op)
        where TVector : struct, IVectorImmediate
    {
        Xmm(m, op->A) = TVector.Apply(Xmm(m, op->A), Xmm(m, op->B), (byte)op->Immediate);
        return op + 1;
    }

    public static Op* VMI<TVector>(Machine* m, Op* op)
        where TVector : struct, IVectorImmediate
    {
        ulong address = Operand.Address(m, op);
        if ((address & 15) != 0)
        {
            return SlowPath.GeneralProtection(m, op);
        }

        byte* p = Operand.ForRead(m, address, 16);
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        Xmm(m, op->A) = TVector.Apply(Xmm(m, op->A), *(Vector128<byte>*)p, (byte)op->Immediate);
        return op + 1;
    }

    public static Op* VMnI<TVector, T>(Machine* m, Op* op)
        where TVector : struct, IVectorImmediate
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        Vector128<byte> b = Vector128.CreateScalar(Operand.Get<T>(p)).AsByte();
        Xmm(m, op->A) = TVector.Apply(Xmm(m, op->A), b, (byte)op->Immediate);
        return op + 1;
    }

    /// <summary>A shift of a register by an immediate count.</summary>
    public static Op* VI<TVector>(Machine* m, Op* op)
        where TVector : struct, IVector
    {
        Xmm(m, op->A) = TVector.Apply(Xmm(m, op->A), Vector128.CreateScalar(op->Immediate).AsByte());
        return op + 1;
    }

    public static Op* Move(Machine* m, Op* op)
    {
        Xmm(m, op->A) = Xmm(m, op->B);
        return op + 1;
    }

    public static Op* LoadAligned(Machine* m, Op* op) =>
        (Operand.Address(m, op) & 15) != 0 ? SlowPath.GeneralProtection(m, op) : Load(m, op);

    public static Op* Load(Machine* m, Op* op)
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), 16);
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        Xmm(m, op->A) = *(Vector128<byte>*)p;
        return op + 1;
    }

    public static Op* StoreAligned(Machine* m, Op* op) =>
        (Operand.Address(m, op) & 15) != 0 ? SlowPath.GeneralProtection(m, op) : Store(m, op);

    public static Op* Store(Machine* m, Op* op)
    {
        byte* p = Operand.ForWrite(m, Operand.Address(m, op), 16);
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        *(Vector128<byte>*)p = Xmm(m, op->A);
        Operand.Commit(m, p);
        return op + 1;
    }

    /// <summary>MOVSS, MOVSD, MOVD, MOVQ from memory: the rest of the register becomes 0.</summary>
    public static Op* LoadScalar<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        Xmm(m, op->A) = Vector128.CreateScalar(Operand.Get<T>(p)).AsByte();
        return op + 1;
    }

    /// <summary>MOVD and MOVQ from a general register.</summary>
    public static Op* FromGeneral<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        Xmm(m, op->A) = Vector128.CreateScalar(Operand.Reg<T>(m, op->B)).AsByte();
        return op + 1;
    }

    /// <summary>MOVLPS, MOVHPS and their double forms: A is the half's own offset.</summary>
    public static Op* LoadHalf(Machine* m, Op* op)
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), 8);
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        *(ulong*)((byte*)m + op->A) = *(ulong*)p;
        return op + 1;
    }

    public static Op* MovmskPs(Machine* m, Op* op) =>
        SetGeneral(m, op, Xmm(m, op->B).AsUInt32().ExtractMostSignificantBits());

    public static Op* MovmskPd(Machine* m, Op* op) =>
        SetGeneral(m, op, Xmm(m, op->B).AsUInt64().ExtractMostSignificantBits());

    public static Op* Pmovmskb(Machine* m, Op* op) => SetGeneral(m, op, Xmm(m, op->B).ExtractMostSignificantBits());

    private static Op* SetGeneral(Machine* m, Op* op, ulong value)
    {
        Operand.SetReg<ulong>(m, op->A, value);
        return op + 1;
    }

    /// <summary>PEXTRW r, xmm, i: B is the offset of the word.</summary>
    public static Op* Pextrw(Machine* m, Op* op) => SetGeneral(m, op, Operand.Reg<ushort>(m, op->B));

    /// <summary>PINSRW xmm, r, i: A is the offset of the word.</summary>
    public static Op* PinsrwR(Machine* m, Op* op)
    {
        Operand.SetReg<ushort>(m, op->A, Operand.Reg<ushort>(m, op->B));
        return op + 1;
    }

    public static Op* ConvertFromR<TTo, T>(Machine* m, Op* op)
        where TTo : unmanaged
        where T : unmanaged
    {
        FromInteger<TTo>(m, op, (long)Operand.SignExtend<T>(Operand.Reg<T>(m, op->B)));
        return op + 1;
    }

    public static Op* ConvertFromM<TTo, T>(Machine* m, Op* op)
        where TTo : unmanaged
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        FromInteger<TTo>(m, op, (long)Operand.SignExtend<T>(Operand.Get<T>(p)));
        return op + 1;
    }

    private static void FromInteger<TTo>(Machine* m, Op* op, long value)
        where TTo : unmanaged
    {
        if (sizeof(TTo) == 4)
        {
            *(float*)((byte*)m + op->A) = value;
        }
        else
        {
            *(double*)((byte*)m + op->A) = value;
        }
    }

    /// <summary>CVT(T)SS2SI and CVT(T)SD2SI. Immediate: 1 truncates.</summary>
    public static Op* ConvertToV<TFrom, T>(Machine* m, Op* op)
        where TFrom : unmanaged
        where T : unmanaged => ToInteger<TFrom, T>(m, op, (byte*)m + op->B);

    /// <inheritdoc cref="ConvertToV"/>
    public static Op* ConvertToM<TFrom, T>(Machine* m, Op* op)
        where TFrom : unmanaged
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(TFrom));
        return p is null ? SlowPath.Fault(m, op) : ToInteger<TFrom, T>(m, op, p);
    }

    private static Op* ToInteger<TFrom, T>(Machine* m, Op* op, byte* p)
        where TFrom : unmanaged
        where T : unmanaged
    {
        double v = sizeof(TFrom) == 4 ? *(float*)p : *(double*)p;
        if (op->Immediate == 0)
        {
            v = SseFloat.Round(v);
        }

        Operand.SetReg<T>(m, op->A, sizeof(T) == 4 ? (ulong)SseFloat.ToInt32(v) : (ulong)SseFloat.ToInt64(v));
        return op + 1;
    }

    /// <summary>COMISS, UCOMISS, COMISD, UCOMISD: with exceptions masked they are the same.</summary>
    public static Op* CompareV<T>(Machine* m, Op* op)
        where T : unmanaged => Compare<T>(m, op, (byte*)m + op->B);

    /// <inheritdoc cref="CompareV"/>
    public static Op* CompareM<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), sizeof(T));
        return p is null ? SlowPath.Fault(m, op) : Compare<T>(m, op, p);
    }

    private static Op* Compare<T>(Machine* m, Op* op, byte* p)
        where T : unmanaged
    {
        double a = sizeof(T) == 4 ? *(float*)((byte*)m + op->A) : *(double*)((byte*)m + op->A);
        double b = sizeof(T) == 4 ? *(float*)p : *(double*)p;
        bool unordered = double.IsNaN(a) || double.IsNaN(b);
        m->ZeroResult = unordered || a == b ? 0UL : 1UL;
        m->SignResult = unordered ? 0UL : 1UL; // PF; SF is 0
        m->Carries = unordered || a < b ? 3UL << 62 : 0; // CF with OF 0
        return op + 1;
    }

    /// <summary>MASKMOVDQU: bytes of A whose mask byte in B has its top bit, to [RDI].</summary>
    public static Op* Maskmovdqu(Machine* m, Op* op)
    {
        ulong address = m->Gpr[Gpr.Rdi] + *(ulong*)((byte*)m + op->Base);
        byte* p = Operand.ForWrite(m, address, 16);
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        Vector128<byte> mask = Vector128.LessThan(Xmm(m, op->B).AsSByte(), Vector128<sbyte>.Zero).AsByte();
        *(Vector128<byte>*)p = Vector128.ConditionalSelect(mask, Xmm(m, op->A), *(Vector128<byte>*)p);
        Operand.Commit(m, p);
        return op + 1;
    }

    /// <summary>All exceptions masked, to nearest, denormals as they are: the one mode that is modelled.</summary>
    public static bool IsModelled(uint mxcsr) => (mxcsr & ~0x3FU) == 0x1F80;

    private static Op* SetMxcsr(Machine* m, Op* op, uint value)
    {
        if ((value & 0xFFFF_0000) != 0)
        {
            return SlowPath.GeneralProtection(m, op);
        }

        if (!IsModelled(value))
        {
            return SlowPath.Fail(
                m,
                op,
                $"which sets MXCSR to 0x{value:X}: unmasked exceptions, other rounding, FTZ and DAZ are not modelled"
            );
        }

        m->Mxcsr = value;
        return op + 1;
    }

    public static Op* Ldmxcsr(Machine* m, Op* op)
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), 4);
        return p is null ? SlowPath.Fault(m, op) : SetMxcsr(m, op, *(uint*)p);
    }

    public static Op* Stmxcsr(Machine* m, Op* op) =>
        Operand.Store<uint>(m, Operand.Address(m, op), m->Mxcsr) ? op + 1 : SlowPath.Fault(m, op);

    // The image's 416 used bytes; x87 registers are those that the core keeps, as no instruction here changes them.
    private const int ImageBytes = 416;

    public static Op* Fxsave(Machine* m, Op* op)
    {
        ulong address = Operand.Address(m, op);
        if ((address & 15) != 0)
        {
            return SlowPath.GeneralProtection(m, op);
        }

        if (Operand.ForWrite(m, address, 1) is null || Operand.ForWrite(m, address + ImageBytes - 1, 1) is null)
        {
            return SlowPath.Fault(m, op);
        }

        byte* image = stackalloc byte[ImageBytes];
        SlowPath.ReadX87(m, image);
        *(uint*)(image + 24) = m->Mxcsr;
        *(uint*)(image + 28) = 0xFFFF;
        Unsafe.CopyBlock(image + 160, m->Xmm, 256);
        for (uint i = 0; i < ImageBytes; i += 16)
        {
            Unsafe.CopyBlock(Operand.ForWrite(m, address + i, 16), image + i, 16);
        }

        return op + 1;
    }

    public static Op* Fxrstor(Machine* m, Op* op)
    {
        ulong address = Operand.Address(m, op);
        if ((address & 15) != 0)
        {
            return SlowPath.GeneralProtection(m, op);
        }

        byte* image = stackalloc byte[ImageBytes];
        for (uint i = 0; i < ImageBytes; i += 16)
        {
            byte* p = Operand.ForRead(m, address + i, 16);
            if (p is null)
            {
                return SlowPath.Fault(m, op);
            }

            Unsafe.CopyBlock(image + i, p, 16);
        }

        Op* next = SetMxcsr(m, op, *(uint*)(image + 24));
        if (next is not null)
        {
            Unsafe.CopyBlock(m->Xmm, image + 160, 256);
            SlowPath.WriteX87(m, image);
        }

        return next;
    }
}
