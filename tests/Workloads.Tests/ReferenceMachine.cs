using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Workloads.Tests;

/// <summary>
/// Executes a workload's program one instruction at a time and counts: an oracle that shares nothing with the engines but
/// the page walker. It knows the instructions that workloads use and no others.
/// </summary>
internal sealed partial class ReferenceMachine : IDisposable
{
    private const ulong BootParameters = PhysicalLayout.BootInfo + 56;

    private readonly GuestMemory _memory = new(16 << 20);
    private readonly VirtualCpu _cpu = new();
    private readonly Dictionary<ulong, Instruction> _decoded = [];
    private bool _zero;
    private bool _negative;
    private bool _inRegion;
    private bool _ended;
    private byte _scratch;
    private int _switches;

    /// <summary>Instructions executed between the markers, both markers and system code left out.</summary>
    public long RegionInstructions { get; private set; }

    /// <summary>
    /// Sensitive operations between the markers: rdtsc, mov to CR3, out to the scratch register, sti and cli, popf, cpuid, sidt and
    /// sgdt, syscall, invlpg, a page fault, a halt, a store into code; in a paravirtual guest the hypercalls in their place, and what writes the
    /// mask in the units.
    /// </summary>
    public long RegionSensitive { get; private set; }

    public ulong UnitsReported { get; private set; }

    public uint RegionId { get; private set; }

    public byte? ExitStatus { get; private set; }

    public ulong LowestAddress { get; private set; } = ulong.MaxValue;

    public HashSet<ulong> AddressSpacesEntered { get; } = [];

    public WorkloadResult Result => WorkloadResult.Read(_memory);

    /// <summary>Called at every RDTSC; the default counts up.</summary>
    public Func<ulong> TimeStamp { get; init; } = CountingClock();

    /// <summary>MOV to CR3 is lost after so many, as in a broken engine.</summary>
    public int SwitchesObeyed { get; init; } = int.MaxValue;

    public static ReferenceMachine Run(
        GuestImage image,
        ulong warmUp,
        ulong units,
        GuestInterface guestInterface = GuestInterface.Native
    )
    {
        var machine = new ReferenceMachine { Interface = guestInterface };
        machine.Execute(image, warmUp, units);
        return machine;
    }

    public void Execute(GuestImage image, ulong warmUp, ulong units)
    {
        foreach (ImageSegment segment in image.Segments)
        {
            _memory.Write(segment.PhysicalAddress, segment.Content.Span);
        }

        _memory.Write(BootParameters, warmUp);
        _memory.Write(BootParameters + 8, units);
        const ulong rights = Pte.Present | Pte.Writable;
        _memory.Write(PhysicalLayout.PageTables, (PhysicalLayout.PageTables + 0x1000) | rights);
        _memory.Write(PhysicalLayout.PageTables + 0x1000, (PhysicalLayout.PageTables + 0x2000) | rights);
        for (ulong entry = 0; entry < 512; entry++)
        {
            _memory.Write(PhysicalLayout.PageTables + 0x2000 + (entry * 8), (entry << 21) | rights | Pte.Large);
        }

        _cpu.Cr3 = PhysicalLayout.PageTables;
        _cpu[Gpr.Rdi] = PhysicalLayout.BootInfo;
        _cpu.Rsp = PhysicalLayout.StackTop;
        _cpu.Rip = image.Entry;
        OfferParavirtualInterface();
        while (!_ended)
        {
            Step();
        }
    }

    private static Func<ulong> CountingClock()
    {
        ulong now = 0x1_0000_0000;
        return () => now += 100;
    }

    private void Step()
    {
        PassTime();
        ulong rip = _cpu.Rip;
        try
        {
            Step(rip);
        }
        catch (GuestPageFaultException fault)
        {
            _cpu.Rip = rip;
            Sensitive();
            _cpu.Cr2 = fault.Address;
            Deliver(Vector.PageFault, fault.ErrorCode);
            RegionInstructions += _inRegion ? 1 : 0;
        }
    }

    private void Step(ulong rip)
    {
        if (rip - PhysicalLayout.HypercallPage < GuestMemory.PageSize)
        {
            Hypercall(rip - PhysicalLayout.HypercallPage);
            return;
        }

        if (!_decoded.TryGetValue(rip, out Instruction i))
        {
            byte[] bytes = new byte[15];
            _memory.Read(Physical(rip, PageAccess.Execute), bytes);
            var decoder = Decoder.Create(64, bytes, rip);
            decoder.Decode(out i);
            _decoded[rip] = i;
        }

        _cpu.Rip = i.NextIP;
        bool counts = _inRegion && rip < SystemArea.Code;
        CountMaskWrite(i);
        switch (i.Mnemonic)
        {
            case Mnemonic.Mov when i.Op0Register == Register.CR3:
                Assert.True(_cpu.Cpl == 0);
                Sensitive();
                AddressSpacesEntered.Add(Read(i, 1));
                _cpu.Cr3 = _switches++ < SwitchesObeyed ? Read(i, 1) : _cpu.Cr3;
                FlushTlb(true);
                break;
            case Mnemonic.Mov when i.Op1Register == Register.CR2:
                Write(i, _cpu.Cr2);
                break;
            case Mnemonic.Mov:
                Write(i, Read(i, 1));
                break;
            case Mnemonic.Lea:
                Write(i, Address(i));
                break;
            case Mnemonic.Add:
                WriteWithFlags(i, Read(i, 0) + Read(i, 1));
                break;
            case Mnemonic.Sub:
                WriteWithFlags(i, Read(i, 0) - Read(i, 1));
                break;
            case Mnemonic.Xor:
                WriteWithFlags(i, Read(i, 0) ^ Read(i, 1));
                break;
            case Mnemonic.Or:
                WriteWithFlags(i, Read(i, 0) | Read(i, 1));
                break;
            case Mnemonic.Test:
                _zero = (Read(i, 0) & Read(i, 1)) == 0;
                break;
            case Mnemonic.Cmp:
                _zero = Read(i, 0) == Read(i, 1);
                break;
            case Mnemonic.Not:
                Write(i, ~Read(i, 0));
                break;
            case Mnemonic.Neg:
                WriteWithFlags(i, 0 - Read(i, 0));
                break;
            case Mnemonic.Dec:
                WriteWithFlags(i, Read(i, 0) - 1);
                break;
            case Mnemonic.Rol:
                Write(i, ulong.RotateLeft(Read(i, 0), (int)Read(i, 1)));
                break;
            case Mnemonic.Ror:
                Write(i, ulong.RotateRight(Read(i, 0), (int)Read(i, 1)));
                break;
            case Mnemonic.Shl:
                WriteWithFlags(i, Read(i, 0) << (int)Read(i, 1));
                break;
            case Mnemonic.Shr:
                WriteWithFlags(i, Read(i, 0) >> (int)Read(i, 1));
                break;
            case Mnemonic.Jne when !_zero:
            case Mnemonic.Je when _zero:
            case Mnemonic.Js when _negative:
                _cpu.Rip = i.NearBranchTarget;
                break;
            case Mnemonic.Jne:
            case Mnemonic.Je:
            case Mnemonic.Js:
            case Mnemonic.Nop:
                break;
            case Mnemonic.Call:
                ulong target = i.Op0Kind == OpKind.Register ? Read(i, 0) : i.NearBranchTarget;
                Push(i.NextIP);
                _cpu.Rip = target;
                break;
            case Mnemonic.Ret:
                _cpu.Rip = Pop();
                break;
            case Mnemonic.Rdtsc:
                SensitiveInUnit(i);
                ulong tsc = TimeStamp();
                _cpu.Rax = (uint)tsc;
                _cpu[Gpr.Rdx] = tsc >> 32;
                break;
            case Mnemonic.Out:
                Out((ushort)Read(i, 0), Read(i, 1), ref counts);
                break;
            case Mnemonic.In:
                _cpu.Rax = (_cpu.Rax & ~0xFFUL) | In((ushort)Read(i, 1));
                break;
            default:
                System(i, ref counts);
                break;
        }

        RegionInstructions += counts && _inRegion ? 1 : 0;
    }

    private void Out(ushort port, ulong value, ref bool counts)
    {
        switch (port)
        {
            case 0xB0:
                Assert.False(_inRegion);
                _inRegion = true;
                RegionId = (uint)value;
                break;
            case 0xB8:
                counts = false;
                UnitsReported = value << 32;
                break;
            case 0xB4:
                Assert.True(_inRegion);
                _inRegion = false;
                UnitsReported |= (uint)value;
                break;
            case 0x3FF:
                Sensitive();
                _scratch = (byte)value;
                break;
            case 0xF4:
                _ended = true;
                ExitStatus = (byte)value;
                break;
            default:
                SystemOut(port, (byte)value);
                break;
        }
    }

    private byte In(ushort port) =>
        port == 0x3FF ? _scratch
        : port == 0x20 ? (byte)(_requested ? 1 : 0)
        : throw new InvalidOperationException($"in from port 0x{port:X}");

    private void Sensitive() => RegionSensitive += _inRegion ? 1 : 0;

    private static InvalidOperationException Unknown(in Instruction i) => new($"{i} at 0x{i.IP:X} is not known here");

    private ulong Address(in Instruction i) =>
        (i.MemoryBase is Register.None or Register.RIP ? 0 : Value(i.MemoryBase))
        + (i.MemoryIndex == Register.None ? 0 : Value(i.MemoryIndex) * (ulong)i.MemoryIndexScale)
        + i.MemoryDisplacement64;

    private ulong Value(Register register) =>
        register.GetSize() switch
        {
            8 => _cpu[register.GetFullRegister() - Register.RAX],
            4 => (uint)_cpu[register.GetFullRegister() - Register.RAX],
            2 => (ushort)_cpu[register.GetFullRegister() - Register.RAX],
            _ => (byte)_cpu[register.GetFullRegister() - Register.RAX],
        };

    private ulong Read(in Instruction i, int operand) =>
        i.GetOpKind(operand) switch
        {
            OpKind.Register => Value(i.GetOpRegister(operand)),
            OpKind.Memory => _memory.Read<ulong>(Physical(Address(i), PageAccess.Read)) & Mask(i.MemorySize.GetSize()),
            _ => i.GetImmediate(operand),
        };

    private void WriteWithFlags(in Instruction i, ulong value)
    {
        int size = i.Op0Kind == OpKind.Register ? i.Op0Register.GetSize() : 8;
        _zero = (value & Mask(size)) == 0;
        _negative = (value >> ((8 * size) - 1) & 1) != 0;
        Write(i, value);
    }

    private static ulong Mask(int bytes) => ulong.MaxValue >> (64 - (8 * bytes));

    private void Write(in Instruction i, ulong value)
    {
        if (i.Op0Kind == OpKind.Memory)
        {
            WriteMemory(i, value);
            return;
        }

        if (i.Op0Register == Register.CL)
        {
            _cpu[Gpr.Rcx] = (_cpu[Gpr.Rcx] & ~0xFFUL) | (byte)value;
            return;
        }

        Assert.True(i.Op0Register.GetSize() >= 4, "partial registers are not known here");
        _cpu[i.Op0Register.GetFullRegister() - Register.RAX] = i.Op0Register.GetSize() == 4 ? (uint)value : value;
    }

    private ulong Physical(ulong address, PageAccess access)
    {
        LowestAddress = Math.Min(LowestAddress, address);
        ulong page = address & ~0xFFFUL;
        if (_tlb.TryGetValue(page, out ulong cached))
        {
            return cached | (address & 0xFFF);
        }

        access |= _cpu.Cpl == 3 ? PageAccess.User : 0;
        Translation translation = PageWalker.Walk(_cpu, _memory, address, access);
        if (translation.Fault && HasHandler(Vector.PageFault))
        {
            throw new GuestPageFaultException(address, translation.ErrorCode);
        }

        Assert.False(translation.Fault, $"page fault at 0x{address:X}, RIP before 0x{_cpu.Rip:X}");
        if (address >= 1 << 30)
        {
            _tlb[page] = translation.PhysicalAddress & ~0xFFFUL;
        }

        return translation.PhysicalAddress;
    }

    public void Dispose()
    {
        _memory.Dispose();
        _cpu.Dispose();
    }
}
