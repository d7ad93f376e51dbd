using Iced.Intel;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;
using Field = VirtBench.Workloads.MiniOsStatistics.Field;

namespace VirtBench.Workloads;

// Frames, page tables, demand paging.
internal sealed partial class MiniOsKernel
{
    private Label _takeFrame;
    private Label _giveFrame;
    private Label _tableOf;
    private Label _discardPages;
    private Label _pageFault;

    private void EmitMemory()
    {
        EmitTakeFrame();
        EmitGiveFrame();
        EmitTableOf();
        EmitDiscardPages();
        EmitPageFault();
    }

    /// <summary>rax = a frame of zeros. Clobbers rcx, rdi and flags.</summary>
    private void EmitTakeFrame()
    {
        GuestAssembler a = _a;
        Label some = a.CreateLabel();
        Label notFewer = a.CreateLabel();
        a.Label(ref _takeFrame);
        a.mov(rcx, At(KernelVariable.FreeFrames));
        a.test(rcx, rcx);
        a.jne(some);
        Say("mini-os: no frame is free\n");
        EmitExit(1);
        a.Label(ref some);
        a.dec(rcx);
        a.mov(At(KernelVariable.FreeFrames), rcx);
        a.cmp(rcx, At(Field.FewestFreeFrames));
        a.jae(notFewer);
        a.mov(At(Field.FewestFreeFrames), rcx);
        a.Label(ref notFewer);
        a.mov(rdi, __[(rcx * 8) + (int)MiniOsLayout.FreeFrames]);
        a.push(rdi);
        a.xor(eax, eax);
        a.mov(ecx, (int)GuestMemory.PageSize / 8);
        a.rep.stosq();
        a.pop(rax);
        a.ret();
    }

    /// <summary>Frame rax becomes free. Clobbers rcx and flags.</summary>
    private void EmitGiveFrame()
    {
        GuestAssembler a = _a;
        a.Label(ref _giveFrame);
        a.mov(rcx, At(KernelVariable.FreeFrames));
        a.mov(__[(rcx * 8) + (int)MiniOsLayout.FreeFrames], rax);
        a.inc(rcx);
        a.mov(At(KernelVariable.FreeFrames), rcx);
        a.ret();
    }

    /// <summary>
    /// rdx = the entry of the page directory that governs rsi, an address of ring 3, in the process at rbx. Clobbers nothing
    /// else but flags. Only the first gigabyte behind <see cref="MiniOsLayout.UserBase"/> is in use: one directory.
    /// </summary>
    private void EmitTableOf()
    {
        GuestAssembler a = _a;
        a.Label(ref _tableOf);
        a.push(rax);
        a.mov(rdx, __[rbx + ProcessBlock.Cr3]);
        Follow(rdx, 0);
        Follow(rdx, 8);
        a.mov(eax, esi);
        a.shr(eax, 21);
        a.and(eax, 511);
        a.lea(rdx, __[rdx + (rax * 8)]);
        a.pop(rax);
        a.ret();
    }

    /// <summary>From a table of this process to the one that an entry points at. The flags of an entry are its low 12 bits.</summary>
    private void Follow(AssemblerRegister64 table, int offset)
    {
        _a.mov(table, __[table + offset]);
        _a.and(table, -(int)GuestMemory.PageSize);
    }

    /// <summary>
    /// Gives back what rcx pages from rsi on hold, all of one table. The process at rbx is loaded: each page is dropped from
    /// the TLB, too. Clobbers rax, rcx, rdx, rsi, rdi, r8 to r11, and flags.
    /// </summary>
    private void EmitDiscardPages()
    {
        GuestAssembler a = _a;
        Label next = a.CreateLabel();
        Label empty = a.CreateLabel();
        Label none = a.CreateLabel();
        a.Label(ref _discardPages);
        a.test(rcx, rcx);
        a.je(none);
        a.mov(r8, rcx);
        a.call(_tableOf);
        a.mov(rdx, __[rdx]);
        a.test(edx, edx);
        a.je(none); // never touched
        a.and(rdx, -(int)GuestMemory.PageSize);
        a.mov(eax, esi);
        a.shr(eax, 12);
        a.and(eax, 511);
        a.lea(rdx, __[rdx + (rax * 8)]);
        a.mov(r9, rsi);

        a.Label(ref next);
        a.mov(r10, __[rdx]);
        a.test(r10d, r10d);
        a.je(empty);
        a.xor(eax, eax);
        a.UpdatePageTableEntry(rdx, rax, r9);
        a.mov(eax, r10d); // RAM ends far below 4 GiB; NX goes with the upper half
        a.and(eax, -(int)GuestMemory.PageSize);
        a.call(_giveFrame);
        a.Label(ref empty);
        a.add(rdx, 8);
        a.add(r9, (int)GuestMemory.PageSize);
        a.dec(r8);
        a.jne(next);
        a.Label(ref none);
        a.ret();
    }

    /// <summary>
    /// The first touch of a page of the heap or the stack gets a frame of zeros; there is no other good reason. A page table
    /// that is missing comes first.
    /// </summary>
    private void EmitPageFault()
    {
        GuestAssembler a = _a;
        Label heap = a.CreateLabel();
        Label good = a.CreateLabel();
        Label table = a.CreateLabel();
        Label bad = a.CreateLabel();
        a.Label(ref _pageFault);
        a.mov(eax, __dword_ptr[rbx + ProcessBlock.ErrorCode]);
        a.and(eax, ~(int)PageFaultError.Write);
        a.cmp(eax, PageFaultError.User); // not present, data
        a.jne(bad);
        a.ReadFaultAddress(rsi);
        a.cmp(rsi, (int)MiniOsLayout.StackBottom);
        a.jb(heap);
        a.cmp(rsi, (int)MiniOsLayout.StackTop);
        a.jb(good);
        a.Label(ref bad);
        a.jmp(_enteredInRing3);
        a.Label(ref heap);
        a.cmp(rsi, (int)MiniOsLayout.Heap);
        a.jb(bad);
        a.cmp(rsi, __[rbx + ProcessBlock.Break]);
        a.jae(bad);

        a.Label(ref good);
        a.inc(At(Field.PageFaults));
        a.call(_tableOf);
        a.cmp(__qword_ptr[rdx], 0);
        a.jne(table);
        a.call(_takeFrame);
        a.or(rax, (int)(Pte.Present | Pte.Writable | Pte.User));
        a.mov(__[rdx], rax);
        a.Label(ref table);
        Follow(rdx, 0);
        a.mov(eax, esi);
        a.shr(eax, 12);
        a.and(eax, 511);
        a.lea(rdx, __[rdx + (rax * 8)]);
        a.call(_takeFrame);
        a.mov(rcx, Pte.Present | Pte.Writable | Pte.User | Pte.NoExecute);
        a.or(rax, rcx);
        a.mov(__[rdx], rax); // nothing to drop from the TLB: it holds no entry that is not present
        a.jmp(_resume);
    }
}
