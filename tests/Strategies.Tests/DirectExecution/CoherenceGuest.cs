#pragma warning disable CA1416 // DirectGuest has asked for Linux
using Iced.Intel;
using VirtBench.Strategies.Shadow;
using VirtBench.Strategies.TrapAndEmulate;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Tests.DirectExecution;

/// <summary>What one step of <see cref="CoherenceGuest"/> does.</summary>
internal enum GuestOperation : ulong
{
    Read,
    Write,
    Execute,

    /// <summary>Writes an entry of a page table, by an instruction that the core emulates.</summary>
    Store,

    /// <summary>The same, by one that is stepped where the core does not emulate it.</summary>
    Exchange,
    Invalidate,
    LoadCr3,
    EnterUser,
    EnterKernel,
    End,
}

/// <summary>
/// A guest that interprets a list of steps in ring 0 or ring 3, compares every access with what it is told to expect, and ends with
/// status 1 at the first that differs. It has a GDT, a TSS and an IDT of its own; its page-fault handler notes the error code and goes on
/// behind the access.
/// </summary>
internal sealed class CoherenceGuest : IDisposable
{
    /// <summary>Bytes of one step: operation, address, value, expected error code.</summary>
    public const int StepSize = 32;

    /// <summary>Expected error code of an access that succeeds.</summary>
    public const ulong NoFault = ulong.MaxValue;

    public const ulong Steps = 0x20_0000; // one large page, for both rings to read
    public const int MaximumSteps = 0xE000;
    public const ulong UserStackTop = Steps + 0x1D_0000;
    public const ulong Failure = Steps + 0x1E_0000; // RIP's step, what was read, what error code came
    public const ulong KernelStackTop = 0x43_0000;
    private const ulong Gdt = 0x40_0000;
    private const ulong Tss = 0x40_1000;
    private const ulong Idt = 0x40_2000;

    /// <summary>From here to <see cref="TablesEnd"/> lie page tables, which only ring 0 may touch.</summary>
    public const ulong Tables = 0x44_0000;

    public const ulong TablesEnd = 0x60_0000;
    private const ulong UserCode = 0x1B;
    private const ulong UserData = 0x23;
    private const ulong TssSelector = 0x28;

    private readonly DirectGuest _guest;
    private int _count;

    /// <param name="shadow">The policy.</param>
    /// <param name="firstCr3">The address space that it starts in.</param>
    /// <param name="carriers">Most carriers.</param>
    /// <param name="build">Puts page tables and other contents into memory before it starts.</param>
    public CoherenceGuest(ShadowPaging shadow, ulong firstCr3, int carriers, Action<GuestMemory> build)
    {
        _guest = new DirectGuest(a => Assemble(a, firstCr3), shadow: shadow, maximumCarriers: carriers);
        WriteDescriptors();
        build(Memory);
    }

    public GuestMemory Memory => _guest.Memory;

    public VirtualMachine Machine => _guest.Machine;

    public DirectExecutionEngine Engine => _guest.Engine;

    public void Add(GuestOperation operation, ulong address = 0, ulong value = 0, ulong error = NoFault)
    {
        ulong at = Steps + (ulong)(_count++ * StepSize);
        Memory.Write(at, (ulong)operation);
        Memory.Write(at + 8, address);
        Memory.Write(at + 16, value);
        Memory.Write(at + 24, error);
    }

    public bool IsFull => _count >= MaximumSteps - 16;

    /// <summary>Runs the steps added since the last call; null, or what was not as expected.</summary>
    public string? Run()
    {
        Add(GuestOperation.End);
        _count = 0;
        Machine.Cpu.Halted = false;
        RunOutcome outcome = _guest.Run();
        if (outcome.End == RunEnd.Failed && Machine.Cpu.Halted)
        {
            return null; // HLT with interrupts off hands over to the test
        }

        ulong at = Memory.Read<ulong>(Failure);
        if (outcome.End != RunEnd.Exited || at < Steps)
        {
            return $"{outcome}";
        }

        return $"step {(at - Steps) / StepSize}: {(GuestOperation)Memory.Read<ulong>(at)} at 0x{Memory.Read<ulong>(at + 8):X}, "
            + $"expected value 0x{Memory.Read<ulong>(at + 16):X} error 0x{Memory.Read<ulong>(at + 24):X}, "
            + $"got value 0x{Memory.Read<ulong>(Failure + 8):X} error 0x{Memory.Read<ulong>(Failure + 16):X}";
    }

    /// <summary>
    /// Page tables of an address space in four pages: the guest's own memory below, as the rings may have it, and at 1 GiB a directory that is
    /// the caller's. Code and steps are for both rings, tables and descriptors for ring 0.
    /// </summary>
    public static void BuildRoot(GuestMemory memory, ulong root, ulong directory)
    {
        const ulong all = Pte.Present | Pte.Writable | Pte.User;
        const ulong kernel = Pte.Present | Pte.Writable;
        ulong pointers = root + 0x1000;
        ulong own = root + 0x2000;
        memory.Write(root, pointers | all);
        memory.Write(pointers, own | all);
        memory.Write(pointers + 8, directory | all);
        memory.Write(own, 0UL | all | Pte.Large);
        memory.Write(own + 8, Steps | all | Pte.Large);
        for (ulong page = 2; page < DirectGuest.RamBytes >> 21; page++)
        {
            memory.Write(own + (page * 8), (page << 21) | kernel | Pte.Large);
        }
    }

    // R8 step, RDI address, RSI value, R14 error code, R13 stack of the ring, R12 CR2; RBX what was read.
    private void Assemble(Assembler a, ulong cr3)
    {
        Label next = a.CreateLabel();
        Label check = a.CreateLabel();
        Label advance = a.CreateLabel();
        Label bad = a.CreateLabel();
        Label inUser = a.CreateLabel();
        Label restart = a.CreateLabel();
        Label[] operations = [.. Enum.GetValues<GuestOperation>().Select(_ => a.CreateLabel())];
        Label pageFault = a.CreateLabel();
        Label enterKernel = a.CreateLabel();
        Label report = a.CreateLabel();

        a.mov(rax, cr3);
        a.mov(Iced.Intel.AssemblerRegisters.cr3, rax);
        a.mov(rax, Gdt + 0x100);
        a.lgdt(__[rax]);
        a.lidt(__[rax + 0x10]);
        a.mov(eax, (int)TssSelector);
        a.ltr(ax);
        Gate(a, 14, pageFault, user: false);
        Gate(a, 0x80, enterKernel, user: true);
        Gate(a, 0x81, report, user: true);
        a.mov(r13, KernelStackTop);
        a.mov(rsp, r13);
        a.hlt();
        a.Label(ref restart);
        a.mov(r8, Steps);

        a.Label(ref next);
        a.mov(rax, __qword_ptr[r8]);
        a.mov(rdi, __qword_ptr[r8 + 8]);
        a.mov(rsi, __qword_ptr[r8 + 16]);
        a.mov(r14, -1);
        for (int i = 0; i < operations.Length; i++)
        {
            a.cmp(eax, i);
            a.je(operations[i]);
        }

        a.jmp(bad);

        a.Label(ref operations[(int)GuestOperation.Read]);
        a.mov(rbx, __qword_ptr[rdi]);
        a.jmp(check);
        a.Label(ref operations[(int)GuestOperation.Write]);
        a.mov(__qword_ptr[rdi], rsi);
        a.mov(rbx, rsi);
        a.jmp(check);
        a.Label(ref operations[(int)GuestOperation.Execute]);
        a.mov(rsp, r13);
        a.call(rdi);
        a.mov(rbx, rax);
        a.Label(ref check);
        a.cmp(r14, __qword_ptr[r8 + 24]);
        a.jne(bad);
        a.cmp(r14, -1);
        a.jne(advance);
        a.cmp(rbx, rsi);
        a.jne(bad);
        a.Label(ref advance);
        a.add(r8, StepSize);
        a.jmp(next);

        a.Label(ref operations[(int)GuestOperation.Store]);
        a.mov(__qword_ptr[rdi], rsi);
        a.jmp(advance);
        a.Label(ref operations[(int)GuestOperation.Exchange]);
        a.xchg(__qword_ptr[rdi], rsi);
        a.jmp(advance);
        a.Label(ref operations[(int)GuestOperation.Invalidate]);
        a.invlpg(__[rdi]);
        a.jmp(advance);
        a.Label(ref operations[(int)GuestOperation.LoadCr3]);
        a.mov(Iced.Intel.AssemblerRegisters.cr3, rdi);
        a.jmp(advance);
        a.Label(ref operations[(int)GuestOperation.EnterUser]);
        a.mov(r13, UserStackTop);
        a.push((int)UserData);
        a.push(r13);
        a.push(2);
        a.push((int)UserCode);
        a.lea(rax, __[inUser]);
        a.push(rax);
        a.iretq();
        a.Label(ref inUser);
        a.jmp(advance);
        a.Label(ref operations[(int)GuestOperation.EnterKernel]);
        a.@int(0x80);
        a.Label(ref operations[(int)GuestOperation.End]);
        a.hlt();
        a.jmp(restart);

        a.Label(ref bad);
        a.@int(0x81);

        a.Label(ref enterKernel);
        a.mov(r13, KernelStackTop);
        a.mov(rsp, r13);
        a.jmp(advance);

        a.Label(ref report);
        a.mov(rax, Failure);
        a.mov(__qword_ptr[rax], r8);
        a.mov(__qword_ptr[rax + 8], rbx);
        a.mov(__qword_ptr[rax + 16], r14);
        a.Exit(1);

        a.Label(ref pageFault);
        a.pop(r14);
        a.mov(r12, cr2);
        a.cmp(r12, rdi);
        Label elsewhere = a.CreateLabel();
        a.jne(elsewhere);
        a.lea(rax, __[check]);
        a.mov(__qword_ptr[rsp], rax);
        a.iretq();
        a.Label(ref elsewhere);
        a.mov(rbx, r12);
        a.jmp(report);
    }

    // 64-bit interrupt gate (Intel SDM vol. 3A, figure 6-8). Clobbers RAX and RDX.
    private static void Gate(Assembler a, int vector, Label handler, bool user)
    {
        ulong gate = Idt + ((ulong)vector * 16);
        a.lea(rax, __[handler]);
        a.mov(rdx, gate);
        a.mov(__word_ptr[rdx], ax);
        a.mov(__word_ptr[rdx + 2], 8);
        a.mov(__word_ptr[rdx + 4], user ? 0xEE00 : 0x8E00);
        a.shr(rax, 16);
        a.mov(__word_ptr[rdx + 6], ax);
        a.shr(rax, 16);
        a.mov(__qword_ptr[rdx + 8], rax);
    }

    private void WriteDescriptors()
    {
        ulong[] gdt =
        [
            0,
            0x00AF_9A00_0000_FFFF,
            0x00CF_9200_0000_FFFF,
            0x00AF_FA00_0000_FFFF,
            0x00CF_F200_0000_FFFF,
            0x0000_8900_0000_0067 | ((Tss & 0xFF_FFFF) << 16),
            Tss >> 32,
        ];
        for (int i = 0; i < gdt.Length; i++)
        {
            Memory.Write(Gdt + (ulong)(i * 8), gdt[i]);
        }

        Memory.Write(Gdt + 0x100, (ushort)((gdt.Length * 8) - 1));
        Memory.Write(Gdt + 0x102, Gdt);
        Memory.Write(Gdt + 0x110, (ushort)0xFFF);
        Memory.Write(Gdt + 0x112, Idt);
        Memory.Write(Tss + 4, KernelStackTop); // RSP0
    }

    public void Dispose() => _guest.Dispose();
}
