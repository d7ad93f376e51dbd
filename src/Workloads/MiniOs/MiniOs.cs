using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Disks;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Workloads;

/// <summary>
/// An operating system in miniature: several processes in address spaces of their own, a timer and round-robin scheduling,
/// system calls, demand paging. Its kernel is <see cref="MiniOsKernel"/>, the memory map <see cref="MiniOsLayout"/>, what the
/// processes do <see cref="MiniOsProgram"/>, and what the kernel counts <see cref="MiniOsStatistics"/>.
/// </summary>
/// <remarks>
/// Boot parameters beyond those of every workload: <see cref="MiniOsParameter"/>. The units are shared out among the processes. Every
/// process writes the checksum of its work and hands it to the kernel, which prints and combines them in the order of the
/// processes. Nothing of that depends on time or on how the processes were interleaved: it is the same on every strategy. It differs from k to k, because some of the system calls give heap pages back.
/// </remarks>
public sealed class MiniOs : Workload
{
    /// <summary>
    /// Timer frequency in hertz when the boot parameters give none: what even a host with little time for its guest gets done.
    /// Ticks are never lost, so a guest that takes longer for one than its period gets nothing else done.
    /// </summary>
    public const int DefaultTimerHertz = 100;

    /// <summary>Least timer frequency, in hertz.</summary>
    public const int MinimumTimerHertz = 100;

    /// <summary>Greatest timer frequency, in hertz.</summary>
    public const int MaximumTimerHertz = 1000;

    /// <summary>Ticks of a quantum when the boot parameters give none.</summary>
    public const int DefaultQuantum = 2;

    /// <summary>Most processes.</summary>
    public const int MaximumProcesses = ProcessBlock.Maximum;

    /// <summary>Least RAM in bytes.</summary>
    public const ulong MinimumRam = MiniOsLayout.RamBytes;

    /// <summary>Pages of each process's heap.</summary>
    internal const int HeapPages = 64;

    /// <summary>Slots of a unit, each with room for one system call.</summary>
    internal const int Slots = 16;

    private readonly int _processes;

    /// <summary>Four processes.</summary>
    public MiniOs()
        : this(processes: 4) { }

    /// <summary>Chooses the number of processes.</summary>
    /// <param name="processes">1 to <see cref="MaximumProcesses"/>.</param>
    /// <exception cref="ArgumentOutOfRangeException">Outside these limits.</exception>
    public MiniOs(int processes)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(processes, 1);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(processes, MaximumProcesses);
        _processes = processes;
    }

    /// <inheritdoc/>
    public override string Id => "mini-os";

    /// <inheritdoc/>
    public override string Description =>
        $"an operating system in miniature: {_processes} processes, timer, demand paging; k system calls per unit";

    /// <inheritdoc/>
    public override SensitiveOperation Operation(GuestInterface guestInterface) =>
        new("syscall", TrapReason.SystemCall);

    /// <inheritdoc/>
    public override bool RunsInUserMode => true;

    /// <inheritdoc/>
    public override bool NeedsPrivilege => true;

    /// <summary>See <see cref="MiniOsStore"/>, which its content is. Without a disk the programs of the image run.</summary>
    public override DiskRequirement Disk => MiniOsStore.Requirement;

    /// <inheritdoc/>
    public override int MaximumTrapsPerUnit => Slots;

    /// <inheritdoc/>
    public override int DefaultFiller => 80_000;

    /// <summary>Least value of <see cref="WorkloadOptions.FillerInstructions"/>.</summary>
    public static int MinimumFiller => MiniOsProgram.UnitControl + (Slots * (MiniOsProgram.SlotInstructions + 1));

    /// <summary>
    /// As for every workload. The filler of a unit is what a process executes in ring 3; what the kernel does for it comes on
    /// top.
    /// </summary>
    /// <inheritdoc/>
    public override GuestImage Build(WorkloadOptions options)
    {
        if (options.TrapsPerUnit < 0 || options.TrapsPerUnit > Slots)
        {
            throw new ArgumentOutOfRangeException(
                nameof(options),
                $"{Id} has room for 0 to {Slots} traps per unit, not {options.TrapsPerUnit}"
            );
        }

        if (options.FillerInstructions < MinimumFiller)
        {
            throw new ArgumentOutOfRangeException(
                nameof(options),
                $"a unit of {Id} has at least {MinimumFiller} instructions besides the system calls, not {options.FillerInstructions}"
            );
        }

        MiniOsKernelImage kernel = MiniOsKernel.Assemble(_processes, options.Interface);
        byte[] program = MiniOsProgram.Assemble(options);
        byte[] constants = MiniOsProgram.ConstantBytes();
        return new GuestImage(
            $"{Id}, k = {options.TrapsPerUnit}, filler {options.FillerInstructions}",
            kernel.Entry,
            MiniOsTables.Segments(kernel, program, constants)
        )
        {
            Disk = Disk with { Content = MiniOsStore.Content(program, constants) },
        };
    }

    /// <summary>Seed of a process's work; also what the kernel multiplies the results with. Never 0, always odd.</summary>
    internal static ulong Seed(int process) => 0x9E37_79B9_7F4A_7C15UL * (ulong)((2 * process) + 1);
}

/// <summary>Boot parameters of mini-os, by index. 0, or one that is not given, stands for the default.</summary>
public enum MiniOsParameter
{
    /// <summary>Units to warm up with, shared out among the processes.</summary>
    WarmUp,

    /// <summary>Units to measure, shared out among the processes.</summary>
    Units,

    /// <summary>Frequency of the timer in hertz.</summary>
    TimerHertz,

    /// <summary>Ticks until another process has its turn.</summary>
    Quantum,

    /// <summary>
    /// Repeat rounds of as many units until the timer has ticked so often; 0 for one round. The region then holds all of them.
    /// </summary>
    RunTicks,

    /// <summary>Ticks that a process sleeps between two rounds.</summary>
    RestTicks,

    /// <summary>A <see cref="MiniOsMisbehaviour"/>.</summary>
    Misbehaviour,
}
