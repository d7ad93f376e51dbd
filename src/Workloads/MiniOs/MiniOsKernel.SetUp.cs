using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;
using Field = VirtBench.Workloads.MiniOsStatistics.Field;

namespace VirtBench.Workloads;

// From the boot protocol's state to the first process: tables, MSRs, parameters, frames, processes, 8259A, 8254.
internal sealed partial class MiniOsKernel
{
    private const ulong EnabledFlags = Rflags.If | Rflags.AlwaysSet;

    /// <summary>What SYSCALL clears: TF, IF, DF, IOPL, NT and AC, so that the kernel begins as behind an interrupt gate.</summary>
    private const uint ClearedBySystemCall = 0x4_7700;

    private void EmitSetUp()
    {
        GuestAssembler a = _a;
        Label enoughRam = a.CreateLabel();
        a.mov(esp, (uint)MiniOsLayout.KernelStackTop);
        a.cmp(__qword_ptr[rdi + 8], (int)MiniOsLayout.RamBytes);
        a.jae(enoughRam);
        Say($"mini-os: needs {MiniOsLayout.RamBytes >> 20} MiB of RAM\n");
        EmitExit(1);
        a.Label(ref enoughRam);

        a.mov(r12, rdi); // the boot information, which hypercalls clobber
        LoadTables();
        a.mov(rdi, r12);
        SetSystemCallEntry();
        ReadParameters();
        FillFreeFrames();
        CreateProcesses();
        OverflowStackIfTold();
        ReadStore();
        ProgramInterruptController();
        StartTimer();
        a.jmp(_schedule);
    }

    /// <summary>The kernel's own page tables, GDT, IDT and TSS. CS and SS mean the same in the new GDT as in the boot one.</summary>
    private void LoadTables()
    {
        GuestAssembler a = _a;
        a.mov(eax, (uint)MiniOsLayout.KernelPml4);
        a.WriteCr3(rax);
        a.lgdt(__[MiniOsLayout.DescriptorPointers]);
        a.lidt(__[MiniOsLayout.DescriptorPointers + 16]);
        a.mov(eax, MiniOsLayout.TssSelector);
        a.ltr(ax);
    }

    private void OverflowStackIfTold()
    {
        GuestAssembler a = _a;
        Label behave = a.CreateLabel();
        Label again = a.CreateLabel();
        a.cmp(At(KernelVariable.Misbehaviour), (int)MiniOsMisbehaviour.KernelStack);
        a.jne(behave);
        a.Label(ref again);
        a.call(again);
        a.Label(ref behave);
    }

    private void SetSystemCallEntry()
    {
        GuestAssembler a = _a;

        // SYSRET's half is set as well, though nothing here uses it: SS 0x18 and CS 0x20.
        ulong star =
            ((ulong)MiniOsLayout.KernelCodeSelector << 32) | ((ulong)(MiniOsLayout.KernelDataSelector | 3) << 48);
        WriteMsr(Msr.Star, star);
        WriteMsr(Msr.Fmask, ClearedBySystemCall);
        WriteMsr(Msr.Efer, Efer.Sce | Efer.Lme | Efer.Lma | Efer.Nxe);
        a.lea(rax, __[_systemCall]);
        a.xor(edx, edx);
        a.mov(ecx, Msr.Lstar);
        a.wrmsr();
    }

    private void WriteMsr(uint msr, ulong value)
    {
        _a.mov(ecx, msr);
        _a.mov(eax, (uint)value);
        _a.mov(edx, (uint)(value >> 32));
        _a.wrmsr();
    }

    private void ReadParameters()
    {
        GuestAssembler a = _a;
        (MiniOsParameter Parameter, KernelVariable Variable, ulong Default)[] parameters =
        [
            (MiniOsParameter.WarmUp, KernelVariable.WarmUp, 0),
            (MiniOsParameter.Units, KernelVariable.Units, 0),
            (MiniOsParameter.Quantum, KernelVariable.Quantum, MiniOs.DefaultQuantum),
            (MiniOsParameter.RunTicks, KernelVariable.RunTicks, 0),
            (MiniOsParameter.RestTicks, KernelVariable.RestTicks, 0),
            (MiniOsParameter.Misbehaviour, KernelVariable.Misbehaviour, 0),
        ];
        foreach ((MiniOsParameter parameter, KernelVariable variable, ulong fallback) in parameters)
        {
            a.mov(rax, Parameter(parameter));
            if (fallback != 0)
            {
                a.mov(ecx, (uint)fallback);
                a.test(rax, rax);
                a.cmove(rax, rcx);
            }

            a.mov(At(variable), rax);
        }

        Label given = a.CreateLabel();
        Label good = a.CreateLabel();
        Label bad = a.CreateLabel();
        a.mov(rcx, Parameter(MiniOsParameter.TimerHertz));
        a.test(rcx, rcx);
        a.jne(given);
        a.mov(ecx, MiniOs.DefaultTimerHertz);
        a.Label(ref given);
        a.cmp(rcx, MiniOs.MinimumTimerHertz);
        a.jb(bad);
        a.cmp(rcx, MiniOs.MaximumTimerHertz);
        a.jbe(good);
        a.Label(ref bad);
        Say($"mini-os: the timer has {MiniOs.MinimumTimerHertz} to {MiniOs.MaximumTimerHertz} Hz\n");
        EmitExit(1);
        a.Label(ref good);
        a.mov(eax, (uint)IntervalTimer.Hertz);
        a.xor(edx, edx);
        a.div(rcx);
        a.mov(At(Field.TimerReload), rax);
        a.mov(__qword_ptr[MiniOsStatistics.AddressOf(Field.Processes)], _processes);
    }

    /// <summary>The highest first, so that the lowest is on top.</summary>
    private void FillFreeFrames()
    {
        const int frames = (int)((MiniOsLayout.FramesEnd - MiniOsLayout.FramesStart) / GuestMemory.PageSize);
        GuestAssembler a = _a;
        Label next = a.CreateLabel();
        a.mov(eax, (uint)MiniOsLayout.FramesEnd);
        a.mov(edi, (uint)MiniOsLayout.FreeFrames);
        a.mov(ecx, frames);
        a.Label(ref next);
        a.sub(eax, (int)GuestMemory.PageSize);
        a.mov(__[rdi], rax);
        a.add(edi, 8);
        a.dec(ecx);
        a.jne(next);
        a.mov(At(KernelVariable.FreeFrames), frames);
        a.mov(At(Field.FreeFramesAtStart), frames);
        a.mov(At(Field.FewestFreeFrames), frames);
    }

    private void CreateProcesses()
    {
        GuestAssembler a = _a;
        Label create = a.CreateLabel();
        Label done = a.CreateLabel();
        for (int process = 0; process < _processes; process++)
        {
            a.mov(ebx, (uint)Process(process));
            a.mov(r12d, process + 1);
            a.mov(r13, MiniOs.Seed(process));
            a.mov(r14d, _processes - 1 - process);
            a.call(create);
        }

        a.mov(At(KernelVariable.Living), _processes);
        a.mov(ebx, (uint)Process(_processes - 1));
        a.mov(At(KernelVariable.Last), rbx);
        a.jmp(done);

        a.Label(ref create);
        EmitCreateProcess();
        a.ret();
        a.Label(ref done);
    }

    /// <summary>
    /// Makes the process at rbx: number r12, seed r13, and r14 as many as there are behind it, for its share of the units.
    /// Clobbers rax, rcx, rdx, rsi, rdi, r8 and r9.
    /// </summary>
    private void EmitCreateProcess()
    {
        const int rights = (int)(Pte.Present | Pte.Writable | Pte.User);
        GuestAssembler a = _a;
        a.call(_takeFrame);
        a.mov(r8, rax); // PML4
        a.mov(__[rbx + ProcessBlock.Cr3], rax);
        a.call(_takeFrame);
        a.mov(r9, rax); // page-directory pointers
        a.lea(rcx, __[rax + rights]);
        a.mov(__[r8], rcx);
        a.mov(__qword_ptr[r9], (int)(MiniOsLayout.KernelDirectory | Pte.Present | Pte.Writable));
        a.call(_takeFrame);
        a.lea(rcx, __[rax + rights]);
        a.mov(__[r9 + 8], rcx);
        a.mov(__qword_ptr[rax], (int)(MiniOsLayout.ProgramTable | Pte.Present | Pte.User));

        a.mov(__qword_ptr[rbx + ProcessBlock.State], (int)ProcessState.Ready);
        a.mov(__qword_ptr[rbx + ProcessBlock.Break], (int)MiniOsLayout.Heap);
        a.mov(__qword_ptr[rbx + ProcessBlock.Rip], (int)MiniOsLayout.Program);
        a.mov(__qword_ptr[rbx + ProcessBlock.Cs], MiniOsLayout.UserCodeSelector);
        a.mov(__qword_ptr[rbx + ProcessBlock.Rflags], (int)EnabledFlags);
        a.mov(__qword_ptr[rbx + ProcessBlock.Rsp], (int)MiniOsLayout.StackTop);
        a.mov(__qword_ptr[rbx + ProcessBlock.Ss], MiniOsLayout.UserDataSelector);

        a.mov(__[rbx + ProcessBlock.Rdi], r12);
        a.mov(__[rbx + ProcessBlock.Rsi], r13);
        Share(KernelVariable.WarmUp, ProcessBlock.R8);
        Share(KernelVariable.Units, ProcessBlock.R9);
        a.mov(rax, At(KernelVariable.RunTicks));
        a.mov(__[rbx + ProcessBlock.R10], rax);
        a.mov(rax, At(KernelVariable.RestTicks));
        a.mov(__[rbx + ProcessBlock.R11], rax);
        a.mov(rax, At(KernelVariable.Misbehaviour));
        a.mov(__[rbx + ProcessBlock.Rax], rax);
    }

    /// <summary>A process's part of the units, the remainder to the first ones. Clobbers rax, rcx and rdx.</summary>
    private void Share(KernelVariable units, int register)
    {
        _a.mov(rax, At(units));
        _a.add(rax, r14);
        _a.xor(edx, edx);
        _a.mov(ecx, _processes);
        _a.div(rcx);
        _a.mov(__[rbx + register], rax);
    }

    /// <summary>
    /// ICW1 to ICW4 of both chips (Intel 8259A data sheet): edge-triggered, cascaded, vectors behind the exceptions', normal
    /// end of interrupt; all lines masked but the timer's. Clobbers rax.
    /// </summary>
    private void ProgramInterruptController()
    {
        const byte initialize = 0x11; // ICW4 follows, cascade, edges
        const byte mode8086 = 0x01;
        const byte slaveOnLine2 = 1 << 2;
        const byte slaveIdentity = 2;
        (int Port, int Value)[] words =
        [
            (InterruptController.MasterPort, initialize),
            (InterruptController.SlavePort, initialize),
            (InterruptController.MasterPort + 1, MiniOsLayout.FirstInterrupt),
            (InterruptController.SlavePort + 1, MiniOsLayout.FirstInterrupt + 8),
            (InterruptController.MasterPort + 1, slaveOnLine2),
            (InterruptController.SlavePort + 1, slaveIdentity),
            (InterruptController.MasterPort + 1, mode8086),
            (InterruptController.SlavePort + 1, mode8086),
            (InterruptController.MasterPort + 1, 0xFF & ~(1 << IntervalTimer.Line)),
            (InterruptController.SlavePort + 1, 0xFF),
        ];
        foreach ((int port, int value) in words)
        {
            Out(port, value);
        }
    }

    /// <summary>Channel 0 in mode 2, low byte then high (Intel 82C54 data sheet). Clobbers rax and rdx.</summary>
    private void StartTimer()
    {
        const int rateGenerator = 0x34;
        GuestAssembler a = _a;
        Out(IntervalTimer.FirstPort + 3, rateGenerator);
        ReadTimeStamp();
        a.mov(At(Field.TimerStartEarliest), rax);
        a.mov(rax, At(Field.TimerReload));
        a.@out((byte)IntervalTimer.FirstPort, al);
        a.mov(al, ah);
        a.@out((byte)IntervalTimer.FirstPort, al);
        ReadTimeStamp();
        a.mov(At(Field.TimerStartLatest), rax);
    }

    /// <summary>Clobbers rax.</summary>
    private void Out(int port, int value)
    {
        _a.mov(eax, value);
        _a.@out((byte)port, al);
    }

    /// <summary>rax = time-stamp counter. Clobbers rdx and flags.</summary>
    private void ReadTimeStamp()
    {
        _a.rdtsc();
        _a.shl(rdx, 32);
        _a.or(rax, rdx);
    }

    private static ulong Process(int index) => MiniOsLayout.Processes + (ulong)(index * ProcessBlock.Size);
}
