using Iced.Intel;
using VirtBench.Vmm.Interrupts;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// The code by which workloads get a timer interrupt: the master 8259A with line 0 alone unmasked at
/// <see cref="Vector"/>, channel 0 of the 8254 as a one-shot, and a handler that counts.
/// </summary>
internal static class TimerInterruptSource
{
    /// <summary>Vector of line 0.</summary>
    public const byte Vector = 0x20;

    /// <summary>Where the handler counts: 8 bytes.</summary>
    public const ulong Counter = SystemArea.Data;

    private const byte Command = (byte)InterruptController.MasterPort;
    private const byte Mask = Command + 1;
    private const byte TimerData = (byte)IntervalTimer.FirstPort;
    private const byte TimerControl = TimerData + 3;

    private const uint EndOfInterrupt = 0x20; // OCW2, non-specific
    private const uint ReadRequests = 0x0A; // OCW3: the next read of the command port gives the IRR

    /// <summary>Programs the master: ICW1–4 for edge-triggered lines at <see cref="Vector"/>, all but line 0 masked. Clobbers rax.</summary>
    public static void EmitSetup(Assembler a)
    {
        Out(a, Command, 0x11); // ICW1: initialize, cascaded, ICW4 follows
        Out(a, Mask, Vector);
        Out(a, Mask, 0x04); // ICW3: a slave at input 2
        Out(a, Mask, 0x01); // ICW4: 8086 mode
        Out(a, Mask, 0xFE);
    }

    /// <summary>The handler: counts, ends the interrupt, returns. Clobbers nothing.</summary>
    public static InterruptGate EmitHandler(Assembler a)
    {
        Label handler = a.CreateLabel("timer");
        a.Label(ref handler);
        a.push(rax);
        a.inc(__qword_ptr[Counter]);
        Out(a, Command, EndOfInterrupt);
        a.pop(rax);
        a.iretq();
        return new InterruptGate(Vector, handler);
    }

    /// <summary>
    /// Lets channel 0 count down once (mode 0, low byte only): its interrupt comes after <paramref name="pulses"/> and one
    /// pulse of 838 ns. Clobbers rax.
    /// </summary>
    public static void EmitOneShot(Assembler a, byte pulses)
    {
        Out(a, TimerControl, 0x10);
        Out(a, TimerData, pulses);
    }

    /// <summary>
    /// Finds out by behaviour whether RFLAGS.IF is set: lets an interrupt come, waits until it is requested or has been
    /// taken, and mixes into r14 which of the two. Clobbers rax, r8, r9 and flags.
    /// </summary>
    public static void EmitProbeOfInterruptFlag(Assembler a)
    {
        Label wait = a.CreateLabel();
        a.mov(r8, __qword_ptr[Counter]);
        EmitOneShot(a, 8);
        a.Label(ref wait);
        Out(a, Command, ReadRequests);
        a.xor(eax, eax);
        a.@in(al, Command);
        a.and(eax, 1);
        a.mov(r9, __qword_ptr[Counter]);
        a.sub(r9, r8);
        a.or(rax, r9);
        a.jz(wait);

        // A request seen with IF set would be taken before this instruction.
        a.mov(r9, __qword_ptr[Counter]);
        a.sub(r9, r8);
        a.add(r14, r9);
        a.rol(r14, 17);
    }

    private static void Out(Assembler a, byte port, uint value)
    {
        a.mov(eax, value);
        a.@out(port, al);
    }
}
