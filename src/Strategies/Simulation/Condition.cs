using System.Runtime.CompilerServices;

namespace VirtBench.Strategies.Simulation;

/// <summary>One of the sixteen conditions of Jcc, SETcc and CMOVcc (Intel SDM vol. 2, appendix B, table B-10).</summary>
internal unsafe interface ICondition
{
    static abstract bool Holds(Machine* m);
}

internal readonly unsafe struct IfO : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Holds(Machine* m) => m->Of;
}

internal readonly unsafe struct IfNo : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Holds(Machine* m) => !m->Of;
}

internal readonly unsafe struct IfB : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Holds(Machine* m) => m->Cf;
}

internal readonly unsafe struct IfAe : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Holds(Machine* m) => !m->Cf;
}

internal readonly unsafe struct IfE : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Holds(Machine* m) => m->Zf;
}

internal readonly unsafe struct IfNe : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Holds(Machine* m) => !m->Zf;
}

internal readonly unsafe struct IfBe : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Holds(Machine* m) => m->Cf || m->Zf;
}

internal readonly unsafe struct IfA : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Holds(Machine* m) => !m->Cf && !m->Zf;
}

internal readonly unsafe struct IfS : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Holds(Machine* m) => m->Sf;
}

internal readonly unsafe struct IfNs : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Holds(Machine* m) => !m->Sf;
}

internal readonly unsafe struct IfP : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Holds(Machine* m) => m->Pf;
}

internal readonly unsafe struct IfNp : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Holds(Machine* m) => !m->Pf;
}

internal readonly unsafe struct IfL : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Holds(Machine* m) => m->Less;
}

internal readonly unsafe struct IfGe : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Holds(Machine* m) => !m->Less;
}

internal readonly unsafe struct IfLe : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Holds(Machine* m) => m->Zf || m->Less;
}

internal readonly unsafe struct IfG : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Holds(Machine* m) => !m->Zf && !m->Less;
}
