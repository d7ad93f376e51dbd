using VirtBench.Vmm.Execution;

namespace VirtBench.Measurement;

/// <summary>One cell of a sweep.</summary>
/// <param name="Strategy">Strategy id.</param>
/// <param name="Workload">Workload id.</param>
/// <param name="TrapsPerUnit">k.</param>
public readonly record struct Cell(string Strategy, string Workload, int TrapsPerUnit);

/// <summary>Tukey's label of a sample within its cell; a label never removes a sample.</summary>
public enum OutlierLabel : byte
{
    /// <summary>Within 1.5 interquartile ranges of the quartiles, or not judged.</summary>
    None,

    /// <summary>Between 1.5 and 3 interquartile ranges outside.</summary>
    Mild,

    /// <summary>More than 3 interquartile ranges outside.</summary>
    Extreme,
}

/// <summary>How a sample came out; the word in samples.csv is the lower-case name.</summary>
public enum SampleStatus : byte
{
    /// <summary>Measured, and the traps are those expected.</summary>
    Ok,

    /// <summary>Measured, but the observed traps are not k × units.</summary>
    TrapMismatch,

    /// <summary>Measured, but the checksum differs from the other strategies', and no known hole explains it.</summary>
    ChecksumMismatch,

    /// <summary>Not measured: the guest failed or ran out of time. The note says why.</summary>
    Failed,
}

/// <summary>One measured sample: a row of samples.csv.</summary>
/// <param name="Round">Round number, from 0.</param>
/// <param name="Cell">Strategy, workload and k.</param>
/// <param name="Units">Work units done.</param>
/// <param name="Traps">
/// Sensitive operations that trapped: observed exits of the workload's kind, by how many of them one operation takes. All exits of
/// the region where it has no kind.
/// </param>
/// <param name="ElapsedNanoseconds">Region time on the engine's clock.</param>
/// <param name="GuestTscTicks">Region time as the guest itself took it, TSC ticks.</param>
/// <param name="StealNanoseconds">Time the hypervisor below took from the host's CPUs meanwhile; 0 for computed times.</param>
/// <param name="InvoluntarySwitches">Involuntary context switches of the vCPU's threads meanwhile.</param>
/// <param name="Outlier">Tukey label.</param>
/// <param name="Status">How it came out.</param>
/// <param name="Note">Free text, empty when there is nothing to say.</param>
public sealed record Sample(
    int Round,
    Cell Cell,
    long Units,
    long Traps,
    double ElapsedNanoseconds,
    ulong GuestTscTicks,
    double StealNanoseconds,
    long InvoluntarySwitches,
    OutlierLabel Outlier,
    SampleStatus Status,
    string Note
)
{
    /// <summary>The mark that the note begins with: what of its guest the engine let through. Null where it was faithful.</summary>
    public FaithfulnessMark? Mark => FaithfulnessMark.Of(Note);

    /// <summary>Neither measured as expected nor explained by a hole that ends the guest.</summary>
    public bool IsWrong => Status != SampleStatus.Ok && !(Status == SampleStatus.Failed && Mark?.GuestEnded == true);

    /// <summary>Nanoseconds per work unit.</summary>
    public double NanosecondsPerUnit => ElapsedNanoseconds / Units;
}

/// <summary>Exits of one reason in one sample: a row of exits.csv. Times are totals over the sample.</summary>
/// <param name="Round">Round number.</param>
/// <param name="Cell">Strategy, workload and k.</param>
/// <param name="Reason">Ledger reason's name, or one of <see cref="EngineReasons"/>.</param>
/// <param name="Count">Exits.</param>
/// <param name="SwitchOutNanoseconds">World switch out of the guest; null where the engine cannot tell.</param>
/// <param name="DispatchNanoseconds">From the exit being seen to the handler being known.</param>
/// <param name="EmulateNanoseconds">From there to the VM being ready for entry.</param>
/// <param name="SwitchInNanoseconds">World switch back in; null where the engine cannot tell.</param>
public sealed record ExitRecord(
    int Round,
    Cell Cell,
    string Reason,
    long Count,
    double? SwitchOutNanoseconds,
    double DispatchNanoseconds,
    double EmulateNanoseconds,
    double? SwitchInNanoseconds
);

/// <summary>
/// What the host's kernel counted of the vCPU in one sample: a row of kernel-statistics.csv. Only strategies whose engine runs
/// in the kernel have any.
/// </summary>
/// <param name="Round">Round number.</param>
/// <param name="Cell">Strategy, workload and k.</param>
/// <param name="Statistic">The counter's name, as the kernel gives it.</param>
/// <param name="Count">What it rose by in the measured region.</param>
public sealed record KernelStatisticRecord(int Round, Cell Cell, string Statistic, ulong Count);

/// <summary>What a <see cref="TranslationRecord"/> counts over; the word in translation-statistics.csv is the lower-case name.</summary>
public enum TranslationScope : byte
{
    /// <summary>The measured region: what is translated there was not before, or was and has been overwritten.</summary>
    Region,

    /// <summary>All of the sample's VM, from its creation to its end: boot and warm-up too.</summary>
    Run,
}

/// <summary>
/// What an engine translated in one sample: a row of translation-statistics.csv. Only strategies that translate have any.
/// </summary>
/// <param name="Round">Round number.</param>
/// <param name="Cell">Strategy, workload and k.</param>
/// <param name="Scope">The measured region, or all of the VM's life.</param>
/// <param name="Statistics">The counts.</param>
/// <param name="TranslateNanoseconds"><see cref="TranslationStatistics.Ticks"/> as time.</param>
public sealed record TranslationRecord(
    int Round,
    Cell Cell,
    TranslationScope Scope,
    TranslationStatistics Statistics,
    double TranslateNanoseconds
);

/// <summary>
/// Reasons in exits.csv for which translated code is left without the VMM seeing it: the engine serves them itself. None is a trap,
/// and the ledger knows none of them.
/// </summary>
public static class EngineReasons
{
    /// <summary>A block was translated; its emulation time is that of translating.</summary>
    public const string Translate = "translate";

    /// <summary>A direct branch whose target was not linked yet.</summary>
    public const string Link = "link";

    /// <summary>An indirect branch or return whose target no inline lookup knew.</summary>
    public const string LookupMiss = "lookup-miss";

    /// <summary>Whether this reason is one of them.</summary>
    public static bool Contains(string reason) => reason is Translate or Link or LookupMiss;
}

/// <summary>A cell that was not measured, and why.</summary>
/// <param name="Strategy">Strategy id.</param>
/// <param name="Workload">Workload id, or null when all of the strategy is skipped.</param>
/// <param name="Reason">One line.</param>
public sealed record SkippedCell(string Strategy, string? Workload, string Reason);

/// <summary>
/// Input and output of a guest in one sample: a row of io-statistics.csv. Only samples whose virtual CPU slept or whose disk was used have one.
/// </summary>
/// <param name="Round">Round number.</param>
/// <param name="Cell">Strategy, workload and k.</param>
/// <param name="Statistics">The account of the measured region.</param>
public sealed record IoRecord(int Round, Cell Cell, IoStatistics Statistics);

/// <summary>What is counted of a sample besides its own row.</summary>
/// <param name="Exits">Its exits, as the VMM saw them.</param>
/// <param name="KernelStatistics">
/// What the host's kernel counted meanwhile: the counters that rose, and always its exits. Empty where it keeps no account.
/// </param>
/// <param name="Translations">What the engine translated, by scope. Empty where it does not translate.</param>
/// <param name="Io">What the guest waited for and its disk did; null where there was nothing of both.</param>
public sealed record SampleRecords(
    IReadOnlyList<ExitRecord> Exits,
    IReadOnlyList<KernelStatisticRecord> KernelStatistics,
    IReadOnlyList<TranslationRecord> Translations,
    IoRecord? Io = null
)
{
    /// <summary>Nothing.</summary>
    public static SampleRecords None { get; } = new([], [], []);
}

/// <summary>Receives what a sweep measures, as it measures it.</summary>
public interface ISweepObserver
{
    /// <summary>A sample is done; nothing will change it any more except its outlier label.</summary>
    /// <param name="sample">The sample.</param>
    /// <param name="records">What else was counted of it.</param>
    void SampleTaken(Sample sample, SampleRecords records);

    /// <summary>How far the sweep is.</summary>
    /// <param name="done">Samples done.</param>
    /// <param name="total">Samples planned.</param>
    /// <param name="remaining">Estimated time left, or null while unknown.</param>
    void Progress(int done, int total, TimeSpan? remaining);
}
