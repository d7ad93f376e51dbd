using System.Buffers;
using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Disks;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Measurement;

/// <summary>How one guest program is to be run.</summary>
public sealed record GuestRunOptions
{
    /// <summary>RAM in bytes.</summary>
    public ulong RamBytes { get; init; } = 64 << 20;

    /// <summary>Boot parameters.</summary>
    public IReadOnlyList<ulong> Parameters { get; init; } = [];

    /// <summary>Wall-clock limit; null for none.</summary>
    public TimeSpan? Timeout { get; init; }

    /// <summary>Time that the guest has to come back when it is kicked; null for <see cref="VcpuThread.DefaultGrace"/>.</summary>
    public TimeSpan? Grace { get; init; }

    /// <summary>
    /// Offer the paravirtual interface under a strategy that has it: to a guest that is built for it. Another one would never open the
    /// interrupt mask that it does not know of.
    /// </summary>
    public bool OffersInterface { get; init; } = true;

    /// <summary>End a guest that touches a port or an address that nothing answers.</summary>
    public bool Strict { get; init; }

    /// <summary>Is shown every block that the engine translates, on the vCPU thread; null for nobody.</summary>
    public ITranslationObserver? TranslationObserver { get; init; }

    /// <summary>Its disk; null for none.</summary>
    public GuestDisk? Disk { get; init; }

    /// <summary>Most bytes of the console that the result keeps; the rest is still passed on to the sink.</summary>
    public int ConsoleLimit { get; init; } = 1 << 20;
}

/// <summary>What one run of a guest program came to.</summary>
/// <param name="Strategy">Strategy id.</param>
/// <param name="Outcome">How it ended.</param>
/// <param name="Console">What it sent to the console, up to the limit.</param>
/// <param name="ConsoleBytes">Bytes it sent in all.</param>
/// <param name="ElapsedNanoseconds">Time from the first entry to the end, on the engine's clock.</param>
/// <param name="Regions">The regions it measured.</param>
/// <param name="Exits">Exits by the ledger's names; reasons that did not occur are left out.</param>
/// <param name="KernelStatistics">
/// What the host's kernel counted of the vCPU in all, 0 left out but for its exits; null where it keeps no account, or the run
/// was abandoned.
/// </param>
/// <param name="Faithful">
/// False when the image holds instructions that this strategy executes without the VMM seeing them.
/// </param>
/// <param name="Notes">Lines for the user: such instructions, "not faithful: …" first; accesses to nothing, console bytes not kept.</param>
/// <param name="TimeSource">Where the times come from.</param>
public sealed record GuestRunResult(
    string Strategy,
    RunOutcome Outcome,
    ReadOnlyMemory<byte> Console,
    long ConsoleBytes,
    double ElapsedNanoseconds,
    IReadOnlyList<MeasuredRegion> Regions,
    IReadOnlyDictionary<string, long> Exits,
    IReadOnlyDictionary<string, ulong>? KernelStatistics,
    bool Faithful,
    IReadOnlyList<string> Notes,
    string TimeSource
)
{
    /// <summary>
    /// What became of its interrupts; null when it has not initialized an interrupt controller, or the run was abandoned.
    /// </summary>
    public InterruptStatistics? Interrupts { get; init; }

    /// <summary>What its disk has done; null when it has none.</summary>
    public DiskStatistics? Disk { get; init; }

    /// <summary>What the engine translated in all; null for one that does not translate, or when the run was abandoned.</summary>
    public TranslationStatistics? Translation { get; init; }

    /// <summary>Ticks per second of the engine's clock, which <see cref="TranslationStatistics.Ticks"/> counts.</summary>
    public double TicksPerSecond { get; init; }

    /// <summary>Exits in a region, the markers' own left out.</summary>
    public static long TrapsIn(MeasuredRegion region) =>
        region.Exits.Counts.Sum() - region.Exits[TrapReason.RegionMarker];
}

/// <summary>Runs one guest program under one strategy: what <c>virtbench exec</c> does.</summary>
public static class GuestRun
{
    /// <summary>Runs it to its end on a thread of its own, and waits for it.</summary>
    /// <param name="strategy">A strategy that is available.</param>
    /// <param name="image">The program.</param>
    /// <param name="options">RAM, parameters, limits.</param>
    /// <param name="console">Receives each console byte as the guest sends it, on the vCPU thread; may be null.</param>
    /// <param name="cancellation">Kicks the guest out when signalled.</param>
    /// <exception cref="GuestImageException">The image does not fit.</exception>
    /// <exception cref="DiskUnavailableException">The disk cannot be had, or not by this guest.</exception>
    /// <exception cref="ArgumentException">Translation is to be observed, and the strategy makes no code of guest code.</exception>
    public static GuestRunResult Execute(
        Strategy strategy,
        GuestImage image,
        GuestRunOptions options,
        Action<byte>? console = null,
        CancellationToken cancellation = default
    )
    {
        using var machine = new VirtualMachine(options.RamBytes, strategy.CreateEngine, options.Strict);
        var kept = new ArrayBufferWriter<byte>();
        long sent = 0;
        machine.Serial.Transmitted = value =>
        {
            if (sent++ < options.ConsoleLimit)
            {
                kept.GetSpan(1)[0] = value;
                kept.Advance(1);
            }

            console?.Invoke(value);
        };
        if (options.Disk is { } described)
        {
            Attach(machine, described.Open(), strategy.Delivery);
        }

        if (options.TranslationObserver is { } observer && !machine.ObserveTranslation(observer))
        {
            throw new ArgumentException(
                $"{strategy.Id} makes no code of guest code that could be shown",
                nameof(options)
            );
        }

        machine.Load(
            image,
            new BootOptions
            {
                Parameters = options.Parameters,
                Paravirtual = options.OffersInterface && strategy.Interface == GuestInterface.Paravirtual,
            }
        );
        IReadOnlyList<HoleOccurrence> holes = HoleScan.Find(image, machine.Capabilities.Holes);

        VcpuRun run = VcpuThread.Run(machine, options.Timeout, options.Grace, cancellation);
        if (run.Outcome.End == RunEnd.Abandoned)
        {
            // Should its thread ever come back, nobody listens any more.
            machine.Serial.Transmitted = null;
        }

        var notes = new List<string>();
        if (holes.Count > 0)
        {
            notes.Add(new FaithfulnessMark([.. holes.Select(one => one.Hole.Instruction).Distinct()]).ToString());
            notes.AddRange(HoleScan.Describe(holes, strategy.Id));
        }

        if (machine.Capabilities.Holes.Count > 0 && !HoleScan.SearchesAllOf(image))
        {
            notes.Add(
                $"only the first {HoleScan.MaximumBytes >> 20} MiB of code were searched for instructions that are not trapped"
            );
        }

        if (machine.Ports.UnclaimedAccesses > 0)
        {
            notes.Add($"accesses to ports without a device: {machine.Ports.UnclaimedAccesses}");
        }

        if (machine.AbsentMemory.UnclaimedAccesses > 0)
        {
            notes.Add($"accesses to addresses without RAM: {machine.AbsentMemory.UnclaimedAccesses}");
        }

        if (machine.DiskHostError is { } lost)
        {
            notes.Add(lost);
        }

        if (sent > options.ConsoleLimit)
        {
            notes.Add($"the console's first {options.ConsoleLimit} of {sent} bytes were kept");
        }

        var exits = new Dictionary<string, long>();
        for (int i = 0; i < TrapReasons.Count; i++)
        {
            if (machine.Ledger.Count((TrapReason)i) is > 0 and var count)
            {
                exits.Add(((TrapReason)i).Name(), count);
            }
        }

        return new GuestRunResult(
            strategy.Id,
            run.Outcome,
            kept.WrittenMemory,
            sent,
            run.ElapsedNanoseconds,
            [.. machine.Regions],
            exits,
            run.Outcome.End == RunEnd.Abandoned ? null : machine.KernelStatistics()?.Telling(),
            holes.Count == 0,
            notes,
            machine.Capabilities.TimeSource
        )
        {
            Interrupts = run.Outcome.End == RunEnd.Abandoned ? null : machine.InterruptStatistics(),
            Disk = machine.DiskStatistics(),
            Translation = run.Outcome.End == RunEnd.Abandoned ? null : machine.TranslationStatistics(),
            TicksPerSecond = machine.Clock.TicksPerSecond,
        };
    }

    private static void Attach(VirtualMachine machine, Disk disk, InterruptDelivery delivery)
    {
        try
        {
            machine.AttachDisk(disk, delivery);
        }
        catch
        {
            disk.Dispose();
            throw;
        }
    }
}
