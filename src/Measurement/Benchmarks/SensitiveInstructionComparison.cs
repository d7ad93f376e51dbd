using System.Globalization;
using System.Runtime.Versioning;
using Iced.Intel;
using VirtBench.Strategies;
using VirtBench.Strategies.Carrier;
using VirtBench.Strategies.TrapAndEmulate;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>What a goal for a sensitive instruction is a multiple of.</summary>
internal enum GoalUnit
{
    /// <summary>Nanoseconds.</summary>
    Nanoseconds,

    /// <summary>The instruction's own time where it executes natively.</summary>
    Native,

    /// <summary>The bare hand-off between VMM and carrier, in the same run.</summary>
    HandOff,
}

/// <summary>A sensitive instruction, or two that belong together, in a loop.</summary>
/// <param name="Name">As an assembler writes it.</param>
/// <param name="Instructions">How many sensitive instructions <paramref name="Operation"/> is.</param>
/// <param name="Operation">Emits them. Keeps r15, r14 and what <see cref="Control"/> needs.</param>
/// <param name="Goal">What one is to cost under binary translation, in the project's own design.</param>
/// <param name="Unit">Unit of <paramref name="Goal"/>.</param>
[SupportedOSPlatform("linux")]
internal sealed record SensitiveInstruction(
    string Name,
    int Instructions,
    Action<Assembler> Operation,
    double Goal,
    GoalUnit Unit = GoalUnit.Nanoseconds
)
{
    /// <summary>Operations in one turn of the loop.</summary>
    public const int PerLoop = 8;

    private const ulong Operand = 0x20_0000;

    /// <summary>What sets the operation's operands each time, in the control too.</summary>
    public Action<Assembler> Control { get; init; } = _ => { };

    /// <summary>Those that are compared.</summary>
    public static IReadOnlyList<SensitiveInstruction> All { get; } =
    [
        new(
            "sti, cli",
            2,
            a =>
            {
                a.sti();
                a.cli();
            },
            Goal: 1
        ),
        new(
            "pushfq, popfq",
            2,
            a =>
            {
                a.pushfq();
                a.popfq();
            },
            Goal: 5
        ),
        new("rdtsc", 1, a => a.rdtsc(), Goal: 1.1, GoalUnit.Native),
        new("sidt", 1, a => a.sidt(__[r14]), Goal: 5),
        new("sgdt", 1, a => a.sgdt(__[r14]), Goal: 5),
        new("str eax", 1, a => a.str(eax), Goal: 5),
        new("smsw eax", 1, a => a.smsw(eax), Goal: 5),
        new("mov eax, cs", 1, a => a.mov(eax, cs), Goal: 5),
        new("cpuid", 1, a => a.cpuid(), Goal: 50)
        {
            Control = a =>
            {
                a.mov(eax, PlatformCpuid.HypervisorLeaf);
                a.xor(ecx, ecx);
            },
        },
        new("mov cr0, rax", 1, a => a.mov(cr0, rax), Goal: 1.2, GoalUnit.HandOff),
        new("in al, 0x80", 1, a => a.@in(al, 0x80), Goal: 1.2, GoalUnit.HandOff) { Control = a => a.mov(eax, 0x11) },
    ];

    /// <summary>A guest that does <see cref="PerLoop"/> operations, or in the control none, so many times.</summary>
    public RepeatingGuest Guest(Strategy strategy, int loops, bool control) =>
        new(
            strategy,
            loops,
            a =>
            {
                for (int i = 0; i < PerLoop; i++)
                {
                    Control(a);
                    if (!control)
                    {
                        Operation(a);
                    }
                }
            },
            a =>
            {
                a.mov(r14d, (uint)Operand);
                a.mov(rax, cr0);
            }
        );
}

/// <summary>
/// What a sensitive instruction costs under binary translation, under trap-and-emulate and natively, where ring 3 may execute it: the time of a loop
/// that holds it less that of the same loop without, window by window in turns.
/// </summary>
[SupportedOSPlatform("linux")]
internal static class SensitiveInstructionComparison
{
    private const int Windows = 40;
    private const int WarmUpWindows = 5;
    private const int HandOffs = 200;
    private const int CalibrationLoops = 20;
    private const int MostLoops = 200_000;

    /// <summary>About how long a window of one loop is to last.</summary>
    private const double WindowNanoseconds = 2e6;

    /// <summary>Measures and prints the table; without a strategy that translates its columns are empty.</summary>
    public static void Print(TextWriter output, Strategy direct, Strategy? translating)
    {
        using var floors = new CarrierCalibration(DirectExecutionProbe.IretRefusal is null);
        output.WriteLine($"Sensitive instructions, {Windows} windows in turns, this host, ns each; medians:");
        output.WriteLine(
            "| instruction | translated | trapped | exits each | trapped / translated | native | hand-off | goal | met |"
        );
        output.WriteLine("|---|---:|---:|---:|---:|---:|---:|---:|---|");
        foreach (SensitiveInstruction instruction in SensitiveInstruction.All)
        {
            output.WriteLine(Row(instruction, direct, translating, floors));
        }
    }

    private static string Row(
        SensitiveInstruction instruction,
        Strategy direct,
        Strategy? translating,
        CarrierCalibration floors
    )
    {
        using var trapped = new Loops(instruction, direct);
        using Loops? translated = translating is null ? null : new Loops(instruction, translating);
        using Loops? native = instruction.Unit == GoalUnit.Native ? new Loops(instruction, new NativeStrategy()) : null;
        double[] ofTrapped = new double[Windows];
        double[] ofTranslated = new double[Windows];
        double[] ofNative = new double[Windows];
        double[] ratio = new double[Windows];
        double[] handOff = new double[Windows];
        double[] toGoal = new double[Windows];
        for (int i = -WarmUpWindows; i < Windows; i++)
        {
            int window = Math.Max(i, 0);
            ofTranslated[window] = translated?.Nanoseconds() ?? 0;
            ofTrapped[window] = trapped.Nanoseconds();
            ofNative[window] = native?.Nanoseconds() ?? 0;
            handOff[window] = floors.HandOffNanoseconds(HandOffs);
            ratio[window] = ofTrapped[window] / ofTranslated[window];
            toGoal[window] =
                ofTranslated[window]
                / instruction.Unit switch
                {
                    GoalUnit.Native => ofNative[window],
                    GoalUnit.HandOff => handOff[window],
                    _ => 1,
                };
        }

        string unit = instruction.Unit switch
        {
            GoalUnit.Native => " × native",
            GoalUnit.HandOff => " × hand-off",
            _ => " ns",
        };
        double goal = Median(toGoal);
        return string.Create(
            CultureInfo.InvariantCulture,
            $"| {instruction.Name} | {Shown(translated, ofTranslated)} | {Shown(trapped, ofTrapped)} | {trapped.ExitsEach:F2} | {(translated is null ? "" : $"{Median(ratio):F1}")} | {Shown(native, ofNative)} | {Median(handOff):F0} | {instruction.Goal}{unit} | {(translated is null ? "" : $"{goal:F2}{unit}: {(goal <= instruction.Goal ? "yes" : "no")}")} |"
        );
    }

    private static string Shown(Loops? loops, double[] values) =>
        loops is null ? "" : Median(values).ToString("F2", CultureInfo.InvariantCulture);

    // A copy, since the windows belong together.
    private static double Median(double[] values) => Quantiles.At([.. values.Order()], 0.5);

    /// <summary>The loop with the instruction and the one without, under one strategy.</summary>
    private sealed class Loops : IDisposable
    {
        private readonly RepeatingGuest _with;
        private readonly RepeatingGuest _without;
        private readonly double _instructions;

        public Loops(SensitiveInstruction instruction, Strategy strategy)
        {
            int loops = LoopsPerWindow(instruction, strategy);
            _instructions = (double)loops * SensitiveInstruction.PerLoop * instruction.Instructions;
            _with = instruction.Guest(strategy, loops, control: false);
            _without = instruction.Guest(strategy, loops, control: true);
            LedgerSnapshot before = _with.Ledger.Snapshot();
            _with.Run();
            LedgerSnapshot exits = _with.Ledger.Snapshot().Since(before);
            long halt = 1;
            ExitsEach = (exits.Counts.Sum() - halt - exits[TrapReason.HiddenPageFault]) / _instructions;
        }

        /// <summary>Exits to the VMM that one instruction takes: 0 where it falls through a hole or is served inline.</summary>
        public double ExitsEach { get; }

        /// <summary>Of one instruction, in this window.</summary>
        public double Nanoseconds() => (Time(_with) - Time(_without)) / _instructions;

        public void Dispose()
        {
            _with.Dispose();
            _without.Dispose();
        }

        private static int LoopsPerWindow(SensitiveInstruction instruction, Strategy strategy)
        {
            int loops = CalibrationLoops;
            while (true)
            {
                using RepeatingGuest guest = instruction.Guest(strategy, loops, control: false);
                guest.Run();
                double elapsed = Time(guest);
                if (elapsed >= WindowNanoseconds / 4 || loops >= MostLoops)
                {
                    return (int)Math.Clamp(loops * WindowNanoseconds / elapsed, 1, MostLoops);
                }

                loops = Math.Min(loops * 10, MostLoops);
            }
        }

        private static double Time(RepeatingGuest guest)
        {
            double start = HostClock.Instance.Nanoseconds;
            guest.Run();
            return HostClock.Instance.Nanoseconds - start;
        }
    }
}
