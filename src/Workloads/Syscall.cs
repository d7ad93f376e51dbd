using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// A null system call: guest ring 3 calls guest ring 0 by SYSCALL, where a counter in a supervisor page is raised, and gets back by
/// SYSRET or a hypercall. The units run in ring 3, entered by IRETQ and left by an invalid opcode, once per region. The count gets into the checksum.
/// </summary>
/// <remarks>
/// The guest has page tables of its own: 4 KiB pages below 2 MiB, of which those of the image and ring 3's stack are user pages. One page
/// of the image holds entry code that ring 0 runs; handlers, tables and the counter lie in supervisor pages.
/// </remarks>
public sealed class Syscall : SlottedWorkload
{
    private const ulong Counter = SystemArea.Data;
    private const ulong CallerStack = SystemArea.Data + 8;

    // Selectors. SYSCALL takes CS and SS from STAR at 32, SYSRET SS and CS from STAR at 48, plus 8 and 16 (SDM vol. 2B, SYSRET).
    private const ushort KernelCode = 0x08;
    private const ushort SysretBase = 0x18;
    private const ushort UserData = SysretBase + 8 + 3;
    private const ushort UserCode = SysretBase + 16 + 3;
    private const ushort TaskState = 0x30;

    /// <summary>PML4, page-directory pointers, page directory and page table, a page each.</summary>
    private const ulong Tables = 0x20_0000;

    private const int PageSize = (int)GuestMemory.PageSize;

    /// <summary>Bytes from the image's base that ring 3 may touch.</summary>
    private const ulong UserImageBytes = 0x1_0000;

    /// <inheritdoc/>
    public override string Id => "syscall";

    /// <inheritdoc/>
    public override string Description =>
        "ring 3 makes k system calls per unit; a handler in ring 0 counts them and returns";

    /// <inheritdoc/>
    public override SensitiveOperation Operation(GuestInterface guestInterface) =>
        guestInterface == GuestInterface.Native
            ? new("syscall; sysretq", TrapReason.SystemCall) { Names = ["syscall", "sysretq"], Exits = 2 }
            : new("syscall; hypercall: iret", TrapReason.SystemCall) { Names = ["syscall"] };

    /// <inheritdoc/>
    public override bool RunsInUserMode => true;

    /// <inheritdoc/>
    public override bool NeedsPrivilege => true;

    /// <inheritdoc/>
    public override int DefaultFiller => 20_000;

    /// <summary>The system call's handler, first: it keeps the caller's stack and clobbers nothing but rcx and r11, as SYSCALL does.</summary>
    internal override IReadOnlyList<InterruptGate> EmitSystemCode(GuestAssembler a)
    {
        a.inc(__qword_ptr[Counter]);
        a.ReturnFromSystemCall(CallerStack, SystemArea.InterruptStackTop, UserCode, UserData);

        // UD2 of ring 3: back on the stack of ring 0, where it went on to ring 3.
        Label leave = a.CreateLabel("leave");
        a.Label(ref leave);
        a.mov(rsp, rbp);
        a.jmp(r10);
        var gates = new List<InterruptGate> { new(Vector.InvalidOpcode, leave) };
        if (a.Interface == GuestInterface.Paravirtual)
        {
            gates.Add(EmitEnteredInRing3(a));
        }

        return gates;
    }

    /// <summary>
    /// A kernel for a monitor knows its monitors: kvm_pvm comes from SYSCALL to the handler still in ring 3, which may not fetch there, with
    /// RCX and R11 as they should be. The page fault is the system call. Under the native interface that is the end, since SYSRETQ would be it
    /// there anyway.
    /// </summary>
    private static InterruptGate EmitEnteredInRing3(GuestAssembler a)
    {
        Label fault = a.CreateLabel("entered in ring 3");
        Label isCall = a.CreateLabel();
        a.Label(ref fault);
        a.ReadFaultAddress(rax);
        a.cmp(rax, (int)SystemArea.Code);
        a.je(isCall);
        a.ud2();
        a.Label(ref isCall);
        a.inc(__qword_ptr[Counter]);
        a.add(rsp, 8); // the error code
        a.mov(__[rsp], rcx);
        a.mov(__[rsp + 16], r11);
        a.InterruptReturn();
        return new InterruptGate(Vector.PageFault, fault);
    }

    /// <summary>GDT, TSS, the MSRs of SYSCALL, page tables. Clobbers rax, rcx, rdx, rdi and r11.</summary>
    protected override void EmitSetup(GuestAssembler a)
    {
        a.mov(eax, (uint)SystemArea.GdtPointer);
        a.lgdt(__[rax]);
        a.mov(eax, TaskState);
        a.ltr(ax);

        a.mov(ecx, Msr.Efer);
        a.rdmsr();
        a.or(eax, (int)Efer.Sce);
        a.wrmsr();
        WriteMsr(a, Msr.Star, ((ulong)SysretBase << 48) | ((ulong)KernelCode << 32));
        WriteMsr(a, Msr.Lstar, SystemArea.Code);
        WriteMsr(a, Msr.Fmask, Rflags.If | Rflags.Df | Rflags.Tf | Rflags.Ac);

        a.mov(eax, (uint)Tables);
        a.WriteCr3(rax);
    }

    /// <summary>Ring 0 to ring 3 and back. rbp keeps ring 0's stack, r10 the way back. Clobbers rax and r10.</summary>
    protected override void EmitCall(GuestAssembler a, Label units)
    {
        Label user = a.CreateLabel();
        Label back = a.CreateLabel();
        a.mov(rbp, rsp);
        a.lea(r10, __[back]);
        a.push(UserData);
        a.mov(eax, (uint)SystemArea.UserStackTop);
        a.push(rax);
        a.push((int)Rflags.AlwaysSet);
        a.push(UserCode);
        a.lea(rax, __[user]);
        a.push(rax);
        a.InterruptReturn();

        a.Label(ref user);
        a.call(units);
        a.ud2(); // not INT: it would need a gate that all of ring 3 may use

        a.Label(ref back);
        a.nop();
    }

    /// <summary>Clobbers rcx and r11.</summary>
    protected override void EmitSensitive(GuestAssembler a, int index) => a.syscall();

    /// <summary>Clobbers flags.</summary>
    protected override void FoldIntoChecksum(GuestAssembler a, bool afterSensitive) => a.add(r14, __qword_ptr[Counter]);

    /// <inheritdoc/>
    protected override IEnumerable<ImageSegment> DataSegments(GuestInterface guestInterface)
    {
        yield return SystemArea.EmptyData();
        yield return DescriptorTable();

        // 64-bit TSS: RSP0 at 4 (SDM vol. 3A, figure 8-11). No I/O bitmap: its offset lies behind the limit.
        byte[] task = new byte[TaskStateBytes];
        SystemArea.Write(task, 4, SystemArea.InterruptStackTop);
        SystemArea.Write(task, TaskStateBytes - 8, (ulong)TaskStateBytes << 48);
        ulong stacks = SystemArea.UserStackTop - SystemArea.Tss;
        yield return new ImageSegment(SystemArea.Tss, task, stacks, Executable: false);
        yield return PageTables();
    }

    private const int TaskStateBytes = 104;

    private static ImageSegment DescriptorTable()
    {
        const ulong availableTaskState = 0x89UL << 40;
        byte[] table = new byte[PageSize];
        SystemArea.Write(table, KernelCode, 0x00AF_9B00_0000_FFFF);
        SystemArea.Write(table, KernelCode + 8, 0x00CF_9300_0000_FFFF);
        SystemArea.Write(table, UserData & ~3, 0x00CF_F300_0000_FFFF);
        SystemArea.Write(table, UserCode & ~3, 0x00AF_FB00_0000_FFFF);
        SystemArea.Write(
            table,
            TaskState,
            availableTaskState
                | (TaskStateBytes - 1)
                | ((SystemArea.Tss & 0xFF_FFFF) << 16)
                | ((SystemArea.Tss >> 24 & 0xFF) << 56)
        );
        SystemArea.Write(table, TaskState + 8, SystemArea.Tss >> 32);
        int pointer = (int)(SystemArea.GdtPointer - SystemArea.Gdt);
        SystemArea.WritePointer(table.AsSpan(pointer), SystemArea.Gdt, TaskState + 16 - 1);
        return new ImageSegment(SystemArea.Gdt, table, PageSize, Executable: false);
    }

    private static ImageSegment PageTables()
    {
        const ulong rights = Pte.Present | Pte.Writable;
        byte[] tables = new byte[4 * PageSize];
        SystemArea.Write(tables, 0, (Tables + PageSize) | rights | Pte.User);
        SystemArea.Write(tables, PageSize, (Tables + (2 * PageSize)) | rights | Pte.User);
        SystemArea.Write(tables, 2 * PageSize, (Tables + (3 * PageSize)) | rights | Pte.User);
        for (ulong page = 0; page < 512; page++)
        {
            ulong address = page * PageSize;
            bool user =
                (address >= ImageBase && address < ImageBase + UserImageBytes)
                || address == SystemArea.UserStackTop - PageSize;
            SystemArea.Write(tables, (3 * PageSize) + ((int)page * 8), address | rights | (user ? Pte.User : 0));
        }

        return new ImageSegment(Tables, tables, (ulong)tables.Length, Executable: false);
    }

    /// <summary>Clobbers rax, rcx and rdx.</summary>
    private static void WriteMsr(GuestAssembler a, uint index, ulong value)
    {
        a.mov(ecx, index);
        a.mov(eax, (uint)value);
        a.mov(edx, (uint)(value >> 32));
        a.wrmsr();
    }
}
