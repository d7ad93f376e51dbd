using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>Fibonacci numbers by recursion: calls and returns, deeper than they are far apart.</summary>
public sealed class CallReturn : CodeKernel
{
    /// <summary>Whose number each repetition computes, with 1,219 calls.</summary>
    internal const int Argument = 14;

    /// <summary>Bits by which the sum is rotated after each repetition.</summary>
    internal const int Rotation = 5;

    /// <inheritdoc/>
    public override string Id => "call-return";

    /// <inheritdoc/>
    public override string Description =>
        "recursive Fibonacci numbers, no sensitive instruction; the same program for every k";

    /// <inheritdoc/>
    public override int InstructionsPerRepetition => 10_363;

    /// <summary>The function.</summary>
    private protected override int Targets => 1;

    /// <summary>Nothing but its stack.</summary>
    private protected override byte[] InitialData() => new byte[8];

    /// <summary>The sum in r12 begins with 0.</summary>
    private protected override void EmitSetup(Assembler a, Label[] targets) => a.xor(r12d, r12d);

    /// <summary>Keeps the sum in r12; clobbers rax, rdi and flags.</summary>
    private protected override void EmitRepetition(Assembler a, Label[] targets)
    {
        a.mov(edi, Argument);
        a.call(targets[0]);
        a.add(r12, rax);
        a.rol(r12, Rotation);
    }

    /// <summary>eax = number of edi. Clobbers rdi and flags.</summary>
    private protected override void EmitFunctions(Assembler a, Label[] targets)
    {
        Label leaf = a.CreateLabel();
        a.Label(ref targets[0]);
        a.cmp(edi, 2);
        a.jb(leaf);
        a.push(rbx);
        a.push(rdi);
        a.dec(edi);
        a.call(targets[0]);
        a.mov(ebx, eax);
        a.pop(rdi);
        a.sub(edi, 2);
        a.call(targets[0]);
        a.add(eax, ebx);
        a.pop(rbx);
        a.ret();
        a.Label(ref leaf);
        a.mov(eax, edi);
        a.ret();
    }

    /// <inheritdoc/>
    private protected override void EmitFold(Assembler a) => Fold(a, r12);
}
