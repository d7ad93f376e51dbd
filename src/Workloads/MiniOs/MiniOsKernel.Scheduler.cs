using Iced.Intel;
using VirtBench.Vmm.Interrupts;
using static Iced.Intel.AssemblerRegisters;
using Field = VirtBench.Workloads.MiniOsStatistics.Field;

namespace VirtBench.Workloads;

// Who runs: the timer, the round robin, context switches, the idle loop.
internal sealed partial class MiniOsKernel
{
    private const int StackPointer0 = 4; // of a 64-bit TSS: Intel SDM vol. 3A, figure 8-11
    private const int XmmRegisters = 16;

    private Label _tick;
    private Label _timerInUserMode;
    private Label _schedule;

    private static uint ProcessesEnd(int processes) => (uint)Process(processes);

    private void EmitScheduler()
    {
        EmitTick();
        EmitTimerInUserMode();
        EmitSchedule();
    }

    /// <summary>Counts the tick and wakes who has slept long enough. Clobbers rax, rcx, rdi, r11 and flags.</summary>
    private void EmitTick()
    {
        GuestAssembler a = _a;
        Label next = a.CreateLabel();
        Label asleep = a.CreateLabel();
        a.Label(ref _tick);
        a.EndOfInterrupt(IntervalTimer.Line);
        a.mov(rax, At(Field.Ticks));
        a.inc(rax);
        a.mov(At(Field.Ticks), rax);
        a.mov(ecx, (uint)MiniOsLayout.Processes);
        a.Label(ref next);
        a.cmp(__dword_ptr[rcx + ProcessBlock.State], (int)ProcessState.Sleeping);
        a.jne(asleep);
        a.cmp(rax, __[rcx + ProcessBlock.WakeAt]);
        a.jb(asleep);
        a.mov(__dword_ptr[rcx + ProcessBlock.State], (int)ProcessState.Ready);
        a.Label(ref asleep);
        a.add(ecx, ProcessBlock.Size);
        a.cmp(ecx, ProcessesEnd(_processes));
        a.jb(next);
        a.ret();
    }

    /// <summary>The process goes on until its quantum is over.</summary>
    private void EmitTimerInUserMode()
    {
        GuestAssembler a = _a;
        Label over = a.CreateLabel();
        a.Label(ref _timerInUserMode);
        a.call(_tick);
        a.dec(At(KernelVariable.QuantumLeft));
        a.je(over);
        a.jmp(_resume);
        a.Label(ref over);
        a.inc(At(Field.Preemptions));
        a.jmp(_schedule);
    }

    /// <summary>
    /// Takes the next process that is ready, the last one at last. Interrupts are let in when there is none, by the
    /// sleep itself: none can come between the look and the sleep.
    /// </summary>
    private void EmitSchedule()
    {
        GuestAssembler a = _a;
        Label look = a.CreateLabel();
        Label inRange = a.CreateLabel();
        Label found = a.CreateLabel();
        Label load = a.CreateLabel();
        Label fresh = a.CreateLabel();

        a.Label(ref _schedule);
        a.mov(rbx, At(KernelVariable.Last));
        a.mov(ecx, _processes);
        a.Label(ref look);
        a.add(ebx, ProcessBlock.Size);
        a.cmp(ebx, ProcessesEnd(_processes));
        a.jb(inRange);
        a.mov(ebx, (uint)MiniOsLayout.Processes);
        a.Label(ref inRange);
        a.cmp(__dword_ptr[rbx + ProcessBlock.State], (int)ProcessState.Ready);
        a.je(found);
        a.dec(ecx);
        a.jne(look);

        a.inc(At(Field.Halts));
        a.WaitForInterrupt();
        a.jmp(_schedule);

        a.Label(ref found);
        a.mov(At(KernelVariable.Last), rbx);
        a.mov(rax, At(KernelVariable.Quantum));
        a.mov(At(KernelVariable.QuantumLeft), rax);
        a.mov(rdi, At(KernelVariable.Loaded));
        a.cmp(rdi, rbx);
        a.jne(load);
        a.jmp(_resume);

        // Another one than is loaded, if any is.
        a.Label(ref load);
        a.inc(At(Field.ContextSwitches));
        a.test(rdi, rdi);
        a.je(fresh);
        for (int i = 0; i < XmmRegisters; i++)
        {
            a.movups(__xmmword_ptr[rdi + ProcessBlock.Xmm + (i * 16)], Xmm(i));
        }

        a.Label(ref fresh);
        a.mov(At(KernelVariable.Loaded), rbx);
        a.lea(rax, __[rbx + ProcessBlock.FrameEnd]);
        a.mov(At(KernelVariable.FrameEnd), rax);
        a.mov(__qword_ptr[MiniOsLayout.Tss + StackPointer0], rax);
        a.mov(rax, __[rbx + ProcessBlock.Cr3]);
        a.WriteCr3(rax);
        for (int i = 0; i < XmmRegisters; i++)
        {
            a.movups(Xmm(i), __xmmword_ptr[rbx + ProcessBlock.Xmm + (i * 16)]);
        }

        a.jmp(_resume);
    }

    private static AssemblerRegisterXMM Xmm(int index) => new(Register.XMM0 + index);
}
