namespace VirtBench.Measurement;

/// <summary>
/// Compares checksums of samples that did the same work: same workload, k, warm-up and units, under whatever strategy. The
/// first faithful one is what the others are held against, whatever the order.
/// </summary>
internal sealed class ChecksumWitness
{
    private readonly Dictionary<Work, (ulong Checksum, string Strategy)> _first = [];

    /// <summary>Enters the checksum of a faithful engine.</summary>
    /// <returns>Null, or one line that says what it differs from.</returns>
    public string? Compare(Cell cell, long warmUp, long units, ulong checksum)
    {
        var work = new Work(cell.Workload, cell.TrapsPerUnit, warmUp, units);
        if (_first.TryAdd(work, (checksum, cell.Strategy)))
        {
            return null;
        }

        (ulong expected, string strategy) = _first[work];
        return expected == checksum
            ? null
            : $"checksum 0x{checksum:X16} after {units} units, but 0x{expected:X16} under {strategy}";
    }

    /// <summary>What a mark becomes by the checksum of its guest: the same where no faithful engine did this work.</summary>
    public FaithfulnessMark Compare(FaithfulnessMark mark, Cell cell, long warmUp, long units, ulong checksum) =>
        _first.TryGetValue(
            new Work(cell.Workload, cell.TrapsPerUnit, warmUp, units),
            out (ulong Checksum, string Strategy) faithful
        )
            ? mark.Compared(faithful.Checksum == checksum, faithful.Strategy)
            : mark;

    private readonly record struct Work(string Workload, int TrapsPerUnit, long WarmUp, long Units);
}
