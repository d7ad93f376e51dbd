using System.Runtime.InteropServices;
using VirtBench.Strategies.Carrier;

namespace VirtBench.Strategies.BinaryTranslation;

/// <summary>What the guest's RIP is at a piece of translated code.</summary>
internal enum RipSource : byte
{
    /// <summary>It stands in the table.</summary>
    Constant,

    /// <summary>In RCX.</summary>
    Rcx,

    /// <summary>The sum of RCX and the constant.</summary>
    RcxAndConstant,

    /// <summary>In <see cref="ControlPage.LookupTarget"/>.</summary>
    LookupTarget,

    /// <summary>The target of the indirect branch with this number; which one, stands in the place of the other register.</summary>
    Chain,

    /// <summary>The sum of RCX and that target.</summary>
    RcxAndChain,

    /// <summary>The constant: a repetition of a string instruction is done.</summary>
    Repeated,

    /// <summary>The same, where a comparison that finds a difference is the last. The instruction's length stands in the place of the other register.</summary>
    RepeatedWhileEqual,

    /// <summary>The same, where one that finds none is the last.</summary>
    RepeatedWhileDifferent,

    /// <summary>
    /// An interrupt is being delivered, and the guest is where it was before, in <see cref="ControlPage.LookupTarget"/>; all else that is in use is in
    /// the control page too.
    /// </summary>
    Delivery,

    /// <summary>The same when it is delivered: the guest is at the handler.</summary>
    Delivered,
}

/// <summary>What else has to be put right before the guest's state is its own.</summary>
[Flags]
internal enum Repairs : byte
{
    None = 0,

    /// <summary>RCX is in <see cref="ControlPage.SavedRcx"/>.</summary>
    Rcx = 1,

    /// <summary>R11 is in <see cref="ControlPage.SavedR11"/>.</summary>
    R11 = 2,

    /// <summary>The register named beside is in <see cref="ControlPage.SavedOther"/>.</summary>
    Other = 4,

    /// <summary>A push has been done that is to be done again.</summary>
    Push = 8,

    /// <summary>Bits 8 to 15 of the virtual flags are in CH.</summary>
    FlagsInCh = 16,

    /// <summary>An access here reads code: to the guest a fault of it is one of the fetch.</summary>
    ReadsCode = 32,

    /// <summary>The instruction is in the shadow of the STI before it: it is not interrupted.</summary>
    InShadow = 64,

    /// <summary>RAX is in <see cref="ControlPage.SavedRax"/>.</summary>
    Rax = 128,
}

/// <summary>What a piece of translated code means to the guest, from an offset up to the next one's.</summary>
/// <param name="Offset">Where it begins.</param>
/// <param name="Source">Where RIP is.</param>
/// <param name="Repairs">What to put right.</param>
/// <param name="Other">The register that <see cref="Repairs.Other"/> is about.</param>
/// <param name="Rip">The constant.</param>
/// <param name="IsEntry">An instruction's translation begins here, and nothing before it in the block has to be known to enter.</param>
[StructLayout(LayoutKind.Auto)]
internal readonly record struct RecoveryPoint(
    int Offset,
    RipSource Source,
    Repairs Repairs,
    byte Other,
    ulong Rip,
    bool IsEntry = false
);

/// <summary>
/// From a place in the code cache to the guest's state there: a signal can come at any instruction of translated code. Each piece either has
/// changed nothing of the guest's that matters yet, and is given up, or has done all of its instruction.
/// </summary>
internal sealed class RecoveryTable
{
    private RecoveryPoint[] _points = new RecoveryPoint[1024];

    /// <summary>How many pieces there are.</summary>
    public int Count { get; private set; }

    /// <summary>Adds a piece behind all others, or in the place of the last one where that is empty.</summary>
    public void Add(in RecoveryPoint point)
    {
        if (Count > 0 && _points[Count - 1].Offset == point.Offset)
        {
            _points[Count - 1] = point;
            return;
        }

        if (Count == _points.Length)
        {
            Array.Resize(ref _points, 2 * Count);
        }

        _points[Count++] = point;
    }

    /// <summary>Where in a stretch of code the translation of an instruction begins.</summary>
    /// <param name="start">Offset of the stretch.</param>
    /// <param name="end">Offset behind it.</param>
    /// <param name="rip">The instruction's linear address.</param>
    /// <param name="offset">Where it begins.</param>
    public bool TryFindEntry(int start, int end, ulong rip, out int offset)
    {
        for (int i = CountUpTo(start - 1); i < Count && _points[i].Offset < end; i++)
        {
            if (_points[i].IsEntry && _points[i].Rip == rip)
            {
                offset = _points[i].Offset;
                return true;
            }
        }

        offset = 0;
        return false;
    }

    /// <summary>The piece that holds an offset.</summary>
    public bool TryFind(int offset, out RecoveryPoint point)
    {
        int count = CountUpTo(offset);
        point = count > 0 ? _points[count - 1] : default;
        return count > 0;
    }

    // How many pieces begin at an offset or before it.
    private int CountUpTo(int offset)
    {
        int low = 0;
        int high = Count;
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (_points[middle].Offset <= offset)
            {
                low = middle + 1;
            }
            else
            {
                high = middle;
            }
        }

        return low;
    }

    /// <summary>Gives the pieces that begin in a stretch of code another meaning, its offset left out.</summary>
    public void Overwrite(int start, int end, in RecoveryPoint meaning)
    {
        for (int i = CountUpTo(start - 1); i < Count && _points[i].Offset < end; i++)
        {
            _points[i] = meaning with { Offset = _points[i].Offset };
        }
    }

    /// <summary>Forgets what was added last.</summary>
    public void Truncate(int count) => Count = count;

    /// <summary>Forgets all.</summary>
    public void Clear() => Count = 0;
}
