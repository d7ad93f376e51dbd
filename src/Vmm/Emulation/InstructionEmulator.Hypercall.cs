using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Vmm.Emulation;

// VMCALL and VMMCALL where the platform offers the paravirtual interface, and what its hypercalls want of the emulator.
public sealed partial class InstructionEmulator
{
    /// <summary>The paravirtual interface; null where the guest is not offered it.</summary>
    internal Hypercalls? Hypercalls { get; set; }

    private EmulationResult Hypercall()
    {
        if (Hypercalls is not { } interfaceOfGuest)
        {
            return Raise(Vector.InvalidOpcode);
        }

        _ = Done();
        EmulationResult result = interfaceOfGuest.Invoke(out GuestEvent guestEvent);
        return result == EmulationResult.Event ? Raise(guestEvent) : result;
    }

    /// <summary>A quadword of the guest's stack, so many bytes above RSP.</summary>
    internal bool TryReadStack(int offset, out ulong value, out GuestEvent fault)
    {
        bool read = TryReadStack(offset, sizeof(ulong), out value);
        fault = read ? default : _event;
        return read;
    }

    /// <summary>IRETQ from the stack as it is. What it returns as an event has changed nothing.</summary>
    internal EmulationResult ReturnFromInterrupt(out GuestEvent guestEvent)
    {
        EmulationResult result = Iret(sizeof(ulong));
        guestEvent = result == EmulationResult.Event ? _event : default;
        _cpu.InterruptShadow &= result == EmulationResult.Event;
        return result;
    }
}
