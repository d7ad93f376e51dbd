namespace VirtBench.Strategies.Shadow;

/// <summary>How the shadow page tables of direct execution follow the guest's page tables.</summary>
public enum ShadowPaging
{
    /// <summary>
    /// As a TLB does, on INVLPG and CR3 writes: one carrier for the guest's rings 0 to 2 and one for its ring 3, remapped when the
    /// guest changes its address space. The guest's page tables are ordinary memory.
    /// </summary>
    Flush,

    /// <summary>
    /// Always: a carrier for every address space and view keeps its mappings over CR3 writes, the guest's page tables are
    /// write-protected, and a write to one takes back what it changed.
    /// </summary>
    Cached,
}
