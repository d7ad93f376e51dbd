using System.Globalization;

namespace VirtBench.Measurement;

/// <summary>What this process and its children, the carriers, hold of the host: for finding leaks.</summary>
/// <param name="PrivateBytes">Resident anonymous memory of this process, in bytes; guest RAM is a file and not part of it.</param>
/// <param name="HeapBytes">What is reachable on the runtime's heap.</param>
/// <param name="OpenFiles">Its file descriptors.</param>
/// <param name="Threads">Its threads.</param>
/// <param name="Carriers">Child processes.</param>
/// <param name="CarrierPrivateBytes">Resident anonymous memory of these, in bytes.</param>
public sealed record ProcessMemory(
    long PrivateBytes,
    long HeapBytes,
    int OpenFiles,
    int Threads,
    int Carriers,
    long CarrierPrivateBytes
)
{
    /// <summary>
    /// Reads /proc (proc_pid_status(5)) after a collection of garbage, which stops all threads for some milliseconds; null where
    /// there is no /proc.
    /// </summary>
    public static ProcessMemory? Read()
    {
        if (!OperatingSystem.IsLinux())
        {
            return null;
        }

        try
        {
            long heap = GC.GetTotalMemory(forceFullCollection: true);
            string own = File.ReadAllText("/proc/self/status");
            int carriers = 0;
            long carrierBytes = 0;
            foreach (string folder in Directory.EnumerateDirectories("/proc"))
            {
                if (char.IsAsciiDigit(Path.GetFileName(folder)[0]) && OfChild(folder) is { } status)
                {
                    carriers++;
                    carrierBytes += Field(status, "RssAnon") * 1024;
                }
            }

            return new ProcessMemory(
                Field(own, "RssAnon") * 1024,
                heap,
                Directory.GetFileSystemEntries("/proc/self/fd").Length,
                (int)Field(own, "Threads"),
                carriers,
                carrierBytes
            );
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }

    // Processes come and go while they are listed.
    private static string? OfChild(string folder)
    {
        try
        {
            string status = File.ReadAllText(Path.Combine(folder, "status"));
            return Field(status, "PPid") == Environment.ProcessId ? status : null;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }

    /// <summary>The number behind a name in the text of a status file; 0 when it is not there.</summary>
    internal static long Field(string status, string name)
    {
        foreach (ReadOnlySpan<char> line in status.AsSpan().EnumerateLines())
        {
            if (line.StartsWith(name, StringComparison.Ordinal) && line[name.Length..].StartsWith(":"))
            {
                ReadOnlySpan<char> value = line[(name.Length + 1)..].Trim();
                int end = value.IndexOf(' ');
                return long.TryParse(
                    end < 0 ? value : value[..end],
                    NumberStyles.None,
                    CultureInfo.InvariantCulture,
                    out long number
                )
                    ? number
                    : 0;
            }
        }

        return 0;
    }
}
