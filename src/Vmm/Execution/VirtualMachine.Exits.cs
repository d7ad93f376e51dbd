using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Emulation;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Execution;

// What the core does about each exit.
public sealed partial class VirtualMachine
{
    private TrapReason HandlePrivilegedInstruction(IEngineClock clock, out ulong dispatched)
    {
        if (!_emulator.TryDecode(out TrapReason reason, out GuestEvent fetchFault))
        {
            dispatched = clock.Ticks;
            Cpu.PendingEvent = fetchFault;
            return TrapReason.GuestException;
        }

        dispatched = clock.Ticks;
        Complete(_emulator.Emulate(out GuestEvent guestEvent), guestEvent);
        return reason;
    }

    /// <summary>
    /// #BP and #OF come from an instruction that the host lets ring 3 execute, with RIP behind it. The guest's own gate
    /// decides whether it may, so RIP goes back to it: one byte for INT3, two for INT n.
    /// </summary>
    private GuestEvent TrapGate(byte vector)
    {
        const byte int3 = 0xCC;
        bool isInt3 =
            vector == Vector.Breakpoint
            && PageWalker.IsCanonical(Cpu.Rip - 1)
            && PageWalker.Walk(Cpu, Memory, Cpu.Rip - 1, PageAccess.Execute, commit: false) is { Fault: false } code
            && Memory.Contains(code.PhysicalAddress, 1)
            && Memory.Read<byte>(code.PhysicalAddress) == int3;
        int length = isInt3 ? 1 : 2;
        Cpu.Rip -= (ulong)length;
        return GuestEvent.SoftwareInterrupt(vector, length);
    }

    // An interrupt shadow ends with the instruction that has led here.
    private void HandleHypercall()
    {
        if (_hypercalls is not { } hypercalls)
        {
            // An engine's way out of the hypercall page, found by a guest that was not told of it.
            Cpu.PendingEvent = GuestEvent.Exception(Vector.InvalidOpcode);
            return;
        }

        Cpu.InterruptShadow = false;
        Complete(hypercalls.Invoke(out GuestEvent guestEvent), guestEvent);
    }

    private void Complete(EmulationResult result, in GuestEvent guestEvent)
    {
        switch (result)
        {
            case EmulationResult.Event:
                Cpu.PendingEvent = guestEvent;
                break;
            case EmulationResult.Halted:
                Cpu.Halted = true;
                break;
        }
    }

    /// <summary>The hardware has decoded the instruction and checked that the guest may execute it.</summary>
    private unsafe TrapReason HandlePortIo(in VmExit exit, IEngineClock clock, out ulong dispatched)
    {
        ushort port = (ushort)exit.Address;
        bool writes = (exit.Access & PageAccess.Write) != 0;
        dispatched = clock.Ticks;
        var values = new Span<byte>((void*)exit.Data, (int)exit.Count * exit.Size);
        if (writes)
        {
            Ports.WriteString(port, exit.Size, values, Cpu.Rip);
        }
        else
        {
            Ports.ReadString(port, exit.Size, values, Cpu.Rip);
        }

        return writes && MeasurementPorts.IsMeasurementPort(port) ? TrapReason.RegionMarker : TrapReason.PortIo;
    }

    private unsafe TrapReason HandleMmio(in VmExit exit, IEngineClock clock, out ulong dispatched)
    {
        dispatched = clock.Ticks;
        var data = new Span<byte>((void*)exit.Data, exit.Size);
        if ((exit.Access & PageAccess.Write) != 0)
        {
            AbsentMemory.Write(exit.Address, data, Cpu.Rip);
        }
        else
        {
            AbsentMemory.Read(exit.Address, data, Cpu.Rip);
        }

        return TrapReason.Mmio;
    }

    /// <summary>Hidden fault, true fault or an address without RAM: the guest's own tables decide.</summary>
    private unsafe TrapReason HandlePageFault(in VmExit exit, IEngineClock clock, out ulong dispatched)
    {
        PageAccess access = exit.Access | (Cpu.Cpl == 3 ? PageAccess.User : 0);
        if (!PageWalker.IsCanonical(exit.Address))
        {
            dispatched = clock.Ticks;
            Cpu.PendingEvent = GuestEvent.Exception(Vector.GeneralProtection);
            return TrapReason.GuestException;
        }

        Translation translation = PageWalker.Walk(Cpu, Memory, exit.Address, access);
        if (translation.Fault)
        {
            dispatched = clock.Ticks;
            Cpu.PendingEvent = GuestEvent.PageFault(exit.Address, translation.ErrorCode);
            return TrapReason.GuestPageFault;
        }

        if (!Memory.Contains(translation.PhysicalAddress, 1))
        {
            return HandleAbsentMemory(exit, translation.PhysicalAddress, clock, out dispatched);
        }

        dispatched = clock.Ticks;
        _ = Memory.Touch(translation.PhysicalAddress);
        ulong length = 1UL << translation.PageShift;
        ulong offset = exit.Address & (length - 1);
        bool supervisorWritesReadOnly = Cpu.Cpl != 3 && (Cpu.Cr0 & Cr0.Wp) == 0;
        bool writable =
            translation.Dirty && ((translation.Permissions & PageAccess.Write) != 0 || supervisorWritesReadOnly);
        var page = new ShadowPage(
            exit.Address,
            exit.Address - offset,
            translation.PhysicalAddress - offset,
            length,
            (translation.Permissions & ~PageAccess.Write) | (writable ? PageAccess.Write : 0)
        );
        if (_transaction is not null)
        {
            page = OnlyPresent(page);
            _transaction.Commit(); // what the engine looks up is no part of it
        }

        MapResult result = _engine.Map(page);
        return result.Outcome switch
        {
            MapOutcome.Mapped => TrapReason.HiddenPageFault,
            MapOutcome.MappedAfterCodeWrite => TrapReason.CodeWrite,
            MapOutcome.Emulate => WriteProtectedPage(page, TrapReason.PageTableWrite),
            MapOutcome.EmulateCodeWrite => WriteProtectedPage(page, TrapReason.CodeWrite),
            _ => throw new GuestFailureException(result.Message!),
        };
    }

    /// <summary>
    /// A write to a page that the engine keeps read-only, since it follows the guest's page tables there or has translated its code. What the core has no
    /// emulation of is executed by itself, with the page open for it.
    /// </summary>
    private TrapReason WriteProtectedPage(in ShadowPage page, TrapReason reason)
    {
        _transaction?.Begin();
        if (!_emulator.TryDecode(out _, out GuestEvent fetchFault))
        {
            Cpu.PendingEvent = fetchFault;
            return TrapReason.GuestException;
        }

        if (_emulator.CanEmulateDataAccess)
        {
            _stringAccess = reason;
            Complete(_emulator.EmulateDataAccess(out GuestEvent guestEvent), guestEvent);
        }
        else
        {
            _transaction?.Commit();
            _engine.AllowInStep(page);
            _step = true;
        }

        return reason;
    }

    private TrapReason HandleAbsentMemory(in VmExit exit, ulong physical, IEngineClock clock, out ulong dispatched)
    {
        if ((exit.Access & PageAccess.Execute) != 0)
        {
            throw new GuestFailureException(
                $"the guest fetches an instruction at 0x{exit.Address:X}, guest-physical 0x{physical:X}, where there is no RAM"
            );
        }

        if (!_emulator.TryDecode(out _, out GuestEvent fetchFault))
        {
            dispatched = clock.Ticks;
            Cpu.PendingEvent = fetchFault;
            return TrapReason.GuestException;
        }

        dispatched = clock.Ticks;
        _stringAccess = TrapReason.Mmio;
        Complete(_emulator.EmulateDataAccess(out GuestEvent guestEvent), guestEvent);
        return TrapReason.Mmio;
    }
}
