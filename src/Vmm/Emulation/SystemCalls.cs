using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Emulation;

/// <summary>SYSCALL and SYSRET in 64-bit mode (Intel SDM vol. 2B; AMD APM vol. 3).</summary>
public static class SystemCalls
{
    private const ulong SysretFlags = 0x3C_7FD7;

    /// <summary>
    /// Enters the guest's SYSCALL handler. RIP already points behind the instruction; when EFER.SCE is off it is set back
    /// and #UD becomes the CPU's pending event.
    /// </summary>
    public static void Enter(VirtualCpu cpu)
    {
        if ((cpu.Efer & Efer.Sce) == 0)
        {
            cpu.Rip -= 2;
            cpu.PendingEvent = GuestEvent.Exception(Vector.InvalidOpcode);
            return;
        }

        cpu[Gpr.Rcx] = cpu.Rip;
        cpu[Gpr.R8 + 3] = cpu.Rflags & ~Rflags.Rf;
        cpu.Rip = cpu.Lstar;
        cpu.Rflags = (cpu.Rflags & ~(cpu.Fmask | Rflags.Rf)) | Rflags.AlwaysSet;
        ushort selector = (ushort)(cpu.Star >> 32);
        cpu.Cs = Segment.KernelCode((ushort)(selector & ~3));
        cpu.Ss = Segment.KernelData((ushort)((selector & ~3) + 8));
        cpu.InterruptShadow = false;
    }

    /// <summary>SYSRET with 64-bit operand size. RIP still points at the instruction.</summary>
    /// <returns>False when it faults; then nothing has changed.</returns>
    internal static bool TryReturn(VirtualCpu cpu, out GuestEvent fault)
    {
        fault = default;
        if ((cpu.Efer & Efer.Sce) == 0)
        {
            fault = GuestEvent.Exception(Vector.InvalidOpcode);
            return false;
        }

        // A non-canonical target faults here, in ring 0, as on Intel; AMD would fault in ring 3.
        if (cpu.Cpl != 0 || !PageWalker.IsCanonical(cpu[Gpr.Rcx]))
        {
            fault = GuestEvent.Exception(Vector.GeneralProtection);
            return false;
        }

        cpu.Rip = cpu[Gpr.Rcx];
        cpu.Rflags = (cpu[Gpr.R8 + 3] & SysretFlags) | Rflags.AlwaysSet;
        ushort selector = (ushort)(cpu.Star >> 48);
        cpu.Cs = new Segment((ushort)((selector + 16) | 3), 0, 0xFFFF_FFFF, 0xA0FB);
        cpu.Ss = new Segment((ushort)((selector + 8) | 3), 0, 0xFFFF_FFFF, 0xC0F3);
        return true;
    }
}
