using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Devices;
using VirtBench.Workloads;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>
/// A guest with a large body of code that it executes once or a few times, in a region: what translating costs shows here and nowhere else. Straight
/// lines of five or so instructions between branches, forward ones, calls of small functions; the mix is roughly that of compiled integer
/// code: moves and loads most, then arithmetic, compares with branches, few calls. The same seed gives the same program.
/// </summary>
/// <param name="Image">The guest.</param>
/// <param name="Instructions">Instructions of the body and its functions; those that branches skip, a quarter or so, count.</param>
internal sealed record ColdCode(GuestImage Image, int Instructions)
{
    private const ulong Code = SlottedWorkload.ImageBase;
    private const ulong Data = 0x40_0000;
    private const int DataBytes = 0x4000;
    private const int InstructionsPerFunction = 400;

    /// <summary>They take some 4.5 bytes each, and there are 3 MiB before the data.</summary>
    private const int MostInstructions = 500_000;

    private static readonly AssemblerRegister64[] Registers =
    [
        rax,
        rcx,
        rdx,
        rbx,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
    ];

    /// <summary>Assembles the guest.</summary>
    /// <param name="instructions">Instructions of the body, about; those that branches skip count.</param>
    /// <param name="seed">Seed of the program.</param>
    /// <param name="turns">How often the body is executed: the region's units.</param>
    /// <exception cref="ArgumentOutOfRangeException">There is no room for so many instructions.</exception>
    public static ColdCode Build(int instructions, ulong seed, int turns = 1)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(instructions, MostInstructions);
        ArgumentOutOfRangeException.ThrowIfLessThan(turns, 1);
        var random = new SplitMix64(seed);
        var a = new Assembler(64);
        Label entry = a.CreateLabel("entry");
        Label body = a.CreateLabel("body");
        Label constant = a.CreateLabel("constant");
        Label[] functions =
        [
            .. Enumerable.Range(0, Math.Max(1, instructions / InstructionsPerFunction)).Select(_ => a.CreateLabel()),
        ];
        for (int i = 0; i < functions.Length; i++)
        {
            a.Label(ref functions[i]);
            EmitLine(a, ref random, constant, 5);
            a.ret();
        }

        int counted = a.Instructions.Count;
        a.Label(ref constant);
        a.dq(0x0123_4567_89AB_CDEF);
        a.Label(ref entry);
        a.mov(r14d, (uint)Data);
        TouchData(a);
        for (int i = 0; i < Registers.Length; i++)
        {
            a.mov(Registers[i], (ulong)(i + 1) * 0x9E37_79B9_7F4A_7C15);
        }

        a.mov(r13, rax);
        a.mov(eax, Workload.MeasuredRegionId);
        a.@out((byte)MeasurementPorts.Begin, eax);
        a.mov(rax, r13);
        a.mov(r15d, turns);
        counted -= a.Instructions.Count;
        a.Label(ref body);
        int emitted = functions.Length * 6;
        int called = 0;
        while (emitted < instructions)
        {
            int line = 3 + (int)(random.Next() % 5);
            EmitLine(a, ref random, constant, line);
            emitted += line + EmitBranch(a, ref random, constant, functions, ref called);
        }

        counted += a.Instructions.Count;
        a.dec(r15d);
        a.jnz(body);
        a.mov(r13, rax);
        a.mov(eax, turns);
        a.@out((byte)MeasurementPorts.End, eax);
        a.mov(rax, r13);
        foreach (AssemblerRegister64 register in Registers)
        {
            a.rol(r13, 17);
            a.add(r13, register);
        }

        a.mov(eax, (uint)WorkloadResult.Address);
        a.mov(__[rax], r13);
        a.xor(eax, eax);
        a.@out((byte)ExitPort.Port, al);
        a.ud2();

        using var code = new MemoryStream();
        AssemblerResult assembled = a.Assemble(
            new StreamCodeWriter(code),
            Code,
            BlockEncoderOptions.ReturnNewInstructionOffsets
        );
        byte[] content = code.ToArray();
        var image = new GuestImage(
            $"cold code, {counted} instructions",
            assembled.GetLabelRIP(entry),
            [
                new ImageSegment(Code, content, (ulong)content.Length, Executable: true),
                new ImageSegment(Data, Array.Empty<byte>(), DataBytes, Executable: false),
            ]
        );
        return new ColdCode(image, counted);
    }

    private static void TouchData(Assembler a)
    {
        for (int page = 0; page < DataBytes; page += 0x1000)
        {
            a.mov(__dword_ptr[r14 + page], 1);
        }
    }

    private static void EmitLine(Assembler a, ref SplitMix64 random, Label constant, int instructions)
    {
        for (int i = 0; i < instructions; i++)
        {
            ulong bits = random.Next();
            AssemblerRegister64 to = Registers[(int)((bits >> 8) % (ulong)Registers.Length)];
            AssemblerRegister64 from = Registers[(int)((bits >> 16) % (ulong)Registers.Length)];
            int offset = (int)((bits >> 24) % (DataBytes / 8)) * 8;
            int small = (int)((bits >> 40) & 0x7F);
            switch (bits % 25)
            {
                case < 5:
                    a.mov(to, from);
                    break;
                case < 8:
                    a.mov(to, __[r14 + offset]);
                    break;
                case < 10:
                    a.mov(__[r14 + offset], from);
                    break;
                case 10:
                    a.mov(to, __[constant]);
                    break;
                case < 13:
                    a.add(to, from);
                    break;
                case 13:
                    a.sub(to, small);
                    break;
                case 14:
                    a.xor(to, from);
                    break;
                case 15:
                    a.and(to, from);
                    break;
                case 16:
                    a.or(to, small);
                    break;
                case < 19:
                    a.lea(to, __[from + (to * 2) + small]);
                    break;
                case 19:
                    a.shl(to, (byte)(small & 31));
                    break;
                case 20:
                    a.imul(to, from);
                    break;
                case 21:
                    a.add(to, __[r14 + offset]);
                    break;
                case 22:
                    a.push(from);
                    a.pop(to);
                    i++;
                    break;
                default:
                    a.mov(to, small);
                    break;
            }
        }
    }

    // Ends a straight line. Returns how many instructions it emits.
    private static int EmitBranch(Assembler a, ref SplitMix64 random, Label constant, Label[] functions, ref int called)
    {
        ulong bits = random.Next();
        AssemblerRegister64 one = Registers[(int)((bits >> 8) % (ulong)Registers.Length)];
        AssemblerRegister64 other = Registers[(int)((bits >> 16) % (ulong)Registers.Length)];
        if (bits % 16 == 0)
        {
            a.call(functions[called++ % functions.Length]);
            return 1;
        }

        Label over = a.CreateLabel();
        int skipped = 1 + (int)((bits >> 24) % 3);
        a.cmp(one, other);
        switch ((bits >> 32) % 4)
        {
            case 0:
                a.je(over);
                break;
            case 1:
                a.jb(over);
                break;
            case 2:
                a.jl(over);
                break;
            default:
                a.jne(over);
                break;
        }

        EmitLine(a, ref random, constant, skipped);
        a.Label(ref over);
        return 2 + skipped;
    }
}
