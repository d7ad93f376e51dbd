using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Vmm.Interrupts;

/// <summary>
/// The one place at which interrupts from other threads than the vCPU's come in. A line goes to the guest by the best way that the engine
/// and the guest have: through the host's kernel, by a bit in the shared info page, by guest code that looks for it, or else by an exit, at
/// which it is handed to the core's interrupt controllers.
/// </summary>
internal sealed class PostedInterrupts
{
    private readonly Lock _gate = new();
    private readonly VirtualCpu _cpu;
    private readonly GuestMemory _memory;
    private readonly InterruptController _controller;
    private readonly long[] _requests = new long[InterruptController.Lines]; // those that passed the controllers by
    private readonly long[] _direct = new long[InterruptController.Lines];
    private readonly InlineGate[] _gates = new InlineGate[InterruptController.Lines];
    private IExecutionEngine _engine;
    private Hypercalls? _hypercalls;
    private ulong _raised;
    private ulong _inline; // those of the lines raised that guest code has been told of
    private ulong _pulsed; // lines that nobody lowers
    private ulong _directLines; // lines that may go another way than by an exit
    private int _sources;
    private bool _inGuest;
    private bool _closed;
    private int _gateCount;
    private (long Version, ulong Idt, ushort IdtLimit, ushort Cs, int Cpl, bool Nested) _armedFor = (
        -1,
        0,
        0,
        0,
        0,
        false
    );

    public PostedInterrupts(VirtualCpu cpu, GuestMemory memory, InterruptController controller, IExecutionEngine engine)
    {
        _cpu = cpu;
        _memory = memory;
        _controller = controller;
        _engine = engine;
    }

    /// <summary>Something outside the VM can raise a line at any time.</summary>
    public bool MayRaise => Volatile.Read(ref _sources) > 0 || Volatile.Read(ref _raised) != 0;

    /// <summary>Whether a line goes the direct way wherever there is one.</summary>
    public void SetDirect(int line) => _directLines |= 1UL << line;

    /// <summary>One more who may raise lines of a guest that sleeps.</summary>
    public void Connect() => _ = Interlocked.Increment(ref _sources);

    /// <summary>The guest's other ways in have changed.</summary>
    public void Reconnect(IExecutionEngine engine, Hypercalls? hypercalls)
    {
        lock (_gate)
        {
            _engine = engine;
            _hypercalls = hypercalls;
            _armedFor.Version = -1;
        }
    }

    /// <summary>From any thread: a device's line rises. Of a line that is up already nothing more is seen.</summary>
    public void Raise(int line)
    {
        ulong bit = 1UL << line;
        lock (_gate)
        {
            if (_closed)
            {
                return;
            }

            if ((_directLines & bit) != 0 && _engine.KernelInterrupts is { } kernel)
            {
                _requests[line]++;
                _direct[line]++;
                kernel.Raise(line);
                return;
            }

            if ((_directLines & bit) != 0 && _hypercalls is { } hypercalls)
            {
                bool news = hypercalls.RaiseDirectly(line, out bool asleep);
                _requests[line] += news ? 1 : 0;
                _direct[line] += news ? 1 : 0;
                if (asleep)
                {
                    _engine.Kick();
                }

                return;
            }

            if ((_directLines & bit) != 0 && _engine.InlineInterrupts?.TryRaise(line) == true)
            {
                _inline |= bit;
                return;
            }

            // Behind one that guest code has been told of nothing of the line comes before that one's end of interrupt, which is an exit.
            _raised |= bit;
            if (_inGuest && (_inline & bit) == 0)
            {
                _inGuest = false; // one kick will do
                _engine.Kick();
            }
        }
    }

    /// <summary>From any thread: the line rises, and falls when that has been seen.</summary>
    public void Pulse(int line)
    {
        lock (_gate)
        {
            _pulsed |= 1UL << line;
        }

        Raise(line);
    }

    /// <summary>A source has gone: a guest that sleeps is asked anew whether anything can wake it.</summary>
    public void Disconnect()
    {
        _ = Interlocked.Decrement(ref _sources);
        lock (_gate)
        {
            if (!_closed)
            {
                _engine.Kick();
            }
        }
    }

    /// <summary>vCPU thread: a device's line falls.</summary>
    public void Lower(int line)
    {
        lock (_gate)
        {
            _raised &= ~(1UL << line);
        }

        _controller.SetLine(line, false);
    }

    /// <summary>vCPU thread: the guest is about to be entered, or to sleep.</summary>
    /// <param name="arms">It is entered for longer than one instruction.</param>
    /// <returns>False when there is something to drain first.</returns>
    public bool TryEnter(bool arms)
    {
        IInlineInterrupts? inline = arms && _directLines != 0 ? _engine.InlineInterrupts : null;
        if (inline is not null)
        {
            FindGates();
        }

        lock (_gate)
        {
            if (_raised != 0)
            {
                return false;
            }

            inline?.Arm(_gates.AsSpan(0, _gateCount));
            _inGuest = true;
            return true;
        }
    }

    /// <summary>vCPU thread: the guest has been left. What it has been given meanwhile the controllers learn now.</summary>
    public void Left()
    {
        int delivered = -1;
        lock (_gate)
        {
            _inGuest = false;
            if (_directLines != 0 && _engine.InlineInterrupts is { } inline)
            {
                delivered = inline.Disarm();
                _raised |= _inline & ~(delivered >= 0 ? 1UL << delivered : 0);
                _inline = 0;
            }
        }

        if (delivered >= 0)
        {
            _direct[delivered]++;
            _controller.SetLine(delivered, true);
            _ = _controller.Acknowledge();
            Release(delivered);
        }

        Drain();
    }

    /// <summary>vCPU thread: hands to the controllers what has been raised.</summary>
    public void Drain()
    {
        if (Volatile.Read(ref _raised) == 0)
        {
            return;
        }

        ulong raised;
        lock (_gate)
        {
            raised = _raised;
            _raised = 0;
        }

        for (int line = 0; raised != 0; line++, raised >>= 1)
        {
            if ((raised & 1) != 0)
            {
                _controller.SetLine(line, true);
                Release(line);
            }
        }
    }

    private void Release(int line)
    {
        if ((_pulsed & (1UL << line)) != 0)
        {
            _controller.Release(line);
        }
    }

    /// <summary>Whether that has passed the controllers by.</summary>
    public long RequestsPast(int line) => Interlocked.Read(ref _requests[line]);

    /// <summary>Of these, how many the guest has not taken yet as far as that can be seen.</summary>
    public bool IsWaiting(int line) =>
        _hypercalls is { } hypercalls && (hypercalls.WaitingDirectLines & (1UL << line)) != 0;

    /// <summary>Interrupts that have gone without an exit.</summary>
    public long Direct(int line) => Interlocked.Read(ref _direct[line]);

    /// <summary>The VM goes: whoever raises a line from now on raises nothing.</summary>
    public void Close()
    {
        lock (_gate)
        {
            _closed = true;
        }
    }

    // Seldom: what the gates depend on changes with an interrupt, not with an exit. That their bytes in memory are still the same is looked at
    // when one is used.
    private void FindGates()
    {
        var state = (
            _controller.Version,
            _cpu.Idtr.Base,
            _cpu.Idtr.Limit,
            _cpu.Cs.Selector,
            _cpu.Cpl,
            (_cpu.Rflags & Rflags.Nt) != 0
        );
        if (state == _armedFor)
        {
            return;
        }

        _armedFor = state;
        _gateCount = 0;
        if (_cpu.Cpl != 0 || (_cpu.Rflags & Rflags.Nt) != 0 || _controller.Requested)
        {
            return;
        }

        for (int line = 0; line < InterruptController.Lines; line++)
        {
            if (
                (_directLines & (1UL << line)) != 0
                && _controller.VectorIfRaised(line) is { } vector
                && FindGate(line, vector) is { } gate
            )
            {
                _gates[_gateCount++] = gate;
            }
        }
    }

    // A plain one: a present interrupt gate to the code segment that the CPU has, without a stack of its own (Intel SDM vol. 3A, figure 6-8).
    private InlineGate? FindGate(int line, byte vector)
    {
        const int size = 16;
        const ulong meaning = 0x0000_FF07_FFFF_0000; // selector, IST, type, DPL and P of the first eight bytes
        const ulong interruptGate = 0x0000_8E00_0000_0000;
        const ulong dpl = 0x0000_6000_0000_0000;
        ulong address = _cpu.Idtr.Base + ((ulong)vector * size);
        if (
            ((vector * size) + size - 1) > _cpu.Idtr.Limit
            || (address & (GuestMemory.PageSize - 1)) > GuestMemory.PageSize - size
            || !PageWalker.IsCanonical(address)
            || PageWalker.Walk(_cpu, _memory, address, PageAccess.Read, commit: false) is not { Fault: false } page
            || !_memory.Contains(page.PhysicalAddress, size)
        )
        {
            return null;
        }

        ulong low = _memory.Read<ulong>(page.PhysicalAddress);
        ulong high = _memory.Read<ulong>(page.PhysicalAddress + sizeof(ulong));
        ulong expected = interruptGate | ((ulong)_cpu.Cs.Selector << 16);
        ulong handler = (low & 0xFFFF) | ((low >> 32) & 0xFFFF_0000) | (high << 32);
        return (low & meaning & ~dpl) == expected && PageWalker.IsCanonical(handler)
            ? new InlineGate(line, vector, handler, address, low, high)
            : null;
    }
}
