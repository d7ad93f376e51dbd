using System.Runtime.CompilerServices;
using VirtBench.Strategies.Native;
using VirtBench.Vmm.Execution;

namespace VirtBench.Strategies.Carrier;

// The vCPU thread, kicks, the deadline and the sleep of a halted CPU. While the guest runs, the vCPU thread has nothing to do but wait, so it
// watches the clock itself: no other thread, and no timer that would have to be armed at every entry.
internal abstract unsafe partial class CarrierEngine
{
    // A deadline that is over at an entry still lets the guest get on: longer than a carrier that is awake takes to be back in the guest; and
    // what it may grow to, on a host that does not let the carrier run sooner.
    private const double LeastRunSeconds = 10e-6;
    private const double LongestLeastRunSeconds = 20e-3;

    // 1 after a kick that has not been answered. A futex too, so it keeps its address; whoever takes it back answers the kick.
    private readonly int[] _kicked = GC.AllocateArray<int>(1, pinned: true);
    private int _idle;
    private byte[] _callerMask = [];
    private long _callerTimerSlack;
    private int _vcpuThread;

    /// <inheritdoc/>
    public ulong Deadline { get; set; } = ulong.MaxValue;

    private long KickWord => (long)Unsafe.AsPointer(ref _kicked[0]);

    /// <inheritdoc/>
    public void AttachThread()
    {
        _vcpuThread = Environment.CurrentManagedThreadId;
        if (CarrierPlacement.VmmCpu >= 0)
        {
            _callerMask = CarrierPlacement.CurrentThreadMask();
            CarrierPlacement.Pin(0, CarrierPlacement.VmmCpu);
        }

        // The kernel lets sleeps end late by this much, 50 µs by default. 0 would mean the default.
        _callerTimerSlack = Linux.Syscall(Linux.SysPrctl, Linux.PrGetTimerslack);
        _ = Linux.Syscall(Linux.SysPrctl, Linux.PrSetTimerslack, 1);
    }

    /// <inheritdoc/>
    public void DetachThread()
    {
        _vcpuThread = 0;
        if (_callerMask.Length > 0)
        {
            CarrierPlacement.RestoreCurrentThread(_callerMask);
            _callerMask = [];
        }

        if (_callerTimerSlack > 0)
        {
            _ = Linux.Syscall(Linux.SysPrctl, Linux.PrSetTimerslack, _callerTimerSlack);
        }
    }

    /// <inheritdoc/>
    public void Kick()
    {
        // One signal until it is answered: the word is taken back only where a return from Run or Idle reports it.
        if (Interlocked.Exchange(ref _kicked[0], 1) != 0)
        {
            return;
        }

        if (Volatile.Read(ref _idle) != 0)
        {
            Linux.SyscallIgnored(Linux.SysFutex, KickWord, Linux.FutexWake, 1);
        }
        else
        {
            Pool.Kick();
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    protected bool TakeKick()
    {
        if (Volatile.Read(ref _kicked[0]) == 0)
        {
            return false;
        }

        _ = Interlocked.Exchange(ref _kicked[0], 0);
        return true;
    }

    /// <inheritdoc/>
    public void Idle()
    {
        // A kicker sets the word, then looks whether it has somebody to wake; this side says that it sleeps, then looks at the word, and the
        // futex looks once more.
        _ = Interlocked.Exchange(ref _idle, 1);
        while (Volatile.Read(ref _kicked[0]) == 0)
        {
            long left = Deadline == ulong.MaxValue ? long.MaxValue : CarrierProcess.NanosecondsUntil(Deadline);
            if (left <= 0)
            {
                break;
            }

            const long second = 1_000_000_000;
            Linux.Timespec timeout = new() { Seconds = left / second, Nanoseconds = left % second };
            long pointer = left == long.MaxValue ? 0 : (long)(&timeout);
            _ = Linux.Syscall(Linux.SysFutex, KickWord, Linux.FutexWait, 0, pointer);
        }

        _ = Interlocked.Exchange(ref _idle, 0);
        _ = TakeKick();
    }

    /// <summary>
    /// Waits for an exit and kicks the guest when the deadline is over. A kick that has come before the guest was entered, which is possible when
    /// the carrier had to be woken, counts for nothing: a guest whose deadlines are over before it can be entered must get on all the same.
    /// </summary>
    private void WaitUntilDeadline(CarrierProcess carrier)
    {
        ulong least = (ulong)(LeastRunSeconds * HostClock.Instance.TicksPerSecond);
        ulong end = Math.Max(Deadline, HostClock.Instance.Ticks + least);
        while (!carrier.WaitForExit(end))
        {
            carrier.Kick();
            carrier.WaitForExit();
            bool entered = Volatile.Read(ref carrier.Control->Signal) != CarrierReport.NotEntered;
            if (entered || Volatile.Read(ref _kicked[0]) != 0)
            {
                return;
            }

            carrier.KickAnswered();
            carrier.Resume();
            least = Math.Min(4 * least, (ulong)(LongestLeastRunSeconds * HostClock.Instance.TicksPerSecond));
            end = HostClock.Instance.Ticks + least;
        }
    }
}
