using System.Globalization;

namespace VirtBench.Strategies.Carrier;

/// <summary>Limits of the host kernel that guests under direct execution feel.</summary>
internal static class HostLimits
{
    private const ulong PlatformLowest = 0x1_0000;

    /// <summary>
    /// Lowest linear address a guest may map: 64 KiB as the platform says, or more where vm.mmap_min_addr is higher.
    /// Root could map lower; that it cannot here keeps results the same for every user.
    /// </summary>
    public static ulong LowestAddress { get; } = ReadLowest();

    private static ulong ReadLowest()
    {
        try
        {
            ulong host = ulong.Parse(File.ReadAllText("/proc/sys/vm/mmap_min_addr"), CultureInfo.InvariantCulture);
            return Math.Max(PlatformLowest, (host + 0xFFF) & ~0xFFFUL);
        }
        catch (Exception e)
            when (e is IOException or UnauthorizedAccessException or FormatException or OverflowException)
        {
            return PlatformLowest;
        }
    }
}
