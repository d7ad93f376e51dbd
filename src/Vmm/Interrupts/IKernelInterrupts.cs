namespace VirtBench.Vmm.Interrupts;

/// <summary>
/// The 8259A pair and the 8254 of a VM whose engine has them in the host's kernel: their ports never exit, HLT is slept through in the kernel, and
/// an interrupt gets from a device to the guest past the VMM. The core's own models of both chips then see nothing.
/// </summary>
public interface IKernelInterrupts
{
    /// <summary>From any thread: a rising edge and a falling one on a device's line. Nothing happens after the engine's disposal.</summary>
    void Raise(int line);

    /// <summary>vCPU thread: the level of a line that is driven by a device of the core's.</summary>
    void SetLine(int line, bool active);
}
