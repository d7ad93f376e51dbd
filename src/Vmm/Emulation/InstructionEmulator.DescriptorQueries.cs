using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Emulation;

// LAR, LSL, VERR and VERW: questions about a descriptor, open to every ring, that answer by ZF instead of faulting (Intel SDM
// vol. 2A, LAR and LSL; vol. 2B, VERR/VERW). A real CPU's ring 3 executes them against the host's own tables.
public sealed partial class InstructionEmulator
{
    /// <summary>Types of system descriptors in long mode that LAR knows: LDT, TSS, call gate (SDM vol. 2A, LAR, table 3-53).</summary>
    private const int TypesOfLar = (1 << LdtType) | (1 << AvailableTssType) | (1 << BusyTssType) | (1 << CallGateType);

    /// <summary>Those that have a limit (SDM vol. 2A, LSL, table 3-56).</summary>
    private const int TypesOfLsl = (1 << LdtType) | (1 << AvailableTssType) | (1 << BusyTssType);

    private const int BusyTssType = 11;
    private const int CallGateType = 12;

    /// <summary>
    /// What LAR gives of the second doubleword: all of the attributes, and bits 16 to 19, which the SDM leaves undefined and CPUs
    /// of both vendors give as they are in memory (AMD APM vol. 3, LAR).
    /// </summary>
    private const ulong AccessRights = 0x00FF_FF00;

    private EmulationResult Lar()
    {
        if (!TryQuery(TypesOfLar, out bool valid, out SegmentDescriptor descriptor))
        {
            return EmulationResult.Event;
        }

        return valid ? Answer((descriptor.Low >> 32) & AccessRights) : Answer(null);
    }

    private EmulationResult Lsl()
    {
        if (!TryQuery(TypesOfLsl, out bool valid, out SegmentDescriptor descriptor))
        {
            return EmulationResult.Event;
        }

        return valid ? Answer(descriptor.Limit) : Answer(null);
    }

    // The operand register keeps even its upper half when there is no answer.
    private EmulationResult Answer(ulong? value)
    {
        if (value is { } found)
        {
            WriteRegister(Instruction.Op0Register, found);
        }

        return Answer(value is not null);
    }

    private EmulationResult Answer(bool yes)
    {
        _cpu.Rflags = yes ? _cpu.Rflags | Rflags.Zf : _cpu.Rflags & ~Rflags.Zf;
        return Done();
    }

    private EmulationResult Verify(bool write)
    {
        if (!TryReadWord(out ushort selector) || !TryLookUp(selector, out bool found, out SegmentDescriptor descriptor))
        {
            return EmulationResult.Event;
        }

        return Answer(
            found && (write ? descriptor.IsWritableData : descriptor.IsReadable) && IsVisible(descriptor, selector)
        );
    }

    /// <summary>The descriptor that the second operand selects, if it is of a kind that the instruction knows.</summary>
    /// <param name="systemTypes">A bit for each type of system descriptor that it knows.</param>
    /// <param name="valid">Whether there is one that this privilege may ask about.</param>
    /// <param name="descriptor">It.</param>
    /// <returns>False for a fault: reading the operand, or the table.</returns>
    private bool TryQuery(int systemTypes, out bool valid, out SegmentDescriptor descriptor)
    {
        valid = false;
        descriptor = default;
        ushort selector;
        if (Instruction.Op1Kind == OpKind.Register)
        {
            selector = (ushort)ReadRegister(Instruction.Op1Register);
        }
        else if (!TryReadOperand(EffectiveAddress(), PageAccess.Read, out selector))
        {
            return false;
        }

        if (!TryLookUp(selector, out bool found, out descriptor))
        {
            return false;
        }

        valid =
            found
            && (descriptor.IsCodeOrData || ((systemTypes >> descriptor.Type) & 1) != 0)
            && IsVisible(descriptor, selector);
        return true;
    }

    /// <summary>Reads a descriptor; that there is none is no fault, that its page is absent is.</summary>
    private bool TryLookUp(ushort selector, out bool found, out SegmentDescriptor descriptor)
    {
        found = !DescriptorTables.IsNull(selector) && _descriptors.Contains(selector, system: false);
        descriptor = default;
        return !found || _descriptors.TryRead(selector, system: false, out descriptor, out _event);
    }

    private bool IsVisible(in SegmentDescriptor descriptor, ushort selector) =>
        descriptor.IsConforming || (_cpu.Cpl <= descriptor.Dpl && (selector & 3) <= descriptor.Dpl);
}
