#pragma warning disable CA1416 // DirectGuest has asked for Linux
using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;
using Iced.Intel;
using VirtBench.Strategies.Carrier;
using VirtBench.Strategies.Native;
using VirtBench.Strategies.Tests.DirectExecution;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Tests.Carrier;

[Collection(CarrierCollection.Name)]
public sealed class CarrierLifeTests
{
    private const string ReportVariable = "VIRTBENCH_TEST_REPORT";
    private const byte AnnouncePort = 0x80;
    private const int SysGetpgid = 121;

    // Announces itself at a port that nothing answers, before it goes on for ever.
    private static void AnnounceThen(Assembler a, bool trapping)
    {
        Label forever = a.CreateLabel();
        a.mov(al, 1);
        a.@out(AnnouncePort, al);
        a.Label(ref forever);
        if (trapping)
        {
            a.cli();
        }

        a.inc(__qword_ptr[DirectGuest.Results]);
        a.jmp(forever);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void A_carrier_that_is_killed_ends_the_guest_with_one_line(bool trapping)
    {
        using var guest = new DirectGuest(a => AnnounceThen(a, trapping));
        var killer = new Thread(() =>
        {
            // The guest is running for certain: it counts.
            Assert.True(
                SpinWait.SpinUntil(
                    () => guest.Engine.Carrier is not null && guest.Result(0) > 0,
                    TimeSpan.FromSeconds(30)
                )
            );
            _ = Linux.Syscall(Linux.SysKill, guest.Engine.Carrier!.ProcessId, Linux.SigKill);
        });
        killer.Start();
        string message = guest.RunToFailure();
        killer.Join();
        Assert.Contains("the carrier process was killed by signal 9", message, StringComparison.Ordinal);
        Assert.Equal(message, guest.RunToFailure()); // and stays dead
    }

    [Fact]
    public void A_carrier_that_dies_between_two_runs_is_noticed_in_the_next()
    {
        using var guest = new DirectGuest(a => AnnounceThen(a, trapping: false));
        Assert.Equal(RunEnd.TimedOut, guest.Run(TimeSpan.FromMilliseconds(20)).End);
        _ = Linux.Syscall(Linux.SysKill, guest.Engine.Carrier!.ProcessId, Linux.SigKill);
        Assert.Contains("killed by signal 9", guest.RunToFailure(), StringComparison.Ordinal);
    }

    [Fact]
    public void A_carrier_that_dies_under_a_full_batch_is_an_outcome_and_not_an_exception()
    {
        using var guest = new DirectGuest(a => AnnounceThen(a, trapping: false));
        Assert.Equal(RunEnd.TimedOut, guest.Run(TimeSpan.FromMilliseconds(20)).End);
        _ = Linux.Syscall(Linux.SysKill, guest.Engine.Carrier!.ProcessId, Linux.SigKill);
        for (ulong i = 0; i < 600; i++)
        {
            ulong address = 0x40_0000 + (i * 0x2000);
            _ = guest.Engine.Map(
                new ShadowPage(address, address, 0x40_0000, 4096, VirtBench.Vmm.Memory.PageAccess.Read)
            );
        }

        guest.Engine.SwitchAddressSpace();
        Assert.Contains("killed by signal 9", guest.RunToFailure(), StringComparison.Ordinal);
    }

    [Fact]
    public void More_mappings_than_a_batch_holds_are_made_all_the_same()
    {
        const int pages = 700;
        using var guest = new DirectGuest(a =>
        {
            Label next = a.CreateLabel();
            a.mov(al, 1);
            a.@out(0x80, al);
            a.mov(ecx, pages);
            a.mov(rbx, 0x40_0000UL);
            a.Label(ref next);
            a.add(rax, __qword_ptr[rbx]);
            a.add(rbx, 0x2000);
            a.dec(ecx);
            a.jne(next);
            a.Exit();
        });
        guest.Machine.Ports.Attach(new MapsMany(guest, pages), 0x80, 1);
        guest.RunToExit();
        Assert.Equal(0, guest.Machine.Ledger.Count(TrapReason.GuestPageFault));
        Assert.True(guest.Machine.Ledger.Count(TrapReason.HiddenPageFault) < 10);
    }

    private sealed class MapsMany(DirectGuest guest, int pages) : VirtBench.Vmm.Devices.IIoDevice
    {
        public uint Read(ushort port, int size) => 0;

        public void Write(ushort port, int size, uint value)
        {
            for (ulong i = 0; i < (ulong)pages; i++)
            {
                ulong address = 0x40_0000 + (i * 0x2000);
                Assert.Equal(
                    MapResult.Mapped,
                    guest.Engine.Map(
                        new ShadowPage(address, address, 0x40_0000, 4096, VirtBench.Vmm.Memory.PageAccess.Read)
                    )
                );
            }
        }
    }

    [Fact]
    public void A_carrier_has_a_process_group_of_its_own()
    {
        using var guest = new DirectGuest(a => a.Exit());
        guest.RunToExit();
        int pid = guest.Engine.Carrier!.ProcessId;
        Assert.Equal(pid, Linux.Syscall(SysGetpgid, pid));
    }

    [Fact]
    public void Hundreds_of_vms_leave_no_process_thread_or_descriptor_behind()
    {
        using (var warmUp = new DirectGuest(a => a.Exit()))
        {
            warmUp.RunToExit();
        }

        int descriptors = Directory.GetFiles("/proc/self/fd").Length;
        for (int i = 0; i < 300; i++)
        {
            using var guest = new DirectGuest(a => a.Exit((byte)i), returnByIret: i % 2 == 0);
            Assert.Equal((byte)i, guest.RunToExit());
        }

        Assert.InRange(Directory.GetFiles("/proc/self/fd").Length, 0, descriptors + 5);
        Assert.InRange(Threads().Count(name => name.StartsWith("carrier", StringComparison.Ordinal)), 0, 2);
        Assert.Empty(Children());

        static string[] Threads() =>
            [.. Directory.GetDirectories("/proc/self/task").Select(task => File.ReadAllText($"{task}/comm"))];
    }

    [Fact]
    public void The_vcpu_thread_gets_its_affinity_back()
    {
        DirectGuest.SkipUnlessAvailable();
        byte[] before = CarrierPlacement.CurrentThreadMask();
        using var guest = new DirectGuest(a => a.Exit());
        guest.RunToExit();
        Assert.Equal(before, CarrierPlacement.CurrentThreadMask());
        using (new CarrierCalibration(returnByIret: false)) { }

        Assert.Equal(before, CarrierPlacement.CurrentThreadMask());
    }

    /// <summary>The VMM of the next test, in a process of its own.</summary>
    [Fact(Explicit = true)]
    public void Run_a_guest_for_ever()
    {
        using var guest = new DirectGuest(a => AnnounceThen(a, trapping: true));
        guest.Machine.Ports.Attach(
            new Reports(guest, Environment.GetEnvironmentVariable(ReportVariable)!),
            AnnouncePort,
            1
        );
        _ = guest.Run(TimeSpan.FromSeconds(60));
    }

    private sealed class Reports(DirectGuest guest, string pipe) : VirtBench.Vmm.Devices.IIoDevice
    {
        public uint Read(ushort port, int size) => 0;

        public void Write(ushort port, int size, uint value) =>
            File.WriteAllText(pipe, guest.Engine.Carrier!.ProcessId.ToString(CultureInfo.InvariantCulture));
    }

    [Fact]
    public unsafe void A_vmm_that_is_killed_takes_its_carrier_with_it()
    {
        DirectGuest.SkipUnlessAvailable();
        string folder = Directory.CreateTempSubdirectory("virtbench").FullName;
        string pipe = Path.Combine(folder, "pid");
        Assert.Equal(0, MakeFifo(pipe, 0x180));
        var start = new ProcessStartInfo(
            Path.Combine(AppContext.BaseDirectory, "VirtBench.Strategies.Tests"),
            ["-explicit", "only", "-method", $"{typeof(CarrierLifeTests).FullName}.{nameof(Run_a_guest_for_ever)}"]
        )
        {
            UseShellExecute = false,
            RedirectStandardOutput = true,
            Environment = { [ReportVariable] = pipe },
        };
        using Process vmm = Process.Start(start)!;
        int carrier = int.Parse(File.ReadAllText(pipe), CultureInfo.InvariantCulture);
        int pidFd = (int)Linux.Syscall(Linux.SysPidfdOpen, carrier);
        Assert.True(pidFd >= 0);
        vmm.Kill();
        Linux.PollFd poll = new() { Fd = pidFd, Events = Linux.PollIn };
        int ended;
        do
        {
            ended = Linux.Poll(&poll, 1, 30_000);
        } while (ended < 0); // the runtime's own signals interrupt it
        Assert.Equal(1, ended);
        _ = Linux.Close(pidFd);
        Directory.Delete(folder, recursive: true);
    }

    [DllImport("libc", EntryPoint = "mkfifo", CharSet = CharSet.Ansi)]
    private static extern int MakeFifo(string path, uint mode);

    private static string[] Children() =>
        [
            .. Directory
                .GetDirectories("/proc/self/task")
                .SelectMany(task =>
                    File.ReadAllText($"{task}/children").Split(' ', StringSplitOptions.RemoveEmptyEntries)
                ),
        ];
}
