using System.Buffers.Binary;
using System.Runtime.InteropServices;
using Iced.Intel;
using VirtBench.Strategies.Native;
using VirtBench.Vmm.Cpu;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Carrier;

/// <summary>
/// The resident code of a carrier: signal handler, wait loop, system-call batches and the two ways back into the guest.
/// RBX is the control page's address throughout; no routine uses the stack, except that IRETQ takes its frame from it.
/// </summary>
internal sealed class CarrierStub
{
    private static readonly (AssemblerRegister64 Register, int Offset)[] FrameRegisters =
    [
        (r8, Context(nameof(SignalContext.R8))),
        (r9, Context(nameof(SignalContext.R9))),
        (r10, Context(nameof(SignalContext.R10))),
        (r11, Context(nameof(SignalContext.R11))),
        (r12, Context(nameof(SignalContext.R12))),
        (r13, Context(nameof(SignalContext.R13))),
        (r14, Context(nameof(SignalContext.R14))),
        (r15, Context(nameof(SignalContext.R15))),
        (rsi, Context(nameof(SignalContext.Rsi))),
        (rbp, Context(nameof(SignalContext.Rbp))),
        (rbx, Context(nameof(SignalContext.Rbx))),
        (rdx, Context(nameof(SignalContext.Rdx))),
        (rax, Context(nameof(SignalContext.Rax))),
        (rcx, Context(nameof(SignalContext.Rcx))),
        (rdi, Context(nameof(SignalContext.Rdi))), // last: it points at the frame
    ];

    // In encoding order, as the control page has them.
    private static readonly AssemblerRegister64[] GeneralRegisters =
    [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ];

    private readonly Assembler _a = new(64);
    private Label _handler;
    private Label _publish;
    private Label _wait;
    private Label _batch;
    private Label _switch;
    private Label _resume;
    private Label _resumeByIret;
    private Label _resumeEnd;
    private Label _signalReturn;
    private Label _kick;
    private Label _skip;
    private Label _skipByIret;
    private Label _callout;
    private Label _lookupMissed;
    private Label _resumeByRegisters;
    private Label _resumeByRegistersEnd;
    private Label _saveFpu;
    private Label _gate;
    private Label _behindJump;
    private Label _behindCallJump;

    private CarrierStub()
    {
        _handler = _a.CreateLabel();
        _publish = _a.CreateLabel();
        _wait = _a.CreateLabel();
        _batch = _a.CreateLabel();
        _switch = _a.CreateLabel();
        _resume = _a.CreateLabel();
        _resumeByIret = _a.CreateLabel();
        _resumeEnd = _a.CreateLabel();
        _signalReturn = _a.CreateLabel();
        _kick = _a.CreateLabel();
        _skip = _a.CreateLabel();
        _skipByIret = _a.CreateLabel();
        _callout = _a.CreateLabel();
        _lookupMissed = _a.CreateLabel();
        _resumeByRegisters = _a.CreateLabel();
        _resumeByRegistersEnd = _a.CreateLabel();
        _saveFpu = _a.CreateLabel();
        _gate = _a.CreateLabel();
        _behindJump = _a.CreateLabel();
        _behindCallJump = _a.CreateLabel();

        Start();
        Handler();
        Publish();
        Wait();
        Resume();
        ResumeByIret();
        ResumeByRegisters();
        Batch();
        Switch();
        SaveFpu();
        Callout();
        Gate();
        Kick();
        Skip();

        using var stream = new MemoryStream();
        AssemblerResult result = _a.Assemble(
            new StreamCodeWriter(stream),
            CarrierLayout.Stub,
            BlockEncoderOptions.ReturnNewInstructionOffsets
        );
        Code = stream.ToArray();
        if (Code.Length > (int)CarrierLayout.StubSize)
        {
            throw new InvalidOperationException($"the stub has {Code.Length} bytes, its page {CarrierLayout.StubSize}");
        }

        HandlerAddress = result.GetLabelRIP(_handler);
        KickAddress = result.GetLabelRIP(_kick);
        SignalReturnAddress = result.GetLabelRIP(_signalReturn);
        SkipAddress = result.GetLabelRIP(_skip);
        SkipByIretAddress = result.GetLabelRIP(_skipByIret);
        CalloutAddress = result.GetLabelRIP(_callout);
        GateAddress = result.GetLabelRIP(_gate);
        JumpThrough(result.GetLabelRIP(_behindJump), nameof(ControlPage.Target));
        JumpThrough(result.GetLabelRIP(_behindCallJump), nameof(ControlPage.CallRip));
        LookupMissedAddress = result.GetLabelRIP(_lookupMissed);
    }

    /// <summary>The one stub; it is the same for all carriers.</summary>
    public static CarrierStub Instance { get; } = new();

    /// <summary>Its machine code, to lie at <see cref="CarrierLayout.Stub"/>; its first instruction is the entry.</summary>
    public byte[] Code { get; }

    /// <summary>Handler of every synchronous signal.</summary>
    public ulong HandlerAddress { get; }

    /// <summary>Handler of the kick signal.</summary>
    public ulong KickAddress { get; }

    /// <summary>rt_sigreturn, for SA_RESTORER (which the kernel insists on).</summary>
    public ulong SignalReturnAddress { get; }

    /// <summary>Calibration: a handler that only skips the instruction and returns by rt_sigreturn.</summary>
    public ulong SkipAddress { get; }

    /// <summary>Calibration: the same, returning by XRSTOR and IRETQ.</summary>
    public ulong SkipByIretAddress { get; }

    /// <summary>
    /// Where translated code goes to call the VMM: every register and flag is the guest's, <see cref="ControlPage.Site"/> says from
    /// where.
    /// </summary>
    public ulong CalloutAddress { get; }

    /// <summary>
    /// Where a hypercall of directly executed code goes: RCX is where the guest goes on, R11 is lost, every other register and flag is the guest's.
    /// </summary>
    public ulong GateAddress { get; }

    /// <summary>
    /// Where a lookup goes that does not find its target: the guest address in RCX, the guest's RCX and R11 in the control page.
    /// </summary>
    public ulong LookupMissedAddress { get; }

    /// <summary>The value of <see cref="ControlPage.Site"/> that stands for every lookup.</summary>
    public const uint LookupSite = uint.MaxValue;

    // The operand of a jump that ends here, relative to this place.
    private void JumpThrough(ulong behind, string field) =>
        BinaryPrimitives.WriteInt32LittleEndian(
            Code.AsSpan((int)(behind - CarrierLayout.Stub) - sizeof(int)),
            (int)(long)(CarrierLayout.Control + (ulong)Control(field) - behind)
        );

    private static int Context(string field) => (int)Marshal.OffsetOf<SignalContext>(field);

    private static int Control(string field) => (int)Marshal.OffsetOf<ControlPage>(field);

    private static AssemblerMemoryOperand Word(string field) => __dword_ptr[rbx + Control(field)];

    private static AssemblerMemoryOperand Quad(string field) => __qword_ptr[rbx + Control(field)];

    private static AssemblerMemoryOperand Quad(string field, int index) =>
        __qword_ptr[rbx + Control(field) + (8 * index)];

    private static AssemblerMemoryOperand Entry(string field) =>
        __qword_ptr[r12 + (int)Marshal.OffsetOf<BatchEntry>(field)];

    // First arrival from the boot program: report, then obey.
    private void Start()
    {
        _a.mov(rbx, CarrierLayout.Control);
        _a.mov(r8d, CarrierReport.Ready);
        _a.jmp(_publish);
    }

    // In: EDI signal, RSI siginfo, RDX ucontext. Every register may be clobbered: the frame holds the guest's.
    private void Handler()
    {
        _a.Label(ref _handler);
        _a.mov(rbx, CarrierLayout.Control);
        _a.mov(Quad(nameof(ControlPage.Ucontext)), rdx);
        _a.mov(Quad(nameof(ControlPage.Siginfo)), rsi);
        _a.mov(r8d, edi);
        _a.rdfsbase(rax); // the frame does not hold the bases
        _a.mov(Quad(nameof(ControlPage.FsBase)), rax);
        _a.rdgsbase(rax);
        _a.mov(Quad(nameof(ControlPage.GsBase)), rax);
        _a.cld();
    }

    // In: R8D the report. It goes beside State, in the same cache line and just before it: one trip between the cores for both.
    // State := Exited, and wake the VMM if it sleeps. XCHG is the full barrier that orders the store before the load of
    // VmmSleeps: the VMM sets VmmSleeps, then looks at State, and the futex compares once more.
    // The stack pointer leaves the memory that all carriers share before another of them can be told to run: from now on a
    // kick finds this one waiting, and its frame must not lie where the other's is.
    private void Publish()
    {
        Label awake = _a.CreateLabel();
        _a.Label(ref _publish);
        _a.mov(rsp, CarrierLayout.RegisterFile + CarrierLayout.OwnStackEnd);
        _a.mov(ebp, CarrierState.Exited);
        _a.mov(eax, ebp);
        _a.mov(Word(nameof(ControlPage.Signal)), r8d);
        _a.xchg(Word(nameof(ControlPage.State)), eax);
        _a.cmp(Word(nameof(ControlPage.VmmSleeps)), 0);
        _a.je(awake);
        _a.lea(rdi, Word(nameof(ControlPage.State)));
        _a.mov(esi, Linux.FutexWake);
        _a.mov(edx, 1);
        _a.mov(eax, Linux.SysFutex);
        _a.syscall();

        // A kick has led here, and the kernel blocks the signal until the handler returns, which it does not. Unblocked now, a second
        // one finds this carrier waiting; at the next return to the guest it would come before the guest's first instruction, every time
        // that it was early enough, and a guest with a fast timer would never get on.
        _a.Label(ref awake);
        _a.cmp(Word(nameof(ControlPage.KickBlocked)), 0);
        _a.je(_wait);
        _a.mov(Word(nameof(ControlPage.KickBlocked)), 0);
        _a.mov(edi, Linux.SigSetmask);
        _a.lea(rsi, Quad(nameof(ControlPage.EmptyMask)));
        _a.xor(edx, edx);
        _a.mov(r10d, 8);
        _a.mov(eax, Linux.SysRtSigprocmask);
        _a.syscall();
    }

    // Until State differs from EBP: spin SpinCount times, or not at all when another carrier has the core, then sleep.
    // Leaves the new state in EAX.
    private void Wait()
    {
        Label spin = _a.CreateLabel();
        Label sleep = _a.CreateLabel();
        Label changed = _a.CreateLabel();
        _a.Label(ref _wait);
        _a.mov(ecx, Word(nameof(ControlPage.SpinCount)));
        _a.xor(edx, edx);
        _a.cmp(ebp, CarrierState.Switch);
        _a.cmove(ecx, edx);
        _a.Label(ref spin);
        _a.mov(eax, Word(nameof(ControlPage.State)));
        _a.cmp(eax, ebp);
        _a.jne(changed);
        _a.sub(ecx, 1);
        _a.jb(sleep);
        _a.pause();
        _a.jmp(spin);

        _a.Label(ref sleep);
        _a.mov(eax, 1);
        _a.xchg(Word(nameof(ControlPage.CarrierSleeps)), eax);
        _a.lea(rdi, Word(nameof(ControlPage.State)));
        _a.mov(esi, Linux.FutexWait);
        _a.mov(edx, ebp);
        _a.xor(r10d, r10d);
        _a.mov(eax, Linux.SysFutex);
        _a.syscall();
        _a.mov(Word(nameof(ControlPage.CarrierSleeps)), 0);
        _a.jmp(_wait);

        _a.Label(ref changed);
        _a.cmp(eax, CarrierState.Run);
        _a.jne(_batch);
    }

    // Falls in from Wait. From here to _resumeEnd the frame at Ucontext is whole, so that a kick which lands here may
    // simply publish it again (see Kick).
    private void Resume()
    {
        Label notKicked = _a.CreateLabel();
        Label basesLoaded = _a.CreateLabel();
        _a.Label(ref _resume);
        _a.cmp(Word(nameof(ControlPage.KickPending)), 0);
        _a.je(notKicked);
        _a.mov(Word(nameof(ControlPage.KickPending)), 0);
        _a.mov(r8d, CarrierReport.NotEntered);
        _a.jmp(_publish);

        _a.Label(ref notKicked);
        _a.cmp(Word(nameof(ControlPage.LoadBases)), 0);
        _a.je(basesLoaded);
        _a.mov(rax, Quad(nameof(ControlPage.FsBase)));
        _a.wrfsbase(rax);
        _a.mov(rax, Quad(nameof(ControlPage.GsBase)));
        _a.wrgsbase(rax);
        _a.Label(ref basesLoaded);
        _a.cmp(Word(nameof(ControlPage.ByRegisters)), 0);
        _a.jne(_resumeByRegisters);
        _a.mov(rdi, Quad(nameof(ControlPage.Ucontext)));
        _a.cmp(Word(nameof(ControlPage.ReturnByIret)), 0);
        _a.jne(_resumeByIret);
        _a.mov(rsp, rdi); // what the handler's RET would leave for the restorer

        _a.Label(ref _signalReturn);
        _a.mov(eax, Linux.SysRtSigreturn);
        _a.syscall();
        _a.ud2();
    }

    // In: RDI ucontext. The kernel's mask and signal stack need no restoring: the mask is empty (see Publish), the stack stays armed.
    // RSP is set together with RIP by IRETQ, so that a kick up to the last instruction finds RSP on the signal stack.
    private void ResumeByIret()
    {
        Label noFpu = _a.CreateLabel();
        _a.Label(ref _resumeByIret);
        _a.mov(rsi, __qword_ptr[rdi + Context(nameof(SignalContext.FpuState))]);
        _a.test(rsi, rsi);
        _a.je(noFpu);
        _a.mov(eax, __dword_ptr[rsi + FpuFrame.FeaturesLow]);
        _a.mov(edx, __dword_ptr[rsi + FpuFrame.FeaturesHigh]);
        _a.xrstor64(__[rsi]);
        _a.Label(ref noFpu);
        _a.lea(rsp, __[rdi - 16]); // below the frame: the ucontext stays whole
        _a.movzx(eax, __word_ptr[rdi + Context(nameof(SignalContext.Ss))]);
        _a.push(rax);
        _a.push(__qword_ptr[rdi + Context(nameof(SignalContext.Rsp))]);
        _a.push(__qword_ptr[rdi + Context(nameof(SignalContext.Eflags))]);
        _a.movzx(eax, __word_ptr[rdi + Context(nameof(SignalContext.Cs))]);
        _a.push(rax);
        _a.push(__qword_ptr[rdi + Context(nameof(SignalContext.Rip))]);
        foreach ((AssemblerRegister64 register, int offset) in FrameRegisters)
        {
            _a.mov(register, __qword_ptr[rdi + offset]);
        }

        _a.iretq();
        _a.Label(ref _resumeEnd);
        _a.ud2();
    }

    // The guest's x87 and SSE state is in the CPU. A kick in here makes the kernel put that state into its own frame, so Kick goes back
    // and starts over instead of leaving the frame.
    private void ResumeByRegisters()
    {
        Label serialize = _a.CreateLabel();
        Label byCall = _a.CreateLabel();
        _a.Label(ref _resumeByRegisters);
        _a.cmp(Word(nameof(ControlPage.ByRegisters)), (int)EntryBy.Call);
        _a.je(byCall);
        _a.cmp(Word(nameof(ControlPage.Serialize)), 0);
        _a.jne(serialize);
        _a.push(Quad(nameof(ControlPage.Flags)));
        _a.popfq();
        LoadRegisters();
        _a.db(0xFF, 0x25, 0, 0, 0, 0); // JMP qword [rip + …], which Assembler cannot express: see the constructor
        _a.Label(ref _behindJump);
        _a.ud2();

        _a.Label(ref serialize);
        _a.mov(Word(nameof(ControlPage.Serialize)), 0);
        _a.push(CarrierLayout.UserDataSelector);
        _a.push(Quad(nameof(ControlPage.Registers), Gpr.Rsp));
        _a.push(Quad(nameof(ControlPage.Flags)));
        _a.push(CarrierLayout.UserCodeSelector);
        _a.push(Quad(nameof(ControlPage.Target)));
        LoadRegisters(keepStack: true);
        _a.iretq();

        _a.Label(ref byCall);
        _a.push(Quad(nameof(ControlPage.CallFlags)));
        _a.popfq();
        _a.mov(rax, Quad(nameof(ControlPage.CallRax)));
        _a.mov(rdi, Quad(nameof(ControlPage.CallRdi)));
        _a.mov(rsi, Quad(nameof(ControlPage.CallRsi)));
        _a.mov(rsp, Quad(nameof(ControlPage.CallRsp)));
        foreach (int kept in (int[])[.. ControlPage.KeptInCall, Gpr.Rcx, 11])
        {
            if (kept != Gpr.Rbx)
            {
                _a.mov(GeneralRegisters[kept], Quad(nameof(ControlPage.Registers), kept));
            }
        }

        _a.mov(rbx, Quad(nameof(ControlPage.Registers), Gpr.Rbx));
        _a.db(0xFF, 0x25, 0, 0, 0, 0);
        _a.Label(ref _behindCallJump);
        _a.ud2();
        _a.Label(ref _resumeByRegistersEnd);
        _a.ud2();
    }

    private void LoadRegisters(bool keepStack = false)
    {
        for (int i = 0; i < GeneralRegisters.Length; i++)
        {
            if (i != Gpr.Rbx && !(keepStack && i == Gpr.Rsp))
            {
                _a.mov(GeneralRegisters[i], Quad(nameof(ControlPage.Registers), i));
            }
        }

        _a.mov(rbx, Quad(nameof(ControlPage.Registers), Gpr.Rbx)); // last: it points at the control page
    }

    // From translated code. The guest's stack is not touched; RSP is set to this carrier's own.
    private void Callout()
    {
        _a.Label(ref _lookupMissed);
        _a.mov(r11, CarrierLayout.Control);
        _a.mov(__qword_ptr[r11 + Control(nameof(ControlPage.LookupTarget))], rcx);
        _a.mov(__dword_ptr[r11 + Control(nameof(ControlPage.Site))], LookupSite);
        _a.mov(rcx, __qword_ptr[r11 + Control(nameof(ControlPage.SavedRcx))]);
        _a.mov(r11, __qword_ptr[r11 + Control(nameof(ControlPage.SavedR11))]);

        _a.Label(ref _callout);
        _a.mov(__[CarrierLayout.Control + (ulong)Control(nameof(ControlPage.Registers))], rax);
        _a.mov(rax, CarrierLayout.Control);
        for (int i = 1; i < GeneralRegisters.Length; i++)
        {
            _a.mov(__qword_ptr[rax + Control(nameof(ControlPage.Registers)) + (8 * i)], GeneralRegisters[i]);
        }

        _a.mov(rbx, rax);
        _a.mov(rsp, CarrierLayout.RegisterFile + CarrierLayout.OwnStackEnd);
        _a.pushfq();
        _a.pop(Quad(nameof(ControlPage.Flags)));
        _a.mov(r8d, CarrierReport.Callout);
        _a.cld();
        _a.jmp(_publish);
    }

    // From guest code. RCX is where it goes on, and R11 is lost. The first instruction touches R11 alone, so that a guest which single-steps
    // itself is found there as it was. What the VMM needs to serve the call goes into the line of State, last; the rest stays on this core,
    // in lines that the VMM hardly ever asks for.
    private void Gate()
    {
        _a.Label(ref _gate);
        _a.mov(r11, CarrierLayout.Control);
        foreach (int kept in ControlPage.KeptInCall)
        {
            _a.mov(__qword_ptr[r11 + Control(nameof(ControlPage.Registers)) + (8 * kept)], GeneralRegisters[kept]);
        }

        _a.mov(rbx, r11);
        _a.mov(rdx, rsp);
        _a.mov(rsp, CarrierLayout.RegisterFile + CarrierLayout.OwnStackEnd);
        _a.pushfq();
        _a.pop(r9);
        _a.cld();
        _a.mov(r8d, CarrierReport.Hypercall);
        _a.mov(Quad(nameof(ControlPage.CallRax)), rax);
        _a.mov(Quad(nameof(ControlPage.CallRdi)), rdi);
        _a.mov(Quad(nameof(ControlPage.CallRsi)), rsi);
        _a.mov(Quad(nameof(ControlPage.CallRsp)), rdx);
        _a.mov(Quad(nameof(ControlPage.CallRip)), rcx);
        _a.mov(Quad(nameof(ControlPage.CallFlags)), r9);
        _a.jmp(_publish);
    }

    // What lies in the CPU only while the guest is in a callout. FS and GS base too: directly executed code can change them by itself.
    // NT goes, which would make the IRETQ of the next entry fault.
    private void SaveFpu()
    {
        _a.Label(ref _saveFpu);
        _a.push((int)Rflags.AlwaysSet);
        _a.popfq();
        _a.rdfsbase(rax);
        _a.mov(Quad(nameof(ControlPage.FsBase)), rax);
        _a.rdgsbase(rax);
        _a.mov(Quad(nameof(ControlPage.GsBase)), rax);
        _a.mov(rdi, CarrierLayout.RegisterFile + CarrierLayout.FirstFpuOffset);
        _a.fxsave64(__[rdi]);
        _a.mov(r8d, CarrierReport.Ready);
        _a.jmp(_publish);
    }

    // In: EAX is Batch, BatchThenRun, SaveFpu or Switch (anything else, a guest's doing, ends the process). While the guest runs after
    // BatchThenRun, State still says so: the VMM waits for Exited only.
    private void Batch()
    {
        Label next = _a.CreateLabel();
        Label done = _a.CreateLabel();
        Label failed = _a.CreateLabel();
        Label known = _a.CreateLabel();
        Label finished = _a.CreateLabel();
        Label touch = _a.CreateLabel();
        _a.Label(ref _batch);
        _a.cmp(eax, CarrierState.Batch);
        _a.je(known);
        _a.cmp(eax, CarrierState.BatchThenRun);
        _a.je(known);
        _a.cmp(eax, CarrierState.Switch);
        _a.je(_switch);
        _a.cmp(eax, CarrierState.SaveFpu);
        _a.je(_saveFpu);
        _a.mov(edi, 98);
        _a.mov(eax, Linux.SysExitGroup);
        _a.syscall();

        _a.Label(ref known);
        _a.mov(r14d, eax);
        _a.mov(r13d, Word(nameof(ControlPage.BatchCount)));
        _a.lea(r12, __[rbx + CarrierLayout.BatchOffset]);
        _a.Label(ref next);
        _a.test(r13d, r13d);
        _a.je(done);
        _a.mov(rax, Entry(nameof(BatchEntry.Number)));
        _a.mov(rdi, Entry(nameof(BatchEntry.A0)));
        _a.mov(rsi, Entry(nameof(BatchEntry.A1)));
        _a.mov(rdx, Entry(nameof(BatchEntry.A2)));
        _a.mov(r10, Entry(nameof(BatchEntry.A3)));
        _a.mov(r8, Entry(nameof(BatchEntry.A4)));
        _a.mov(r9, Entry(nameof(BatchEntry.A5)));
        _a.test(rax, rax);
        _a.js(touch);
        _a.syscall();
        _a.mov(Entry(nameof(BatchEntry.Result)), rax);
        _a.cmp(rax, -4096);
        _a.ja(failed);
        _a.Label(ref finished);
        _a.add(r12, Marshal.SizeOf<BatchEntry>());
        _a.dec(r13d);
        _a.jmp(next);

        // BatchEntry.Touch: read a byte at A0 and at every fault-around boundary up to A1.
        _a.Label(ref touch);
        _a.mov(cl, __byte_ptr[rdi]);
        _a.add(rdi, CarrierLayout.FaultAround);
        _a.and(rdi, -CarrierLayout.FaultAround);
        _a.cmp(rdi, rsi);
        _a.jb(touch);
        _a.jmp(finished);

        _a.Label(ref failed);
        _a.mov(r8d, CarrierReport.BatchFailed);
        _a.jmp(_publish);

        _a.Label(ref done);
        _a.cmp(r14d, CarrierState.BatchThenRun);
        _a.je(_resume);
        _a.mov(r8d, CarrierReport.Ready);
        _a.jmp(_publish);
    }

    // The guest goes on in another carrier, on this core: wake that one, if it sleeps, and sleep. It has been told to run already, so that
    // this one must not spin a moment longer.
    private void Switch()
    {
        _a.Label(ref _switch);
        _a.mov(ebp, eax);
        _a.mov(rdi, Quad(nameof(ControlPage.Peer)));
        _a.test(rdi, rdi);
        _a.je(_wait);
        _a.mov(esi, Linux.FutexWake);
        _a.mov(edx, 1);
        _a.mov(eax, Linux.SysFutex);
        _a.syscall();
        _a.jmp(_wait);
    }

    // In: RDX ucontext of what was interrupted. The guest: an ordinary exit. The resume section: the guest has not run yet
    // and its frame is whole, so publish that. Anywhere else in the stub: remember, and go back to it.
    // The kernel blocks the signal while this runs, or a storm of kicks would nest frames until the signal stack is full.
    // rt_sigreturn unblocks it; the two ways out that do not end there leave word for Publish.
    private void Kick()
    {
        Label inStub = _a.CreateLabel();
        Label remember = _a.CreateLabel();
        Label notByRegisters = _a.CreateLabel();
        Label inResumeByRegisters = _a.CreateLabel();
        _a.Label(ref _kick);
        _a.mov(rbx, CarrierLayout.Control);
        _a.mov(rax, __qword_ptr[rdx + Context(nameof(SignalContext.Rip))]);
        _a.mov(rcx, CarrierLayout.Stub);
        _a.sub(rcx, rax);
        _a.neg(rcx); // RIP − Stub, unsigned
        _a.cmp(rcx, (int)CarrierLayout.StubSize);
        _a.jb(inStub);
        _a.mov(Word(nameof(ControlPage.KickBlocked)), 1);
        _a.jmp(_handler);

        _a.Label(ref inStub);
        _a.lea(rcx, __[_resumeByRegisters]);
        _a.cmp(rax, rcx);
        _a.jb(notByRegisters);
        _a.lea(rcx, __[_resumeByRegistersEnd]);
        _a.cmp(rax, rcx);
        _a.jb(inResumeByRegisters);
        _a.Label(ref notByRegisters);
        _a.lea(rcx, __[_resume]);
        _a.cmp(rax, rcx);
        _a.jb(remember);
        _a.lea(rcx, __[_resumeEnd]);
        _a.cmp(rax, rcx);
        _a.jae(remember);
        _a.cmp(Word(nameof(ControlPage.ByRegisters)), 0);
        _a.jne(inResumeByRegisters);
        _a.mov(Word(nameof(ControlPage.KickBlocked)), 1);
        _a.mov(r8d, CarrierReport.NotEntered);
        _a.jmp(_publish);

        // Its registers are in the control page, its x87 and SSE state now in this frame: back, and on to report.
        _a.Label(ref inResumeByRegisters);
        _a.mov(Word(nameof(ControlPage.KickPending)), 1);
        _a.lea(rcx, __[_resume]);
        _a.mov(__qword_ptr[rdx + Context(nameof(SignalContext.Rip))], rcx);
        _a.mov(__qword_ptr[rdx + Context(nameof(SignalContext.Rbx))], rbx);
        _a.mov(rsp, rdx);
        _a.jmp(_signalReturn);

        _a.Label(ref remember);
        _a.mov(Word(nameof(ControlPage.KickPending)), 1);
        _a.mov(rsp, rdx);
        _a.jmp(_signalReturn);
    }

    // Calibration only: what delivery and return cost when nothing is done in between. In: RDX ucontext.
    private void Skip()
    {
        _a.Label(ref _skip);
        _a.mov(rbx, CarrierLayout.Control);
        _a.mov(rax, Quad(nameof(ControlPage.SkipLength)));
        _a.add(__qword_ptr[rdx + Context(nameof(SignalContext.Rip))], rax);
        _a.mov(rsp, rdx);
        _a.jmp(_signalReturn);

        _a.Label(ref _skipByIret);
        _a.mov(rbx, CarrierLayout.Control);
        _a.mov(rax, Quad(nameof(ControlPage.SkipLength)));
        _a.add(__qword_ptr[rdx + Context(nameof(SignalContext.Rip))], rax);
        _a.mov(rdi, rdx);
        _a.jmp(_resumeByIret);
    }
}
