using Iced.Intel;
using VirtBench.Strategies;
using VirtBench.Strategies.Hardware;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

// Machines of the lab have one CPU, and some tests count what the process holds.
[assembly: CollectionBehavior(DisableTestParallelization = true)]

namespace VirtBench.Hardware.Tests;

/// <summary>A small guest program under /dev/kvm, or for comparison under another strategy, from Iced to the outcome.</summary>
internal sealed class HardwareGuest : IDisposable
{
    public const string Hardware = "hardware";
    public const string Simulated = "simulated-trap-and-emulate";
    public const string TrapAndEmulate = "trap-and-emulate";

    public const ulong Code = 0x10_0000;
    public const ulong Data = 0x20_0000;
    public const ulong Results = 0x21_0000;

    /// <summary>Free for page tables that a test makes.</summary>
    public const ulong Tables = 0x40_0000;
    public const uint RamBytes = 16 << 20;

    /// <summary>In the boot identity map, and no RAM.</summary>
    public const ulong NoRam = 0x3000_0000;

    private const ulong Idt = 0x30_0000;
    private const ulong Handlers = 0x31_0000;
    private const ulong HandlerSize = 128;
    private const ulong IdtPointer = 0x32_0000;

    /// <summary>Bytes of <see cref="GuestAssembly.LoadIdt"/>.</summary>
    public const ulong LoadIdtLength = 8;

    /// <summary>For guests that end by themselves; never reached.</summary>
    public static readonly TimeSpan Ample = TimeSpan.FromSeconds(120);

    private readonly MemoryStream _console = new();

    public HardwareGuest(
        Action<Assembler> program,
        string strategy = Hardware,
        ulong ram = RamBytes,
        bool strict = false,
        Func<KvmCapabilities, KvmCapabilities>? without = null
    )
        : this(Assemble(program), strategy, ram, strict, without) { }

    public HardwareGuest(
        GuestImage image,
        string strategy = Hardware,
        ulong ram = RamBytes,
        bool strict = false,
        Func<KvmCapabilities, KvmCapabilities>? without = null,
        BootOptions? options = null
    )
    {
        SkipUnlessAvailable(strategy);
        Machine = new VirtualMachine(
            ram,
            (cpu, memory) => AnyEngine = CreateEngine(strategy, cpu, memory, without),
            strict
        );
        Machine.Serial.Transmitted = _console.WriteByte;
        Machine.Load(image, options ?? new BootOptions());
    }

    public VirtualMachine Machine { get; }

    public HardwareEngine Engine => (HardwareEngine)AnyEngine;

    public IExecutionEngine AnyEngine { get; private set; } = null!;

    public GuestMemory Memory => Machine.Memory;

    public VirtualCpu Cpu => Machine.Cpu;

    /// <summary>For a guest that has been moved: it has begun its region in another machine.</summary>
    public bool RegionWasBegun { get; set; }

    public string Console => System.Text.Encoding.Latin1.GetString(_console.ToArray());

    /// <summary>Skips where the host has no usable /dev/kvm; one that fails its self-check fails the test.</summary>
    public static void SkipUnlessAvailable(string strategy = Hardware)
    {
        if (strategy == Hardware)
        {
            KvmHost host = KvmHost.Current;
            Assert.SkipWhen(host.Access is KvmAccess.NoDevice or KvmAccess.NoPermission, host.UnavailableReason ?? "");
            Assert.Null(host.UnavailableReason);
        }

        string? reason = StrategyCatalog.Find(strategy)!.UnavailableReason();
        Assert.SkipWhen(reason is not null, reason ?? "");
    }

    /// <summary>Skips where the engine names a hole of this instruction: the fact is known not to hold.</summary>
    public static void SkipWhereHole(string instruction)
    {
        SkipUnlessAvailable();
        VirtualizationHole? hole = HardwareHoles
            .Of(KvmHost.Current)
            .FirstOrDefault(hole => hole.Instruction == instruction);
        Assert.SkipWhen(hole is not null, $"{KvmHost.Current.Module}: {instruction} {hole?.Effect}");
    }

    /// <summary>Skips under kvm_pvm, whose ring 0 lacks something that the hardware has.</summary>
    public static void SkipUnderPvm(string lack)
    {
        SkipUnlessAvailable();
        Assert.SkipWhen(KvmHost.Current.Module == KvmProbe.PvmModule, $"kvm_pvm {lack}");
    }

    public static GuestImage Assemble(Action<Assembler> program)
    {
        var a = new Assembler(64);
        program(a);
        byte[] code = MachineCode.Assemble(a, Code);
        return new GuestImage("test", Code, [new ImageSegment(Code, code, (ulong)code.Length, Executable: true)]);
    }

    private IExecutionEngine CreateEngine(
        string strategy,
        VirtualCpu cpu,
        GuestMemory memory,
        Func<KvmCapabilities, KvmCapabilities>? without
    )
    {
        if (strategy != Hardware)
        {
            return StrategyCatalog.Find(strategy)!.CreateEngine(cpu, memory);
        }

        if (without is null)
        {
            return StrategyCatalog.Find(Hardware)!.CreateEngine(cpu, memory);
        }

        var capabilities = new EngineCapabilities { DeliversEvents = true, TimeSource = "test" };
        return new HardwareEngine(cpu, memory, "kvm", capabilities, without: without);
    }

    public RunOutcome Run(TimeSpan? timeout = null) => Machine.Run(timeout ?? Ample, CancellationToken.None);

    public RunOutcome RunUntil(CancellationToken cancelled) => Machine.Run(Ample, cancelled);

    /// <summary>Runs to the exit port and returns the status.</summary>
    public byte RunToExit()
    {
        RunOutcome outcome = Run();
        Assert.Equal((RunEnd.Exited, null), (outcome.End, outcome.Message));
        return outcome.Status;
    }

    /// <summary>Runs a guest that cannot go on; returns the one line that says why.</summary>
    public string RunToFailure(TimeSpan? timeout = null)
    {
        RunOutcome outcome = Run(timeout);
        Assert.Equal(RunEnd.Failed, outcome.End);
        Assert.False(string.IsNullOrEmpty(outcome.Message));
        Assert.DoesNotContain('\n', outcome.Message);
        return outcome.Message;
    }

    /// <summary>Runs to the exit port through one exception; the guest has loaded the IDT of <see cref="InstallHandlers"/>.</summary>
    public CaughtException RunToException()
    {
        Assert.Equal(1, RunToExit());
        byte vector = (byte)Result(0);
        bool code = Vector.HasErrorCode(vector) && Result(6) == 0;
        return new CaughtException(vector, code ? Result(1) : null, Result(code ? 2 : 1), Result(5));
    }

    public ulong Result(int index) => Memory.Read<ulong>(Results + (8 * (ulong)index));

    public static AssemblerMemoryOperand ResultSlot(int index) => __qword_ptr[Results + (8 * (ulong)index)];

    public long Exits(TrapReason reason) => Machine.Ledger.Count(reason);

    /// <summary>Exits other than OUT to the exit port, which every guest that ends makes.</summary>
    public IEnumerable<(TrapReason Reason, long Count)> OtherExits =>
        Enum.GetValues<TrapReason>()
            .Where(reason => reason != TrapReason.Kick)
            .Select(reason => (reason, Exits(reason) - (reason == TrapReason.PortIo ? 1 : 0)))
            .Where(exits => exits.Item2 != 0);

    /// <summary>
    /// Gates for all vectors, open to ring 3. Each handler stores its vector, four words of its stack and CR2, and ends the
    /// guest with status 1.
    /// </summary>
    public HardwareGuest InstallHandlers(ulong software = 0x80)
    {
        for (ulong vector = 0; vector < 256; vector++)
        {
            ulong at = Handlers + (vector * HandlerSize);
            var a = new Assembler(64);
            a.mov(ResultSlot(7), rax);
            a.mov(ResultSlot(0), (int)vector);
            for (int i = 1; i <= 4; i++)
            {
                a.mov(rax, __qword_ptr[rsp + (8 * (i - 1))]);
                a.mov(ResultSlot(i), rax);
            }

            a.mov(rax, cr2);
            a.mov(ResultSlot(5), rax);
            a.mov(eax, vector == software ? 1 : 0);
            a.mov(ResultSlot(6), rax);
            a.Exit(1);
            byte[] code = MachineCode.Assemble(a, at);
            Assert.True(code.Length <= (int)HandlerSize);
            Memory.Write(at, code);
            SetGate(vector, at);
        }

        Memory.Write(IdtPointer, (ushort)((256 * 16) - 1));
        Memory.Write(IdtPointer + 2, Idt);
        return this;
    }

    public const ulong InterruptGate = 0xEE;
    public const ulong TrapGate = 0xEF;

    public void SetGate(ulong vector, ulong handler, ulong type = InterruptGate, ulong stack = 0)
    {
        ulong gate = Idt + (16 * vector);
        ulong attributes = (stack << 32) | (type << 40);
        Memory.Write(gate, (handler & 0xFFFF) | (0x08UL << 16) | attributes | ((handler >> 16 & 0xFFFF) << 48));
        Memory.Write(gate + 8, handler >> 32);
    }

    /// <summary>A 1 GiB page over guest-physical memory, in boot tables that get the levels above it.</summary>
    public void MapGigabyte(ulong linear, ulong physical, ulong rights = Pte.Present | Pte.Writable)
    {
        ulong top = PhysicalLayout.PageTables + (((linear >> 39) & 511) * 8);
        ulong pointers = Memory.Read<ulong>(top) & Pte.AddressMask;
        if (pointers == 0)
        {
            pointers = Tables + 0x10_0000 + (((linear >> 39) & 511) * 0x1000);
            Memory.Write(top, pointers | Pte.Present | Pte.Writable | Pte.User);
        }

        Memory.Write(pointers + (((linear >> 30) & 511) * 8), physical | rights | Pte.Large);
    }

    /// <summary>A 2 MiB page at a linear address above the first gigabyte and below 512 GiB, identity-mapped or not.</summary>
    public void MapLargePage(ulong linear, ulong? physical = null, ulong tables = Tables + 0x20_0000)
    {
        ulong slot = PhysicalLayout.PageTables + 0x1000 + (linear >> 30 << 3);
        ulong directory = Memory.Read<ulong>(slot) & Pte.AddressMask;
        if (directory == 0)
        {
            directory = tables + (linear >> 30 << 12);
            Memory.Write(slot, directory | Pte.Present | Pte.Writable | Pte.User);
        }

        ulong target = (physical ?? linear) >> 21 << 21;
        Memory.Write(directory + ((linear >> 21 & 511) * 8), target | Pte.Present | Pte.Writable | Pte.Large);
    }

    /// <summary>Cuts the 2 MiB page of the boot tables that holds an address into 512 pages, with a table of its own.</summary>
    /// <returns>Guest-physical address of the page table.</returns>
    public ulong SplitLargePage(ulong address)
    {
        ulong slot = PhysicalLayout.PageTables + 0x2000 + (address >> 21 << 3);
        ulong table = Tables + (address >> 21 << 12);
        for (ulong i = 0; i < 512; i++)
        {
            Memory.Write(table + (8 * i), (address >> 21 << 21) + (i << 12) | Pte.Present | Pte.Writable);
        }

        Memory.Write(slot, table | Pte.Present | Pte.Writable | Pte.User);
        return table;
    }

    /// <summary>
    /// Starts the guest in ring 3 instead, all of it open to ring 3: with the handlers, a TSS whose ring-0 stack they get,
    /// and selectors 0x18 (data) and 0x20 (code) for ring 3, so that STAR's halves may be 0x08 and 0x10.
    /// </summary>
    public HardwareGuest EnterInRingThree()
    {
        InstallHandlers();
        InstallUserSegments();
        OpenToRingThree();
        Cpu.Idtr = new DescriptorTable(Idt, (256 * 16) - 1);
        Cpu.Tr = new Segment(TaskSelector, TaskState, 0x67, 0x8B);
        Cpu.Cs = new Segment(UserCode, 0, uint.MaxValue, 0xA0FB);
        Cpu.Ss = Cpu.Ds = Cpu.Es = new Segment(UserData, 0, uint.MaxValue, 0xC0F3);
        return this;
    }

    /// <summary>Lets ring 3 use all RAM through the boot tables.</summary>
    public void OpenToRingThree()
    {
        for (ulong level = 0; level < 3; level++)
        {
            ulong table = PhysicalLayout.PageTables + (level * 0x1000);
            for (ulong i = 0; i < (level == 2 ? 8UL : 1); i++)
            {
                Memory.Write(table + (8 * i), Memory.Read<ulong>(table + (8 * i)) | Pte.User);
            }
        }
    }

    /// <summary>Opens the page of the boot tables that holds an address to ring 3.</summary>
    public void MapLargePageOfBoot(ulong address) =>
        Memory.Write(
            PhysicalLayout.PageTables + 0x2000 + (address >> 21 << 3),
            (address >> 21 << 21) | Pte.Present | Pte.Writable | Pte.User | Pte.Large
        );

    public const ushort UserData = 0x18 | 3;
    public const ushort UserCode = 0x20 | 3;
    public const ushort TaskSelector = 0x28;
    public const ulong TaskState = 0x33_0000;
    public const ulong RingZeroStack = 0x35_0000;

    /// <summary>Segments for ring 3 in the boot GDT, and a TSS with a ring-0 stack.</summary>
    public void InstallUserSegments()
    {
        const ulong gdt = PhysicalLayout.Gdt;
        Memory.Write(gdt + (UserData & ~7), 0x00CF_F300_0000_FFFFUL);
        Memory.Write(gdt + (UserCode & ~7), 0x00AF_FB00_0000_FFFFUL);
        Memory.Write(gdt + TaskSelector, 0x67 | ((TaskState & 0xFF_FFFF) << 16) | (0x89UL << 40));
        Memory.Write(gdt + TaskSelector + 8, 0UL);
        Memory.Write(TaskState + 4, RingZeroStack);
        Memory.Write(TaskState + 0x66, (ushort)0x68); // no I/O bitmap
        Cpu.Gdtr = new DescriptorTable(gdt, TaskSelector + 15);
    }

    public void Dispose() => Machine.Dispose();

    public static void LoadIdt(Assembler a) => a.lidt(__[IdtPointer]);
}

/// <summary>What a guest's handler saw.</summary>
internal readonly record struct CaughtException(byte Vector, ulong? ErrorCode, ulong Rip, ulong Cr2);

internal static class GuestAssembly
{
    public static void Exit(this Assembler a, byte status = 0)
    {
        a.mov(al, status);
        a.@out(0xF4, al);
    }

    public static void LoadIdt(this Assembler a) => HardwareGuest.LoadIdt(a);

    /// <summary>Clobbers rax.</summary>
    public static void Store(this Assembler a, int slot, AssemblerRegister64 value) =>
        a.mov(HardwareGuest.ResultSlot(slot), value);

    /// <summary>Clobbers rax, rcx, rdx.</summary>
    public static void WriteMsr(this Assembler a, uint msr, ulong value)
    {
        a.mov(ecx, msr);
        a.mov(eax, (uint)value);
        a.mov(edx, (uint)(value >> 32));
        a.wrmsr();
    }

    /// <summary>rax = the MSR. Clobbers rcx and rdx.</summary>
    public static void ReadMsr(this Assembler a, uint msr)
    {
        a.mov(ecx, msr);
        a.rdmsr();
        a.shl(rdx, 32);
        a.or(rax, rdx);
    }

    public static void JumpTo(this Assembler a, ulong address)
    {
        a.mov(rax, address);
        a.jmp(rax);
    }

    public static void LoopForEver(this Assembler a)
    {
        Label forever = a.CreateLabel();
        a.Label(ref forever);
        a.jmp(forever);
    }
}
