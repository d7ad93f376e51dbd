using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Workloads.Tests;

// The paravirtual interface: what workloads call, as the contract has it, and nothing of the core's.
internal sealed partial class ReferenceMachine
{
    private const ulong BlockEnd = 0xF00;
    private const ulong SharedMask = PhysicalLayout.SharedInfoPage;

    /// <summary>What the program was built for.</summary>
    public GuestInterface Interface { get; init; }

    private bool IsMasked => Interface == GuestInterface.Paravirtual && _memory.Read<ulong>(SharedMask) != 0;

    private void OfferParavirtualInterface()
    {
        if (Interface == GuestInterface.Native)
        {
            return;
        }

        _cpu.Rflags |= Rflags.If;
        _memory.Write(SharedMask, 1UL);
        _memory.Write(PhysicalLayout.SharedInfoPage + 0x40 + 0x18, 1U << 31); // the clock's multiplier: half a nanosecond a tick
    }

    private void CountMaskWrite(in Instruction i)
    {
        if (
            Interface == GuestInterface.Paravirtual
            && i.Mnemonic is Mnemonic.Mov or Mnemonic.Pop
            && i.Op0Kind == OpKind.Memory
            && i.MemoryBase == Register.None
            && i.MemoryDisplacement64 == SharedMask
        )
        {
            SensitiveInUnit(i);
        }
    }

    private void Hypercall(ulong offset)
    {
        Assert.Equal((GuestInterface.Paravirtual, 0), (Interface, _cpu.Cpl));
        if (offset == BlockEnd)
        {
            _memory.Write(SharedMask, 1UL);
            _cpu.Rip = Pop();
            return;
        }

        Assert.Equal(0UL, offset % HypercallPage.EntrySize);
        if (offset + PhysicalLayout.HypercallPage == HypercallPage.FaultAddressEntry)
        {
            _cpu.Rax = _cpu.Cr2;
            _cpu.Rip = Pop();
            return;
        }

        ulong first = _cpu[Gpr.Rdi];
        var number = (HypercallNumber)(offset / HypercallPage.EntrySize);
        if (number == HypercallNumber.InterruptReturn)
        {
            _cpu.Rsp += 8;
            _memory.Write(SharedMask, Pop());
            ReturnFromInterrupt();
            return;
        }

        switch (number)
        {
            case HypercallNumber.SetPageTableBase:
                Sensitive();
                AddressSpacesEntered.Add(first);
                _cpu.Cr3 = _switches++ < SwitchesObeyed ? first : _cpu.Cr3;
                FlushTlb(true);
                break;
            case HypercallNumber.UpdatePageTables:
                Sensitive();
                for (ulong i = 0; i < _cpu[Gpr.Rsi]; i++)
                {
                    PageTableUpdate update = _memory.Read<PageTableUpdate>(first + (i * 16));
                    _memory.Write(update.Entry, update.Value);
                }

                FlushTlb(!StaleTlb);
                break;
            case HypercallNumber.SetTimer:
                _timerDue = Countdown;
                break;
            case HypercallNumber.EndOfInterrupt:
                Assert.Equal((true, 0UL), (_inService, first));
                _inService = false;
                break;
            case HypercallNumber.Block:
                _memory.Write(SharedMask, 0UL);
                _cpu.Rflags |= Rflags.If;
                Halt();
                _cpu.Rip = PhysicalLayout.HypercallPage + BlockEnd;
                return;
            default:
                Assert.Fail($"hypercall {number}");
                break;
        }

        // What a hypercall may clobber is gone.
        _cpu.Rax = 0;
        _cpu[Gpr.Rcx] = 0xBAD0_0BAD_BAD0_0BAD;
        _cpu[Gpr.R8 + 3] = 0xBAD0_0BAD_BAD0_0BAD;
        _zero = !_zero;
        _cpu.Rip = Pop();
    }

    private void ReturnFromInterrupt()
    {
        _cpu.Rip = Pop();
        ushort code = (ushort)Pop();
        _cpu.Rflags = Pop();
        ulong stack = Pop();
        Pop();
        _cpu.Rsp = stack;
        EnterRing(code & 3, code);
    }
}
