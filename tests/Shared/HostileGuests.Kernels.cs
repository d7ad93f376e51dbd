using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Tests;

// Kernels with interrupts and page tables that are not right: the architectural result, or an end with a clear reason.
internal static partial class HostileGuests
{
    private const ulong Idt = 0x20_0000;
    private const ulong OwnGdt = 0x20_2000;
    private const ulong Tss = 0x20_3000;
    private const ulong Scratch = 0x20_4000;
    private const ulong InterruptStack = 0x20_6000;
    private const byte TimerVector = 0x20;
    private const byte DoubleFault = 8;
    private const byte GeneralProtection = 13;
    private const byte PageFault = 14;

    private static readonly Dictionary<string, HostileGuest> Kernels = new()
    {
        ["interrupt storm"] = new(
            a =>
            {
                Label handler = a.CreateLabel();
                Label ready = a.CreateLabel();
                a.jmp(ready);
                a.Label(ref handler);
                EndInterrupt(a);
                a.iretq();
                a.Label(ref ready);
                Gate(a, TimerVector, handler);
                LoadIdt(a, TimerVector);
                StartTimer(a, reload: 2);
                a.sti();
                Forever(a);
            },
            TimedOut,
            "did not end in time",
            "--timeout",
            "0.5"
        ),
        ["interrupt storm that sleeps"] = new(
            a =>
            {
                Label handler = a.CreateLabel();
                Label ready = a.CreateLabel();
                Label again = a.CreateLabel();
                a.jmp(ready);
                a.Label(ref handler);
                EndInterrupt(a);
                a.iretq();
                a.Label(ref ready);
                Gate(a, TimerVector, handler);
                LoadIdt(a, TimerVector);
                StartTimer(a, reload: 2);
                a.Label(ref again);
                a.sti();
                a.hlt();
                a.jmp(again);
            },
            TimedOut,
            "did not end in time",
            "--timeout",
            "0.5"
        ),
        ["interrupt without a gate"] = new(
            a =>
            {
                LoadIdt(a, TimerVector);
                StartTimer(a, reload: 1000);
                a.sti();
                Forever(a);
            },
            Broken,
            "triple fault"
        ),
        ["interrupt beyond the IDT's limit"] = new(
            a =>
            {
                // #GP with the vector and the IDT bit in its error code; a KVM that emulates ring 0 leaves the EXT bit out.
                Label handler = a.CreateLabel();
                Label ready = a.CreateLabel();
                a.jmp(ready);
                a.Label(ref handler);
                a.pop(rax);
                a.and(rax, -2);
                ExitUnless(a, rax, (TimerVector << 3) | 2);
                a.Label(ref ready);
                Gate(a, GeneralProtection, handler);
                LoadIdt(a, TimerVector - 1);
                StartTimer(a, reload: 1000);
                a.sti();
                Forever(a);
            },
            Usable,
            ""
        ),
        ["exceptions beyond the IDT's limit"] = new(
            a =>
            {
                LoadIdt(a, GeneralProtection - 1);
                a.ud2();
            },
            Broken,
            "triple fault"
        ),
        ["interrupt on a stack that is not canonical"] = new(
            a => InterruptOnBadStack(a, 0x8000_0000_0000_0000, interruptStack: true),
            Usable,
            ""
        ),
        ["interrupt on a stack that is not there"] = new(
            a => InterruptOnBadStack(a, 0x1234_5678_9000, interruptStack: true),
            Usable,
            ""
        ),
        ["interrupt on a stack that is not there, without another"] = new(
            a => InterruptOnBadStack(a, 0x1234_5678_9000, interruptStack: false),
            Broken,
            "triple fault"
        ),
        ["sleep with the timer masked"] = new(
            a =>
            {
                StartTimer(a, reload: 1000);
                a.mov(al, 0xFF);
                a.@out(0x21, al);
                a.sti();
                a.hlt();
            },
            Broken,
            "the timer's interrupt, the only one to come, is masked"
        ),
        ["sleep without a timer"] = new(
            a =>
            {
                a.sti();
                a.hlt();
            },
            Broken,
            "no device of it can raise an interrupt to wake it"
        ),
        ["page table beyond RAM"] = new(
            a =>
            {
                // #PF: the platform's answer of all ones has reserved bits set; to KVM it is a table that is not there.
                Label handler = a.CreateLabel();
                Label ready = a.CreateLabel();
                a.jmp(ready);
                a.Label(ref handler);
                a.pop(rax);
                a.and(rax, ~9);
                ExitUnless(a, rax, 0);
                a.Label(ref ready);
                Gate(a, PageFault, handler);
                LoadIdt(a, PageFault);
                a.mov(rax, 0x3000_0003);
                a.mov(__qword_ptr[PageDirectory + (30 * 8)], rax);
                a.mov(rdi, 30 << 21);
                a.invlpg(__[rdi]);
                a.mov(al, __byte_ptr[rdi]);
                Exit(a, 1);
            },
            Usable,
            ""
        ),
        ["page tables that map themselves"] = new(
            a =>
            {
                // Slot 1 of the PML4 holds the PML4: the page directory shows at (1, 1, 0, 0).
                const ulong directory = (1UL << 39) | (1UL << 30);
                const int slot = 20;
                const ulong window = (ulong)slot << 21;
                a.mov(rax, Pml4 | 3);
                a.mov(__qword_ptr[Pml4 + 8], rax);
                a.mov(__qword_ptr[0x40_0000], 1);
                a.mov(__qword_ptr[0x60_0000], 2);
                a.mov(rbx, directory + (slot * 8));
                a.mov(rdi, window);
                a.xor(esi, esi);
                foreach (uint frame in (uint[])[0x40_0000, 0x60_0000, 0x40_0000])
                {
                    a.mov(eax, frame | 0x83);
                    a.mov(__[rbx], rax);
                    a.invlpg(__[rdi]);
                    a.shl(rsi, 4);
                    a.add(rsi, __[rdi]);
                }

                ExitUnless(a, rsi, 0x121);
            },
            Usable,
            ""
        ),
        ["page tables that are written through themselves without a stop"] = new(
            a =>
            {
                // The directory maps 2 MiB over itself; every write changes which.
                Label again = a.CreateLabel();
                a.mov(edi, (int)PageDirectory + (40 * 8));
                a.xor(ecx, ecx);
                a.Label(ref again);
                a.mov(rax, rcx);
                a.and(eax, 0x1F);
                a.shl(rax, 21);
                a.or(eax, 0x83);
                a.mov(__[rdi], rax);
                a.mov(rdx, __qword_ptr[40 << 21]);
                a.inc(ecx);
                a.jmp(again);
            },
            TimedOut,
            "did not end in time",
            "--timeout",
            "0.5"
        ),
        ["stack in a page table"] = new(
            a =>
            {
                // Pushes write entries that map nothing, and the pops read them back.
                a.mov(esp, (int)PageDirectory + 0x1000);
                a.mov(eax, 0x1234_5670);
                a.push(rax);
                a.push(rax);
                a.pop(rbx);
                a.pop(rcx);
                ExitUnless(a, rcx, 0x1234_5670);
            },
            Usable,
            ""
        ),
        ["code in a page table"] = new(
            a =>
            {
                // The directory's last entries hold an instruction; a kernel may be as odd as that.
                a.mov(edi, (int)PageDirectory + (500 * 8));
                a.mov(rax, 0xC3_1122_3344_B8); // mov eax, 0x11223344; ret
                a.mov(__[rdi], rax);
                a.xor(eax, eax);
                a.call(rdi);
                ExitUnless(a, rax, 0x1122_3344);
            },
            Usable,
            ""
        ),
        ["more address spaces than anyone keeps"] = new(
            a =>
            {
                // 1000 PML4s, each a copy of the first.
                Label space = a.CreateLabel();
                a.mov(ebx, 0x100_0000);
                a.mov(ebp, 1000);
                a.Label(ref space);
                a.mov(rsi, __qword_ptr[Pml4]);
                a.mov(__[rbx], rsi);
                a.mov(cr3, rbx);
                a.mov(__dword_ptr[Scratch], ebp);
                a.add(ebx, 0x1000);
                a.dec(ebp);
                a.jnz(space);
                a.mov(eax, __dword_ptr[Scratch]);
                ExitUnless(a, rax, 1);
            },
            Usable,
            ""
        ),
    };

    private static void InterruptOnBadStack(Assembler a, ulong stack, bool interruptStack)
    {
        Label handler = a.CreateLabel();
        Label ready = a.CreateLabel();
        a.jmp(ready);
        a.Label(ref handler);
        a.pop(rax);
        ExitUnless(a, rax, 0);
        a.Label(ref ready);
        LoadTss(a);
        Gate(a, TimerVector, handler);
        Gate(a, 12, handler);
        Gate(a, PageFault, handler);
        Gate(a, DoubleFault, handler, interruptStack ? 1 : 0);
        LoadIdt(a, TimerVector);
        StartTimer(a, reload: 1000);
        a.mov(rsp, stack);
        a.sti();
        Forever(a);
    }

    /// <summary>A ring-0 interrupt gate at run time. Clobbers rax and rdx.</summary>
    private static void Gate(Assembler a, byte vector, Label handler, int interruptStack = 0)
    {
        ulong gate = Idt + (vector * 16UL);
        a.lea(rax, __[handler]);
        a.mov(edx, eax);
        a.and(edx, 0xFFFF);
        a.or(edx, 0x08 << 16);
        a.mov(__dword_ptr[gate], edx);
        a.mov(edx, eax);
        a.and(edx, 0xFFFF_0000);
        a.or(edx, 0x8E00 | interruptStack);
        a.mov(__dword_ptr[gate + 4], edx);
        a.shr(rax, 32);
        a.mov(__qword_ptr[gate + 8], rax);
    }

    /// <summary>An IDT that ends with this vector.</summary>
    private static void LoadIdt(Assembler a, int lastVector)
    {
        a.mov(__word_ptr[Scratch], (ushort)((lastVector * 16) + 15));
        a.mov(eax, (uint)Idt);
        a.mov(__qword_ptr[Scratch + 2], rax);
        a.lidt(__[Scratch]);
    }

    /// <summary>A GDT like the boot GDT with a 64-bit TSS whose first interrupt stack is good.</summary>
    private static void LoadTss(Assembler a)
    {
        ulong[] descriptors =
        [
            0,
            0x00AF_9B00_0000_FFFF,
            0x00CF_9300_0000_FFFF,
            0x0000_8900_0000_0067 | ((Tss & 0xFF_FFFF) << 16) | (Tss >> 24 << 56),
            Tss >> 32,
        ];
        for (int i = 0; i < descriptors.Length; i++)
        {
            a.mov(rax, descriptors[i]);
            a.mov(__qword_ptr[OwnGdt + ((ulong)i * 8)], rax);
        }

        a.mov(eax, (uint)InterruptStack);
        a.mov(__qword_ptr[Tss + 36], rax);
        a.mov(__word_ptr[Scratch], (ushort)((descriptors.Length * 8) - 1));
        a.mov(eax, (uint)OwnGdt);
        a.mov(__qword_ptr[Scratch + 2], rax);
        a.lgdt(__[Scratch]);
        a.mov(eax, 0x18);
        a.ltr(ax);
    }

    /// <summary>Both 8259A with vectors from 0x20 on, the timer's line alone unmasked, channel 0 in mode 2. Clobbers al.</summary>
    private static void StartTimer(Assembler a, ushort reload)
    {
        (byte Port, byte Value)[] writes =
        [
            (0x20, 0x11),
            (0x21, TimerVector),
            (0x21, 0x04),
            (0x21, 0x01),
            (0xA0, 0x11),
            (0xA1, TimerVector + 8),
            (0xA1, 0x02),
            (0xA1, 0x01),
            (0x21, 0xFE),
            (0xA1, 0xFF),
            (0x43, 0x34),
            (0x40, (byte)reload),
            (0x40, (byte)(reload >> 8)),
        ];
        foreach ((byte port, byte value) in writes)
        {
            a.mov(al, value);
            a.@out(port, al);
        }
    }

    /// <summary>Non-specific end of interrupt. Clobbers al.</summary>
    private static void EndInterrupt(Assembler a)
    {
        a.mov(al, 0x20);
        a.@out(0x20, al);
    }

    /// <summary>Status 0 when the register holds the value, else 1.</summary>
    private static void ExitUnless(Assembler a, AssemblerRegister64 register, int value)
    {
        a.cmp(register, value);
        a.setne(al);
        a.@out(0xF4, al);
    }
}
