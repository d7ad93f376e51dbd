using Iced.Intel;
using VirtBench.Vmm.Interrupts;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// The code by which workloads get a timer interrupt: the master 8259A with line 0 alone unmasked at
/// <see cref="Vector"/>, and a handler that counts.
/// </summary>
internal static class TimerInterruptSource
{
    /// <summary>Vector of line 0.</summary>
    public const byte Vector = 0x20;

    /// <summary>Where the handler counts: 8 bytes.</summary>
    public const ulong Counter = SystemArea.Data;

    private const byte Command = (byte)InterruptController.MasterPort;
    private const byte Mask = Command + 1;

    private const uint ReadRequests = 0x0A; // OCW3: the next read of the command port gives the IRR

    /// <summary>Programs the master: ICW1–4 for edge-triggered lines at <see cref="Vector"/>, all but line 0 masked. Clobbers rax.</summary>
    public static void EmitSetup(GuestAssembler a)
    {
        Out(a, Command, 0x11); // ICW1: initialize, cascaded, ICW4 follows
        Out(a, Mask, Vector);
        Out(a, Mask, 0x04); // ICW3: a slave at input 2
        Out(a, Mask, 0x01); // ICW4: 8086 mode
        Out(a, Mask, 0xFE);
    }

    /// <summary>The handler: counts, ends the interrupt, returns. Clobbers nothing.</summary>
    public static InterruptGate EmitHandler(GuestAssembler a)
    {
        Label handler = a.CreateLabel("timer");
        a.Label(ref handler);
        foreach (AssemblerRegister64 register in a.ClobberedByEndOfInterrupt)
        {
            a.push(register);
        }

        a.inc(__qword_ptr[Counter]);
        a.EndOfInterrupt(IntervalTimer.Line);
        foreach (AssemblerRegister64 register in a.ClobberedByEndOfInterrupt.Reverse())
        {
            a.pop(register);
        }

        a.InterruptReturn();
        return new InterruptGate(Vector, handler);
    }

    /// <summary>
    /// Finds out by behaviour whether interrupts are let in: lets an interrupt come, waits until it is requested or has been
    /// taken, and mixes into r14 which of the two. Clobbers rax, rcx, rdx, rdi, r8 to r11 and
    /// flags.
    /// </summary>
    public static void EmitProbeOfInterruptFlag(GuestAssembler a)
    {
        Label wait = a.CreateLabel();
        a.mov(r10, __qword_ptr[Counter]);
        a.SetOneShotTimer(8);
        a.Label(ref wait);
        Out(a, Command, ReadRequests);
        a.xor(eax, eax);
        a.@in(al, Command);
        a.and(eax, 1);
        a.mov(r9, __qword_ptr[Counter]);
        a.sub(r9, r10);
        a.or(rax, r9);
        a.jz(wait);

        // A request seen with interrupts let in would be taken before this instruction.
        a.mov(r9, __qword_ptr[Counter]);
        a.sub(r9, r10);
        a.add(r14, r9);
        a.rol(r14, 17);
    }

    private static void Out(GuestAssembler a, byte port, uint value)
    {
        a.mov(eax, value);
        a.@out(port, al);
    }
}
