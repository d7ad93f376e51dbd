using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Interrupts;

/// <summary>Delivers one event through the guest's IDT as the processor does in 64-bit mode (Intel SDM vol. 3A, section 6.14).</summary>
public sealed class EventDelivery(VirtualCpu cpu, GuestMemory memory, IExecutionEngine engine)
{
    /// <summary>
    /// Pushes the frame and enters the handler, or, when that faults, goes on with the fault, a double fault, and at last a
    /// triple fault. All of one delivery happens or none of it.
    /// </summary>
    /// <exception cref="GuestFailureException">Triple fault: the guest cannot go on.</exception>
    public void Deliver(GuestEvent guestEvent) => throw new NotImplementedException();
}
