using System.Diagnostics;
using System.Runtime.CompilerServices;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Emulation;
using VirtBench.Vmm.Interrupts;

namespace VirtBench.Vmm.Execution;

// The run loop: time, events and interrupts before each entry, and the one place that dispatches on an exit.
public sealed partial class VirtualMachine
{
    /// <summary>The next entry is to execute one instruction only.</summary>
    private bool _step;

    // It runs as long as the guest: compiled ahead of time it would never be compiled again, better, for this CPU.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private RunOutcome RunLoop(CancellationToken deadline, CancellationToken cancellation)
    {
        IEngineClock clock = _engine.Clock;
        bool deliversEvents = _engine.Capabilities.DeliversEvents;
        ulong now = clock.Ticks;
        while (_exitPort.Status is null)
        {
            PassTime(now);
            if (Cpu.PendingEvent.Kind != GuestEventKind.None)
            {
                DeliverPendingEvent(deliversEvents);
            }

            // After an exception: a handler that it leaves interrupts on for is interrupted before its first instruction.
            if (Interrupts.Requested && Cpu.PendingEvent.Kind == GuestEventKind.None && !IsMaskedByGuest())
            {
                TakeInterrupt(deliversEvents);
            }

            if (Cpu.Halted)
            {
                if (WhyNeverWoken() is { } why)
                {
                    return new RunOutcome(RunEnd.Failed, 0, why);
                }

                Idle();
                now = clock.Ticks;
                if (Stopped(deadline, cancellation) is { } stopped)
                {
                    return stopped;
                }

                continue;
            }

            if (!TryEnter())
            {
                now = clock.Ticks;
                continue; // to take over what has come
            }

            ulong entry = Cpu.Rip;
            VmExit exit = _step ? _engine.Step() : _engine.Run();
            ulong seen = clock.Ticks;
            _step = false;
            _posted?.Left();
            if (_disk is not null)
            {
                _disk.Left();
                DrainDisk(); // before a device is asked
            }

            if (!deliversEvents && (Cpu.Rip != entry || exit.Reason == VmExitReason.Stepped))
            {
                Cpu.InterruptShadow = false; // the one instruction is over
            }

            TrapReason reason;
            ulong dispatched;
            switch (exit.Reason)
            {
                case VmExitReason.PrivilegedInstruction:
                    reason = _transaction is null
                        ? HandlePrivilegedInstruction(clock, out dispatched)
                        : HandleInTransaction(exit, clock, out dispatched);
                    break;

                case VmExitReason.PageFault:
                    reason = _transaction is null
                        ? HandlePageFault(exit, clock, out dispatched)
                        : HandleInTransaction(exit, clock, out dispatched);
                    break;

                case VmExitReason.Exception:
                    reason = TrapReason.GuestException;
                    dispatched = clock.Ticks;
                    Cpu.PendingEvent = exit.Vector is Vector.Breakpoint or Vector.Overflow
                        ? TrapGate(exit.Vector)
                        : GuestEvent.Exception(exit.Vector, exit.ErrorCode);
                    break;

                case VmExitReason.SystemCall:
                    reason = TrapReason.SystemCall;
                    dispatched = clock.Ticks;
                    SystemCalls.Enter(Cpu);
                    break;

                case VmExitReason.PortIo:
                    reason = HandlePortIo(exit, clock, out dispatched);
                    break;

                case VmExitReason.Mmio:
                    reason = HandleMmio(exit, clock, out dispatched);
                    break;

                case VmExitReason.ModelSpecificRegister:
                    reason = TrapReason.Msr;
                    dispatched = clock.Ticks;
                    break;

                case VmExitReason.TaskPriority:
                    reason = TrapReason.ControlRegister;
                    dispatched = clock.Ticks;
                    break;

                case VmExitReason.Halt:
                    reason = TrapReason.Halt;
                    dispatched = clock.Ticks;
                    Cpu.Halted = true;
                    break;

                case VmExitReason.InterruptWindow:
                    reason = TrapReason.InterruptWindow;
                    dispatched = clock.Ticks;
                    break;

                case VmExitReason.Stepped:
                    reason = TrapReason.SingleStep;
                    dispatched = clock.Ticks;
                    break;

                case VmExitReason.Interrupted:
                    reason = TrapReason.Kick;
                    dispatched = clock.Ticks;
                    break;

                case VmExitReason.Hypercall:
                    reason = TrapReason.Hypercall;
                    dispatched = seen; // there is nothing to decode, and a reading of the clock would be a share of the whole
                    HandleHypercall();
                    break;

                case VmExitReason.Failed:
                    _engineFailure = exit.Message;
                    return new RunOutcome(RunEnd.Failed, 0, exit.Message);

                default:
                    throw new UnreachableException($"exit reason {exit.Reason}");
            }

            clock.ChargeEmulation(reason);
            now = clock.Ticks;
            Ledger.Record(reason, dispatched - seen, now - dispatched);
            if (reason == TrapReason.Kick && Stopped(deadline, cancellation) is { } outcome)
            {
                return outcome;
            }
        }

        return new RunOutcome(RunEnd.Exited, _exitPort.Status.Value, null);
    }

    // Asked after a kick only: a guest is never stopped at a point where a kick would not have stopped it.
    private RunOutcome? Stopped(CancellationToken deadline, CancellationToken cancellation) =>
        (_userFaults?.Failure ?? _disk?.Failure) is { } lost ? new RunOutcome(RunEnd.Failed, 0, lost)
        : cancellation.IsCancellationRequested ? new RunOutcome(RunEnd.Cancelled, 0, "cancelled")
        : deadline.IsCancellationRequested
            ? new RunOutcome(RunEnd.TimedOut, 0, $"the guest did not end in time; RIP was 0x{Cpu.Rip:X}")
        : null;

    /// <summary>Lets the timer's and the disk's events happen that are due, and tells the engine of the next.</summary>
    private void PassTime(ulong now)
    {
        if (now >= Timer.NextEvent)
        {
            Timer.Advance(now);
        }

        ulong next = Timer.NextEvent;
        if (_hypercalls is { } hypercalls)
        {
            hypercalls.Advance(now);
            next = Math.Min(next, hypercalls.NextEvent);
        }

        if (_disk is not null)
        {
            next = Math.Min(next, PassDiskTime(now));
        }

        _posted?.Drain();

        if (next != _deadline)
        {
            _deadline = next;
            _engine.Deadline = next;
        }
    }

    private ulong _deadline = ulong.MaxValue;

    /// <summary>
    /// Makes a waiting interrupt the pending event when the CPU can take it: RFLAGS.IF set and no interrupt shadow. A shadow
    /// ends with the next instruction, which is therefore executed by itself.
    /// </summary>
    private void TakeInterrupt(bool deliversEvents)
    {
        if (deliversEvents)
        {
            bool asleep = Cpu.Halted && (Cpu.Rflags & Rflags.If) != 0;
            if (!asleep && !_engine.AcceptsInterrupt)
            {
                _engine.RequestInterruptWindow();
                return;
            }
        }
        else if ((Cpu.Rflags & Rflags.If) == 0)
        {
            if (_engine.Capabilities.InlinesInterruptFlag)
            {
                _engine.RequestInterruptWindow();
            }

            return;
        }
        else if (Cpu.InterruptShadow && !Cpu.Halted)
        {
            _step = true;
            return;
        }

        Cpu.PendingEvent = GuestEvent.Interrupt(Interrupts.Acknowledge());
        DeliverPendingEvent(deliversEvents);
    }

    /// <summary>A guest of the paravirtual interface holds interrupts back by its own mask, and is told that one waits.</summary>
    private bool IsMaskedByGuest()
    {
        if (_hypercalls is not { } hypercalls)
        {
            return false;
        }

        bool masked = hypercalls.IsMasked;
        hypercalls.ShowPending(masked);
        return masked;
    }

    // False when something has come from another thread that has to be taken over first.
    private bool TryEnter(bool asleep = false)
    {
        if (_posted is { } posted && !posted.TryEnter(arms: !asleep && !_step))
        {
            return false;
        }

        if (_disk is null || _disk.TryEnter())
        {
            return true;
        }

        _posted?.Left();
        return false;
    }

    /// <summary>Sleeps until an event, or a line that goes to the guest directly: that ends the sleep without one.</summary>
    private void Idle()
    {
        double asleep = _engine.Clock.Nanoseconds;
        _hypercalls?.ShowBlocked(true);
        if (_hypercalls is { HasDirectLines: true })
        {
            Cpu.Halted = false;
        }
        else if (TryEnter(asleep: true))
        {
            _engine.Idle();
            _posted?.Left();
            _disk?.Left();
        }

        _hypercalls?.ShowBlocked(false);
        _waitingNanoseconds += _engine.Clock.Nanoseconds - asleep;
    }

    private void DeliverPendingEvent(bool deliversEvents)
    {
        GuestEvent pending = Cpu.PendingEvent;
        if (pending is { Kind: GuestEventKind.Exception, Number: Vector.PageFault })
        {
            _hypercalls?.ShowFault(pending.FaultAddress);
        }

        if (deliversEvents)
        {
            _engine.Inject(pending);
            Cpu.Halted = false;
        }
        else if (_transaction is null)
        {
            _delivery.Deliver(pending);
        }
        else
        {
            DeliverInTransaction(pending);
        }

        Cpu.PendingEvent = default;
    }

    /// <summary>Of a halted CPU: null, or why nothing will ever wake it.</summary>
    private string? WhyNeverWoken()
    {
        string? why =
            (Cpu.Rflags & Rflags.If) == 0 ? "interrupts are off"
            : DiskMayWake() || _posted is { MayRaise: true } || _hypercalls is { HasDirectLines: true } ? null
            : Interrupts.IsPending(IntervalTimer.Line) && !Interrupts.IsMasked(IntervalTimer.Line)
                ? "the timer's interrupt waits for one in service that the guest has not ended (EOI)"
            : Timer.NextEvent == ulong.MaxValue
            && _hypercalls is null or { NextEvent: ulong.MaxValue }
            && !Interrupts.IsPending(IntervalTimer.Line)
                ? "no device of it can raise an interrupt to wake it"
            : Interrupts.IsMasked(IntervalTimer.Line) ? "the timer's interrupt, the only one to come, is masked"
            : null;
        return why is null ? null : $"the guest executed HLT before RIP 0x{Cpu.Rip:X} and {why}";
    }
}
