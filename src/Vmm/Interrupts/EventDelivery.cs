using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Emulation;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Interrupts;

/// <summary>Delivers one event through the guest's IDT as the processor does in 64-bit mode (Intel SDM vol. 3A, section 6.14).</summary>
public sealed class EventDelivery
{
    private const int GateSize = 16;
    private const uint ErrorExternal = 1;
    private const uint ErrorIdt = 2;

    // 64-bit TSS (SDM vol. 3A, figure 8-11)
    private const int TssStackPointers = 4;
    private const int TssInterruptStacks = 36;

    private readonly VirtualCpu _cpu;
    private readonly GuestAddressSpace _space;
    private readonly DescriptorTables _descriptors;
    private readonly Func<string?>? _describeNext;

    /// <summary>Creates the delivery of one VM.</summary>
    /// <param name="cpu">The CPU.</param>
    /// <param name="memory">Guest RAM.</param>
    /// <param name="absent">What answers where there is no RAM.</param>
    /// <param name="describeNext">Names the instruction at RIP, or null, for the message of a triple fault.</param>
    public EventDelivery(
        VirtualCpu cpu,
        GuestMemory memory,
        PhysicalBus? absent = null,
        Func<string?>? describeNext = null
    )
    {
        _cpu = cpu;
        _space = new GuestAddressSpace(cpu, memory, absent);
        _descriptors = new DescriptorTables(cpu, _space);
        _describeNext = describeNext;
    }

    /// <summary>
    /// Pushes the frame and enters the handler, or, when that faults, goes on with the fault, a double fault, and at last a
    /// triple fault. All of one delivery happens or none of it.
    /// </summary>
    /// <exception cref="GuestFailureException">Triple fault: the guest cannot go on.</exception>
    public void Deliver(GuestEvent guestEvent)
    {
        GuestEvent current = guestEvent;
        Obstacle first = default;
        for (bool nested = false; ; nested = true)
        {
            if (current.Kind == GuestEventKind.Exception && current.Number == Vector.PageFault)
            {
                _cpu.Cr2 = current.FaultAddress;
            }

            if (TryDeliver(current, out GuestEvent fault, out Obstacle obstacle))
            {
                return;
            }

            first = nested ? first : obstacle;
            if (current.Kind == GuestEventKind.Exception && current.Number == Vector.DoubleFault)
            {
                throw new GuestFailureException(TripleFault(guestEvent, first));
            }

            current = IsDoubleFault(current, fault) ? GuestEvent.Exception(Vector.DoubleFault) : fault;
        }
    }

    /// <summary>Which pairs of exceptions become a double fault: SDM vol. 3A, table 6-5.</summary>
    private static bool IsDoubleFault(in GuestEvent first, in GuestEvent second)
    {
        if (first.Kind != GuestEventKind.Exception)
        {
            return false;
        }

        return IsContributory(first.Number) && IsContributory(second.Number)
            || first.Number == Vector.PageFault && (second.Number == Vector.PageFault || IsContributory(second.Number));
    }

    private static bool IsContributory(byte vector) =>
        vector
            is Vector.DivideError
                or Vector.InvalidTss
                or Vector.SegmentNotPresent
                or Vector.StackFault
                or Vector.GeneralProtection;

    private bool TryDeliver(in GuestEvent guestEvent, out GuestEvent fault, out Obstacle obstacle)
    {
        bool software = guestEvent.Kind == GuestEventKind.SoftwareInterrupt;
        uint external = software ? 0 : ErrorExternal;
        if (
            !TryReadGate(guestEvent, external, out Gate gate, out fault, out obstacle)
            || !TryReadTarget(gate, external, out SegmentDescriptor code, out fault, out obstacle)
        )
        {
            return false;
        }

        int newCpl = code.IsConforming ? _cpu.Cpl : code.Dpl;
        bool changesRing = newCpl != _cpu.Cpl;
        ulong stack = _cpu.Rsp;
        if (
            (gate.InterruptStack != 0 || changesRing)
            && !TryReadStackPointer(gate, newCpl, external, out stack, out fault, out obstacle)
        )
        {
            return false;
        }

        bool pushesError = guestEvent.Kind == GuestEventKind.Exception && Vector.HasErrorCode(guestEvent.Number);
        int words = pushesError ? 6 : 5;
        ulong top = (stack & ~15UL) - ((ulong)words * 8);
        Span<ulong> frame = stackalloc ulong[6];
        int at = pushesError ? 1 : 0;
        frame[0] = guestEvent.ErrorCode;
        frame[at] = _cpu.Rip + (software ? guestEvent.InstructionLength : 0u);
        frame[at + 1] = _cpu.Cs.Selector;
        frame[at + 2] = PushedFlags(guestEvent);
        frame[at + 3] = _cpu.Rsp;
        frame[at + 4] = _cpu.Ss.Selector;

        PageAccess user = newCpl == 3 ? PageAccess.User : 0;
        if (!PageWalker.IsCanonical(top) || !PageWalker.IsCanonical(stack))
        {
            fault = GuestEvent.Exception(Vector.StackFault, external);
            obstacle = new Obstacle("the stack pointer is not canonical:", stack);
            return false;
        }

        // The frame goes last: when it is written nothing can fail any more.
        if (
            !_space.TryProbe(top, words * 8, PageAccess.Write | user, out fault)
            || !_descriptors.TryMarkAccessed(code, out fault)
            || !_space.TryWrite(
                top,
                System.Runtime.InteropServices.MemoryMarshal.AsBytes(frame[..words]),
                user,
                out fault
            )
        )
        {
            obstacle = new Obstacle("the frame cannot be pushed at", top);
            return false;
        }

        _cpu.Rsp = top;
        _cpu.Rip = gate.Offset;
        _cpu.Cs = code.ToSegment((ushort)((gate.Selector & ~3) | newCpl));
        if (changesRing)
        {
            _cpu.Ss = Segment.Null with { Selector = (ushort)newCpl };
        }

        ulong cleared = Rflags.Tf | Rflags.Nt | Rflags.Rf | Rflags.Vm | (gate.IsInterrupt ? Rflags.If : 0);
        _cpu.Rflags &= ~cleared;
        _cpu.InterruptShadow = false;
        _cpu.Halted = false;
        return true;
    }

    private bool TryReadGate(
        in GuestEvent guestEvent,
        uint external,
        out Gate gate,
        out GuestEvent fault,
        out Obstacle obstacle
    )
    {
        gate = default;
        obstacle = default;
        uint offset = (uint)guestEvent.Number * GateSize;
        uint code = ((uint)guestEvent.Number << 3) | ErrorIdt | external;
        if (offset + GateSize - 1 > _cpu.Idtr.Limit)
        {
            fault = GuestEvent.Exception(Vector.GeneralProtection, code);
            obstacle = new Obstacle("IDT limit", _cpu.Idtr.Limit);
            return false;
        }

        ulong address = _cpu.Idtr.Base + offset;
        if (
            !_space.TryRead(address, PageAccess.Read, out ulong low, out fault)
            || !_space.TryRead(address + 8, PageAccess.Read, out ulong high, out fault)
        )
        {
            obstacle = new Obstacle("the gate cannot be read at", address);
            return false;
        }

        gate = new Gate(low, high);
        if (!gate.IsValid || (guestEvent.Kind == GuestEventKind.SoftwareInterrupt && gate.Dpl < _cpu.Cpl))
        {
            fault = GuestEvent.Exception(Vector.GeneralProtection, code);
            obstacle = new Obstacle(
                gate.IsValid ? "the gate's DPL is" : "the gate has type",
                gate.IsValid ? (ulong)gate.Dpl : (ulong)gate.Type
            );
            return false;
        }

        if (!gate.Present)
        {
            fault = GuestEvent.Exception(Vector.SegmentNotPresent, code);
            obstacle = new Obstacle("the gate is not present at", address);
            return false;
        }

        return true;
    }

    private bool TryReadTarget(
        in Gate gate,
        uint external,
        out SegmentDescriptor code,
        out GuestEvent fault,
        out Obstacle obstacle
    )
    {
        code = default;
        obstacle = new Obstacle("the gate's code segment is bad: selector", gate.Selector);
        if (DescriptorTables.IsNull(gate.Selector))
        {
            fault = GuestEvent.Exception(Vector.GeneralProtection, external);
            return false;
        }

        uint errorCode = DescriptorTables.ErrorCode(gate.Selector) | external;
        if (!_descriptors.TryRead(gate.Selector, system: false, out code, out fault))
        {
            fault =
                fault.Number == Vector.GeneralProtection
                    ? fault with
                    {
                        ErrorCode = fault.ErrorCode | external,
                    }
                    : fault;
            return false;
        }

        if (!code.IsCode || code.Dpl > _cpu.Cpl || !code.Is64BitCode)
        {
            fault = GuestEvent.Exception(Vector.GeneralProtection, errorCode);
            return false;
        }

        if (!code.Present)
        {
            fault = GuestEvent.Exception(Vector.SegmentNotPresent, errorCode);
            return false;
        }

        if (!PageWalker.IsCanonical(gate.Offset))
        {
            fault = GuestEvent.Exception(Vector.GeneralProtection, external);
            obstacle = new Obstacle("the handler's address is not canonical:", gate.Offset);
            return false;
        }

        return true;
    }

    private bool TryReadStackPointer(
        in Gate gate,
        int newCpl,
        uint external,
        out ulong stack,
        out GuestEvent fault,
        out Obstacle obstacle
    )
    {
        stack = 0;
        obstacle = default;
        uint offset = (uint)(
            gate.InterruptStack != 0
                ? TssInterruptStacks + ((gate.InterruptStack - 1) * 8)
                : TssStackPointers + (newCpl * 8)
        );
        if (offset + 7 > _cpu.Tr.Limit)
        {
            fault = GuestEvent.Exception(Vector.InvalidTss, DescriptorTables.ErrorCode(_cpu.Tr.Selector) | external);
            obstacle = new Obstacle("TSS limit", _cpu.Tr.Limit);
            return false;
        }

        if (!_space.TryRead(_cpu.Tr.Base + offset, PageAccess.Read, out stack, out fault))
        {
            obstacle = new Obstacle("the TSS cannot be read at", _cpu.Tr.Base + offset);
            return false;
        }

        return true;
    }

    // Faults push RF set, so that the instruction restarts without its breakpoint; traps and interrupts do not.
    private ulong PushedFlags(in GuestEvent guestEvent)
    {
        bool isFault =
            guestEvent.Kind == GuestEventKind.Exception
            && guestEvent.Number is not (Vector.Debug or Vector.Breakpoint or Vector.Overflow or Vector.DoubleFault);
        return isFault ? _cpu.Rflags | Rflags.Rf : _cpu.Rflags;
    }

    private string TripleFault(in GuestEvent guestEvent, in Obstacle obstacle)
    {
        string what =
            guestEvent.Kind == GuestEventKind.Exception
                ? Vector.Name(guestEvent.Number)
                : $"interrupt 0x{guestEvent.Number:X}";
        string at = "";
        string error = "";
        if (guestEvent.Kind == GuestEventKind.Exception)
        {
            at = guestEvent.Number == Vector.PageFault ? $" at 0x{guestEvent.FaultAddress:X}" : "";
            error = Vector.HasErrorCode(guestEvent.Number) ? $" (error 0x{guestEvent.ErrorCode:X})" : "";
        }

        // Of a trap (#DB) and of an interrupt RIP is behind the instruction, or has nothing to do with it.
        bool atInstruction = guestEvent.Kind switch
        {
            GuestEventKind.SoftwareInterrupt => true,
            GuestEventKind.Exception => guestEvent.Number != Vector.Debug,
            _ => false,
        };
        string instruction = atInstruction && _describeNext?.Invoke() is { } name ? $" ({name})" : "";
        return $"triple fault: {what}{at}{error}, RIP 0x{_cpu.Rip:X}{instruction}, could not be delivered: {obstacle.What} 0x{obstacle.Value:X}";
    }

    /// <summary>Why a delivery failed; text only when it becomes a triple fault.</summary>
    private readonly record struct Obstacle(string What, ulong Value);

    /// <summary>A 16-byte gate of the IDT (SDM vol. 3A, figure 6-8).</summary>
    private readonly record struct Gate(ulong Low, ulong High)
    {
        public ushort Selector => (ushort)(Low >> 16);

        public int InterruptStack => (int)(Low >> 32) & 7;

        public int Type => (int)(Low >> 40) & 0x1F;

        public bool IsValid => Type is 0xE or 0xF;

        public bool IsInterrupt => Type == 0xE;

        public int Dpl => (int)(Low >> 45) & 3;

        public bool Present => (Low & (1UL << 47)) != 0;

        public ulong Offset => (Low & 0xFFFF) | ((Low >> 32) & 0xFFFF_0000) | (High << 32);
    }
}
