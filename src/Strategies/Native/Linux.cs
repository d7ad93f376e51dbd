using System.ComponentModel;
using System.Runtime.InteropServices;

namespace VirtBench.Strategies.Native;

/// <summary>Raw Linux x86-64 bindings and constants (headers under include/uapi/linux and arch/x86/include/uapi/asm).</summary>
internal static unsafe partial class Linux
{
    // System-call numbers: arch/x86/entry/syscalls/syscall_64.tbl
    public const int SysMmap = 9;
    public const int SysMprotect = 10;
    public const int SysMunmap = 11;
    public const int SysRtSigaction = 13;
    public const int SysRtSigprocmask = 14;
    public const int SysRtSigreturn = 15;
    public const int SysKill = 62;
    public const int SysSetpgid = 109;
    public const int SysGetppid = 110;
    public const int SysSigaltstack = 131;
    public const int SysPrctl = 157;
    public const int SysGettid = 186;
    public const int SysFutex = 202;
    public const int SysSchedSetaffinity = 203;
    public const int SysSchedGetaffinity = 204;
    public const int SysExitGroup = 231;
    public const int SysTgkill = 234;
    public const int SysPrlimit64 = 302;
    public const int SysSeccomp = 317;
    public const int SysMemfdCreate = 319;
    public const int SysPidfdSendSignal = 424;
    public const int SysPidfdOpen = 434;
    public const int SysCloseRange = 436;

    public const int ProtRead = 1;
    public const int ProtWrite = 2;
    public const int ProtExec = 4;
    public const int MapShared = 1;
    public const int MapPrivate = 2;
    public const int MapFixed = 0x10;
    public const int MapAnonymousFlag = 0x20;
    public const int MapPopulate = 0x8000;

    // Not the _PRIVATE forms: the words lie in memory shared by two processes.
    public const int FutexWait = 0;
    public const int FutexWake = 1;

    public const int SigIll = 4;
    public const int SigTrap = 5;
    public const int SigBus = 7;
    public const int SigFpe = 8;
    public const int SigKill = 9;
    public const int SigUsr1 = 10;
    public const int SigSegv = 11;
    public const int SigSys = 31;

    public const int SigSetmask = 2;
    public const ulong SaSiginfo = 4;
    public const ulong SaRestorer = 0x0400_0000;
    public const ulong SaOnstack = 0x0800_0000;
    public const ulong SaNodefer = 0x4000_0000;

    public const int PrSetPdeathsig = 1;
    public const int PrSetTsc = 26;
    public const int PrSetTimerslack = 29;
    public const int PrGetTimerslack = 30;
    public const int PrTscSigsegv = 2;
    public const int PrSetNoNewPrivs = 38;
    public const int PrSetSyscallUserDispatch = 59;
    public const int PrSysDispatchOn = 1;
    public const int SeccompSetModeFilter = 1;

    /// <summary>Keep the speculation controls as they are: a filter must not slow the guest down on older kernels.</summary>
    public const int SeccompFilterFlagSpecAllow = 4;

    public const int RlimitCore = 4;
    public const int RlimitAs = 9;

    public const uint MfdCloexec = 1;
    public const uint MfdAllowSealing = 2;

    /// <summary>Say that the memfd is meant to be executable: vm.memfd_noexec=1 makes others not so.</summary>
    public const uint MfdExec = 0x10;
    public const int FAddSeals = 1033;
    public const int FDupfdCloexec = 1030;
    public const int SealSeal = 1;
    public const int SealShrink = 2;
    public const int SealGrow = 4;

    public const short PollIn = 1;
    public const int Eperm = 1;
    public const int Eintr = 4;
    public const int Eagain = 11;
    public const int Eacces = 13;
    public const int Efault = 14;
    public const int Einval = 22;
    public const int Etimedout = 110;

    [StructLayout(LayoutKind.Sequential)]
    public struct Timespec
    {
        public long Seconds;
        public long Nanoseconds;
    }

    [StructLayout(LayoutKind.Sequential)]
    public struct PollFd
    {
        public int Fd;
        public short Events;
        public short Revents;
    }

    [LibraryImport("libc", EntryPoint = "syscall", SetLastError = true)]
    private static partial long SyscallRaw(long number, long a, long b, long c, long d, long e, long f);

    // Without the GC transition: only for calls that never block and take well under a microsecond or two.
    [LibraryImport("libc", EntryPoint = "syscall")]
    [SuppressGCTransition]
    private static partial long SyscallShort(long number, long a, long b, long c, long d, long e, long f);

    [LibraryImport("libc", EntryPoint = "mmap", SetLastError = true)]
    private static partial nint MmapRaw(nint address, nuint length, int protection, int flags, int fd, long offset);

    [LibraryImport("libc", EntryPoint = "munmap")]
    public static partial int Munmap(nint address, nuint length);

    [LibraryImport("libc", EntryPoint = "ftruncate", SetLastError = true)]
    private static partial int Ftruncate(int fd, long length);

    [LibraryImport("libc", EntryPoint = "fcntl", SetLastError = true)]
    private static partial int Fcntl(int fd, int command, int argument);

    [LibraryImport("libc", EntryPoint = "write", SetLastError = true)]
    public static partial nint Write(int fd, void* buffer, nuint count);

    [LibraryImport("libc", EntryPoint = "read", SetLastError = true)]
    public static partial nint Read(int fd, void* buffer, nuint count);

    [LibraryImport("libc", EntryPoint = "close")]
    public static partial int Close(int fd);

    [LibraryImport("libc", EntryPoint = "eventfd", SetLastError = true)]
    public static partial int Eventfd(uint initial, int flags);

    [LibraryImport("libc", EntryPoint = "poll", SetLastError = true)]
    public static partial int Poll(PollFd* fds, nuint count, int milliseconds);

    [LibraryImport("libc", EntryPoint = "waitpid", SetLastError = true)]
    public static partial int Waitpid(int pid, int* status, int options);

    [LibraryImport("libc", EntryPoint = "getauxval")]
    public static partial ulong Getauxval(ulong type);

    [LibraryImport("libc", EntryPoint = "posix_spawn")]
    private static partial int PosixSpawn(
        int* pid,
        byte* path,
        byte* actions,
        byte* attributes,
        byte** argv,
        byte** envp
    );

    [LibraryImport("libc", EntryPoint = "posix_spawn_file_actions_init")]
    private static partial int SpawnActionsInit(byte* actions);

    [LibraryImport("libc", EntryPoint = "posix_spawn_file_actions_adddup2")]
    private static partial int SpawnActionsAddDup2(byte* actions, int fd, int target);

    [LibraryImport("libc", EntryPoint = "posix_spawn_file_actions_destroy")]
    private static partial int SpawnActionsDestroy(byte* actions);

    /// <summary>A system call; a failure is the negative errno.</summary>
    public static long Syscall(long number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0)
    {
        long result = SyscallRaw(number, a, b, c, d, e, f);
        return result == -1 ? -Marshal.GetLastPInvokeError() : result;
    }

    /// <summary>A short system call whose result does not matter.</summary>
    public static void SyscallIgnored(long number, long a, long b, long c, long d = 0) =>
        SyscallShort(number, a, b, c, d, 0, 0);

    /// <summary>Creates a memfd whose size can never change again.</summary>
    /// <exception cref="Win32Exception">The kernel refuses.</exception>
    public static int CreateSealedMemfd(string name, long size)
    {
        int fd = CreateMemfd(name, MfdCloexec | MfdAllowSealing | MfdExec);
        if (Ftruncate(fd, size) != 0 || Fcntl(fd, FAddSeals, SealShrink | SealGrow | SealSeal) != 0)
        {
            int error = Marshal.GetLastPInvokeError();
            _ = Close(fd);
            throw new Win32Exception(error, $"cannot size the memfd {name}: {new Win32Exception(error).Message}");
        }

        return fd;
    }

    /// <summary>Creates a memfd; kernels before 6.3 do not know MFD_EXEC and need no telling.</summary>
    /// <exception cref="Win32Exception">The kernel refuses.</exception>
    public static int CreateMemfd(string name, uint flags)
    {
        ReadOnlySpan<byte> bytes = System.Text.Encoding.ASCII.GetBytes(name + "\0");
        fixed (byte* p = bytes)
        {
            long fd = Syscall(SysMemfdCreate, (long)p, flags);
            if (fd == -Einval)
            {
                fd = Syscall(SysMemfdCreate, (long)p, flags & ~MfdExec);
            }

            if (fd >= 0)
            {
                return (int)fd;
            }

            string advice =
                fd == -Eacces && (flags & MfdExec) != 0
                    ? "; the sysctl vm.memfd_noexec forbids executable memory files, set it to 0 or 1"
                    : "";
            throw new Win32Exception((int)-fd, $"memfd_create: {new Win32Exception((int)-fd).Message}{advice}");
        }
    }

    /// <summary>Maps a file shared, read-write.</summary>
    /// <exception cref="Win32Exception">The kernel refuses.</exception>
    public static byte* MapSharedMemory(int fd, long length, string what)
    {
        nint address = MmapRaw(0, (nuint)length, ProtRead | ProtWrite, MapShared, fd, 0);
        return address != -1
            ? (byte*)address
            : throw new Win32Exception(Marshal.GetLastPInvokeError(), $"cannot map {what}");
    }

    /// <summary>Fresh zeroed memory of this process, read-write.</summary>
    /// <exception cref="Win32Exception">The kernel refuses.</exception>
    public static byte* MapAnonymous(int length)
    {
        nint address = MmapRaw(0, (nuint)length, ProtRead | ProtWrite, MapPrivate | MapAnonymousFlag, -1, 0);
        return address != -1
            ? (byte*)address
            : throw new Win32Exception(Marshal.GetLastPInvokeError(), "cannot map memory");
    }

    /// <summary>Makes memory executable and no longer writable.</summary>
    /// <exception cref="Win32Exception">The kernel refuses.</exception>
    public static void MakeExecutable(byte* address, int length)
    {
        long result = Syscall(SysMprotect, (long)address, length, ProtRead | ProtExec);
        if (result != 0)
        {
            throw new Win32Exception((int)-result, "cannot make memory executable");
        }
    }

    /// <summary>Starts a program without arguments or environment, with the given descriptors as 3, 4, …</summary>
    /// <returns>Its process id.</returns>
    /// <exception cref="Win32Exception">It cannot be started.</exception>
    public static int Spawn(string path, ReadOnlySpan<int> descriptors)
    {
        byte* actions = stackalloc byte[256]; // posix_spawn_file_actions_t is 80 bytes in glibc, 80 in musl
        _ = SpawnActionsInit(actions);
        Span<int> copies = stackalloc int[descriptors.Length];
        copies.Fill(-1);
        try
        {
            for (int i = 0; i < descriptors.Length; i++)
            {
                // By way of a copy above all targets: else a source that is numbered like another's target is lost.
                copies[i] = Fcntl(descriptors[i], FDupfdCloexec, 3 + descriptors.Length);
                if (copies[i] < 0)
                {
                    int error = Marshal.GetLastPInvokeError();
                    throw new Win32Exception(error, $"cannot copy a descriptor: {new Win32Exception(error).Message}");
                }

                _ = SpawnActionsAddDup2(actions, copies[i], 3 + i); // clears FD_CLOEXEC on the target
            }

            return Spawn(path, actions);
        }
        finally
        {
            _ = SpawnActionsDestroy(actions);
            foreach (int copy in copies)
            {
                _ = copy < 0 ? 0 : Close(copy);
            }
        }
    }

    private static int Spawn(string path, byte* actions)
    {
        ReadOnlySpan<byte> bytes = System.Text.Encoding.UTF8.GetBytes(path + "\0");
        fixed (byte* p = bytes)
        {
            byte** argv = stackalloc byte*[2];
            argv[0] = p;
            argv[1] = null;
            byte** envp = stackalloc byte*[1];
            envp[0] = null;
            int pid;
            int error = PosixSpawn(&pid, p, actions, null, argv, envp);
            return error == 0
                ? pid
                : throw new Win32Exception(error, $"posix_spawn: {new Win32Exception(error).Message}");
        }
    }
}
