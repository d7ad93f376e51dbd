using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Boot;

/// <summary>
/// Puts an image and the boot protocol's tables into guest RAM and sets the CPU to its entry: RIP at the entry, RDI at the
/// boot information, RSP 8 below <see cref="PhysicalLayout.StackTop"/> with a zero return address there, interrupts off,
/// GDT with ring-0 code and data, no IDT and no TSS, the first 1 GiB identity-mapped with supervisor 2 MiB pages.
/// </summary>
public static class BootLoader
{
    private const ulong CodeDescriptor = 0x00AF_9B00_0000_FFFF; // as Segment.KernelCode
    private const ulong DataDescriptor = 0x00CF_9300_0000_FFFF; // as Segment.KernelData
    private const ulong LargePage = 2UL << 20;

    /// <summary>Loads and prepares everything for the first instruction.</summary>
    /// <exception cref="GuestImageException">A segment lies outside RAM, over the boot area or over another segment.</exception>
    /// <exception cref="ArgumentException">There are more parameters than fit.</exception>
    public static void Load(GuestImage image, BootOptions options, VirtualCpu cpu, GuestMemory memory, double tscHz)
    {
        if (options.Parameters.Count > BootOptions.MaximumParameters)
        {
            throw new ArgumentException(
                $"{options.Parameters.Count} guest parameters are given; at most {BootOptions.MaximumParameters} fit",
                nameof(options)
            );
        }

        image.CheckSegments();
        foreach (ImageSegment segment in image.Segments)
        {
            CheckPlace(image, segment, memory);
        }

        memory.Clear(PhysicalLayout.BootInfo, PhysicalLayout.ImageStart - PhysicalLayout.BootInfo);
        foreach (ImageSegment segment in image.Segments)
        {
            memory.Write(segment.PhysicalAddress, segment.Content.Span);
            ulong filled = (ulong)segment.Content.Length;
            memory.Clear(segment.PhysicalAddress + filled, segment.MemorySize - filled);
        }

        WriteBootInformation(options, memory, tscHz);
        WritePageTables(memory);
        memory.Write(PhysicalLayout.Gdt + 8, CodeDescriptor);
        memory.Write(PhysicalLayout.Gdt + 16, DataDescriptor);

        cpu.Reset();
        cpu.Gdtr = new DescriptorTable(PhysicalLayout.Gdt, (3 * 8) - 1);
        cpu.Cr3 = PhysicalLayout.PageTables;
        cpu.Rip = image.Entry;
        cpu.Rsp = PhysicalLayout.StackTop - 8;
        cpu[Gpr.Rdi] = PhysicalLayout.BootInfo;
    }

    private static void CheckPlace(GuestImage image, ImageSegment segment, GuestMemory memory)
    {
        ulong start = segment.PhysicalAddress;
        if (start < PhysicalLayout.ImageStart)
        {
            throw new GuestImageException(
                $"{image.Name}: the segment at 0x{start:X} lies in the boot area below 0x{PhysicalLayout.ImageStart:X}; link it "
                    + "higher, at 0x100000 for instance"
            );
        }

        if (segment.MemorySize > 0 && !memory.Contains(start, segment.MemorySize))
        {
            throw new GuestImageException(
                $"{image.Name}: the segment at 0x{start:X} of 0x{segment.MemorySize:X} bytes does not fit into "
                    + $"{memory.Size >> 20} MiB of RAM"
            );
        }
    }

    private static void WriteBootInformation(BootOptions options, GuestMemory memory, double tscHz)
    {
        memory.Write(
            PhysicalLayout.BootInfo,
            new BootInformation
            {
                Magic = BootInformation.ExpectedMagic,
                RamBytes = memory.Size,
                TscHz = (ulong)Math.Round(tscHz),
                Flags = options.Paravirtual ? BootInformation.ParavirtualFlag : 0,
                HypercallPage = options.Paravirtual ? PhysicalLayout.HypercallPage : 0,
                SharedInfoPage = options.Paravirtual ? PhysicalLayout.SharedInfoPage : 0,
                ParameterCount = (ulong)options.Parameters.Count,
            }
        );
        ulong at = PhysicalLayout.BootInfo + BootInformation.ParametersOffset;
        foreach (ulong parameter in options.Parameters)
        {
            memory.Write(at, parameter);
            at += 8;
        }
    }

    // Accessed and Dirty are left clear: the platform's walker sets them, and a guest may watch it.
    private static void WritePageTables(GuestMemory memory)
    {
        const ulong pointers = PhysicalLayout.PageTables + GuestMemory.PageSize;
        const ulong directory = pointers + GuestMemory.PageSize;
        memory.Write(PhysicalLayout.PageTables, pointers | Pte.Present | Pte.Writable);
        memory.Write(pointers, directory | Pte.Present | Pte.Writable);
        for (ulong i = 0; i < 512; i++)
        {
            memory.Write(directory + (i * 8), (i * LargePage) | Pte.Present | Pte.Writable | Pte.Large);
        }
    }
}
