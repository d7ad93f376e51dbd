using System.ComponentModel;
using System.Runtime.InteropServices;
using System.Runtime.Versioning;
using VirtBench.Strategies.Native;

namespace VirtBench.Strategies.Hardware;

/// <summary>
/// The signal that makes a thread come back from KVM_RUN. Its handler is machine code: managed code must not run in a signal
/// handler, and an ignored signal interrupts nothing. Of a kick it does nothing; of a <see cref="VcpuTimer"/> it sets
/// immediate_exit in the run page that the signal carries.
/// </summary>
[SupportedOSPlatform("linux")]
internal static unsafe class KickSignal
{
    // A real-time signal away from those at the lower end that the C library and .NET use for themselves.
    private const int FirstCandidate = 44;
    private const int LastCandidate = 60;
    private const int SaRestart = 0x1000_0000;
    private const int SaSiginfo = 4;

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

    /// <summary>Its number, once installed.</summary>
    public static int Number => _number;

    /// <summary>Sends it to a thread of this process.</summary>
    public static void Send(int thread) =>
        Linux.SyscallIgnored(Linux.SysTgkill, Environment.ProcessId, thread, _number);

    /// <summary>The calling thread's id.</summary>
    public static int CurrentThread() => (int)Linux.Syscall(Linux.SysGettid);

    private static int InstallFree()
    {
        // siginfo_t, in RSI: si_code at 8, a timer's si_value at 24 (include/uapi/asm-generic/siginfo.h)
        ReadOnlySpan<byte> handler =
        [
            .. (ReadOnlySpan<byte>)[0x83, 0x7E, 0x08, 0xFE], // cmp dword [rsi+8], SI_TIMER
            .. (ReadOnlySpan<byte>)[0x75, 0x08], // jne to the ret
            .. (ReadOnlySpan<byte>)[0x48, 0x8B, 0x46, 0x18], // mov rax, [rsi+24]
            .. (ReadOnlySpan<byte>)[0xC6, 0x40, 0x01, 0x01], // mov byte [rax+1], 1: immediate_exit
            0xC3, // ret
        ];
        byte* page = Linux.MapAnonymous(4096);
        handler.CopyTo(new Span<byte>(page, 4096));
        Linux.MakeExecutable(page, 4096);
        for (int signal = FirstCandidate; signal <= LastCandidate; signal++)
        {
            Kvm.Sigactions old;
            if (Kvm.Sigaction(signal, null, &old) != 0 || old.Handler != 0)
            {
                continue; // somebody else's
            }

            var action = new Kvm.Sigactions { Handler = (nint)page, Flags = SaRestart | SaSiginfo };
            if (Kvm.Sigaction(signal, &action, null) == 0)
            {
                return signal;
            }
        }

        throw new Win32Exception(Marshal.GetLastPInvokeError(), "no real-time signal is free to stop a vCPU with");
    }
}
