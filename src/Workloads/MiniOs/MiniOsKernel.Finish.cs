using Iced.Intel;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Interrupts;
using static Iced.Intel.AssemblerRegisters;
using Field = VirtBench.Workloads.MiniOsStatistics.Field;

namespace VirtBench.Workloads;

// The measured region, and the end of it all.
internal sealed partial class MiniOsKernel
{
    private Label _rendezvous;
    private Label _finish;

    /// <summary>
    /// A process has executed INT3, with its units so far in RDI: it waits until all have. The first time that begins the
    /// measured region, the second time it ends it. It is no system call, so that a region holds those of the units only.
    /// </summary>
    private void EmitRendezvous()
    {
        GuestAssembler a = _a;
        Label complete = a.CreateLabel();
        Label next = a.CreateLabel();
        Label end = a.CreateLabel();
        a.Label(ref _rendezvous);
        a.mov(__[rbx + ProcessBlock.Units], rdi);
        a.mov(__qword_ptr[rbx + ProcessBlock.State], (int)ProcessState.AtRendezvous);
        a.inc(At(KernelVariable.Arrived));
        a.cmp(At(KernelVariable.Arrived), _processes);
        a.je(complete);
        a.jmp(_schedule);

        a.Label(ref complete);
        a.mov(At(KernelVariable.Arrived), 0);
        a.xor(r12d, r12d); // all units
        a.mov(ecx, (uint)MiniOsLayout.Processes);
        a.Label(ref next);
        a.mov(__qword_ptr[rcx + ProcessBlock.State], (int)ProcessState.Ready);
        a.add(r12, __[rcx + ProcessBlock.Units]);
        a.add(ecx, ProcessBlock.Size);
        a.cmp(ecx, ProcessesEnd(_processes));
        a.jb(next);
        a.inc(At(KernelVariable.Rendezvous));
        a.cmp(At(KernelVariable.Rendezvous), 1);
        a.jne(end);
        ReadTimeStamp();
        a.mov(At(KernelVariable.RegionStart), rax);
        a.mov(eax, Workload.MeasuredRegionId);
        a.@out((byte)MeasurementPorts.Begin, eax);
        a.jmp(_schedule);

        a.Label(ref end);
        a.mov(rax, r12);
        a.shr(rax, 32);
        a.@out((byte)MeasurementPorts.UnitsHigh, eax);
        a.mov(eax, r12d);
        a.@out((byte)MeasurementPorts.End, eax);
        ReadTimeStamp();
        a.sub(rax, At(KernelVariable.RegionStart));
        a.mov(At(KernelVariable.RegionTicks), rax);
        a.jmp(_schedule);
    }

    /// <summary>The last process has ended: prints what they have written, combines their results and leaves them.</summary>
    private void EmitFinish()
    {
        GuestAssembler a = _a;
        a.Label(ref _finish);
        a.mov(rax, At(KernelVariable.FreeFrames));
        a.mov(At(Field.FreeFramesAtEnd), rax);
        LookAtTimer();

        a.xor(r12d, r12d);
        a.mov(r13, MiniOs.Seed(0));
        for (int process = 0; process < _processes; process++)
        {
            a.mov(eax, (uint)Process(process));
            a.rol(r12, 13);
            a.xor(r12, __[rax + ProcessBlock.Result]);
            a.imul(r12, r13);
        }

        PrintOutputs();
        ReadTimeStamp();
        a.mov(At(Field.TimerReadLatest), rax);
        Say($"mini-os: {_processes} processes, ");
        a.mov(rdi, At(KernelVariable.Units));
        a.call(_printDecimal);
        Say(" work units\nmini-os: checksum ");
        a.mov(rdi, r12);
        a.call(_printHexadecimal);
        Say("\n");

        a.mov(eax, (uint)WorkloadResult.Address);
        a.mov(__[rax], r12);
        a.mov(rcx, At(KernelVariable.RegionTicks));
        a.mov(__[rax + 8], rcx);
        WriteResults();
        EmitExit(0);
    }

    /// <summary>Of each process that has written anything. Clobbers rax, rcx, rdx, rsi, rdi and r11.</summary>
    private void PrintOutputs()
    {
        GuestAssembler a = _a;
        for (int process = 0; process < _processes; process++)
        {
            Label silent = a.CreateLabel();
            a.mov(esi, (uint)Process(process) + ProcessBlock.OutputLength);
            a.cmp(__qword_ptr[rsi], 0);
            a.je(silent);
            a.call(_print);
            a.Label(ref silent);
            a.nop();
        }
    }

    /// <summary>
    /// Reads the count once more: the timer's account is then that of this moment or later, up to the first character on the
    /// console. Interrupts are off since the last process gave up the CPU. Clobbers rax and rdx.
    /// </summary>
    private void LookAtTimer()
    {
        const int latchChannel0 = 0;
        GuestAssembler a = _a;
        ReadTimeStamp();
        a.mov(At(Field.TimerReadEarliest), rax);
        Out(IntervalTimer.FirstPort + 3, latchChannel0);
        a.@in(al, (byte)IntervalTimer.FirstPort);
        a.@in(al, (byte)IntervalTimer.FirstPort);
    }

    private void EmitExit(byte status)
    {
        Out(ExitPort.Port, status);
        _a.ud2();
    }
}
