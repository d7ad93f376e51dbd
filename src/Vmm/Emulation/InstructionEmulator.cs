using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Emulation;

/// <summary>What emulating one instruction came to.</summary>
public enum EmulationResult : byte
{
    /// <summary>The instruction is done and RIP points behind it.</summary>
    Done,

    /// <summary>The instruction raises an event; nothing else of it has happened.</summary>
    Event,

    /// <summary>HLT is done: the CPU waits for an interrupt.</summary>
    Halted,
}

/// <summary>
/// Emulates one sensitive instruction, or one data access to an address without RAM, as a transaction: it commits as a
/// whole or leaves the guest as it was.
/// </summary>
public sealed class InstructionEmulator(VirtualCpu cpu, GuestMemory memory, IoBus ports, IExecutionEngine engine)
{
    /// <summary>Decodes the instruction at RIP and says what its trap is to be counted as.</summary>
    /// <param name="reason">The ledger's reason.</param>
    /// <param name="guestEvent">When false is returned: the fault that fetching raises.</param>
    public bool TryDecode(out TrapReason reason, out GuestEvent guestEvent) => throw new NotImplementedException();

    /// <summary>Emulates the instruction that <see cref="TryDecode"/> has just decoded.</summary>
    /// <param name="guestEvent">For <see cref="EmulationResult.Event"/>: what to deliver.</param>
    /// <exception cref="GuestFailureException">The instruction is not one that the platform emulates.</exception>
    public EmulationResult Emulate(out GuestEvent guestEvent) => throw new NotImplementedException();
}
