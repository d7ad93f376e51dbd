using Iced.Intel;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Workloads.Tests;

// What the workloads of a guest kernel need besides: interrupts, rings, tables. As the platform has it, not as some engine does.
internal sealed partial class ReferenceMachine
{
    /// <summary>Instructions that a countdown of the timer lasts: more than any way to HLT.</summary>
    private const int Countdown = 60;

    private readonly Dictionary<uint, ulong> _msrs = [];
    private readonly Dictionary<ulong, ulong> _tlb = [];
    private int _timerDue = -1;
    private bool _requested;
    private bool _inService;
    private bool _shadow;
    private bool _initialized;
    private byte _mask = 0xFF;
    private int _initializationWord;
    private int _taken;

    /// <summary>POPF leaves IF alone and CPUID, SIDT and SGDT answer for someone else, as in ring 3 of a host.</summary>
    public bool Deprivileged { get; init; }

    /// <summary>Interrupts are lost after so many.</summary>
    public int InterruptsTaken { get; init; } = int.MaxValue;

    /// <summary>Stores into code are not seen by the fetch after them.</summary>
    public bool StaleCode { get; init; }

    /// <summary>INVLPG is lost: the old entry stays in the TLB.</summary>
    public bool StaleTlb { get; init; }

    /// <summary>Instructions of the units that ran in ring 3.</summary>
    public long UserInstructions { get; private set; }

    private bool InterruptsOn => (_cpu.Rflags & Rflags.If) != 0 && !IsMasked;

    private void PassTime()
    {
        UserInstructions += _inRegion && _cpu.Cpl == 3 ? 1 : 0;
        if (_timerDue >= 0 && --_timerDue < 0)
        {
            _requested = true;
        }

        bool shadow = _shadow;
        _shadow = false;
        if (_requested && !_inService && _initialized && (_mask & 1) == 0 && InterruptsOn && !shadow)
        {
            _requested = false;
            if (_taken++ < InterruptsTaken)
            {
                _inService = true;
                Deliver(0x20, null);
            }
        }
    }

    private void Halt()
    {
        Assert.True(InterruptsOn);
        Sensitive();
        Assert.True(_timerDue >= 0 || _requested, "nothing would wake the CPU");
        _requested = true;
        _timerDue = -1;
    }

    private void System(in Instruction i, ref bool counts)
    {
        switch (i.Mnemonic)
        {
            case Mnemonic.And:
                WriteWithFlags(i, Read(i, 0) & Read(i, 1));
                break;
            case Mnemonic.Inc:
                WriteWithFlags(i, Read(i, 0) + 1);
                break;
            case Mnemonic.Push:
                Push(Read(i, 0));
                break;
            case Mnemonic.Pop:
                Write(i, Pop()); // to memory, too
                break;
            case Mnemonic.Jmp:
                _cpu.Rip = Read(i, 0);
                break;
            case Mnemonic.Movzx:
                Write(i, Read(i, 1));
                break;
            case Mnemonic.Mul:
                UInt128 product = (UInt128)_cpu.Rax * Read(i, 0);
                _cpu.Rax = (ulong)product;
                _cpu[Gpr.Rdx] = (ulong)(product >> 64);
                break;
            case Mnemonic.Shrd:
                Write(i, (Read(i, 0) >> (int)i.Immediate8) | (Read(i, 1) << (64 - i.Immediate8)));
                break;
            case Mnemonic.Cli or Mnemonic.Sti:
                SetInterruptFlag(i);
                break;
            case Mnemonic.Popfq:
                SensitiveInUnit(i);
                ulong keeps = Deprivileged ? Rflags.If : 0;
                _cpu.Rflags = (Pop() & ~keeps) | (_cpu.Rflags & keeps);
                break;
            case Mnemonic.Hlt:
                Halt();
                break;
            case Mnemonic.Cpuid:
                Identify();
                break;
            case Mnemonic.Sidt or Mnemonic.Sgdt:
                Sensitive();
                DescriptorTable table = i.Mnemonic == Mnemonic.Sidt ? _cpu.Idtr : _cpu.Gdtr;
                ulong at = Physical(Address(i), PageAccess.Write);
                _memory.Write(at, table.Limit);
                _memory.Write(at + 2, Deprivileged ? 0xFFFF_FE00_0000_0000 : table.Base);
                break;
            case Mnemonic.Lidt or Mnemonic.Lgdt:
                ulong operand = Physical(Address(i), PageAccess.Read);
                var loaded = new DescriptorTable(_memory.Read<ulong>(operand + 2), _memory.Read<ushort>(operand));
                _ = i.Mnemonic == Mnemonic.Lidt ? _cpu.Idtr = loaded : _cpu.Gdtr = loaded;
                break;
            case Mnemonic.Ltr:
                ulong descriptor = _memory.Read<ulong>(Physical(_cpu.Gdtr.Base + Read(i, 0), PageAccess.Read));
                _cpu.Tr = new SegmentDescriptor(0, descriptor, 0).ToSegment((ushort)Read(i, 0));
                break;
            case Mnemonic.Invlpg:
                Sensitive();
                FlushTlb(!StaleTlb);
                break;
            case Mnemonic.Rdmsr:
                ulong value = _msrs.GetValueOrDefault((uint)_cpu[Gpr.Rcx], 0xD00UL);
                _cpu.Rax = (uint)value;
                _cpu[Gpr.Rdx] = value >> 32;
                break;
            case Mnemonic.Wrmsr:
                _msrs[(uint)_cpu[Gpr.Rcx]] = (uint)_cpu.Rax | (_cpu[Gpr.Rdx] << 32);
                break;
            case Mnemonic.Syscall:
                Sensitive();
                Assert.Equal((3, 1UL), (_cpu.Cpl, _msrs[Msr.Efer] & Efer.Sce));
                _cpu[Gpr.Rcx] = i.NextIP;
                _cpu[Gpr.R8 + 3] = _cpu.Rflags;
                _cpu.Rflags &= ~_msrs[Msr.Fmask];
                EnterRing(0, (ushort)(_msrs[Msr.Star] >> 32));
                _cpu.Rip = _msrs[Msr.Lstar];
                break;
            case Mnemonic.Sysretq:
                Assert.Equal(0, _cpu.Cpl);
                _cpu.Rflags = _cpu[Gpr.R8 + 3];
                _cpu.Rip = _cpu[Gpr.Rcx];
                EnterRing(3, (ushort)((_msrs[Msr.Star] >> 48) + 16 | 3));
                break;
            case Mnemonic.Iretq:
                ReturnFromInterrupt();
                break;
            case Mnemonic.Ud2:
                _cpu.Rip = i.IP;
                Deliver(Vector.InvalidOpcode, null);
                break;
            default:
                throw Unknown(i);
        }
    }

    private void SetInterruptFlag(in Instruction i)
    {
        SensitiveInUnit(i);
        Assert.Equal(0, _cpu.Cpl);
        _shadow = i.Mnemonic == Mnemonic.Sti && !InterruptsOn;
        _cpu.Rflags = i.Mnemonic == Mnemonic.Sti ? _cpu.Rflags | Rflags.If : _cpu.Rflags & ~Rflags.If;
    }

    private void SensitiveInUnit(in Instruction i)
    {
        if (i.IP < SystemArea.Code)
        {
            Sensitive();
        }
    }

    private void Identify()
    {
        Sensitive();
        CpuidResult answer = Deprivileged ? default : PlatformCpuid.Query((uint)_cpu.Rax);
        _cpu.Rax = answer.Eax;
        _cpu[Gpr.Rbx] = answer.Ebx;
        _cpu[Gpr.Rcx] = answer.Ecx;
        _cpu[Gpr.Rdx] = answer.Edx;
    }

    private void EnterRing(int ring, ushort selector) =>
        _cpu.Cs = Segment.KernelCode(selector) with { Attributes = (ushort)(0xA09B | (ring << 5)) };

    private bool HasHandler(byte vector) => _cpu.Idtr.Limit >= (vector * 16) + 15;

    private void Deliver(byte vector, uint? errorCode)
    {
        Assert.True(HasHandler(vector), $"vector 0x{vector:X} has no gate, RIP 0x{_cpu.Rip:X}");
        ulong gate = _cpu.Idtr.Base + ((ulong)vector * 16);
        ulong flags = _cpu.Rflags;
        ulong stack = _cpu.Rsp;
        ulong ring = (ulong)_cpu.Cpl;
        EnterRing(0, 0x08);
        ulong low = _memory.Read<ulong>(Physical(gate, PageAccess.Read));
        _cpu.Rsp = ring == 3 ? _memory.Read<ulong>(Physical(_cpu.Tr.Base + 4, PageAccess.Read)) : stack & ~15UL;
        Push(0);
        Push(stack);
        Push(flags);
        Push(0x08 | ring);
        Push(_cpu.Rip);
        if (errorCode is { } code)
        {
            Push(code);
        }

        _cpu.Rflags &= ~Rflags.If;
        _cpu.Rip = (low & 0xFFFF) | ((low >> 32) & 0xFFFF_0000);
    }

    private void SystemOut(ushort port, byte value)
    {
        switch (port)
        {
            case 0x20 when (value & 0x10) != 0:
                _initializationWord = 2;
                break;
            case 0x20 when value == 0x20:
                Assert.True(_inService);
                _inService = false;
                break;
            case 0x20:
                Assert.Equal(0x0A, value); // the next read is one of the IRR
                break;
            case 0x21 when _initializationWord is >= 2 and <= 4:
                Assert.True(_initializationWord != 2 || value == 0x20);
                _initialized = _initializationWord++ == 4;
                _mask = 0;
                break;
            case 0x21:
                _mask = value;
                break;
            case 0x43:
                Assert.Equal(0x10, value); // channel 0, low byte, mode 0
                _timerDue = -1;
                break;
            case 0x40:
                _timerDue = Countdown;
                break;
            default:
                Assert.Fail($"out to port 0x{port:X}");
                break;
        }
    }

    private void FlushTlb(bool obeyed)
    {
        if (obeyed)
        {
            _tlb.Clear();
        }
    }

    private void Push(ulong value)
    {
        ulong at = Physical(_cpu.Rsp - 8, PageAccess.Write);
        _cpu.Rsp -= 8;
        _memory.Write(at, value);
    }

    private ulong Pop()
    {
        ulong value = _memory.Read<ulong>(Physical(_cpu.Rsp, PageAccess.Read));
        _cpu.Rsp += 8;
        return value;
    }

    private void WriteMemory(in Instruction i, ulong value)
    {
        ulong at = Physical(Address(i), PageAccess.Write);
        if (i.MemorySize.GetSize() == 8)
        {
            _memory.Write(at, value);
            return;
        }

        Assert.Equal(4, i.MemorySize.GetSize());
        _memory.Write(at, (uint)value);
        if (i.MemoryBase == Register.RIP)
        {
            Sensitive();
            if (!StaleCode)
            {
                _decoded.Clear();
            }
        }
    }

    private sealed class GuestPageFaultException(ulong address, uint errorCode) : Exception
    {
        public ulong Address => address;

        public uint ErrorCode => errorCode;
    }
}
