using VirtBench.Strategies.Carrier;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.BinaryTranslation;

// Interrupts that translated code delivers by itself: what the VMM tells it, and learns of it.
internal sealed unsafe partial class TranslationEngine : IInlineInterrupts
{
    private readonly bool _deliversInline;
    private readonly Lock _inlineGate = new();
    private readonly InlineGate[] _gates = new InlineGate[InterruptController.Lines];
    private uint _armed; // lines
    private int _wanted = -1; // the line on its way
    private int _delivered = -1;
    private ControlPage* _entered; // of the carrier that runs the guest
    private bool _inDelivery; // a signal has come there, before it was done

    /// <inheritdoc/>
    public override IInlineInterrupts? InlineInterrupts => _deliversInline ? this : null;

    void IInlineInterrupts.Arm(ReadOnlySpan<InlineGate> gates)
    {
        uint armed = 0;
        foreach (ref readonly InlineGate gate in gates)
        {
            _gates[gate.Line] = gate;
            armed |= 1u << gate.Line;
        }

        _armed = armed;
    }

    bool IInlineInterrupts.TryRaise(int line)
    {
        lock (_inlineGate)
        {
            // Of one on its way nobody knows whether the guest has it already.
            if ((_armed & (1u << line)) == 0 || _wanted >= 0 || _delivered >= 0)
            {
                return false;
            }

            _wanted = line;
            if (_entered is not null)
            {
                Want(_entered);
            }

            return true;
        }
    }

    int IInlineInterrupts.Disarm()
    {
        int delivered = _delivered;
        _delivered = -1;
        _wanted = -1;
        _armed = 0;
        return delivered;
    }

    private void Want(ControlPage* control)
    {
        ref InlineGate gate = ref _gates[_wanted];
        control->GateAddress = gate.Address;
        control->GateLow = gate.Low;
        control->GateHigh = gate.High;
        control->Handler = gate.Handler;
        control->InlineLine = (uint)_wanted + 1;
        Volatile.Write(ref control->NothingWanted, 0);
    }

    private void BeginInline(ControlPage* control)
    {
        lock (_inlineGate)
        {
            control->InlineTaken = 0;
            control->NothingWanted = 1;
            _entered = control;
            if (_wanted >= 0)
            {
                Want(control);
            }
        }
    }

    // The guest could have written anything there: it is believed only of the line that is on its way.
    private void EndInline(ControlPage* control)
    {
        lock (_inlineGate)
        {
            _entered = null;
            if (_wanted >= 0 && Volatile.Read(ref control->InlineTaken) == (uint)_wanted + 1)
            {
                _delivered = _wanted;
                _wanted = -1;
                _armed = 0;
            }
        }
    }

    /// <summary>The state of the guest in the middle of the routine: as before it, or as behind it.</summary>
    private void RecoverDelivery(ControlPage* control, RipSource source)
    {
        bool done = source == RipSource.Delivered;
        Cpu.Rip =
            !done ? control->LookupTarget
            : _delivered >= 0 ? _gates[_delivered].Handler
            : control->Handler;
        Cpu[Gpr.Rcx] = control->SavedRcx;
        Cpu[Gpr.Rax] = control->SavedRax;
        Cpu.Rsp = done ? control->HandlerStack : control->SavedOther;
        Cpu.Rflags =
            (Cpu.Rflags & ~TranslationMode.HostFlags & ~(done ? Rflags.If : 0))
            | (control->Flags & TranslationMode.HostFlags);
        _inDelivery = !done;
    }

    /// <summary>
    /// A fault of the routine's, which to the guest has not happened: the core delivers the interrupt, and whatever fault that finds. Only the gate is
    /// mapped where the guest's tables have it, since nothing else would do so.
    /// </summary>
    private VmExit UndeliveredBy(VmExit fault)
    {
        ulong gate = _wanted >= 0 ? _gates[_wanted].Address : 0;
        return
            fault.Reason == VmExitReason.PageFault
            && fault.Address - gate < 16
            && PageWalker.Walk(Cpu, Memory, fault.Address, PageAccess.Read, commit: false) is { Fault: false } page
            && Memory.Contains(page.PhysicalAddress, 1)
            ? PageFaultAt(fault.Address, PageAccess.Read)
            : new VmExit(VmExitReason.Interrupted);
    }
}
