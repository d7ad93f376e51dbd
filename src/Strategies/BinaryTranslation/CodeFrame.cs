using System.Runtime.Versioning;

namespace VirtBench.Strategies.BinaryTranslation;

/// <summary>A page of guest RAM that code was translated from.</summary>
[SupportedOSPlatform("linux")]
internal sealed class CodeFrame(ulong frame)
{
    /// <summary>Guest-physical address.</summary>
    public ulong Frame => frame;

    /// <summary>Where it is mapped and has blocks, in all views.</summary>
    public List<CodePage> Pages { get; } = [];

    /// <summary>Writes by the guest that had to be emulated because of the blocks.</summary>
    public int Writes { get; set; }

    /// <summary>It was written so often that it is not protected: its blocks check themselves.</summary>
    public bool ChecksItself { get; set; }
}

/// <summary>The blocks of one linear page of a view; one that crosses into the next page is in both.</summary>
[SupportedOSPlatform("linux")]
internal sealed class CodePage(TranslationCache cache, ulong address, CodeFrame frame)
{
    /// <summary>The view's cache.</summary>
    public TranslationCache Cache => cache;

    /// <summary>Linear address.</summary>
    public ulong Address => address;

    /// <summary>The page of RAM.</summary>
    public CodeFrame Frame => frame;

    /// <summary>Its blocks.</summary>
    public List<Block> Blocks { get; } = [];
}
