using System.Runtime.Versioning;
using BenchmarkDotNet.Attributes;
using VirtBench.Strategies;
using VirtBench.Strategies.Carrier;
using VirtBench.Strategies.TrapAndEmulate;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;
using VirtBench.Workloads;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>
/// What the operations of the paravirtual interface cost under <c>paravirtual</c>, beside the same of a real machine under
/// <c>trap-and-emulate</c>. The comparison in turns that follows the suite (<see cref="ParavirtualComparison"/>) says more.
/// </summary>
[Config(typeof(InProcessConfiguration))]
[SupportedOSPlatform("linux")]
public class ParavirtualBenchmarks : IDisposable
{
    private const int Loops = 1_000;

    private RepeatingGuest? _guest;

    /// <summary>Id of the strategy.</summary>
    [Params("paravirtual", "trap-and-emulate")]
    public string Strategy { get; set; } = "";

    /// <summary>Boots the guest of hypercalls; of CPUID's trapping counterpart, OUT, where there are none.</summary>
    [GlobalSetup(Target = nameof(Call))]
    public void SetUpCall() => SetUp(ParavirtualGuests.Call);

    /// <summary>A hypercall that does nothing; an OUT to a port without a device.</summary>
    [Benchmark(OperationsPerInvoke = Loops)]
    public void Call() => _guest!.Run();

    /// <summary>Boots the guest that holds interrupts back.</summary>
    [GlobalSetup(Target = nameof(Mask))]
    public void SetUpMask() => SetUp(ParavirtualGuests.Mask);

    /// <summary>Interrupts held back and let in.</summary>
    [Benchmark(OperationsPerInvoke = Loops)]
    public void Mask() => _guest!.Run();

    /// <summary>Boots the guest that reads the time.</summary>
    [GlobalSetup(Target = nameof(Time))]
    public void SetUpTime() => SetUp(a => a.ReadTime());

    /// <summary>A reading of the time.</summary>
    [Benchmark(OperationsPerInvoke = Loops)]
    public void Time() => _guest!.Run();

    private void SetUp(Action<GuestAssembler> body) =>
        _guest = new RepeatingGuest(StrategyCatalog.Find(Strategy)!, Loops, body);

    /// <summary>Ends the guest.</summary>
    [GlobalCleanup]
    public void Dispose()
    {
        _guest?.Dispose();
        GC.SuppressFinalize(this);
    }
}

/// <summary>The guests of the paravirtual benchmarks.</summary>
[SupportedOSPlatform("linux")]
internal static class ParavirtualGuests
{
    private const ulong Tables = 0x100_0000;
    private const ulong Frames = 0x120_0000;
    private const ulong Records = 0x140_0000;
    private const ulong Sums = 0x150_0000;
    private const ulong Pages = 1UL << 30;
    private const int MaximumBatch = 32;

    /// <summary>A hypercall for nothing, or an OUT to a port without a device.</summary>
    public static void Call(GuestAssembler a)
    {
        if (a.Interface == GuestInterface.Paravirtual)
        {
            a.Hypercall(HypercallNumber.Features);
        }
        else
        {
            a.@out(0x80, al);
        }
    }

    /// <summary>Interrupts held back and let in again.</summary>
    public static void Mask(GuestAssembler a)
    {
        a.DisableInterrupts();
        a.EnableInterrupts();
    }

    /// <summary>
    /// A guest that changes so many page-table entries at a time, in an address space of its own, back and forth between two frames each.
    /// </summary>
    /// <param name="strategy">Under which strategy.</param>
    /// <param name="rounds">How many changes in a run of the guest.</param>
    /// <param name="batch">Entries, 1 to 32.</param>
    /// <param name="touched">Each page is read before, so that there is a mapping to be taken back.</param>
    public static RepeatingGuest Updating(Strategy strategy, int rounds, int batch, bool touched)
    {
        var guest = new RepeatingGuest(
            strategy,
            rounds,
            a =>
            {
                for (ulong parity = 0; parity < 2; parity++)
                {
                    for (int i = 0; touched && i < batch; i++)
                    {
                        a.mov(rbx, Pages + (GuestMemory.PageSize * (ulong)i));
                        a.mov(rbx, __[rbx]);
                    }

                    Timestamp(a);
                    a.mov(r14, rax);
                    a.mov(rdi, Records + (parity * GuestMemory.PageSize));
                    a.mov(rsi, batch);
                    a.UpdatePageTables();
                    Timestamp(a);
                    a.sub(rax, r14);
                    a.add(__qword_ptr[Sums], rax);
                    a.inc(__qword_ptr[Sums + 8]);
                }
            },
            a =>
            {
                a.mov(rbx, Tables);
                a.WriteCr3(rbx);
            }
        );
        Build(guest.Memory);
        return guest;
    }

    /// <summary>Ticks of the time-stamp counter that one change has taken, on average since this was last asked.</summary>
    public static double TicksPerUpdate(RepeatingGuest guest)
    {
        double ticks = guest.Memory.Read<ulong>(Sums);
        double count = guest.Memory.Read<ulong>(Sums + 8);
        guest.Memory.Write(Sums, 0UL);
        guest.Memory.Write(Sums + 8, 0UL);
        return ticks / count;
    }

    private static void Timestamp(GuestAssembler a)
    {
        a.lfence();
        a.rdtsc();
        a.shl(rdx, 32);
        a.or(rax, rdx);
    }

    private static void Build(GuestMemory memory)
    {
        const ulong rights = Pte.Present | Pte.Writable | Pte.Accessed | Pte.Dirty;
        const ulong pointers = Tables + 0x1000;
        const ulong directory = Tables + 0x2000;
        const ulong table = Tables + 0x3000;
        memory.Write(Tables, pointers | rights);
        memory.Write(pointers, (PhysicalLayout.PageTables + 0x2000) | rights);
        memory.Write(pointers + 8, directory | rights);
        memory.Write(directory, table | rights);
        for (ulong i = 0; i < MaximumBatch; i++)
        {
            for (ulong parity = 0; parity < 2; parity++)
            {
                ulong frame = Frames + (GuestMemory.PageSize * (i + (parity * MaximumBatch)));
                ulong record = Records + (parity * GuestMemory.PageSize) + (16 * i);
                memory.Write(record, table + (8 * i));
                memory.Write(record + 8, frame | rights);
            }

            memory.Write(table + (8 * i), (Frames + (GuestMemory.PageSize * (i + MaximumBatch))) | rights);
        }
    }
}

/// <summary>
/// The paravirtual interface in turns, because on a shared host times drift within seconds: a hypercall through the gate against the bare
/// hand-off, masking interrupts, the paravirtual clock against RDTSC, and a batch of page-table updates against one.
/// </summary>
[SupportedOSPlatform("linux")]
internal static class ParavirtualComparison
{
    private const int Windows = 200;
    private const int WarmUpWindows = 50;
    private const int Calls = 4_000; // and hand-offs: so many that it does not count that a carrier has to be woken first
    private const int Loops = 20_000;
    private const int Unrolled = 8;
    private const int Updates = 100;
    private const int Batch = 32;

    /// <summary>Measures and prints a line per quantity.</summary>
    public static void Print(TextWriter output)
    {
        var strategy = new ParavirtualStrategy();
        if (strategy.UnavailableReason() is { } reason)
        {
            output.WriteLine($"{strategy.Id}: skipped, {reason}");
            return;
        }

        output.WriteLine($"In turns, {Windows} windows each, this host:");
        Calling(output, strategy);
        Masking(output, strategy);
        Reading(output, strategy);
        Updating(output, strategy, touched: false);
        Updating(output, strategy, touched: true);
    }

    private static void Calling(TextWriter output, Strategy strategy)
    {
        using var guest = new RepeatingGuest(strategy, Calls, ParavirtualGuests.Call);
        using var floor = new CarrierCalibration(DirectExecutionProbe.IretRefusal is null);
        double[] handOff = new double[Windows];
        double[] hypercall = new double[Windows];
        InTurns(
            window => handOff[window] = floor.HandOffNanoseconds(Calls),
            window => hypercall[window] = Time(guest) / Calls
        );
        double[] ratio = Ratio(hypercall, handOff);
        Quantiles.Print(output, "bare hand-off, ns", handOff, "F0");
        Quantiles.Print(output, "hypercall through the gate, ns", hypercall, "F0");
        Quantiles.Print(output, "hypercall / hand-off", ratio, "F3");
    }

    private static void Masking(TextWriter output, Strategy strategy)
    {
        using RepeatingGuest control = Unroll(strategy, _ => { });
        using RepeatingGuest masking = Unroll(strategy, ParavirtualGuests.Mask);
        double[] without = new double[Windows];
        double[] with = new double[Windows];
        InTurns(window => without[window] = Time(control), window => with[window] = Time(masking));
        double[] pair = [.. with.Zip(without, (one, other) => (one - other) / (Loops * Unrolled))];
        Quantiles.Print(output, "mask and unmask, a pair, ns", pair, "F3");
    }

    private static void Reading(TextWriter output, Strategy strategy)
    {
        using RepeatingGuest clock = Unroll(strategy, a => a.ReadTime());
        using RepeatingGuest counter = Unroll(strategy, a => a.rdtsc());
        double[] read = new double[Windows];
        double[] bare = new double[Windows];
        InTurns(
            window => read[window] = Time(clock) / (Loops * Unrolled),
            window => bare[window] = Time(counter) / (Loops * Unrolled)
        );
        double[] ratio = Ratio(read, bare);
        Quantiles.Print(output, "RDTSC, ns", bare, "F2");
        Quantiles.Print(output, "paravirtual clock, ns", read, "F2");
        Quantiles.Print(output, "paravirtual clock / RDTSC", ratio, "F3");
    }

    private static void Updating(TextWriter output, Strategy strategy, bool touched)
    {
        using RepeatingGuest one = ParavirtualGuests.Updating(strategy, Updates, 1, touched);
        using RepeatingGuest many = ParavirtualGuests.Updating(strategy, Updates, Batch, touched);
        double[] single = new double[Windows];
        double[] batch = new double[Windows];
        InTurns(window => single[window] = TimeUpdates(one), window => batch[window] = TimeUpdates(many));
        double[] ratio = Ratio(batch, single);
        string what = touched ? "pages in use" : "pages not in use";
        Quantiles.Print(output, $"update of 1 entry, {what}, ns", single, "F0");
        Quantiles.Print(output, $"of {Batch} in a batch, {what}, ns", batch, "F0");
        Quantiles.Print(output, $"batch of {Batch} / 1, {what}", ratio, "F3");
    }

    private static RepeatingGuest Unroll(Strategy strategy, Action<GuestAssembler> operation) =>
        new(
            strategy,
            Loops,
            a =>
            {
                for (int i = 0; i < Unrolled; i++)
                {
                    operation(a);
                }

                a.nop();
            }
        );

    private static double TimeUpdates(RepeatingGuest guest)
    {
        guest.Run();
        return ParavirtualGuests.TicksPerUpdate(guest) * (1e9 / HostClock.Instance.TicksPerSecond);
    }

    private static void InTurns(params Action<int>[] measured)
    {
        for (int i = -WarmUpWindows; i < Windows; i++)
        {
            foreach (Action<int> measure in measured)
            {
                measure(Math.Max(i, 0));
            }
        }
    }

    private static double[] Ratio(double[] numerators, double[] denominators) =>
        [.. numerators.Zip(denominators, (numerator, denominator) => numerator / denominator)];

    private static double Time(RepeatingGuest guest)
    {
        double start = HostClock.Instance.Nanoseconds;
        guest.Run();
        return HostClock.Instance.Nanoseconds - start;
    }
}
