using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;

namespace VirtBench.Hardware.Tests;

/// <summary>
/// Whether this machine's processor keeps the interrupt shadow of a guest from one entry to the next. QEMU 7.2 without acceleration
/// writes it into the VMCB at #VMEXIT and does not read it at VMRUN (target/i386/tcg/sysemu/svm_helper.c), so that a guest which is
/// interrupted between STI and HLT can get an interrupt there.
/// </summary>
internal static class InterruptShadow
{
    private static readonly Lazy<ulong> _opensAt = new(FirstWindow);

    /// <summary>Where the window for interrupts opens to a guest that is entered in a shadow: at its second instruction if all is well.</summary>
    public static ulong OpensAt => _opensAt.Value;

    /// <summary>Skips where a shadow is lost at an entry.</summary>
    public static void SkipWhereEntriesLoseIt() =>
        Assert.SkipWhen(
            EmulatedMachine.IsQemu && OpensAt == HardwareGuest.Code,
            "this QEMU's VMRUN does not load the interrupt shadow, so an interrupt can come between STI and HLT"
        );

    private static ulong FirstWindow()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.nop();
            a.nop();
            a.Exit();
        });
        guest.Cpu.Rflags |= Rflags.If;
        guest.Cpu.InterruptShadow = true;
        guest.Engine.AttachThread();
        guest.Engine.LoadLazyState();
        guest.Engine.RequestInterruptWindow();
        VmExit exit = guest.Engine.Run();
        guest.Engine.DetachThread();
        Assert.Equal(VmExitReason.InterruptWindow, exit.Reason);
        return guest.Cpu.Rip;
    }
}
