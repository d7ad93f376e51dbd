namespace VirtBench.Measurement;

/// <summary>
/// Tells an observer how far a sweep is. The time left is the mean cost of the samples so far, measured and computed ones
/// apart, times those that are ahead; unknown until one of each kind that is ahead has been taken.
/// </summary>
/// <param name="observer">Whom to tell.</param>
/// <param name="done">Samples that an earlier part of the sweep has taken.</param>
/// <param name="measured">Samples ahead whose time is measured.</param>
/// <param name="computed">Samples ahead whose time is computed.</param>
internal sealed class ProgressEstimate(ISweepObserver observer, int done, int measured, int computed)
{
    private readonly int _total = done + measured + computed;
    private Kind _measured = new(measured);
    private Kind _computed = new(computed);

    /// <summary>A cell is being prepared.</summary>
    public void Preparing() => Tell();

    /// <summary>A sample has been taken, or given up at no cost.</summary>
    public void Advance(bool simulated, TimeSpan? cost)
    {
        ref Kind kind = ref simulated ? ref _computed : ref _measured;
        kind.Ahead--;
        if (cost is { } spent)
        {
            kind.Spent += spent;
            kind.Taken++;
        }

        Tell();
    }

    private void Tell() =>
        observer.Progress(_total - _measured.Ahead - _computed.Ahead, _total, _measured.Left + _computed.Left);

    private struct Kind(int ahead)
    {
        public int Ahead = ahead;
        public int Taken;
        public TimeSpan Spent;

        public readonly TimeSpan? Left =>
            Ahead == 0 ? TimeSpan.Zero
            : Taken == 0 ? null
            : Spent / Taken * Ahead;
    }
}
