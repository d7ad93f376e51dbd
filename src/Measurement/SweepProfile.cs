namespace VirtBench.Measurement;

/// <summary>How much a sweep measures.</summary>
/// <param name="Name">Name on the command line.</param>
/// <param name="SampleTime">Least time that a sample measured on the host's clock is calibrated to last.</param>
/// <param name="Rounds">Samples of each cell whose time is measured; computed times need one.</param>
/// <param name="Densities">Traps per unit, ascending, with the control 0.</param>
public sealed record SweepProfile(string Name, TimeSpan SampleTime, int Rounds, IReadOnlyList<int> Densities)
{
    /// <summary>
    /// Two minutes for all workloads under every strategy that a host can have. Short samples leave room for rounds, which
    /// intervals live on.
    /// </summary>
    public static SweepProfile Quick { get; } = new("quick", TimeSpan.FromMilliseconds(20), 7, [0, 1, 4, 8, 16]);

    /// <summary>Some ten minutes: longer samples, more densities and rounds.</summary>
    public static SweepProfile Standard { get; } =
        new("standard", TimeSpan.FromMilliseconds(50), 40, [0, 1, 2, 3, 4, 6, 8, 12, 16]);

    /// <summary>Some three hours: long samples and many rounds, for hosts that others use too.</summary>
    public static SweepProfile Thorough { get; } =
        new("thorough", TimeSpan.FromMilliseconds(200), 100, [0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32, 48, 64]);

    /// <summary>Every profile, the shortest first.</summary>
    public static IReadOnlyList<SweepProfile> All { get; } = [Quick, Standard, Thorough];

    /// <summary>The profile of this name, or null.</summary>
    public static SweepProfile? Find(string name) => All.FirstOrDefault(profile => profile.Name == name);
}
