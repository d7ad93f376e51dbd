using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

// The disk, where there is one: programs are read from it before anything runs, results written when nothing runs any more. Neither time are there
// interrupts, so that the kernel polls.
internal sealed partial class MiniOsKernel
{
    private const ulong Buffer = MiniOsLayout.DiskBuffer;

    private readonly DiskDriver _disk;
    private Label _transfer;
    private Label _readBlocks;

    /// <summary>
    /// Reads program and constants over those of the image; without a disk these stay. Clobbers rax, rcx, rdx, rsi, rdi and r8 to r14.
    /// </summary>
    private void ReadStore()
    {
        GuestAssembler a = _a;
        Label none = a.CreateLabel();
        Label bad = a.CreateLabel();
        a.call(_disk.Initialize);
        a.mov(At(KernelVariable.DiskSectors), rax);
        a.test(rax, rax);
        a.je(none);
        a.xor(r12d, r12d);
        a.mov(r13d, (uint)Buffer);
        a.lea(r14, __[r13 + 1]);
        a.call(_readBlocks);
        a.mov(rax, MiniOsStore.Magic);
        a.cmp(__qword_ptr[Buffer], rax);
        a.jne(bad);
        a.mov(rax, __qword_ptr[Buffer + MiniOsStore.ResultsSector]);
        a.mov(At(KernelVariable.ResultsSector), rax);
        a.push(__qword_ptr[Buffer + MiniOsStore.ConstantsSector]);
        a.push(__qword_ptr[Buffer + MiniOsStore.ConstantsBytes]);
        a.push(__qword_ptr[Buffer + MiniOsStore.ProgramSector]);
        a.push(__qword_ptr[Buffer + MiniOsStore.ProgramBytes]);
        foreach (
            (ulong at, ulong room) in ((ulong, ulong)[])
                [
                    (MiniOsLayout.ProgramImage, MiniOsLayout.Constants - MiniOsLayout.Program),
                    (MiniOsLayout.ConstantsImage, DiskBlock.Bytes),
                ]
        )
        {
            a.pop(r14);
            a.pop(r12);
            a.cmp(r14, (int)room);
            a.ja(bad);
            a.mov(r13d, (uint)at);
            a.add(r14, r13);
            a.call(_readBlocks);
        }

        a.jmp(none);
        a.Label(ref bad);
        Say("mini-os: the disk has no program store\n");
        EmitExit(1);
        a.Label(ref none);
    }

    /// <summary>Writes a result for each process, and r12, the checksum of all. Clobbers rax, rcx, rdx, rsi, rdi and r8 to r11.</summary>
    private void WriteResults()
    {
        GuestAssembler a = _a;
        Label none = a.CreateLabel();
        a.cmp(At(KernelVariable.DiskSectors), 0);
        a.je(none);
        for (int process = 0; process <= _processes; process++)
        {
            a.mov(rax, MiniOsStore.ResultMagic);
            a.mov(__qword_ptr[Buffer], rax);
            a.mov(__qword_ptr[Buffer + MiniOsStore.ResultProcess], process);
            if (process == 0)
            {
                a.mov(__qword_ptr[Buffer + MiniOsStore.ResultChecksum], r12);
                a.mov(__qword_ptr[Buffer + MiniOsStore.ResultRounds], 0);
            }
            else
            {
                a.mov(ecx, (uint)Process(process - 1));
                a.mov(rax, __[rcx + ProcessBlock.Result]);
                a.mov(__qword_ptr[Buffer + MiniOsStore.ResultChecksum], rax);
                a.mov(rax, __[rcx + ProcessBlock.Rounds]);
                a.mov(__qword_ptr[Buffer + MiniOsStore.ResultRounds], rax);
            }

            a.mov(rdi, At(KernelVariable.ResultsSector));
            a.add(rdi, process);
            a.mov(esi, (uint)Buffer);
            a.mov(edx, 512);
            a.mov(ecx, (int)DiskTransfer.Write);
            a.call(_transfer);
        }

        a.xor(edi, edi);
        a.xor(esi, esi);
        a.xor(edx, edx);
        a.mov(ecx, (int)DiskTransfer.Flush);
        a.call(_transfer);
        a.Label(ref none);
    }

    /// <summary>The driver, and what the kernel puts on top of it.</summary>
    private void EmitDisk()
    {
        GuestAssembler a = _a;
        Label done = a.CreateLabel();

        // One request, as Submit has it. Clobbers what the driver clobbers.
        a.Label(ref _transfer);
        a.call(_disk.Submit);
        a.push(rax);
        a.call(_disk.Notify);
        a.pop(rdi);
        a.jmp(_disk.Poll);

        // Blocks from sector r12 on, to r13 up to the block that holds what is before r14.
        a.Label(ref _readBlocks);
        a.cmp(r13, r14);
        a.jae(done);
        a.mov(rdi, r12);
        a.mov(rsi, r13);
        a.mov(edx, DiskBlock.Bytes);
        a.mov(ecx, (int)DiskTransfer.Read);
        a.call(_transfer);
        a.add(r12, DiskBlock.Sectors);
        a.add(r13, DiskBlock.Bytes);
        a.jmp(_readBlocks);
        a.Label(ref done);
        a.ret();

        _disk.Emit();
        _disk.EmitFailures();
    }
}
