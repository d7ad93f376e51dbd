using System.Runtime.InteropServices;
using System.Runtime.Versioning;

namespace VirtBench.Measurement.Native;

/// <summary>The few Linux calls that tell how a sample was disturbed. Raw bindings; the wrappers are their users.</summary>
[SupportedOSPlatform("linux")]
internal static unsafe partial class Linux
{
    public const int RusageThread = 1;
    public const int RusageChildren = -1;
    public const int ScClockTicks = 2;
    public const int ReadOk = 4;
    public const int WriteOk = 2;

    /// <summary>Bytes of a CPU mask: 8192 CPUs, the kernel's largest NR_CPUS; a smaller mask is refused on such hosts.</summary>
    public const int CpuMaskBytes = 1024;

    /// <summary>struct rusage of x86-64 and arm64 Linux (getrusage(2)): two timevals and 14 longs.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Rusage
    {
        public fixed long Times[4];
        public fixed long UpToVoluntarySwitches[13];
        public long InvoluntarySwitches;
    }

    [LibraryImport("libc", EntryPoint = "getrusage", SetLastError = true)]
    public static partial int Getrusage(int who, Rusage* usage);

    [LibraryImport("libc", EntryPoint = "sysconf")]
    public static partial long Sysconf(int name);

    [LibraryImport("libc", EntryPoint = "access", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    public static partial int Access(string path, int mode);

    [LibraryImport("libc", EntryPoint = "sched_getaffinity", SetLastError = true)]
    public static partial int SchedGetaffinity(int pid, nuint size, byte* mask);

    [LibraryImport("libc", EntryPoint = "sched_setaffinity", SetLastError = true)]
    public static partial int SchedSetaffinity(int pid, nuint size, byte* mask);
}
