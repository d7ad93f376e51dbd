using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// An assembler that knows what a guest kernel does to its machine: a method for each operation, which is lowered to the
/// instructions of a real machine or to the paravirtual interface. So there is one program for both.
/// </summary>
/// <remarks>
/// What a method is said to clobber is what it clobbers under either interface, so that code around it is right under both. Operations of the
/// paravirtual interface use the stack, which ring 0 has mapped one to one as it has hypercall page and shared info page.
/// <para>
/// The paths that are hardly ever taken stand behind the program: <see cref="EmitOutOfLine"/> has to be called once, at its end. No operation
/// binds a label to its first or behind its last instruction, so that the caller may.
/// </para>
/// </remarks>
public sealed class GuestAssembler : Assembler
{
    /// <summary>
    /// Bytes between the program and what stands out of line: more than a short jump reaches, so that an operation has the same length
    /// wherever it stands.
    /// </summary>
    private const int OutOfLineDistance = 0x80;

    private const uint NonSpecificEndOfInterrupt = 0x20; // OCW2
    private const int OneShot = 0x10; // channel 0, low byte only, mode 0

    private static readonly AssemblerMemoryOperand Mask = __qword_ptr[PhysicalLayout.SharedInfoPage];
    private static readonly AssemblerMemoryOperand Pending = __qword_ptr[PhysicalLayout.SharedInfoPage + 0x08];
    private static readonly AssemblerMemoryOperand PendingLow = __dword_ptr[PhysicalLayout.SharedInfoPage + 0x08];
    private static readonly AssemblerMemoryOperand DirectLines = __qword_ptr[PhysicalLayout.SharedInfoPage + 0x10];

    // Fields of the paravirtual clock.
    private const ulong Clock = PhysicalLayout.SharedInfoPage + 0x40;
    private static readonly AssemblerMemoryOperand ClockVersion = __dword_ptr[Clock];
    private static readonly AssemblerMemoryOperand ClockTimestamp = __qword_ptr[Clock + 0x08];
    private static readonly AssemblerMemoryOperand ClockSystemTime = __qword_ptr[Clock + 0x10];
    private static readonly AssemblerMemoryOperand ClockMultiplier = __dword_ptr[Clock + 0x18];
    private static readonly AssemblerMemoryOperand ClockShift = __byte_ptr[Clock + 0x1C];

    /// <summary>What the service routine of a line that comes directly may clobber besides flags.</summary>
    private static readonly AssemblerRegister64[] ClobberedByService = [rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11];

    private readonly List<Action> _outOfLine = [];
    private readonly SortedDictionary<int, Label> _services = [];
    private Label _pendingRoutine;
    private Label _directRoutine;
    private bool _usesPendingRoutine;
    private bool _usesDirectRoutine;

    /// <summary>Lowers to this interface.</summary>
    public GuestAssembler(GuestInterface guestInterface)
        : base(64)
    {
        Interface = guestInterface;
        _pendingRoutine = CreateLabel("pending");
        _directRoutine = CreateLabel("direct");
    }

    /// <summary>What the operations are lowered to.</summary>
    public GuestInterface Interface { get; }

    /// <summary>
    /// Registers that <see cref="EndOfInterrupt"/> clobbers under this interface: an interrupt handler that does nothing else saves
    /// these.
    /// </summary>
    public IReadOnlyList<AssemblerRegister64> ClobberedByEndOfInterrupt => IsNative ? [rax] : [rax, rcx, rdi, r11];

    private bool IsNative => Interface == GuestInterface.Native;

    /// <summary>
    /// Has the service routine of an interrupt line called when the line comes without an exit
    /// (<see cref="SharedInformation.DirectLines"/>). The routine is called with interrupts masked, may clobber rax, rcx, rdx, rsi, rdi,
    /// r8 to r11 and flags, ends by RET, and must not end the interrupt: no interrupt controller has seen it. Under the native
    /// interface nothing comes this way, and nothing is emitted.
    /// </summary>
    /// <param name="line">Interrupt line, 0 to 31.</param>
    /// <param name="service">The routine, in this assembler.</param>
    public void ServeDirectLine(int line, Label service)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(line);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(line, 31);
        _services.Add(line, service);
    }

    // ------------------------------------------------------------------------------------------------ interrupts

    /// <summary>Holds interrupts back. CLI; one store. Clobbers nothing.</summary>
    public void DisableInterrupts()
    {
        if (IsNative)
        {
            cli();
        }
        else
        {
            mov(Mask, 1);
        }
    }

    /// <summary>
    /// Lets interrupts in, what waits first. STI, whose shadow covers the next instruction; a store and a look at what is pending, which
    /// has no shadow. Clobbers flags.
    /// </summary>
    public void EnableInterrupts()
    {
        if (IsNative)
        {
            sti();
            return;
        }

        mov(Mask, 0);
        LookAtPending();
    }

    /// <summary>
    /// For code that runs long with interrupts on: takes lines that have come without an exit since. Nothing under the native interface.
    /// Clobbers flags.
    /// </summary>
    public void PollInterrupts()
    {
        if (!IsNative)
        {
            nop(); // so that the caller may have a label here
            LookAtPending();
        }
    }

    /// <summary>Pushes whether interrupts are let in. PUSHFQ; the mask. Clobbers nothing.</summary>
    public void SaveInterruptFlag()
    {
        if (IsNative)
        {
            pushfq();
        }
        else
        {
            push(Mask);
        }
    }

    /// <summary>Pops it: POPFQ; the mask and a look at what is pending. Clobbers flags.</summary>
    public void RestoreInterruptFlag()
    {
        if (IsNative)
        {
            popfq();
            return;
        }

        Label back = CreateLabel();
        Label waiting = CreateLabel();
        pop(Mask);
        cmp(Pending, 0);
        jne(waiting);
        Label(ref back);
        nop(); // holds the label
        _outOfLine.Add(() =>
        {
            Label(ref waiting);
            cmp(Mask, 0);
            jne(back);
            call(_pendingRoutine);
            jmp(back);
        });
        _usesPendingRoutine = true;
    }

    /// <summary>
    /// Lets interrupts in, sleeps until one has been handled, and holds them back again. STI, HLT, CLI; hypercall, and direct lines are
    /// served. Clobbers rax, rcx, r11 and flags.
    /// </summary>
    public void WaitForInterrupt()
    {
        if (IsNative)
        {
            sti();
            hlt();
            cli();
            return;
        }

        Label look = CreateLabel();
        Label waiting = CreateLabel();
        Hypercall(HypercallNumber.Block);
        Label(ref look);
        test(PendingLow, (int)SharedInformation.PendingDirectly);
        jne(waiting);
        _outOfLine.Add(() =>
        {
            Label(ref waiting);
            call(_directRoutine);
            jmp(look);
        });
        _usesDirectRoutine = true;
    }

    /// <summary>
    /// Ends an interrupt at the controllers. OCW2 to one 8259A or both; hypercall. Clobbers rax, rcx, rdi, r11 and flags; see
    /// <see cref="ClobberedByEndOfInterrupt"/>.
    /// </summary>
    /// <param name="line">Interrupt line, 0 to 15. The native interface ends the one of highest priority that is in service.</param>
    public void EndOfInterrupt(int line)
    {
        if (!IsNative)
        {
            mov(edi, line);
            Hypercall(HypercallNumber.EndOfInterrupt);
            return;
        }

        mov(eax, NonSpecificEndOfInterrupt);
        if (line >= 8)
        {
            @out((byte)InterruptController.SlavePort, al);
        }

        @out((byte)InterruptController.MasterPort, al);
    }

    /// <summary>
    /// Returns from an interrupt or an exception: the frame of the event is on the stack, an error code is not. IRETQ; hypercall, with
    /// interrupts held back or let in as at the beginning of the handler, if it has left that alone. Does not come back.
    /// </summary>
    public void InterruptReturn()
    {
        if (IsNative)
        {
            iretq();
            return;
        }

        push(Mask);
        Hypercall(HypercallNumber.InterruptReturn);
    }

    /// <summary>
    /// As <see cref="InterruptReturn"/>, for a kernel that goes on to a program: interrupts are let in when the flags in the frame say so,
    /// whatever the kernel did meanwhile.
    /// </summary>
    public void InterruptReturnUnmasked()
    {
        if (IsNative)
        {
            iretq();
            return;
        }

        push(0);
        Hypercall(HypercallNumber.InterruptReturn);
    }

    /// <summary>
    /// Returns from a SYSCALL that has changed no register and not the stack: RCX is where to, R11 the flags. SYSRETQ; hypercall, which
    /// needs a stack of ring 0 and leaves interrupts held back or let in as they are. Does not come back.
    /// </summary>
    /// <param name="callerStack">Where RSP can be kept meanwhile: 8 bytes, address below 2 GiB.</param>
    /// <param name="stackTop">Top of a stack of ring 0 with room for 64 bytes, below 4 GiB.</param>
    /// <param name="codeSelector">CS of ring 3, as SYSRETQ takes it from STAR.</param>
    /// <param name="stackSelector">SS of ring 3.</param>
    public void ReturnFromSystemCall(ulong callerStack, ulong stackTop, ushort codeSelector, ushort stackSelector)
    {
        if (IsNative)
        {
            sysretq();
            return;
        }

        mov(__qword_ptr[callerStack], rsp);
        mov(esp, (uint)stackTop);
        push(stackSelector);
        push(__qword_ptr[callerStack]);
        push(r11);
        push(codeSelector);
        push(rcx);
        InterruptReturn();
    }

    // ------------------------------------------------------------------------------------------------ memory

    /// <summary>Goes to another address space. MOV to CR3; hypercall. Clobbers rax, rcx, rdi, r11 and flags.</summary>
    /// <param name="value">What CR3 gets.</param>
    public void WriteCr3(AssemblerRegister64 value)
    {
        if (IsNative)
        {
            mov(cr3, value);
            return;
        }

        Move(rdi, value);
        Hypercall(HypercallNumber.SetPageTableBase);
    }

    /// <summary>
    /// Writes a page-table entry and drops the page that it maps from the TLB. MOV and INVLPG; hypercall with one record. Clobbers rax,
    /// rcx, rsi, rdi, r11 and flags.
    /// </summary>
    /// <param name="entry">Address of the entry, linear and guest-physical alike. Not rdi.</param>
    /// <param name="value">What it gets. Not rsp.</param>
    /// <param name="page">A linear address in the page.</param>
    public void UpdatePageTableEntry(AssemblerRegister64 entry, AssemblerRegister64 value, AssemblerRegister64 page)
    {
        if (IsNative)
        {
            mov(__[entry], value);
            invlpg(__[page]);
            return;
        }

        // The record, on the stack.
        push(value);
        push(entry);
        mov(rdi, rsp);
        mov(esi, 1);
        Hypercall(HypercallNumber.UpdatePageTables);
        add(rsp, 16);
    }

    /// <summary>
    /// Writes as many page-table entries as there are <see cref="PageTableUpdate"/> records and drops everything from the TLB: a loop
    /// of MOV, and CR3 written with its own value; hypercall. Clobbers rax, rcx, rsi, rdi, r11 and flags. On entry rdi is the records'
    /// address, linear and guest-physical alike, and rsi their number, at least 1 and at most <see cref="Hypercalls.MaximumBatch"/>.
    /// </summary>
    public void UpdatePageTables()
    {
        if (!IsNative)
        {
            Hypercall(HypercallNumber.UpdatePageTables);
            return;
        }

        Label next = CreateLabel();
        xor(ecx, ecx);
        Label(ref next);
        mov(rax, __[rdi]);
        mov(r11, __[rdi + 8]);
        mov(__[rax], r11);
        add(rdi, 16);
        inc(rcx);
        cmp(rcx, rsi);
        jne(next);
        mov(rax, cr3);
        mov(cr3, rax);
    }

    /// <summary>Drops a page from the TLB. INVLPG; hypercall. Clobbers rax, rcx, rdi, r11 and flags.</summary>
    /// <param name="page">A linear address in the page.</param>
    public void InvalidatePage(AssemblerRegister64 page)
    {
        if (IsNative)
        {
            invlpg(__[page]);
            return;
        }

        Move(rdi, page);
        Hypercall(HypercallNumber.Flush);
    }

    /// <summary>
    /// In a page-fault handler: the address that faulted. MOV from CR2; a call into the hypercall page, whose code knows whether the
    /// shared info page has the address or CR2 alone. Clobbers rax.
    /// </summary>
    /// <param name="into">Register that gets it.</param>
    public void ReadFaultAddress(AssemblerRegister64 into)
    {
        if (IsNative)
        {
            mov(into, cr2);
            return;
        }

        call(HypercallPage.FaultAddressEntry);
        Move(into, rax);
    }

    // ------------------------------------------------------------------------------------------------ time

    /// <summary>
    /// Reads the time. RDTSC: EDX:EAX = ticks of the time-stamp counter. The paravirtual clock: RAX = nanoseconds of system time, which is what
    /// a guest makes of the ticks. Clobbers rax, rcx, rdx, r8 and flags.
    /// </summary>
    /// <remarks>
    /// No fence before RDTSC, under neither interface: it may be read some instructions early, as a guest that measures RDTSC reads it. Both
    /// branches out of line are those that a clock with another scale takes, and a clock that was changed meanwhile.
    /// </remarks>
    public void ReadTime()
    {
        if (IsNative)
        {
            rdtsc();
            return;
        }

        Label read = CreateLabel();
        Label scaled = CreateLabel();
        Label again = CreateLabel();
        Label left = CreateLabel();
        mov(r8d, ClockVersion);
        Label(ref read);
        rdtsc();
        shl(rdx, 32);
        or(rax, rdx);
        sub(rax, ClockTimestamp);
        movzx(ecx, ClockShift);
        neg(cl);
        js(left);
        shr(rax, cl); // a counter faster than 1 GHz
        Label(ref scaled);
        mov(ecx, ClockMultiplier);
        mul(rcx);
        shrd(rax, rdx, 32);
        add(rax, ClockSystemTime);
        test(r8d, 1);
        jne(again);
        cmp(r8d, ClockVersion);
        jne(again);
        _outOfLine.Add(() =>
        {
            Label(ref again);
            mov(r8d, ClockVersion);
            jmp(read);
            Label(ref left);
            neg(cl);
            shl(rax, cl);
            jmp(scaled);
        });
    }

    /// <summary>
    /// Lets line 0 be requested once, after so many pulses of 838 ns and one. Channel 0 of the 8254 in mode 0; hypercall. Clobbers rax, rcx,
    /// rdx, rdi, r8, r11 and flags.
    /// </summary>
    public void SetOneShotTimer(byte pulses)
    {
        if (IsNative)
        {
            mov(eax, OneShot);
            @out((byte)IntervalTimer.FirstPort + 3, al);
            mov(eax, (int)pulses);
            @out((byte)IntervalTimer.FirstPort, al);
            return;
        }

        ReadTime();
        lea(rdi, __[rax + (int)((pulses + 1) * 1e9 / IntervalTimer.Hertz)]);
        Hypercall(HypercallNumber.SetTimer);
    }

    // ------------------------------------------------------------------------------------------------ console

    /// <summary>
    /// Writes rsi bytes at rdi, linear and guest-physical address alike, to the console: at least 1, at most 4096. OUT to the 16550, whose
    /// transmitter is always empty on this platform; hypercall. Clobbers rax, rcx, rdx, rsi, rdi, r11 and flags.
    /// </summary>
    public void ConsoleWrite()
    {
        if (!IsNative)
        {
            Hypercall(HypercallNumber.ConsoleWrite);
            return;
        }

        Label next = CreateLabel();
        mov(edx, (uint)Vmm.Devices.SerialPort.FirstPort);
        Label(ref next);
        mov(al, __[rdi]);
        @out(dx, al);
        inc(rdi);
        dec(rsi);
        jne(next);
    }

    // ------------------------------------------------------------------------------------------------ out of line

    /// <summary>
    /// A hypercall by its number: for what has no counterpart. Clobbers rax, rcx, r11 and flags. Paravirtual interface only.
    /// </summary>
    public void Hypercall(HypercallNumber number) => call(HypercallPage.EntryOf(number));

    /// <summary>
    /// Emits what stands out of line, behind the program: once, at its end, where nothing runs into it. Nothing under the native interface.
    /// </summary>
    public void EmitOutOfLine()
    {
        if (_outOfLine.Count == 0)
        {
            return;
        }

        const byte breakpoint = 0xCC;
        db(Enumerable.Repeat(breakpoint, OutOfLineDistance).ToArray());
        foreach (Action emit in _outOfLine)
        {
            emit();
        }

        _outOfLine.Clear();
        if (_usesPendingRoutine)
        {
            EmitPendingRoutine();
        }

        if (_usesDirectRoutine)
        {
            EmitDirectRoutine();
        }
    }

    // Until nothing is pending: the VMM takes its bit back in the hypercall, this side takes the other.
    private void LookAtPending()
    {
        Label look = CreateLabel();
        Label waiting = CreateLabel();
        Label(ref look);
        cmp(Pending, 0);
        jne(waiting);
        _outOfLine.Add(() =>
        {
            Label(ref waiting);
            call(_pendingRoutine);
            jmp(look);
        });
        _usesPendingRoutine = true;
    }

    /// <summary>Interrupts are let in and something waits. Clobbers flags.</summary>
    private void EmitPendingRoutine()
    {
        Label elsewhere = CreateLabel();
        Label done = CreateLabel();
        Label(ref _pendingRoutine);
        Push(ClobberedByService);
        test(PendingLow, (int)SharedInformation.PendingDirectly);
        je(elsewhere);
        mov(Mask, 1);
        TakeDirectLines();
        mov(Mask, 0);
        Label(ref elsewhere);
        test(PendingLow, (int)SharedInformation.PendingInVmm);
        je(done);
        Hypercall(HypercallNumber.Yield);
        Label(ref done);
        Pop(ClobberedByService);
        ret();
    }

    /// <summary>Interrupts are held back and a line has come directly. Clobbers flags.</summary>
    private void EmitDirectRoutine()
    {
        Label(ref _directRoutine);
        Push(ClobberedByService);
        TakeDirectLines();
        Pop(ClobberedByService);
        ret();
    }

    // The bit first: a line that comes in between sets it again.
    private void TakeDirectLines()
    {
        @lock.and(Pending, ~(int)SharedInformation.PendingDirectly);
        xor(eax, eax);
        xchg(DirectLines, rax);
        foreach ((int line, Label service) in _services)
        {
            Label next = CreateLabel();
            bt(eax, (byte)line);
            jae(next);
            push(rax);
            call(service);
            pop(rax);
            Label(ref next);
            nop();
        }
    }

    private void Push(AssemblerRegister64[] registers)
    {
        foreach (AssemblerRegister64 register in registers)
        {
            push(register);
        }
    }

    private void Pop(AssemblerRegister64[] registers)
    {
        foreach (AssemblerRegister64 register in Enumerable.Reverse(registers))
        {
            pop(register);
        }
    }

    private void Move(AssemblerRegister64 to, AssemblerRegister64 from)
    {
        if (to != from)
        {
            mov(to, from);
        }
    }
}
