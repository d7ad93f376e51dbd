namespace VirtBench.Vmm.Interrupts;

/// <summary>Where a device's interrupt goes: one line of an interrupt controller, whoever implements that.</summary>
/// <remarks>
/// A device drives its line at one place only. Under <see cref="InterruptDelivery.Exit"/> and
/// <see cref="InterruptDelivery.Coalesced"/> that is on the vCPU thread, while it takes over what devices have completed. Under
/// <see cref="InterruptDelivery.Direct"/> a line is raised by the device's thread, at the completion itself, and lowered by the vCPU
/// thread: an implementation for that must be safe to call from both. Calls for one line never overlap, and always change its level.
/// </remarks>
public interface IInterruptLine
{
    /// <summary>Drives the line.</summary>
    void Set(bool active);
}
