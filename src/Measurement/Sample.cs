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
/// <param name="Reason">Ledger reason's name.</param>
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

/// <summary>A cell that was not measured, and why.</summary>
/// <param name="Strategy">Strategy id.</param>
/// <param name="Workload">Workload id, or null when all of the strategy is skipped.</param>
/// <param name="Reason">One line.</param>
public sealed record SkippedCell(string Strategy, string? Workload, string Reason);

/// <summary>Receives what a sweep measures, as it measures it.</summary>
public interface ISweepObserver
{
    /// <summary>A sample is done; nothing will change it any more except its outlier label.</summary>
    /// <param name="sample">The sample.</param>
    /// <param name="exits">Its exits, as the VMM saw them.</param>
    /// <param name="kernelStatistics">
    /// What the host's kernel counted meanwhile: the counters that rose, and always its exits. Empty where it keeps no account.
    /// </param>
    void SampleTaken(
        Sample sample,
        IReadOnlyList<ExitRecord> exits,
        IReadOnlyList<KernelStatisticRecord> kernelStatistics
    );

    /// <summary>How far the sweep is.</summary>
    /// <param name="done">Samples done.</param>
    /// <param name="total">Samples planned.</param>
    /// <param name="remaining">Estimated time left, or null while unknown.</param>
    void Progress(int done, int total, TimeSpan? remaining);
}
