namespace VirtBench.Vmm.Execution;

/// <summary>What a translating engine has done; every number counts from the engine's creation, or over a measured region.</summary>
/// <param name="Blocks">Blocks translated, the same code again included.</param>
/// <param name="GuestInstructions">Guest instructions in them.</param>
/// <param name="GuestBytes">Bytes of these instructions.</param>
/// <param name="HostBytes">Bytes of code that were made of them.</param>
/// <param name="Ticks">Time spent translating, in ticks of the engine's clock: decoding, encoding, linking.</param>
/// <param name="Links">Direct branches that left the cache because their target was not linked yet.</param>
/// <param name="LookupMisses">Indirect branches and returns that left the cache because no inline lookup knew the target.</param>
/// <param name="LookupHits">Those that found it inline; null unless the engine was asked to count them, which costs time.</param>
/// <param name="Invalidations">Blocks that were given up because their code or its mapping changed.</param>
/// <param name="Flushes">Times that the whole cache of an address space was emptied: full, or taken for another one.</param>
public sealed record TranslationStatistics(
    long Blocks,
    long GuestInstructions,
    long GuestBytes,
    long HostBytes,
    ulong Ticks,
    long Links,
    long LookupMisses,
    long? LookupHits,
    long Invalidations,
    long Flushes
)
{
    /// <summary>What has been done since an earlier reading.</summary>
    public TranslationStatistics Since(TranslationStatistics earlier) =>
        new(
            Blocks - earlier.Blocks,
            GuestInstructions - earlier.GuestInstructions,
            GuestBytes - earlier.GuestBytes,
            HostBytes - earlier.HostBytes,
            Ticks - earlier.Ticks,
            Links - earlier.Links,
            LookupMisses - earlier.LookupMisses,
            LookupHits - earlier.LookupHits,
            Invalidations - earlier.Invalidations,
            Flushes - earlier.Flushes
        );
}
