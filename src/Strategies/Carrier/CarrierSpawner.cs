using System.Collections.Concurrent;
using System.ComponentModel;
using System.Runtime.Versioning;
using VirtBench.Strategies.Native;

namespace VirtBench.Strategies.Carrier;

/// <summary>
/// Starts carriers from one thread that lives as long as the process: PR_SET_PDEATHSIG follows the thread that spawned a
/// child, so a carrier started by a thread that ends would be killed with it.
/// </summary>
[SupportedOSPlatform("linux")]
internal static class CarrierSpawner
{
    private static readonly BlockingCollection<Request> Requests = [];
    private static readonly Lazy<Thread> Spawner = new(StartThread);

    private sealed record Request(int ControlFd, int Slot, int CodeCacheSize, int RamFd, TaskCompletionSource<int> Pid);

    /// <summary>Starts a carrier process and returns its id; it has not run yet.</summary>
    /// <param name="controlFd">The vCPU's memfd.</param>
    /// <param name="slot">Which of the control areas in it is the carrier's.</param>
    /// <param name="codeCacheSize">Bytes of its code cache; 0 for none.</param>
    /// <param name="ramFd">Guest RAM.</param>
    /// <exception cref="Win32Exception">The host does not allow it; the message says what failed.</exception>
    public static int Spawn(int controlFd, int slot, int codeCacheSize, int ramFd)
    {
        _ = Spawner.Value;
        var request = new Request(
            controlFd,
            slot,
            codeCacheSize,
            ramFd,
            new TaskCompletionSource<int>(TaskCreationOptions.RunContinuationsAsynchronously)
        );
        Requests.Add(request);
        return request.Pid.Task.GetAwaiter().GetResult();
    }

    private static Thread StartThread()
    {
        var thread = new Thread(Serve) { IsBackground = true, Name = "carrier spawner" };
        thread.Start();
        return thread;
    }

    private static void Serve()
    {
        foreach (Request request in Requests.GetConsumingEnumerable())
        {
            try
            {
                request.Pid.SetResult(SpawnHere(request));
            }
            catch (Exception e)
            {
                request.Pid.SetException(e);
            }
        }
    }

    private static unsafe int SpawnHere(Request request)
    {
        byte[] program = BootProgram.Build(Environment.ProcessId, request.Slot, request.CodeCacheSize);
        int fd = Linux.CreateMemfd("virtbench-carrier", Linux.MfdCloexec | Linux.MfdExec);
        try
        {
            fixed (byte* p = program)
            {
                if (Linux.Write(fd, p, (nuint)program.Length) != program.Length)
                {
                    throw new Win32Exception("cannot write the carrier's program into its memfd");
                }
            }

            return Linux.Spawn($"/proc/self/fd/{fd}", [request.ControlFd, request.RamFd]);
        }
        finally
        {
            _ = Linux.Close(fd);
        }
    }
}
