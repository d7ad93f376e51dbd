using VirtBench.Strategies.Hardware;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Hardware.Tests;

public sealed class MsrTests
{
    private const ulong Canonical = 0xFFFF_8123_4567_8000;

    public static TheoryData<uint, ulong> Platform =>
        new()
        {
            { Msr.Star, 0x0023_0010_1234_5678 },
            { Msr.Lstar, Canonical },
            { Msr.Cstar, 0x7FFF_1234_5678 },
            { Msr.Fmask, 0x4_7700 },
            { Msr.FsBase, Canonical },
            { Msr.GsBase, 0x7FFF_FFFF_F000 },
            { Msr.KernelGsBase, 0xFFFF_FFFF_8000_0000 },
            { Msr.TscAux, 0x89AB_CDEF },
            { Msr.Pat, 0x0105_0600_0007_0406 },
            { Msr.Efer, Efer.Sce | Efer.Lme | Efer.Lma | Efer.Nxe },
        };

    [Theory]
    [MemberData(nameof(Platform))]
    public void A_register_of_the_platform_keeps_what_is_written(uint msr, ulong value)
    {
        SkipWhereWritesDiffer(msr is Msr.TscAux);
        using var guest = new HardwareGuest(a =>
        {
            a.WriteMsr(msr, value);
            a.ReadMsr(msr);
            a.Store(0, rax);
            a.Exit();
        });
        guest.RunToExit();
        Assert.Equal(value, guest.Result(0));
        Assert.Empty(guest.OtherExits);
        ulong saved = msr switch
        {
            Msr.Star => guest.Cpu.Star,
            Msr.Lstar => guest.Cpu.Lstar,
            Msr.Cstar => guest.Cpu.Cstar,
            Msr.Fmask => guest.Cpu.Fmask,
            Msr.FsBase => guest.Cpu.Fs.Base,
            Msr.GsBase => guest.Cpu.Gs.Base,
            Msr.KernelGsBase => guest.Cpu.KernelGsBase,
            Msr.TscAux => guest.Cpu.TscAux,
            Msr.Pat => guest.Cpu.Pat,
            _ => guest.Cpu.Efer,
        };
        Assert.Equal(value, saved);
    }

    private static void SkipWhereWritesDiffer(bool concerned)
    {
        if (concerned)
        {
            HardwareGuest.SkipUnderPvm("does not take or check what is written");
        }
    }

    public static TheoryData<uint> Absent =>
        [
            0x0, // machine check
            0x1B, // IA32_APIC_BASE
            0x3A, // IA32_FEATURE_CONTROL
            0x3B, // IA32_TSC_ADJUST
            0x48, // IA32_SPEC_CTRL
            0x8B, // microcode revision
            0xC1, // IA32_PMC0
            0xFE, // IA32_MTRRCAP
            0x174, // IA32_SYSENTER_CS
            0x175,
            0x176,
            0x1A0, // IA32_MISC_ENABLE
            0x1D9, // IA32_DEBUGCTL
            0x200, // an MTRR
            0x2FF, // IA32_MTRR_DEF_TYPE
            0x480, // VMX
            TscDeadline,
            0x802, // x2APIC
            0x8FF,
            0xDA0, // IA32_XSS
            0x1234_5678,
            0x4000_0000, // Hyper-V
            0x4B56_4D01, // KVM's clock
            0xC000_0085,
            0xC000_0104, // AMD's TSC ratio
            0xC001_0015, // AMD's HWCR
            0xC001_0117, // AMD's VM_HSAVE_PA
        ];

    private const uint TscDeadline = 0x6E0;

    private static void SkipWhereDeadlinesAreDropped() =>
        Assert.SkipWhen(
            KvmHost.Current.Module == KvmProbe.IntelModule,
            "kvm_intel may drop a write of IA32_TSC_DEADLINE before the filter is asked"
        );

    [Theory]
    [MemberData(nameof(Absent))]
    public void Any_other_raises_gp_when_read_and_when_written(uint msr)
    {
        foreach (bool writes in (bool[])[false, true])
        {
            if (writes && msr == TscDeadline)
            {
                SkipWhereDeadlinesAreDropped();
            }

            using var guest = new HardwareGuest(a =>
            {
                a.LoadIdt();
                a.mov(ecx, msr);
                a.xor(eax, eax);
                a.xor(edx, edx);
                if (writes)
                {
                    a.wrmsr();
                }
                else
                {
                    a.rdmsr();
                }

                a.Exit(99);
            }).InstallHandlers();
            ulong at = HardwareGuest.Code + HardwareGuest.LoadIdtLength + 5 + 2 + 2;
            Assert.Equal(new CaughtException(Vector.GeneralProtection, 0, at, 0), guest.RunToException());
            Assert.Equal(1, guest.Exits(TrapReason.Msr));
        }
    }

    public static TheoryData<uint, ulong> Wrong =>
        new()
        {
            { Msr.Lstar, 0x8000_0000_0000_0000 },
            { Msr.FsBase, 0x0000_8000_0000_0000 },
            { Msr.Pat, 2 },
            { Msr.Efer, Efer.Lme | (1 << 12) }, // SVME
            { Msr.Efer, Efer.Nxe }, // long mode off under paging
        };

    [Theory]
    [MemberData(nameof(Wrong))]
    public void A_value_that_the_register_cannot_have_raises_gp(uint msr, ulong value)
    {
        SkipWhereWritesDiffer(msr is Msr.Pat);
        Assert.SkipWhen(
            EmulatedMachine.IsQemu && msr is Msr.Lstar or Msr.FsBase,
            "QEMU's processor takes addresses that are not canonical"
        );
        using var guest = new HardwareGuest(a =>
        {
            a.LoadIdt();
            a.WriteMsr(msr, value);
            a.Exit(99);
        }).InstallHandlers();
        CaughtException caught = guest.RunToException();
        Assert.Equal((Vector.GeneralProtection, 0UL), (caught.Vector, caught.ErrorCode!.Value));
    }

    [Fact]
    public void Ring_three_may_access_none()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.mov(ecx, Msr.Efer);
            a.rdmsr();
        });
        guest.EnterInRingThree();
        Assert.Equal(Vector.GeneralProtection, guest.RunToException().Vector);
    }

    [Fact]
    public void The_time_stamp_counter_goes_on_from_what_is_written()
    {
        SkipWhereWritesDiffer(true);
        const ulong start = 0x0123_4567_0000_0000;
        using var guest = new HardwareGuest(a =>
        {
            a.WriteMsr(Msr.TimeStampCounter, start);
            a.rdtsc();
            a.shl(rdx, 32);
            a.or(rax, rdx);
            a.Store(0, rax);
            a.WriteMsr(Msr.TscAux, 5);
            a.rdtscp();
            a.shl(rdx, 32);
            a.or(rax, rdx);
            a.Store(1, rax);
            a.Store(2, rcx);
            a.ReadMsr(Msr.TimeStampCounter);
            a.Store(3, rax);
            a.Exit();
        });
        guest.RunToExit();
        Assert.InRange(guest.Result(0), start, start + (1UL << 40));
        Assert.InRange(guest.Result(1), guest.Result(0), start + (1UL << 40));
        Assert.Equal(5UL, guest.Result(2));
        Assert.InRange(guest.Result(3), guest.Result(1), start + (1UL << 40));
        Assert.Empty(guest.OtherExits);
        ulong now = HostClock.Instance.Ticks + guest.Cpu.TscOffset;
        Assert.InRange(now, guest.Result(3), start + (1UL << 44));
    }

    [Fact]
    public void The_counter_shows_the_offset_that_the_cpu_was_given()
    {
        SkipWhereWritesDiffer(true);
        using var guest = new HardwareGuest(a =>
        {
            a.rdtsc();
            a.shl(rdx, 32);
            a.or(rax, rdx);
            a.Store(0, rax);
            a.Exit();
        });
        const ulong offset = 0x4000_0000_0000_0000;
        guest.Cpu.TscOffset = offset;
        ulong before = HostClock.Instance.Ticks + offset;
        guest.RunToExit();
        Assert.InRange(guest.Result(0), before, HostClock.Instance.Ticks + offset);
        Assert.Equal(offset, guest.Cpu.TscOffset);
    }
}
