using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Tests.Translated;

/// <summary>What the guest's handler has noted of one exception.</summary>
/// <param name="Vector">Vector.</param>
/// <param name="Error">Error code, 0 where there is none.</param>
/// <param name="Rip">RIP in the frame.</param>
/// <param name="Rflags">RFLAGS in the frame, without RF, which is the processor's own business.</param>
/// <param name="Rsp">RSP in the frame.</param>
/// <param name="Cr2">CR2 at that moment.</param>
internal readonly record struct GuestException(
    ulong Vector,
    ulong Error,
    ulong Rip,
    ulong Rflags,
    ulong Rsp,
    ulong Cr2
);

/// <summary>
/// A guest in ring 0 or ring 3 under any strategy: all of RAM mapped one to one by 4 KiB pages that both rings may use, gates for all
/// vectors on a stack of their own. An exception is noted and execution goes on at <see cref="Resume"/>; #DB is noted only.
/// </summary>
internal sealed class BehaviourGuest : IDisposable
{
    public const ulong RamBytes = 16 << 20;
    public const ulong Start = 0x10_0000;
    public const ulong Data = 0x20_0000;
    public const ulong Results = 0x21_0000;
    public const ulong StackTop = 0x30_0000;

    /// <summary>Quadword: where execution goes on after an exception; 0 for an exception that must not come.</summary>
    public const ulong Resume = 0x6_3000;

    /// <summary>Quadword: timer interrupts so far.</summary>
    public const ulong Ticks = Resume + 8;

    /// <summary>Quadword: where the next exception will be noted.</summary>
    public const ulong NextException = Resume + 16;

    /// <summary>Where the first one is: vector, error code, RIP, RFLAGS, RSP and CR2, 8 bytes each.</summary>
    public const ulong FirstException = 0x7_0000;

    /// <summary>Frames that nothing else uses.</summary>
    public const ulong Spare = 0x80_0000;

    public const byte UnexpectedException = 0xEE;

    // Stores to nowhere that the guest's own page-fault handler takes for requests. Not INT n, which some hosts' hardware assist
    // does not have in ring 3; and like that they change no register and no flag.
    private const ulong Services = 0x5F00_0000;
    private const int ServiceLength = 7;

    private const ulong Gdt = 0x6_0000;
    private const ulong Idt = 0x6_1000;
    private const ulong Tss = 0x6_2000;
    private const ulong LogEnd = 0x7_F000;
    private const int RecordSize = 64;
    private const ulong Handlers = 0x8_0000;
    private const ulong HandlerStack = 0x9_8000;
    private const ulong Tables = 0x40_0000;
    private const byte TimerVector = 0x20;
    private const ulong All = Pte.Present | Pte.Writable | Pte.User;

    private static readonly TimeSpan Ample = TimeSpan.FromSeconds(60);

    private IExecutionEngine _engine;
    private ulong _nextTable = Tables + 0x1000;

    public BehaviourGuest(string strategy, int ring, Action<Assembler>? program = null)
        : this(StrategyCatalog.Find(strategy)!, ring, program) { }

    /// <param name="strategy">Under which strategy.</param>
    /// <param name="ring">0 or 3.</param>
    /// <param name="program">What it executes.</param>
    /// <param name="paravirtual">It is offered the paravirtual interface; both pages are mapped for both rings.</param>
    public BehaviourGuest(Strategy strategy, int ring, Action<Assembler>? program = null, bool paravirtual = false)
    {
        Strategy = strategy;
        Assert.SkipWhen(Strategy.UnavailableReason() is not null, Strategy.UnavailableReason() ?? "");
        Assert.SkipWhen(
            ring == 0 && Strategy.EmulatesRingZero && !paravirtual,
            "guest ring 0 runs in the kernel's instruction emulator on this host"
        );
        Ring = ring;
        IExecutionEngine engine = null!;
        Machine = new VirtualMachine(RamBytes, (cpu, memory) => engine = Strategy.CreateEngine(cpu, memory));
        _engine = engine;
        Machine.Load(
            new GuestImage("behaviour", Start, [new ImageSegment(Start, new byte[] { 0xF4 }, 0x1000, true)]),
            new BootOptions { Paravirtual = paravirtual }
        );
        for (ulong page = 0; page < RamBytes; page += GuestMemory.PageSize)
        {
            Map(page, page);
        }

        WriteSystemTables();
        VirtualCpu cpu = Machine.Cpu;
        cpu.Cr3 = Tables;
        cpu.Gdtr = new DescriptorTable(Gdt, 0x3F);
        cpu.Idtr = new DescriptorTable(Idt, 0xFFF);
        cpu.Tr = new Segment(0x28, Tss, 0x67, 0x8B);
        if (ring == 3)
        {
            cpu.Cs = new Segment(0x1B, 0, uint.MaxValue, 0xA0FB);
            cpu.Ss = new Segment(0x23, 0, uint.MaxValue, 0xC0F3);
            cpu.Ds = cpu.Es = cpu.Ss;
        }

        cpu.Rsp = StackTop;
        cpu.Rip = Start;
        cpu.Rflags = Rflags.AlwaysSet | (paravirtual ? Rflags.If : 0);
        if (program is not null)
        {
            Write(Start, program);
        }
    }

    /// <summary>Each strategy that runs kernels, in both rings.</summary>
    public static TheoryData<string, int> Cases
    {
        get
        {
            var cases = new TheoryData<string, int>();
            foreach (Strategy strategy in StrategyCatalog.All.Where(Runs))
            {
                cases.Add(strategy.Id, 0);
                cases.Add(strategy.Id, 3);
            }

            return cases;
        }
    }

    // What runs the others' guests too is the same engines.
    private static bool Runs(Strategy strategy) =>
        strategy is { RunsPrivilegedGuests: true, Interface: GuestInterface.Native };

    public Strategy Strategy { get; }

    public int Ring { get; }

    public VirtualMachine Machine { get; }

    public IExecutionEngine Engine => _engine;

    public GuestMemory Memory => Machine.Memory;

    /// <summary>U/S of an error code of #PF that the guest's own accesses raise.</summary>
    public ulong User => Ring == 3 ? 4UL : 0;

    public IReadOnlyList<GuestException> Exceptions
    {
        get
        {
            var all = new List<GuestException>();
            for (ulong at = FirstException; at < Memory.Read<ulong>(NextException); at += RecordSize)
            {
                ulong Field(ulong n) => Memory.Read<ulong>(at + (8 * n));
                all.Add(new GuestException(Field(0), Field(1), Field(2), Field(3) & ~Rflags.Rf, Field(4), Field(5)));
            }

            return all;
        }
    }

    public ulong Result(int index) => Memory.Read<ulong>(Results + (8 * (ulong)index));

    public static AssemblerMemoryOperand ResultSlot(int index) => __qword_ptr[Results + (8 * (ulong)index)];

    /// <summary>Assembles for a linear address and writes to where that is mapped.</summary>
    public void Write(ulong address, Action<Assembler> program) => Write(address, Assemble(address, program));

    public void Write(ulong address, ReadOnlySpan<byte> bytes)
    {
        for (int i = 0; i < bytes.Length; i++)
        {
            ulong entry = Memory.Read<ulong>(PteOf(address + (ulong)i));
            Memory.Write((entry & Pte.AddressMask) | ((address + (ulong)i) & 0xFFF), bytes[i]);
        }
    }

    public static byte[] Assemble(ulong address, Action<Assembler> program)
    {
        var a = new Assembler(64);
        program(a);
        using var stream = new MemoryStream();
        a.Assemble(new StreamCodeWriter(stream), address);
        return stream.ToArray();
    }

    /// <summary>Maps a page, before the guest runs.</summary>
    public void Map(ulong linear, ulong physical, ulong bits = All) => Memory.Write(PteOf(linear), physical | bits);

    public void Unmap(ulong linear) => Memory.Write(PteOf(linear), 0UL);

    /// <summary>Guest-physical (and linear) address of the page table entry of an address.</summary>
    public ulong PteOf(ulong linear) => PteOf(Tables, linear);

    /// <summary>The same in another address space.</summary>
    public ulong PteIn(ulong root, ulong linear) => PteOf(root, linear);

    private ulong PteOf(ulong root, ulong linear)
    {
        ulong table = root;
        for (int shift = 39; shift > 12; shift -= 9)
        {
            ulong slot = table + (((linear >> shift) & 511) * 8);
            ulong entry = Memory.Read<ulong>(slot);
            if ((entry & Pte.Present) == 0)
            {
                entry = _nextTable | All;
                Memory.Write(slot, entry);
                _nextTable += GuestMemory.PageSize;
            }

            table = entry & Pte.AddressMask;
        }

        return table + (((linear >> 12) & 511) * 8);
    }

    /// <summary>A second address space with the same pages: its root.</summary>
    public ulong AddAddressSpace()
    {
        ulong root = _nextTable;
        _nextTable += GuestMemory.PageSize;
        for (ulong page = 0; page < RamBytes; page += GuestMemory.PageSize)
        {
            Memory.Write(PteOf(root, page), page | All);
        }

        return root;
    }

    public void MapIn(ulong root, ulong linear, ulong physical) => Memory.Write(PteOf(root, linear), physical | All);

    /// <summary>Has the timer interrupt every so many pulses of 838 ns; the guest takes it where RFLAGS.IF is set.</summary>
    public void StartTimer(int pulses)
    {
        foreach (
            (int port, int value) in ((int, int)[])
                [
                    (0x20, 0x11),
                    (0x21, TimerVector),
                    (0x21, 4),
                    (0x21, 1),
                    (0x21, 0xFE),
                    (0x43, 0x34),
                    (0x40, pulses & 0xFF),
                    (0x40, pulses >> 8),
                ]
        )
        {
            Machine.Ports.Write((ushort)port, 1, (uint)value, 0);
        }

        Machine.Cpu.Rflags |= Rflags.If;
    }

    /// <summary>Lets the guest go on under another strategy.</summary>
    public void SwitchEngine(Strategy to) =>
        Machine.SwitchEngine((cpu, memory) => _engine = to.CreateEngine(cpu, memory));

    /// <summary>Runs to the end and returns the status.</summary>
    public byte Run()
    {
        Prepare();
        RunOutcome outcome = Machine.Run(Ample, TestContext.Current.CancellationToken);
        Assert.Equal((RunEnd.Exited, null), (outcome.End, outcome.Message));
        Assert.True(
            outcome.Status != UnexpectedException,
            $"unexpected: {(Exceptions.Count > 0 ? Exceptions[^1] : default)}"
        );
        return outcome.Status;
    }

    /// <summary>The same while another thread stops the guest again and again, at whatever point it is.</summary>
    public byte RunUnderKicks()
    {
        bool over = false;
        var kicker = new Thread(() =>
        {
            for (int wait = 0; !Volatile.Read(ref over); wait = (wait + 37) % 1000)
            {
                _engine.Kick();
                Thread.SpinWait(wait);
            }
        });
        kicker.Start();
        try
        {
            return Run();
        }
        finally
        {
            Volatile.Write(ref over, true);
            kicker.Join();
        }
    }

    /// <summary>The same with a deadline that is always over, so that the engine stops the guest as often as it ever does.</summary>
    public byte RunPastDeadlines()
    {
        _engine.Deadline = 1;
        return Run();
    }

    /// <summary>Runs a guest that does not end, for a moment.</summary>
    public void RunForAMoment()
    {
        Prepare();
        RunOutcome outcome = Machine.Run(TimeSpan.FromMilliseconds(1), TestContext.Current.CancellationToken);
        Assert.Equal(RunEnd.TimedOut, outcome.End);
    }

    // The test may have changed anything.
    private void Prepare()
    {
        _engine.LoadLazyState();
        _engine.SwitchAddressSpace();
    }

    public void Dispose() => Machine.Dispose();

    private void WriteSystemTables()
    {
        ulong[] descriptors =
        [
            0,
            0x00AF_9B00_0000_FFFF,
            0x00CF_9300_0000_FFFF,
            0x00AF_FB00_0000_FFFF,
            0x00CF_F300_0000_FFFF,
            0x0000_8B00_0000_0067 | (Tss << 16),
            0,
            0,
        ];
        for (int i = 0; i < descriptors.Length; i++)
        {
            Memory.Write(Gdt + (8 * (ulong)i), descriptors[i]);
        }

        Memory.Write(Tss + 4, HandlerStack); // RSP0
        Memory.Write(Tss + 0x24, HandlerStack); // IST1
        Memory.Write(NextException, FirstException);
        var entries = new Label[256];
        var a = new Assembler(64);
        Label common = a.CreateLabel();
        Label pageFault = a.CreateLabel();
        for (int vector = 0; vector < 256; vector++)
        {
            entries[vector] = a.CreateLabel();
            a.Label(ref entries[vector]);
            switch (vector)
            {
                case TimerVector:
                    a.push(rax);
                    a.inc(__qword_ptr[Ticks]);
                    a.mov(al, 0x20);
                    a.@out(0x20, al);
                    a.pop(rax);
                    a.iretq();
                    break;
                default:
                    if (!Vector.HasErrorCode((byte)vector))
                    {
                        a.push(0);
                    }

                    a.push(vector);
                    a.jmp(vector == Vector.PageFault ? pageFault : common);
                    break;
            }
        }

        EmitServices(a, pageFault, common);
        EmitCommon(a, common);
        using var stream = new MemoryStream();
        AssemblerResult result = a.Assemble(
            new StreamCodeWriter(stream),
            Handlers,
            BlockEncoderOptions.ReturnNewInstructionOffsets
        );
        Memory.Write(Handlers, stream.ToArray());
        for (int vector = 0; vector < 256; vector++)
        {
            SetGate((byte)vector, result.GetLabelRIP(entries[vector]));
        }
    }

    /// <summary>Has a vector's gate lead to another handler, in ring 0.</summary>
    public void SetGate(byte vector, ulong entry)
    {
        const ulong gate = (8UL << 16) | (1UL << 32) | (0xEEUL << 40); // ring 0 code, IST 1, DPL 3, interrupt gate
        Memory.Write(Idt + (16 * (ulong)vector), (entry & 0xFFFF) | gate | (entry >> 16 << 48));
        Memory.Write(Idt + (16 * (ulong)vector) + 8, entry >> 32);
    }

    // On the stack: vector, error code, then the processor's frame. Goes on behind the store.
    private static void EmitServices(Assembler a, Label pageFault, Label common)
    {
        Label other = a.CreateLabel();
        Label invalidate = a.CreateLabel();
        Label flush = a.CreateLabel();
        Label back = a.CreateLabel();
        a.Label(ref pageFault);
        a.push(rax);
        a.mov(rax, cr2);
        a.sub(rax, (int)Services);
        a.cmp(rax, (int)Service.Flush);
        a.ja(other);
        a.add(__qword_ptr[rsp + 24], ServiceLength);
        a.cmp(eax, (int)Service.Invalidate);
        a.je(invalidate);
        a.ja(flush);
        a.pop(rax);
        a.@out(0xF4, al);
        a.Label(ref invalidate);
        a.invlpg(__[rdi]);
        a.jmp(back);
        a.Label(ref flush);
        a.mov(rax, cr3);
        a.mov(cr3, rax);
        a.Label(ref back);
        a.pop(rax);
        a.lea(rsp, __[rsp + 16]);
        a.iretq();
        a.Label(ref other);
        a.pop(rax);
        a.jmp(common);
    }

    /// <summary>MOV [disp32], AL: the same length whatever it asks for.</summary>
    public static void Ask(Assembler a, Service service)
    {
        byte[] store = [0x88, 0x04, 0x25, 0, 0, 0, 0];
        BitConverter.TryWriteBytes(store.AsSpan(3), (uint)Services + (uint)service);
        a.db(store);
    }

    // On the stack: vector, error code, then the processor's frame. Clobbers nothing.
    private static void EmitCommon(Assembler a, Label common)
    {
        const int vector = 16;
        Label resume = a.CreateLabel();
        Label back = a.CreateLabel();
        Label give = a.CreateLabel();
        a.Label(ref common);
        a.push(rax);
        a.push(rbx);
        a.mov(rbx, __qword_ptr[NextException]);
        a.mov(rax, LogEnd);
        a.cmp(rbx, rax);
        a.jae(give);
        int field = 0;
        foreach (int offset in (int[])[0, 8, 16, 32, 40])
        {
            a.mov(rax, __qword_ptr[rsp + vector + offset]);
            a.mov(__qword_ptr[rbx + (8 * field++)], rax);
        }

        a.mov(rax, cr2);
        a.mov(__qword_ptr[rbx + (8 * field)], rax);
        a.add(__qword_ptr[NextException], RecordSize);
        a.cmp(__qword_ptr[rsp + vector], (int)Vector.Debug);
        a.jne(resume);
        a.Label(ref back);
        a.pop(rbx);
        a.pop(rax);
        a.lea(rsp, __[rsp + 16]);
        a.iretq();
        a.Label(ref resume);
        a.mov(rax, __qword_ptr[Resume]);
        a.mov(__qword_ptr[rsp + vector + 16], rax);
        a.test(rax, rax);
        a.jne(back);
        a.Label(ref give);
        a.mov(al, UnexpectedException);
        a.@out(0xF4, al);
    }
}

/// <summary>What ring 3 may ask of the guest's kernel.</summary>
internal enum Service
{
    /// <summary>End with status AL.</summary>
    Exit,

    /// <summary>INVLPG [RDI].</summary>
    Invalidate,

    /// <summary>Load CR3 with what it holds.</summary>
    Flush,
}

internal static class BehaviourAssembly
{
    /// <summary>Asks the guest's kernel for something. Clobbers nothing but CR2.</summary>
    public static void Ask(this Assembler a, Service service) => BehaviourGuest.Ask(a, service);

    /// <summary>Ends the guest with a status of 0. Clobbers al.</summary>
    public static void End(this Assembler a)
    {
        a.mov(al, 0);
        a.Ask(Service.Exit);
    }

    /// <summary>Stores the address of a label. Clobbers rax.</summary>
    public static void StoreAddress(this Assembler a, Label label, ulong at)
    {
        a.lea(rax, __[label]);
        a.mov(__qword_ptr[at], rax);
    }

    /// <summary>
    /// Notes where the next exception is expected, as a result, and where to go on after it. Clobbers rax.
    /// </summary>
    public static void Expect(this Assembler a, Label faulting, int slot, Label resume)
    {
        a.StoreAddress(faulting, BehaviourGuest.Results + (8 * (ulong)slot));
        a.StoreAddress(resume, BehaviourGuest.Resume);
    }
}
