using System.Collections.Concurrent;
using System.Text;
using Iced.Intel;
using VirtBench.Strategies.Tests.DirectExecution;
using VirtBench.Strategies.Tests.Simulation;
using VirtBench.Vmm.Cpu;
using static Iced.Intel.AssemblerRegisters;
using static VirtBench.Strategies.Tests.Translated.BehaviourGuest;

namespace VirtBench.Strategies.Tests.Translated;

/// <summary>
/// Random code under every strategy against the same on the simulated CPU: all registers, flags and exceptions after each sequence, and
/// memory after many.
/// </summary>
[Collection(CarrierCollection.Name)]
public sealed class DifferentialTests
{
    private const string Reference = "simulated-trap-and-emulate";
    private const int Batches = 26;
    private const int Sequences = 4000; // in a batch: more than 10^5 in all
    private const int StateSize = 512;
    private const ulong Bodies = Spare;
    private const ulong BodiesEnd = Spare + 0x3E_0000;
    private const ulong States = BodiesEnd;
    private const ulong Finals = States + (Sequences * StateSize);
    private const ulong Entries = 0x70_0000;
    private const ulong Index = 0x78_0000;
    private const ulong Count = Index + 8;
    private const ulong Entry = Index + 16;
    private const ulong KeptRdx = Index + 24;
    private const ulong KeptRsp = Index + 32;
    private const ulong KeptFlags = Index + 40;
    private const ulong Scratch = Data;

    // Above what random instructions reach, and not compared: PUSHF shows the host's own flags there on some strategies.
    private const ulong StackPointer = Scratch + RandomCode.ScratchSize + 0x1800;

    private const int XmmOffset = 128;
    private const int FlagsOffset = 384;
    private const int VectorOffset = 392;
    private const int RipOffset = 400;
    private const ulong Faulted = 1UL << 32;

    private static readonly AssemblerRegister64[] Gprs =
    [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ];

    private static readonly ConcurrentDictionary<int, Batch> Made = new();

    public static TheoryData<string, int> Cases
    {
        get
        {
            var cases = new TheoryData<string, int>();
            foreach (TheoryDataRow<string, int> one in BehaviourGuest.Cases.Cast<TheoryDataRow<string, int>>())
            {
                if (one.Data.Item1 != Reference || one.Data.Item2 != 3)
                {
                    cases.Add(one.Data.Item1, one.Data.Item2);
                }
            }

            return cases;
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void Random_code_with_branches_does_the_same_everywhere(string strategy, int ring)
    {
        var differences = new List<string>();
        int faults = 0;
        for (int seed = 1; seed <= Batches && differences.Count < 5; seed++)
        {
            Batch batch = Made.GetOrAdd(seed, Make);
            Final expected = batch.Reference.Value;
            Final actual = Run(strategy, ring, batch, Sequences);
            faults += expected.Faults;
            Compare(batch, expected, actual, strategy, ring, differences);
        }

        Assert.True(differences.Count == 0, string.Join("\n\n", differences));
        Assert.True(faults > 100); // divisions: exceptions are part of it
    }

    private sealed record Batch(int Seed, byte[][] Code, ulong[] Addresses, byte[] States, byte[] Memory)
    {
        public Lazy<Final> Reference { get; set; } = null!;
    }

    private sealed record Final(byte[] States, byte[] Memory)
    {
        public int Faults =>
            Enumerable
                .Range(0, Sequences)
                .Count(i => (BitConverter.ToUInt64(States, (i * StateSize) + FlagsOffset) & Faulted) != 0);
    }

    private static Batch Make(int seed)
    {
        var random = new Random(seed);
        var generator = new RandomSequence(seed);
        byte[][] code = new byte[Sequences][];
        ulong[] addresses = new ulong[Sequences];
        ulong at = Bodies;
        (_, ulong end, _) = Harness();
        for (int i = 0; i < Sequences; i++)
        {
            addresses[i] = at;
            code[i] = generator.Next(at, end);
            at += (ulong)code[i].Length + (ulong)random.Next(4);
            Assert.True(at < BodiesEnd, "a batch of sequences is longer than its place");
        }

        byte[] states = new byte[Sequences * StateSize];
        for (int i = 0; i < Sequences; i++)
        {
            RandomState.Fill(random, states.AsSpan(i * StateSize, StateSize));
        }

        byte[] memory = new byte[RandomCode.ScratchSize];
        RandomState.FillMemory(random, memory);
        var batch = new Batch(seed, code, addresses, states, memory);
        batch.Reference = new Lazy<Final>(() => Run(Reference, 3, batch, Sequences));
        return batch;
    }

    /// <summary>Registers that bring out what goes wrong, in the layout of a state.</summary>
    private static class RandomState
    {
        public static void Fill(Random random, Span<byte> state)
        {
            for (int i = 0; i < 16; i++)
            {
                BitConverter.TryWriteBytes(state[(8 * i)..], Interesting(random));
                BitConverter.TryWriteBytes(state[(XmmOffset + (16 * i))..], Half(random));
                BitConverter.TryWriteBytes(state[(XmmOffset + (16 * i) + 8)..], Half(random));
            }

            BitConverter.TryWriteBytes(state[(8 * Gpr.Rsp)..], StackPointer);
            BitConverter.TryWriteBytes(state[(8 * 14)..], (ulong)random.Next(8) & ~1UL);
            BitConverter.TryWriteBytes(state[(8 * 15)..], Scratch + 4096);
            BitConverter.TryWriteBytes(
                state[FlagsOffset..],
                Rflags.AlwaysSet | ((ulong)random.Next(1 << 12) & Rflags.Arithmetic)
            );
        }

        public static void FillMemory(Random random, Span<byte> memory)
        {
            for (int i = 0; i < memory.Length; i += 8)
            {
                BitConverter.TryWriteBytes(memory[i..], Half(random));
            }
        }

        private static ulong Interesting(Random random) =>
            random.Next(6) switch
            {
                0 => (ulong)random.Next(256),
                1 => ulong.MaxValue - (ulong)random.Next(256),
                2 => 1UL << random.Next(64),
                3 => (1UL << random.Next(64)) - 1,
                _ => (ulong)random.NextInt64(long.MinValue, long.MaxValue),
            };

        private static ulong Half(Random random) =>
            random.Next(4) switch
            {
                0 => BitConverter.DoubleToUInt64Bits((random.NextDouble() - 0.5) * 1000),
                1 => BitConverter.SingleToUInt32Bits((random.NextSingle() - 0.5f) * 1000)
                    | ((ulong)BitConverter.SingleToUInt32Bits((random.NextSingle() - 0.5f) * 1e30f) << 32),
                _ => Interesting(random),
            };
    }

    // The code that runs one sequence after the other: loads a state, jumps, and stores the state that comes out.
    private static (byte[] Code, ulong End, ulong Faulted) Harness()
    {
        var a = new Assembler(64);
        Label next = a.CreateLabel();
        Label end = a.CreateLabel();
        Label fault = a.CreateLabel();
        Label store = a.CreateLabel();
        Label done = a.CreateLabel();
        a.Label(ref next);
        a.mov(rax, __qword_ptr[Index]);
        a.cmp(rax, __qword_ptr[Count]);
        a.jae(done);
        a.mov(rcx, __qword_ptr[(rax * 8) + (long)Entries]);
        a.mov(__qword_ptr[Entry], rcx);
        a.mov(rdx, rax);
        a.shl(rdx, 9);
        a.add(rdx, (int)States);
        a.push(__qword_ptr[rdx + FlagsOffset]);
        a.popfq();
        for (int i = 0; i < 16; i++)
        {
            a.movdqu(new AssemblerRegisterXMM(Register.XMM0 + i), __xmmword_ptr[rdx + (XmmOffset + (16 * i))]);
        }

        foreach (int i in Enumerable.Range(0, 16).Where(i => i != Gpr.Rdx).Append(Gpr.Rdx))
        {
            a.mov(Gprs[i], __qword_ptr[rdx + (8 * i)]);
        }

        a.jmp(__qword_ptr[Entry]);

        a.Label(ref end);
        a.mov(__qword_ptr[KeptRdx], rdx);
        a.mov(__qword_ptr[KeptRsp], rsp);
        a.mov(rsp, StackTop);
        a.pushfq();
        a.pop(__qword_ptr[KeptFlags]);
        a.jmp(store);

        a.Label(ref fault);
        a.mov(__qword_ptr[KeptRdx], rdx);
        a.mov(__qword_ptr[KeptRsp], rsp);
        a.mov(rsp, StackTop);
        a.mov(rdx, Faulted);
        a.mov(__qword_ptr[KeptFlags], rdx);

        a.Label(ref store);
        a.mov(rdx, __qword_ptr[Index]);
        a.shl(rdx, 9);
        a.add(rdx, (int)Finals);
        for (int i = 0; i < 16; i++)
        {
            if (i is not (Gpr.Rdx or Gpr.Rsp))
            {
                a.mov(__qword_ptr[rdx + (8 * i)], Gprs[i]);
            }

            a.movdqu(__xmmword_ptr[rdx + (XmmOffset + (16 * i))], new AssemblerRegisterXMM(Register.XMM0 + i));
        }

        foreach (
            (ulong from, int to) in ((ulong, int)[])
                [
                    (KeptRdx, 8 * Gpr.Rdx),
                    (KeptRsp, 8 * Gpr.Rsp),
                    (KeptFlags, FlagsOffset),
                    (FirstException, VectorOffset),
                    (FirstException + 16, RipOffset),
                ]
        )
        {
            a.mov(rax, __qword_ptr[from]);
            a.mov(__qword_ptr[rdx + to], rax);
        }

        a.mov(__qword_ptr[NextException], (int)FirstException);
        a.inc(__qword_ptr[Index]);
        a.jmp(next);
        a.Label(ref done);
        a.mov(rsp, StackTop);
        a.End();
        using var stream = new MemoryStream();
        AssemblerResult result = a.Assemble(
            new StreamCodeWriter(stream),
            Start,
            BlockEncoderOptions.ReturnNewInstructionOffsets
        );
        return (stream.ToArray(), result.GetLabelRIP(end), result.GetLabelRIP(fault));
    }

    private static Final Run(string strategy, int ring, Batch batch, int count)
    {
        using var guest = new BehaviourGuest(strategy, ring);
        (byte[] harness, _, ulong fault) = Harness();
        guest.Memory.Write(Start, harness);
        guest.Memory.Write(Resume, fault);
        guest.Memory.Write(Count, (ulong)count);
        for (int i = 0; i < Sequences; i++)
        {
            guest.Memory.Write(batch.Addresses[i], batch.Code[i]);
            guest.Memory.Write(Entries + (8 * (ulong)i), batch.Addresses[i]);
        }

        guest.Memory.Write(States, batch.States);
        guest.Memory.Write(Scratch, batch.Memory);
        Assert.Equal(0, guest.Run());
        byte[] states = new byte[count * StateSize];
        byte[] memory = new byte[RandomCode.ScratchSize];
        guest.Memory.Read(Finals, states);
        guest.Memory.Read(Scratch, memory);
        const ulong known = Rflags.Arithmetic | Rflags.Df | Faulted;
        for (int i = 0; i < count; i++)
        {
            Span<byte> flags = states.AsSpan((i * StateSize) + FlagsOffset);
            ulong value = BitConverter.ToUInt64(flags) & known;
            BitConverter.TryWriteBytes(flags, value);
            if ((value & Faulted) == 0)
            {
                states.AsSpan((i * StateSize) + VectorOffset, 16).Clear(); // of an earlier one
            }
        }

        return new Final(states, memory);
    }

    private static void Compare(
        Batch batch,
        Final expected,
        Final actual,
        string strategy,
        int ring,
        List<string> differences
    )
    {
        int at = expected.States.AsSpan().CommonPrefixLength(actual.States);
        if (at < expected.States.Length)
        {
            int sequence = at / StateSize;
            differences.Add(
                Describe(
                    batch,
                    sequence,
                    $"{Field(at % StateSize)}: expected {Quad(expected.States, at):X16}, got {Quad(actual.States, at):X16}"
                )
            );
            return;
        }

        if (expected.Memory.AsSpan().SequenceEqual(actual.Memory))
        {
            return;
        }

        // Registers never told: the first sequence after which memory differs.
        int good = 0;
        int bad = Sequences;
        while (bad - good > 1)
        {
            int middle = (good + bad) / 2;
            bool same = Run(Reference, 3, batch, middle)
                .Memory.AsSpan()
                .SequenceEqual(Run(strategy, ring, batch, middle).Memory);
            (good, bad) = same ? (middle, bad) : (good, middle);
        }

        int where = expected.Memory.AsSpan().CommonPrefixLength(actual.Memory);
        differences.Add(Describe(batch, bad - 1, $"memory, in the end at +0x{where:X}"));
    }

    private static string Name(int gpr) => Gprs[gpr].Value.ToString();

    private static ulong Quad(byte[] states, int at) => BitConverter.ToUInt64(states, at & ~7);

    private static string Field(int offset) =>
        offset switch
        {
            < XmmOffset => Name(offset / 8),
            < FlagsOffset => $"xmm{(offset - XmmOffset) / 16}",
            < VectorOffset => "flags",
            < RipOffset => "vector",
            _ => "RIP of the exception",
        };

    private static string Describe(Batch batch, int sequence, string difference)
    {
        var text = new StringBuilder($"seed {batch.Seed}, sequence {sequence}: {difference}\n");
        var decoder = Iced.Intel.Decoder.Create(64, batch.Code[sequence], batch.Addresses[sequence]);
        ulong end = batch.Addresses[sequence] + (ulong)batch.Code[sequence].Length;
        while (decoder.IP < end)
        {
            Instruction instruction = decoder.Decode();
            text.Append($"  {instruction.IP:X} {instruction}\n");
        }

        for (int i = 0; i < 16; i++)
        {
            text.Append($"{Name(i)} {Quad(batch.States, (sequence * StateSize) + (8 * i)):X16} ");
        }

        return text.ToString();
    }
}
