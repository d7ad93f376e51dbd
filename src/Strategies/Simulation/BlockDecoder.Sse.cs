using Iced.Intel;

namespace VirtBench.Strategies.Simulation;

/// <summary>SSE and SSE2.</summary>
internal sealed unsafe partial class BlockDecoder
{
    private bool TrySse(Op* op, in Instruction i) => false;
}
