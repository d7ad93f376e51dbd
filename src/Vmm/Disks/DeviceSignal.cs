using VirtBench.Vmm.Native;

namespace VirtBench.Vmm.Disks;

/// <summary>
/// Wakes a device's thread: a flag that is set by anyone and taken back by the one thread that waits for it. On Linux a futex
/// (futex(2)), so that setting it costs a system call only while that thread sleeps, and timed waits end as punctually as the
/// host's timers allow.
/// </summary>
internal sealed unsafe class DeviceSignal
{
    private const int Clear = 0;
    private const int Raised = 1;
    private const int Sleeping = 2;

    private readonly int[] _state = GC.AllocateArray<int>(1, pinned: true);
    private readonly ManualResetEventSlim? _portable = OperatingSystem.IsLinux() ? null : new();

    /// <summary>
    /// Lets the calling thread's sleeps end without the 50 µs that the kernel may add to gather timers (prctl(2), PR_SET_TIMERSLACK).
    /// </summary>
    public static void BePunctual()
    {
        if (OperatingSystem.IsLinux())
        {
            _ = Linux.Prctl(Linux.PrSetTimerslack, 1, 0, 0, 0);
        }
    }

    /// <summary>Wakes the thread, or keeps it from falling asleep the next time.</summary>
    public void Set()
    {
        if (!OperatingSystem.IsLinux())
        {
            _portable!.Set();
            return;
        }

        if (Interlocked.Exchange(ref _state[0], Raised) == Sleeping)
        {
            fixed (int* word = _state)
            {
                _ = Linux.Futex(Linux.SyscallFutex, word, Linux.FutexWakePrivate, 1, null);
            }
        }
    }

    /// <summary>Waits until somebody calls <see cref="Set"/>, or for so many nanoseconds; may come back sooner.</summary>
    /// <param name="nanoseconds">Negative for no limit.</param>
    public void Wait(long nanoseconds)
    {
        if (!OperatingSystem.IsLinux())
        {
            _ = _portable!.Wait(
                nanoseconds < 0 ? -1 : (int)Math.Min(int.MaxValue, (nanoseconds + 999_999) / 1_000_000)
            );
            _portable.Reset();
            return;
        }

        if (nanoseconds != 0 && Interlocked.CompareExchange(ref _state[0], Sleeping, Clear) == Clear)
        {
            const long second = 1_000_000_000;
            Linux.Timespec timeout = new() { Seconds = nanoseconds / second, Nanoseconds = nanoseconds % second };
            fixed (int* word = _state)
            {
                _ = Linux.Futex(
                    Linux.SyscallFutex,
                    word,
                    Linux.FutexWaitPrivate,
                    Sleeping,
                    nanoseconds < 0 ? null : &timeout
                );
            }
        }

        _ = Interlocked.Exchange(ref _state[0], Clear);
    }
}
