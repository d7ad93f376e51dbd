using VirtBench.Strategies.Hardware;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Hardware.Tests;

/// <summary>What /dev/kvm may lack: guests run all the same, and what is lost is named.</summary>
public sealed class CapabilityTests
{
    private static readonly Dictionary<
        string,
        (string Capability, Func<KvmCapabilities, KvmCapabilities> Without)
    > All = new()
    {
        ["sync regs"] = ("KVM_CAP_SYNC_REGS", offered => offered with { SyncRegs = false }),
        ["MSR filter"] = ("KVM_CAP_X86_MSR_FILTER", offered => offered with { MsrFilter = false }),
        ["user-space MSRs"] = ("KVM_CAP_X86_USER_SPACE_MSR", offered => offered with { UserSpaceMsr = false }),
        ["statistics"] = ("KVM_CAP_BINARY_STATS_FD", offered => offered with { BinaryStats = false }),
        ["quirks"] = ("KVM_CAP_DISABLE_QUIRKS2", offered => offered with { Quirks = 0 }),
        ["events"] = ("KVM_CAP_VCPU_EVENTS", offered => offered with { VcpuEvents = false }),
        ["debug registers"] = ("KVM_CAP_DEBUGREGS", offered => offered with { DebugRegisters = false }),
        ["emulation failures"] = (
            "KVM_CAP_EXIT_ON_EMULATION_FAILURE",
            offered => offered with { ExitOnEmulationFailure = false }
        ),
        ["TSS address"] = ("KVM_CAP_SET_TSS_ADDR", offered => offered with { SetTssAddress = false }),
        ["all of them"] = (
            "KVM_CAP_SYNC_REGS",
            offered =>
                offered with
                {
                    SyncRegs = false,
                    MsrFilter = false,
                    UserSpaceMsr = false,
                    BinaryStats = false,
                    Quirks = 0,
                    VcpuEvents = false,
                    DebugRegisters = false,
                    ExitOnEmulationFailure = false,
                }
        ),
    };

    public static TheoryData<string> Names => [.. All.Keys];

    [Theory]
    [MemberData(nameof(Names))]
    public void A_guest_runs_without(string name)
    {
        using var guest = new HardwareGuest(
            a =>
            {
                a.LoadIdt();
                a.WriteMsr(Msr.Lstar, 0x1234);
                a.ReadMsr(Msr.Lstar);
                a.Store(8, rax);
                a.mov(dx, 0x3FF);
                a.mov(al, 0x42);
                a.@out(dx, al);
                a.@in(al, dx);
                a.Store(9, rax);
                a.mov(eax, __dword_ptr[HardwareGuest.NoRam]);
                a.Store(10, rax);
                a.mov(eax, 1);
                a.@out(0xB0, eax);
                a.@out(0xB4, eax);
                a.ud2();
            },
            without: All[name].Without
        ).InstallHandlers();
        Assert.Equal(Vector.InvalidOpcode, guest.RunToException().Vector);
        Assert.Equal((0x1234UL, 0x42UL, 0xFFFF_FFFFUL), (guest.Result(8), guest.Result(9) & 0xFF, guest.Result(10)));
        MeasuredRegion region = Assert.Single(guest.Machine.Regions);
        if (name is "statistics" or "all of them")
        {
            Assert.Null(region.KernelStatistics);
            Assert.Null(guest.Machine.KernelStatistics());
            Assert.Empty(guest.Engine.Capabilities.KernelStatistics);
        }

        if (!name.Contains("debug", StringComparison.Ordinal) && name != "all of them")
        {
            Assert.Equal(0x400UL, guest.Cpu.Dr7);
        }
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void An_endless_loop_is_stopped_without(string name)
    {
        using var guest = new HardwareGuest(
            a =>
            {
                a.sti();
                a.LoopForEver();
            },
            without: All[name].Without
        );
        Assert.Equal(RunEnd.TimedOut, guest.Run(TimeSpan.FromMilliseconds(20)).End);
        Assert.Equal(HardwareGuest.Code + 1, guest.Cpu.Rip);
        Assert.Equal(RunEnd.TimedOut, guest.Run(TimeSpan.FromMilliseconds(20)).End);
    }

    // KVM has the answer then: #GP, or what it keeps there itself. The hole says so.
    [Theory]
    [InlineData("MSR filter")]
    [InlineData("user-space MSRs")]
    public void Msrs_that_the_platform_lacks_are_kvms_without(string name)
    {
        using var guest = new HardwareGuest(
            a =>
            {
                a.LoadIdt();
                a.mov(ecx, 0x1A0);
                a.rdmsr();
                a.mov(ecx, 0x1234_5678);
                a.rdmsr();
                a.Exit(99);
            },
            without: All[name].Without
        ).InstallHandlers();
        Assert.Equal(Vector.GeneralProtection, guest.RunToException().Vector);
        Assert.Equal(name == "MSR filter" ? 1 : 0, guest.Exits(TrapReason.Msr));
    }

    [Theory]
    [InlineData("KVM_CAP_X86_MSR_FILTER", "rdmsr")]
    [InlineData("KVM_CAP_X86_USER_SPACE_MSR", "wrmsr")]
    [InlineData("KVM_CAP_DISABLE_QUIRKS2", "mwait")]
    [InlineData("KVM_CAP_DISABLE_QUIRKS2", "vmcall")]
    [InlineData("KVM_CAP_DISABLE_QUIRKS2", "vmmcall")]
    public void What_is_lost_without_a_capability_is_a_hole(string capability, string instruction)
    {
        var host = new KvmHost
        {
            Access = KvmAccess.Usable,
            Module = "kvm_amd",
            Missing = [new MissingCapability(capability, "", Required: false)],
        };
        Assert.Contains(instruction, HardwareHoles.Of(host).Select(hole => hole.Instruction));
    }

    [Fact]
    public void Every_capability_that_is_missing_is_listed_with_what_it_means()
    {
        HardwareGuest.SkipUnlessAvailable();
        foreach (MissingCapability missing in KvmHost.Current.Missing)
        {
            Assert.StartsWith("KVM_CAP_", missing.Name, StringComparison.Ordinal);
            Assert.NotEmpty(missing.Effect);
            Assert.False(missing.Required);
        }

        Assert.Equal(
            KvmHost.Current.Missing.Select(missing => missing.Name).Distinct(),
            KvmHost.Current.Missing.Select(missing => missing.Name)
        );
    }
}
