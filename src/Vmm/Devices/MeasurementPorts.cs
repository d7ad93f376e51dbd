using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;

namespace VirtBench.Vmm.Devices;

/// <summary>
/// The measurement ports: <c>out 0xB0, eax</c> begins region eax; <c>out 0xB4, eax</c> ends it with the low half of the
/// work units done, after an optional <c>out 0xB8, eax</c> with the high half. Regions do not nest.
/// </summary>
public sealed class MeasurementPorts : IIoDevice
{
    /// <summary>Begin port.</summary>
    public const ushort Begin = 0xB0;

    /// <summary>End port.</summary>
    public const ushort End = 0xB4;

    /// <summary>Port for bits 32–63 of the units.</summary>
    public const ushort UnitsHigh = 0xB8;

    /// <summary>Ports of the device, from <see cref="Begin"/>.</summary>
    public const int PortCount = 12;

    /// <summary>Most regions kept: a hostile guest must not eat the host's memory.</summary>
    public const int MaximumRegions = 4096;

    private IExecutionEngine _engine;
    private IEngineClock _clock;
    private readonly TrapLedger _ledger;
    private readonly VirtualCpu _cpu;
    private readonly List<MeasuredRegion> _regions = [];
    private bool _open;
    private uint _id;
    private uint _unitsHigh;
    private LedgerSnapshot? _before;
    private KernelStatistics? _kernelBefore;
    private TranslationStatistics? _translationBefore;
    private readonly Func<IoStatistics>? _io;
    private IoStatistics? _ioBefore;
    private ulong _ticksBefore;
    private double _startNanoseconds;
    private ulong _ticksUnderOthers;
    private double _nanosecondsUnderOthers;

    /// <summary>Creates the device for one VM.</summary>
    public MeasurementPorts(
        VirtualCpu cpu,
        IExecutionEngine engine,
        TrapLedger ledger,
        Func<IoStatistics>? inputAndOutput = null
    )
    {
        _io = inputAndOutput;
        _cpu = cpu;
        _engine = engine;
        _clock = engine.Clock;
        _ledger = ledger;
    }

    /// <summary>True for the device's ports: writes there are accounted as region markers.</summary>
    public static bool IsMeasurementPort(ushort port) => port is >= Begin and < Begin + PortCount;

    /// <summary>Finished regions in order.</summary>
    public IReadOnlyList<MeasuredRegion> Regions => _regions;

    /// <summary>
    /// Another engine goes on. A region that is open has its time added up, each part on its engine's clock; the accounts that an
    /// engine keeps for itself it does not have, since each of the two knows a part.
    /// </summary>
    internal void SwitchEngine(IExecutionEngine engine)
    {
        if (_open)
        {
            _nanosecondsUnderOthers += _clock.Nanoseconds - _startNanoseconds;
            _ticksUnderOthers += _clock.Ticks - _ticksBefore;
            _kernelBefore = null;
            _translationBefore = null;
        }

        _engine = engine;
        _clock = engine.Clock;
        _ticksBefore = _clock.Ticks;
        _startNanoseconds = _clock.Nanoseconds;
    }

    /// <inheritdoc/>
    public uint Read(ushort port, int size) => size == 4 ? uint.MaxValue : (1u << (8 * size)) - 1;

    /// <inheritdoc/>
    public void Write(ushort port, int size, uint value)
    {
        switch (port)
        {
            case Begin when size == 4 && !_open:
                _open = true;
                _id = value;
                _unitsHigh = 0;
                _before = _ledger.Snapshot();
                _kernelBefore = _engine.KernelStatistics();
                _translationBefore = _engine.TranslationStatistics;
                _ioBefore = _io?.Invoke();
                _ticksUnderOthers = 0;
                _nanosecondsUnderOthers = 0;
                // The last things read, so that the VMM's own work before it is not the region's.
                _ticksBefore = _clock.Ticks;
                _startNanoseconds = _clock.Nanoseconds;
                break;
            case UnitsHigh when size == 4:
                _unitsHigh = value;
                break;
            case End when size == 4 && _open:
                double end = _clock.Nanoseconds;
                ulong ticks = _clock.Ticks;
                _open = false;
                if (_regions.Count == MaximumRegions)
                {
                    throw new GuestFailureException(
                        $"the guest has measured {MaximumRegions} regions, the most that are kept; use fewer and longer ones"
                    );
                }

                _regions.Add(
                    new MeasuredRegion(
                        _id,
                        ((ulong)_unitsHigh << 32) | value,
                        _nanosecondsUnderOthers + (end - _startNanoseconds),
                        _ticksUnderOthers + (ticks - _ticksBefore),
                        _ledger.Snapshot().Since(_before!),
                        _kernelBefore is { } kernel ? _engine.KernelStatistics()!.Since(kernel) : null,
                        _translationBefore is { } translation ? _engine.TranslationStatistics!.Since(translation) : null
                    )
                    {
                        Io = _ioBefore is { } io ? _io!().Since(io) : null,
                    }
                );
                break;
            default:
                throw new GuestFailureException(
                    $"a write of {size} bytes to measurement port 0x{port:X} at RIP 0x{_cpu.Rip:X}: regions begin with a "
                        + "doubleword to 0xB0, end with one to 0xB4, and do not nest"
                );
        }
    }
}
