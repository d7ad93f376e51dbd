using Iced.Intel;
using VirtBench.Vmm.Interrupts;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>Where guests of this project put the lines of the two 8259A: vectors 0x20 to 0x2F, one a line.</summary>
internal static class InterruptLines
{
    private const byte FirstVector = 0x20;
    private const byte Master = (byte)InterruptController.MasterPort;
    private const byte Slave = (byte)InterruptController.SlavePort;
    private const int Cascade = 2;

    /// <summary>Vector of a line.</summary>
    public static byte VectorOf(int line) => (byte)(FirstVector + line);

    /// <summary>
    /// Programs both controllers: ICW1–4 for edge-triggered lines, all masked but these and, where need be, the slave's. Clobbers rax.
    /// </summary>
    public static void EmitSetup(Assembler a, params ReadOnlySpan<int> lines)
    {
        uint unmasked = 0;
        foreach (int line in lines)
        {
            unmasked |= 1u << line;
            unmasked |= line >= 8 ? 1u << Cascade : 0;
        }

        Initialize(a, Master, FirstVector, cascade: 1 << Cascade);
        Initialize(a, Slave, FirstVector + 8, cascade: Cascade);
        Out(a, Master + 1, ~unmasked & 0xFF);
        Out(a, Slave + 1, ~(unmasked >> 8) & 0xFF);
    }

    private static void Initialize(Assembler a, byte port, byte vector, uint cascade)
    {
        Out(a, port, 0x11); // ICW1: edge-triggered, cascaded, ICW4 follows
        Out(a, (byte)(port + 1), vector);
        Out(a, (byte)(port + 1), cascade);
        Out(a, (byte)(port + 1), 0x01); // ICW4: 8086 mode
    }

    private static void Out(Assembler a, byte port, uint value)
    {
        a.mov(eax, value);
        a.@out(port, al);
    }
}
