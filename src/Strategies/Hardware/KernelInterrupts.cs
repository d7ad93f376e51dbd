using System.ComponentModel;
using System.Runtime.Versioning;
using VirtBench.Strategies.Native;
using VirtBench.Vmm.Interrupts;

namespace VirtBench.Strategies.Hardware;

/// <summary>
/// KVM's own 8259A pair and 8254, and an eventfd for every line that a device raises: writing it raises the line in the kernel, without the VMM's
/// coming in between (Documentation/virt/kvm/api.rst, KVM_CREATE_IRQCHIP, KVM_CREATE_PIT2, KVM_IRQFD).
/// </summary>
/// <remarks>
/// KVM makes a local APIC and an I/O APIC with them. The local one is switched off, as the platform has none, so that what the 8259A
/// asks for goes to the CPU; the I/O APIC stays masked, and what it answers at FEC0'0000h, as what the edge/level registers answer at ports 4D0h
/// and 4D1h, a guest of the platform does not look for. Lines lead where the kernel's default routes say: to the 8259A input of the same number.
/// </remarks>
[SupportedOSPlatform("linux")]
internal sealed unsafe class KernelInterrupts : IKernelInterrupts, IDisposable
{
    private readonly Lock _gate = new();
    private readonly KvmMachine _machine;
    private readonly int[] _events = new int[InterruptController.Lines];
    private bool _disposed;

    /// <summary>No line has an eventfd yet.</summary>
    /// <param name="machine">A VM that was created with the chips in the kernel.</param>
    public KernelInterrupts(KvmMachine machine)
    {
        _machine = machine;
        Array.Fill(_events, -1);
    }

    /// <inheritdoc/>
    /// <exception cref="Win32Exception">The kernel refuses the line's first use.</exception>
    public void Raise(int line)
    {
        lock (_gate)
        {
            if (_disposed)
            {
                return; // its descriptor may be somebody else's by now
            }

            if (_events[line] < 0)
            {
                _events[line] = Connect(line);
            }

            ulong one = 1;
            _ = Linux.Write(_events[line], &one, sizeof(ulong)); // fails only at 2^64 − 1 that the kernel has not read
        }
    }

    /// <inheritdoc/>
    public void SetLine(int line, bool active) =>
        _machine.SetInterruptLine(new Kvm.IrqLevel { Irq = (uint)line, Level = active ? 1u : 0 });

    private int Connect(int line)
    {
        const int closeOnExec = 0x8_0000; // EFD_CLOEXEC
        int descriptor = Linux.Eventfd(0, closeOnExec);
        if (descriptor < 0)
        {
            throw new Win32Exception();
        }

        try
        {
            _machine.ConnectInterrupt(new Kvm.Irqfd { Fd = (uint)descriptor, Gsi = (uint)line });
            return descriptor;
        }
        catch
        {
            _ = Linux.Close(descriptor);
            throw;
        }
    }

    /// <summary>Raises nothing from now on.</summary>
    public void Dispose()
    {
        lock (_gate)
        {
            _disposed = true;
            foreach (int descriptor in _events)
            {
                _ = descriptor < 0 ? 0 : Linux.Close(descriptor);
            }
        }
    }
}
