using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Vmm.Paravirtual;

/// <summary>
/// The hypercall page: an entry of 32 bytes for each <see cref="HypercallNumber"/>, filled to suit the engine.
/// <code>
/// 0    an entry that leaves the guest: NOPs, mov eax, number, the engine's exit, and at 27 what follows it
///      or one that does not: jmp to its body
/// 180h how InterruptReturn leaves: push rax, rcx, r11, mov eax, number, the engine's exit
/// 400h bodies, 128 bytes apart: the same code whatever the engine
/// </code>
/// Where guest ring 0 runs on the hardware's terms, it does for itself what it can: there MOV to CR3 costs less than a way to the VMM.
/// </summary>
/// <remarks>
/// A guest that was stopped in the page while it was filled anew for another engine goes on rightly: up to the exit an entry has changed
/// nothing but RAX, RCX and R11, and starts over; behind it and in the bodies all pages are alike. What has been pushed stays so.
/// </remarks>
public static class HypercallPage
{
    /// <summary>Bytes of an entry.</summary>
    public const int EntrySize = 32;

    /// <summary>Hypercalls there are.</summary>
    public const int Count = (int)HypercallNumber.Yield + 1;

    /// <summary>Most bytes of <see cref="IExecutionEngine.EncodeHypercall"/>.</summary>
    public const int MaximumExitLength = Behind - MoveLength;

    /// <summary>
    /// The linear address to call for the address of the last page fault, in RAX: an entry that never leaves the guest and clobbers nothing
    /// else. Where the VMM delivers page faults it reads <see cref="SharedInformation.FaultAddress"/>, where the hardware does CR2.
    /// </summary>
    public const ulong FaultAddressEntry = PhysicalLayout.HypercallPage + (Count * EntrySize);

    /// <summary>Bytes that InterruptReturn has on the stack where it leaves the guest: R11, RCX, RAX.</summary>
    internal const int SavedByReturn = 3 * sizeof(ulong);

    private const int ReturnExit = (Count + 1) * EntrySize;
    private const int ReturnExitLength = PushesLength + MoveLength + MaximumExitLength;
    private const int PushesLength = 4; // one byte each for RAX and RCX, two for R11
    private const int Behind = 27; // room for a long jump to the end of the entry
    private const int MoveLength = 5; // mov eax, imm32
    private const int Bodies = 0x400;
    private const int BodySize = 0x80;
    private const int BlockEnd = Bodies + ((int)HypercallNumber.Block * BodySize) + (BodySize / 2);

    private static readonly AssemblerMemoryOperand Mask = __qword_ptr[PhysicalLayout.SharedInfoPage];

    private static readonly AssemblerMemoryOperand Pending = __qword_ptr[PhysicalLayout.SharedInfoPage + 8];

    private static readonly AssemblerMemoryOperand FaultAddress = __qword_ptr[PhysicalLayout.SharedInfoPage + 0x80];

    /// <summary>The linear address to call: the page is mapped one to one.</summary>
    public static ulong EntryOf(HypercallNumber number) => PhysicalLayout.HypercallPage + ((ulong)number * EntrySize);

    /// <summary>Fills the page.</summary>
    public static void Fill(GuestMemory memory, IExecutionEngine engine)
    {
        byte[] page = new byte[GuestMemory.PageSize];
        for (int number = 0; number < Count; number++)
        {
            Action<Assembler>? body = Body((HypercallNumber)number);
            if (body is not null)
            {
                Place(page, Bodies + (number * BodySize), BodySize / 2, body);
            }

            if (body is not null && !engine.Capabilities.TrapsPrivilegedInstructions)
            {
                Place(page, number * EntrySize, EntrySize, a => a.jmp(AddressOf(Bodies + (number * BodySize))));
            }
            else
            {
                Place(page, number * EntrySize, EntrySize, a => Leave(a, (HypercallNumber)number, engine));
            }
        }

        Place(page, ReturnExit, EntrySize, a => LeaveToReturn(a, engine));

        Place(
            page,
            Count * EntrySize,
            EntrySize,
            a =>
            {
                if (engine.Capabilities.DeliversEvents)
                {
                    a.mov(rax, cr2);
                }
                else
                {
                    a.mov(rax, FaultAddress);
                }

                a.ret();
            }
        );
        Place(
            page,
            BlockEnd,
            BodySize / 2,
            a =>
            {
                a.mov(Mask, 1);
                a.ret();
            }
        );
        memory.Write(PhysicalLayout.HypercallPage, page);
    }

    /// <summary>Where a guest goes on that was stopped at an address, when the page has been filled anew.</summary>
    internal static ulong GoOnFrom(ulong rip)
    {
        ulong offset = rip - PhysicalLayout.HypercallPage;
        if (offset - ReturnExit is > (ulong)PushesLength and < (ulong)ReturnExitLength)
        {
            return AddressOf(ReturnExit + PushesLength);
        }

        return offset < (Count + 1) * EntrySize && offset % EntrySize < Behind ? rip - (offset % EntrySize) : rip;
    }

    private static ulong AddressOf(int offset) => PhysicalLayout.HypercallPage + (ulong)offset;

    private static void Place(byte[] page, int offset, int room, Action<Assembler> write)
    {
        var a = new Assembler(64);
        write(a);
        using var code = new MemoryStream();
        a.Assemble(new StreamCodeWriter(code), AddressOf(offset));
        if (code.Length > room)
        {
            throw new InvalidOperationException(
                $"code at 0x{offset:X} of the hypercall page has {code.Length} bytes instead of at most {room}"
            );
        }

        code.ToArray().CopyTo(page, offset);
    }

    private static void Leave(Assembler a, HypercallNumber number, IExecutionEngine engine)
    {
        if (number == HypercallNumber.InterruptReturn)
        {
            a.jmp(AddressOf(ReturnExit));
            return;
        }

        byte[] exit = Encode(engine, EntryOf(number) + Behind);
        a.nop(MaximumExitLength - exit.Length);
        a.mov(eax, (int)number);
        a.db(exit);
        if (number == HypercallNumber.Block)
        {
            a.jmp(AddressOf(BlockEnd));
        }
        else
        {
            a.ret();
        }
    }

    // It keeps every register, though an exit does not. NOPs behind the MOV, so that the exit ends at the same place in every page.
    private static void LeaveToReturn(Assembler a, IExecutionEngine engine)
    {
        byte[] exit = Encode(engine, AddressOf(ReturnExit + ReturnExitLength));
        a.push(rax);
        a.push(rcx);
        a.push(r11);
        a.mov(eax, (int)HypercallNumber.InterruptReturn);
        a.nop(MaximumExitLength - exit.Length);
        a.db(exit);
    }

    private static byte[] Encode(IExecutionEngine engine, ulong end)
    {
        byte[] exit = new byte[MaximumExitLength];
        int length = engine.EncodeHypercall(exit, end);
        return exit[..length];
    }

    /// <summary>Where the guest is when InterruptReturn, which does not return, has left and could not be done: before the exit again.</summary>
    internal static ulong BeforeReturnExit => AddressOf(ReturnExit + PushesLength);

    // What guest ring 0 can do by itself.
    private static Action<Assembler>? Body(HypercallNumber number) =>
        number switch
        {
            HypercallNumber.SetPageTableBase => SetPageTableBase,
            HypercallNumber.Flush => Flush,
            HypercallNumber.UpdatePageTables => UpdatePageTables,
            HypercallNumber.Block => Block,
            HypercallNumber.InterruptReturn => InterruptReturn,
            _ => null,
        };

    private static void SetPageTableBase(Assembler a)
    {
        a.mov(cr3, rdi);
        a.xor(eax, eax);
        a.ret();
    }

    private static void Flush(Assembler a)
    {
        Label all = a.CreateLabel();
        a.xor(eax, eax);
        a.cmp(rdi, -1);
        a.je(all);
        a.invlpg(__byte_ptr[rdi]);
        a.ret();
        a.Label(ref all);
        a.mov(rcx, cr3);
        a.mov(cr3, rcx);
        a.ret();
    }

    // Plain stores: a wild pointer is the guest's own page fault.
    private static void UpdatePageTables(Assembler a)
    {
        Label next = a.CreateLabel();
        Label done = a.CreateLabel();
        Label tooMany = a.CreateLabel();
        a.cmp(rsi, Hypercalls.MaximumBatch);
        a.ja(tooMany);
        a.xor(eax, eax);
        a.Label(ref next);
        a.cmp(rax, rsi);
        a.je(done);
        a.mov(rcx, __[rdi]);
        a.mov(r11, __[rdi + 8]);
        a.mov(__[rcx], r11);
        a.add(rdi, 16);
        a.inc(rax);
        a.jmp(next);
        a.Label(ref done);
        a.mov(rcx, cr3);
        a.mov(cr3, rcx);
        a.ret();
        a.Label(ref tooMany);
        a.mov(rax, -HypercallError.TooBig);
        a.ret();
    }

    // CLI first: an interrupt between the unmasking and HLT would be slept through.
    private static void Block(Assembler a)
    {
        Label asleep = a.CreateLabel();
        a.cli();
        a.mov(Mask, 0);
        a.test(Pending, (int)SharedInformation.PendingDirectly);
        a.jne(asleep);
        a.sti();
        a.hlt();
        a.Label(ref asleep);
        a.mov(Mask, 1);
        a.sti();
        a.xor(eax, eax);
        a.ret();
    }

    // What waits in the VMM is fetched there first; every register is the interrupted code's.
    private static void InterruptReturn(Assembler a)
    {
        Label waiting = a.CreateLabel();
        a.add(rsp, 8);
        a.pop(Mask);
        a.test(Pending, (int)SharedInformation.PendingInVmm);
        a.jne(waiting);
        a.iretq();
        a.Label(ref waiting);
        a.push(rax);
        a.push(rcx);
        a.push(r11);
        a.call(EntryOf(HypercallNumber.Yield));
        a.pop(r11);
        a.pop(rcx);
        a.pop(rax);
        a.iretq();
    }
}
