using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Hardware.Tests;

/// <summary>
/// VMCALL and VMMCALL are KVM's own. Whatever it makes of them, #UD or an error in RAX, no guest that executes one hangs.
/// </summary>
public sealed class HypercallTests
{
    private static readonly TimeSpan Limit = TimeSpan.FromSeconds(2);

    // Beyond the limit, so that a thread that does not come back fails the test instead of stopping all of them.
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(60);

    [Theory]
    [InlineData(true, 0)]
    [InlineData(true, 3)]
    [InlineData(false, 0)]
    [InlineData(false, 3)]
    public void A_hypercall_ends_or_is_ended(bool intels, int ring)
    {
        var guest = new HardwareGuest(a =>
        {
            a.mov(eax, 0x7777);
            if (intels)
            {
                a.vmcall();
            }
            else
            {
                a.vmmcall();
            }

            a.ud2();
        });
        guest.InstallHandlers();
        if (ring == 3)
        {
            guest.EnterInRingThree();
        }

        guest.Cpu.Idtr = new DescriptorTable(0x30_0000, 0xFFF);
        RunOutcome? outcome = null;
        var thread = new Thread(() => outcome = guest.Run(Limit)) { IsBackground = true };
        thread.Start();
        if (!thread.Join(Patience))
        {
            guest.Machine.Abandon();
            Assert.Fail("KVM_RUN did not come back");
        }

        Assert.Equal((RunEnd.Exited, null), (outcome!.End, outcome.Message));
        ulong vector = guest.Result(0);
        Assert.Contains(vector, new ulong[] { Vector.InvalidOpcode, Vector.GeneralProtection });
        ulong rip = guest.Result(vector == Vector.InvalidOpcode ? 1 : 2);
        bool answered = rip == HardwareGuest.Code + 5 + 3; // it was the UD2 behind
        if (answered)
        {
            Assert.True((long)guest.Result(7) < 0, $"RAX 0x{guest.Result(7):X}");
            Assert.Contains(
                intels ? "vmcall" : "vmmcall",
                guest.Machine.Capabilities.Holes.Select(hole => hole.Instruction)
            );
        }
        else
        {
            Assert.Equal(HardwareGuest.Code + 5, rip);
        }

        Assert.Empty(guest.OtherExits);
        guest.Dispose();
    }
}
