namespace VirtBench.Strategies.Simulation;

/// <summary>What stands between the guest's instructions and the simulated CPU.</summary>
internal enum SimulatedMode
{
    /// <summary>Ring 3; RDTSC executes, TLB misses walk the guest's tables.</summary>
    Native,

    /// <summary>Ring 3; what would fault there exits, what would not sees the simulated host.</summary>
    Deprivileged,

    /// <summary>As <see cref="Deprivileged"/>, of guests that help: VMCALL is a gate without a trap, and RDTSC executes.</summary>
    Paravirtual,

    /// <summary>
    /// A translator: sensitive instructions are served from the guest's own state or call out, and making a block costs time.
    /// </summary>
    Translated,
}
