using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Execution;

// Exits and events of a VM whose RAM may be absent. Without a pager nothing here runs.
public sealed partial class VirtualMachine
{
    private Transaction? _transaction;
    private UserFaults? _userFaults;
    private TrapReason _stringAccess;
    private bool _hasRun;

    /// <summary>
    /// Lets RAM be absent: from now on the pager says which frames are on this host. Guest code, the core and the host's
    /// virtualization hardware reach a frame only when it has been fetched.
    /// </summary>
    /// <param name="pager">The pager. It may be asked by several threads until the VM is disposed.</param>
    /// <exception cref="InvalidOperationException">The guest has run, or there is a pager.</exception>
    /// <exception cref="PlatformNotSupportedException">This engine cannot on this host; one line says why.</exception>
    public void AttachPager(IGuestPager pager)
    {
        if (_hasRun || _transaction is not null)
        {
            throw new InvalidOperationException("a pager is attached once, before the guest runs");
        }

        // Hardware goes through the host's page tables, which the core has no hand in.
        if (ReachesThroughHost(_engine))
        {
            _userFaults = UserFaults.Start(Memory, pager, Kick);
        }

        _transaction = new Transaction(Cpu, Memory.Attach(pager), _engine, AbsentMemory);
        _emulator.Transaction = _transaction;
    }

    private static bool ReachesThroughHost(IExecutionEngine engine) =>
        engine.Capabilities.DeliversEvents || engine.Capabilities.Paging is not null;

    // Whichever engine it is by then.
    private void Kick() => _engine.Kick();

    private TrapReason HandleInTransaction(in VmExit exit, IEngineClock clock, out ulong dispatched)
    {
        DetachCompletePager();
        if (_transaction is not { } transaction)
        {
            return exit.Reason == VmExitReason.PrivilegedInstruction
                ? HandlePrivilegedInstruction(clock, out dispatched)
                : HandlePageFault(exit, clock, out dispatched);
        }

        transaction.Begin();
        for (bool again = false; ; again = true)
        {
            try
            {
                TrapReason reason;
                if (exit.Reason == VmExitReason.PrivilegedInstruction)
                {
                    reason = HandlePrivilegedInstruction(clock, out dispatched);
                }
                else if (again && transaction.Repetitions > 0)
                {
                    dispatched = clock.Ticks;
                    reason = ContinueStringAccess();
                }
                else
                {
                    reason = HandlePageFault(exit, clock, out dispatched);
                }

                transaction.Commit();
                return reason;
            }
            catch (HostPageAbsentException absent)
            {
                transaction.RollBack();
                FetchOrEnd(absent.Frame);
            }
            catch (GuestFailureException)
            {
                transaction.Commit(); // the guest's end, as it would be without a pager
                throw;
            }
        }
    }

    // The access that faulted is done: to look it up again would be to ask about an earlier repetition's.
    private TrapReason ContinueStringAccess()
    {
        if (_emulator.TryDecode(out _, out GuestEvent guestEvent))
        {
            Complete(_emulator.EmulateDataAccess(out guestEvent), guestEvent);
        }
        else
        {
            Cpu.PendingEvent = guestEvent;
        }

        return _stringAccess;
    }

    private void DeliverInTransaction(GuestEvent pending)
    {
        Transaction transaction = _transaction!;
        transaction.Begin();
        while (true)
        {
            try
            {
                _delivery.Deliver(pending);
                transaction.Commit();
                return;
            }
            catch (HostPageAbsentException absent)
            {
                transaction.RollBack();
                FetchOrEnd(absent.Frame);
            }
            catch (GuestFailureException)
            {
                transaction.Commit();
                throw;
            }
        }
    }

    // Everything has been rolled back: a guest whose page is lost ends between two instructions.
    private void FetchOrEnd(ulong frame)
    {
        try
        {
            Memory.Fetch(frame);
        }
        catch (GuestFailureException)
        {
            _transaction!.Commit();
            throw;
        }
    }

    /// <summary>Limits a mapping to what is present of the page: guest code must never touch an absent frame.</summary>
    private ShadowPage OnlyPresent(in ShadowPage page)
    {
        ShadowPage present = page.PresentPart(Memory);
        _emulator.InvalidatesAll |= present.Length != page.Length;
        return present;
    }

    /// <summary>After the last page there is nothing to ask any more, and no reason to be ready to undo.</summary>
    private void DetachCompletePager()
    {
        if (Memory.Pager is not { IsComplete: true })
        {
            return;
        }

        _userFaults?.Dispose();
        _userFaults = null;
        _emulator.Transaction = null;
        _transaction?.Dispose();
        _transaction = null;
        Memory.DetachPager();
        if (_emulator.InvalidatesAll)
        {
            _engine.SwitchAddressSpace(); // large pages that were mapped in parts can be mapped whole
        }
    }
}
