using System.Runtime.InteropServices;

namespace VirtBench.Strategies.Simulation;

/// <summary>
/// One decoded guest instruction, or two that are fused. Register operands are byte offsets into <see cref="Machine"/>;
/// an address is [Base] + ([Index] &lt;&lt; Scale) + Displacement, where an absent part points at a slot that holds 0.
/// </summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct Op
{
    /// <summary>Executes the op; returns the next one, or null to leave guest code.</summary>
    public delegate* <Machine*, Op*, Op*> Handler;

    /// <summary>First register operand, the destination.</summary>
    public ushort A;

    /// <summary>Second register operand.</summary>
    public ushort B;

    public ushort Base;
    public ushort Index;
    public ulong Displacement;
    public ulong Immediate;

    /// <summary>Linear address of the instruction; blocks are keyed by it as well as by their physical address.</summary>
    public ulong Rip;

    /// <summary>Cycles of the block's ops before this one.</summary>
    public uint Before;

    /// <summary>Cycles of this op; of both instructions when it is fused.</summary>
    public ushort Cost;
    public byte Scale;

    /// <summary>Bytes of the instruction, or of both when fused.</summary>
    public byte Length;

    public readonly ulong NextRip => Rip + Length;
}

/// <summary>The two ways out of a block; lies in the op slot behind the one that ends the block.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct Links
{
    public Op* Taken;
    public ulong TakenEpoch;
    public ulong TakenRip;
    public Op* NotTaken;
    public ulong NotTakenEpoch;
    public ulong NotTakenRip;
}

/// <summary>A decoded basic block. Its ops follow it in the arena.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct Block
{
    public ulong Physical;
    public ulong Rip;

    /// <summary>Guest-physical address of the second page's first byte when the block's only instruction crosses a page; else ulong.MaxValue.</summary>
    public ulong SecondPhysical;

    /// <summary>Guest code bytes, all of them in the first page unless <see cref="SecondPhysical"/> is set.</summary>
    public int Length;

    public int OpCount;
    public Block* NextInBucket;

    /// <summary>Next block of the first page, and of the second.</summary>
    public Block* NextInFirstPage;
    public Block* NextInSecondPage;
    public byte Dead;

    public static Op* Ops(Block* block) => (Op*)(block + 1);
}
