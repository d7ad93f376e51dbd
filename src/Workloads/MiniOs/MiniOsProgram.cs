using System.Text;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// The program that every process runs in ring 3, each with a seed of its own. A round is: grow the heap; warm-up units; units;
/// hand in the checksum; shrink the heap.
/// </summary>
/// <remarks>
/// A unit fills heap pages with generated numbers and adds up those that it finds there, from the pass before or the zeros of
/// a fresh frame; the XMM registers carry part of the sum. So the checksum depends on every page being the process's own, on fresh
/// frames being zeros, and on all registers surviving every interruption, but not on when these come.
/// <para>
/// A unit has <see cref="MiniOs.Slots"/> slots, k of them with a system call. Each prepares its call whether it makes one or not;
/// a SYSCALL left out becomes redundant prefixes of the next instruction. Which call it is goes around in a cycle of
/// seven, so that every slot makes each of them in turn.
/// </para>
/// <para>
/// Registers: rbx generator, r12 checksum, r13 heap, r14 offset in it, ebp place in the cycle of calls, r9 units left, r10 = 0,
/// xmm1 and xmm2 sums, xmm15 the seed. rax, rdx, rdi, rsi and, by SYSCALL, rcx and r11 hold nothing from slot to slot.
/// </para>
/// </remarks>
internal static class MiniOsProgram
{
    /// <summary>Instructions of a slot besides SYSCALL and the filler.</summary>
    public const int SlotInstructions = 5;

    /// <summary>DEC and JNZ of the units loop.</summary>
    public const int UnitControl = 2;

    /// <summary>Instructions of one turn of the filler's loop, DEC and JNZ included.</summary>
    private const int LoopTurn = 22;

    private const int HeapBytes = MiniOs.HeapPages * 4096;

    /// <summary>Eight or so to a page, each in another cache line; every pass comes to the same ones.</summary>
    private const int Stride = 65 * 8;

    /// <summary>The cycle of calls. Each takes the address in RDI, or nothing.</summary>
    private static readonly MiniOsCall[] Cycle =
    [
        MiniOsCall.Ticks,
        MiniOsCall.Yield,
        MiniOsCall.Discard,
        MiniOsCall.Ticks,
        MiniOsCall.Yield,
        MiniOsCall.Discard,
        MiniOsCall.Ticks,
    ];

    // What the process keeps on its stack.
    private const int Number = 0x00;
    private const int Seed = 0x08;
    private const int WarmUp = 0x10;
    private const int Units = 0x18;
    private const int RunTicks = 0x20;
    private const int RestTicks = 0x28;
    private const int Rounds = 0x30;
    private const int UnitsDone = 0x38;
    private const int FrameSize = 0x40;

    /// <summary>Below it, in another page of the stack: a number that is read again after the units.</summary>
    private const int FarBelow = -0x2800;

    private const ulong CycleAddress = MiniOsLayout.Constants;
    private const ulong LineAddress = MiniOsLayout.Constants + 0x40;
    private const string Line = "mini-os: process   checksum ";

    /// <summary>Bytes at <see cref="MiniOsLayout.Constants"/>.</summary>
    public static byte[] ConstantBytes()
    {
        byte[] bytes = new byte[0x40 + Line.Length];
        for (int i = 0; i < Cycle.Length; i++)
        {
            BitConverter.TryWriteBytes(bytes.AsSpan(i * 4), (int)Cycle[i]);
        }

        Encoding.ASCII.GetBytes(Line).CopyTo(bytes, 0x40);
        return bytes;
    }

    /// <summary>Bytes at <see cref="MiniOsLayout.Program"/>, where it is also entered.</summary>
    public static byte[] Assemble(WorkloadOptions options)
    {
        var a = new Assembler(64);
        Label units = a.CreateLabel("units");
        Label misbehave = a.CreateLabel("misbehave");
        EmitRounds(a, units, misbehave);
        EmitUnits(a, units, options);
        EmitMisbehaviour(a, misbehave);
        using var code = new MemoryStream();
        a.Assemble(new StreamCodeWriter(code), MiniOsLayout.Program);
        return code.ToArray();
    }

    /// <summary>rdi number, rsi seed, r8 warm-up units, r9 units, r10 ticks to run for, r11 ticks to rest, rax misbehaviour.</summary>
    private static void EmitRounds(Assembler a, Label units, Label misbehave)
    {
        Label behave = a.CreateLabel();
        Label round = a.CreateLabel();
        Label warm = a.CreateLabel();
        Label measured = a.CreateLabel();
        Label none = a.CreateLabel();
        Label more = a.CreateLabel();
        Label done = a.CreateLabel();

        a.test(eax, eax);
        a.je(behave);
        a.jmp(misbehave);
        a.Label(ref behave);
        a.sub(rsp, FrameSize);
        a.mov(__[rsp + Number], rdi);
        a.mov(__[rsp + Seed], rsi);
        a.mov(__[rsp + WarmUp], r8);
        a.mov(__[rsp + Units], r9);
        a.mov(__[rsp + RunTicks], r10);
        a.mov(__[rsp + RestTicks], r11);
        a.mov(__qword_ptr[rsp + Rounds], 0);
        a.mov(__qword_ptr[rsp + UnitsDone], 0);
        Call(a, MiniOsCall.Sleep); // each another number of ticks: the kernel comes to idle before it is measured

        a.Label(ref round);
        a.mov(edi, (uint)MiniOsLayout.Heap + HeapBytes);
        Call(a, MiniOsCall.Break);
        a.mov(rbx, __[rsp + Seed]);
        a.mov(r12, rbx);
        a.not(r12);
        a.mov(__[rsp + FarBelow], r12);
        a.mov(r13d, (uint)MiniOsLayout.Heap);
        a.xor(r14d, r14d);
        a.xor(ebp, ebp);
        a.xor(r10d, r10d);
        a.movq(xmm15, rbx);
        a.pxor(xmm1, xmm1);
        a.pxor(xmm2, xmm2);

        a.mov(r9, __[rsp + WarmUp]);
        a.test(r9, r9);
        a.je(warm);
        a.call(units);
        a.Label(ref warm);
        a.cmp(__qword_ptr[rsp + Rounds], 0);
        a.jne(measured);
        a.xor(edi, edi);
        a.int3();
        a.Label(ref measured);
        a.mov(r9, __[rsp + Units]);
        a.test(r9, r9);
        a.je(none);
        a.call(units);
        a.Label(ref none);
        a.mov(rdi, __[rsp + Units]);
        a.add(rdi, __[rsp + UnitsDone]);
        a.mov(__[rsp + UnitsDone], rdi);
        a.inc(__qword_ptr[rsp + Rounds]);
        a.cmp(__qword_ptr[rsp + RunTicks], 0);
        a.jne(more);
        a.int3();
        a.Label(ref more);

        FoldIntoChecksum(a);
        a.mov(rdi, r12);
        a.mov(rsi, __[rsp + Units]);
        Call(a, MiniOsCall.Round);
        a.mov(edi, (uint)MiniOsLayout.Heap);
        Call(a, MiniOsCall.Break);
        a.cmp(__qword_ptr[rsp + RunTicks], 0);
        a.je(done);
        a.mov(rdi, __[rsp + RestTicks]);
        Call(a, MiniOsCall.Sleep);
        Call(a, MiniOsCall.Ticks);
        a.cmp(rax, __[rsp + RunTicks]);
        a.jb(round);
        a.mov(rdi, __[rsp + UnitsDone]);
        a.int3();

        a.Label(ref done);
        EmitPrintResult(a);
        a.mov(rdi, r12);
        Call(a, MiniOsCall.Exit);
        a.ud2();
    }

    /// <summary>r12 and all else that the units have left. Clobbers rax and flags.</summary>
    private static void FoldIntoChecksum(Assembler a)
    {
        a.add(r12, __[rsp + FarBelow]);
        foreach (AssemblerRegisterXMM part in (AssemblerRegisterXMM[])[xmm1, xmm2, xmm15])
        {
            a.movq(rax, part);
            a.rol(r12, 17);
            a.xor(r12, rax);
        }
    }

    /// <summary>The line with the process's number and checksum, a byte a call. Clobbers all but r12 and rsp.</summary>
    private static void EmitPrintResult(Assembler a)
    {
        Label text = a.CreateLabel();
        Label digits = a.CreateLabel();
        Label digit = a.CreateLabel();
        Label number = a.CreateLabel();
        a.xor(ebx, ebx);
        a.Label(ref text);
        a.mov(eax, (uint)LineAddress);
        a.movzx(edi, __byte_ptr[rax + rbx]);
        a.cmp(ebx, Line.IndexOf("  ", StringComparison.Ordinal) + 1);
        a.jne(number);
        a.mov(rdi, __[rsp + Number]);
        a.add(edi, '0');
        a.Label(ref number);
        Call(a, MiniOsCall.Write);
        a.inc(ebx);
        a.cmp(ebx, Line.Length);
        a.jne(text);

        a.mov(ebx, 16);
        a.mov(rbp, r12);
        a.Label(ref digits);
        a.rol(rbp, 4);
        a.mov(edi, ebp);
        a.and(edi, 15);
        a.add(edi, '0');
        a.cmp(edi, '9');
        a.jbe(digit);
        a.add(edi, 'a' - '9' - 1);
        a.Label(ref digit);
        Call(a, MiniOsCall.Write);
        a.dec(ebx);
        a.jne(digits);
        a.mov(edi, '\n');
        Call(a, MiniOsCall.Write);
    }

    /// <summary>r9 units, at least one.</summary>
    private static void EmitUnits(Assembler a, Label units, WorkloadOptions options)
    {
        int filler = options.FillerInstructions - UnitControl - (MiniOs.Slots * SlotInstructions);
        a.Label(ref units);
        for (int slot = 0; slot < MiniOs.Slots; slot++)
        {
            a.inc(ebp);
            a.cmp(ebp, Cycle.Length);
            a.cmove(ebp, r10d);
            a.mov(eax, __dword_ptr[(rbp * 4) + (int)CycleAddress]);
            a.lea(rdi, __[r13 + r14]);
            bool calls = SlottedWorkload.HoldsSensitive(slot, MiniOs.Slots, options.TrapsPerUnit);
            if (calls)
            {
                a.syscall();
            }

            int instructions = (int)(((slot + 1L) * filler / MiniOs.Slots) - ((long)slot * filler / MiniOs.Slots));
            EmitFiller(a, instructions, pad: !calls);
        }

        a.dec(r9);
        a.jne(units);
        a.ret();
    }

    /// <summary>Exactly so many instructions. Clobbers rax, rcx, rdx, xmm0 and flags.</summary>
    private static void EmitFiller(Assembler a, int instructions, bool pad)
    {
        if (pad && instructions > 0)
        {
            const byte dataSegment = 0x3E; // means nothing in 64-bit mode
            a.db(dataSegment);
            a.db(dataSegment);
        }

        int turns = (instructions - 1) / LoopTurn;
        if (turns >= 1)
        {
            Label loop = a.CreateLabel();
            a.mov(ecx, turns);
            a.Label(ref loop);
            EmitTurn(a);
            a.dec(ecx);
            a.jne(loop);
            instructions -= 1 + (turns * LoopTurn);
        }

        for (int i = 0; i < instructions; i++)
        {
            switch (i % 3)
            {
                case 0:
                    a.add(r12, rbx);
                    break;
                case 1:
                    a.rol(r12, 7);
                    break;
                default:
                    a.xor(r12, rbx);
                    break;
            }
        }
    }

    /// <summary>The generator is Marsaglia's xorshift64 (Journal of Statistical Software 8(14), 2003), triple 13, 7, 17.</summary>
    private static void EmitTurn(Assembler a)
    {
        a.mov(rdx, rbx);
        a.shl(rdx, 13);
        a.xor(rbx, rdx);
        a.mov(rdx, rbx);
        a.shr(rdx, 7);
        a.xor(rbx, rdx);
        a.mov(rdx, rbx);
        a.shl(rdx, 17);
        a.xor(rbx, rdx);
        a.mov(rax, __[r13 + r14]);
        a.add(r12, rax);
        a.mov(__[r13 + r14], rbx);
        a.rol(r12, 11);
        a.xor(r12, rbx);
        a.movq(xmm0, rbx);
        a.paddq(xmm1, xmm0);
        a.pxor(xmm2, xmm1);
        a.add(r14d, Stride);
        a.cmp(r14d, HeapBytes);
        a.cmovae(r14d, r10d);
    }

    /// <summary>rax says how. None of these comes back.</summary>
    private static void EmitMisbehaviour(Assembler a, Label misbehave)
    {
        Label privileged = a.CreateLabel();
        Label writeCode = a.CreateLabel();
        Label beyondHeap = a.CreateLabel();
        Label none = a.CreateLabel();
        a.Label(ref misbehave);
        a.cmp(eax, (int)MiniOsMisbehaviour.Privileged);
        a.je(privileged);
        a.cmp(eax, (int)MiniOsMisbehaviour.WriteCode);
        a.je(writeCode);
        a.cmp(eax, (int)MiniOsMisbehaviour.BeyondHeap);
        a.je(beyondHeap);
        a.cmp(eax, (int)MiniOsMisbehaviour.ReadKernel);
        a.jne(none);
        a.mov(ecx, (uint)MiniOsLayout.Variables);
        a.mov(rax, __[rcx]);
        a.Label(ref none);
        a.ud2();
        a.Label(ref privileged);
        a.cli();
        a.Label(ref writeCode);
        a.mov(ecx, (uint)MiniOsLayout.Program);
        a.mov(__[rcx], rax);
        a.Label(ref beyondHeap);
        a.mov(ecx, (uint)MiniOsLayout.Heap);
        a.mov(rax, __[rcx]);
    }

    private static void Call(Assembler a, MiniOsCall call)
    {
        a.mov(eax, (int)call);
        a.syscall();
    }
}
