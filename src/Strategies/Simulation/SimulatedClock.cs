using VirtBench.Vmm.Execution;

namespace VirtBench.Strategies.Simulation;

/// <summary>Time as the cycles that the cost profile adds up.</summary>
internal sealed unsafe class SimulatedClock(Machine* machine, CostProfile profile, SimulatedMode mode) : IEngineClock
{
    // A callout is a call, and so is a hypercall through the gate. What the CPU refuses, under translation a page fault or an exception, is a
    // world switch as ever.
    private readonly int _callout = mode switch
    {
        SimulatedMode.Translated => profile.Translation!.CalloutCycles,
        SimulatedMode.Paravirtual => profile.Paravirtual!.HypercallCycles,
        _ => 0,
    };
    private bool _calledOut = mode == SimulatedMode.Translated;
    private Machine* _machine = machine;
    private ulong _frozen;
    private bool _entryIsFree;
    private bool _kicked;

    /// <inheritdoc/>
    public ulong Ticks => _machine is null ? _frozen : _machine->Cycles;

    /// <inheritdoc/>
    public double TicksPerSecond => profile.ClockHertz;

    /// <inheritdoc/>
    public double Nanoseconds => Ticks * (1e9 / profile.ClockHertz);

    /// <inheritdoc/>
    public void ChargeEmulation(TrapReason reason)
    {
        switch (reason)
        {
            // A measurement port is the experimenter's, not the machine's: a region holds the guest's own cycles only.
            case TrapReason.RegionMarker:
                _entryIsFree = true;
                return;
            // When a kick comes is the host's affair: the cycles of a guest must not depend on it. A deadline is the guest's.
            case TrapReason.Kick when _kicked:
                return;
        }

        _machine->Cycles += (ulong)profile.EmulationCycles;
    }

    /// <summary>Adds the world switch into the guest.</summary>
    public void ChargeEntry()
    {
        if (!_entryIsFree)
        {
            _machine->Cycles += (ulong)(_calledOut ? _callout - (_callout / 2) : profile.EntryCycles);
        }

        _entryIsFree = false;
    }

    /// <summary>Adds the world switch out of the guest.</summary>
    /// <param name="reason">Why the guest was left.</param>
    /// <param name="isMarker">A write to a measurement port.</param>
    /// <param name="isDue">Interrupted by the deadline. By a kick alone it is free, and so is the entry after it.</param>
    public void ChargeExit(VmExitReason reason, bool isMarker, bool isDue)
    {
        _kicked = reason == VmExitReason.Interrupted && !isDue;
        _calledOut = mode switch
        {
            SimulatedMode.Translated => reason is not (VmExitReason.PageFault or VmExitReason.Exception),
            SimulatedMode.Paravirtual => reason == VmExitReason.Hypercall,
            _ => false,
        };
        if (_kicked)
        {
            _entryIsFree = true;
        }
        else if (!isMarker)
        {
            _machine->Cycles += (ulong)(_calledOut ? _callout / 2 : profile.ExitCycles);
        }
    }

    /// <summary>Lets time pass until a point that may be over already.</summary>
    public void PassUntil(ulong ticks) => _machine->Cycles = Math.Max(_machine->Cycles, ticks);

    /// <summary>The machine is about to go.</summary>
    public void Freeze()
    {
        _frozen = _machine->Cycles;
        _machine = null;
    }
}
