using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.TrapAndEmulate;

// One instruction at a time, by the CPU's own trap flag. The guest must not see a flag that it has not set: where an instruction takes RFLAGS
// along, the VMM puts it right.
internal sealed unsafe partial class DirectExecutionEngine
{
    /// <summary>Whose trap flag ends the next instruction.</summary>
    private enum Stepping : byte
    {
        No,
        Ours,

        /// <summary>The guest single-steps itself, so its own flag serves.</summary>
        Guests,
    }

    private enum FlagUse : byte
    {
        None,

        /// <summary>PUSHF: the image on the stack has the flag.</summary>
        Pushes,

        /// <summary>POPF, IRET: the flag afterwards is what the guest has loaded.</summary>
        Loads,
    }

    private Stepping _stepping;
    private FlagUse _flagUse;
    private bool _pagesOpen;

    /// <inheritdoc/>
    public override VmExit Step()
    {
        _stepping = (Cpu.Rflags & Rflags.Tf) != 0 ? Stepping.Guests : Stepping.Ours;
        _flagUse = FlagUseOf(Cpu.Rip);
        VmExit exit = Enter();
        if (exit.Reason is VmExitReason.Interrupted or VmExitReason.Failed)
        {
            EndSteps(); // not classified as a step where the guest has not been entered
        }

        return exit;
    }

    /// <inheritdoc/>
    public override void AllowInStep(in ShadowPage page)
    {
        _pagesOpen = true;
        _stepping = Stepping.Ours; // whatever is entered next sees to it that the page is closed again
        Shadow.AllowInStep(page);
    }

    private VmExit EndStep(in VmExit exit)
    {
        if (_stepping is Stepping.Ours)
        {
            bool loaded = exit.Reason == VmExitReason.Stepped && _flagUse == FlagUse.Loads;
            if (!loaded)
            {
                Cpu.Rflags &= ~Rflags.Tf;
            }

            if (exit.Reason == VmExitReason.Stepped && _flagUse == FlagUse.Pushes)
            {
                ClearPushedFlag();
            }
            else if (exit.Reason == VmExitReason.SystemCall)
            {
                Cpu[Gpr.R8 + 3] &= ~Rflags.Tf; // SYSCALL has put RFLAGS into R11
            }
        }

        if (exit.Reason == VmExitReason.PageFault && _pagesOpen)
        {
            Shadow.EndStep(again: true); // perhaps the next page of the same instruction
            return exit;
        }

        EndSteps();
        return exit;
    }

    private void EndSteps()
    {
        _stepping = Stepping.No;
        if (_pagesOpen)
        {
            _pagesOpen = false;
            Shadow.EndStep(again: false);
        }
    }

    private void ClearPushedFlag()
    {
        PageAccess user = Cpu.Cpl == 3 ? PageAccess.User : 0;
        ulong image = Cpu.Rsp + 1; // bits 8 to 15
        if (Space.TryRead(image, PageAccess.Read | user, out byte flags, out _))
        {
            _ = Space.TryWrite(image, (byte)(flags & ~(byte)(Rflags.Tf >> 8)), user, out _);
        }
    }

    // Behind any prefixes (Intel SDM vol. 2A, section 2.1), what the opcode does with RFLAGS.
    private FlagUse FlagUseOf(ulong rip)
    {
        const int longest = 15;
        PageAccess access = PageAccess.Execute | (Cpu.Cpl == 3 ? PageAccess.User : 0);
        for (int i = 0; i < longest; i++)
        {
            ulong at = rip + (ulong)i;
            if (
                !Space.TryTranslate(at, access, out ulong physical, out _, commit: false)
                || !Memory.Contains(physical, 1)
            )
            {
                return FlagUse.None;
            }

            switch (Memory.Read<byte>(physical))
            {
                case 0x26
                or 0x2E
                or 0x36
                or 0x3E
                or (>= 0x40 and <= 0x4F)
                or (>= 0x64 and <= 0x67)
                or 0xF0
                or 0xF2
                or 0xF3:
                    continue;
                case 0x9C:
                    return FlagUse.Pushes;
                case 0x9D or 0xCF:
                    return FlagUse.Loads;
                default:
                    return FlagUse.None;
            }
        }

        return FlagUse.None;
    }
}
