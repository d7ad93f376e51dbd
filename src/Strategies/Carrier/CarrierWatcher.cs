using System.ComponentModel;
using System.Runtime.InteropServices;
using System.Runtime.Versioning;
using VirtBench.Strategies.Native;

namespace VirtBench.Strategies.Carrier;

/// <summary>
/// One thread that polls every carrier's pidfd and tells the VMM of a death: a dead process wakes no futex, and a VMM that
/// waits with a time-out would arm a timer on every exit.
/// </summary>
[SupportedOSPlatform("linux")]
internal static unsafe class CarrierWatcher
{
    private static readonly Lock Gate = new();
    private static readonly Dictionary<int, CarrierProcess> Watched = [];
    private static int _wakeFd = -1;

    /// <summary>Begins to watch a carrier.</summary>
    public static void Add(CarrierProcess carrier)
    {
        lock (Gate)
        {
            if (_wakeFd < 0)
            {
                _wakeFd = Linux.Eventfd(0, 0);
                if (_wakeFd < 0)
                {
                    int error = Marshal.GetLastPInvokeError();
                    throw new Win32Exception(error, $"eventfd: {new Win32Exception(error).Message}");
                }

                new Thread(Watch) { IsBackground = true, Name = "carrier watcher" }.Start();
            }

            Watched.Add(carrier.PidFd, carrier);
        }

        Wake();
    }

    /// <summary>Stops watching; when this returns, the watcher does not touch the carrier any more.</summary>
    public static void Remove(CarrierProcess carrier)
    {
        lock (Gate)
        {
            _ = Watched.Remove(carrier.PidFd);
        }

        Wake();
    }

    private static void Wake()
    {
        ulong one = 1;
        _ = Linux.Write(_wakeFd, &one, sizeof(ulong));
    }

    private static void Watch()
    {
        var fds = new List<Linux.PollFd>();
        for (; ; )
        {
            fds.Clear();
            fds.Add(new Linux.PollFd { Fd = _wakeFd, Events = Linux.PollIn });
            lock (Gate)
            {
                foreach (int fd in Watched.Keys)
                {
                    fds.Add(new Linux.PollFd { Fd = fd, Events = Linux.PollIn });
                }
            }

            Linux.PollFd[] polled = [.. fds];
            fixed (Linux.PollFd* p = polled)
            {
                if (Linux.Poll(p, (nuint)polled.Length, -1) <= 0)
                {
                    continue; // EINTR
                }
            }

            if (polled[0].Revents != 0)
            {
                ulong count;
                _ = Linux.Read(_wakeFd, &count, sizeof(ulong));
            }

            lock (Gate)
            {
                foreach (Linux.PollFd fd in polled.AsSpan(1))
                {
                    // A descriptor may have been closed and used again for another carrier since: ask that one itself.
                    if (
                        fd.Revents != 0
                        && Watched.TryGetValue(fd.Fd, out CarrierProcess? carrier)
                        && carrier.HasEnded()
                    )
                    {
                        _ = Watched.Remove(fd.Fd);
                        carrier.ReportDeath();
                    }
                }
            }
        }
    }
}
