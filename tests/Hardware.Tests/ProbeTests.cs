using VirtBench.Strategies;
using VirtBench.Strategies.Hardware;
using VirtBench.Vmm.Execution;

namespace VirtBench.Hardware.Tests;

public sealed class ProbeTests
{
    private static KvmHost UsableHost()
    {
        HardwareGuest.SkipUnlessAvailable();
        return KvmHost.Current;
    }

    [Fact]
    public void A_usable_device_says_how_it_executes_ring_zero()
    {
        KvmHost host = UsableHost();
        Assert.Equal((KvmAccess.Usable, null), (host.Access, host.UnavailableReason));
        RingZeroExecution? expected = host.Module switch
        {
            KvmProbe.PvmModule => RingZeroExecution.Emulated,
            KvmProbe.AmdModule or KvmProbe.IntelModule => RingZeroExecution.Native,
            _ => host.RingZero,
        };
        Assert.NotNull(host.RingZero);
        Assert.Equal(expected, host.RingZero);
        Assert.True(host.RingZeroNanoseconds > 0);
        Assert.True(host.HostNanoseconds > 0);
    }

    [Fact]
    public void The_label_names_the_module_and_what_its_times_are_not()
    {
        KvmHost host = UsableHost();
        Assert.SkipWhen(host.Module is null, "the kernel does not tell its modules");
        Strategy strategy = StrategyCatalog.Find(HardwareGuest.Hardware)!;
        Assert.Contains(host.Module, host.Label, StringComparison.Ordinal);
        Assert.Contains(host.Module, strategy.Label, StringComparison.Ordinal);
        Assert.Contains(host.Module, strategy.Description, StringComparison.Ordinal);
        Assert.Equal(
            host.RingZero == RingZeroExecution.Emulated,
            strategy.Label.Contains("not VT-x", StringComparison.Ordinal)
        );
        using var guest = new HardwareGuest(a => a.Exit());
        EngineCapabilities capabilities = guest.Machine.Capabilities;
        Assert.Contains(host.Module, capabilities.TimeSource, StringComparison.Ordinal);
        Assert.StartsWith("measured", capabilities.TimeSource, StringComparison.Ordinal);
        Assert.Equal(host.Paging, capabilities.Paging);
        Assert.Equal((0UL, 0UL), (capabilities.LowestAddress, capabilities.AddressLimit));
        Assert.True(capabilities.DeliversEvents);
        Assert.False(capabilities.TrapsPrivilegedInstructions || capabilities.TrapsTimeStampCounter);
    }

    [Fact]
    public void Paging_is_what_the_modules_parameter_says()
    {
        KvmHost host = UsableHost();
        (string? parameter, string words) = host.Module switch
        {
            KvmProbe.IntelModule => ("ept", "nested paging (EPT)"),
            KvmProbe.AmdModule => ("npt", "nested paging (NPT)"),
            _ => ((string?)null, ""),
        };
        if (parameter is null)
        {
            Assert.Equal((false, "shadow paging by KVM"), (host.NestedPaging, host.Paging));
            return;
        }

        bool nested = File.ReadAllText($"/sys/module/{host.Module}/parameters/{parameter}").Trim() is "Y" or "1";
        Assert.Equal((nested, nested ? words : "shadow paging by KVM"), (host.NestedPaging, host.Paging));
        Assert.Equal(
            !nested,
            StrategyCatalog.Find(HardwareGuest.Hardware)!.Label.Contains("shadow", StringComparison.Ordinal)
        );
    }

    [Theory]
    [InlineData("kvm_amd", "popcnt vmcall vmmcall")]
    [InlineData("kvm_intel", "popcnt vmcall vmmcall")]
    public void Sensitive_instructions_are_no_holes_of_the_hardware(string module, string holes)
    {
        var host = new KvmHost { Access = KvmAccess.Usable, Module = module };
        Assert.Equal(
            holes,
            string.Join(' ', HardwareHoles.Of(host).Select(hole => hole.Instruction).Order(StringComparer.Ordinal))
        );
    }

    [Fact]
    public void Two_examinations_come_to_the_same()
    {
        KvmHost host = UsableHost();
        KvmHost again = KvmProbe.Examine();
        Assert.Equal(
            (host.Access, host.RingZero, host.Label, host.Paging),
            (again.Access, again.RingZero, again.Label, again.Paging)
        );
    }
}
