namespace VirtBench.Vmm.Interrupts;

/// <summary>How a device's interrupt gets to a guest that runs.</summary>
public enum InterruptDelivery : byte
{
    /// <summary>Each by an exit: the vCPU is kicked out of the guest, and the VMM delivers the interrupt at the next entry.</summary>
    Exit,

    /// <summary>By an exit as well, but for several completions at once: the device holds its interrupt back for a while.</summary>
    Coalesced,

    /// <summary>
    /// Without an exit: by bits in memory that the guest's own code looks at, or by the interrupt controller inside the host's kernel.
    /// </summary>
    Direct,
}

/// <summary>Names of <see cref="InterruptDelivery"/> on the command line and in files.</summary>
public static class InterruptDeliveries
{
    /// <summary>"exit", "coalesced" or "direct".</summary>
    public static string Name(this InterruptDelivery delivery) =>
        delivery switch
        {
            InterruptDelivery.Exit => "exit",
            InterruptDelivery.Coalesced => "coalesced",
            _ => "direct",
        };
}
