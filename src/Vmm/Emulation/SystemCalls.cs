using VirtBench.Vmm.Cpu;

namespace VirtBench.Vmm.Emulation;

/// <summary>SYSCALL and SYSRET (Intel SDM vol. 2B; AMD APM vol. 3).</summary>
public static class SystemCalls
{
    /// <summary>Enters the guest's SYSCALL handler. RIP already points behind the instruction.</summary>
    public static void Enter(VirtualCpu cpu) => throw new NotImplementedException();
}
