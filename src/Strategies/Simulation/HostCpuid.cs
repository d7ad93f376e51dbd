using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Simulation;

/// <summary>
/// CPUID of the simulated host: the x86-64-v1 baseline of the platform without the hypervisor bit and leaves, which is what
/// makes CPUID a hole (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E).
/// </summary>
internal static class HostCpuid
{
    // FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2
    private const uint Features1Edx = 0x078B_FBFF;
    private const uint Cmpxchg16b = 1 << 13;

    // SYSCALL, NX, RDTSCP, long mode beside the mirrored features
    private const uint ExtendedEdx = (1 << 11) | (1 << 20) | (1 << 27) | (1 << 29);

    public static void Query(uint leaf, uint subleaf, out uint a, out uint b, out uint c, out uint d)
    {
        (a, b, c, d) = leaf switch
        {
            0 => (1u, 0x756E_6547u, 0x6C65_746Eu, 0x4965_6E69u), // GenuineIntel in EBX, EDX, ECX
            1 => (0x0000_0F40u, 8u << 8, Cmpxchg16b, Features1Edx),
            0x8000_0000 => (0x8000_0008u, 0u, 0u, 0u),
            0x8000_0001 => (0u, 0u, 1u, ExtendedEdx), // LAHF in 64-bit mode
            0x8000_0002 => Text("VirtBench simula"),
            0x8000_0003 => Text("ted x86-64-v1 CP"),
            0x8000_0004 => Text("U"),
            0x8000_0008 => ((48u << 8) | PageWalker.PhysicalAddressBits, 0u, 0u, 0u),
            _ => (0u, 0u, 0u, 0u),
        };
    }

    private static (uint A, uint B, uint C, uint D) Text(string text)
    {
        Span<byte> bytes = stackalloc byte[16];
        bytes.Clear();
        System.Text.Encoding.ASCII.GetBytes(text, bytes);
        return (
            BitConverter.ToUInt32(bytes),
            BitConverter.ToUInt32(bytes[4..]),
            BitConverter.ToUInt32(bytes[8..]),
            BitConverter.ToUInt32(bytes[12..])
        );
    }
}
