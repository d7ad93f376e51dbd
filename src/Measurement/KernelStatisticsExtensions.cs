using VirtBench.Vmm.Execution;

namespace VirtBench.Measurement;

/// <summary>What results keep of the kernel's counters.</summary>
public static class KernelStatisticsExtensions
{
    /// <summary>
    /// The counters that are not 0, and the exits even if they are: 0 exits is a result, where a counter of something that never
    /// happens is none.
    /// </summary>
    public static IReadOnlyDictionary<string, ulong> Telling(this KernelStatistics statistics)
    {
        var telling = new Dictionary<string, ulong>();
        for (int i = 0; i < statistics.Names.Count; i++)
        {
            if (statistics.Values[i] != 0 || statistics.Names[i] == KernelStatistics.Exits)
            {
                telling[statistics.Names[i]] = statistics.Values[i];
            }
        }

        return telling;
    }
}
