using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace VirtBench.Strategies.Simulation;

/// <summary>An operation on two 16-byte vectors; scalar ones keep the first operand's upper part.</summary>
internal interface IVector
{
    static abstract Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b);
}

/// <summary>An operation on two vectors and an immediate byte.</summary>
internal interface IVectorImmediate
{
    static abstract Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b, byte immediate);
}

internal readonly struct Paddb : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => (a.AsByte() + b.AsByte()).AsByte();
}

internal readonly struct Psubb : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => (a.AsByte() - b.AsByte()).AsByte();
}

internal readonly struct Paddw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => (a.AsUInt16() + b.AsUInt16()).AsByte();
}

internal readonly struct Psubw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => (a.AsUInt16() - b.AsUInt16()).AsByte();
}

internal readonly struct Paddd : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => (a.AsUInt32() + b.AsUInt32()).AsByte();
}

internal readonly struct Psubd : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => (a.AsUInt32() - b.AsUInt32()).AsByte();
}

internal readonly struct Paddq : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => (a.AsUInt64() + b.AsUInt64()).AsByte();
}

internal readonly struct Psubq : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => (a.AsUInt64() - b.AsUInt64()).AsByte();
}

internal readonly struct Paddsb : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.AddSaturate(a.AsSByte(), b.AsSByte()).AsByte();
}

internal readonly struct Paddusb : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.AddSaturate(a.AsByte(), b.AsByte()).AsByte();
}

internal readonly struct Psubsb : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.SubtractSaturate(a.AsSByte(), b.AsSByte()).AsByte();
}

internal readonly struct Psubusb : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.SubtractSaturate(a.AsByte(), b.AsByte()).AsByte();
}

internal readonly struct Paddsw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.AddSaturate(a.AsInt16(), b.AsInt16()).AsByte();
}

internal readonly struct Paddusw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.AddSaturate(a.AsUInt16(), b.AsUInt16()).AsByte();
}

internal readonly struct Psubsw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.SubtractSaturate(a.AsInt16(), b.AsInt16()).AsByte();
}

internal readonly struct Psubusw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.SubtractSaturate(a.AsUInt16(), b.AsUInt16()).AsByte();
}

internal readonly struct Pcmpeqb : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.Equals(a.AsByte(), b.AsByte()).AsByte();
}

internal readonly struct Pcmpgtb : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.GreaterThan(a.AsSByte(), b.AsSByte()).AsByte();
}

internal readonly struct Pcmpeqw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.Equals(a.AsUInt16(), b.AsUInt16()).AsByte();
}

internal readonly struct Pcmpgtw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.GreaterThan(a.AsInt16(), b.AsInt16()).AsByte();
}

internal readonly struct Pcmpeqd : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.Equals(a.AsUInt32(), b.AsUInt32()).AsByte();
}

internal readonly struct Pcmpgtd : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.GreaterThan(a.AsInt32(), b.AsInt32()).AsByte();
}

internal readonly struct Pmaxub : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => Vector128.Max(a, b);
}

internal readonly struct Pminub : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => Vector128.Min(a, b);
}

internal readonly struct Pmaxsw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.Max(a.AsInt16(), b.AsInt16()).AsByte();
}

internal readonly struct Pminsw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.Min(a.AsInt16(), b.AsInt16()).AsByte();
}

internal readonly struct Pand : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => a & b;
}

internal readonly struct Por : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => a | b;
}

internal readonly struct Pxor : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => a ^ b;
}

internal readonly struct Pandn : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => ~a & b;
}

internal readonly struct Pmullw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => (a.AsInt16() * b.AsInt16()).AsByte();
}

internal readonly struct Pmulhw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        (Vector128<int> al, Vector128<int> ah) = Vector128.Widen(a.AsInt16());
        (Vector128<int> bl, Vector128<int> bh) = Vector128.Widen(b.AsInt16());
        return Vector128.Narrow((al * bl) >> 16, (ah * bh) >> 16).AsByte();
    }
}

internal readonly struct Pmulhuw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        (Vector128<uint> al, Vector128<uint> ah) = Vector128.Widen(a.AsUInt16());
        (Vector128<uint> bl, Vector128<uint> bh) = Vector128.Widen(b.AsUInt16());
        return Vector128.Narrow((al * bl) >> 16, (ah * bh) >> 16).AsByte();
    }
}

internal readonly struct Pmuludq : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        Vector128<ulong> low = Vector128.Create(0xFFFF_FFFFUL);
        Vector128<ulong> x = a.AsUInt64() & low;
        Vector128<ulong> y = b.AsUInt64() & low;
        return Vector128.Create(x[0] * y[0], x[1] * y[1]).AsByte();
    }
}

internal readonly struct Pmaddwd : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        Vector128<int> even =
            Vector128.ShiftRightArithmetic(a.AsInt32() << 16, 16)
            * Vector128.ShiftRightArithmetic(b.AsInt32() << 16, 16);
        Vector128<int> odd =
            Vector128.ShiftRightArithmetic(a.AsInt32(), 16) * Vector128.ShiftRightArithmetic(b.AsInt32(), 16);
        return (even + odd).AsByte();
    }
}

internal readonly struct Psadbw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        Vector128<byte> d = Vector128.Max(a, b) - Vector128.Min(a, b);
        ulong low = 0;
        ulong high = 0;
        for (int i = 0; i < 8; i++)
        {
            low += d[i];
            high += d[i + 8];
        }

        return Vector128.Create(low, high).AsByte();
    }
}

internal readonly struct Pavgb : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        // without a carry out: (a | b) - ((a ^ b) >> 1)
        Vector128<byte> half = ((a ^ b).AsUInt16() >> 1).AsByte() & Vector128.Create((byte)0x7F);
        return (a | b) - half;
    }
}

internal readonly struct Pavgw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        ((a | b).AsUInt16() - ((a ^ b).AsUInt16() >> 1)).AsByte();
}

internal readonly struct Punpcklbw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        Vector128<byte> index = Vector128.Create((byte)0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7).AsByte();
        Vector128<byte> second = Vector128
            .Create((byte)0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255)
            .AsByte();
        return Vector128.ConditionalSelect(second, Vector128.Shuffle(b, index), Vector128.Shuffle(a, index));
    }
}

internal readonly struct Punpckhbw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        Vector128<byte> index = Vector128
            .Create((byte)8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15)
            .AsByte();
        Vector128<byte> second = Vector128
            .Create((byte)0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255)
            .AsByte();
        return Vector128.ConditionalSelect(second, Vector128.Shuffle(b, index), Vector128.Shuffle(a, index));
    }
}

internal readonly struct Punpcklwd : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        Vector128<byte> index = Vector128.Create((byte)0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7).AsByte();
        Vector128<byte> second = Vector128
            .Create((byte)0, 0, 255, 255, 0, 0, 255, 255, 0, 0, 255, 255, 0, 0, 255, 255)
            .AsByte();
        return Vector128.ConditionalSelect(second, Vector128.Shuffle(b, index), Vector128.Shuffle(a, index));
    }
}

internal readonly struct Punpckhwd : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        Vector128<byte> index = Vector128
            .Create((byte)8, 9, 8, 9, 10, 11, 10, 11, 12, 13, 12, 13, 14, 15, 14, 15)
            .AsByte();
        Vector128<byte> second = Vector128
            .Create((byte)0, 0, 255, 255, 0, 0, 255, 255, 0, 0, 255, 255, 0, 0, 255, 255)
            .AsByte();
        return Vector128.ConditionalSelect(second, Vector128.Shuffle(b, index), Vector128.Shuffle(a, index));
    }
}

internal readonly struct Punpckldq : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        Vector128<byte> index = Vector128.Create((byte)0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7).AsByte();
        Vector128<byte> second = Vector128
            .Create((byte)0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 255, 255, 255, 255)
            .AsByte();
        return Vector128.ConditionalSelect(second, Vector128.Shuffle(b, index), Vector128.Shuffle(a, index));
    }
}

internal readonly struct Punpckhdq : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        Vector128<byte> index = Vector128
            .Create((byte)8, 9, 10, 11, 8, 9, 10, 11, 12, 13, 14, 15, 12, 13, 14, 15)
            .AsByte();
        Vector128<byte> second = Vector128
            .Create((byte)0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 255, 255, 255, 255)
            .AsByte();
        return Vector128.ConditionalSelect(second, Vector128.Shuffle(b, index), Vector128.Shuffle(a, index));
    }
}

internal readonly struct Punpcklqdq : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.Create(a.AsUInt64()[0], b.AsUInt64()[0]).AsByte();
}

internal readonly struct Punpckhqdq : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.Create(a.AsUInt64()[1], b.AsUInt64()[1]).AsByte();
}

internal readonly struct Packsswb : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128
            .Narrow(
                Clamp.To(a.AsInt16(), sbyte.MinValue, sbyte.MaxValue),
                Clamp.To(b.AsInt16(), sbyte.MinValue, sbyte.MaxValue)
            )
            .AsByte();
}

internal readonly struct Packuswb : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.Narrow(Clamp.To(a.AsInt16(), 0, byte.MaxValue), Clamp.To(b.AsInt16(), 0, byte.MaxValue)).AsByte();
}

internal readonly struct Packssdw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128
            .Narrow(
                Clamp.To(a.AsInt32(), short.MinValue, short.MaxValue),
                Clamp.To(b.AsInt32(), short.MinValue, short.MaxValue)
            )
            .AsByte();
}

internal static class Clamp
{
    public static Vector128<short> To(Vector128<short> v, short low, short high) =>
        Vector128.Min(Vector128.Max(v, Vector128.Create(low)), Vector128.Create(high));

    public static Vector128<int> To(Vector128<int> v, int low, int high) =>
        Vector128.Min(Vector128.Max(v, Vector128.Create(low)), Vector128.Create(high));
}

internal readonly struct Psllw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        ulong count = b.AsUInt64()[0];
        return count >= 16 ? Vector128<byte>.Zero : (a.AsUInt16() << (int)count).AsByte();
    }
}

internal readonly struct Pslld : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        ulong count = b.AsUInt64()[0];
        return count >= 32 ? Vector128<byte>.Zero : (a.AsUInt32() << (int)count).AsByte();
    }
}

internal readonly struct Psllq : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        ulong count = b.AsUInt64()[0];
        return count >= 64 ? Vector128<byte>.Zero : (a.AsUInt64() << (int)count).AsByte();
    }
}

internal readonly struct Psrlw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        ulong count = b.AsUInt64()[0];
        return count >= 16 ? Vector128<byte>.Zero : (a.AsUInt16() >> (int)count).AsByte();
    }
}

internal readonly struct Psrld : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        ulong count = b.AsUInt64()[0];
        return count >= 32 ? Vector128<byte>.Zero : (a.AsUInt32() >> (int)count).AsByte();
    }
}

internal readonly struct Psrlq : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        ulong count = b.AsUInt64()[0];
        return count >= 64 ? Vector128<byte>.Zero : (a.AsUInt64() >> (int)count).AsByte();
    }
}

internal readonly struct Psraw : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        int count = (int)Math.Min(b.AsUInt64()[0], 15);
        return (a.AsInt16() >> count).AsByte();
    }
}

internal readonly struct Psrad : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        int count = (int)Math.Min(b.AsUInt64()[0], 31);
        return (a.AsInt32() >> count).AsByte();
    }
}

internal readonly struct Pslldq : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        ulong count = b.AsUInt64()[0];
        UInt128 v = Unsafe.BitCast<Vector128<byte>, UInt128>(a);
        return count > 15 ? Vector128<byte>.Zero : Unsafe.BitCast<UInt128, Vector128<byte>>(v << (int)(8 * count));
    }
}

internal readonly struct Psrldq : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        ulong count = b.AsUInt64()[0];
        UInt128 v = Unsafe.BitCast<Vector128<byte>, UInt128>(a);
        return count > 15 ? Vector128<byte>.Zero : Unsafe.BitCast<UInt128, Vector128<byte>>(v >>> (int)(8 * count));
    }
}

internal readonly struct Movss : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        a.AsUInt32().WithElement(0, b.AsUInt32()[0]).AsByte();
}

internal readonly struct Movsd : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.Create(b.AsUInt64()[0], a.AsUInt64()[1]).AsByte();
}

internal readonly struct Movhlps : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.Create(b.AsUInt64()[1], a.AsUInt64()[1]).AsByte();
}

internal readonly struct Movlhps : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.Create(a.AsUInt64()[0], b.AsUInt64()[0]).AsByte();
}

internal readonly struct MovqLow : IVector
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.Create(b.AsUInt64()[0], 0UL).AsByte();
}

internal readonly struct Pshufd : IVectorImmediate
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b, byte immediate)
    {
        Vector128<uint> v = b.AsUInt32();
        return Vector128
            .Create(v[immediate & 3], v[(immediate >> 2) & 3], v[(immediate >> 4) & 3], v[immediate >> 6])
            .AsByte();
    }
}

internal readonly struct Pshuflw : IVectorImmediate
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b, byte immediate)
    {
        ulong v = b.AsUInt64()[0];
        return b.AsUInt64().WithElement(0, Words.Shuffle(v, immediate)).AsByte();
    }
}

internal readonly struct Pshufhw : IVectorImmediate
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b, byte immediate)
    {
        ulong v = b.AsUInt64()[1];
        return b.AsUInt64().WithElement(1, Words.Shuffle(v, immediate)).AsByte();
    }
}

internal readonly struct Shufps : IVectorImmediate
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b, byte immediate)
    {
        Vector128<uint> x = a.AsUInt32();
        Vector128<uint> y = b.AsUInt32();
        return Vector128
            .Create(x[immediate & 3], x[(immediate >> 2) & 3], y[(immediate >> 4) & 3], y[immediate >> 6])
            .AsByte();
    }
}

internal readonly struct Shufpd : IVectorImmediate
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b, byte immediate)
    {
        return Vector128.Create(a.AsUInt64()[immediate & 1], b.AsUInt64()[(immediate >> 1) & 1]).AsByte();
    }
}

internal static class Words
{
    /// <summary>Four 16-bit words chosen by two bits each.</summary>
    public static ulong Shuffle(ulong v, byte order) =>
        (ushort)(v >> (16 * (order & 3)))
        | ((ulong)(ushort)(v >> (16 * ((order >> 2) & 3))) << 16)
        | ((ulong)(ushort)(v >> (16 * ((order >> 4) & 3))) << 32)
        | ((ulong)(ushort)(v >> (16 * (order >> 6))) << 48);
}
