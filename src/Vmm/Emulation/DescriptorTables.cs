using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Emulation;

/// <summary>
/// Reads descriptors of the guest's GDT and LDT. Like hardware it reads them with supervisor rights, whatever the CPL.
/// </summary>
internal sealed class DescriptorTables(VirtualCpu cpu, GuestAddressSpace space)
{
    private const ushort TableIndicator = 4;

    /// <summary>A selector without its RPL is 0: no descriptor.</summary>
    public static bool IsNull(ushort selector) => (selector & ~3) == 0;

    /// <summary>A selector as an error code.</summary>
    public static uint ErrorCode(ushort selector) => (uint)(selector & ~3);

    /// <summary>Whether the descriptor lies within the limit of its table; <paramref name="system"/> as for <see cref="TryRead"/>.</summary>
    public bool Contains(ushort selector, bool system)
    {
        bool local = (selector & TableIndicator) != 0;
        uint limit = local ? cpu.Ldtr.Limit : cpu.Gdtr.Limit;
        uint last = (uint)(selector & ~7) + (system ? 15u : 7u);
        return (!local || cpu.Ldtr.Present) && last <= limit;
    }

    /// <summary>Reads the 8-byte descriptor of a code or data segment; a 16-byte one when <paramref name="system"/>.</summary>
    /// <param name="selector">Not null.</param>
    /// <param name="system">Read an LDT or TSS descriptor.</param>
    /// <param name="descriptor">What was read.</param>
    /// <param name="fault">#GP(selector) outside the table, or the #PF of reading it.</param>
    public bool TryRead(ushort selector, bool system, out SegmentDescriptor descriptor, out GuestEvent fault)
    {
        descriptor = default;
        if (!Contains(selector, system))
        {
            fault = GuestEvent.Exception(Vector.GeneralProtection, ErrorCode(selector));
            return false;
        }

        ulong address = ((selector & TableIndicator) != 0 ? cpu.Ldtr.Base : cpu.Gdtr.Base) + (uint)(selector & ~7);
        ulong high = 0;
        if (
            !space.TryRead(address, PageAccess.Read, out ulong low, out fault)
            || (system && !space.TryRead(address + 8, PageAccess.Read, out high, out fault))
        )
        {
            return false;
        }

        descriptor = new SegmentDescriptor(address, low, high);
        return true;
    }

    /// <summary>Sets the Accessed bit in memory, as loading a segment does, unless it is set.</summary>
    public bool TryMarkAccessed(in SegmentDescriptor descriptor, out GuestEvent fault) =>
        TrySetTypeBits(descriptor, 1, out fault);

    /// <summary>Sets the Busy bit of a TSS descriptor in memory.</summary>
    public bool TryMarkBusy(in SegmentDescriptor descriptor, out GuestEvent fault) =>
        TrySetTypeBits(descriptor, 2, out fault);

    private bool TrySetTypeBits(in SegmentDescriptor descriptor, byte bits, out GuestEvent fault)
    {
        fault = default;
        byte access = (byte)descriptor.Attributes;
        return (access & bits) == bits
            || space.TryWrite(
                descriptor.Address + SegmentDescriptor.AccessByteOffset,
                (byte)(access | bits),
                PageAccess.Write,
                out fault
            );
    }
}
