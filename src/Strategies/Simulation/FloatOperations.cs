using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace VirtBench.Strategies.Simulation;

/// <summary>
/// SSE's answers where IEEE 754 and hosts leave a choice: which NaN comes out (SDM vol. 1, table 4-7), the indefinite
/// integer, and what MIN and MAX do. Computed in bits, so that every host gives x86's.
/// </summary>
/// <remarks>
/// Not modelled: the MXCSR's sticky exception flags (STMXCSR returns what was loaded). LDMXCSR and FXRSTOR end the guest
/// when they unmask an exception or ask for another rounding, FTZ or DAZ.
/// </remarks>
internal static class SseFloat
{
    private const ulong QuietDouble = 1UL << 51;
    private const uint QuietSingle = 1U << 22;

    /// <summary>The NaN of an operation on two operands: the first NaN made quiet, or the default.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public static double NaN(double a, double b) =>
        BitConverter.UInt64BitsToDouble(
            double.IsNaN(a) ? BitConverter.DoubleToUInt64Bits(a) | QuietDouble
            : double.IsNaN(b) ? BitConverter.DoubleToUInt64Bits(b) | QuietDouble
            : 0xFFF8_0000_0000_0000
        );

    /// <inheritdoc cref="NaN(double, double)"/>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public static float NaN(float a, float b) =>
        BitConverter.UInt32BitsToSingle(
            float.IsNaN(a) ? BitConverter.SingleToUInt32Bits(a) | QuietSingle
            : float.IsNaN(b) ? BitConverter.SingleToUInt32Bits(b) | QuietSingle
            : 0xFFC0_0000
        );

    public static float ToSingle(double v)
    {
        if (!double.IsNaN(v))
        {
            return (float)v;
        }

        ulong bits = BitConverter.DoubleToUInt64Bits(v);
        return BitConverter.UInt32BitsToSingle(
            ((uint)(bits >> 32) & 0x8000_0000) | 0x7FC0_0000 | ((uint)(bits >> 29) & 0x3F_FFFF)
        );
    }

    public static double ToDouble(float v)
    {
        if (!float.IsNaN(v))
        {
            return v;
        }

        uint bits = BitConverter.SingleToUInt32Bits(v);
        return BitConverter.UInt64BitsToDouble(
            ((ulong)(bits & 0x8000_0000) << 32) | 0x7FF8_0000_0000_0000 | ((ulong)(bits & 0x3F_FFFF) << 29)
        );
    }

    /// <summary>Truncates; out of range gives the indefinite integer.</summary>
    public static int ToInt32(double v) => v is > -2147483649.0 and < 2147483648.0 ? (int)v : int.MinValue;

    /// <inheritdoc cref="ToInt32"/>
    public static long ToInt64(double v) =>
        v is >= -9223372036854775808.0 and < 9223372036854775808.0 ? (long)v : long.MinValue;

    /// <summary>To the nearest integer, ties to even: the only rounding that is modelled.</summary>
    public static double Round(double v) => Math.Round(v, MidpointRounding.ToEven);
}

/// <summary>One floating-point operation at each width.</summary>
internal interface IFloat
{
    /// <summary>True when a NaN that comes out must be replaced by SSE's.</summary>
    static abstract bool MakesNaN { get; }

    static abstract double Apply(double a, double b);

    static abstract float Apply(float a, float b);

    static abstract Vector128<double> Apply(Vector128<double> a, Vector128<double> b);

    static abstract Vector128<float> Apply(Vector128<float> a, Vector128<float> b);
}

internal readonly struct FloatAdd : IFloat
{
    public static bool MakesNaN => true;

    public static double Apply(double a, double b) => a + b;

    public static float Apply(float a, float b) => a + b;

    public static Vector128<double> Apply(Vector128<double> a, Vector128<double> b) => a + b;

    public static Vector128<float> Apply(Vector128<float> a, Vector128<float> b) => a + b;
}

internal readonly struct FloatSub : IFloat
{
    public static bool MakesNaN => true;

    public static double Apply(double a, double b) => a - b;

    public static float Apply(float a, float b) => a - b;

    public static Vector128<double> Apply(Vector128<double> a, Vector128<double> b) => a - b;

    public static Vector128<float> Apply(Vector128<float> a, Vector128<float> b) => a - b;
}

internal readonly struct FloatMul : IFloat
{
    public static bool MakesNaN => true;

    public static double Apply(double a, double b) => a * b;

    public static float Apply(float a, float b) => a * b;

    public static Vector128<double> Apply(Vector128<double> a, Vector128<double> b) => a * b;

    public static Vector128<float> Apply(Vector128<float> a, Vector128<float> b) => a * b;
}

internal readonly struct FloatDiv : IFloat
{
    public static bool MakesNaN => true;

    public static double Apply(double a, double b) => a / b;

    public static float Apply(float a, float b) => a / b;

    public static Vector128<double> Apply(Vector128<double> a, Vector128<double> b) => a / b;

    public static Vector128<float> Apply(Vector128<float> a, Vector128<float> b) => a / b;
}

internal readonly struct FloatMin : IFloat
{
    public static bool MakesNaN => false;

    public static double Apply(double a, double b) => a < b ? a : b;

    public static float Apply(float a, float b) => a < b ? a : b;

    public static Vector128<double> Apply(Vector128<double> a, Vector128<double> b) =>
        Vector128.ConditionalSelect(Vector128.LessThan(a, b), a, b);

    public static Vector128<float> Apply(Vector128<float> a, Vector128<float> b) =>
        Vector128.ConditionalSelect(Vector128.LessThan(a, b), a, b);
}

internal readonly struct FloatMax : IFloat
{
    public static bool MakesNaN => false;

    public static double Apply(double a, double b) => a > b ? a : b;

    public static float Apply(float a, float b) => a > b ? a : b;

    public static Vector128<double> Apply(Vector128<double> a, Vector128<double> b) =>
        Vector128.ConditionalSelect(Vector128.GreaterThan(a, b), a, b);

    public static Vector128<float> Apply(Vector128<float> a, Vector128<float> b) =>
        Vector128.ConditionalSelect(Vector128.GreaterThan(a, b), a, b);
}

internal readonly struct FloatSqrt : IFloat
{
    public static bool MakesNaN => true;

    public static double Apply(double a, double b) => Math.Sqrt(b);

    public static float Apply(float a, float b) => MathF.Sqrt(b);

    public static Vector128<double> Apply(Vector128<double> a, Vector128<double> b) => Vector128.Sqrt(b);

    public static Vector128<float> Apply(Vector128<float> a, Vector128<float> b) => Vector128.Sqrt(b);
}

/// <summary>An operation on every element. The square root has one operand: <typeparamref name="TUnary"/> says so.</summary>
internal readonly struct PackedDouble<TFloat, TUnary> : IVector
    where TFloat : struct, IFloat
    where TUnary : struct, IOperandCount
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        Vector128<double> r = TFloat.Apply(a.AsDouble(), b.AsDouble());
        return TFloat.MakesNaN && !Vector128.EqualsAll(r, r) ? Repair(a.AsDouble(), b.AsDouble(), r) : r.AsByte();
    }

    private static Vector128<byte> Repair(Vector128<double> a, Vector128<double> b, Vector128<double> r)
    {
        for (int i = 0; i < 2; i++)
        {
            if (double.IsNaN(r[i]))
            {
                r = r.WithElement(i, SseFloat.NaN(TUnary.IsUnary ? b[i] : a[i], b[i]));
            }
        }

        return r.AsByte();
    }
}

/// <inheritdoc cref="PackedDouble{TFloat, TUnary}"/>
internal readonly struct PackedSingle<TFloat, TUnary> : IVector
    where TFloat : struct, IFloat
    where TUnary : struct, IOperandCount
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        Vector128<float> r = TFloat.Apply(a.AsSingle(), b.AsSingle());
        return TFloat.MakesNaN && !Vector128.EqualsAll(r, r) ? Repair(a.AsSingle(), b.AsSingle(), r) : r.AsByte();
    }

    private static Vector128<byte> Repair(Vector128<float> a, Vector128<float> b, Vector128<float> r)
    {
        for (int i = 0; i < 4; i++)
        {
            if (float.IsNaN(r[i]))
            {
                r = r.WithElement(i, SseFloat.NaN(TUnary.IsUnary ? b[i] : a[i], b[i]));
            }
        }

        return r.AsByte();
    }
}

/// <summary>An operation on the lowest element.</summary>
internal readonly struct ScalarDouble<TFloat, TUnary> : IVector
    where TFloat : struct, IFloat
    where TUnary : struct, IOperandCount
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        double x = a.AsDouble()[0];
        double y = b.AsDouble()[0];
        double r = TFloat.Apply(x, y);
        if (TFloat.MakesNaN && double.IsNaN(r))
        {
            r = SseFloat.NaN(TUnary.IsUnary ? y : x, y);
        }

        return a.AsDouble().WithElement(0, r).AsByte();
    }
}

/// <inheritdoc cref="ScalarDouble{TFloat, TUnary}"/>
internal readonly struct ScalarSingle<TFloat, TUnary> : IVector
    where TFloat : struct, IFloat
    where TUnary : struct, IOperandCount
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        float x = a.AsSingle()[0];
        float y = b.AsSingle()[0];
        float r = TFloat.Apply(x, y);
        if (TFloat.MakesNaN && float.IsNaN(r))
        {
            r = SseFloat.NaN(TUnary.IsUnary ? y : x, y);
        }

        return a.AsSingle().WithElement(0, r).AsByte();
    }
}

/// <summary>Whether an operation uses its second operand only.</summary>
internal interface IOperandCount
{
    static abstract bool IsUnary { get; }
}

internal readonly struct Binary : IOperandCount
{
    public static bool IsUnary => false;
}

internal readonly struct Unary : IOperandCount
{
    public static bool IsUnary => true;
}

// CMPPS and its kin: predicates 0–3, and with bit 2 their complements (SDM vol. 2A, CMPPD, table 3-1).
internal readonly struct CompareDouble : IVectorImmediate
{
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b, byte immediate)
    {
        Vector128<double> x = a.AsDouble();
        Vector128<double> y = b.AsDouble();
        Vector128<byte> r = (
            (immediate & 3) switch
            {
                0 => Vector128.Equals(x, y),
                1 => Vector128.LessThan(x, y),
                2 => Vector128.LessThanOrEqual(x, y),
                _ => ~(Vector128.Equals(x, x) & Vector128.Equals(y, y)),
            }
        ).AsByte();
        return (immediate & 4) != 0 ? ~r : r;
    }
}

internal readonly struct CompareSingle : IVectorImmediate
{
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b, byte immediate)
    {
        Vector128<float> x = a.AsSingle();
        Vector128<float> y = b.AsSingle();
        Vector128<byte> r = (
            (immediate & 3) switch
            {
                0 => Vector128.Equals(x, y),
                1 => Vector128.LessThan(x, y),
                2 => Vector128.LessThanOrEqual(x, y),
                _ => ~(Vector128.Equals(x, x) & Vector128.Equals(y, y)),
            }
        ).AsByte();
        return (immediate & 4) != 0 ? ~r : r;
    }
}

internal readonly struct CompareScalarDouble : IVectorImmediate
{
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b, byte immediate) =>
        Movsd.Apply(a, CompareDouble.Apply(a, b, immediate));
}

internal readonly struct CompareScalarSingle : IVectorImmediate
{
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b, byte immediate) =>
        Movss.Apply(a, CompareSingle.Apply(a, b, immediate));
}

// RCPPS and RSQRTPS may be off by 1.5 · 2⁻¹²; here they are exact to rounding, with denormals as zero as the SDM has it.
internal readonly struct Rcpps : IVector
{
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        Vector128<float> r = default;
        for (int i = 0; i < 4; i++)
        {
            r = r.WithElement(i, Of(b.AsSingle()[i]));
        }

        return r.AsByte();
    }

    public static float Of(float v)
    {
        v = Flush(v);
        return float.IsNaN(v) ? SseFloat.NaN(v, v) : Flush(1 / v);
    }

    public static float Flush(float v) => float.IsSubnormal(v) ? float.CopySign(0, v) : v;
}

internal readonly struct Rcpss : IVector
{
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        a.AsSingle().WithElement(0, Rcpps.Of(b.AsSingle()[0])).AsByte();
}

internal readonly struct Rsqrtps : IVector
{
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        Vector128<float> r = default;
        for (int i = 0; i < 4; i++)
        {
            r = r.WithElement(i, Of(b.AsSingle()[i]));
        }

        return r.AsByte();
    }

    public static float Of(float v)
    {
        v = Rcpps.Flush(v);
        float r = (float)(1 / Math.Sqrt(v));
        return float.IsNaN(r) ? SseFloat.NaN(v, v) : r;
    }
}

internal readonly struct Rsqrtss : IVector
{
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        a.AsSingle().WithElement(0, Rsqrtps.Of(b.AsSingle()[0])).AsByte();
}

internal readonly struct Cvtdq2ps : IVector
{
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.ConvertToSingle(b.AsInt32()).AsByte();
}

internal readonly struct Cvtps2dq : IVector
{
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        Vector128<float> v = b.AsSingle();
        return Vector128.Create(Of(v[0]), Of(v[1]), Of(v[2]), Of(v[3])).AsByte();
    }

    private static int Of(float v) => SseFloat.ToInt32(SseFloat.Round(v));
}

internal readonly struct Cvttps2dq : IVector
{
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        Vector128<float> v = b.AsSingle();
        return Vector128
            .Create(SseFloat.ToInt32(v[0]), SseFloat.ToInt32(v[1]), SseFloat.ToInt32(v[2]), SseFloat.ToInt32(v[3]))
            .AsByte();
    }
}

internal readonly struct Cvtdq2pd : IVector
{
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.Create((double)b.AsInt32()[0], b.AsInt32()[1]).AsByte();
}

internal readonly struct Cvtpd2dq : IVector
{
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        Vector128<double> v = b.AsDouble();
        return Vector128
            .Create(SseFloat.ToInt32(SseFloat.Round(v[0])), SseFloat.ToInt32(SseFloat.Round(v[1])), 0, 0)
            .AsByte();
    }
}

internal readonly struct Cvttpd2dq : IVector
{
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b)
    {
        Vector128<double> v = b.AsDouble();
        return Vector128.Create(SseFloat.ToInt32(v[0]), SseFloat.ToInt32(v[1]), 0, 0).AsByte();
    }
}

internal readonly struct Cvtps2pd : IVector
{
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.Create(SseFloat.ToDouble(b.AsSingle()[0]), SseFloat.ToDouble(b.AsSingle()[1])).AsByte();
}

internal readonly struct Cvtpd2ps : IVector
{
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        Vector128.Create(SseFloat.ToSingle(b.AsDouble()[0]), SseFloat.ToSingle(b.AsDouble()[1]), 0, 0).AsByte();
}

internal readonly struct Cvtss2sd : IVector
{
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        a.AsDouble().WithElement(0, SseFloat.ToDouble(b.AsSingle()[0])).AsByte();
}

internal readonly struct Cvtsd2ss : IVector
{
    public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) =>
        a.AsSingle().WithElement(0, SseFloat.ToSingle(b.AsDouble()[0])).AsByte();
}
