using System.Reflection;
using System.Runtime;
using System.Runtime.InteropServices;
using VirtBench.Measurement.Native;
using VirtBench.Strategies.Hardware;
using VirtBench.Vmm.Execution;

namespace VirtBench.Measurement;

/// <summary>Captures <see cref="HostEnvironment"/>. Off Linux most facts are null.</summary>
public static class EnvironmentCapture
{
    private const string CpuFolder = "sys/devices/system/cpu";

    /// <summary>CPU flags of hardware assist and of its nested paging, as /proc/cpuinfo has them.</summary>
    private static readonly string[] AssistFlags = ["vmx", "svm", "ept", "npt"];

    /// <summary>
    /// Captures this host now. The first time, the TSC's frequency takes some 20 ms to measure, and so does what is behind
    /// /dev/kvm.
    /// </summary>
    public static HostEnvironment Capture() =>
        Capture(
            new HostFiles("/"),
            Cpuid.Read(),
            HostClock.Instance.TicksPerSecond,
            DateTimeOffset.UtcNow,
            KvmHost.Current
        );

    internal static HostEnvironment Capture(
        HostFiles files,
        Cpuid? cpuid,
        double tscHz,
        DateTimeOffset now,
        KvmHost kvm
    ) =>
        new(
            Environment.MachineName,
            now,
            Cpu(files, cpuid, tscHz),
            System(files),
            Hypervisor(files, cpuid),
            Kvm(files, kvm),
            Process(files),
            Runtime(),
            Project()
        );

    private static CpuFacts Cpu(HostFiles files, Cpuid? cpuid, double tscHz) =>
        new(
            RuntimeInformation.ProcessArchitecture.ToString(),
            cpuid?.Vendor,
            cpuid?.Brand ?? files.Field("proc/cpuinfo", "model name"),
            cpuid?.Family,
            cpuid?.Model,
            cpuid?.Stepping,
            files.Field("proc/cpuinfo", "microcode"),
            Count(files.Text($"{CpuFolder}/online")) ?? Environment.ProcessorCount,
            Caches(files),
            files.Number($"{CpuFolder}/smt/active") is { } smt ? smt != 0 : null,
            Turbo(files),
            files.Text($"{CpuFolder}/cpu0/cpufreq/scaling_governor"),
            cpuid?.InvariantTsc,
            cpuid is null ? null : tscHz,
            files
                .Names($"{CpuFolder}/vulnerabilities")
                .Select(name => (Name: name, State: files.Text($"{CpuFolder}/vulnerabilities/{name}")))
                .Where(entry => entry.State is not null)
                .ToDictionary(entry => entry.Name, entry => entry.State!),
            files.Field("proc/cpuinfo", "flags")?.Split(' ') is { } flags
                ? [.. AssistFlags.Where(flag => flags.Contains(flag))]
                : null
        );

    private static List<CacheFacts> Caches(HostFiles files)
    {
        var caches = new List<CacheFacts>();
        foreach (string name in files.Names($"{CpuFolder}/cpu0/cache"))
        {
            string folder = $"{CpuFolder}/cpu0/cache/{name}";
            if (
                files.Number($"{folder}/level") is { } level
                && files.Text($"{folder}/type") is { } type
                && files.Text($"{folder}/size") is { } size
            )
            {
                caches.Add(new CacheFacts((int)level, type, size, files.Text($"{folder}/shared_cpu_list")));
            }
        }

        return caches;
    }

    // intel_pstate tells it upside down; other drivers have the generic switch.
    private static bool? Turbo(HostFiles files) =>
        files.Number($"{CpuFolder}/intel_pstate/no_turbo") is { } none ? none == 0
        : files.Number($"{CpuFolder}/cpufreq/boost") is { } boost ? boost != 0
        : null;

    private static SystemFacts System(HostFiles files) =>
        new(
            RuntimeInformation.OSDescription,
            files.Text("proc/sys/kernel/osrelease"),
            files.Text("proc/sys/kernel/version"),
            files.Text("sys/devices/system/clocksource/clocksource0/current_clocksource"),
            files.Field("proc/meminfo", "MemTotal") is { } total && long.TryParse(total.Split(' ')[0], out long kib)
                ? kib * 1024
                : null,
            files.Text("proc/loadavg") is { } load && double.TryParse(load.Split(' ')[0], out double average)
                ? average
                : null,
            StealShare(files.Text("proc/stat")),
            (int?)files.Number("proc/sys/vm/memfd_noexec"),
            files.Number("proc/sys/vm/mmap_min_addr")
        );

    // user, nice, system, idle, iowait, irq, softirq, steal; guest time is part of user's (proc_stat(5)).
    private static double? StealShare(string? stat)
    {
        const int accounts = 8;
        string[] fields = stat?.Split('\n', 2)[0].Split(' ', StringSplitOptions.RemoveEmptyEntries) ?? [];
        if (fields.Length <= accounts || fields[0] != "cpu")
        {
            return null;
        }

        double sum = 0;
        double last = 0;
        foreach (string field in fields[1..(accounts + 1)])
        {
            if (!double.TryParse(field, out last))
            {
                return null;
            }

            sum += last;
        }

        return sum > 0 ? last / sum : null;
    }

    private static HypervisorFacts Hypervisor(HostFiles files, Cpuid? cpuid)
    {
        string[] machine =
        [
            .. new[]
            {
                files.Text("sys/class/dmi/id/sys_vendor"),
                files.Text("sys/class/dmi/id/product_name"),
            }.OfType<string>(),
        ];
        return new HypervisorFacts(
            cpuid?.Hypervisor,
            cpuid?.HypervisorVendor,
            files.Text("sys/hypervisor/type"),
            machine.Length == 0 ? null : string.Join(' ', machine),
            files.Exists(".dockerenv") ? "docker"
                : files.Exists("run/.containerenv") ? "podman"
                : files.Text("run/systemd/container")
        );
    }

    private static KvmFacts Kvm(HostFiles files, KvmHost kvm) =>
        new(
            files
                .Names("sys/module")
                .Where(name => name == "kvm" || name.StartsWith("kvm_", StringComparison.Ordinal))
                .ToDictionary(
                    module => module,
                    IReadOnlyDictionary<string, string> (module) =>
                        files
                            .Names($"sys/module/{module}/parameters")
                            .Select(name => (Name: name, Value: files.Text($"sys/module/{module}/parameters/{name}")))
                            .Where(entry => entry.Value is not null)
                            .ToDictionary(entry => entry.Name, entry => entry.Value!)
                ),
            files.Exists("dev/kvm"),
            files.Exists("dev/kvm")
                && OperatingSystem.IsLinux()
                && Linux.Access("/dev/kvm", Linux.ReadOk | Linux.WriteOk) == 0,
            kvm.Access,
            kvm.Module,
            kvm.RingZero,
            Picoseconds(kvm.RingZeroNanoseconds),
            Picoseconds(kvm.HostNanoseconds),
            kvm.NestedPaging,
            kvm.Paging,
            kvm.Missing,
            kvm.Label
        );

    /// <summary>Nanoseconds to the picosecond: what follows is not known anyway.</summary>
    private static double? Picoseconds(double? nanoseconds) => nanoseconds is { } time ? Math.Round(time, 3) : null;

    private static ProcessFacts Process(HostFiles files)
    {
        const string status = "proc/self/status";
        string? allowed = files.Field(status, "Cpus_allowed_list");
        return new ProcessFacts(
            allowed,
            Count(allowed) ?? Environment.ProcessorCount,
            int.TryParse(files.Field(status, "Seccomp"), out int mode) ? mode : null,
            files.Text("proc/sys/kernel/seccomp/actions_avail"),
            files.Field(status, "NoNewPrivs") is { } set ? set == "1" : null
        );
    }

    /// <summary>How many CPUs a list as "0-3,8" names; null when it is not such a list.</summary>
    internal static int? Count(string? list)
    {
        if (list is null)
        {
            return null;
        }

        int count = 0;
        foreach (string range in list.Split(','))
        {
            string[] ends = range.Split('-');
            if (
                ends.Length > 2
                || !int.TryParse(ends[0], out int first)
                || !int.TryParse(ends[^1], out int last)
                || last < first
            )
            {
                return null;
            }

            count += last - first + 1;
        }

        return count;
    }

    private static RuntimeFacts Runtime()
    {
        GC.GetConfigurationVariables().TryGetValue("ConcurrentGC", out object? concurrent);
        return new RuntimeFacts(
            RuntimeInformation.FrameworkDescription,
            GCSettings.IsServerGC,
            concurrent as bool?,
            GCSettings.LatencyMode.ToString(),
            Configured("System.Runtime.TieredCompilation"),
            Configured("System.Runtime.TieredPGO")
        );
    }

    private static bool? Configured(string name) =>
        bool.TryParse(AppContext.GetData(name)?.ToString(), out bool value) ? value : null;

    // The SDK appends "+commit" to the informational version when it builds inside a Git work tree.
    private static ProjectFacts Project()
    {
        string version =
            typeof(EnvironmentCapture)
                .Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()
                ?.InformationalVersion
            ?? "unknown";
        int plus = version.IndexOf('+', StringComparison.Ordinal);
        return plus < 0 ? new ProjectFacts(version, null) : new ProjectFacts(version[..plus], version[(plus + 1)..]);
    }
}
