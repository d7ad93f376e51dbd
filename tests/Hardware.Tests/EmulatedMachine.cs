namespace VirtBench.Hardware.Tests;

/// <summary>Whether this host is a machine of the lab.</summary>
internal static class EmulatedMachine
{
    /// <summary>Bochs, by its firmware.</summary>
    public static bool IsBochs { get; } = Firmware("Bochs");

    /// <summary>QEMU without acceleration: else the processor is the host's.</summary>
    public static bool IsQemu { get; } = Firmware("QEMU") && Processor().Contains("QEMU", StringComparison.Ordinal);

    private static bool Firmware(string maker) =>
        Dmi("bios_vendor").Contains(maker, StringComparison.OrdinalIgnoreCase)
        || Dmi("sys_vendor").Contains(maker, StringComparison.OrdinalIgnoreCase);

    private static string Processor() => File.Exists("/proc/cpuinfo") ? File.ReadAllText("/proc/cpuinfo") : "";

    private static string Dmi(string name)
    {
        try
        {
            return File.ReadAllText($"/sys/class/dmi/id/{name}");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return "";
        }
    }
}
