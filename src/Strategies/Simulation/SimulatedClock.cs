using VirtBench.Vmm.Execution;

namespace VirtBench.Strategies.Simulation;

/// <summary>Time as the cycles that the cost profile adds up.</summary>
internal sealed unsafe class SimulatedClock(Machine* machine, CostProfile profile) : IEngineClock
{
    private Machine* _machine = machine;
    private ulong _frozen;
    private bool _entryIsFree;

    /// <inheritdoc/>
    public ulong Ticks => _machine is null ? _frozen : _machine->Cycles;

    /// <inheritdoc/>
    public double TicksPerSecond => profile.ClockHertz;

    /// <inheritdoc/>
    public double Nanoseconds => Ticks * (1e9 / profile.ClockHertz);

    /// <inheritdoc/>
    public void ChargeEmulation(TrapReason reason)
    {
        // A measurement port is the experimenter's, not the machine's: a region holds the guest's own cycles only.
        if (reason == TrapReason.RegionMarker)
        {
            _entryIsFree = true;
            return;
        }

        _machine->Cycles += (ulong)profile.EmulationCycles;
    }

    /// <summary>Adds the world switch into the guest.</summary>
    public void ChargeEntry()
    {
        if (!_entryIsFree)
        {
            _machine->Cycles += (ulong)profile.EntryCycles;
        }

        _entryIsFree = false;
    }

    /// <summary>Adds the world switch out of the guest.</summary>
    public void ChargeExit(bool isMarker)
    {
        if (!isMarker)
        {
            _machine->Cycles += (ulong)profile.ExitCycles;
        }
    }

    /// <summary>The machine is about to go.</summary>
    public void Freeze()
    {
        _frozen = _machine->Cycles;
        _machine = null;
    }
}
