using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// c[i] = a[i] + 3·b[i], 8 bytes at a time, over arrays of 512 KiB each: more than a second-level cache holds of today's CPUs.
/// A repetition does 2 KiB of each array and goes on where the one before has ended.
/// </summary>
public sealed class ComputeStream : CodeKernel
{
    /// <summary>Bytes of each array: a, b and c, one behind the other.</summary>
    internal const int ArrayBytes = 512 << 10;

    /// <summary>Bytes of each array that a repetition does.</summary>
    internal const int ChunkBytes = 2 << 10;

    private static readonly Lazy<byte[]> Arrays = new(() =>
    {
        byte[] data = new byte[3 * ArrayBytes];
        new KernelRandom(3).Fill(data.AsSpan(0, 2 * ArrayBytes));
        return data;
    });

    /// <inheritdoc/>
    public override string Id => "compute-stream";

    /// <inheritdoc/>
    public override string Description =>
        "streams through 1.5 MiB of memory, no sensitive instruction; the same program for every k";

    /// <inheritdoc/>
    public override int InstructionsPerRepetition => 2_052;

    /// <inheritdoc/>
    private protected override byte[] InitialData() => Arrays.Value;

    /// <summary>The position in r12 and the sum of all results in r8 begin with 0.</summary>
    private protected override void EmitSetup(Assembler a, Label[] targets)
    {
        a.xor(r12d, r12d);
        a.xor(r8d, r8d);
    }

    /// <summary>Keeps the position in r12 and the sum in r8; clobbers rax, r9 and flags.</summary>
    private protected override void EmitRepetition(Assembler a, Label[] targets)
    {
        Label next = a.CreateLabel();
        a.lea(r9, __[r12 + ChunkBytes]);
        a.Label(ref next);
        a.mov(rax, __[r14 + r12 + ArrayBytes]);
        a.lea(rax, __[rax + (rax * 2)]);
        a.add(rax, __[r14 + r12]);
        a.mov(__[r14 + r12 + (2 * ArrayBytes)], rax);
        a.add(r8, rax);
        a.add(r12, 8);
        a.cmp(r12, r9);
        a.jne(next);
        a.and(r12d, ArrayBytes - 1);
    }

    /// <summary>Of c the first chunk only, to take no longer than the units: a test looks at all of it.</summary>
    private protected override void EmitFold(Assembler a)
    {
        Fold(a, r8);
        Fold(a, r12);
        FoldMemory(a, 2 * ArrayBytes, ChunkBytes / 8);
    }
}
