using System.Buffers.Binary;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// Packed arithmetic of SSE2: four pairs of logistic maps x ← r·x·(1 − x) in double precision, square roots and quotients of
/// them, and the bits of all that in a hash by integer instructions.
/// </summary>
public sealed class ComputeSse2 : CodeKernel
{
    /// <summary>Turns of the loop in a repetition.</summary>
    internal const int Turns = 48;

    /// <summary>Pairs of maps, each in an XMM register: the first ones.</summary>
    internal const int Pairs = 4;

    /// <summary>Bits by which the hash is rotated in each turn.</summary>
    internal const int Rotation = 13;

    /// <summary>r of the two lanes: where the map is chaotic, so that no error is ever forgotten.</summary>
    internal static readonly double[] R = [3.99, 3.97];

    private const int One = 0;
    private const int RateOffset = 16;
    private const int First = 32;
    private const int Hash = First + (16 * Pairs);

    private static readonly AssemblerRegisterXMM[] Maps = [xmm0, xmm1, xmm2, xmm3];

    /// <inheritdoc/>
    public override string Id => "compute-sse2";

    /// <inheritdoc/>
    public override string Description =>
        "packed SSE2 arithmetic, no sensitive instruction; the same program for every k";

    /// <inheritdoc/>
    public override bool NeedsVectorUnit => true;

    /// <inheritdoc/>
    public override int InstructionsPerRepetition => 1_539;

    /// <summary>Where a map begins.</summary>
    internal static double FirstValue(int pair, int lane) => 0.1 + (0.125 * pair) + (0.0625 * lane);

    /// <inheritdoc/>
    private protected override byte[] InitialData()
    {
        byte[] data = new byte[Hash + 16];
        for (int lane = 0; lane < 2; lane++)
        {
            BinaryPrimitives.WriteDoubleLittleEndian(data.AsSpan(One + (8 * lane)), 1.0);
            BinaryPrimitives.WriteDoubleLittleEndian(data.AsSpan(RateOffset + (8 * lane)), R[lane]);
            for (int pair = 0; pair < Pairs; pair++)
            {
                int at = First + (16 * pair) + (8 * lane);
                BinaryPrimitives.WriteDoubleLittleEndian(data.AsSpan(at), FirstValue(pair, lane));
            }
        }

        return data;
    }

    /// <summary>Loads the maps into xmm0 to xmm3, 1 into xmm4, r into xmm5 and 0, the first hash, into xmm6.</summary>
    private protected override void EmitSetup(Assembler a, Label[] targets)
    {
        for (int pair = 0; pair < Pairs; pair++)
        {
            a.movapd(Maps[pair], __[r14 + First + (16 * pair)]);
        }

        a.movapd(xmm4, __[r14 + One]);
        a.movapd(xmm5, __[r14 + RateOffset]);
        a.pxor(xmm6, xmm6);
    }

    /// <summary>Keeps xmm0 to xmm6; clobbers rcx, flags and xmm7 to xmm9.</summary>
    private protected override void EmitRepetition(Assembler a, Label[] targets)
    {
        Label next = a.CreateLabel();
        a.mov(ecx, Turns);
        a.Label(ref next);
        foreach (AssemblerRegisterXMM x in Maps)
        {
            a.movapd(xmm7, xmm4);
            a.subpd(xmm7, x);
            a.mulpd(x, xmm5);
            a.mulpd(x, xmm7);
        }

        // Of the first pair the square root, of the second its quotient by the third plus 1, into the hash with the fourth.
        a.sqrtpd(xmm7, xmm0);
        a.movapd(xmm8, xmm2);
        a.addpd(xmm8, xmm4);
        a.movapd(xmm9, xmm1);
        a.divpd(xmm9, xmm8);
        a.paddq(xmm6, xmm7);
        a.movdqa(xmm7, xmm6);
        a.psllq(xmm6, Rotation);
        a.psrlq(xmm7, 64 - Rotation);
        a.por(xmm6, xmm7);
        a.pxor(xmm6, xmm9);
        a.paddq(xmm6, xmm3);
        a.pmuludq(xmm8, xmm3); // the lower halves of the bits
        a.paddq(xmm6, xmm8);
        a.dec(ecx);
        a.jnz(next);
    }

    /// <summary>The hash and the maps.</summary>
    private protected override void EmitFold(Assembler a)
    {
        a.movdqa(__[r14 + Hash], xmm6);
        for (int pair = 0; pair < Pairs; pair++)
        {
            a.movapd(__[r14 + First + (16 * pair)], Maps[pair]);
        }

        FoldMemory(a, First, 2 * (Pairs + 1));
    }
}
