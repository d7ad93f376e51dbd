using System.Buffers.Binary;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Disks;

/// <summary>
/// virtio-blk with one queue, over virtio-mmio with the registers of version 2 (virtio 1.2, sections 4.2 and 5.2). The queue is read
/// and written in the service's context; registers are the vCPU thread's, but for the two that both sides change.
/// </summary>
internal sealed class VirtioBlock : DiskFrontEnd, IMmioDevice
{
    /// <summary>Guest-physical address of its registers.</summary>
    public const ulong Address = 0xD000_0000;

    /// <summary>Bytes of them.</summary>
    public const ulong Length = 0x1000;

    /// <summary>Interrupt line.</summary>
    public const int InterruptLine = 11;

    /// <summary>What the disk calls itself, under both interfaces.</summary>
    public const string SerialNumber = "VB0000000001";

    /// <summary>Most bytes in one segment that a driver should use.</summary>
    public const uint SegmentSizeMaximum = 1 << 20;

    /// <summary>Most segments in one request: a queue's descriptors without those for header and status.</summary>
    public const uint SegmentsMaximum = VirtioQueue.MaximumSize - 2;

    private const uint Vendor = 0x434E_4256; // "VBNC"

    private readonly GuestMemory _memory;
    private readonly Stack<VirtioRequest> _free = [];
    private readonly List<VirtioRequest> _deferred = [];
    private readonly byte[] _configuration = new byte[0x40];
    private readonly ulong _features;

    private uint _deviceFeaturesSelect;
    private uint _driverFeaturesSelect;
    private ulong _driverFeatures;
    private uint _queueSelect;
    private uint _queueSize;
    private ulong _descriptors;
    private ulong _available;
    private ulong _used;
    private uint _status;

    // Changed with the gate held. The service uses the queue when DRIVER_OK is set.
    private VirtioQueue? _queue;
    private volatile bool _running;

    // Both sides' registers, and what the service has posted.
    private readonly Lock _interruptGate = new();
    private uint _interruptStatus;
    private uint _interruptDue;
    private volatile bool _needsReset;
    private int _anyDeferred;

    /// <summary>Creates the device, as after a reset.</summary>
    public VirtioBlock(DiskService service, GuestMemory memory, IInterruptLine output)
        : base(service, InterruptLine, output)
    {
        _memory = memory;
        _features =
            VirtioLayout.FeatureVersion1
            | VirtioLayout.FeatureEventIndex
            | VirtioLayout.FeatureIndirect
            | VirtioLayout.FeatureFlush
            | VirtioLayout.FeatureSegmentMaximum
            | VirtioLayout.FeatureSizeMaximum
            | (service.Storage.IsReadOnly ? VirtioLayout.FeatureReadOnly : 0);

        // struct virtio_blk_config (section 5.2.4).
        BinaryPrimitives.WriteUInt64LittleEndian(_configuration, service.Storage.Sectors);
        BinaryPrimitives.WriteUInt32LittleEndian(_configuration.AsSpan(8), SegmentSizeMaximum);
        BinaryPrimitives.WriteUInt32LittleEndian(_configuration.AsSpan(12), SegmentsMaximum);
        service.Add(this);
    }

    // ------------------------------------------------------------------------------------------------ registers

    /// <inheritdoc/>
    public void Read(ulong offset, Span<byte> destination)
    {
        destination.Clear();
        if (offset >= VirtioLayout.Configuration)
        {
            ulong from = offset - VirtioLayout.Configuration;
            for (int i = 0; i < destination.Length && from + (ulong)i < (ulong)_configuration.Length; i++)
            {
                destination[i] = _configuration[from + (ulong)i];
            }
        }
        else if (destination.Length == 4 && offset % 4 == 0)
        {
            BinaryPrimitives.WriteUInt32LittleEndian(destination, ReadRegister((int)offset));
        }
    }

    private uint ReadRegister(int register) =>
        register switch
        {
            VirtioLayout.MagicValue => VirtioLayout.Magic,
            VirtioLayout.Version => 2,
            VirtioLayout.DeviceId => VirtioLayout.BlockDevice,
            VirtioLayout.VendorId => Vendor,
            VirtioLayout.DeviceFeatures => _deviceFeaturesSelect switch
            {
                0 => (uint)_features,
                1 => (uint)(_features >> 32),
                _ => 0,
            },
            VirtioLayout.QueueSizeMaximum => _queueSelect == 0 ? VirtioQueue.MaximumSize : 0u,
            VirtioLayout.QueueReady => _queueSelect == 0 && _queue is not null ? 1u : 0,
            VirtioLayout.InterruptStatus => Volatile.Read(ref _interruptStatus),
            VirtioLayout.Status => _status | (_needsReset ? VirtioLayout.StatusNeedsReset : 0),

            // There is no shared memory region: all ones (section 4.2.2).
            VirtioLayout.SharedMemoryLengthLow
            or VirtioLayout.SharedMemoryLengthHigh
            or VirtioLayout.SharedMemoryBaseLow
            or VirtioLayout.SharedMemoryBaseHigh => uint.MaxValue,
            _ => 0, // the generation among them: the configuration never changes
        };

    /// <inheritdoc/>
    public void Write(ulong offset, ReadOnlySpan<byte> source)
    {
        if (offset < VirtioLayout.Configuration && source.Length == 4 && offset % 4 == 0)
        {
            WriteRegister((int)offset, BinaryPrimitives.ReadUInt32LittleEndian(source));
        }
    }

    private void WriteRegister(int register, uint value)
    {
        switch (register)
        {
            case VirtioLayout.DeviceFeaturesSelect:
                _deviceFeaturesSelect = value;
                break;
            case VirtioLayout.DriverFeaturesSelect:
                _driverFeaturesSelect = value;
                break;
            case VirtioLayout.DriverFeatures when (_status & VirtioLayout.StatusFeaturesOk) == 0:
                _driverFeatures = _driverFeaturesSelect switch
                {
                    0 => Low(_driverFeatures, value),
                    1 => High(_driverFeatures, value),
                    _ => value == 0 ? _driverFeatures : ulong.MaxValue, // none of these is offered
                };
                break;
            case VirtioLayout.QueueSelect:
                _queueSelect = value;
                break;
            case VirtioLayout.QueueNotify when value == 0 && _running:
                Service.Notify();
                break;
            case VirtioLayout.InterruptAcknowledge:
                Acknowledge(value);
                break;
            case VirtioLayout.Status:
                WriteStatus(value);
                break;
            case VirtioLayout.QueueReady when _queueSelect == 0:
                SetQueueReady(value != 0);
                break;
            default:
                if (_queueSelect == 0 && _queue is null)
                {
                    WriteQueueRegister(register, value);
                }

                break;
        }
    }

    private void WriteQueueRegister(int register, uint value)
    {
        switch (register)
        {
            case VirtioLayout.QueueSize:
                _queueSize = value;
                break;
            case VirtioLayout.DescriptorsLow:
                _descriptors = Low(_descriptors, value);
                break;
            case VirtioLayout.DescriptorsHigh:
                _descriptors = High(_descriptors, value);
                break;
            case VirtioLayout.AvailableLow:
                _available = Low(_available, value);
                break;
            case VirtioLayout.AvailableHigh:
                _available = High(_available, value);
                break;
            case VirtioLayout.UsedLow:
                _used = Low(_used, value);
                break;
            case VirtioLayout.UsedHigh:
                _used = High(_used, value);
                break;
        }
    }

    private static ulong Low(ulong register, uint value) => (register & 0xFFFF_FFFF_0000_0000) | value;

    private static ulong High(ulong register, uint value) => (uint)register | ((ulong)value << 32);

    private void WriteStatus(uint value)
    {
        if (value == 0)
        {
            Reset();
            return;
        }

        value &= VirtioLayout.StatusWritable;
        bool negotiates = (value & ~_status & VirtioLayout.StatusFeaturesOk) != 0;
        if (
            negotiates && ((_driverFeatures & ~_features) != 0 || (_driverFeatures & VirtioLayout.FeatureVersion1) == 0)
        )
        {
            value &= ~VirtioLayout.StatusFeaturesOk; // the driver reads it back, and finds that it cannot go on
        }

        _status |= value;
        const uint ready = VirtioLayout.StatusFeaturesOk | VirtioLayout.StatusDriverOk;
        if ((_status & ready) == ready && !_running)
        {
            lock (Service.Gate)
            {
                _running = true;
            }

            Service.Notify(); // what was made available before
        }
    }

    private void SetQueueReady(bool ready)
    {
        if (!ready)
        {
            lock (Service.Gate)
            {
                StopQueue();
            }

            return;
        }

        if (_queue is not null)
        {
            return;
        }

        VirtioQueue? queue =
            (_status & VirtioLayout.StatusFeaturesOk) == 0
                ? null
                : VirtioQueue.Create(
                    _memory,
                    (int)Math.Min(_queueSize, int.MaxValue),
                    _descriptors,
                    _available,
                    _used,
                    _driverFeatures
                );
        lock (Service.Gate)
        {
            if (queue is null)
            {
                NeedReset();
            }
            else
            {
                _queue = queue;
            }
        }
    }

    // Nothing of what the guest has given touches its memory any more.
    private void StopQueue()
    {
        Service.Cancel(this);
        Forget();
        _queue = null;
        _deferred.Clear();
    }

    private void Reset()
    {
        lock (Service.Gate)
        {
            StopQueue();
            _running = false;
            _needsReset = false;
            lock (_interruptGate)
            {
                _interruptDue = 0;
                _interruptStatus = 0;
                Drive(false);
            }
        }

        _status = 0;
        _driverFeatures = 0;
        _deviceFeaturesSelect = _driverFeaturesSelect = _queueSelect = _queueSize = 0;
        _descriptors = _available = _used = 0;
    }

    // ------------------------------------------------------------------------------------------------ interrupt

    private void Acknowledge(uint value)
    {
        lock (_interruptGate)
        {
            _interruptStatus &= ~value;
            if (_interruptStatus == 0)
            {
                Drive(false);
            }
        }
    }

    private void Interrupt(uint cause)
    {
        bool direct = Service.Delivery == InterruptDelivery.Direct;
        lock (_interruptGate)
        {
            if (direct)
            {
                _interruptStatus |= cause;
                Drive(true);
            }
            else
            {
                _interruptDue |= cause;
            }
        }

        if (!direct)
        {
            Service.Post(now: true);
        }
    }

    private void NeedReset()
    {
        if (!_needsReset)
        {
            _needsReset = true;
            Service.CountError();
            if (_running)
            {
                Interrupt(VirtioLayout.InterruptConfiguration); // section 2.1.2: only once DRIVER_OK is set
            }
        }
    }

    /// <inheritdoc/>
    public override void Release()
    {
        if (_queue is { } queue && queue.MustInterrupt())
        {
            Interrupt(VirtioLayout.InterruptUsedBuffer);
        }
    }

    /// <inheritdoc/>
    public override void Drain()
    {
        if (Volatile.Read(ref _anyDeferred) != 0)
        {
            PublishDeferred();
        }

        lock (_interruptGate)
        {
            if (_interruptDue != 0)
            {
                _interruptStatus |= _interruptDue;
                _interruptDue = 0;
                Drive(true);
            }
        }
    }

    // ------------------------------------------------------------------------------------------------ requests

    /// <inheritdoc/>
    public override void Take()
    {
        if (!_running || _needsReset || _queue is not { } queue)
        {
            return;
        }

        try
        {
            // As many as the queue has descriptors at most: so many can be taken and not given back.
            VirtioRequest request = Unused();
            while (queue.TryTake(request))
            {
                request.Check(Service.Storage, out bool identifies);
                if (!identifies)
                {
                    throw new VirtioRingException("a request has no place for its status");
                }

                request.Seen = Service.Now;
                Service.Enqueue(request);
                request = Unused();
            }

            _free.Push(request);
        }
        catch (VirtioRingException)
        {
            NeedReset();
        }
    }

    private VirtioRequest Unused() => _free.TryPop(out VirtioRequest? request) ? request : new(this, _memory);

    /// <inheritdoc/>
    public override bool AllowNotifications() =>
        !_running || _needsReset || _queue is not { } queue || queue.AllowNotifications();

    /// <inheritdoc/>
    public override bool Complete(DiskRequest request)
    {
        var done = (VirtioRequest)request;
        done.Settle();
        if (done.WroteCached && !Service.IsComputed)
        {
            // Code or page tables: the guest may see that the data are there when the engine has been left, and not before.
            _deferred.Add(done);
            Volatile.Write(ref _anyDeferred, 1);
            Service.Post(now: true);
            return false;
        }

        Publish(done);
        return true;
    }

    private void Publish(VirtioRequest request)
    {
        if (_queue is { } queue && !_needsReset)
        {
            queue.Publish(request.Head, request.Written);
        }

        _free.Push(request);
    }

    private void PublishDeferred()
    {
        lock (Service.Gate)
        {
            Volatile.Write(ref _anyDeferred, 0);
            foreach (VirtioRequest request in _deferred)
            {
                Publish(request);
            }

            if (_deferred.Count > 0)
            {
                _deferred.Clear();
                ReleaseHeld();
            }
        }
    }
}
