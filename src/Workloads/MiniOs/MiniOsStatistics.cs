using VirtBench.Vmm.Memory;

namespace VirtBench.Workloads;

/// <summary>What mini-os's kernel has counted of itself, in guest memory at <see cref="Address"/>.</summary>
public sealed record MiniOsStatistics
{
    /// <summary>Guest-physical address of the block: 8 bytes a field, in the order of <see cref="Field"/>.</summary>
    public const ulong Address = 0x3_1000;

    /// <summary>How many system calls there are.</summary>
    public const int CallCount = (int)MiniOsCall.Exit + 1;

    /// <summary>Indices of the fields.</summary>
    internal enum Field
    {
        Ticks,
        IdleTicks,
        Spurious,
        ContextSwitches,
        Preemptions,
        Halts,
        PageFaults,
        FreeFramesAtStart,
        FreeFramesAtEnd,
        FewestFreeFrames,
        Rounds,
        DeviatingRounds,
        Units,
        TimerReload,
        TimerStartEarliest,
        TimerStartLatest,
        TimerReadEarliest,
        TimerReadLatest,
        Processes,
        UnknownCalls,
        FirstCall = 32,
    }

    /// <summary>Timer interrupts taken.</summary>
    public ulong Ticks { get; private init; }

    /// <summary>Of these, in the kernel's idle loop; the others came in ring 3.</summary>
    public ulong IdleTicks { get; private init; }

    /// <summary>Interrupts that an 8259A called spurious.</summary>
    public ulong Spurious { get; private init; }

    /// <summary>Processes loaded in place of another.</summary>
    public ulong ContextSwitches { get; private init; }

    /// <summary>Quanta that ended before the process gave up the CPU.</summary>
    public ulong Preemptions { get; private init; }

    /// <summary>HLTs executed by the idle loop.</summary>
    public ulong Halts { get; private init; }

    /// <summary>Page faults of processes, each answered with a frame of zeros.</summary>
    public ulong PageFaults { get; private init; }

    /// <summary>Free frames of 4 KiB before the first process was made.</summary>
    public ulong FreeFramesAtStart { get; private init; }

    /// <summary>Free frames after the last process ended; 0 before.</summary>
    public ulong FreeFramesAtEnd { get; private init; }

    /// <summary>Fewest free frames that there ever were.</summary>
    public ulong FewestFreeFrames { get; private init; }

    /// <summary>Rounds done by all processes together.</summary>
    public ulong Rounds { get; private init; }

    /// <summary>Rounds whose checksum was not that of the process's first.</summary>
    public ulong DeviatingRounds { get; private init; }

    /// <summary>Work units in all rounds.</summary>
    public ulong Units { get; private init; }

    /// <summary>Count that the 8254 was loaded with: pulses of 1.193182 MHz a tick.</summary>
    public ulong TimerReload { get; private init; }

    /// <summary>Time-stamp counter right before the 8254 was started.</summary>
    public ulong TimerStartEarliest { get; private init; }

    /// <summary>Time-stamp counter right after that: in between any time may pass.</summary>
    public ulong TimerStartLatest { get; private init; }

    /// <summary>Time-stamp counter right before the 8254 was read at the end.</summary>
    public ulong TimerReadEarliest { get; private init; }

    /// <summary>Time-stamp counter after that, when the first characters were on the console.</summary>
    public ulong TimerReadLatest { get; private init; }

    /// <summary>How many processes there were.</summary>
    public ulong Processes { get; private init; }

    /// <summary>System calls with a number that there is not.</summary>
    public ulong UnknownCalls { get; private init; }

    /// <summary>System calls by number, see <see cref="MiniOsCall"/>.</summary>
    public IReadOnlyList<ulong> Calls { get; private init; } = [];

    /// <summary>Reads the block from guest RAM.</summary>
    public static MiniOsStatistics Read(GuestMemory memory)
    {
        ulong At(Field field) => memory.Read<ulong>(AddressOf(field));
        return new MiniOsStatistics
        {
            Ticks = At(Field.Ticks),
            IdleTicks = At(Field.IdleTicks),
            Spurious = At(Field.Spurious),
            ContextSwitches = At(Field.ContextSwitches),
            Preemptions = At(Field.Preemptions),
            Halts = At(Field.Halts),
            PageFaults = At(Field.PageFaults),
            FreeFramesAtStart = At(Field.FreeFramesAtStart),
            FreeFramesAtEnd = At(Field.FreeFramesAtEnd),
            FewestFreeFrames = At(Field.FewestFreeFrames),
            Rounds = At(Field.Rounds),
            DeviatingRounds = At(Field.DeviatingRounds),
            Units = At(Field.Units),
            TimerReload = At(Field.TimerReload),
            TimerStartEarliest = At(Field.TimerStartEarliest),
            TimerStartLatest = At(Field.TimerStartLatest),
            TimerReadEarliest = At(Field.TimerReadEarliest),
            TimerReadLatest = At(Field.TimerReadLatest),
            Processes = At(Field.Processes),
            UnknownCalls = At(Field.UnknownCalls),
            Calls = [.. Enumerable.Range(0, CallCount).Select(call => At(Field.FirstCall + call))],
        };
    }

    /// <summary>Guest-physical address of <see cref="Ticks"/>, which may be read while the guest runs.</summary>
    public static ulong TicksAddress => AddressOf(Field.Ticks);

    internal static ulong AddressOf(Field field) => Address + ((ulong)field * 8);
}
