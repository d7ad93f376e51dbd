using System.Globalization;
using VirtBench.Measurement.Native;

namespace VirtBench.Measurement;

/// <summary>
/// What the host did to a sample: time stolen by the hypervisor below, and involuntary context switches. A reading is taken
/// before the VM is created and after it is disposed, and the difference belongs to the sample, together with the switches of
/// the vCPU thread, which it reads itself.
/// </summary>
/// <param name="StealNanoseconds">
/// Steal time of all CPUs since boot, from /proc/stat; the kernel tells it in ticks of 10 ms. 0 where there is no such file.
/// </param>
/// <param name="InvoluntarySwitches">
/// Involuntary context switches of child processes that have been waited for: an engine's carrier process counts once it has
/// been disposed of. 0 off Linux.
/// </param>
internal readonly record struct HostDisturbance(double StealNanoseconds, long InvoluntarySwitches)
{
    // Field of the "cpu" line of /proc/stat, after user, nice, system, idle, iowait, irq and softirq (proc_stat(5)).
    private const int StealField = 8;

    public static HostDisturbance Read() =>
        OperatingSystem.IsLinux() ? new HostDisturbance(ReadSteal(), ReadSwitches(Linux.RusageChildren)) : default;

    /// <summary>Involuntary context switches of the calling thread since it began; 0 off Linux.</summary>
    public static long SwitchesOfCallingThread() => OperatingSystem.IsLinux() ? ReadSwitches(Linux.RusageThread) : 0;

    public HostDisturbance Since(in HostDisturbance earlier) =>
        new(StealNanoseconds - earlier.StealNanoseconds, InvoluntarySwitches - earlier.InvoluntarySwitches);

    public HostDisturbance And(in HostDisturbance other) =>
        new(StealNanoseconds + other.StealNanoseconds, InvoluntarySwitches + other.InvoluntarySwitches);

    /// <summary>Steal ticks in the text of /proc/stat; 0 when the kernel does not tell.</summary>
    internal static long StealTicks(string stat)
    {
        string line = stat.Split('\n', 2)[0];
        string[] fields = line.Split(' ', StringSplitOptions.RemoveEmptyEntries);
        return
            fields.Length > StealField
            && long.TryParse(fields[StealField], NumberStyles.None, CultureInfo.InvariantCulture, out long ticks)
            ? ticks
            : 0;
    }

    [System.Runtime.Versioning.SupportedOSPlatform("linux")]
    private static double ReadSteal()
    {
        try
        {
            return StealTicks(File.ReadAllText("/proc/stat")) * (1e9 / Linux.Sysconf(Linux.ScClockTicks));
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return 0;
        }
    }

    [System.Runtime.Versioning.SupportedOSPlatform("linux")]
    private static unsafe long ReadSwitches(int whose)
    {
        Linux.Rusage usage = default;
        _ = Linux.Getrusage(whose, &usage);
        return usage.InvoluntarySwitches;
    }
}
