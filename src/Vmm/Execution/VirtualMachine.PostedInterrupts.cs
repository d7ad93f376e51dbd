using VirtBench.Vmm.Interrupts;

namespace VirtBench.Vmm.Execution;

// Interrupts that other threads raise.
public sealed partial class VirtualMachine
{
    private PostedInterrupts? _posted;

    /// <summary>Connects something outside the VM to an interrupt line, before the guest runs.</summary>
    /// <param name="line">0–15; one that no device of the VM drives.</param>
    /// <param name="delivery">
    /// How its interrupts reach the guest: by exits, or directly where engine and guest have a way for that, and by exits where they have none.
    /// </param>
    /// <exception cref="InvalidOperationException">The guest has run.</exception>
    /// <exception cref="NotSupportedException">What coalesces interrupts is the device.</exception>
    public InterruptSource ConnectInterrupt(int line, InterruptDelivery delivery)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(line);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(line, InterruptController.Lines);
        if (delivery == InterruptDelivery.Coalesced)
        {
            throw new NotSupportedException("what coalesces interrupts is the device");
        }

        return new InterruptSource(Posted(line, delivery), line);
    }

    /// <summary>Why interrupts cannot be delivered directly by this engine to the guest that is loaded; null when they can.</summary>
    public string? WhyNotDirect =>
        _engine.KernelInterrupts is null && _engine.InlineInterrupts is null && _hypercalls is null
            ? "the engine was not created for direct delivery of interrupts, and the guest does not look for them"
            : null;

    private IInterruptLine DirectLine(int line) => new PostedLine(Posted(line, InterruptDelivery.Direct), line);

    private PostedInterrupts Posted(int line, InterruptDelivery delivery)
    {
        if (_hasRun)
        {
            throw new InvalidOperationException("lines are connected before the guest runs");
        }

        if (_posted is null)
        {
            _posted = new PostedInterrupts(Cpu, Memory, Interrupts, _engine);
            _posted.Reconnect(_engine, _hypercalls);
        }

        if (delivery == InterruptDelivery.Direct || _engine.KernelInterrupts is not null)
        {
            _posted.SetDirect(line);
        }

        return _posted;
    }

    // What lies in the kernel's chips is not to be had for another engine, nor theirs for it.
    private static void RefuseToSwitchKernelInterrupts(IExecutionEngine from, IExecutionEngine to, bool hasRun)
    {
        if (hasRun && (from.KernelInterrupts is not null || to.KernelInterrupts is not null))
        {
            throw new InvalidOperationException(
                "the interrupt controllers and the timer are in the host's kernel (interrupt delivery direct): a guest that has run cannot change its engine"
            );
        }
    }

    private sealed class PostedLine(PostedInterrupts posted, int line) : IInterruptLine
    {
        public void Set(bool active)
        {
            if (active)
            {
                posted.Raise(line);
            }
            else
            {
                posted.Lower(line);
            }
        }
    }
}
