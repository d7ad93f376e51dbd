using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// Indirect calls from one site to sixteen small functions, in a sequence that comes round after so many calls: a short one, which
/// predictors learn, or a long one.
/// </summary>
public sealed class IndirectBranch : CodeKernel
{
    /// <summary>Functions that there are to call.</summary>
    internal const int Functions = 16;

    /// <summary>Calls in a repetition.</summary>
    internal const int Calls = 256;

    /// <summary>Where the sequence lies, a byte a call.</summary>
    internal const int Sequence = 0x100;

    private const int ShortPeriod = 8;
    private const int LongPeriod = 4096;

    private readonly bool _long;

    /// <summary>Chooses the period.</summary>
    /// <param name="longPeriod">4096 calls instead of 8.</param>
    public IndirectBranch(bool longPeriod) => _long = longPeriod;

    /// <summary>Calls until the sequence comes round: a power of two.</summary>
    public int Period => _long ? LongPeriod : ShortPeriod;

    /// <inheritdoc/>
    public override string Id => _long ? "indirect-branch" : "indirect-branch-short";

    /// <inheritdoc/>
    public override string Description =>
        $"indirect calls in a sequence of {Period}, no sensitive instruction; the same program for every k";

    /// <inheritdoc/>
    public override int InstructionsPerRepetition => 2_307;

    /// <summary>The functions.</summary>
    private protected override int Targets => Functions;

    /// <summary>What the function adds to the result.</summary>
    internal static int Addend(int function) => 0x1357_9BD1 * ((2 * function) + 1);

    /// <summary>Bits by which it rotates the result then.</summary>
    internal static int Rotation(int function) => (2 * function) + 1;

    /// <inheritdoc/>
    private protected override byte[] InitialData()
    {
        byte[] data = new byte[Sequence + Period];
        var random = new KernelRandom(4);
        foreach (ref byte function in data.AsSpan(Sequence))
        {
            function = (byte)(random.Next() % Functions);
        }

        return data;
    }

    /// <summary>The position in r12 and the result in rbx begin with 0, the table gets the functions' addresses.</summary>
    private protected override void EmitSetup(Assembler a, Label[] targets)
    {
        for (int i = 0; i < Functions; i++)
        {
            a.lea(rax, __[targets[i]]);
            a.mov(__[r14 + (8 * i)], rax);
        }

        a.xor(r12d, r12d);
        a.xor(ebx, ebx);
    }

    /// <summary>Keeps the position in r12 and the result in rbx; clobbers rax, rcx and flags.</summary>
    private protected override void EmitRepetition(Assembler a, Label[] targets)
    {
        Label next = a.CreateLabel();
        a.mov(ecx, Calls);
        a.Label(ref next);
        a.movzx(eax, __byte_ptr[r14 + r12 + Sequence]);
        a.inc(r12d);
        a.and(r12d, Period - 1);
        a.call(__qword_ptr[r14 + (rax * 8)]);
        a.dec(ecx);
        a.jnz(next);
    }

    /// <summary>Each changes rbx in its own way. Clobbers flags.</summary>
    private protected override void EmitFunctions(Assembler a, Label[] targets)
    {
        for (int i = 0; i < Functions; i++)
        {
            a.Label(ref targets[i]);
            a.add(rbx, Addend(i));
            a.rol(rbx, (byte)Rotation(i));
            a.ret();
        }
    }

    /// <inheritdoc/>
    private protected override void EmitFold(Assembler a)
    {
        Fold(a, rbx);
        Fold(a, r12);
    }
}
