using System.Globalization;
using VirtBench.Strategies.Hardware;

namespace VirtBench.Measurement;

/// <summary>Judges what a host offers of /dev/kvm: why it is missing or refuses, and what its times are worth.</summary>
internal static class KvmDoctor
{
    private const string Intel = "kvm_intel";
    private const string Amd = "kvm_amd";
    private const string NoHardwareStrategy = "strategies with hardware assist cannot run here";

    private const string ContainerRemedy =
        "docker run --device /dev/kvm --group-add $(stat -c %g /dev/kvm) … (podman: --device /dev/kvm --group-add keep-groups)";

    public static IEnumerable<Finding> Examine(HostEnvironment host, KvmHost kvm) =>
        kvm.Access switch
        {
            KvmAccess.NoDevice => [NoDevice(host)],
            KvmAccess.NoPermission => [NoPermission(host)],
            KvmAccess.Unusable => Unusable(kvm),
            _ => Usable(host, kvm),
        };

    private static Finding NoDevice(HostEnvironment host)
    {
        if (host.System.Kernel is null || host.Cpu.Architecture != "X64")
        {
            return NoKvm(host, "it is a device of Linux, and this strategy's guests are x86-64 programs", null);
        }

        string? module = VendorModule(host);
        if (module is null && host.Cpu.VirtualizationFlags is null)
        {
            return NoKvm(
                host,
                "the kernel does not tell the CPU's flags, so why is not known",
                "sudo modprobe kvm_intel || sudo modprobe kvm_amd; look at its lines in dmesg"
            );
        }

        if (module is null)
        {
            return host.Hypervisor.Present == true
                ? NoKvm(
                    host,
                    "this host is a virtual machine, and its hypervisor passes neither vmx nor svm on to its CPUs",
                    "on the host below: sudo modprobe -r kvm_intel && sudo modprobe kvm_intel nested=1 (kvm_amd nested=1 on AMD) and "
                        + "this VM's CPU model host-passthrough; in a cloud: a machine type with nested virtualization, or bare metal"
                )
                : NoKvm(
                    host,
                    "the CPU shows neither vmx (VT-x) nor svm (AMD-V)",
                    "turn on Intel VT-x, or AMD-V (SVM), in the firmware setup; if it is not there, the CPU lacks it"
                );
        }

        bool isLoaded = host.Kvm.Modules.ContainsKey(module);
        if (isLoaded && host.Hypervisor.Container is not null && !host.Kvm.DevicePresent)
        {
            return NoKvm(host, $"{module} is loaded, but this container was not given the device", ContainerRemedy);
        }

        return isLoaded
            ? NoKvm(
                host,
                $"{module} is there and has not come up",
                $"sudo modprobe -r {module} && sudo modprobe {module}; if dmesg says that it is disabled by the firmware, turn "
                    + $"{Technique(module)} on in its setup"
            )
            : NoKvm(
                host,
                $"the CPU has {Technique(module)}, but {module} is not loaded",
                $"sudo modprobe {module}{(host.Hypervisor.Container is null ? "" : " on the container's host, then start the container with --device /dev/kvm")}; "
                    + $"if it is refused, turn {Technique(module)} on in the firmware setup"
            );
    }

    private static Finding NoKvm(HostEnvironment host, string why, string? remedy) =>
        new(
            "no-kvm",
            Severity.Forbids,
            $"{(host.Kvm.DevicePresent ? "/dev/kvm is there but does not open" : "there is no /dev/kvm")}: {why}",
            NoHardwareStrategy,
            remedy
        );

    private static Finding NoPermission(HostEnvironment host) =>
        new(
            "kvm-permission",
            Severity.Forbids,
            "this user may not open /dev/kvm",
            "strategies with hardware assist cannot run for this user",
            host.Hypervisor.Container is null ? "sudo usermod -aG kvm $USER # then log in again" : ContainerRemedy
        );

    private static IEnumerable<Finding> Unusable(KvmHost kvm)
    {
        foreach (Finding finding in Missing(kvm))
        {
            yield return finding;
        }

        if (!kvm.Missing.Any(missing => missing.Required))
        {
            yield return new Finding(
                "kvm-unusable",
                Severity.Forbids,
                $"/dev/kvm opens but cannot be used: {kvm.UnavailableReason ?? "its self-check failed"}",
                NoHardwareStrategy,
                "look at the kernel's lines: sudo dmesg | grep -i kvm"
            );
        }
    }

    private static IEnumerable<Finding> Usable(HostEnvironment host, KvmHost kvm)
    {
        string module = kvm.Module ?? "the module behind /dev/kvm";
        if (kvm.RingZero == RingZeroExecution.Emulated)
        {
            yield return new Finding(
                "kvm-emulates-ring0",
                Severity.Disturbs,
                $"{module} emulates guest ring 0 instead of running it on the CPU{Pace(kvm)}",
                "times of the hardware strategy are the emulator's, not those of VT-x or AMD-V, and some instructions answer otherwise (docs/strategies.md); "
                    + "results are labelled so",
                "for such times: bare metal, or a virtual machine with nested virtualization, where kvm_intel or kvm_amd loads"
            );
        }
        else if (host.Hypervisor.Present == true && kvm.Module is Intel or Amd)
        {
            yield return new Finding(
                "kvm-nested",
                Severity.Disturbs,
                $"{module} runs in a virtual machine: virtualization is nested",
                "each exit of a guest goes through the hypervisor below, which makes it several exits there: it costs several times what "
                    + "it does on bare metal",
                "for exit costs of the hardware alone: bare metal"
            );
        }

        if (kvm is { NestedPaging: false, RingZero: not RingZeroExecution.Emulated })
        {
            yield return ShadowPaging(host, kvm.Module);
        }

        foreach (Finding finding in Missing(kvm))
        {
            yield return finding;
        }
    }

    private static string Pace(KvmHost kvm) =>
        kvm is { RingZeroNanoseconds: { } inside, HostNanoseconds: { } outside }
            ? string.Create(
                CultureInfo.InvariantCulture,
                $": {inside:0.##} ns an instruction in a loop that takes {outside:0.##} ns here"
            )
            : "";

    private static Finding ShadowPaging(HostEnvironment host, string? module)
    {
        (string flag, string technique) = module == Amd ? ("npt", "NPT") : ("ept", "EPT");
        bool isOffered = host.Cpu.VirtualizationFlags?.Contains(flag) != false;
        return new Finding(
            "kvm-shadow-paging",
            Severity.Fact,
            $"KVM keeps shadow page tables: {technique} is {(isOffered ? "off" : "not offered by the CPU or the hypervisor below")}",
            "a guest's CR3 writes, page faults and changes of its page tables exit; with nested paging they do not. Reports name which "
                + "of the two was measured",
            module is not (Intel or Amd) ? null
                : isOffered ? $"sudo modprobe -r {module} && sudo modprobe {module} {flag}=1"
                : $"a host, or on the host below a setting, that gives this one {technique}"
        );
    }

    private static IEnumerable<Finding> Missing(KvmHost kvm) =>
        kvm.Missing.Select(missing => new Finding(
            $"missing-{missing.Name.ToLowerInvariant().Replace('_', '-')}",
            missing.Required ? Severity.Forbids : Severity.Fact,
            $"/dev/kvm lacks {missing.Name}",
            missing.Required ? $"{missing.Effect}: {NoHardwareStrategy}" : missing.Effect,
            missing.Required ? "a newer kernel, or another KVM module" : null
        ));

    /// <summary>The module for this CPU by its flags; null when it shows neither.</summary>
    private static string? VendorModule(HostEnvironment host) =>
        host.Cpu.VirtualizationFlags?.Contains("vmx") == true ? Intel
        : host.Cpu.VirtualizationFlags?.Contains("svm") == true ? Amd
        : null;

    private static string Technique(string module) => module == Amd ? "AMD-V (SVM)" : "VT-x";
}
