using System.ComponentModel;
using System.Runtime.InteropServices;
using System.Runtime.Versioning;
using VirtBench.Strategies.Native;

namespace VirtBench.Strategies.Hardware;

/// <summary>
/// A timer of the kernel that makes one thread come back from KVM_RUN: its signal sets the run page's immediate_exit, so that it
/// counts whether it comes within KVM_RUN or just before. No thread has to wake for it.
/// </summary>
/// <remarks>
/// Used, and disposed of, by the thread it was made for: a signal that is on its way when the timer goes is delivered before
/// the deletion returns, so that none comes later to a run page that is gone.
/// </remarks>
[SupportedOSPlatform("linux")]
internal sealed unsafe class VcpuTimer : IDisposable
{
    // System-call numbers: arch/x86/entry/syscalls/syscall_64.tbl
    private const int SysTimerCreate = 222;
    private const int SysTimerSettime = 223;
    private const int SysTimerDelete = 226;

    private const int ClockMonotonic = 1;
    private const int SigevThreadId = 4;

    private readonly int _id;
    private bool _disposed;

    /// <summary>struct sigevent, include/uapi/asm-generic/siginfo.h.</summary>
    [StructLayout(LayoutKind.Explicit, Size = 64)]
    private struct SignalEvent
    {
        [FieldOffset(0)]
        public nint Value;

        [FieldOffset(8)]
        public int Signal;

        [FieldOffset(12)]
        public int Notify;

        [FieldOffset(16)]
        public int Thread;
    }

    /// <summary>struct itimerspec.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct TimerSpec
    {
        public Linux.Timespec Interval;
        public Linux.Timespec Value;
    }

    /// <summary>Creates a timer for the calling thread.</summary>
    /// <param name="run">The run page of the vCPU that the thread enters.</param>
    /// <exception cref="Win32Exception">The kernel refuses.</exception>
    public VcpuTimer(Kvm.RunPage* run)
    {
        var signal = new SignalEvent
        {
            Value = (nint)run,
            Signal = KickSignal.Number,
            Notify = SigevThreadId,
            Thread = KickSignal.CurrentThread(),
        };
        int id;
        long result = Linux.Syscall(SysTimerCreate, ClockMonotonic, (long)&signal, (long)&id);
        if (result < 0)
        {
            string advice = result == -Linux.Eagain ? "; the limit of pending signals (ulimit -i) is used up" : "";
            throw new Win32Exception((int)-result, $"timer_create: {new Win32Exception((int)-result).Message}{advice}");
        }

        _id = id;
    }

    /// <summary>Lets it fire once, after so long; what was set before is forgotten.</summary>
    /// <exception cref="Win32Exception">The kernel refuses.</exception>
    public void Set(long nanoseconds)
    {
        // 0 would disarm it
        TimerSpec spec = default;
        spec.Value = ToTimespec(Math.Max(1, nanoseconds));
        long result = Linux.Syscall(SysTimerSettime, _id, 0, (long)&spec);
        if (result < 0)
        {
            throw new Win32Exception((int)-result, $"timer_settime: {new Win32Exception((int)-result).Message}");
        }
    }

    /// <summary>A time span as struct timespec.</summary>
    public static Linux.Timespec ToTimespec(long nanoseconds) =>
        new() { Seconds = nanoseconds / 1_000_000_000, Nanoseconds = nanoseconds % 1_000_000_000 };

    /// <inheritdoc/>
    public void Dispose()
    {
        if (!_disposed)
        {
            _disposed = true;
            _ = Linux.Syscall(SysTimerDelete, _id);
        }
    }
}
