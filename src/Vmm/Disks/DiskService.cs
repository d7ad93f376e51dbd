using System.Collections.Concurrent;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;

namespace VirtBench.Vmm.Disks;

/// <summary>
/// Serves the requests of one disk: a queue in the order in which they were seen, of which as many are in service at once as the
/// disk's queue depth says, each for its service time.
/// </summary>
/// <remarks>
/// <para>
/// On the host's clock a thread of its own does that. Under an engine with a computed clock there is no thread: the same steps are
/// taken on the vCPU thread, at the deadlines that <see cref="NextEvent"/> gives, so that the same run takes the same times.
/// </para>
/// <para>
/// Either is "the service's context". It holds <see cref="Gate"/>, one step at a time, input and output included; the vCPU thread
/// takes it only to reset a device or to set its queue up. What has to happen on the vCPU thread is posted: <see cref="Post"/> brings
/// it out of the guest, and <see cref="Drain"/> takes it over.
/// </para>
/// </remarks>
internal sealed class DiskService : IDisposable
{
    private readonly Disk _disk;
    private readonly Action _kick;
    private readonly List<DiskFrontEnd> _frontEnds = [];
    private readonly ConcurrentQueue<DiskRequest> _incoming = [];
    private readonly Queue<DiskRequest> _waiting = [];
    private readonly List<DiskRequest> _inService = []; // by the time their service is over
    private readonly DeviceSignal _signal = new();
    private readonly Lock _threadGate = new();
    private IEngineClock _clock;
    private bool _computed;
    private ulong _now; // computed: the time of the step
    private ulong _begun;
    private ulong _freed; // when a place in service last became free
    private ulong _due = ulong.MaxValue; // when the next step is to be taken
    private Thread? _thread;
    private volatile bool _stopping;
    private volatile bool _abandoned;

    // What the vCPU thread has notified, and up to where the service has found nothing left to do.
    private long _notified;
    private long _settled;
    private int _watched;
    private int _posted;
    private int _inGuest;

    private long _requests;
    private long _completions;
    private long _errors;
    private long _bytesRead;
    private long _bytesWritten;
    private long _flushes;
    private ulong _latencyTotal;
    private ulong _latencyMaximum;
    private double _earlierLatencyTotal; // in nanoseconds, on clocks before this one
    private double _earlierLatencyMaximum;
    private string? _firstError;
    private long _hostErrors;
    private string? _failure;

    /// <summary>Creates the service; its thread starts with the first request.</summary>
    /// <param name="disk">The disk, disposed with the service.</param>
    /// <param name="clock">The engine's clock.</param>
    /// <param name="computed">The clock is computed.</param>
    /// <param name="delivery">How interrupts reach the guest.</param>
    /// <param name="kick">Brings the vCPU thread out of the guest, from any thread.</param>
    public DiskService(Disk disk, IEngineClock clock, bool computed, InterruptDelivery delivery, Action kick)
    {
        _disk = disk;
        _clock = clock;
        _computed = computed;
        _kick = kick;
        Delivery = delivery;
    }

    /// <summary>Held by the service's context. Not taken by the vCPU thread for anything that a guest does often.</summary>
    public Lock Gate { get; } = new();

    /// <summary>How interrupts reach the guest.</summary>
    public InterruptDelivery Delivery { get; }

    /// <summary>The clock is computed, so that the service's context is the vCPU thread.</summary>
    public bool IsComputed => _computed;

    /// <summary>What holds the sectors. For its capacity; input and output are the service's.</summary>
    public IBlockStorage Storage => _disk.Storage;

    /// <summary>The front ends.</summary>
    public IReadOnlyList<DiskFrontEnd> FrontEnds => _frontEnds;

    /// <summary>The device's thread, once it has started; for tests.</summary>
    public Thread? Thread => _thread;

    /// <summary>Why the guest cannot go on; null as long as it can. Whoever sets it kicks the guest.</summary>
    public string? Failure => Volatile.Read(ref _failure);

    /// <summary>Something is posted for the vCPU thread.</summary>
    public bool HasPosted => Volatile.Read(ref _posted) != 0;

    /// <summary>Clock ticks now.</summary>
    public ulong Now => _computed && _now > 0 ? _now : _clock.Ticks;

    /// <summary>On a computed clock: ticks at which <see cref="Advance"/> has to be called; on the host's never.</summary>
    public ulong NextEvent { get; private set; } = ulong.MaxValue;

    /// <summary>Clock ticks of so many nanoseconds.</summary>
    public ulong TicksOf(double nanoseconds) => (ulong)Math.Round(nanoseconds * 1e-9 * _clock.TicksPerSecond);

    /// <summary>Adds a front end, before the guest runs.</summary>
    public void Add(DiskFrontEnd frontEnd) => _frontEnds.Add(frontEnd);

    // ------------------------------------------------------------------------------------------------ the vCPU thread's side

    /// <summary>vCPU thread: a request that does not lie in guest memory.</summary>
    public void Submit(DiskRequest request)
    {
        request.Seen = _clock.Ticks;
        _incoming.Enqueue(request);
        Notify();
    }

    /// <summary>vCPU thread: there is something to do.</summary>
    public void Notify()
    {
        if (_computed)
        {
            lock (Gate)
            {
                Collect();
                _ = NothingToTake();
                Schedule();
            }

            return;
        }

        _ = Interlocked.Increment(ref _notified);
        StartThread();
        _signal.Set();
    }

    /// <summary>vCPU thread: gives up whatever of a front end is not over, and does not complete it. With the gate held.</summary>
    public void Cancel(DiskFrontEnd frontEnd)
    {
        Collect(takesFromMemory: false);
        _ = _inService.RemoveAll(request => request.FrontEnd == frontEnd);
        for (int left = _waiting.Count; left > 0; left--)
        {
            DiskRequest request = _waiting.Dequeue();
            if (request.FrontEnd != frontEnd)
            {
                _waiting.Enqueue(request);
            }
        }

        Schedule();
    }

    /// <summary>
    /// Makes the vCPU thread call <see cref="Drain"/> before it handles another exit or enters the guest again.
    /// </summary>
    /// <param name="now">At once: the guest is brought out, or woken.</param>
    public void Post(bool now)
    {
        _ = Interlocked.Exchange(ref _posted, 1);
        if (now && Volatile.Read(ref _inGuest) != 0 && Interlocked.Exchange(ref _inGuest, 0) != 0)
        {
            _kick();
        }
    }

    /// <summary>vCPU thread: takes over what is posted.</summary>
    public void Drain()
    {
        _ = Interlocked.Exchange(ref _posted, 0);
        foreach (DiskFrontEnd frontEnd in _frontEnds)
        {
            frontEnd.Drain();
        }
    }

    /// <summary>vCPU thread: the guest is about to be entered, or to sleep.</summary>
    /// <returns>False when something is posted, and the guest must not be.</returns>
    public bool TryEnter()
    {
        // A device that posts looks whether the guest is entered after it has posted; this side looks after it has said so.
        Volatile.Write(ref _inGuest, 1);
        if (!_computed)
        {
            Interlocked.MemoryBarrier();
        }

        if (Volatile.Read(ref _posted) == 0)
        {
            return true;
        }

        Volatile.Write(ref _inGuest, 0);
        return false;
    }

    /// <summary>vCPU thread: the guest has been left.</summary>
    public void Left() => Volatile.Write(ref _inGuest, 0);

    /// <summary>
    /// vCPU thread, which is about to sleep: whether something is still to come of the disk. If so and nothing comes of it after
    /// all, the guest is kicked, so that the question can be asked again.
    /// </summary>
    public bool MayYetComplete()
    {
        if (_computed)
        {
            return NextEvent != ulong.MaxValue;
        }

        _ = Interlocked.Exchange(ref _watched, 1);
        return Volatile.Read(ref _settled) != Volatile.Read(ref _notified);
    }

    /// <summary>On a computed clock, vCPU thread: lets everything happen that is due.</summary>
    public void Advance(ulong now)
    {
        if (!_computed)
        {
            return;
        }

        lock (Gate)
        {
            _now = now;
            while (Step(now)) { }
            _ = NothingToTake();
            _now = 0;
            Schedule();
        }
    }

    /// <summary>vCPU thread, the guest being stopped: goes on, on another clock, with what is in flight.</summary>
    public void SwitchClock(IEngineClock clock, bool computed)
    {
        if (!_computed && computed)
        {
            StopThread();
        }

        lock (Gate)
        {
            if (!ReferenceEquals(clock, _clock))
            {
                Collect(takesFromMemory: false);
                ulong then = _clock.Ticks;
                ulong now = clock.Ticks;
                double rate = clock.TicksPerSecond / _clock.TicksPerSecond;
                ulong Convert(ulong ticks) =>
                    ticks >= then
                        ? now + (ulong)((ticks - then) * rate)
                        : now - Math.Min(now, (ulong)((then - ticks) * rate));
                foreach (DiskRequest request in _inService.Concat(_waiting))
                {
                    request.Seen = Convert(request.Seen);
                    request.Due = Convert(request.Due);
                }

                foreach (DiskFrontEnd frontEnd in _frontEnds)
                {
                    frontEnd.SwitchClock(Convert);
                }

                _freed = Convert(_freed);
                double nanoseconds = 1e9 / _clock.TicksPerSecond;
                _earlierLatencyTotal += _latencyTotal * nanoseconds;
                _earlierLatencyMaximum = Math.Max(_earlierLatencyMaximum, _latencyMaximum * nanoseconds);
                _latencyTotal = _latencyMaximum = 0;
                _clock = clock;
            }

            _computed = computed;
            if (computed)
            {
                Collect();
                _ = NothingToTake();
            }

            Schedule();
        }

        if (!computed)
        {
            Notify();
        }
    }

    // ------------------------------------------------------------------------------------------------ the service's context

    /// <summary>Service: a request that was found in guest memory.</summary>
    public void Enqueue(DiskRequest request)
    {
        _requests++;
        _waiting.Enqueue(request);
    }

    /// <summary>Service: a request that the guest made wrongly, and that is answered without having been one.</summary>
    public void CountError() => _errors++;

    private void Collect(bool takesFromMemory = true)
    {
        while (_incoming.TryDequeue(out DiskRequest? request))
        {
            Enqueue(request);
        }

        if (takesFromMemory)
        {
            try
            {
                foreach (DiskFrontEnd frontEnd in _frontEnds)
                {
                    frontEnd.Take();
                }
            }
            catch (GuestFailureException e)
            {
                Fail(e.Message);
            }
        }
    }

    // A frame of guest RAM that cannot be fetched ends the guest, as it would when the guest itself had touched it.
    private void Fail(string message)
    {
        Volatile.Write(ref _failure, message);
        _kick();
    }

    /// <summary>Does the one thing that is to be done first.</summary>
    /// <returns>False when there is none up to now.</returns>
    private bool Step(ulong now)
    {
        Collect();
        ulong due = _inService.Count > 0 ? _inService[0].Due : ulong.MaxValue;
        ulong begin =
            _waiting.Count > 0 && _inService.Count < _disk.Timing.QueueDepth
                ? Math.Max(_waiting.Peek().Seen, _freed)
                : ulong.MaxValue;
        ulong hold = Held();
        ulong first = Math.Min(Math.Min(due, begin), hold);
        if (first > now)
        {
            return false;
        }

        if (due == first)
        {
            Complete(_inService[0]);
        }
        else if (begin == first)
        {
            Begin(_waiting.Dequeue(), begin);
        }
        else
        {
            Release(hold);
        }

        return true;
    }

    private void Release(ulong hold)
    {
        try
        {
            foreach (DiskFrontEnd frontEnd in _frontEnds)
            {
                if (frontEnd.HoldUntil == hold)
                {
                    frontEnd.ReleaseHeld();
                }
            }
        }
        catch (GuestFailureException e)
        {
            Fail(e.Message);
        }
    }

    private ulong Held()
    {
        ulong hold = ulong.MaxValue;
        foreach (DiskFrontEnd frontEnd in _frontEnds)
        {
            hold = Math.Min(hold, frontEnd.HoldUntil);
        }

        return hold;
    }

    private void Begin(DiskRequest request, ulong at)
    {
        request.Due = at + TicksOf(_disk.Timing.ServiceNanoseconds(_begun++));
        try
        {
            if (!request.Failed)
            {
                request.Execute(_disk.Storage);
                _flushes += request.Operation == DiskOperation.Flush ? 1 : 0;
            }
        }
        catch (DiskErrorException e)
        {
            request.Failed = true;
            request.ErrorSector = e.Sector;
            _hostErrors++;
            _firstError ??= e.Message;
        }
        catch (GuestFailureException e)
        {
            request.Failed = true;
            Fail(e.Message);
        }

        int place = _inService.Count;
        while (place > 0 && _inService[place - 1].Due > request.Due)
        {
            place--;
        }

        _inService.Insert(place, request);
    }

    private void Complete(DiskRequest request)
    {
        _inService.RemoveAt(0);
        _freed = Math.Max(_freed, request.Due);
        ulong now = Math.Max(_computed ? request.Due : _clock.Ticks, request.Seen);
        ulong latency = now - request.Seen;
        _latencyTotal += latency;
        _latencyMaximum = Math.Max(_latencyMaximum, latency);
        _completions++;
        _errors += request.Failed ? 1 : 0;
        if (!request.Failed)
        {
            _bytesRead += request.Operation == DiskOperation.Read ? request.Bytes : 0;
            _bytesWritten += request.Operation == DiskOperation.Write ? request.Bytes : 0;
        }

        try
        {
            if (request.FrontEnd.Complete(request))
            {
                request.FrontEnd.Completed(now);
            }
        }
        catch (GuestFailureException e)
        {
            Fail(e.Message);
        }
    }

    // A request that can begin is due when a place is free; on the host's clock it has begun by then.
    private void Schedule()
    {
        ulong next = Math.Min(_inService.Count > 0 ? _inService[0].Due : ulong.MaxValue, Held());
        if (_waiting.Count > 0 && _inService.Count < _disk.Timing.QueueDepth)
        {
            next = Math.Min(next, Math.Max(_waiting.Peek().Seen, _freed));
        }

        _due = next;
        NextEvent = _computed ? next : ulong.MaxValue;
    }

    // ------------------------------------------------------------------------------------------------ the thread

    private void StartThread()
    {
        if (_thread is not null || _stopping)
        {
            return;
        }

        lock (_threadGate)
        {
            if (_thread is null && !_stopping)
            {
                _thread = new Thread(Serve) { IsBackground = true, Name = "disk" };
                _thread.Start();
            }
        }
    }

    private void Serve()
    {
        DeviceSignal.BePunctual();
        while (!_stopping)
        {
            long notified = Volatile.Read(ref _notified);
            ulong due;
            lock (Gate)
            {
                if (_stopping || Step(_clock.Ticks))
                {
                    continue;
                }

                if (!NothingToTake())
                {
                    continue;
                }

                Schedule();
                due = _due;
            }

            if (due == ulong.MaxValue)
            {
                _ = Interlocked.Exchange(ref _settled, notified);
                if (Interlocked.Exchange(ref _watched, 0) != 0)
                {
                    _kick();
                }
            }

            _signal.Wait(NanosecondsUntil(due));
        }

        if (_abandoned)
        {
            _disk.Dispose();
        }
    }

    private bool NothingToTake()
    {
        bool nothing = true;
        try
        {
            foreach (DiskFrontEnd frontEnd in _frontEnds)
            {
                nothing &= frontEnd.AllowNotifications();
            }
        }
        catch (GuestFailureException e)
        {
            Fail(e.Message);
        }

        return nothing;
    }

    private long NanosecondsUntil(ulong ticks)
    {
        if (ticks == ulong.MaxValue)
        {
            return -1;
        }

        ulong now = _clock.Ticks;
        return ticks <= now ? 0 : (long)((ticks - now) * 1e9 / _clock.TicksPerSecond) + 1;
    }

    private void StopThread()
    {
        Thread? thread;
        lock (_threadGate)
        {
            _stopping = true;
            thread = _thread;
        }

        _signal.Set();
        thread?.Join();
        lock (_threadGate)
        {
            _thread = null;
            _stopping = false;
        }
    }

    // ------------------------------------------------------------------------------------------------ the account

    /// <summary>What has been done so far. While the guest runs the figures need not be of one moment.</summary>
    public DiskStatistics Statistics()
    {
        double nanoseconds = 1e9 / _clock.TicksPerSecond;
        return new DiskStatistics(
            _requests,
            _completions,
            _errors,
            _bytesRead,
            _bytesWritten,
            _flushes,
            _frontEnds.Sum(frontEnd => frontEnd.Interrupts),
            _earlierLatencyTotal + (_latencyTotal * nanoseconds),
            Math.Max(_earlierLatencyMaximum, _latencyMaximum * nanoseconds)
        );
    }

    /// <summary>What went wrong on the host's side, in one line; null when nothing did.</summary>
    public string? HostError =>
        _firstError is not { } first ? null
        : _hostErrors > 1 ? $"{first} (the first of {_hostErrors} errors)"
        : first;

    /// <summary>
    /// Gives the service up with its VM: the thread ends by itself and closes the disk, and nothing waits for it.
    /// </summary>
    public void Abandon()
    {
        _abandoned = true;
        lock (_threadGate)
        {
            _stopping = true;
            if (_thread is null)
            {
                _disk.Dispose();
            }
        }

        _signal.Set();
    }

    /// <summary>Ends the thread and closes the disk.</summary>
    public void Dispose()
    {
        StopThread();
        _stopping = true;
        _disk.Dispose();
    }
}
