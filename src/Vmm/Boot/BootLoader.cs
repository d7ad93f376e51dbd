using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Boot;

/// <summary>Puts an image and the boot protocol's tables into guest RAM and sets the CPU to its entry.</summary>
public static class BootLoader
{
    /// <summary>Loads and prepares everything for the first instruction.</summary>
    /// <exception cref="GuestImageException">A segment lies outside RAM, over the boot area or over another segment.</exception>
    public static void Load(GuestImage image, BootOptions options, VirtualCpu cpu, GuestMemory memory, double tscHz) =>
        throw new NotImplementedException();
}
