using System.Buffers.Binary;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// A walk over a linked list that adds up its values and leaves the sums there, a product of 8×8 matrices of 32-bit integers,
/// and a state machine that counts words and numbers in a text: loads that wait for one another, nested loops, branches by data.
/// </summary>
public sealed class ComputeMix : CodeKernel
{
    /// <summary>The list's nodes, 16 bytes each: address of the next, then a doubleword.</summary>
    internal const int List = 0;

    /// <summary>Nodes.</summary>
    internal const int Nodes = 128;

    /// <summary>Matrix A, 64 doublewords by rows; after each product the product plus the list's sum.</summary>
    internal const int MatrixA = 0x800;

    /// <summary>Matrix B, constant.</summary>
    internal const int MatrixB = 0x900;

    /// <summary>Their product.</summary>
    internal const int Product = 0xA00;

    /// <summary>The text.</summary>
    internal const int Text = 0xB00;

    /// <summary>Bytes of it.</summary>
    internal const int TextBytes = 256;

    /// <summary>Bytes of all data.</summary>
    internal const int DataBytes = 0xC00;

    /// <summary>Where the hash over the state machine's states begins.</summary>
    internal const int HashSeed = 17;

    private const int Size = 8;
    private const int RowBytes = Size * 4;
    private const int InWord = 1;
    private const int InNumber = 2;

    /// <inheritdoc/>
    public override string Id => "compute-mix";

    /// <inheritdoc/>
    public override string Description =>
        "a list, a matrix product and a state machine, no sensitive instruction; the same program for every k";

    /// <inheritdoc/>
    public override int InstructionsPerRepetition => 8_910;

    /// <summary>The node that follows: all of them in one cycle (Hull and Dobell's theorem).</summary>
    internal static int NextNode(int node) => ((5 * node) + 43) % Nodes;

    /// <inheritdoc/>
    private protected override byte[] InitialData()
    {
        const string alphabet = "abcdefgh XYZ 0123 ,.";
        byte[] data = new byte[DataBytes];
        var random = new KernelRandom(2);
        for (int node = 0; node < Nodes; node++)
        {
            Span<byte> at = data.AsSpan(List + (16 * node));
            BinaryPrimitives.WriteUInt64LittleEndian(at, Data + List + (16 * (ulong)NextNode(node)));
            BinaryPrimitives.WriteUInt32LittleEndian(at[8..], random.Next());
        }

        random.Fill(data.AsSpan(MatrixA, 2 * Size * RowBytes));
        foreach (ref byte letter in data.AsSpan(Text, TextBytes))
        {
            letter = (byte)alphabet[(int)(random.Next() % alphabet.Length)];
        }

        return data;
    }

    /// <summary>The sum in ebx and the hash of all repetitions in r12 begin with 0.</summary>
    private protected override void EmitSetup(Assembler a, Label[] targets)
    {
        a.xor(ebx, ebx);
        a.xor(r12d, r12d);
    }

    /// <summary>Keeps the sum in ebx and the hash of all repetitions in r12; clobbers rax, rcx, rdx, rsi, rdi, r8 to r11 and flags.</summary>
    private protected override void EmitRepetition(Assembler a, Label[] targets)
    {
        EmitList(a);
        EmitProduct(a);
        EmitStateMachine(a);
        a.add(r12, rax);
        a.rol(r12, 7);
        a.add(r12, rdi);
        a.mov(eax, __dword_ptr[r14 + Product + (Size * RowBytes) - 4]);
        a.xor(r12, rax);
        a.add(r12, rbx);
    }

    /// <inheritdoc/>
    private protected override void EmitFold(Assembler a)
    {
        Fold(a, r12);
        FoldMemory(a, List, Nodes * 2);
        FoldMemory(a, MatrixA, Size * RowBytes / 8);
    }

    // Clobbers rcx, rsi and flags.
    private static void EmitList(Assembler a)
    {
        Label walk = a.CreateLabel();
        a.mov(rsi, r14);
        a.mov(ecx, Nodes);
        a.Label(ref walk);
        a.add(ebx, __dword_ptr[rsi + 8]);
        a.mov(__[rsi + 8], ebx);
        a.mov(rsi, __[rsi]);
        a.dec(ecx);
        a.jnz(walk);
    }

    // Clobbers rax, rcx, rdx, rsi, rdi, r8 to r11 and flags.
    private static void EmitProduct(Assembler a)
    {
        Label row = a.CreateLabel();
        Label column = a.CreateLabel();
        Label inner = a.CreateLabel();
        Label sum = a.CreateLabel();
        a.lea(r11, __[r14 + Product]);
        a.lea(rsi, __[r14 + MatrixA]);
        a.mov(r8d, Size);
        a.Label(ref row);
        a.lea(r9, __[r14 + MatrixB]);
        a.mov(r10d, Size);
        a.Label(ref column);
        a.mov(rdi, r9);
        a.xor(eax, eax);
        a.xor(ecx, ecx);
        a.Label(ref inner);
        a.mov(edx, __dword_ptr[rsi + (rcx * 4)]);
        a.imul(edx, __dword_ptr[rdi]);
        a.add(eax, edx);
        a.add(rdi, RowBytes);
        a.inc(ecx);
        a.cmp(ecx, Size);
        a.jne(inner);
        a.mov(__[r11], eax);
        a.add(r11, 4);
        a.add(r9, 4);
        a.dec(r10d);
        a.jnz(column);
        a.add(rsi, RowBytes);
        a.dec(r8d);
        a.jnz(row);

        a.xor(ecx, ecx);
        a.Label(ref sum);
        a.mov(eax, __dword_ptr[r14 + (rcx * 4) + Product]);
        a.add(eax, ebx);
        a.mov(__[r14 + (rcx * 4) + MatrixA], eax);
        a.inc(ecx);
        a.cmp(ecx, Size * Size);
        a.jne(sum);
    }

    // Leaves the hash of the states in eax, the number of words and numbers in edi; clobbers rcx, rdx, r8, r9 and flags.
    private static void EmitStateMachine(Assembler a)
    {
        Label next = a.CreateLabel();
        Label digit = a.CreateLabel();
        Label letter = a.CreateLabel();
        Label joined = a.CreateLabel();
        a.mov(eax, HashSeed);
        a.xor(ecx, ecx);
        a.xor(edx, edx);
        a.xor(edi, edi);
        a.Label(ref next);
        a.movzx(r8d, __byte_ptr[r14 + rcx + Text]);
        a.lea(r9d, __[r8 - '0']);
        a.cmp(r9d, 10);
        a.jb(digit);
        a.or(r8d, 0x20);
        a.lea(r9d, __[r8 - 'a']);
        a.cmp(r9d, 26);
        a.jb(letter);
        a.xor(edx, edx);
        a.jmp(joined);
        a.Label(ref digit);
        a.test(edx, edx); // a digit in a word belongs to the word
        a.jnz(joined);
        a.mov(edx, InNumber);
        a.inc(edi);
        a.jmp(joined);
        a.Label(ref letter);
        a.cmp(edx, InWord);
        a.je(joined);
        a.mov(edx, InWord);
        a.inc(edi);
        a.Label(ref joined);
        a.imul(eax, eax, 31);
        a.add(eax, edx);
        a.inc(ecx);
        a.cmp(ecx, TextBytes);
        a.jne(next);
    }
}
