using System.Runtime.InteropServices;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Emulation;

// LGDT, LIDT, LLDT, LTR and the stores. UMIP is not in the platform's CPUID, so the stores work at any CPL.
public sealed partial class InstructionEmulator
{
    private const int LdtType = 2;
    private const int AvailableTssType = 9;

    [StructLayout(LayoutKind.Sequential, Pack = 1)]
    private readonly record struct TableOperand(ushort Limit, ulong Base);

    private EmulationResult LoadTable(bool global)
    {
        if (!Privileged(out EmulationResult refused))
        {
            return refused;
        }

        if (!TryReadOperand(EffectiveAddress(), PageAccess.Read, out TableOperand operand))
        {
            return EmulationResult.Event;
        }

        if (!PageWalker.IsCanonical(operand.Base))
        {
            return Raise(Vector.GeneralProtection);
        }

        DescriptorTable table = new(operand.Base, operand.Limit);
        if (global)
        {
            _cpu.Gdtr = table;
        }
        else
        {
            _cpu.Idtr = table;
        }

        return Done();
    }

    private EmulationResult StoreTable(DescriptorTable table) =>
        TryWriteOperand(EffectiveAddress(), new TableOperand(table.Limit, table.Base)) ? Done() : EmulationResult.Event;

    private EmulationResult Lldt()
    {
        if (!Privileged(out EmulationResult refused))
        {
            return refused;
        }

        if (!TryReadWord(out ushort selector))
        {
            return EmulationResult.Event;
        }

        if (DescriptorTables.IsNull(selector))
        {
            _cpu.Ldtr = Segment.Null with { Selector = selector };
            return Done();
        }

        if (!TryReadSystemDescriptor(selector, LdtType, out SegmentDescriptor descriptor))
        {
            return EmulationResult.Event;
        }

        _cpu.Ldtr = descriptor.ToSegment(selector);
        return Done();
    }

    private EmulationResult Ltr()
    {
        if (!Privileged(out EmulationResult refused))
        {
            return refused;
        }

        if (!TryReadWord(out ushort selector))
        {
            return EmulationResult.Event;
        }

        if (DescriptorTables.IsNull(selector))
        {
            return Raise(Vector.GeneralProtection);
        }

        if (
            !TryReadSystemDescriptor(selector, AvailableTssType, out SegmentDescriptor descriptor)
            || !_descriptors.TryMarkBusy(descriptor, out _event)
        )
        {
            return EmulationResult.Event;
        }

        Segment task = descriptor.ToSegment(selector);
        _cpu.Tr = task with { Attributes = (ushort)(task.Attributes | 2) };
        return Done();
    }

    private bool TryReadSystemDescriptor(ushort selector, int type, out SegmentDescriptor descriptor)
    {
        uint code = DescriptorTables.ErrorCode(selector);
        descriptor = default;
        const ushort localTable = 4;
        if ((selector & localTable) != 0)
        {
            _ = Raise(Vector.GeneralProtection, code);
            return false;
        }

        if (!_descriptors.TryRead(selector, system: true, out descriptor, out _event))
        {
            return false;
        }

        if (
            descriptor.IsCodeOrData
            || descriptor.Type != type
            || descriptor.UpperType != 0
            || !PageWalker.IsCanonical(descriptor.Base)
        )
        {
            _ = Raise(Vector.GeneralProtection, code);
            return false;
        }

        if (!descriptor.Present)
        {
            _ = Raise(Vector.SegmentNotPresent, code);
            return false;
        }

        return true;
    }
}
