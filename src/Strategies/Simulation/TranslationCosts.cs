namespace VirtBench.Strategies.Simulation;

/// <summary>What a translator costs on the simulated CPU, in cycles: the field <c>translation</c> of a cost profile.</summary>
public sealed record TranslationCosts
{
    /// <summary>Translating one guest instruction: decoding, encoding, linking. Paid each time that a block is made.</summary>
    public required int InstructionCycles { get; init; }

    /// <summary>A sensitive instruction that is served inline and that <see cref="Inline"/> does not list.</summary>
    public required int InlineCycles { get; init; }

    /// <summary>Cycles of sensitive instructions that are served inline, by name ("cli", "mov r,sreg").</summary>
    public required IReadOnlyDictionary<string, int> Inline { get; init; }

    /// <summary>Leaving translated code for the VMM and coming back, without what the VMM does there.</summary>
    public required int CalloutCycles { get; init; }

    /// <summary>What a return, an indirect jump or call costs more than where it is not translated: finding its target.</summary>
    public required int IndirectCycles { get; init; }

    /// <summary>Cycles of an inlined instruction.</summary>
    public int InlineCyclesOf(string name) => Inline.GetValueOrDefault(name, InlineCycles);
}
