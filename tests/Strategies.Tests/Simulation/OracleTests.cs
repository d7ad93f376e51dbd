using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;

namespace VirtBench.Strategies.Tests.Simulation;

/// <summary>Random code on the simulated CPU and on Unicorn: registers, flags and memory must agree.</summary>
public sealed unsafe class OracleTests
{
    private const int SequenceLength = 12;
    private const ulong Base = SimulatedGuest.DataStart + 4096;

    private const ulong OracleCode = 0x40_0000;

    [ThreadStatic]
    private static ulong s_oracleCode;

    private static bool IsSse(OpCodeInfo info) => info.Code.CpuidFeatures()[0] is CpuidFeature.SSE or CpuidFeature.SSE2;

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public void Integer_code_does_what_the_oracle_does(int seed) => Compare(seed, 3500, info => !IsSse(info));

    [Theory]
    [InlineData(11)]
    [InlineData(12)]
    public void Sse2_code_does_what_the_oracle_does(int seed) => Compare(seed, 3500, IsSse);

    private sealed class State
    {
        public readonly ulong[] Gpr = new ulong[16];
        public readonly UInt128[] Xmm = new UInt128[16];
        public readonly byte[] Memory = new byte[RandomCode.ScratchSize];
        public ulong Flags;
        public bool Faulted;
        public ulong Rip;
    }

    private static State RandomState(Random random)
    {
        var state = new State();
        for (int i = 0; i < 16; i++)
        {
            state.Gpr[i] = Interesting(random);
            state.Xmm[i] = InterestingVector(random);
        }

        state.Gpr[Gpr.Rsp] = Base + 3072;
        state.Gpr[14] = (ulong)random.Next(8) & ~1UL;
        state.Gpr[15] = Base;
        random.NextBytes(state.Memory);
        for (int i = 0; i < 128; i++)
        {
            UInt128 v = InterestingVector(random);
            System.Runtime.InteropServices.MemoryMarshal.Write(state.Memory.AsSpan(random.Next(512) * 16), v);
        }

        state.Flags = Rflags.AlwaysSet | ((ulong)random.Next(1 << 12) & Rflags.Arithmetic);
        return state;
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

    private static UInt128 InterestingVector(Random random)
    {
        ulong Half() =>
            random.Next(8) switch
            {
                0 => (ulong)BitConverter.DoubleToInt64Bits((random.NextDouble() - 0.5) * 1000),
                1 => (ulong)
                    BitConverter.DoubleToInt64Bits(
                        new[]
                        {
                            0.0,
                            -0.0,
                            double.NaN,
                            double.PositiveInfinity,
                            double.NegativeInfinity,
                            1,
                            -1.5,
                            2.5,
                            1e300,
                            1e-310,
                        }[random.Next(10)]
                    ),
                2 or 3 => Single(random) | ((ulong)Single(random) << 32),
                _ => Interesting(random),
            };
        return new UInt128(Half(), Half());
    }

    private static uint Single(Random random) =>
        BitConverter.SingleToUInt32Bits(
            random.Next(2) == 0
                ? (random.NextSingle() - 0.5f) * 1000
                : new[]
                {
                    0f,
                    -0f,
                    float.NaN,
                    float.PositiveInfinity,
                    float.NegativeInfinity,
                    1,
                    -1.5f,
                    2.5f,
                    1e38f,
                    1e-40f,
                }[random.Next(10)]
        );

    private static State RunOracle(Unicorn unicorn, State start, byte[] code)
    {
        // Unicorn keeps translations of code that is overwritten from outside, so code never lies twice at one place.
        s_oracleCode = s_oracleCode + 256 < SimulatedGuest.RamSize ? s_oracleCode + 256 : OracleCode;
        ulong begin = s_oracleCode;
        ulong end = begin + (ulong)code.Length;
        unicorn.Write(begin, code);
        unicorn.Write(SimulatedGuest.DataStart, start.Memory);
        for (int i = 0; i < 16; i++)
        {
            unicorn[i] = start.Gpr[i];
            unicorn.SetXmm(i, start.Xmm[i]);
        }

        unicorn.Rflags = start.Flags;
        _ = unicorn.Run(begin, end);
        var result = new State { Faulted = unicorn.Rip != end };
        for (int i = 0; i < 16; i++)
        {
            result.Gpr[i] = unicorn[i];
            result.Xmm[i] = unicorn.Xmm(i);
        }

        result.Flags = unicorn.Rflags;
        result.Rip = unicorn.Rip - begin + SimulatedGuest.CodeStart;
        unicorn.Read(SimulatedGuest.DataStart, result.Memory);
        return result;
    }

    private static State RunSimulated(SimulatedGuest guest, State start, byte[] code)
    {
        guest.Memory.Write(SimulatedGuest.CodeStart, [.. code, 0xF4]);
        guest.Memory.Write(SimulatedGuest.DataStart, start.Memory);
        GuestRegisters* registers = guest.Cpu.Registers;
        var xmm = (UInt128*)((byte*)registers + GuestRegisters.XmmOffset);
        for (int i = 0; i < 16; i++)
        {
            guest.Cpu[i] = start.Gpr[i];
            xmm[i] = start.Xmm[i];
        }

        guest.Engine.LoadLazyState();
        guest.Cpu.Rflags = start.Flags;
        guest.Cpu.Rip = SimulatedGuest.CodeStart;
        VmExit exit = guest.Run();
        guest.Engine.SaveLazyState();
        Assert.True(
            exit.Reason is VmExitReason.PrivilegedInstruction or VmExitReason.Exception,
            $"{exit} {exit.Message}"
        );
        var result = new State
        {
            Faulted = exit.Reason == VmExitReason.Exception,
            Flags = guest.Cpu.Rflags,
            Rip = guest.Cpu.Rip,
        };
        for (int i = 0; i < 16; i++)
        {
            result.Gpr[i] = guest.Cpu[i];
            result.Xmm[i] = xmm[i];
        }

        guest.Memory.Read(SimulatedGuest.DataStart, result.Memory);
        return result;
    }

    private static string? Difference(State expected, State actual, RflagsBits undefined)
    {
        if (expected.Faulted != actual.Faulted)
        {
            return $"faulted: {expected.Faulted} expected at {expected.Rip:X}, {actual.Faulted} at {actual.Rip:X}";
        }

        for (int i = 0; i < 16; i++)
        {
            if (expected.Gpr[i] != actual.Gpr[i])
            {
                return $"gpr {i}: {expected.Gpr[i]:X16} expected, {actual.Gpr[i]:X16}";
            }

            if (expected.Xmm[i] != actual.Xmm[i])
            {
                return $"xmm {i}: {expected.Xmm[i]:X32} expected, {actual.Xmm[i]:X32}";
            }
        }

        int at = expected.Memory.AsSpan().CommonPrefixLength(actual.Memory);
        if (at != expected.Memory.Length)
        {
            return $"memory +{at:X}: {expected.Memory[at]:X2} expected, {actual.Memory[at]:X2}";
        }

        ulong mask = Rflags.Arithmetic & ~ToMask(undefined);
        return !expected.Faulted && ((expected.Flags ^ actual.Flags) & mask) != 0
            ? $"flags: {expected.Flags & mask:X} expected, {actual.Flags & mask:X}"
            : null;
    }

    private static ulong ToMask(RflagsBits bits) =>
        ((bits & RflagsBits.CF) != 0 ? Rflags.Cf : 0)
        | ((bits & RflagsBits.PF) != 0 ? Rflags.Pf : 0)
        | ((bits & RflagsBits.AF) != 0 ? Rflags.Af : 0)
        | ((bits & RflagsBits.ZF) != 0 ? Rflags.Zf : 0)
        | ((bits & RflagsBits.SF) != 0 ? Rflags.Sf : 0)
        | ((bits & RflagsBits.OF) != 0 ? Rflags.Of : 0);

    private static void Compare(int seed, int sequences, Func<OpCodeInfo, bool> wanted)
    {
        Assert.SkipWhen(Unicorn.UnavailableReason is not null, Unicorn.UnavailableReason ?? "");
        using var unicorn = Unicorn.Create();
        unicorn.Map(0, SimulatedGuest.RamSize);
        s_oracleCode = OracleCode;
        using var guest = new SimulatedGuest(native: true);
        var code = new RandomCode(seed, SimulatedGuest.CodeStart, wanted);
        var random = new Random(seed);
        var failures = new SortedDictionary<string, string>(StringComparer.Ordinal);
        for (int n = 0; n < sequences && failures.Count < 25; n++)
        {
            byte[] program = code.Next(SequenceLength, out RflagsBits undefined);
            State start = RandomState(random);
            string? difference = Difference(
                RunOracle(unicorn, start, program),
                RunSimulated(guest, start, program),
                undefined
            );
            if (difference is not null)
            {
                string? culprit = Locate(unicorn, guest, code, start, difference);
                if (culprit is null)
                {
                    continue;
                }

                failures.TryAdd(culprit[..culprit.IndexOf(' ', StringComparison.Ordinal)], culprit);
            }
        }

        Assert.True(failures.Count == 0, string.Join('\n', failures.Values));
    }

    // The shortest prefix that differs ends with the culprit.
    private static string? Locate(Unicorn unicorn, SimulatedGuest guest, RandomCode code, State start, string whole)
    {
        int total = code.Count;
        for (int length = 1; length <= total; length++)
        {
            byte[] prefix = code.Encode(length);
            State expected = RunOracle(unicorn, start, prefix);
            State actual = RunSimulated(guest, start, prefix);
            string? difference = Difference(expected, actual, code.UndefinedAfter(length));
            if (difference is not null || length == total)
            {
                byte[] before = code.Encode(length - 1);
                State at = RunOracle(unicorn, start, before);
                if (FollowsTheManualForNaNs(code[length - 1], at, actual))
                {
                    return null;
                }

                return $"{code[length - 1].Code} '{code[length - 1]}' [{Convert.ToHexString(prefix[before.Length..])}]: "
                    + $"{difference ?? whole}; rax {at.Gpr[0]:X} rcx {at.Gpr[1]:X} rdx {at.Gpr[2]:X} flags {at.Flags:X} "
                    + $"op0 {Operand(at, code[length - 1], 0)} op1 {Operand(at, code[length - 1], 1)}"
                    + (
                        difference is null
                            ? $" of {string.Join("; ", Enumerable.Range(0, total).Select(i => code[i].ToString()))}"
                            : ""
                    );
            }
        }

        return "none in the end";
    }

    // Of two NaNs SSE gives the first, made quiet (SDM vol. 1, table 4-7); Unicorn the one with the larger significand.
    private static bool FollowsTheManualForNaNs(in Instruction i, State before, State actual)
    {
        bool single =
            i.Mnemonic
            is Mnemonic.Addps
                or Mnemonic.Subps
                or Mnemonic.Mulps
                or Mnemonic.Divps
                or Mnemonic.Addss
                or Mnemonic.Subss
                or Mnemonic.Mulss
                or Mnemonic.Divss;
        bool @double =
            i.Mnemonic
            is Mnemonic.Addpd
                or Mnemonic.Subpd
                or Mnemonic.Mulpd
                or Mnemonic.Divpd
                or Mnemonic.Addsd
                or Mnemonic.Subsd
                or Mnemonic.Mulsd
                or Mnemonic.Divsd;
        if (!single && !@double)
        {
            return false;
        }

        UInt128 a = before.Xmm[i.Op0Register - Register.XMM0];
        UInt128 r = actual.Xmm[i.Op0Register - Register.XMM0];
        bool found = false;
        for (int n = 0; n < (single ? 4 : 2); n++)
        {
            if (single)
            {
                uint x = (uint)(a >> (32 * n));
                found |= float.IsNaN(BitConverter.UInt32BitsToSingle(x)) && (uint)(r >> (32 * n)) == (x | 0x0040_0000);
            }
            else
            {
                ulong x = (ulong)(a >> (64 * n));
                found |=
                    double.IsNaN(BitConverter.UInt64BitsToDouble(x))
                    && (ulong)(r >> (64 * n)) == (x | 0x0008_0000_0000_0000);
            }
        }

        return found;
    }

    private static string Operand(State at, in Instruction i, int n)
    {
        if (n >= i.OpCount || i.GetOpKind(n) != OpKind.Register)
        {
            return "-";
        }

        Register r = i.GetOpRegister(n);
        return r.IsXMM() ? $"{at.Xmm[r - Register.XMM0]:X32}" : $"{at.Gpr[r.GetFullRegister() - Register.RAX]:X16}";
    }
}
