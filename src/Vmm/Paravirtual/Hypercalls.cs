using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Emulation;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Paravirtual;

/// <summary>
/// The paravirtual interface of one VM: what its hypercalls do, and its side of the shared info page. What the guest hands over is checked,
/// and read once; what is wrong with it is an error code for the guest.
/// </summary>
public sealed unsafe class Hypercalls : Interrupts.ITimer
{
    /// <summary>Port that engines leave the guest by which have no better way: EAX is the number.</summary>
    public const ushort Port = 0xF8;

    /// <summary>Most records of one batch.</summary>
    public const int MaximumBatch = 512;

    private const ulong Nothing = ulong.MaxValue;
    private const int UpdatesAtATime = 64;

    private readonly VirtualCpu _cpu;
    private readonly GuestMemory _memory;
    private readonly InstructionEmulator _emulator;
    private readonly InterruptController _interrupts;
    private readonly SerialPort _console;
    private IExecutionEngine _engine;
    private ulong _startTicks; // what the clock said at _startNanoseconds of system time
    private double _startNanoseconds;
    private double _timer = double.PositiveInfinity; // system time at which the timer's interrupt comes
    private bool _clockIsKernels;

    internal Hypercalls(
        VirtualCpu cpu,
        GuestMemory memory,
        InstructionEmulator emulator,
        InterruptController interrupts,
        SerialPort console,
        IExecutionEngine engine
    )
    {
        _cpu = cpu;
        _memory = memory;
        _emulator = emulator;
        _interrupts = interrupts;
        _console = console;
        _engine = engine;
        _startTicks = engine.Clock.Ticks;
    }

    /// <summary>The guest has been loaded: fills both pages and brings the CPU into the state in which such a guest starts.</summary>
    internal void Start()
    {
        HypercallPage.Fill(_memory, _engine);
        *Shared = default;
        Shared->InterruptMask = 1;
        _cpu.Rflags |= Rflags.If;
        WriteClock();
    }

    /// <summary>Another engine goes on; system time and the timer go on from where they are.</summary>
    internal void SwitchEngine(IExecutionEngine engine)
    {
        _startNanoseconds = SystemTime;
        _startTicks = engine.Clock.Ticks;
        _engine = engine;
        HypercallPage.Fill(_memory, engine);
        _cpu.Rip = _cpu.Cpl == 0 ? HypercallPage.GoOnFrom(_cpu.Rip) : _cpu.Rip;
        ShowFault(_cpu.Cr2); // where hardware has delivered the last one, only CR2 has it
        WriteClock();
        Schedule();
    }

    // ------------------------------------------------------------------------------------------------ shared info page

    // Touched, so that a frame that is not on this host is fetched first.
    private SharedInformation* Shared => (SharedInformation*)_memory.Touch(PhysicalLayout.SharedInfoPage);

    /// <summary>The guest holds interrupts back.</summary>
    internal bool IsMasked => Volatile.Read(ref Shared->InterruptMask) != 0;

    /// <summary>A line is pending that the guest looks for itself.</summary>
    internal bool HasDirectLines => WaitingDirectLines != 0;

    /// <summary>These lines.</summary>
    internal ulong WaitingDirectLines => Volatile.Read(ref Shared->DirectLines);

    /// <summary>Lets the guest know that an interrupt waits here, or that none does any more.</summary>
    internal void ShowPending(bool pending)
    {
        ref ulong word = ref Shared->Pending;
        _ = pending
            ? Interlocked.Or(ref word, SharedInformation.PendingInVmm)
            : Interlocked.And(ref word, ~SharedInformation.PendingInVmm);
    }

    /// <summary>
    /// From any thread: a device's line goes to the guest without an exit.
    /// </summary>
    /// <param name="line">The line.</param>
    /// <param name="asleep">The vCPU sleeps and has to be woken by a kick.</param>
    /// <returns>False when the line was pending already: of two interrupts the guest sees one.</returns>
    internal bool RaiseDirectly(int line, out bool asleep)
    {
        SharedInformation* shared = Shared;
        ulong before = Interlocked.Or(ref shared->DirectLines, 1UL << line);
        _ = Interlocked.Or(ref shared->Pending, SharedInformation.PendingDirectly); // a full barrier: the sleeper looks the other way round
        asleep = Volatile.Read(ref shared->Blocked) != 0;
        return (before & (1UL << line)) == 0;
    }

    /// <summary>Before the vCPU sleeps, and when it has woken.</summary>
    internal void ShowBlocked(bool blocked) => _ = Interlocked.Exchange(ref Shared->Blocked, blocked ? 1UL : 0);

    /// <summary>The VMM delivers a page fault: what CR2 holds is shown where the guest can read it without a trap.</summary>
    internal void ShowFault(ulong address) => Shared->FaultAddress = address;

    private double SystemTime =>
        _startNanoseconds + ((_engine.Clock.Ticks - _startTicks) * (1e9 / _engine.Clock.TicksPerSecond));

    private void WriteClock()
    {
        _clockIsKernels = _engine.ProvideParavirtualClock(
            PhysicalLayout.SharedInfoPage + (ulong)((byte*)&Shared->Clock - (byte*)Shared)
        );
        if (_clockIsKernels)
        {
            return;
        }

        // What the guest's RDTSC gives it: where that does not come to the VMM, the host's counter itself.
        bool readsHost = _engine.Capabilities.Holes.Any(hole => hole.Names.Contains("rdtsc"));
        ParavirtualClock* clock = &Shared->Clock;
        uint version = clock->Version & ~1u;
        Volatile.Write(ref clock->Version, version + 1);
        (clock->TscShift, clock->TscToSystemMultiplier) = ParavirtualClock.ScaleOf(_engine.Clock.TicksPerSecond);
        ulong ticks = _engine.Clock.Ticks;
        clock->TscTimestamp = readsHost ? ticks : ticks + _cpu.TscOffset;
        clock->SystemTime = (ulong)SystemTime;
        clock->Flags = ParavirtualClock.TscStable;
        Volatile.Write(ref clock->Version, version + 2);
    }

    // ------------------------------------------------------------------------------------------------ timer

    /// <inheritdoc/>
    public ulong NextEvent { get; private set; } = Nothing;

    /// <inheritdoc/>
    public void Advance(ulong now)
    {
        if (now >= NextEvent)
        {
            _timer = double.PositiveInfinity;
            NextEvent = Nothing;
            _interrupts.Pulse(IntervalTimer.Line);
        }
    }

    private void Schedule()
    {
        double ticks = (_timer - _startNanoseconds) * _engine.Clock.TicksPerSecond / 1e9;
        NextEvent =
            double.IsPositiveInfinity(_timer) || ticks >= Nothing - _startTicks
                ? Nothing
                : _startTicks + (ulong)Math.Max(0, Math.Ceiling(ticks));
    }

    private long SetTimer(ulong nanoseconds)
    {
        _timer = nanoseconds == 0 ? double.PositiveInfinity : nanoseconds + KernelClockLead();
        Schedule();
        return 0;
    }

    // A clock that the kernel keeps counts from a start of its own: what it is ahead of this one is to be taken off.
    private double KernelClockLead()
    {
        if (!_clockIsKernels)
        {
            return 0;
        }

        ParavirtualClock clock = Shared->Clock;
        return SystemTime - clock.Nanoseconds(_engine.Clock.Ticks + _cpu.TscOffset);
    }

    // ------------------------------------------------------------------------------------------------ hypercalls

    /// <summary>Does the hypercall that the guest has made: RAX is the number, RIP behind the exit.</summary>
    /// <param name="guestEvent">For <see cref="EmulationResult.Event"/>: what to deliver.</param>
    public EmulationResult Invoke(out GuestEvent guestEvent)
    {
        guestEvent = default;
        ulong number = _cpu.Rax & uint.MaxValue;
        if (_cpu.Cpl == 3)
        {
            _cpu.Rax = Error(HypercallError.NotPermitted);
            return EmulationResult.Done;
        }

        switch ((HypercallNumber)number)
        {
            case HypercallNumber.InterruptReturn:
                return ReturnFromInterrupt(out guestEvent);
            case HypercallNumber.Block:
                _cpu.Rax = 0;
                Volatile.Write(ref Shared->InterruptMask, 0);
                _cpu.Rflags |= Rflags.If;
                return HasDirectLines ? EmulationResult.Done : EmulationResult.Halted;
            case HypercallNumber.Yield:
                _cpu.Rax = 0;
                ShowPending(false); // the run loop shows what is still held back
                Thread.Yield();
                return EmulationResult.Done;
            case HypercallNumber.Multicall:
                _cpu.Rax = (ulong)Multicall(_cpu[Gpr.Rdi], _cpu[Gpr.Rsi]);
                return EmulationResult.Done;
            default:
                _cpu.Rax = (ulong)Call(number, _cpu[Gpr.Rdi], _cpu[Gpr.Rsi]);
                return EmulationResult.Done;
        }
    }

    private static ulong Error(int error) => (ulong)-(long)error;

    private long Call(ulong number, ulong first, ulong second) =>
        number > int.MaxValue
            ? -HypercallError.Unknown
            : (HypercallNumber)number switch
            {
                HypercallNumber.Features => (1L << HypercallPage.Count) - 1,
                HypercallNumber.SetPageTableBase => SetPageTableBase(first),
                HypercallNumber.UpdatePageTables => UpdatePageTables(first, second),
                HypercallNumber.Flush => Flush(first),
                HypercallNumber.SetTimer => SetTimer(first),
                HypercallNumber.EndOfInterrupt => EndOfInterrupt(first),
                HypercallNumber.ConsoleWrite => WriteConsole(first, second),
                _ => -HypercallError.Unknown,
            };

    private long Multicall(ulong records, ulong count)
    {
        ulong size = (ulong)sizeof(MulticallEntry);
        if (count > MaximumBatch)
        {
            return -HypercallError.TooBig;
        }

        if (count > 0 && !_memory.Contains(records, count * size))
        {
            return -HypercallError.BadAddress;
        }

        for (ulong i = 0; i < count; i++)
        {
            ulong at = records + (i * size);
            MulticallEntry entry = _memory.Read<MulticallEntry>(at);
            bool alone =
                entry.Number
                is (ulong)HypercallNumber.Multicall
                    or (ulong)HypercallNumber.Block
                    or (ulong)HypercallNumber.InterruptReturn
                    or (ulong)HypercallNumber.Yield;
            long result = alone ? -HypercallError.Invalid : Call(entry.Number, entry.First, entry.Second);
            _memory.Write(at + size - sizeof(long), result);
        }

        return 0;
    }

    private long SetPageTableBase(ulong value)
    {
        if ((value & ~((1UL << PageWalker.PhysicalAddressBits) - 1)) != 0)
        {
            return -HypercallError.Invalid;
        }

        Synchronize();
        _cpu.Cr3 = value;
        _emulator.SwitchAddressSpace();
        TakeOver();
        return 0;
    }

    private long UpdatePageTables(ulong records, ulong count)
    {
        ulong size = (ulong)Unsafe.SizeOf<PageTableUpdate>();
        if (count > MaximumBatch)
        {
            return -HypercallError.TooBig;
        }

        if (count > 0 && !_memory.Contains(records, count * size))
        {
            return -HypercallError.BadAddress;
        }

        Span<PageTableUpdate> updates = stackalloc PageTableUpdate[UpdatesAtATime];
        long result = (long)count;
        for (ulong done = 0; done < count && result >= 0; )
        {
            Span<PageTableUpdate> part = updates[..(int)Math.Min(count - done, UpdatesAtATime)];
            _memory.Read(records + (done * size), MemoryMarshal.AsBytes(part));
            done += (ulong)part.Length;
            result = UpdatePageTables(part, result);
        }

        FlushAll();
        return result;
    }

    // Neighbouring entries are written as one: what is derived from them is looked for once.
    private long UpdatePageTables(ReadOnlySpan<PageTableUpdate> updates, long result)
    {
        Span<ulong> values = stackalloc ulong[UpdatesAtATime];
        for (int i = 0; i < updates.Length; )
        {
            ulong first = updates[i].Entry;
            if (first % sizeof(ulong) != 0)
            {
                return -HypercallError.Invalid;
            }

            int length = 0;
            while (
                i < updates.Length
                && updates[i].Entry == first + ((ulong)length * sizeof(ulong))
                && _memory.Contains(updates[i].Entry, sizeof(ulong))
            )
            {
                values[length++] = updates[i++].Value;
            }

            if (length == 0)
            {
                return -HypercallError.BadAddress;
            }

            _memory.Write(first, MemoryMarshal.AsBytes(values[..length]));
        }

        return result;
    }

    // Which linear addresses an entry serves is not the guest's to say here.
    private void FlushAll()
    {
        Synchronize();
        _emulator.SwitchAddressSpace();
        TakeOver();
    }

    private long Flush(ulong address)
    {
        if (address == ulong.MaxValue)
        {
            FlushAll();
        }
        else if (PageWalker.IsCanonical(address))
        {
            _emulator.InvalidatePage(address);
        }

        return 0;
    }

    private long EndOfInterrupt(ulong line)
    {
        const uint specific = 0x60; // OCW2: specific end of interrupt
        const uint cascade = 2;
        if (line >= InterruptController.Lines)
        {
            return -HypercallError.Invalid;
        }

        if (line >= 8)
        {
            _interrupts.Write(InterruptController.SlavePort, 1, specific | (uint)(line - 8));
            _interrupts.Write(InterruptController.MasterPort, 1, specific | cascade);
        }
        else
        {
            _interrupts.Write(InterruptController.MasterPort, 1, specific | (uint)line);
        }

        return 0;
    }

    private long WriteConsole(ulong address, ulong length)
    {
        if (length > GuestMemory.PageSize)
        {
            return -HypercallError.TooBig;
        }

        if (length > 0 && !_memory.Contains(address, length))
        {
            return -HypercallError.BadAddress;
        }

        Span<byte> text = stackalloc byte[(int)length];
        _memory.Read(address, text);
        foreach (byte character in text)
        {
            _console.Write(SerialPort.FirstPort, 1, character);
        }

        return (long)length;
    }

    private EmulationResult ReturnFromInterrupt(out GuestEvent guestEvent)
    {
        // R11, RCX and RAX as the page has saved them, the return address, the mask, and the frame.
        const int returnAddress = HypercallPage.SavedByReturn;
        const int mask = returnAddress + sizeof(ulong);
        const int frame = mask + sizeof(ulong);
        Synchronize();
        EmulationResult result = EmulationResult.Event;
        if (
            _emulator.TryReadStack(0, out ulong r11, out guestEvent)
            && _emulator.TryReadStack(sizeof(ulong), out ulong rcx, out guestEvent)
            && _emulator.TryReadStack(2 * sizeof(ulong), out ulong rax, out guestEvent)
            && _emulator.TryReadStack(mask, out ulong newMask, out guestEvent)
        )
        {
            _cpu.Rsp += frame;
            result = _emulator.ReturnFromInterrupt(out guestEvent);
            if (result == EmulationResult.Event)
            {
                _cpu.Rsp -= frame;
            }
            else
            {
                _cpu.Rax = rax;
                _cpu[Gpr.Rcx] = rcx;
                _cpu[Gpr.R8 + 3] = r11;
                Volatile.Write(ref Shared->InterruptMask, newMask);
            }
        }

        if (result == EmulationResult.Event)
        {
            _cpu.Rip = HypercallPage.BeforeReturnExit; // a handler that mends it comes back here
        }

        TakeOver();
        return result;
    }

    // Where the hardware keeps the CPU's state.
    private void Synchronize()
    {
        if (_engine.Capabilities.DeliversEvents)
        {
            _engine.SaveLazyState();
        }
    }

    private void TakeOver()
    {
        if (_engine.Capabilities.DeliversEvents)
        {
            _engine.LoadLazyState();
        }
    }
}
