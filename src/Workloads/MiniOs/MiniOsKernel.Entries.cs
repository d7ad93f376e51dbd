using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;
using Field = VirtBench.Workloads.MiniOsStatistics.Field;

namespace VirtBench.Workloads;

// Into the kernel and out of it: exceptions, interrupts, SYSCALL, and the return from all of them.
internal sealed partial class MiniOsKernel
{
    private static readonly AssemblerRegister64[] Saved =
    [
        rax,
        rcx,
        rdx,
        rbx,
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

    /// <summary>In the frame's place for the vector: it was no event.</summary>
    private const int SystemCallVector = 0x100;

    /// <summary>The slave's line of the master.</summary>
    private const int CascadeLine = 2;

    private Label _save;
    private Label _resume;
    private Label _systemCall;
    private Label _panic;

    /// <returns>The entries by vector.</returns>
    private Label[] EmitEntries()
    {
        GuestAssembler a = _a;
        var stubs = new Label[MiniOsLayout.Gates];
        for (int vector = 0; vector < stubs.Length; vector++)
        {
            stubs[vector] = a.CreateLabel();
            a.Label(ref stubs[vector]);
            if (!Vector.HasErrorCode((byte)vector))
            {
                a.push(0);
            }

            a.push(vector);
            a.jmp(_save);
        }

        a.Label(ref _save);
        EmitSave();
        EmitEventInKernel();
        EmitSystemCallEntry();
        EmitEnteredInRing3();
        EmitResume();
        EmitPanic();
        return stubs;
    }

    /// <summary>
    /// Every event. From ring 3 the stack is the block of the process, by the TSS; the registers belong there. From ring 0 it is
    /// the kernel stack.
    /// </summary>
    private void EmitSave()
    {
        GuestAssembler a = _a;
        PushRegisters();
        a.cld(); // as the kernel's string instructions want it, and ring 3 may not have left it
        a.mov(rbx, rsp);
        a.mov(eax, __dword_ptr[rbx + ProcessBlock.Vector]);
        a.test(__byte_ptr[rbx + ProcessBlock.Cs], 3);
        Label inKernel = a.CreateLabel();
        a.je(inKernel);

        a.mov(esp, (uint)MiniOsLayout.KernelStackTop);
        a.cmp(eax, MiniOsLayout.TimerInterrupt);
        a.je(_timerInUserMode);
        a.cmp(eax, Vector.PageFault);
        a.je(_pageFault);
        a.cmp(eax, Vector.Breakpoint);
        a.je(_rendezvous);
        Label other = a.CreateLabel();
        a.call(_countSpurious);
        a.jne(other);
        a.jmp(_resume);
        a.Label(ref other);
        a.jmp(_panic);
        a.Label(ref inKernel);
    }

    /// <summary>
    /// In ring 0 only the idle loop can be interrupted. It goes on behind its sleep; all else is a mistake of the kernel's.
    /// </summary>
    private void EmitEventInKernel()
    {
        GuestAssembler a = _a;
        Label timer = a.CreateLabel();
        Label done = a.CreateLabel();
        a.cmp(eax, MiniOsLayout.TimerInterrupt);
        a.je(timer);
        a.call(_countSpurious);
        a.je(done);
        a.jmp(_panic);
        a.Label(ref timer);
        a.inc(At(Field.IdleTicks));
        a.call(_tick);
        a.Label(ref done);
        PopRegisters();
        a.InterruptReturn();

        // ZF when vector eax is an 8259A's for a request that had gone. The master has one of its own in service for the
        // slave's, and none for its own. Clobbers rax, rcx, rdi, r11 and flags, but rax only when ZF.
        Label slave = a.CreateLabel();
        Label none = a.CreateLabel();
        a.Label(ref _countSpurious);
        a.cmp(eax, MiniOsLayout.SlaveSpurious);
        a.je(slave);
        a.cmp(eax, MiniOsLayout.MasterSpurious);
        a.jne(none);
        a.inc(At(Field.Spurious));
        a.cmp(eax, eax);
        a.Label(ref none);
        a.ret();
        a.Label(ref slave);
        a.inc(At(Field.Spurious));
        a.EndOfInterrupt(CascadeLine);
        a.cmp(eax, eax);
        a.ret();
    }

    private Label _countSpurious;

    /// <summary>SYSCALL: the stack is still the caller's, and nothing but variables may be touched before it is changed.</summary>
    private void EmitSystemCallEntry()
    {
        GuestAssembler a = _a;
        a.Label(ref _systemCall);
        a.mov(At(KernelVariable.CallerStack), rsp);
        a.mov(rsp, At(KernelVariable.FrameEnd));
        a.push(MiniOsLayout.UserDataSelector);
        a.push(At(KernelVariable.CallerStack));
        a.push(r11);
        a.push(MiniOsLayout.UserCodeSelector);
        a.push(rcx);
        a.push(0);
        a.push(SystemCallVector);
        PushRegisters();
        a.mov(rbx, rsp);
        a.mov(esp, (uint)MiniOsLayout.KernelStackTop);
        EmitDispatchCall();
    }

    /// <summary>
    /// A page fault of ring 3 that no paging explains. kvm_pvm, one of the modules behind /dev/kvm, comes from SYSCALL to its
    /// handler with RCX, R11 and RFLAGS as they should be, but still in ring 3, which may not fetch there. What the
    /// frame then lacks is in RCX and R11, and the call can go on. On other machines a process can call so, too: it gains nothing, since no
    /// flag that matters is taken from R11.
    /// </summary>
    private void EmitEnteredInRing3()
    {
        const int fetch = (int)(PageFaultError.Fetch | PageFaultError.User | PageFaultError.Protection);
        const int harmless = 0xCD5; // CF, PF, AF, ZF, SF, DF and OF
        GuestAssembler a = _a;
        Label isCall = a.CreateLabel();
        Label other = a.CreateLabel();
        a.Label(ref _enteredInRing3);
        a.ReadFaultAddress(rcx);
        a.lea(rax, __[_systemCall]);
        a.cmp(rcx, rax);
        a.jne(other);
        a.cmp(__dword_ptr[rbx + ProcessBlock.ErrorCode], fetch);
        a.je(isCall);
        a.Label(ref other);
        a.jmp(_panic);
        a.Label(ref isCall);
        a.mov(rax, __[rbx + ProcessBlock.Rcx]);
        a.mov(__[rbx + ProcessBlock.Rip], rax);
        a.mov(rax, __[rbx + ProcessBlock.R11]);
        a.and(eax, harmless);
        a.or(eax, (int)EnabledFlags);
        a.mov(__[rbx + ProcessBlock.Rflags], rax);
        a.mov(rax, __[rbx + ProcessBlock.Rax]);
        a.mov(rsi, __[rbx + ProcessBlock.Rsi]);
        EmitDispatchCall();
    }

    private Label _enteredInRing3;

    /// <summary>Back to the process at rbx, which is loaded.</summary>
    private void EmitResume()
    {
        _a.Label(ref _resume);
        _a.mov(rsp, rbx);
        PopRegisters();
        _a.InterruptReturnUnmasked();
    }

    /// <summary>One line that names the event whose frame is at rbx, and the end.</summary>
    private void EmitPanic()
    {
        GuestAssembler a = _a;
        a.Label(ref _panic);
        (string Name, int Offset)[] fields =
        [
            ("mini-os: panic: vector 0x", ProcessBlock.Vector),
            (", error 0x", ProcessBlock.ErrorCode),
            (", rip 0x", ProcessBlock.Rip),
        ];
        foreach ((string name, int offset) in fields)
        {
            Say(name);
            a.mov(rdi, __[rbx + offset]);
            a.call(_printHexadecimal);
        }

        Say(", cr2 0x");
        a.ReadFaultAddress(rdi);
        a.call(_printHexadecimal);
        Say("\n");
        EmitExit(1);
    }

    private void PushRegisters()
    {
        foreach (AssemblerRegister64 register in Saved)
        {
            _a.push(register);
        }
    }

    /// <summary>And drops vector and error code.</summary>
    private void PopRegisters()
    {
        foreach (AssemblerRegister64 register in Enumerable.Reverse(Saved))
        {
            _a.pop(register);
        }

        _a.add(rsp, 16);
    }
}
