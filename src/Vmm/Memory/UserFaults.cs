using System.ComponentModel;
using System.Runtime.InteropServices;
using System.Runtime.Versioning;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Native;

namespace VirtBench.Vmm.Memory;

/// <summary>
/// Fetches the frames that the host's kernel touches for the guest: hardware assist reaches RAM through this process's page
/// tables, where userfaultfd (Linux manual, userfaultfd(2) and ioctl_userfaultfd(2)) reports each page of the memfd that is
/// not there and holds whoever wants it until it is.
/// </summary>
/// <remarks>
/// Managed code must never be held like that: a thread in it cannot be stopped for garbage collection, which the thread
/// here may need. So the core asks <see cref="GuestMemory.Touch"/>, always.
/// </remarks>
internal sealed unsafe class UserFaults : IDisposable
{
    // linux/userfaultfd.h
    private const ulong Api = 0xAA;
    private const ulong FeatureMissingShmem = 1 << 5;
    private const ulong RegisterModeMissing = 1;
    private const byte EventPageFault = 0x12;
    private const nuint IoctlNew = 0xAA00; // _IO(0xAA, 0), on /dev/userfaultfd
    private const nuint IoctlApi = 0xC018_AA3F; // _IOWR(0xAA, 0x3F, struct uffdio_api)
    private const nuint IoctlRegister = 0xC020_AA00; // _IOWR(0xAA, 0x00, struct uffdio_register)
    private const nuint IoctlWake = 0x8010_AA02; // _IOR(0xAA, 0x02, struct uffdio_range)
    private const nuint IoctlZeroPage = 0xC020_AA04; // _IOWR(0xAA, 0x04, struct uffdio_zeropage)

    [StructLayout(LayoutKind.Sequential)]
    private struct ApiRequest
    {
        public ulong Api;
        public ulong Features;
        public ulong Ioctls;
    }

    /// <summary>struct uffdio_register and struct uffdio_zeropage; of uffdio_range the first two fields.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct RangeRequest
    {
        public ulong Start;
        public ulong Length;
        public ulong Mode;
        public ulong Result;
    }

    /// <summary>struct uffd_msg of a page fault.</summary>
    [StructLayout(LayoutKind.Explicit, Size = 32)]
    private struct Message
    {
        [FieldOffset(0)]
        public byte Event;

        [FieldOffset(16)]
        public ulong Address;
    }

    private readonly GuestMemory _memory;
    private readonly IGuestPager _pager;
    private readonly Action _kick;
    private readonly Thread _thread;
    private readonly int _faults;
    private readonly int _stop;
    private string? _failure;

    [SupportedOSPlatform("linux")]
    private UserFaults(GuestMemory memory, IGuestPager pager, Action kick, int faults, int stop)
    {
        _memory = memory;
        _pager = pager;
        _kick = kick;
        _faults = faults;
        _stop = stop;
        _thread = new Thread(Serve) { IsBackground = true, Name = "guest page faults" };
        _thread.Start();
    }

    /// <summary>Why a frame could not be fetched; the guest must not go on. Null as long as all could.</summary>
    public string? Failure => Volatile.Read(ref _failure);

    /// <summary>Catches the kernel's accesses to absent frames from now on.</summary>
    /// <param name="memory">RAM, whose absent frames are holes in its memfd.</param>
    /// <param name="pager">Fetches them.</param>
    /// <param name="kick">Stops the guest before it sees a frame that could not be fetched.</param>
    /// <exception cref="PlatformNotSupportedException">This host cannot; one line says why.</exception>
    public static UserFaults Start(GuestMemory memory, IGuestPager pager, Action kick)
    {
        if (!OperatingSystem.IsLinux())
        {
            throw new PlatformNotSupportedException("hardware assist with absent guest memory needs Linux");
        }

        int faults = Open();
        int stop = Linux.EventFd(0, Linux.OCloexec);
        var api = new ApiRequest { Api = Api, Features = FeatureMissingShmem };
        var range = new RangeRequest
        {
            Start = (ulong)memory.Base,
            Length = memory.Size,
            Mode = RegisterModeMissing,
        };
        if (stop < 0 || Linux.Ioctl(faults, IoctlApi, &api) != 0 || Linux.Ioctl(faults, IoctlRegister, &range) != 0)
        {
            int error = Marshal.GetLastPInvokeError();
            _ = Linux.Close(faults);
            _ = stop >= 0 ? Linux.Close(stop) : 0;
            throw Unavailable(error);
        }

        return new UserFaults(memory, pager, kick, faults, stop);
    }

    // The system call needs CAP_SYS_PTRACE or vm.unprivileged_userfaultfd = 1 to catch the kernel's faults as well as the
    // process's own, which KVM's are; whom an administrator gives the device file to needs neither.
    [SupportedOSPlatform("linux")]
    private static int Open()
    {
        const int flags = Linux.OCloexec | Linux.ONonblock;
        int faults = (int)Linux.Syscall(Linux.SyscallUserfaultfd, flags);
        int error = Marshal.GetLastPInvokeError();
        if (faults >= 0)
        {
            return faults;
        }

        int device = Linux.Open("/dev/userfaultfd", Linux.ORdwr | Linux.OCloexec);
        if (device >= 0)
        {
            faults = Linux.Ioctl(device, IoctlNew, (void*)flags);
            _ = Linux.Close(device);
        }

        return faults >= 0 ? faults : throw Unavailable(error);
    }

    private static PlatformNotSupportedException Unavailable(int error) =>
        new(
            "hardware assist with absent guest memory needs userfaultfd for the kernel's accesses"
                + (
                    error == Linux.Eperm
                        ? "; set vm.unprivileged_userfaultfd = 1, or give this user /dev/userfaultfd"
                        : $": {new Win32Exception(error).Message}"
                )
        );

    [SupportedOSPlatform("linux")]
    private void Serve()
    {
        Linux.PollFd* descriptors = stackalloc Linux.PollFd[2];
        while (true)
        {
            descriptors[0] = new Linux.PollFd { Fd = _faults, Events = Linux.PollIn };
            descriptors[1] = new Linux.PollFd { Fd = _stop, Events = Linux.PollIn };
            if (Linux.Poll(descriptors, 2, -1) < 0 && Marshal.GetLastPInvokeError() != Linux.Eintr)
            {
                return;
            }

            if (descriptors[1].Revents != 0)
            {
                return;
            }

            Message message;
            while (Linux.Read(_faults, &message, (nuint)sizeof(Message)) == sizeof(Message))
            {
                if (message.Event == EventPageFault)
                {
                    Resolve((message.Address - (ulong)_memory.Base) / GuestMemory.PageSize);
                }
            }
        }
    }

    [SupportedOSPlatform("linux")]
    private void Resolve(ulong frame)
    {
        try
        {
            _pager.Fetch(frame);
        }
        catch (GuestFailureException failure)
        {
            // Before the page, such as it is, comes: a guest that has been kicked does not get to see it.
            Volatile.Write(ref _failure, failure.Message);
            _kick();
        }

        var page = new RangeRequest
        {
            Start = (ulong)_memory.Base + (frame * GuestMemory.PageSize),
            Length = GuestMemory.PageSize,
        };

        // Fetched, it is there already, and who waits for it is only woken.
        if (Linux.Ioctl(_faults, IoctlZeroPage, &page) != 0)
        {
            _ = Linux.Ioctl(_faults, IoctlWake, &page);
        }
    }

    /// <summary>Stops. Who still waits for a frame gets what is there, zeros if nothing is: no guest runs any more.</summary>
    public void Dispose()
    {
        if (OperatingSystem.IsLinux())
        {
            ulong one = 1;
            _ = Linux.Write(_stop, &one, sizeof(ulong));
            _thread.Join();
            _ = Linux.Close(_faults);
            _ = Linux.Close(_stop);
        }
    }
}
