using System.ComponentModel;
using System.Runtime.InteropServices;
using System.Runtime.Versioning;
using VirtBench.Strategies.Native;

namespace VirtBench.Strategies.Hardware;

/// <summary>
/// The signal that makes a thread come back from KVM_RUN. Its handler is one RET of machine code: managed code must not run
/// in a signal handler, and an ignored signal interrupts nothing.
/// </summary>
[SupportedOSPlatform("linux")]
internal static unsafe class KickSignal
{
    // A real-time signal away from those at the lower end that the C library and .NET use for themselves.
    private const int FirstCandidate = 44;
    private const int LastCandidate = 60;
    private const int SaRestart = 0x1000_0000;

    private static readonly Lock Gate = new();
    private static int _number;

    /// <summary>Installs the handler, once per process.</summary>
    /// <exception cref="Win32Exception">No signal is free, or the kernel refuses.</exception>
    public static void Install()
    {
        lock (Gate)
        {
            if (_number == 0)
            {
                _number = InstallFree();
            }
        }
    }

    /// <summary>Sends it to a thread of this process.</summary>
    public static void Send(int thread) =>
        Linux.SyscallIgnored(Linux.SysTgkill, Environment.ProcessId, thread, _number);

    /// <summary>The calling thread's id.</summary>
    public static int CurrentThread() => (int)Linux.Syscall(Linux.SysGettid);

    private static int InstallFree()
    {
        const byte ret = 0xC3;
        byte* page = Linux.MapAnonymous(4096);
        *page = ret;
        Linux.MakeExecutable(page, 4096);
        for (int signal = FirstCandidate; signal <= LastCandidate; signal++)
        {
            Kvm.Sigactions old;
            if (Kvm.Sigaction(signal, null, &old) != 0 || old.Handler != 0)
            {
                continue; // somebody else's
            }

            var action = new Kvm.Sigactions { Handler = (nint)page, Flags = SaRestart };
            if (Kvm.Sigaction(signal, &action, null) == 0)
            {
                return signal;
            }
        }

        throw new Win32Exception(Marshal.GetLastPInvokeError(), "no real-time signal is free to stop a vCPU with");
    }
}
