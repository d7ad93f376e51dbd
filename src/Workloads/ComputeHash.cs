using System.Buffers.Binary;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// SHA-256 of a message of 36 bytes, the digest and the CRC-32 of the repetition before, and CRC-32 of 512 bytes, the new
/// digest and 480 constant ones: rotations, additions and table look-ups in long straight lines and short loops.
/// </summary>
/// <remarks>SHA-256 as in FIPS 180-4, sections 4.1.2, 5.1.1 and 6.2; CRC-32 reflected with polynomial 0x04C11DB7, as in ISO/IEC/IEEE 8802-3.</remarks>
public sealed class ComputeHash : CodeKernel
{
    /// <summary>Message schedule, 64 doublewords. The padding of the message stands in it from the start.</summary>
    internal const int Schedule = 0;

    /// <summary>The round constants.</summary>
    internal const int RoundConstants = 0x100;

    /// <summary>What the CRC is taken of; the digest is its beginning.</summary>
    internal const int Buffer = 0x200;

    /// <summary>Bytes of it.</summary>
    internal const int BufferBytes = 512;

    /// <summary>Table of the CRC, 256 doublewords.</summary>
    internal const int CrcTable = 0x400;

    /// <summary>CRC of the repetition before, a doubleword; 0 at first.</summary>
    internal const int Crc = 0x800;

    /// <summary>Bytes of all data.</summary>
    internal const int DataBytes = 0x808;

    private const int MessageBytes = 36;
    private const uint ReflectedPolynomial = 0xEDB8_8320;

    // FIPS 180-4, 4.2.2 and 5.3.3: fractions of the cube roots of the first 64 primes, and of the square roots of the first 8.
    private static readonly uint[] Constants = [.. Primes(64).Select(prime => Fraction(prime, cubic: true))];
    private static readonly uint[] InitialHash = [.. Primes(8).Select(prime => Fraction(prime, cubic: false))];

    /// <inheritdoc/>
    public override string Id => "compute-hash";

    /// <inheritdoc/>
    public override string Description => "SHA-256 and CRC-32, no sensitive instruction; the same program for every k";

    /// <inheritdoc/>
    public override int InstructionsPerRepetition => 7_275;

    /// <inheritdoc/>
    private protected override byte[] InitialData()
    {
        byte[] data = new byte[DataBytes];
        Write(data, Schedule + (4 * 9), 0x8000_0000);
        Write(data, Schedule + (4 * 15), MessageBytes * 8);
        for (int i = 0; i < 64; i++)
        {
            Write(data, RoundConstants + (4 * i), Constants[i]);
        }

        new KernelRandom(1).Fill(data.AsSpan(Buffer + 32, BufferBytes - 32));
        for (uint i = 0; i < 256; i++)
        {
            uint entry = i;
            for (int bit = 0; bit < 8; bit++)
            {
                entry = (entry >> 1) ^ ((entry & 1) * ReflectedPolynomial);
            }

            Write(data, CrcTable + (int)(4 * i), entry);
        }

        return data;
    }

    /// <summary>Clobbers rax to rdi, r8 to r13 and flags; its state is in memory.</summary>
    private protected override void EmitRepetition(Assembler a, Label[] targets)
    {
        for (int i = 0; i < 8; i++)
        {
            a.mov(eax, __dword_ptr[r14 + Buffer + (4 * i)]);
            a.bswap(eax);
            a.mov(__[r14 + Schedule + (4 * i)], eax);
        }

        a.mov(eax, __dword_ptr[r14 + Crc]);
        a.bswap(eax);
        a.mov(__[r14 + Schedule + (4 * 8)], eax);
        EmitSchedule(a);
        EmitRounds(a);
        EmitCrc(a);
    }

    /// <inheritdoc/>
    private protected override void EmitFold(Assembler a)
    {
        FoldMemory(a, Buffer, 4);
        FoldMemory(a, Crc, 1);
    }

    // W[t] = s1(W[t−2]) + W[t−7] + s0(W[t−15]) + W[t−16]. Clobbers rax, rbx, rcx, rdx and flags.
    private static void EmitSchedule(Assembler a)
    {
        Label next = a.CreateLabel();
        a.mov(ecx, 16);
        a.Label(ref next);
        a.mov(eax, __dword_ptr[r14 + (rcx * 4) + Schedule - (4 * 15)]);
        a.mov(edx, eax);
        a.mov(ebx, eax);
        a.ror(eax, 7);
        a.ror(edx, 18);
        a.shr(ebx, 3);
        a.xor(eax, edx);
        a.xor(eax, ebx);
        a.mov(edx, __dword_ptr[r14 + (rcx * 4) + Schedule - (4 * 2)]);
        a.mov(ebx, edx);
        a.mov(esi, edx);
        a.ror(edx, 17);
        a.ror(ebx, 19);
        a.shr(esi, 10);
        a.xor(edx, ebx);
        a.xor(edx, esi);
        a.add(eax, edx);
        a.add(eax, __dword_ptr[r14 + (rcx * 4) + Schedule - (4 * 7)]);
        a.add(eax, __dword_ptr[r14 + (rcx * 4) + Schedule - (4 * 16)]);
        a.mov(__[r14 + (rcx * 4) + Schedule], eax);
        a.inc(ecx);
        a.cmp(ecx, 64);
        a.jne(next);
    }

    // Eight rounds in line, eight times: the variables have come round to their registers then.
    private static void EmitRounds(Assembler a)
    {
        AssemblerRegister32[] v = [eax, ebx, ecx, edx, esi, edi, r8d, r9d];
        for (int i = 0; i < 8; i++)
        {
            a.mov(v[i], InitialHash[i]);
        }

        Label eight = a.CreateLabel();
        a.xor(r13d, r13d);
        a.Label(ref eight);
        for (int round = 0; round < 8; round++)
        {
            EmitRound(a, round, [.. Enumerable.Range(0, 8).Select(i => v[(i - round) & 7])]);
        }

        a.add(r13d, 32);
        a.cmp(r13d, 256);
        a.jne(eight);
        for (int i = 0; i < 8; i++)
        {
            a.add(v[i], InitialHash[i]);
            a.bswap(v[i]);
            a.mov(__[r14 + Buffer + (4 * i)], v[i]);
        }
    }

    // v are the variables a to h of the standard; h becomes the next round's a. Clobbers r10, r11, r12 and flags.
    private static void EmitRound(Assembler a, int round, AssemblerRegister32[] v)
    {
        a.mov(r10d, v[4]);
        a.ror(r10d, 6);
        a.mov(r11d, v[4]);
        a.ror(r11d, 11);
        a.xor(r10d, r11d);
        a.ror(r11d, 14);
        a.xor(r10d, r11d);
        a.mov(r11d, v[5]);
        a.xor(r11d, v[6]);
        a.and(r11d, v[4]);
        a.xor(r11d, v[6]);
        a.add(v[7], r10d);
        a.add(v[7], r11d);
        a.add(v[7], __dword_ptr[r14 + r13 + Schedule + (4 * round)]);
        a.add(v[7], __dword_ptr[r14 + r13 + RoundConstants + (4 * round)]);
        a.add(v[3], v[7]);
        a.mov(r10d, v[0]);
        a.ror(r10d, 2);
        a.mov(r11d, v[0]);
        a.ror(r11d, 13);
        a.xor(r10d, r11d);
        a.ror(r11d, 9);
        a.xor(r10d, r11d);
        a.mov(r11d, v[0]);
        a.mov(r12d, v[0]);
        a.and(r11d, v[1]);
        a.or(r12d, v[1]);
        a.and(r12d, v[2]);
        a.or(r11d, r12d);
        a.add(v[7], r10d);
        a.add(v[7], r11d);
    }

    // Clobbers rax, rbx, rcx, rdx and flags.
    private static void EmitCrc(Assembler a)
    {
        Label next = a.CreateLabel();
        a.mov(eax, -1);
        a.xor(ecx, ecx);
        a.Label(ref next);
        a.movzx(edx, __byte_ptr[r14 + rcx + Buffer]);
        a.movzx(ebx, al);
        a.xor(edx, ebx);
        a.shr(eax, 8);
        a.xor(eax, __dword_ptr[r14 + (rdx * 4) + CrcTable]);
        a.inc(ecx);
        a.cmp(ecx, BufferBytes);
        a.jne(next);
        a.not(eax);
        a.mov(__[r14 + Crc], eax);
    }

    private static IEnumerable<uint> Primes(int count) =>
        Enumerable
            .Range(2, int.MaxValue - 2)
            .Where(n => Enumerable.Range(2, n - 2).TakeWhile(d => d * d <= n).All(d => n % d != 0))
            .Select(n => (uint)n)
            .Take(count);

    // The first 32 bits of the fraction of a root, in whole numbers: root of n·2^96 or n·2^64 by bisection.
    private static uint Fraction(uint n, bool cubic)
    {
        UInt128 target = (UInt128)n << (cubic ? 96 : 64);
        UInt128 root = 0;
        for (int bit = 36; bit >= 0; bit--)
        {
            UInt128 larger = root | (UInt128.One << bit);
            root = larger * larger * (cubic ? larger : 1) <= target ? larger : root;
        }

        return (uint)root;
    }

    private static void Write(byte[] data, int offset, uint value) =>
        BinaryPrimitives.WriteUInt32LittleEndian(data.AsSpan(offset), value);
}
