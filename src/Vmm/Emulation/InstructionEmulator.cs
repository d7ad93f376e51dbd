using System.Runtime.CompilerServices;
using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Emulation;

/// <summary>What emulating one instruction came to.</summary>
public enum EmulationResult : byte
{
    /// <summary>
    /// The instruction is done and RIP points behind it; or some repetitions of a string instruction are, and RIP still
    /// points at it.
    /// </summary>
    Done,

    /// <summary>
    /// The instruction raises an event; nothing else of it has happened, except for earlier repetitions of a string
    /// instruction.
    /// </summary>
    Event,

    /// <summary>HLT is done: the CPU waits for an interrupt.</summary>
    Halted,
}

/// <summary>
/// Emulates one sensitive instruction, or one data access to an address without RAM, as a transaction: it commits as a
/// whole or leaves the guest as it was. This part fetches, decodes and dispatches; the others hold the handlers by topic.
/// </summary>
/// <remarks>
/// The instruction came here because the host's ring 3 (or an interpreter that behaves like it) refused it. Whether the
/// guest may execute it is decided here, by the virtual CPL and IOPL.
/// </remarks>
public sealed partial class InstructionEmulator
{
    private readonly VirtualCpu _cpu;
    private readonly GuestMemory _memory;
    private readonly IoBus _ports;
    private IExecutionEngine _engine;
    private readonly GuestAddressSpace _space;
    private readonly DescriptorTables _descriptors;
    private readonly DecodeCache _cache = new();
    private DecodedInstruction _current = new();
    private GuestEvent _event;
    private bool _raisesShadow;

    /// <summary>Creates the emulator of one VM.</summary>
    /// <param name="cpu">The CPU.</param>
    /// <param name="memory">Guest RAM.</param>
    /// <param name="ports">I/O ports.</param>
    /// <param name="engine">Told of changes to paging and lazily held state; its clock is the TSC.</param>
    /// <param name="absent">What answers where there is no RAM.</param>
    public InstructionEmulator(
        VirtualCpu cpu,
        GuestMemory memory,
        IoBus ports,
        IExecutionEngine engine,
        PhysicalBus? absent = null
    )
    {
        _cpu = cpu;
        _memory = memory;
        _ports = ports;
        _engine = engine;
        _space = new GuestAddressSpace(cpu, memory, absent);
        _descriptors = new DescriptorTables(cpu, _space);
    }

    /// <summary>Read and write accesses at the current privilege level carry this bit.</summary>
    private PageAccess User => _cpu.Cpl == 3 ? PageAccess.User : 0;

    private ulong NextRip => _cpu.Rip + (ulong)_current.Length;

    private ref readonly Instruction Instruction => ref _current.Instruction;

    /// <summary>
    /// Whether an instruction has to come here wherever it is executed, not being what the platform has it be in the host's ring 3:
    /// sensitive ones, and those of extensions that the platform's CPUID does not report.
    /// </summary>
    public static bool MustEmulate(in Instruction instruction) =>
        OperationTable.Classify(instruction).Operation != Operation.Unprivileged;

    /// <summary>Decodes the instruction at RIP and says what its trap is to be counted as.</summary>
    /// <param name="reason">The ledger's reason.</param>
    /// <param name="guestEvent">When false is returned: the fault that fetching raises.</param>
    public unsafe bool TryDecode(out TrapReason reason, out GuestEvent guestEvent)
    {
        ulong rip = _cpu.Rip;
        reason = TrapReason.GuestException;
        if (!_space.TryTranslate(rip, PageAccess.Execute | User, out ulong physical, out guestEvent))
        {
            return false;
        }

        if (!_memory.Contains(physical, 1))
        {
            throw new GuestFailureException(
                $"the guest fetches an instruction at RIP 0x{rip:X}, guest-physical 0x{physical:X}, where there is no RAM"
            );
        }

        int available = (int)Math.Min(16, GuestMemory.PageSize - (physical & (GuestMemory.PageSize - 1)));
        ulong low,
            high;
        byte* code = _memory.Touch(physical);
        if (available == 16)
        {
            low = Unsafe.ReadUnaligned<ulong>(code);
            high = Unsafe.ReadUnaligned<ulong>(code + 8);
        }
        else
        {
            low = high = 0;
            Gather(code, 0, available, ref low, ref high);
        }

        if (
            !_cache.TryFind(rip, low, high, available, out DecodedInstruction entry)
            && !_cache.TryDecode(entry, rip, low, high, available)
        )
        {
            // It really reaches into the second page: only now may that page fault.
            ulong second = rip + (ulong)available;
            if (!_space.TryTranslate(second, PageAccess.Execute | User, out physical, out guestEvent))
            {
                return false;
            }

            if (!_memory.Contains(physical, 16))
            {
                throw new GuestFailureException(
                    $"the guest fetches an instruction at RIP 0x{rip:X} that reaches to guest-physical 0x{physical:X}, where "
                        + "there is no RAM"
                );
            }

            Gather(_memory.Touch(physical), available, 16, ref low, ref high);
            _ = _cache.TryDecode(entry, rip, low, high, 16);
        }

        _current = entry;
        reason = entry.Reason;
        if (
            entry.Operation is Operation.Out or Operation.Outs
            && MeasurementPorts.IsMeasurementPort(Port(entry.Instruction, 0))
        )
        {
            reason = TrapReason.RegionMarker;
        }
        else if (entry.Operation == Operation.Hypercall && Hypercalls is null)
        {
            reason = TrapReason.GuestException;
        }

        return true;
    }

    /// <summary>Emulates the instruction that <see cref="TryDecode"/> has just decoded, or finds the guest at fault.</summary>
    /// <param name="guestEvent">For <see cref="EmulationResult.Event"/>: what to deliver.</param>
    /// <exception cref="GuestFailureException">The instruction is not one that the platform emulates.</exception>
    public EmulationResult Emulate(out GuestEvent guestEvent) => Run(absentMemory: false, out guestEvent);

    /// <summary>
    /// Emulates the instruction that <see cref="TryDecode"/> has just decoded because it touches an address without RAM.
    /// </summary>
    /// <inheritdoc cref="Emulate"/>
    public EmulationResult EmulateDataAccess(out GuestEvent guestEvent) => Run(absentMemory: true, out guestEvent);

    private EmulationResult Run(bool absentMemory, out GuestEvent guestEvent)
    {
        bool singleStep = (_cpu.Rflags & Rflags.Tf) != 0;
        _raisesShadow = false;
        EmulationResult result =
            absentMemory && _current.Operation == Operation.Unprivileged ? AccessData() : Dispatch();
        if (result == EmulationResult.Event)
        {
            guestEvent = _event;
            return result;
        }

        guestEvent = default;
        _cpu.InterruptShadow = _raisesShadow;
        bool loadsStack = _raisesShadow && _current.Operation == Operation.MovToSegment;
        if (singleStep && !loadsStack)
        {
            // The trap after the instruction; it also ends a HLT. After MOV SS it waits for one more (SDM vol. 3A, 6.8.3).
            _cpu.Dr6 |= Dr6SingleStep;
            _cpu.PendingEvent = GuestEvent.Exception(Vector.Debug);
            return EmulationResult.Done;
        }

        return result;
    }

    private EmulationResult Dispatch()
    {
        switch (_current.Operation)
        {
            case Operation.Cli:
                return Cli();
            case Operation.Sti:
                return Sti();
            case Operation.Hlt:
                return Hlt();
            case Operation.Pushf:
                return Pushf();
            case Operation.Popf:
                return Popf();
            case Operation.In:
                return In();
            case Operation.Out:
                return Out();
            case Operation.Ins:
                return Ins();
            case Operation.Outs:
                return Outs();
            case Operation.MovToControl:
                return MovToControl();
            case Operation.MovFromControl:
                return MovFromControl();
            case Operation.MovToDebug:
                return MovToDebug();
            case Operation.MovFromDebug:
                return MovFromDebug();
            case Operation.Clts:
                return Clts();
            case Operation.Lmsw:
                return Lmsw();
            case Operation.Smsw:
                return StoreWord((ushort)_cpu.Cr0, _cpu.Cr0);
            case Operation.Invlpg:
                return Invlpg();
            case Operation.WriteBackCaches:
                return Privileged(out EmulationResult refused) ? Done() : refused;
            case Operation.Rdtsc:
                return Rdtsc();
            case Operation.Rdtscp:
                return Rdtscp();
            case Operation.Rdpmc:
                return Raise(Vector.GeneralProtection); // there is no counter to name
            case Operation.Rdmsr:
                return Rdmsr();
            case Operation.Wrmsr:
                return Wrmsr();
            case Operation.Cpuid:
                return Cpuid();
            case Operation.Lgdt:
                return LoadTable(global: true);
            case Operation.Lidt:
                return LoadTable(global: false);
            case Operation.Lldt:
                return Lldt();
            case Operation.Ltr:
                return Ltr();
            case Operation.Sgdt:
                return StoreTable(_cpu.Gdtr);
            case Operation.Sidt:
                return StoreTable(_cpu.Idtr);
            case Operation.Sldt:
                return StoreWord(_cpu.Ldtr.Selector, _cpu.Ldtr.Selector);
            case Operation.Str:
                return StoreWord(_cpu.Tr.Selector, _cpu.Tr.Selector);
            case Operation.Swapgs:
                return Swapgs();
            case Operation.Iret:
                return Iret();
            case Operation.FarReturn:
                return FarReturn();
            case Operation.FarBranch:
                return FarBranch();
            case Operation.SoftwareInterrupt:
                return SoftwareInterrupt();
            case Operation.Icebp:
                return Icebp();
            case Operation.MovToSegment:
                return MovToSegment();
            case Operation.MovFromSegment:
                return MovFromSegment();
            case Operation.PushSegment:
                return PushSegment();
            case Operation.PopSegment:
                return PopSegment();
            case Operation.LoadFarPointer:
                return LoadFarPointer();
            case Operation.Lar:
                return Lar();
            case Operation.Lsl:
                return Lsl();
            case Operation.Verr:
                return Verify(write: false);
            case Operation.Verw:
                return Verify(write: true);
            case Operation.Syscall:
                return Syscall();
            case Operation.Sysret:
                return Sysret();
            case Operation.Hypercall:
                return Hypercall();
            case Operation.Undefined:
                return Raise(Vector.InvalidOpcode);
            case Operation.Unsupported when _cpu.Cpl == 0:
                throw new GuestFailureException(
                    Unsupported("the guest executes an instruction that VirtBench does not emulate")
                );
            default:
                // A privileged instruction in the guest's ring 3, or any other that faulted: misaligned SSE, a
                // non-canonical address… Those have error code 0.
                return Raise(Vector.GeneralProtection);
        }
    }

    /// <summary>
    /// Mnemonic and bytes of the instruction at RIP, for a message; null when it cannot be fetched or decoded. Changes
    /// nothing, not even Accessed bits.
    /// </summary>
    public string? DescribeNext()
    {
        const int longest = 15;
        Span<byte> bytes = stackalloc byte[longest];
        int count = 0;
        while (
            count < longest
            && _space.TryTranslate(
                _cpu.Rip + (ulong)count,
                PageAccess.Execute | User,
                out ulong physical,
                out _,
                commit: false
            )
            && _memory.Contains(physical, 1)
        )
        {
            ulong restOfPage = GuestMemory.PageSize - (physical & (GuestMemory.PageSize - 1));
            int chunk = (int)Math.Min((ulong)(longest - count), restOfPage);
            _memory.Read(physical, bytes.Slice(count, chunk));
            count += chunk;
        }

        Decoder decoder = Decoder.Create(64, bytes[..count].ToArray(), _cpu.Rip);
        decoder.Decode(out Instruction instruction);
        return instruction.IsInvalid ? null : $"{instruction} [{Convert.ToHexString(bytes[..instruction.Length])}]";
    }

    /// <summary>What, then mnemonic, bytes and RIP of the current instruction.</summary>
    private string Unsupported(string what)
    {
        Span<byte> bytes = stackalloc byte[16];
        Unsafe.WriteUnaligned(ref bytes[0], _current.Low);
        Unsafe.WriteUnaligned(ref bytes[8], _current.High);
        string mnemonic = _current.Instruction.IsInvalid ? "(undecodable)" : _current.Instruction.ToString();
        return $"{what}: {mnemonic} [{Convert.ToHexString(bytes[.._current.Length])}] at RIP 0x{_cpu.Rip:X}";
    }

    /// <summary>True at virtual CPL 0; otherwise <paramref name="refused"/> is the #GP(0) to return.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool Privileged(out EmulationResult refused)
    {
        if (_cpu.Cpl == 0)
        {
            refused = default;
            return true;
        }

        refused = Raise(Vector.GeneralProtection);
        return false;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private EmulationResult Done()
    {
        _cpu.Rip = NextRip;
        _cpu.Rflags &= ~Rflags.Rf;
        return EmulationResult.Done;
    }

    private EmulationResult Raise(byte vector, uint errorCode = 0) => Raise(GuestEvent.Exception(vector, errorCode));

    private EmulationResult Raise(in GuestEvent guestEvent)
    {
        _event = guestEvent;
        return EmulationResult.Event;
    }

    private static unsafe void Gather(byte* code, int from, int to, ref ulong low, ref ulong high)
    {
        for (int i = from; i < to; i++)
        {
            ulong value = code[i - from];
            if (i < 8)
            {
                low |= value << (8 * i);
            }
            else
            {
                high |= value << (8 * (i - 8));
            }
        }
    }
}
