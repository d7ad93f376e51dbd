namespace VirtBench.Vmm.Emulation;

public sealed partial class InstructionEmulator
{
    private EmulationResult AccessData() => throw new NotImplementedException();
}
