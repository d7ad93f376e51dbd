namespace VirtBench.Vmm.Interrupts;

/// <summary>How a device's interrupts reach the guest.</summary>
public enum InterruptDelivery : byte
{
    /// <summary>Each by an exit to the VMM, which delivers it.</summary>
    Exit,

    /// <summary>As <see cref="Exit"/>, but one interrupt stands for several completions.</summary>
    Coalesced,

    /// <summary>Without an exit.</summary>
    Direct,
}
