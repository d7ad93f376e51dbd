using VirtBench.Strategies.Carrier;

namespace VirtBench.Strategies.BinaryTranslation;

/// <summary>Why translated code goes to the VMM.</summary>
internal enum SiteKind : byte
{
    /// <summary>A direct branch to a guest address that it is not linked to yet.</summary>
    Link,

    /// <summary>The instruction at the guest address is the core's to emulate.</summary>
    Instruction,

    /// <summary>There is no instruction at the guest address that the platform knows.</summary>
    Undefined,

    /// <summary>The interrupt flag is set and an interrupt waits; the guest goes on at the address.</summary>
    Window,

    /// <summary>The one instruction of a step is done; the guest goes on at the address.</summary>
    Stepped,

    /// <summary>The same, at the address in <see cref="ControlPage.LookupTarget"/>; instead of an address, the branch's number.</summary>
    SteppedIndirectly,

    /// <summary>The guest's code at the address is not what was translated.</summary>
    CodeChanged,

    /// <summary>
    /// An indirect branch to the guest address in <see cref="ControlPage.LookupTarget"/>, which its chain does not have; instead of an address, the
    /// branch's number.
    /// </summary>
    Indirect,

    /// <summary>The guest is at the address in <see cref="ControlPage.LookupTarget"/>, and an interrupt waits that translated code cannot deliver.</summary>
    Undelivered,
}

/// <summary>One way out of a block.</summary>
/// <param name="Kind">Why.</param>
/// <param name="Owner">The block.</param>
/// <param name="Rip">Guest address that belongs to it.</param>
/// <param name="Jump">Link: offset of the displacement of the jump that leads here; else 0.</param>
internal readonly record struct ExitSite(SiteKind Kind, Block Owner, ulong Rip, int Jump);

/// <summary>A translated run of guest instructions: entered at its start, left at its end or by a branch on the way.</summary>
internal sealed class Block
{
    /// <summary>Linear address of the first instruction.</summary>
    public required ulong Start { get; init; }

    /// <summary>Bytes of guest code from the start on.</summary>
    public int Length { get; set; }

    /// <summary>
    /// Where the block goes on behind a jump: a short stretch, on the page that the block begins on, that ends in an indirect branch. So the
    /// common end of many ways, an interpreter's dispatch or a function's return, is there once for each of them, and predicted for
    /// each by itself.
    /// </summary>
    public ulong TailStart { get; set; }

    /// <summary>Bytes of guest code there; 0 for no such part.</summary>
    public int TailLength { get; set; }

    /// <summary>The last instruction branches indirectly.</summary>
    public bool EndsIndirectly { get; init; }

    /// <summary>Whether any of its guest code lies in a stretch.</summary>
    public bool Overlaps(ulong start, ulong length) =>
        (start < Start + (ulong)Length && start + length > Start)
        || (TailLength > 0 && start < TailStart + (ulong)TailLength && start + length > TailStart);

    /// <summary>Instructions.</summary>
    public int Instructions { get; set; }

    /// <summary>Offset in the cache of the code that is entered by links.</summary>
    public int Entry { get; set; }

    /// <summary>Offset in the cache of the code that is entered by lookups; −1 while there is none.</summary>
    public int LookupEntry { get; set; } = -1;

    /// <summary>Offset in the cache behind its code.</summary>
    public int End { get; set; }

    /// <summary>Compares the guest's code with what was translated whenever it is entered.</summary>
    public bool ChecksItself { get; init; }

    /// <summary>Sites whose jumps lead here.</summary>
    public List<int> Incoming { get; } = [];

    /// <summary>False once its code or the mapping of it has changed.</summary>
    public bool IsValid { get; set; } = true;

    /// <summary>Address in the carrier that links and the VMM enter it by.</summary>
    public ulong Address => CarrierLayout.CodeCache + (ulong)Entry;
}

/// <summary>
/// An indirect branch or return that remembers where it has led: a chain of comparisons, each followed by a direct jump. One that leads to too
/// many places looks them up.
/// </summary>
internal sealed class IndirectBranch
{
    /// <summary>In the place of a target's index: the last target, or 0 while there is none.</summary>
    public const int Last = byte.MaxValue;

    /// <summary>The block that it is in.</summary>
    public required Block Owner { get; init; }

    /// <summary>Its number in the cache.</summary>
    public required int Number { get; init; }

    /// <summary>Linear address of the instruction.</summary>
    public required ulong Rip { get; init; }

    /// <summary>Return: bytes that it takes off the stack, the address included. 0 for others.</summary>
    public required int Pops { get; init; }

    /// <summary>Call: bytes that it has put on the stack when it branches. 0 for others.</summary>
    public required int Pushes { get; init; }

    /// <summary>Offset of the comparisons.</summary>
    public int Chain { get; set; }

    /// <summary>Offset of what follows a comparison that holds.</summary>
    public int Hits { get; set; }

    /// <summary>Where it is looked up, in the carrier.</summary>
    public ulong Lookup { get; set; }

    /// <summary>Offset of the displacement of the jump that is taken when no comparison holds.</summary>
    public int Unknown { get; set; }

    /// <summary>Linear addresses in the chain.</summary>
    public List<ulong> Targets { get; } = [];

    /// <summary>One of them.</summary>
    public ulong Target(int index) =>
        index < Targets.Count ? Targets[index]
        : Targets.Count > 0 ? Targets[^1]
        : 0;
}
