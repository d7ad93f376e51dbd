using System.Globalization;
using System.Runtime.Versioning;
using VirtBench.Strategies.Native;

namespace VirtBench.Strategies.Carrier;

/// <summary>
/// Which CPU the vCPU thread and which the carrier runs on. A hand-off between two cores that spin is ten times as fast
/// as one through the scheduler, so the two are kept apart wherever two CPUs are allowed.
/// </summary>
[SupportedOSPlatform("linux")]
internal static unsafe class CarrierPlacement
{
    private const int MaskBytes = 1024; // 8192 CPUs, the kernel's largest NR_CPUS

    /// <summary>
    /// CPUs that this process may use, ascending, as they were when first asked: those of all its threads together, as
    /// the one that asks may have been pinned.
    /// </summary>
    public static IReadOnlyList<int> AllowedCpus { get; } = ReadAllowed();

    /// <summary>CPU of the vCPU thread, or −1 when there is only one and nothing is pinned.</summary>
    public static int VmmCpu => AllowedCpus.Count > 1 ? AllowedCpus[0] : -1;

    /// <summary>CPU of the carriers, or −1.</summary>
    public static int CarrierCpu => AllowedCpus.Count > 1 ? AllowedCpus[1] : -1;

    /// <summary>Pins a process, or with 0 the calling thread, to one CPU.</summary>
    public static void Pin(int pid, int cpu)
    {
        byte* mask = stackalloc byte[MaskBytes];
        new Span<byte>(mask, MaskBytes).Clear();
        mask[cpu / 8] = (byte)(1 << (cpu % 8));
        _ = Linux.Syscall(Linux.SysSchedSetaffinity, pid, MaskBytes, (long)mask);
    }

    /// <summary>The calling thread's affinity mask.</summary>
    public static byte[] CurrentThreadMask() => MaskOf(0);

    private static byte[] MaskOf(int thread)
    {
        byte[] mask = new byte[MaskBytes];
        fixed (byte* p = mask)
        {
            long bytes = Linux.Syscall(Linux.SysSchedGetaffinity, thread, MaskBytes, (long)p);
            return bytes > 0 ? mask[..(int)bytes] : [];
        }
    }

    /// <summary>Restores the calling thread's affinity.</summary>
    public static void RestoreCurrentThread(byte[] mask)
    {
        fixed (byte* p = mask)
        {
            _ = Linux.Syscall(Linux.SysSchedSetaffinity, 0, mask.Length, (long)p);
        }
    }

    private static int[] ReadAllowed()
    {
        var cpus = new SortedSet<int>();
        foreach (string task in Directory.EnumerateDirectories("/proc/self/task"))
        {
            byte[] mask = MaskOf(int.Parse(Path.GetFileName(task), CultureInfo.InvariantCulture));
            for (int cpu = 0; cpu < mask.Length * 8; cpu++)
            {
                if ((mask[cpu / 8] & (1 << (cpu % 8))) != 0)
                {
                    _ = cpus.Add(cpu);
                }
            }
        }

        return [.. cpus];
    }
}
