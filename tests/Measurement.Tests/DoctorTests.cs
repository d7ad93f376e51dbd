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
            new Dictionary<string, string>()
        ),
        new SystemFacts("Linux", "6.1.0", null, "tsc", 1L << 34, 0.1, 0, 0, 65536),
        new HypervisorFacts(false, null, null, "Maker Box", null),
        new KvmFacts(new Dictionary<string, IReadOnlyDictionary<string, string>>(), true, true),
        new ProcessFacts("0-7", 8, 0, "kill_process trap", false),
        new RuntimeFacts(".NET 10", false, false, "Batch", null, null),
        new ProjectFacts("0.1.0", null)
    );

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
            new Dictionary<string, string>()
        ),
        new SystemFacts("Other", null, null, null, null, null, null, null, null),
        new HypervisorFacts(null, null, null, null, null),
        new KvmFacts(new Dictionary<string, IReadOnlyDictionary<string, string>>(), false, false),
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
        ["virtual-machine"] = (Quiet with { Hypervisor = Quiet.Hypervisor with { Present = true } }, Severity.Fact),
        ["no-kvm"] = (Quiet with { Kvm = Quiet.Kvm with { DevicePresent = false } }, Severity.Fact),
        ["kvm-permission"] = (Quiet with { Kvm = Quiet.Kvm with { DeviceUsable = false } }, Severity.Fact),
        ["memfd-noexec"] = (Quiet with { System = Quiet.System with { MemfdNoexec = 2 } }, Severity.Forbids),
        ["no-seccomp"] = (Quiet with { Process = Quiet.Process with { SeccompActions = null } }, Severity.Forbids),
        ["container"] = (Quiet with { Hypervisor = Quiet.Hypervisor with { Container = "docker" } }, Severity.Fact),
    };

    public static TheoryData<string> Ids() => [.. Ill.Keys];

    [Fact]
    public void A_quiet_host_has_no_findings() => Assert.Empty(Doctor.Examine(Quiet, []));

    [Theory]
    [MemberData(nameof(Ids))]
    public void Each_trouble_is_found_alone(string id)
    {
        Finding finding = Assert.Single(Doctor.Examine(Ill[id].Host, []));
        Assert.Equal((id, Ill[id].Severity), (finding.Id, finding.Severity));
        Assert.NotEqual("", finding.What);
        Assert.NotEqual("", finding.Effect);
        Assert.DoesNotContain('\n', finding.What + finding.Effect + finding.Remedy);
    }

    [Fact]
    public void What_the_host_does_not_tell_is_not_held_against_it() =>
        Assert.Equal(["no-kvm"], Doctor.Examine(Silent, []).Select(finding => finding.Id));

    [Theory]
    [InlineData(4.0, false)]
    [InlineData(4.01, true)]
    public void Load_is_judged_per_cpu_that_may_be_used(double load, bool found)
    {
        HostEnvironment host = Quiet with { System = Quiet.System with { LoadAverage = load } };
        Assert.Equal(found, Doctor.Examine(host, []).Any(finding => finding.Id == "load"));
    }

    [Fact]
    public void Strategies_that_cannot_run_come_first_with_their_reasons()
    {
        HostEnvironment host = Ill["smt"].Host;
        IReadOnlyList<Finding> findings = Doctor.Examine(
            host,
            [new ScriptedStrategy("hardware") { Unavailable = "no /dev/kvm" }, new ScriptedStrategy("trap-and-emulate")]
        );
        Assert.Equal(["unavailable-hardware", "smt"], findings.Select(finding => finding.Id));
        Assert.Contains("no /dev/kvm", findings[0].What, StringComparison.Ordinal);
    }

    [Fact]
    public void This_host_can_be_examined() =>
        Assert.All(Doctor.Examine([]), finding => Assert.NotEqual("", finding.Effect));
}
