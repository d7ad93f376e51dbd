namespace VirtBench.Vmm.Disks;

/// <summary>
/// The SplitMix64 sequence as a function of its index (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
/// OOPSLA 2014): every element can be had without those before it.
/// </summary>
internal static class SplitMix64
{
    /// <summary>Element <paramref name="index"/> of the sequence that the seed starts.</summary>
    public static ulong At(ulong seed, ulong index)
    {
        ulong z = seed + ((index + 1) * 0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9;
        z = (z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB;
        return z ^ (z >> 31);
    }

    /// <summary>The same as a number in [−1, 1).</summary>
    public static double SymmetricAt(ulong seed, ulong index) => ((At(seed, index) >> 11) * (2.0 / (1UL << 53))) - 1;
}
