using System.Buffers.Binary;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// An interpreter of byte code with 16 variables: one dispatch loop, an indirect jump through a table for every operation. The
/// program it interprets is <see cref="Program"/>; its path depends on a counter only, so every repetition executes alike.
/// </summary>
public sealed class ComputeBytecode : CodeKernel
{
    /// <summary>The variables, a quadword each.</summary>
    internal const int Variables = 0;

    /// <summary>Variable of the generator's state.</summary>
    internal const int State = 1;

    /// <summary>Variable of the accumulated result.</summary>
    internal const int Accumulated = 3;

    /// <summary>Value of the generator at first.</summary>
    internal const ulong FirstState = 0x2545_F491_4F6C_DD1D;

    /// <summary>What the accumulated result is multiplied by.</summary>
    internal const ulong Factor = 0xD134_2543_DE82_EF95;

    /// <summary>Turns of the program's loop.</summary>
    internal const int Turns = 24;

    private const int VariableCount = 16;
    private const int Handlers = 0x100;
    private const int ProgramCode = 0x200;
    private const int OperationBytes = 4;
    private const int Multiplier = 5;

    private enum ByteCode : byte
    {
        End,
        LoadImmediate,
        Move,
        Add,
        Subtract,
        Xor,
        Or,
        Multiply,
        AndImmediate,
        ShiftLeft,
        ShiftRight,
        Decrement,
        JumpIfNotZero,
    }

    private static readonly (ByteCode ByteCode, byte Destination, byte Source, byte Third)[] Program =
    [
        (ByteCode.LoadImmediate, 0, Turns, 0),
        (ByteCode.ShiftLeft, 2, State, 13), // xorshift64: Marsaglia 2003
        (ByteCode.Xor, State, State, 2),
        (ByteCode.ShiftRight, 2, State, 7),
        (ByteCode.Xor, State, State, 2),
        (ByteCode.ShiftLeft, 2, State, 17),
        (ByteCode.Xor, State, State, 2),
        (ByteCode.Add, Accumulated, Accumulated, State),
        (ByteCode.AndImmediate, 4, 0, 3),
        (ByteCode.JumpIfNotZero, 4, 11, 0),
        (ByteCode.Multiply, Accumulated, Accumulated, Multiplier),
        (ByteCode.Move, 6, Accumulated, 0),
        (ByteCode.Or, 7, State, 6),
        (ByteCode.Subtract, Accumulated, Accumulated, 7),
        (ByteCode.Decrement, 0, 0, 0),
        (ByteCode.JumpIfNotZero, 0, 1, 0),
        (ByteCode.End, 0, 0, 0),
    ];

    /// <inheritdoc/>
    public override string Id => "compute-bytecode";

    /// <inheritdoc/>
    public override string Description =>
        "an interpreter of byte code, an indirect jump an operation, no sensitive instruction; the same program for every k";

    /// <inheritdoc/>
    public override int InstructionsPerRepetition => 4_111;

    /// <inheritdoc/>
    private protected override byte[] InitialData()
    {
        byte[] data = new byte[ProgramCode + (OperationBytes * Program.Length)];
        BinaryPrimitives.WriteUInt64LittleEndian(data.AsSpan(Variables + (8 * State)), FirstState);
        BinaryPrimitives.WriteUInt64LittleEndian(data.AsSpan(Variables + (8 * Multiplier)), Factor);
        for (int i = 0; i < Program.Length; i++)
        {
            (ByteCode operation, byte destination, byte source, byte third) = Program[i];
            byte[] encoded = [(byte)operation, destination, source, third];
            encoded.CopyTo(data, ProgramCode + (OperationBytes * i));
        }

        return data;
    }

    /// <summary>The handlers, by operation.</summary>
    private protected override int Targets => Enum.GetValues<ByteCode>().Length;

    /// <summary>Writes the table: the guest knows where its handlers are. Clobbers rax.</summary>
    private protected override void EmitSetup(Assembler a, Label[] targets)
    {
        for (int i = 0; i < targets.Length; i++)
        {
            a.lea(rax, __[targets[i]]);
            a.mov(__[r14 + Handlers + (8 * i)], rax);
        }
    }

    /// <summary>Clobbers rax to rdi and flags.</summary>
    private protected override void EmitRepetition(Assembler a, Label[] targets)
    {
        Label dispatch = a.CreateLabel("dispatch");
        a.lea(rsi, __[r14 + ProgramCode]);
        a.Label(ref dispatch);
        a.mov(eax, __dword_ptr[rsi]);
        a.add(rsi, OperationBytes);
        a.movzx(ecx, al);
        a.movzx(edx, ah);
        a.shr(eax, 16);
        a.movzx(edi, al);
        a.shr(eax, 8);
        a.jmp(__qword_ptr[r14 + (rcx * 8) + Handlers]);
        foreach (ByteCode operation in Enum.GetValues<ByteCode>()[1..])
        {
            a.Label(ref targets[(int)operation]);
            EmitHandler(a, operation, dispatch);
            a.jmp(dispatch);
        }

        a.Label(ref targets[(int)ByteCode.End]);
    }

    /// <inheritdoc/>
    private protected override void EmitFold(Assembler a) => FoldMemory(a, Variables, VariableCount);

    // Destination in rdx, source in rdi, third in rax. Clobbers rbx, rcx and flags.
    private static void EmitHandler(Assembler a, ByteCode operation, Label dispatch)
    {
        AssemblerMemoryOperand destination = __qword_ptr[r14 + (rdx * 8) + Variables];
        AssemblerMemoryOperand third = __qword_ptr[r14 + (rax * 8) + Variables];
        switch (operation)
        {
            case ByteCode.LoadImmediate:
                a.mov(destination, rdi);
                return;
            case ByteCode.Decrement:
                a.dec(destination);
                return;
            case ByteCode.JumpIfNotZero:
                a.cmp(destination, 0);
                a.je(dispatch);
                a.lea(rsi, __[r14 + (rdi * OperationBytes) + ProgramCode]);
                return;
        }

        a.mov(rbx, __[r14 + (rdi * 8) + Variables]);
        switch (operation)
        {
            case ByteCode.Add:
                a.add(rbx, third);
                break;
            case ByteCode.Subtract:
                a.sub(rbx, third);
                break;
            case ByteCode.Xor:
                a.xor(rbx, third);
                break;
            case ByteCode.Or:
                a.or(rbx, third);
                break;
            case ByteCode.Multiply:
                a.imul(rbx, third);
                break;
            case ByteCode.AndImmediate:
                a.and(rbx, rax);
                break;
            case ByteCode.ShiftLeft:
                a.mov(ecx, eax);
                a.shl(rbx, cl);
                break;
            case ByteCode.ShiftRight:
                a.mov(ecx, eax);
                a.shr(rbx, cl);
                break;
        }

        a.mov(destination, rbx);
    }
}
