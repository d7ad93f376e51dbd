using System.Numerics;
using System.Runtime.InteropServices;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>The blocks in which guests read and write the disk, what they make of those they read, and what they write.</summary>
public static class DiskBlock
{
    /// <summary>Bytes of a block.</summary>
    public const int Bytes = 4096;

    /// <summary>Sectors of a block.</summary>
    public const int Sectors = Bytes / 512;

    private const int Words = Bytes / sizeof(ulong);
    private const int WordsPerTurn = 8;
    private const ulong PatternFactor = 0x9E37_79B9_7F4A_7C15; // odd: no two words of a disk are alike

    /// <summary>What a checksum becomes by a block: for each quadword, rotated left by one and the quadword added.</summary>
    public static ulong Fold(ulong checksum, ReadOnlySpan<byte> block)
    {
        foreach (ulong word in MemoryMarshal.Cast<byte, ulong>(block))
        {
            checksum = BitConverter.IsLittleEndian
                ? BitOperations.RotateLeft(checksum, 1) + word
                : throw new PlatformNotSupportedException("guests are little endian");
        }

        return checksum;
    }

    /// <summary>Quadword <paramref name="word"/> of a block that a guest has written.</summary>
    public static ulong Pattern(long block, int word) => (((ulong)block * Words) + (ulong)word + 1) * PatternFactor;

    /// <summary>The same as <see cref="Fold"/>: rsi is the block's address, r10 the checksum. Clobbers rcx, rsi and flags.</summary>
    /// <param name="a">Where to.</param>
    /// <param name="bytes">How many of the block's bytes, a multiple of 64.</param>
    internal static void EmitFold(Assembler a, int bytes = Bytes)
    {
        Label next = a.CreateLabel();
        a.mov(ecx, bytes / (WordsPerTurn * sizeof(ulong)));
        a.Label(ref next);
        for (int i = 0; i < WordsPerTurn; i++)
        {
            a.rol(r10, 1);
            a.add(r10, __[rsi + (i * sizeof(ulong))]);
        }

        a.add(rsi, WordsPerTurn * sizeof(ulong));
        a.dec(ecx);
        a.jne(next);
    }

    /// <summary>
    /// Fills a block with its <see cref="Pattern"/>: rsi is its address, rdi its number. Clobbers rax, rcx, rdx, r8 and flags.
    /// </summary>
    internal static void EmitFill(Assembler a)
    {
        Label next = a.CreateLabel();
        a.mov(rax, PatternFactor);
        a.mov(rdx, rdi);
        a.shl(rdx, 9); // 512 words a block
        a.inc(rdx);
        a.xor(ecx, ecx);
        a.Label(ref next);
        a.mov(r8, rdx);
        a.imul(r8, rax);
        a.mov(__[rsi + (rcx * 8)], r8);
        a.inc(rdx);
        a.inc(ecx);
        a.cmp(ecx, Words);
        a.jne(next);
    }
}
