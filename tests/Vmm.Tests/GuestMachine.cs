using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Emulation;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Tests;

/// <summary>A booted CPU with 4 MiB of RAM, its emulator and its event delivery, without an engine that runs anything.</summary>
internal sealed class GuestMachine : IDisposable, IIoDevice
{
    public const ulong Code = 0x10_0000;
    public const ulong Data = 0x11_0000;
    public const ulong Stack = 0x12_0000;
    public const ulong RamSize = 4 << 20;

    // Descriptors of the GDT that tests use, behind the boot loader's: user code and data, a TSS, an LDT and bad ones.
    public const ushort KernelCode = 0x08;
    public const ushort KernelData = 0x10;
    public const ushort UserData = 0x1B;
    public const ushort UserCode = 0x23;
    public const ushort Code32 = 0x28;
    public const ushort AbsentData = 0x30;
    public const ushort AbsentCode = 0x38;
    public const ushort Task = 0x40;
    public const ushort Ldt = 0x50;
    public const ushort BeyondLimit = 0x60;
    public const ulong TaskState = 0x13_0000;
    public const ulong Idt = 0x14_0000;

    private ulong _nextTable = 0x30_0000;

    public GuestMachine()
    {
        Memory = new GuestMemory(RamSize);
        Cpu = new VirtualCpu();
        Engine = new ScriptedEngine(Cpu);
        Ports.Attach(this, 0x500, 8);
        Emulator = new InstructionEmulator(Cpu, Memory, Ports, Engine, Absent);
        Delivery = new EventDelivery(Cpu, Memory, Absent);
        BootLoader.Load(
            new GuestImage("test", Code, [new ImageSegment(Code, new byte[] { 0xF4 }, 0x1000, true)]),
            new BootOptions(),
            Cpu,
            Memory,
            2e9
        );
        Descriptor(UserData, 0x00CF_F200_0000_FFFF);
        Descriptor(UserCode, 0x00AF_FA00_0000_FFFF);
        Descriptor(Code32, 0x00CF_9A00_0000_FFFF);
        Descriptor(AbsentData, 0x00CF_1200_0000_FFFF);
        Descriptor(AbsentCode, 0x00AF_1A00_0000_FFFF);
        Descriptor(Task, 0x0000_8900_0000_0067 | (TaskState << 16));
        Descriptor(Ldt, 0x0000_8200_0000_00FF | (Data << 16));
        Cpu.Gdtr = Cpu.Gdtr with { Limit = 0x5F };
        Cpu.Rsp = Stack;
        Cpu.Rflags = 0x202;
    }

    public GuestMemory Memory { get; }

    public VirtualCpu Cpu { get; }

    public ScriptedEngine Engine { get; }

    public IoBus Ports { get; } = new();

    public PhysicalBus Absent { get; } = new();

    public InstructionEmulator Emulator { get; }

    public EventDelivery Delivery { get; }

    /// <summary>What IN from ports 0x500–0x507 returns, and a log of both directions.</summary>
    public uint PortValue { get; set; } = 0x4433_2211;

    public List<string> PortLog { get; } = [];

    public GuestEvent Event { get; private set; }

    public TrapReason Reason { get; private set; }

    public int Length { get; private set; }

    public uint Read(ushort port, int size)
    {
        PortLog.Add($"in {port:X} {size}");
        return size == 4 ? PortValue : PortValue & ((1u << (8 * size)) - 1);
    }

    public void Write(ushort port, int size, uint value) => PortLog.Add($"out {port:X} {size} {value:X}");

    /// <summary>Assembles one instruction at RIP and emulates it.</summary>
    public EmulationResult Execute(Action<Assembler> instruction, bool dataAccess = false)
    {
        Assembler assembler = new(64);
        instruction(assembler);
        using MemoryStream stream = new();
        assembler.Assemble(new StreamCodeWriter(stream), Cpu.Rip);
        return Execute(stream.ToArray(), dataAccess);
    }

    public EmulationResult Execute(byte[] code, bool dataAccess = false)
    {
        Length = code.Length;
        Memory.Write(Physical(Cpu.Rip), code);
        return Step(dataAccess);
    }

    /// <summary>Emulates what is at RIP.</summary>
    public EmulationResult Step(bool dataAccess = false)
    {
        if (!Emulator.TryDecode(out TrapReason reason, out GuestEvent guestEvent))
        {
            Event = guestEvent;
            return EmulationResult.Event;
        }

        Reason = reason;
        EmulationResult result = dataAccess
            ? Emulator.EmulateDataAccess(out guestEvent)
            : Emulator.Emulate(out guestEvent);
        Event = guestEvent;
        return result;
    }

    public ulong Physical(ulong linear) => PageWalker.Walk(Cpu, Memory, linear, PageAccess.Read, false).PhysicalAddress;

    public void EnterRing3(int iopl = 0)
    {
        // The boot tables are supervisor's: open them for the tests that run in ring 3.
        for (ulong table = PhysicalLayout.PageTables; table < PhysicalLayout.PageTables + 0x3000; table += 8)
        {
            ulong entry = Memory.Read<ulong>(table);
            if ((entry & Pte.Present) != 0)
            {
                Memory.Write(table, entry | Pte.User);
            }
        }

        Cpu.Cs = new Segment(UserCode, 0, uint.MaxValue, 0xA0FB);
        Cpu.Ss = new Segment(UserData, 0, uint.MaxValue, 0xC0F3);
        Cpu.Rflags = (Cpu.Rflags & ~Rflags.Iopl) | ((ulong)iopl << 12);
    }

    /// <summary>Maps one 4 KiB page above the boot tables' first GiB, or in the upper half.</summary>
    public ulong Map(ulong linear, ulong physical, ulong bits = Pte.Present | Pte.Writable)
    {
        ulong table = Cpu.Cr3;
        for (int shift = 39; shift > 12; shift -= 9)
        {
            ulong slot = table + (((linear >> shift) & 511) * 8);
            ulong entry = Memory.Read<ulong>(slot);
            if ((entry & Pte.Present) == 0)
            {
                entry = _nextTable | Pte.Present | Pte.Writable | Pte.User;
                Memory.Write(slot, entry);
                _nextTable += 4096;
            }

            table = entry & Pte.AddressMask;
        }

        ulong leaf = table + (((linear >> 12) & 511) * 8);
        Memory.Write(leaf, physical | bits);
        return leaf;
    }

    public void Descriptor(ushort selector, ulong value) =>
        Memory.Write(PhysicalLayout.Gdt + (ulong)(selector & ~7), value);

    /// <summary>Puts a gate into an IDT of 256 entries.</summary>
    public void Gate(byte vector, ulong handler, ushort selector = KernelCode, int type = 0x8E, int stack = 0)
    {
        Cpu.Idtr = new DescriptorTable(Idt, 0xFFF);
        Memory.Write(
            Idt + (vector * 16UL),
            (handler & 0xFFFF)
                | ((ulong)selector << 16)
                | ((ulong)stack << 32)
                | ((ulong)type << 40)
                | ((handler & 0xFFFF_0000) << 32)
        );
        Memory.Write(Idt + (vector * 16UL) + 8, handler >> 32);
    }

    public string State()
    {
        string registers = string.Join(' ', Enumerable.Range(0, 16).Select(i => $"{Cpu[i]:X}"));
        return $"{registers} {Cpu.Rip:X} {Cpu.Rflags:X} {Cpu.Cr0:X} {Cpu.Cr2:X} {Cpu.Cr3:X} {Cpu.Cr4:X} {Cpu.Cs} {Cpu.Ss} {Cpu.Ds} "
            + $"{Cpu.Es} {Cpu.Fs} {Cpu.Gs} {Cpu.Tr} {Cpu.Ldtr} {Cpu.Gdtr} {Cpu.Idtr} {Cpu.Efer:X} {Cpu.InterruptShadow}";
    }

    public void Dispose()
    {
        Cpu.Dispose();
        Memory.Dispose();
        Engine.Dispose();
    }
}
