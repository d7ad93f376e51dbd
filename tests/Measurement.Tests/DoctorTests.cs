using VirtBench.Strategies;
using VirtBench.Strategies.Hardware;

namespace VirtBench.Measurement.Tests;

public sealed class DoctorTests
{
    /// <summary>A host with nothing wrong.</summary>
    private static readonly HostEnvironment Quiet = new(
        "lab",
        DateTimeOffset.UnixEpoch,
        new CpuFacts(
            "X64",
            "GenuineIntel",
            "CPU",
            6,
            158,
            10,
            "0xde",
            8,
            [],
            false,
            false,
            "performance",
            true,
            3e9,
            new Dictionary<string, string>(),
            ["vmx", "ept"]
        ),
        new SystemFacts("Linux", "6.1.0", null, "tsc", 1L << 34, 0.1, 0, 0, 65536),
        new HypervisorFacts(false, null, null, "Maker Box", null),
        Device(isThere: true, "kvm", "kvm_intel"),
        new ProcessFacts("0-7", 8, 0, "kill_process trap", false),
        new RuntimeFacts(".NET 10", false, false, "Batch", null, null),
        new ProjectFacts("0.1.0", null)
    );

    /// <summary>A host whose /dev/kvm is as good as it gets.</summary>
    private static readonly KvmHost Good = new()
    {
        Access = KvmAccess.Usable,
        Module = "kvm_intel",
        RingZero = RingZeroExecution.Native,
        RingZeroNanoseconds = 0.3,
        HostNanoseconds = 0.3,
        NestedPaging = true,
        Paging = "nested paging (EPT)",
        Label = "in VT-x through kvm_intel, nested paging (EPT)",
    };

    private static readonly KvmHost NoDevice = new()
    {
        Access = KvmAccess.NoDevice,
        UnavailableReason = "there is no /dev/kvm; virtbench doctor says what to do",
    };

    private static readonly KvmHost NoPermission = new()
    {
        Access = KvmAccess.NoPermission,
        UnavailableReason = "this user may not open /dev/kvm",
        Module = "kvm_intel",
    };

    /// <summary>What the file system tells; doctor takes what is behind the device from <see cref="KvmHost"/>.</summary>
    private static KvmFacts Device(bool isThere, params string[] modules) =>
        new(
            modules.ToDictionary(
                module => module,
                IReadOnlyDictionary<string, string> (_) => new Dictionary<string, string>()
            ),
            isThere,
            isThere,
            KvmAccess.NoDevice,
            null,
            null,
            null,
            null,
            null,
            null,
            [],
            null
        );

    private static IReadOnlyList<Finding> Examine(
        HostEnvironment host,
        KvmHost? kvm = null,
        params Strategy[] strategies
    ) => Doctor.Examine(host, kvm ?? Good, strategies);

    /// <summary>A host that tells nothing, as any that is not Linux on x86-64.</summary>
    private static readonly HostEnvironment Silent = new(
        "other",
        DateTimeOffset.UnixEpoch,
        new CpuFacts(
            "Arm64",
            null,
            null,
            null,
            null,
            null,
            null,
            8,
            [],
            null,
            null,
            null,
            null,
            null,
            new Dictionary<string, string>(),
            null
        ),
        new SystemFacts("Other", null, null, null, null, null, null, null, null),
        new HypervisorFacts(null, null, null, null, null),
        Device(isThere: false),
        new ProcessFacts(null, 8, null, null, null),
        new RuntimeFacts(".NET 10", false, null, "Batch", null, null),
        new ProjectFacts("0.1.0", null)
    );

    private static readonly Dictionary<string, (HostEnvironment Host, Severity Severity)> Ill = new()
    {
        ["one-cpu"] = (Quiet with { Process = Quiet.Process with { AllowedCpuCount = 1 } }, Severity.Disturbs),
        ["governor"] = (Quiet with { Cpu = Quiet.Cpu with { Governor = "powersave" } }, Severity.Disturbs),
        ["turbo"] = (Quiet with { Cpu = Quiet.Cpu with { TurboEnabled = true } }, Severity.Disturbs),
        ["smt"] = (Quiet with { Cpu = Quiet.Cpu with { SmtActive = true } }, Severity.Disturbs),
        ["tsc-not-invariant"] = (Quiet with { Cpu = Quiet.Cpu with { InvariantTsc = false } }, Severity.Disturbs),
        ["clocksource"] = (Quiet with { System = Quiet.System with { Clocksource = "hpet" } }, Severity.Disturbs),
        ["load"] = (Quiet with { System = Quiet.System with { LoadAverage = 4.1 } }, Severity.Disturbs),
        ["steal"] = (Quiet with { System = Quiet.System with { StealShare = 0.002 } }, Severity.Disturbs),
        ["memfd-noexec"] = (Quiet with { System = Quiet.System with { MemfdNoexec = 2 } }, Severity.Forbids),
        ["no-seccomp"] = (Quiet with { Process = Quiet.Process with { SeccompActions = null } }, Severity.Forbids),
        ["container"] = (Quiet with { Hypervisor = Quiet.Hypervisor with { Container = "docker" } }, Severity.Fact),
    };

    public static TheoryData<string> Ids() => [.. Ill.Keys];

    [Fact]
    public void A_quiet_host_has_no_findings() => Assert.Empty(Examine(Quiet));

    [Theory]
    [MemberData(nameof(Ids))]
    public void Each_trouble_is_found_alone(string id)
    {
        Finding finding = Assert.Single(Examine(Ill[id].Host));
        Assert.Equal((id, Ill[id].Severity), (finding.Id, finding.Severity));
        Assert.NotEqual("", finding.What);
        Assert.NotEqual("", finding.Effect);
        Assert.DoesNotContain('\n', finding.What + finding.Effect + finding.Remedy);
    }

    [Fact]
    public void What_the_host_does_not_tell_is_not_held_against_it() =>
        Assert.Equal(["no-kvm"], Examine(Silent, NoDevice).Select(finding => finding.Id));

    [Theory]
    [InlineData(4.0, false)]
    [InlineData(4.01, true)]
    public void Load_is_judged_per_cpu_that_may_be_used(double load, bool found)
    {
        HostEnvironment host = Quiet with { System = Quiet.System with { LoadAverage = load } };
        Assert.Equal(found, Examine(host).Any(finding => finding.Id == "load"));
    }

    [Fact]
    public void Strategies_that_cannot_run_come_first_with_their_reasons()
    {
        HostEnvironment host = Ill["smt"].Host;
        IReadOnlyList<Finding> findings = Examine(
            host,
            null,
            new ScriptedStrategy("native") { Unavailable = "no seccomp" },
            new ScriptedStrategy("trap-and-emulate")
        );
        Assert.Equal(["unavailable-native", "smt"], findings.Select(finding => finding.Id));
        Assert.Contains("no seccomp", findings[0].What, StringComparison.Ordinal);
    }

    private static readonly HostEnvironment Guest = Quiet with
    {
        Hypervisor = Quiet.Hypervisor with { Present = true },
    };

    private static HostEnvironment With(HostEnvironment host, params string[]? flags) =>
        host with
        {
            Cpu = host.Cpu with { VirtualizationFlags = flags },
        };

    private static HostEnvironment Without(HostEnvironment host, params string[] modules) =>
        host with
        {
            Kvm = Device(isThere: false, modules),
        };

    private static HostEnvironment InContainer(HostEnvironment host) =>
        host with
        {
            Hypervisor = host.Hypervisor with { Container = "docker" },
        };

    /// <summary>Hosts without a usable /dev/kvm: what doctor must say, and what to do.</summary>
    private static readonly Dictionary<
        string,
        (HostEnvironment Host, KvmHost Kvm, string Id, string Says, string Do)
    > Unusable = new()
    {
        ["a virtual machine without flags"] = (
            With(Without(Guest)),
            NoDevice,
            "no-kvm",
            "its hypervisor passes neither vmx nor svm on",
            "kvm_intel nested=1"
        ),
        ["a virtual machine without flags in a cloud"] = (
            With(Without(Guest, "kvm")),
            NoDevice,
            "no-kvm",
            "passes neither vmx nor svm on",
            "machine type with nested virtualization, or bare metal"
        ),
        ["bare metal without flags"] = (
            With(Without(Quiet)),
            NoDevice,
            "no-kvm",
            "the CPU shows neither vmx (VT-x) nor svm (AMD-V)",
            "in the firmware setup"
        ),
        ["unknown flags"] = (
            With(Without(Quiet), null),
            NoDevice,
            "no-kvm",
            "does not tell the CPU's flags",
            "sudo modprobe kvm_intel || sudo modprobe kvm_amd"
        ),
        ["Intel without module"] = (
            With(Without(Guest, "kvm"), "vmx"),
            NoDevice,
            "no-kvm",
            "kvm_intel is not loaded",
            "sudo modprobe kvm_intel; if it is refused, turn VT-x on in the firmware setup"
        ),
        ["AMD without module"] = (
            With(Without(Quiet), "svm", "npt"),
            NoDevice,
            "no-kvm",
            "kvm_amd is not loaded",
            "sudo modprobe kvm_amd; if it is refused, turn AMD-V (SVM) on"
        ),
        ["a module that did not come up"] = (
            Without(Quiet, "kvm", "kvm_intel"),
            NoDevice,
            "no-kvm",
            "kvm_intel is there and has not come up",
            "if dmesg says that it is disabled by the firmware"
        ),
        ["a device that does not open"] = (
            Quiet,
            NoDevice,
            "no-kvm",
            "/dev/kvm is there but does not open",
            "sudo modprobe -r kvm_intel"
        ),
        ["a container without the device"] = (
            InContainer(Without(Quiet, "kvm", "kvm_intel")),
            NoDevice,
            "no-kvm",
            "this container was not given the device",
            "--device /dev/kvm"
        ),
        ["a container on a host without module"] = (
            InContainer(Without(Quiet)),
            NoDevice,
            "no-kvm",
            "kvm_intel is not loaded",
            "on the container's host"
        ),
        ["no permission"] = (
            Quiet,
            NoPermission,
            "kvm-permission",
            "this user may not open /dev/kvm",
            "sudo usermod -aG kvm $USER"
        ),
        ["no permission in a container"] = (
            InContainer(Quiet),
            NoPermission,
            "kvm-permission",
            "this user may not open /dev/kvm",
            "--device /dev/kvm"
        ),
        ["a failed self-check"] = (
            Quiet,
            Good with
            {
                Access = KvmAccess.Unusable,
                UnavailableReason = "the self-check of /dev/kvm failed: made up",
            },
            "kvm-unusable",
            "the self-check of /dev/kvm failed: made up",
            "dmesg"
        ),
        ["a required capability missing"] = (
            Quiet,
            Good with
            {
                Access = KvmAccess.Unusable,
                UnavailableReason = "/dev/kvm lacks KVM_CAP_MADE_UP: nothing runs",
                Missing = [new MissingCapability("KVM_CAP_MADE_UP", "nothing runs", Required: true)],
            },
            "missing-kvm-cap-made-up",
            "/dev/kvm lacks KVM_CAP_MADE_UP",
            "a newer kernel"
        ),
    };

    public static TheoryData<string> UnusableNames() => [.. Unusable.Keys];

    [Theory]
    [MemberData(nameof(UnusableNames))]
    public void Why_kvm_cannot_be_used_is_said_once_with_what_to_do(string name)
    {
        (HostEnvironment host, KvmHost kvm, string id, string says, string remedy) = Unusable[name];
        IReadOnlyList<Finding> findings = Examine(
            host,
            kvm,
            new ScriptedStrategy("hardware") { Unavailable = kvm.UnavailableReason }
        );
        Finding finding = Assert.Single(findings, finding => finding.Severity == Severity.Forbids);
        Assert.Equal(id, finding.Id);
        Assert.Contains(says, finding.What, StringComparison.Ordinal);
        Assert.Contains(remedy, finding.Remedy, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', finding.What + finding.Effect + finding.Remedy);
        Assert.All(findings.Skip(1), other => Assert.Contains(other.Id, (string[])["virtual-machine", "container"]));
    }

    private static Finding Single(HostEnvironment host, KvmHost kvm, string id, Severity severity)
    {
        Finding finding = Assert.Single(Examine(host, kvm), finding => finding.Id != "virtual-machine");
        Assert.Equal((id, severity), (finding.Id, finding.Severity));
        return finding;
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void A_module_that_emulates_ring_0_is_told_from_one_that_runs_it(bool inVirtualMachine)
    {
        Finding finding = Single(
            inVirtualMachine ? Guest : Quiet,
            Good with
            {
                Module = "kvm_pvm",
                RingZero = RingZeroExecution.Emulated,
                RingZeroNanoseconds = 700,
                NestedPaging = false,
                Paging = "shadow paging by KVM",
            },
            "kvm-emulates-ring0",
            Severity.Disturbs
        );
        Assert.Contains("kvm_pvm emulates guest ring 0", finding.What, StringComparison.Ordinal);
        Assert.Contains(
            "700 ns an instruction in a loop that takes 0.3 ns here",
            finding.What,
            StringComparison.Ordinal
        );
        Assert.Contains("not those of VT-x or AMD-V", finding.Effect, StringComparison.Ordinal);
        Assert.Contains("bare metal", finding.Remedy, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("kvm_intel")]
    [InlineData("kvm_amd")]
    public void Nested_virtualization_is_found(string module)
    {
        Finding finding = Single(Guest, Good with { Module = module }, "kvm-nested", Severity.Disturbs);
        Assert.Contains(module, finding.What, StringComparison.Ordinal);
        Assert.Contains("several times", finding.Effect, StringComparison.Ordinal);
    }

    [Fact]
    public void A_virtual_machine_is_a_fact_of_its_own() =>
        Assert.Equal(["virtual-machine"], Examine(Guest, Good with { Module = null }).Select(finding => finding.Id));

    [Theory]
    [InlineData("kvm_intel", "ept", "sudo modprobe -r kvm_intel && sudo modprobe kvm_intel ept=1")]
    [InlineData("kvm_amd", "npt", "sudo modprobe -r kvm_amd && sudo modprobe kvm_amd npt=1")]
    [InlineData("kvm_intel", "vmx", "gives this one EPT")]
    [InlineData("kvm_amd", "svm", "gives this one NPT")]
    public void Shadow_paging_is_found_with_how_to_turn_it_off(string module, string flag, string remedy)
    {
        KvmHost kvm = Good with { Module = module, NestedPaging = false, Paging = "shadow paging by KVM" };
        Finding finding = Single(With(Quiet, flag), kvm, "kvm-shadow-paging", Severity.Fact);
        Assert.Contains(remedy, finding.Remedy, StringComparison.Ordinal);
    }

    [Fact]
    public void Each_missing_capability_is_named_with_its_effect()
    {
        KvmHost kvm = Good with
        {
            Missing =
            [
                new MissingCapability("KVM_CAP_ONE", "one thing is lost", Required: false),
                new MissingCapability("KVM_CAP_OTHER", "another is slower", Required: false),
            ],
        };
        IReadOnlyList<Finding> findings = Examine(Quiet, kvm);
        Assert.Equal(
            [
                ("missing-kvm-cap-one", Severity.Fact, "/dev/kvm lacks KVM_CAP_ONE", "one thing is lost"),
                ("missing-kvm-cap-other", Severity.Fact, "/dev/kvm lacks KVM_CAP_OTHER", "another is slower"),
            ],
            findings.Select(finding => (finding.Id, finding.Severity, finding.What, finding.Effect))
        );
    }

    [Fact]
    public void This_host_can_be_examined() =>
        Assert.All(Doctor.Examine([]), finding => Assert.NotEqual("", finding.Effect));
}
