using Iced.Intel;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Tests.Simulation;

public sealed class CostModelTests
{
    // RDTSC and 40 other instructions an iteration, the loop's own two among them.
    private static void RdtscLoop(Assembler a, int iterations)
    {
        a.mov(r15, iterations);
        a.@out(0xB0, eax);
        Label loop = a.CreateLabel();
        a.Label(ref loop);
        a.rdtsc();
        for (int i = 0; i < 38; i++)
        {
            a.add(rbx, i);
        }

        a.dec(r15);
        a.jnz(loop);
        a.@out(0xB4, eax);
        a.hlt();
    }

    private static ulong MeasureLoop(bool native, int iterations)
    {
        using var guest = new SimulatedGuest(native);
        guest.Load(a => RdtscLoop(a, iterations));
        ulong start = 0;
        for (; ; )
        {
            VmExit exit = guest.Run();
            Assert.Equal(VmExitReason.PrivilegedInstruction, exit.Reason);
            ulong now = guest.Engine.Clock.Ticks;
            switch (guest.Memory.Read<ushort>(guest.Cpu.Rip))
            {
                case 0xB0E7:
                    start = now;
                    guest.Cpu.Rip += 2;
                    guest.Engine.Clock.ChargeEmulation(TrapReason.RegionMarker);
                    break;
                case 0xB4E7:
                    return now - start;
                case 0x310F:
                    guest.Cpu.Rip += 2;
                    guest.Engine.Clock.ChargeEmulation(TrapReason.TimeStampCounter);
                    break;
                default:
                    Assert.Fail($"unexpected exit at {guest.Cpu.Rip:X}");
                    break;
            }
        }
    }

    [Theory]
    [InlineData(true, 65)]
    [InlineData(false, 1740)]
    public void Rdtsc_and_40_instructions_cost_what_the_textbook_says(bool native, int cyclesPerIteration) =>
        Assert.Equal((ulong)cyclesPerIteration * 100, MeasureLoop(native, 100));
}
