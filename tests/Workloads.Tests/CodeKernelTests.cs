using System.Numerics;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Workloads.Tests;

/// <summary>What the kernels compute, against the same thing computed in another way: by the framework, or in plain C#.</summary>
public sealed class CodeKernelTests
{
    private const int Filler = 20_000;
    private const string Counting = "simulated-native";

    private static readonly CodeKernel[] Kernels = [.. WorkloadCatalog.All.OfType<CodeKernel>()];

    public static TheoryData<string> Ids() => [.. Kernels.Select(kernel => kernel.Id)];

    public static TheoryData<string, string> IdsAndStrategies()
    {
        var data = new TheoryData<string, string>();
        foreach (CodeKernel kernel in Kernels)
        {
            foreach (Strategy strategy in StrategyCatalog.All)
            {
                data.Add(kernel.Id, strategy.Id);
            }
        }

        return data;
    }

    private static CodeKernel Find(string id) => Kernels.Single(kernel => kernel.Id == id);

    [Theory]
    [MemberData(nameof(IdsAndStrategies))]
    public void The_checksum_is_that_of_the_same_work_done_otherwise(string id, string strategy)
    {
        CodeKernel kernel = Find(id);
        int repetitions = kernel.RepetitionsPerUnit(Filler);
        foreach ((int warmUp, int units) in (ReadOnlySpan<(int, int)>)[(0, 0), (0, 1), (2, 3), (1, 40)])
        {
            ulong expected = CodeKernelModel.Checksum(kernel, (warmUp + units) * repetitions);
            using VirtualMachine machine = Run(strategy, kernel, warmUp, units);
            Assert.Equal(expected, WorkloadResult.Read(machine.Memory).Checksum);
            MeasuredRegion region = Assert.Single(machine.Regions);
            Assert.Equal((Workload.MeasuredRegionId, (ulong)units), (region.Id, region.Units));
        }
    }

    [Theory]
    [MemberData(nameof(Ids))]
    public void The_checksum_tells_how_much_was_done(string id)
    {
        IEnumerable<ulong> checksums = Enumerable
            .Range(0, 40)
            .Select(repetitions => CodeKernelModel.Checksum(Find(id), repetitions));
        Assert.Equal(40, checksums.Distinct().Count());
    }

    [Theory]
    [MemberData(nameof(Ids))]
    public void A_repetition_executes_so_many_instructions(string id)
    {
        CodeKernel kernel = Find(id);
        int repetitions = kernel.RepetitionsPerUnit(Filler);
        double few = Ticks(3);
        double many = Ticks(103);
        Assert.Equal(kernel.InstructionsPerRepetition, Math.Round(many - few, 3) / (100 * repetitions));

        double Ticks(int units)
        {
            using VirtualMachine machine = Run(Counting, kernel, warmUp: 1, units); // a cycle an instruction
            return machine.Regions[0].ElapsedNanoseconds * machine.Clock.TicksPerSecond / 1e9;
        }
    }

    [Theory]
    [MemberData(nameof(Ids))]
    public void A_unit_holds_as_many_repetitions_as_have_room_but_one_at_least(string id)
    {
        CodeKernel kernel = Find(id);
        int size = kernel.InstructionsPerRepetition;
        Assert.Equal(1, kernel.RepetitionsPerUnit(1));
        Assert.Equal(1, kernel.RepetitionsPerUnit((2 * size) - 1));
        Assert.Equal(2, kernel.RepetitionsPerUnit(2 * size));
        Assert.InRange(kernel.RepetitionsPerUnit(kernel.DefaultFiller) * size, Filler / 2, Filler);
    }

    [Theory]
    [MemberData(nameof(Ids))]
    public void Nothing_in_the_program_depends_on_k(string id)
    {
        CodeKernel kernel = Find(id);
        Assert.False(kernel.DependsOnDensity);
        Assert.Equal(
            (SensitiveOperation.None, SensitiveOperation.None, false),
            (
                kernel.Operation(GuestInterface.Native),
                kernel.Operation(GuestInterface.Paravirtual),
                kernel.NeedsPrivilege
            )
        );
        GuestImage control = kernel.Build(new WorkloadOptions(0, Filler));
        GuestImage dense = kernel.Build(new WorkloadOptions(kernel.MaximumTrapsPerUnit, Filler));
        Assert.Equal(control.Entry, dense.Entry);
        Assert.Equal(
            control.Segments.Select(segment => segment.Content.ToArray()),
            dense.Segments.Select(segment => segment.Content.ToArray())
        );
    }

    [Theory]
    [MemberData(nameof(IdsAndStrategies))]
    public void No_exit_but_the_markers_falls_into_the_region(string id, string strategy)
    {
        using VirtualMachine machine = Run(strategy, Find(id), warmUp: 1, units: 2);
        LedgerSnapshot exits = machine.Regions[0].Exits;
        Assert.Equal(exits[TrapReason.RegionMarker], exits.Counts.Sum());
    }

    [Theory]
    [MemberData(nameof(Ids))]
    public void What_does_not_fit_is_refused_with_the_limits(string id)
    {
        Assert.Contains("0 to 64 traps", Refusal(new WorkloadOptions(65, Filler)), StringComparison.Ordinal);
        Assert.Contains("0 to 64 traps", Refusal(new WorkloadOptions(-1, Filler)), StringComparison.Ordinal);
        Assert.Contains("at least 1 instruction", Refusal(new WorkloadOptions(0, 0)), StringComparison.Ordinal);

        string Refusal(WorkloadOptions options) =>
            Assert.Throws<ArgumentOutOfRangeException>(() => Find(id).Build(options)).Message;
    }

    [Fact]
    public void The_stream_writes_all_of_its_third_array()
    {
        var stream = (ComputeStream)Find("compute-stream");
        int units = ComputeStream.ArrayBytes / ComputeStream.ChunkBytes / stream.RepetitionsPerUnit(Filler);
        foreach (string strategy in (ReadOnlySpan<string>)[Counting, "native"])
        {
            if (StrategyCatalog.Find(strategy)!.UnavailableReason() is not null)
            {
                continue; // the first one runs everywhere
            }

            using VirtualMachine machine = Run(strategy, stream, warmUp: 0, units + 1);
            byte[] data = new byte[3 * ComputeStream.ArrayBytes];
            machine.Memory.Read(CodeKernel.Data, data);
            ReadOnlySpan<ulong> words = MemoryMarshal.Cast<byte, ulong>(data);
            int length = words.Length / 3;
            for (int i = 0; i < length; i++)
            {
                Assert.Equal(words[i] + (3 * words[length + i]), words[(2 * length) + i]);
            }
        }
    }

    [Theory]
    [InlineData(true, 4096)]
    [InlineData(false, 8)]
    public void The_sequence_of_indirect_calls_has_no_shorter_period_and_several_targets(bool longPeriod, int period)
    {
        var kernel = new IndirectBranch(longPeriod);
        Assert.Equal(period, kernel.Period);
        ReadOnlySpan<byte> sequence = Initial(kernel).AsSpan(IndirectBranch.Sequence, period);
        Assert.False(sequence[..(period / 2)].SequenceEqual(sequence[(period / 2)..]));
        Assert.True(sequence.ToArray().Distinct().Count() > 3);
    }

    internal static byte[] Initial(CodeKernel kernel) =>
        kernel
            .Build(new WorkloadOptions(0, 1))
            .Segments.Single(segment => segment.PhysicalAddress == CodeKernel.Data)
            .Content.ToArray();

    private static VirtualMachine Run(string id, CodeKernel kernel, int warmUp, int units)
    {
        Strategy strategy = StrategyCatalog.Find(id)!;
        Assert.SkipWhen(strategy.UnavailableReason() is not null, strategy.UnavailableReason() ?? "");
        Assert.SkipWhen(
            strategy.EmulatesRingZero && kernel.NeedsVectorUnit,
            "what emulates ring 0 here does not have SSE2"
        );
        var machine = new VirtualMachine(8 << 20, strategy.CreateEngine);
        machine.Load(
            kernel.Build(new WorkloadOptions(0, Filler)),
            new BootOptions { Parameters = [(ulong)warmUp, (ulong)units] }
        );
        RunOutcome outcome = machine.Run(TimeSpan.FromMinutes(2), TestContext.Current.CancellationToken);
        Assert.Equal(new RunOutcome(RunEnd.Exited, 0, null), outcome);
        return machine;
    }
}

/// <summary>What the kernels are to compute.</summary>
internal static class CodeKernelModel
{
    public static ulong Checksum(CodeKernel kernel, int repetitions)
    {
        byte[] data = CodeKernelTests.Initial(kernel);
        ulong[] parts = kernel switch
        {
            ComputeHash => Hash(data, repetitions),
            ComputeMix => Mix(data, repetitions),
            ComputeBytecode => Bytecode(repetitions),
            ComputeStream => Stream(data, repetitions),
            ComputeSse2 => Sse2(repetitions),
            CallReturn => Fibonacci(repetitions),
            IndirectBranch indirect => Indirect(data.AsSpan(IndirectBranch.Sequence), indirect.Period, repetitions),
            _ => throw new NotSupportedException(kernel.Id),
        };
        return parts.Aggregate(0x9E37_79B9_7F4A_7C15UL, (sum, part) => BitOperations.RotateLeft(sum + part, 17));
    }

    private static ulong[] Hash(byte[] data, int repetitions)
    {
        byte[] buffer = data[ComputeHash.Buffer..(ComputeHash.Buffer + ComputeHash.BufferBytes)];
        uint crc = 0;
        for (int i = 0; i < repetitions; i++)
        {
            byte[] message = [.. buffer[..32], .. BitConverter.GetBytes(crc)];
            SHA256.HashData(message).CopyTo(buffer, 0);
            crc = Crc32(buffer);
        }

        return [.. MemoryMarshal.Cast<byte, ulong>(buffer.AsSpan(0, 32)), crc];
    }

    // Bit by bit, from the definition; "123456789" gives the published 0xCBF43926.
    internal static uint Crc32(ReadOnlySpan<byte> bytes)
    {
        uint crc = uint.MaxValue;
        foreach (byte one in bytes)
        {
            for (int bit = 0; bit < 8; bit++)
            {
                bool odd = (((uint)(one >> bit) ^ crc) & 1) != 0;
                crc = (crc >> 1) ^ (odd ? 0xEDB8_8320 : 0);
            }
        }

        return ~crc;
    }

    private static ulong[] Mix(byte[] data, int repetitions)
    {
        uint[] values = new uint[ComputeMix.Nodes];
        for (int node = 0; node < values.Length; node++)
        {
            values[node] = BitConverter.ToUInt32(data, ComputeMix.List + (16 * node) + 8);
        }

        uint[] a = [.. MemoryMarshal.Cast<byte, uint>(data.AsSpan(ComputeMix.MatrixA, 256))];
        uint[] b = [.. MemoryMarshal.Cast<byte, uint>(data.AsSpan(ComputeMix.MatrixB, 256))];
        string text = System.Text.Encoding.ASCII.GetString(data, ComputeMix.Text, ComputeMix.TextBytes);
        uint sum = 0;
        ulong all = 0;
        for (int i = 0; i < repetitions; i++)
        {
            int node = 0;
            do
            {
                sum += values[node];
                values[node] = sum;
                node = ComputeMix.NextNode(node);
            } while (node != 0);

            uint[] product = new uint[64];
            for (int at = 0; at < 64; at++)
            {
                for (int k = 0; k < 8; k++)
                {
                    product[at] += a[(at / 8 * 8) + k] * b[(k * 8) + (at % 8)];
                }
            }

            a = [.. product.Select(entry => entry + sum)];
            (uint hash, uint count) = Tokens(text);
            all = BitOperations.RotateLeft(all + hash, 7) + count;
            all = (all ^ product[63]) + sum;
        }

        var parts = new List<ulong> { all };
        for (int node = 0; node < values.Length; node++)
        {
            parts.Add(CodeKernel.Data + (16 * (ulong)ComputeMix.NextNode(node)));
            parts.Add(values[node]);
        }

        return [.. parts, .. MemoryMarshal.Cast<uint, ulong>(a)];
    }

    // A token is a word (letters, then letters or digits) or a number (digits).
    internal static (uint Hash, uint Count) Tokens(string text)
    {
        uint hash = ComputeMix.HashSeed;
        uint count = 0;
        char token = ' ';
        foreach (char c in text)
        {
            char before = token;
            token =
                char.IsAsciiLetter(c) || (char.IsAsciiDigit(c) && before == 'w') ? 'w'
                : char.IsAsciiDigit(c) ? 'n'
                : ' ';
            count += token != ' ' && token != before ? 1u : 0;
            hash =
                (hash * 31)
                + (
                    token switch
                    {
                        'w' => 1u,
                        'n' => 2u,
                        _ => 0u,
                    }
                );
        }

        return (hash, count);
    }

    private static ulong[] Bytecode(int repetitions)
    {
        ulong[] v = new ulong[16];
        v[1] = ComputeBytecode.FirstState;
        v[5] = ComputeBytecode.Factor;
        for (int i = 0; i < repetitions; i++)
        {
            for (int turn = ComputeBytecode.Turns; turn > 0; turn--)
            {
                ulong x = v[1];
                x ^= x << 13;
                x ^= x >> 7;
                v[2] = x << 17;
                x ^= v[2];
                v[1] = x;
                v[3] += x;
                v[4] = (ulong)turn % 4;
                v[3] *= v[4] == 0 ? ComputeBytecode.Factor : 1;
                v[6] = v[3];
                v[7] = x | v[3];
                v[3] -= v[7];
            }
        }

        return v;
    }

    private static ulong[] Stream(byte[] data, int repetitions)
    {
        const int length = ComputeStream.ArrayBytes / 8;
        const int chunk = ComputeStream.ChunkBytes / 8;
        ReadOnlySpan<ulong> words = MemoryMarshal.Cast<byte, ulong>(data);
        ulong sum = 0;
        for (int i = 0; i < repetitions * chunk; i++)
        {
            sum += words[i % length] + (3 * words[length + (i % length)]);
        }

        var parts = new List<ulong> { sum, (ulong)(repetitions * ComputeStream.ChunkBytes % ComputeStream.ArrayBytes) };
        for (int i = 0; i < chunk; i++)
        {
            parts.Add(repetitions == 0 ? 0 : words[i] + (3 * words[length + i]));
        }

        return [.. parts];
    }

    private static ulong[] Sse2(int repetitions)
    {
        double[,] x = new double[ComputeSse2.Pairs, 2];
        ulong[] hash = new ulong[2];
        for (int lane = 0; lane < 2; lane++)
        {
            for (int pair = 0; pair < ComputeSse2.Pairs; pair++)
            {
                x[pair, lane] = ComputeSse2.FirstValue(pair, lane);
            }

            for (int turn = 0; turn < repetitions * ComputeSse2.Turns; turn++)
            {
                for (int pair = 0; pair < ComputeSse2.Pairs; pair++)
                {
                    double rest = 1 - x[pair, lane];
                    x[pair, lane] = x[pair, lane] * ComputeSse2.R[lane] * rest;
                }

                double divisor = x[2, lane] + 1;
                ulong last = BitConverter.DoubleToUInt64Bits(x[3, lane]);
                ulong h = hash[lane] + BitConverter.DoubleToUInt64Bits(Math.Sqrt(x[0, lane]));
                h = BitOperations.RotateLeft(h, ComputeSse2.Rotation);
                h ^= BitConverter.DoubleToUInt64Bits(x[1, lane] / divisor);
                h += last;
                h += (ulong)(uint)BitConverter.DoubleToUInt64Bits(divisor) * (uint)last;
                hash[lane] = h;
            }
        }

        var parts = new List<ulong>();
        for (int pair = 0; pair < ComputeSse2.Pairs; pair++)
        {
            parts.Add(BitConverter.DoubleToUInt64Bits(x[pair, 0]));
            parts.Add(BitConverter.DoubleToUInt64Bits(x[pair, 1]));
        }

        return [.. parts, .. hash];
    }

    private static ulong[] Fibonacci(int repetitions)
    {
        (ulong number, ulong next) = (0, 1);
        for (int i = 0; i < CallReturn.Argument; i++)
        {
            (number, next) = (next, number + next);
        }

        ulong sum = 0;
        for (int i = 0; i < repetitions; i++)
        {
            sum = BitOperations.RotateLeft(sum + number, CallReturn.Rotation);
        }

        return [sum];
    }

    private static ulong[] Indirect(ReadOnlySpan<byte> sequence, int period, int repetitions)
    {
        ulong result = 0;
        for (int i = 0; i < repetitions * IndirectBranch.Calls; i++)
        {
            int function = sequence[i % period];
            result += (ulong)IndirectBranch.Addend(function);
            result = BitOperations.RotateLeft(result, IndirectBranch.Rotation(function));
        }

        return [result, (ulong)(repetitions * IndirectBranch.Calls % period)];
    }
}

/// <summary>The models themselves, where something published tells what is right.</summary>
public sealed class CodeKernelModelTests
{
    [Fact]
    public void The_crc_has_its_published_check_value() =>
        Assert.Equal(0xCBF4_3926u, CodeKernelModel.Crc32("123456789"u8));

    [Theory]
    [InlineData("", 0)]
    [InlineData("one two", 2)]
    [InlineData("a1b2 33 4x", 4)]
    [InlineData(" ,.", 0)]
    public void Tokens_are_words_and_numbers(string text, int count) =>
        Assert.Equal((uint)count, CodeKernelModel.Tokens(text).Count);
}
