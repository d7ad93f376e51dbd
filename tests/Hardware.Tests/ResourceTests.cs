using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Hardware.Tests;

public sealed class ResourceTests
{
    [Fact]
    public void Two_guests_run_at_once()
    {
        HardwareGuest.SkipUnlessAvailable();
        var results = new ulong[2];
        Thread[] threads =
        [
            .. Enumerable
                .Range(0, 2)
                .Select(i => new Thread(() =>
                {
                    for (int round = 0; round < 5; round++)
                    {
                        using var guest = new HardwareGuest(a =>
                        {
                            Iced.Intel.Label again = a.CreateLabel();
                            a.mov(dx, 0x3FF);
                            a.mov(ecx, 100);
                            a.Label(ref again);
                            a.mov(al, (byte)(0x40 + i));
                            a.@out(dx, al);
                            a.@in(al, dx);
                            a.movzx(eax, al);
                            a.add(rbx, rax);
                            a.dec(ecx);
                            a.jnz(again);
                            a.Store(0, rbx);
                            a.Exit();
                        });
                        guest.RunToExit();
                        results[i] += guest.Result(0);
                    }
                })),
        ];
        Array.ForEach(threads, thread => thread.Start());
        Array.ForEach(threads, thread => thread.Join());
        Assert.Equal([5UL * 100 * 0x40, 5UL * 100 * 0x41], results);
    }

    [Fact]
    public void A_machine_goes_from_thread_to_thread()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.sti();
            a.LoopForEver();
        });
        for (int i = 0; i < 3; i++)
        {
            RunOutcome? outcome = null;
            var thread = new Thread(() => outcome = guest.Run(TimeSpan.FromMilliseconds(10)));
            thread.Start();
            thread.Join();
            Assert.Equal(RunEnd.TimedOut, outcome!.End);
        }
    }

    [Fact]
    public void Machines_leave_nothing_behind()
    {
        HardwareGuest.SkipUnlessAvailable();
        Once(0);
        int descriptors = Descriptors();
        int mappings = Mappings();
        for (int i = 0; i < 50; i++)
        {
            Once(i);
        }

        Assert.Equal(descriptors, Descriptors());
        Assert.Equal(mappings, Mappings());
    }

    private static void Once(int i)
    {
        using var guest = new HardwareGuest(a => a.Exit(), ram: GuestMemory.MinimumSize + 0x10_0000);
        if (i % 2 == 0)
        {
            guest.RunToExit();
        }
    }

    [Fact]
    public void Machines_that_are_refused_leave_nothing_behind_either()
    {
        HardwareGuest.SkipUnlessAvailable();
        int descriptors = Descriptors();
        int mappings = Mappings();
        for (int i = 0; i < 5; i++)
        {
            Assert.Throws<System.ComponentModel.Win32Exception>(() =>
                new HardwareGuest(a => a.Exit(), without: _ => throw new System.ComponentModel.Win32Exception(22))
            );
        }

        Assert.Equal(descriptors, Descriptors());
        Assert.Equal(mappings, Mappings());
    }

    private static int Descriptors() => Directory.GetFileSystemEntries("/proc/self/fd").Length;

    // Those that a VM has: of the garbage collector's own there may be more or fewer at any time.
    private static int Mappings() =>
        File.ReadLines("/proc/self/maps")
            .Count(line =>
                line.Contains("kvm", StringComparison.Ordinal)
                || line.Contains("virtbench-ram", StringComparison.Ordinal)
            );
}
