using Iced.Intel;
using VirtBench.Strategies.Hardware;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Hardware.Tests;

/// <summary>The kernel's own account of exits, which knows those that never come to the VMM.</summary>
public sealed class StatisticsTests
{
    private const int Times = 50;

    private static void SkipWithoutStatistics(HardwareGuest guest) =>
        Assert.SkipWhen(guest.Engine.Capabilities.KernelStatistics.Count == 0, "this kernel has no KVM_GET_STATS_FD");

    private static void Repeat(Assembler a, Action body)
    {
        Label again = a.CreateLabel();
        a.mov(ebp, Times);
        a.Label(ref again);
        body();
        a.dec(ebp);
        a.jnz(again);
    }

    [Fact]
    public void Its_counters_have_names_and_exits_is_among_them()
    {
        using var guest = new HardwareGuest(a => a.Exit());
        SkipWithoutStatistics(guest);
        IReadOnlyList<string> names = guest.Engine.Capabilities.KernelStatistics;
        Assert.Contains(KernelStatistics.Exits, names);
        Assert.Contains("io_exits", names);
        Assert.All(names, name => Assert.Matches("^[a-z0-9_]+$", name));
        Assert.Equal(names.Count, names.Distinct().Count());
        KernelStatistics before = guest.Machine.KernelStatistics()!;
        guest.RunToExit();
        KernelStatistics during = guest.Machine.KernelStatistics()!.Since(before);
        Assert.True(during[KernelStatistics.Exits] >= 1);
        Assert.Null(during["no_such_counter"]);
    }

    [Fact]
    public void What_the_kernel_answers_itself_is_in_its_account_only()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.mov(eax, 1);
            a.@out(0xB0, eax);
            Repeat(
                a,
                () =>
                {
                    a.xor(eax, eax);
                    a.cpuid();
                }
            );
            a.@out(0xB4, eax);
            a.Exit();
        });
        SkipWithoutStatistics(guest);
        guest.RunToExit();
        MeasuredRegion region = Assert.Single(guest.Machine.Regions);
        Assert.Equal(1, region.Exits.Counts.Sum() - region.Exits[TrapReason.Kick]); // the marker's own
        KernelStatistics kernel = region.KernelStatistics!;
        string counter =
            KvmHost.Current.RingZero == RingZeroExecution.Emulated ? "insn_emulation" : KernelStatistics.Exits;
        Assert.InRange(kernel[counter]!.Value, (ulong)Times, ulong.MaxValue);
        Assert.True(kernel[counter] <= guest.Machine.KernelStatistics()![counter]);
    }

    [Fact]
    public void No_exit_of_the_ledger_is_missing_from_the_kernels_account()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.mov(eax, 1);
            a.@out(0xB0, eax);
            Repeat(
                a,
                () =>
                {
                    a.@out(0x80, al);
                    a.mov(__dword_ptr[HardwareGuest.NoRam], eax);
                }
            );
            a.@out(0xB4, eax);
            a.Exit();
        });
        SkipWithoutStatistics(guest);
        guest.RunToExit();
        MeasuredRegion region = Assert.Single(guest.Machine.Regions);
        Assert.Equal((Times, Times), (region.Exits[TrapReason.PortIo], region.Exits[TrapReason.Mmio]));
        KernelStatistics kernel = region.KernelStatistics!;
        Assert.InRange(kernel["mmio_exits"]!.Value, (ulong)Times, (ulong)Times);
        if (KvmHost.Current.RingZero == RingZeroExecution.Native) // elsewhere one "exit" can be many instructions
        {
            Assert.InRange(kernel["io_exits"]!.Value, (ulong)Times, (ulong)Times + 2);
            Assert.True(kernel[KernelStatistics.Exits] >= (ulong)region.Exits.Counts.Sum());
        }
    }
}
