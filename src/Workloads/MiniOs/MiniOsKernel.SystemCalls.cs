using Iced.Intel;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;
using Field = VirtBench.Workloads.MiniOsStatistics.Field;

namespace VirtBench.Workloads;

// What processes ask for. Arguments still are in their registers; nothing of a process's memory is read or written.
internal sealed partial class MiniOsKernel
{
    private Label _refuse;
    private Label _answer;

    /// <summary>By number, behind the entry. Clobbers rax.</summary>
    private void EmitDispatchCall()
    {
        GuestAssembler a = _a;
        Label unknown = a.CreateLabel();
        a.cmp(rax, MiniOsStatistics.CallCount);
        a.jae(unknown);
        a.inc(__qword_ptr[(rax * 8) + (int)MiniOsStatistics.AddressOf(Field.FirstCall)]);
        for (int call = 0; call < MiniOsStatistics.CallCount; call++)
        {
            a.cmp(eax, call);
            a.je(_calls[call]);
        }

        a.Label(ref unknown);
        a.inc(At(Field.UnknownCalls));
        a.jmp(_refuse);
    }

    private readonly Label[] _calls = new Label[MiniOsStatistics.CallCount];

    private void EmitSystemCalls()
    {
        GuestAssembler a = _a;
        Begin(MiniOsCall.Yield);
        a.mov(__qword_ptr[rbx + ProcessBlock.Rax], 0);
        a.jmp(_schedule);

        Begin(MiniOsCall.Ticks);
        a.mov(rax, At(Field.Ticks));
        a.jmp(_answer);

        Begin(MiniOsCall.Discard);
        a.cmp(rdi, (int)MiniOsLayout.Heap);
        a.jb(_refuse);
        a.cmp(rdi, __[rbx + ProcessBlock.Break]);
        a.jae(_refuse);
        a.mov(rsi, rdi);
        a.and(rsi, -(int)GuestMemory.PageSize);
        a.mov(ecx, 1);
        a.call(_discardPages);
        a.xor(eax, eax);
        a.jmp(_answer);

        Begin(MiniOsCall.Break);
        EmitBreak();

        Begin(MiniOsCall.Sleep);
        a.mov(__qword_ptr[rbx + ProcessBlock.Rax], 0);
        a.test(rdi, rdi);
        a.je(_schedule);
        a.add(rdi, At(Field.Ticks));
        a.mov(__[rbx + ProcessBlock.WakeAt], rdi);
        a.mov(__qword_ptr[rbx + ProcessBlock.State], (int)ProcessState.Sleeping);
        a.jmp(_schedule);

        Begin(MiniOsCall.Write);
        EmitWrite();

        Begin(MiniOsCall.Round);
        EmitRound();

        Begin(MiniOsCall.Exit);
        EmitEndProcess();

        a.Label(ref _refuse);
        a.mov(rax, -1);
        a.Label(ref _answer);
        a.mov(__[rbx + ProcessBlock.Rax], rax);
        a.jmp(_resume);
    }

    private void Begin(MiniOsCall call) => _a.Label(ref _calls[(int)call]);

    private void EmitBreak()
    {
        const int pageMask = (int)GuestMemory.PageSize - 1;
        GuestAssembler a = _a;
        a.cmp(rdi, (int)MiniOsLayout.Heap);
        a.jb(_refuse);
        a.cmp(rdi, (int)MiniOsLayout.HeapLimit);
        a.ja(_refuse);
        Label grown = a.CreateLabel();
        a.mov(rcx, __[rbx + ProcessBlock.Break]);
        a.mov(__[rbx + ProcessBlock.Break], rdi);
        a.mov(__[rbx + ProcessBlock.Rax], rdi);
        a.lea(rsi, __[rdi + pageMask]);
        a.shr(rsi, 12);
        a.add(rcx, pageMask);
        a.shr(rcx, 12);
        a.sub(rcx, rsi);
        a.jbe(grown);
        a.shl(rsi, 12);
        a.call(_discardPages);
        a.Label(ref grown);
        a.jmp(_resume);
    }

    /// <summary>Keeps the byte until the end: what is printed must not depend on who was first.</summary>
    private void EmitWrite()
    {
        GuestAssembler a = _a;
        a.mov(rcx, __[rbx + ProcessBlock.OutputLength]);
        a.cmp(ecx, ProcessBlock.OutputCapacity);
        a.jae(_refuse);
        a.mov(eax, edi);
        a.mov(__[rbx + rcx + ProcessBlock.Output], al);
        a.inc(rcx);
        a.mov(__[rbx + ProcessBlock.OutputLength], rcx);
        a.xor(eax, eax);
        a.jmp(_answer);
    }

    private void EmitRound()
    {
        GuestAssembler a = _a;
        Label first = a.CreateLabel();
        Label done = a.CreateLabel();
        a.inc(At(Field.Rounds));
        a.add(At(Field.Units), rsi);
        a.mov(rax, __[rbx + ProcessBlock.Rounds]);
        a.inc(__qword_ptr[rbx + ProcessBlock.Rounds]);
        a.test(rax, rax);
        a.je(first);
        a.cmp(rdi, __[rbx + ProcessBlock.FirstResult]);
        a.je(done);
        a.inc(At(Field.DeviatingRounds));
        a.jmp(done);
        a.Label(ref first);
        a.mov(__[rbx + ProcessBlock.FirstResult], rdi);
        a.Label(ref done);
        a.jmp(_answer);
    }

    /// <summary>Keeps the result and gives back all that the process had, its page tables last.</summary>
    private void EmitEndProcess()
    {
        GuestAssembler a = _a;
        a.mov(__[rbx + ProcessBlock.Result], rdi);
        a.mov(__qword_ptr[rbx + ProcessBlock.State], (int)ProcessState.Ended);
        a.mov(At(KernelVariable.Loaded), 0);
        a.mov(eax, (uint)MiniOsLayout.KernelPml4);
        a.WriteCr3(rax);

        a.mov(esi, (uint)MiniOsLayout.Heap);
        a.mov(ecx, (int)((MiniOsLayout.HeapLimit - MiniOsLayout.Heap) / GuestMemory.PageSize));
        a.call(_discardPages);
        GiveTable(MiniOsLayout.Heap);
        a.mov(esi, (uint)MiniOsLayout.StackBottom);
        a.mov(ecx, (int)MiniOsLayout.StackPages);
        a.call(_discardPages);
        GiveTable(MiniOsLayout.StackBottom);

        // Each table is found before the one above it is given back.
        a.mov(rdi, __[rbx + ProcessBlock.Cr3]);
        a.mov(rsi, rdi);
        Follow(rsi, 0);
        a.mov(rax, rsi);
        Follow(rax, 8);
        a.call(_giveFrame);
        a.mov(rax, rsi);
        a.call(_giveFrame);
        a.mov(rax, rdi);
        a.call(_giveFrame);

        a.dec(At(KernelVariable.Living));
        a.je(_finish);
        a.jmp(_schedule);
    }

    /// <summary>Gives back the page table for this address, if there is one. Clobbers rax, rcx, rdx, rsi and flags.</summary>
    private void GiveTable(ulong address)
    {
        GuestAssembler a = _a;
        Label none = a.CreateLabel();
        a.mov(esi, (uint)address);
        a.call(_tableOf);
        a.mov(rax, __[rdx]);
        a.test(rax, rax);
        a.je(none);
        a.and(rax, -(int)GuestMemory.PageSize);
        a.call(_giveFrame);
        a.Label(ref none);
        a.nop();
    }
}
