using System.Text.Json;
using VirtBench.Strategies.Hardware;

namespace VirtBench.Measurement.Tests;

public sealed class EnvironmentCaptureTests : IDisposable
{
    private static readonly DateTimeOffset Now = new(2026, 1, 2, 3, 4, 5, TimeSpan.Zero);

    private readonly string _root = Directory.CreateTempSubdirectory("virtbench-test-").FullName;

    private void Write(string path, string text)
    {
        string file = Path.Join(_root, path);
        Directory.CreateDirectory(Path.GetDirectoryName(file)!);
        File.WriteAllText(file, text);
    }

    private HostEnvironment Capture(Cpuid? cpuid = null, KvmHost? kvm = null) =>
        EnvironmentCapture.Capture(
            new HostFiles(_root),
            cpuid,
            2.5e9,
            Now,
            kvm ?? new KvmHost { Access = KvmAccess.NoDevice, UnavailableReason = "there is none" }
        );

    [Theory]
    [InlineData("fpu vmx sse", "vmx")]
    [InlineData("svm fpu npt hypervisor", "svm npt")]
    [InlineData("vmx_like fpu", "")]
    public void Flags_of_hardware_assist_are_those_that_the_kernel_lists(string flags, string found)
    {
        Write("proc/cpuinfo", $"processor\t: 0\nflags\t\t: {flags}\nvmx flags\t: ept\n");
        Assert.Equal(found.Split(' ', StringSplitOptions.RemoveEmptyEntries), Capture().Cpu.VirtualizationFlags);
    }

    [Fact]
    public void What_is_behind_dev_kvm_is_disclosed()
    {
        var missing = new MissingCapability("KVM_CAP_MADE_UP", "something is lost", Required: false);
        KvmFacts kvm = Capture(
            kvm: new KvmHost
            {
                Access = KvmAccess.Usable,
                Module = "kvm_pvm",
                RingZero = RingZeroExecution.Emulated,
                RingZeroNanoseconds = 712.123456,
                HostNanoseconds = 0.25,
                NestedPaging = false,
                Paging = "shadow paging by KVM",
                Missing = [missing],
                Label = "through kvm_pvm",
            }
        ).Kvm;
        Assert.Equal((KvmAccess.Usable, "kvm_pvm", RingZeroExecution.Emulated), (kvm.Access, kvm.Module, kvm.Ring0));
        Assert.Equal((712.123, 0.25), (kvm.Ring0NanosecondsPerInstruction, kvm.HostNanosecondsPerInstruction));
        Assert.Equal((false, "shadow paging by KVM"), (kvm.NestedPaging, kvm.Paging));
        Assert.Equal([missing], kvm.Missing);
        Assert.Equal("through kvm_pvm", kvm.Label);
    }

    [Fact]
    public void A_host_that_tells_nothing_gives_nulls()
    {
        HostEnvironment host = Capture();
        Assert.Equal(Now, host.Utc);
        Assert.Null(host.Cpu.Vendor);
        Assert.Null(host.Cpu.Model);
        Assert.Null(host.Cpu.Family);
        Assert.Null(host.Cpu.Microcode);
        Assert.Null(host.Cpu.SmtActive);
        Assert.Null(host.Cpu.TurboEnabled);
        Assert.Null(host.Cpu.Governor);
        Assert.Null(host.Cpu.InvariantTsc);
        Assert.Null(host.Cpu.TscHz);
        Assert.Empty(host.Cpu.Caches);
        Assert.Empty(host.Cpu.Mitigations);
        Assert.Null(host.System.Kernel);
        Assert.Null(host.System.Clocksource);
        Assert.Null(host.System.MemoryBytes);
        Assert.Null(host.System.LoadAverage);
        Assert.Null(host.System.StealShare);
        Assert.Null(host.Hypervisor.Present);
        Assert.Null(host.Hypervisor.Machine);
        Assert.False(host.Kvm.DevicePresent);
        Assert.Empty(host.Kvm.Modules);
        Assert.Null(host.Cpu.VirtualizationFlags);
        Assert.Equal(KvmAccess.NoDevice, host.Kvm.Access);
        Assert.Null(host.Kvm.Module);
        Assert.Null(host.Kvm.Ring0);
        Assert.Null(host.Process.AllowedCpus);
        Assert.True(host.Process.AllowedCpuCount > 0);
    }

    [Fact]
    public void What_the_kernel_tells_is_disclosed()
    {
        const string cpu = "sys/devices/system/cpu";
        Write(
            "proc/cpuinfo",
            "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nmicrocode\t: 0xde\n\nprocessor\t: 1\nmicrocode\t: 0xff\n"
        );
        Write($"{cpu}/online", "0-2,7\n");
        Write($"{cpu}/cpu0/cache/index0/level", "1\n");
        Write($"{cpu}/cpu0/cache/index0/type", "Data\n");
        Write($"{cpu}/cpu0/cache/index0/size", "32K\n");
        Write($"{cpu}/cpu0/cache/index0/shared_cpu_list", "0-1\n");
        Write($"{cpu}/cpu0/cache/index1/level", "2\n"); // no type, no size: no cache
        Write($"{cpu}/smt/active", "1\n");
        Write($"{cpu}/intel_pstate/no_turbo", "1\n");
        Write($"{cpu}/cpu0/cpufreq/scaling_governor", "powersave\n");
        Write($"{cpu}/vulnerabilities/meltdown", "Mitigation: PTI\n");
        Write("proc/sys/kernel/osrelease", "6.1.0\n");
        Write("proc/sys/vm/memfd_noexec", "2\n");
        Write("proc/sys/vm/mmap_min_addr", "65536\n");
        Write("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n");
        Write("proc/meminfo", "MemTotal:       1000 kB\nMemFree: 1 kB\n");
        Write("proc/loadavg", "1.50 0.5 0.2 1/100 42\n");
        Write("proc/stat", "cpu  10 10 10 40 10 5 5 10 7 7\n");
        Write("sys/class/dmi/id/sys_vendor", "Maker\n");
        Write("sys/class/dmi/id/product_name", "Box\n");
        Write("sys/hypervisor/type", "xen\n");
        Write("run/systemd/container", "lxc\n");
        Write("sys/module/kvm/parameters/halt_poll_ns", "200000\n");
        Write("sys/module/kvm_intel/parameters/ept", "Y\n");
        Write("sys/module/kvmgt/parameters/other", "1\n");
        Write("proc/self/status", "Name:\tx\nCpus_allowed_list:\t1\nSeccomp:\t2\nNoNewPrivs:\t1\n");
        Write("proc/sys/kernel/seccomp/actions_avail", "kill_process kill_thread trap errno\n");

        HostEnvironment host = Capture(new Cpuid("GenuineIntel", null, 6, 158, 10, true, true, "KVMKVMKVM"));
        Assert.Equal("Some CPU @ 3 GHz", host.Cpu.Model);
        Assert.Equal("0xde", host.Cpu.Microcode);
        Assert.Equal(4, host.Cpu.LogicalCpus);
        Assert.Equal([new CacheFacts(1, "Data", "32K", "0-1")], host.Cpu.Caches);
        Assert.True(host.Cpu.SmtActive);
        Assert.False(host.Cpu.TurboEnabled);
        Assert.Equal("powersave", host.Cpu.Governor);
        Assert.Equal("Mitigation: PTI", host.Cpu.Mitigations["meltdown"]);
        Assert.Equal(2.5e9, host.Cpu.TscHz);
        Assert.Equal("6.1.0", host.System.Kernel);
        Assert.Equal(2, host.System.MemfdNoexec);
        Assert.Equal(65536, host.System.MmapMinAddress);
        Assert.Equal(1000 * 1024, host.System.MemoryBytes);
        Assert.Equal(1.5, host.System.LoadAverage);
        Assert.Equal(0.1, host.System.StealShare);
        Assert.Equal("Maker Box", host.Hypervisor.Machine);
        Assert.Equal(
            ("xen", "lxc", "KVMKVMKVM"),
            (host.Hypervisor.Type, host.Hypervisor.Container, host.Hypervisor.Vendor)
        );
        Assert.Equal(["kvm", "kvm_intel"], host.Kvm.Modules.Keys.Order());
        Assert.Equal("Y", host.Kvm.Modules["kvm_intel"]["ept"]);
        Assert.Equal(
            (1, 2, true),
            (host.Process.AllowedCpuCount, host.Process.SeccompMode, host.Process.NoNewPrivileges)
        );
    }

    [Theory]
    [InlineData("1", true)]
    [InlineData("0", false)]
    public void Turbo_of_other_drivers_is_the_boost_switch(string boost, bool turbo)
    {
        Write("sys/devices/system/cpu/cpufreq/boost", boost);
        Assert.Equal(turbo, Capture().Cpu.TurboEnabled);
    }

    [Theory]
    [InlineData("0", 1)]
    [InlineData("0-3", 4)]
    [InlineData("0-3,8,10-11", 7)]
    [InlineData("", null)]
    [InlineData("3-1", null)]
    [InlineData("a", null)]
    [InlineData("1-2-3", null)]
    [InlineData(null, null)]
    public void Lists_of_cpus_are_counted(string? list, int? count) =>
        Assert.Equal(count, EnvironmentCapture.Count(list));

    [Theory]
    [InlineData(0x000906EA, 6, 158, 10)] // Coffee Lake
    [InlineData(0x00A10F11, 25, 17, 1)] // Zen 4
    [InlineData(0x00000F4A, 15, 4, 10)] // Pentium 4
    [InlineData(0x00000543, 5, 4, 3)] // Pentium MMX: no extended parts
    public void Signatures_are_decoded_with_their_extended_parts(int signature, int family, int model, int stepping) =>
        Assert.Equal((family, model, stepping), Cpuid.Decode(signature));

    [Fact]
    public void This_host_is_captured_and_survives_json()
    {
        HostEnvironment host = EnvironmentCapture.Capture();
        Assert.True(host.Cpu.LogicalCpus >= host.Process.AllowedCpuCount);
        Assert.NotEqual("", host.HostName);
        HostEnvironment again = JsonSerializer.Deserialize<HostEnvironment>(JsonSerializer.Serialize(host))!;
        Assert.Equal(host.Cpu.Model, again.Cpu.Model);
        Assert.Equal(host.Kvm.Modules.Keys.Order(), again.Kvm.Modules.Keys.Order());
    }

    [Fact]
    public void The_cpu_is_the_one_that_the_kernel_names()
    {
        Assert.SkipUnless(System.Runtime.Intrinsics.X86.X86Base.IsSupported, "there is no CPUID here");
        Assert.SkipUnless(File.Exists("/proc/cpuinfo"), "there is no /proc/cpuinfo here");
        var files = new HostFiles("/");
        HostEnvironment host = EnvironmentCapture.Capture();
        Assert.Equal(files.Field("proc/cpuinfo", "vendor_id"), host.Cpu.Vendor);
        Assert.Equal(files.Field("proc/cpuinfo", "cpu family"), $"{host.Cpu.Family}");
        Assert.Equal(files.Field("proc/cpuinfo", "model"), $"{host.Cpu.ModelNumber}");
        Assert.Equal(files.Field("proc/cpuinfo", "stepping"), $"{host.Cpu.Stepping}");
        string[] flags = files.Field("proc/cpuinfo", "flags")!.Split(' ');
        Assert.Equal(flags.Contains("hypervisor"), host.Hypervisor.Present);
    }

    public void Dispose() => Directory.Delete(_root, recursive: true);
}
