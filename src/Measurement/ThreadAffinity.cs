using System.ComponentModel;
using System.Runtime.InteropServices;
using System.Runtime.Versioning;
using VirtBench.Measurement.Native;

namespace VirtBench.Measurement;

/// <summary>Pins the calling thread to one CPU until disposed, on the same thread.</summary>
internal sealed class ThreadAffinity : IDisposable
{
    private readonly byte[]? _before;

    /// <param name="cpu">CPU number; null pins nothing.</param>
    /// <exception cref="PlatformNotSupportedException">Not on Linux.</exception>
    /// <exception cref="Win32Exception">The kernel refuses: there is no such CPU, or the process may not use it.</exception>
    public ThreadAffinity(int? cpu)
    {
        if (cpu is not { } number)
        {
            return;
        }

        if (!OperatingSystem.IsLinux())
        {
            throw new PlatformNotSupportedException("threads can be pinned to a CPU on Linux only");
        }

        byte[] mask = new byte[Linux.CpuMaskBytes];
        if (number is < 0 or >= Linux.CpuMaskBytes * 8)
        {
            throw new ArgumentOutOfRangeException(nameof(cpu), number, "there is no such CPU");
        }

        mask[number / 8] = (byte)(1 << (number % 8));
        _before = Get();
        Set(mask, $"cannot pin the thread to CPU {number}");
    }

    /// <summary>The CPUs that the calling thread may use, for <see cref="SetCallingThread"/>; null off Linux.</summary>
    public static byte[]? OfCallingThread() => OperatingSystem.IsLinux() ? Get() : null;

    /// <summary>Lets the calling thread use these CPUs and no others; does nothing with null.</summary>
    public static void SetCallingThread(byte[]? mask)
    {
        if (mask is not null && OperatingSystem.IsLinux())
        {
            Set(mask, "cannot give the vCPU thread the CPU affinity of its creator");
        }
    }

    [SupportedOSPlatform("linux")]
    private static unsafe byte[] Get()
    {
        byte[] mask = new byte[Linux.CpuMaskBytes];
        fixed (byte* bits = mask)
        {
            return Linux.SchedGetaffinity(0, Linux.CpuMaskBytes, bits) < 0
                ? throw new Win32Exception(Marshal.GetLastPInvokeError(), "cannot read the thread's CPU affinity")
                : mask;
        }
    }

    [SupportedOSPlatform("linux")]
    private static unsafe void Set(byte[] mask, string failure)
    {
        fixed (byte* bits = mask)
        {
            if (Linux.SchedSetaffinity(0, Linux.CpuMaskBytes, bits) != 0)
            {
                throw new Win32Exception(Marshal.GetLastPInvokeError(), failure);
            }
        }
    }

    public void Dispose()
    {
        if (_before is not null && OperatingSystem.IsLinux())
        {
            Set(_before, "cannot restore the thread's CPU affinity");
        }
    }
}
