using System.ComponentModel;
using System.Runtime.Versioning;

namespace VirtBench.Strategies.Carrier;

/// <summary>
/// The carriers of one vCPU, started when first asked for. One of them runs the guest; the others sleep with what they have mapped. One
/// thread owns the pool; only <see cref="Kick"/> comes from others.
/// </summary>
[SupportedOSPlatform("linux")]
internal sealed unsafe class CarrierPool(int ramFd, CarrierOptions options, int codeCacheSize = 0) : IDisposable
{
    private readonly Lock _gate = new();
    private readonly CarrierProcess?[] _carriers = new CarrierProcess?[CarrierLayout.MaximumCarriers];
    private VcpuMemory? _memory;
    private CarrierProcess? _last;
    private SignalContext* _frame;
    private bool _disposed;

    /// <summary>The carrier that runs the guest, or ran it last; null before the first entry.</summary>
    public CarrierProcess? Current { get; private set; }

    /// <summary>
    /// Where the guest's registers are between two runs, whichever carrier is next; null before <see cref="Select"/> has been called. Kept
    /// here, since the control page's word for it is a guest's.
    /// </summary>
    public SignalContext* Frame => _frame;

    /// <summary>The carrier in this slot, if it has been started.</summary>
    public CarrierProcess? this[int slot] => _carriers[slot];

    /// <summary>
    /// The next <see cref="Resume"/> is this carrier's, which is started if it does not exist. What the guest's frame does not hold, FS and GS
    /// base, is handed over. From now on kicks go to this carrier: the caller looks afterwards whether one has gone to another.
    /// </summary>
    /// <exception cref="Win32Exception">It cannot be started.</exception>
    /// <exception cref="CarrierException">It died when it was started.</exception>
    public CarrierProcess Select(int slot)
    {
        CarrierProcess carrier = _carriers[slot] ?? Start(slot);
        ControlPage* control = carrier.Control;
        if (Current is { } before && before != carrier)
        {
            control->FsBase = before.Control->FsBase;
            control->GsBase = before.Control->GsBase;
            control->LoadBases = 1;
            control->Ucontext = _memory!.AddressOf(_frame);
        }

        lock (_gate)
        {
            Current = carrier;
        }

        return carrier;
    }

    private CarrierProcess Start(int slot)
    {
        if (_memory is null)
        {
            _memory = new VcpuMemory(codeCacheSize);
            _frame = _memory.FirstFrame;
        }

        return _carriers[slot] = new CarrierProcess(_memory, slot, ramFd, options);
    }

    /// <summary>Lets the current carrier run the guest from the frame.</summary>
    public void Resume()
    {
        CarrierProcess carrier = Current!;
        CarrierProcess? last = _last;
        if (last is null || last == carrier)
        {
            carrier.Resume();
        }
        else
        {
            carrier.ResumeAfter(last);
        }

        _last = carrier;
    }

    /// <summary>Takes the guest's frame from the current carrier after an exit. Its address comes from memory that the guest can write.</summary>
    /// <returns>False when there is no frame where the guest or the carrier says.</returns>
    public bool TryTakeFrame()
    {
        ulong address = Volatile.Read(ref Current!.Control->Ucontext);
        var frame = (SignalContext*)_memory!.Find(address, (ulong)sizeof(SignalContext));
        if (frame is null || address % 8 != 0)
        {
            return false;
        }

        _frame = frame;
        return true;
    }

    /// <summary>The memory that the carriers share, once there is one.</summary>
    public VcpuMemory? Memory => _memory;

    /// <summary>
    /// After a callout, where the guest's registers are the VMM's to know and its x87 and SSE state is in the carrier's CPU: has the carrier
    /// store that, so that any carrier can be entered from <see cref="Frame"/>.
    /// </summary>
    /// <exception cref="CarrierException">The carrier is gone.</exception>
    public void MakeFrame()
    {
        CarrierProcess carrier = _last!;
        carrier.Post(CarrierState.SaveFpu);
        carrier.WaitForExit();
        _memory!.BuildFirstFrame();
        _frame = _memory.FirstFrame;
        carrier.Control->Ucontext = _memory.AddressOf(_frame);
    }

    /// <summary>What a carrier has at this address of the register file; null when that is not where frames are.</summary>
    public byte* Find(ulong address, ulong size) => _memory!.Find(address, size);

    /// <summary>Stops the guest soon, or makes the next entry come straight back. Any thread.</summary>
    public void Kick()
    {
        lock (_gate)
        {
            if (!_disposed)
            {
                Current?.Kick();
            }
        }
    }

    /// <summary>Ends all carriers.</summary>
    public void Dispose()
    {
        lock (_gate)
        {
            _disposed = true;
            Current = null;
        }

        foreach (CarrierProcess? carrier in _carriers)
        {
            carrier?.Dispose();
        }

        _memory?.Dispose();
    }
}
