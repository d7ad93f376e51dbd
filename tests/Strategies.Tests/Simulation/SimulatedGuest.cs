using Iced.Intel;
using VirtBench.Strategies.Simulation;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Tests.Simulation;

/// <summary>An engine with a little machine around it: identity-mapped RAM, code, scratch data and a stack.</summary>
internal sealed unsafe class SimulatedGuest : IDisposable
{
    public const ulong RamSize = 8 << 20;
    public const ulong Tables = 0x1_3000;
    public const ulong CodeStart = 0x10_0000;
    public const ulong DataStart = 0x20_0000;
    public const ulong StackTop = 0x30_0000;

    public SimulatedGuest(
        bool native = false,
        CostProfile? profile = null,
        ulong pageBits = Pte.Large,
        int? arenaBytes = null,
        bool translated = false
    )
    {
        Memory = new GuestMemory(RamSize);
        Cpu = new VirtualCpu();
        SimulatedMode mode =
            translated ? SimulatedMode.Translated
            : native ? SimulatedMode.Native
            : SimulatedMode.Deprivileged;
        Engine = new SimulatedEngine(
            Cpu,
            Memory,
            profile ?? CostProfile.Textbook,
            mode,
            arenaBytes ?? BlockCache.DefaultArenaBytes
        );
        MapIdentity(pageBits);
        Cpu.Cr3 = Tables;
        Cpu.Rsp = StackTop;
        Cpu.Rip = CodeStart;
    }

    public GuestMemory Memory { get; }

    public VirtualCpu Cpu { get; }

    public IExecutionEngine Engine { get; }

    public long HiddenFaults { get; private set; }

    // Four 2 MiB pages, or the same as 4 KiB pages.
    private void MapIdentity(ulong pageBits)
    {
        const ulong rights = Pte.Present | Pte.Writable | Pte.User;
        Memory.Write(Tables, (Tables + 0x1000) | rights);
        Memory.Write(Tables + 0x1000, (Tables + 0x2000) | rights);
        for (ulong i = 0; i < 4; i++)
        {
            if (pageBits == Pte.Large)
            {
                Memory.Write(Tables + 0x2000 + (8 * i), (i << 21) | rights | Pte.Large);
                continue;
            }

            ulong table = Tables + 0x3000 + (i * 0x1000);
            Memory.Write(Tables + 0x2000 + (8 * i), table | rights);
            for (ulong j = 0; j < 512; j++)
            {
                Memory.Write(table + (8 * j), (i << 21) | (j << 12) | rights);
            }
        }
    }

    /// <summary>Address of the PTE of an address, with 4 KiB pages.</summary>
    public static ulong PteOf(ulong address) => Tables + 0x3000 + ((address >> 12) * 8);

    public void Load(Action<Assembler> write, ulong at = CodeStart)
    {
        Memory.Write(at, Assemble(write, at));
    }

    public static byte[] Assemble(Action<Assembler> write, ulong at = CodeStart)
    {
        var assembler = new Assembler(64);
        write(assembler);
        var stream = new MemoryStream();
        assembler.Assemble(new StreamCodeWriter(stream), at);
        return stream.ToArray();
    }

    /// <summary>Runs; answers hidden page faults as the core does.</summary>
    public VmExit Run() => Enter(Engine.Run);

    /// <summary>Executes one instruction; answers hidden page faults as the core does.</summary>
    public VmExit Step() => Enter(Engine.Step);

    private VmExit Enter(Func<VmExit> enter)
    {
        for (; ; )
        {
            VmExit exit = enter();
            if (exit.Reason != VmExitReason.PageFault || !AnswerFault(exit))
            {
                return exit;
            }

            Engine.Clock.ChargeEmulation(TrapReason.HiddenPageFault);
        }
    }

    private bool AnswerFault(in VmExit exit)
    {
        if (!PageWalker.IsCanonical(exit.Address))
        {
            return false;
        }

        PageAccess access = exit.Access | (Cpu.Cpl == 3 ? PageAccess.User : 0);
        Translation walk = PageWalker.Walk(Cpu, Memory, exit.Address, access);
        if (walk.Fault || !Memory.Contains(walk.PhysicalAddress, 1))
        {
            return false;
        }

        HiddenFaults++;
        ulong length = 1UL << walk.PageShift;
        ulong offset = exit.Address & (length - 1);
        Assert.Equal(
            MapResult.Mapped,
            Engine.Map(
                new ShadowPage(
                    exit.Address,
                    exit.Address - offset,
                    walk.PhysicalAddress - offset,
                    length,
                    (walk.Permissions & ~PageAccess.Write)
                        | (walk.Dirty && (walk.Permissions & PageAccess.Write) != 0 ? PageAccess.Write : 0)
                )
            )
        );
        return true;
    }

    /// <summary>Loads the code, runs it up to a final HLT and checks that it got there.</summary>
    public void RunToHalt(Action<Assembler> write)
    {
        Load(a =>
        {
            write(a);
            a.hlt();
        });
        Cpu.Rip = CodeStart;
        VmExit exit = Run();
        Assert.True(exit.Reason == VmExitReason.PrivilegedInstruction, $"{exit} at RIP {Cpu.Rip:X}");
        Assert.Equal(0xF4, Memory.Read<byte>(Cpu.Rip));
    }

    public void Dispose()
    {
        Engine.Dispose();
        Memory.Dispose();
        Cpu.Dispose();
    }
}
