using VirtBench.Vmm.Cpu;

namespace VirtBench.Strategies.Simulation;

/// <summary>
/// CPUID of the simulated host: the platform's table without the hypervisor bit and leaf, which is what makes CPUID a hole.
/// </summary>
internal static class HostCpuid
{
    private const uint HypervisorPresent = 1u << 31;

    public static CpuidResult Query(uint leaf)
    {
        if (leaf == PlatformCpuid.HypervisorLeaf)
        {
            return default;
        }

        CpuidResult result = PlatformCpuid.Query(leaf);
        return leaf == 1 ? result with { Ecx = result.Ecx & ~HypervisorPresent } : result;
    }
}
