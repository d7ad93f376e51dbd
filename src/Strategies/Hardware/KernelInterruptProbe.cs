using System.ComponentModel;
using System.Runtime.Versioning;
using Iced.Intel;
using VirtBench.Strategies.Native;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Hardware;

/// <summary>
/// Finds out whether a /dev/kvm that is usable delivers device interrupts by itself: asks for the capabilities, and runs a guest which sleeps
/// until one has come.
/// </summary>
internal static class KernelInterruptProbe
{
    private static readonly Lazy<string?> Reason = new(Examine);

    /// <summary>Why not, in one line; null when it does. Asked of a host whose /dev/kvm is usable.</summary>
    public static string? WhyNot => Reason.Value;

    private const int Line = 5;
    private const byte FirstVector = 0x20;
    private const byte Taken = 42;

    private static string? Examine()
    {
        if (!OperatingSystem.IsLinux())
        {
            return "/dev/kvm of Linux is needed";
        }

        int kvm = -1;
        try
        {
            kvm = KvmMachine.OpenDevice();
            foreach (
                (int capability, string name) in new[]
                {
                    (Kvm.CapIrqchip, "KVM_CAP_IRQCHIP"),
                    (Kvm.CapIrqfd, "KVM_CAP_IRQFD"),
                    (Kvm.CapPit2, "KVM_CAP_PIT2"),
                }
            )
            {
                if (!KvmMachine.Offers(kvm, capability))
                {
                    return $"/dev/kvm lacks {name}: its module does not deliver interrupts by itself";
                }
            }

            return Try();
        }
        catch (Win32Exception refusal)
        {
            return $"/dev/kvm does not give a VM with interrupt controllers of its own: {refusal.Message}";
        }
        finally
        {
            _ = kvm < 0 ? 0 : Linux.Close(kvm);
        }
    }

    // The interrupt is raised once the guest says that it is ready; it sleeps, and ends with a status that only its handler gives.
    [SupportedOSPlatform("linux")]
    private static string? Try()
    {
        const ulong entry = PhysicalLayout.ImageStart;
        const ulong handler = entry + 0x400;
        const ulong idt = entry + 0x800;
        const ulong idtPointer = entry + 0x1800;
        var a = new Assembler(64);
        a.lidt(__[idtPointer]);
        foreach (
            (ushort port, byte value) in new (ushort, byte)[]
            {
                (InterruptController.MasterPort, 0x11), // ICW1: edges, cascaded, ICW4 follows
                (InterruptController.MasterPort + 1, FirstVector),
                (InterruptController.MasterPort + 1, 4), // ICW3: the slave is behind line 2
                (InterruptController.MasterPort + 1, 1), // ICW4: 8086 mode
                (InterruptController.MasterPort + 1, unchecked((byte)~(1 << Line))),
            }
        )
        {
            a.mov(al, value);
            a.@out((byte)port, al);
        }

        Label again = a.CreateLabel();
        a.mov(dx, SerialPort.FirstPort);
        a.mov(al, (byte)'!');
        a.@out(dx, al);
        a.Label(ref again);
        a.sti();
        a.hlt();
        a.jmp(again);
        var h = new Assembler(64);
        h.mov(al, Taken);
        h.@out((byte)ExitPort.Port, al);

        byte[] image = new byte[0x1810];
        MachineCode.Assemble(a, entry).CopyTo(image, 0);
        MachineCode.Assemble(h, handler).CopyTo(image, (int)(handler - entry));
        const ulong presentInterruptGate = 0x8E00_0000_0000;
        const ulong codeSelector = 0x08UL << 16;
        ulong gate = presentInterruptGate | codeSelector | (handler & 0xFFFF) | ((handler & 0xFFFF_0000) << 32);
        BitConverter.TryWriteBytes(image.AsSpan((int)(idt - entry) + ((FirstVector + Line) * 16)), gate);
        BitConverter.TryWriteBytes(image.AsSpan((int)(idtPointer - entry)), (ushort)0xFFF);
        BitConverter.TryWriteBytes(image.AsSpan((int)(idtPointer - entry) + 2), idt);

        using var machine = new VirtualMachine(
            GuestMemory.MinimumSize,
            (cpu, memory) =>
                new HardwareEngine(
                    cpu,
                    memory,
                    KvmHost.Current.Module ?? "kvm",
                    new EngineCapabilities { TimeSource = "measured", DeliversEvents = true },
                    kernelInterrupts: true
                )
        );
        using InterruptSource source = machine.ConnectInterrupt(Line, InterruptDelivery.Direct);
        machine.Serial.Transmitted = _ => source.Pulse();
        var segment = new ImageSegment(entry, image, (ulong)image.Length, Executable: true);
        machine.Load(new GuestImage("interrupt probe", entry, [segment]), new BootOptions());
        RunOutcome outcome = machine.Run(TimeSpan.FromSeconds(5));
        return outcome is { End: RunEnd.Exited, Status: Taken }
            ? null
            : $"the self-check of interrupts through {KvmHost.Current.Module ?? "kvm"} failed: {outcome.Message ?? $"its guest ended with status {outcome.Status}"}";
    }
}
