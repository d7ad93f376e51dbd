using VirtBench.Vmm.Execution;

namespace VirtBench.Tests;

/// <summary>A guest that measures one region under an engine whose kernel keeps an account, exit by exit.</summary>
internal static class CountedStrategy
{
    /// <summary>
    /// Region 7 of 5 units, in which the kernel counts 42 exits (the end marker's among them) and 40,002 emulated instructions;
    /// 1 exit before it and 1 after. Status 3.
    /// </summary>
    public static StuckStrategy Create()
    {
        StuckStrategy strategy = null!;
        int step = 0;
        strategy = new StuckStrategy
        {
            Capabilities = new EngineCapabilities
            {
                TimeSource = "measured: scripted",
                KernelStatistics = ["exits", "insn_emulation", "halt_exits"],
            },
            Counters = [0, 0, 0],
            After = () =>
            {
                strategy.Counters[0] += step == 1 ? 42UL : 1;
                strategy.Counters[1] += step == 1 ? 40_002UL : 0;
                return step++ switch
                {
                    0 => strategy.Out(0xB0, 7),
                    1 => strategy.Out(0xB4, 5),
                    _ => strategy.Out(0xF4, 3, size: 1),
                };
            },
        };
        strategy.LetGo.Set();
        return strategy;
    }
}
