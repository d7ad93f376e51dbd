using VirtBench.Strategies;
using VirtBench.Strategies.Hardware;

namespace VirtBench.Measurement;

/// <summary>How much a finding matters.</summary>
public enum Severity : byte
{
    /// <summary>Worth knowing when reading results; nothing to mend.</summary>
    Fact,

    /// <summary>Disturbs measurements.</summary>
    Disturbs,

    /// <summary>Forbids a strategy.</summary>
    Forbids,
}

/// <summary>Something about this host that matters to measurements.</summary>
/// <param name="Id">Stable id.</param>
/// <param name="Severity">How much it matters.</param>
/// <param name="What">What was found.</param>
/// <param name="Effect">What it does to measurements.</param>
/// <param name="Remedy">The command that mends it, or what to do where no command does; null when nothing helps.</param>
public sealed record Finding(string Id, Severity Severity, string What, string Effect, string? Remedy);

/// <summary>
/// Judges a host: what will disturb measurements on it, or forbid a strategy, and the command that mends it. What the host
/// does not tell is not held against it.
/// </summary>
public static class Doctor
{
    /// <summary>One-minute load average per allowed CPU above which others compete with the vCPU.</summary>
    public const double HighLoadPerCpu = 0.5;

    /// <summary>Share of CPU time stolen since boot from which on steal is worth a warning: the 0.1 % that clock noise may have.</summary>
    public const double NotableSteal = 0.001;

    /// <summary>Examines this host.</summary>
    /// <param name="strategies">Strategies whose availability is to be told.</param>
    public static IReadOnlyList<Finding> Examine(IEnumerable<Strategy> strategies) =>
        Examine(EnvironmentCapture.Capture(), KvmHost.Current, strategies);

    /// <summary>Judges what was captured of a host.</summary>
    /// <param name="host">The host.</param>
    /// <param name="kvm">What /dev/kvm is there.</param>
    /// <param name="strategies">Strategies whose availability is to be told.</param>
    /// <returns>Findings, the gravest first.</returns>
    public static IReadOnlyList<Finding> Examine(HostEnvironment host, KvmHost kvm, IEnumerable<Strategy> strategies) =>
        [
            .. KvmDoctor
                .Examine(host, kvm)
                .Concat(Unavailable(strategies, kvm))
                .Concat(Cpus(host))
                .Concat(Clocks(host))
                .Concat(Neighbours(host))
                .Concat(Permissions(host))
                .OrderByDescending(finding => finding.Severity),
        ];

    private static IEnumerable<Finding> Unavailable(IEnumerable<Strategy> strategies, KvmHost kvm)
    {
        foreach (Strategy strategy in strategies)
        {
            // What is wrong with /dev/kvm is said better where it is looked at.
            if (strategy.UnavailableReason() is { } reason && reason != kvm.UnavailableReason)
            {
                yield return new Finding(
                    $"unavailable-{strategy.Id}",
                    Severity.Forbids,
                    $"{strategy.Id} is not available: {reason}",
                    "sweeps list it as skipped",
                    null
                );
            }
        }
    }

    private static IEnumerable<Finding> Cpus(HostEnvironment host)
    {
        if (host.Process.AllowedCpuCount == 1)
        {
            yield return new Finding(
                "one-cpu",
                Severity.Disturbs,
                "this process may use one CPU only",
                "the VMM and the carrier take turns on it: each trap costs two context switches more",
                host.Cpu.LogicalCpus > 1 ? $"taskset -c 0-{host.Cpu.LogicalCpus - 1} ./virtbench run" : null
            );
        }

        if (host.Cpu.Governor is { } governor && governor != "performance")
        {
            yield return new Finding(
                "governor",
                Severity.Disturbs,
                $"the frequency governor is {governor}",
                "the clock changes during a sweep, and times with it",
                "sudo cpupower frequency-set -g performance"
            );
        }

        if (host.Cpu.TurboEnabled == true)
        {
            yield return new Finding(
                "turbo",
                Severity.Disturbs,
                "turbo is on",
                "the clock depends on temperature and on the other cores",
                host.Cpu.Vendor == "GenuineIntel"
                    ? "echo 1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo"
                    : "echo 0 | sudo tee /sys/devices/system/cpu/cpufreq/boost"
            );
        }

        if (host.Cpu.SmtActive == true)
        {
            yield return new Finding(
                "smt",
                Severity.Disturbs,
                "two threads share each core",
                "what runs on the sibling slows the vCPU by an amount that varies",
                "echo off | sudo tee /sys/devices/system/cpu/smt/control"
            );
        }
    }

    private static IEnumerable<Finding> Clocks(HostEnvironment host)
    {
        if (host.Cpu.InvariantTsc == false)
        {
            yield return new Finding(
                "tsc-not-invariant",
                Severity.Disturbs,
                "the time-stamp counter is not invariant",
                "the guest's own times and the ledger's split of a trap follow the clock's frequency; region times do not",
                null
            );
        }

        if (host.System.Clocksource is { } source && source != "tsc")
        {
            yield return new Finding(
                "clocksource",
                Severity.Disturbs,
                $"the kernel's clocksource is {source}",
                source is "kvm-clock" or "hyperv_clocksource_tsc_page"
                    ? "each clock read costs a little more than with tsc; samples of 50 ms do not notice"
                    : "each clock read is a system call or slow I/O of a microsecond or more",
                "echo tsc | sudo tee /sys/devices/system/clocksource/clocksource0/current_clocksource"
            );
        }
    }

    private static IEnumerable<Finding> Neighbours(HostEnvironment host)
    {
        if (host.System.LoadAverage is { } load && load > HighLoadPerCpu * host.Process.AllowedCpuCount)
        {
            yield return new Finding(
                "load",
                Severity.Disturbs,
                $"the load average is {load:0.00} on {host.Process.AllowedCpuCount} CPUs; more than {HighLoadPerCpu:0.0} per CPU is high",
                "other processes interrupt the vCPU: see the involuntary switches of the samples",
                "ps -eo pcpu,pid,comm --sort=-pcpu | head"
            );
        }

        if (host.System.StealShare is { } steal && steal > NotableSteal)
        {
            yield return new Finding(
                "steal",
                Severity.Disturbs,
                $"{steal:0.0 %} of CPU time since boot was stolen by the hypervisor below; more than {NotableSteal:0.0 %} is notable",
                "samples last longer than the guest ran: see the steal time of the samples",
                null
            );
        }

        if (host.Hypervisor.Present == true)
        {
            yield return new Finding(
                "virtual-machine",
                Severity.Fact,
                $"this host is a virtual machine itself{(host.Hypervisor.Vendor is { } vendor ? $" ({vendor})" : "")}",
                "signals, page faults and hand-offs between cores cost more than on bare metal, and vary more",
                null
            );
        }
    }

    private static IEnumerable<Finding> Permissions(HostEnvironment host)
    {
        if (host.System.MemfdNoexec == 2)
        {
            yield return new Finding(
                "memfd-noexec",
                Severity.Forbids,
                "vm.memfd_noexec is 2",
                "the carrier's program lies in an executable memfd: trap-and-emulate and native cannot start",
                "sudo sysctl vm.memfd_noexec=1"
            );
        }

        if (host.System.Kernel is not null && host.Process.SeccompActions is null)
        {
            yield return new Finding(
                "no-seccomp",
                Severity.Forbids,
                "the kernel offers no seccomp filters, or /proc/sys is hidden",
                "the carrier refuses to run guest code unconfined: trap-and-emulate and native cannot start",
                null
            );
        }

        if (host.Hypervisor.Container is { } container)
        {
            yield return new Finding(
                "container",
                Severity.Fact,
                $"this process runs in a container ({container})"
                    + (host.Process.SeccompMode == 2 ? " under a seccomp filter" : ""),
                "its seccomp profile must allow prctl(PR_SET_TSC), memfd_create and seccomp; the strategies' own check tells",
                host.Process.SeccompMode == 2 ? "docker run --security-opt seccomp=unconfined …" : null
            );
        }
    }
}
