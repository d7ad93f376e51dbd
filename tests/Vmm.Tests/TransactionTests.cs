using Iced.Intel;
using VirtBench.Tests;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Emulation;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Vmm.Tests;

/// <summary>
/// One instruction or one event, with a fault of the host at each of its accesses in turn: what the guest sees is what it
/// sees when there is none.
/// </summary>
public sealed class TransactionTests
{
    // Two pages of 4 KiB whose frames do not follow each other; operands of the cases lie across the boundary between them.
    private const ulong Page = 0x4000_0000;
    private const ulong First = 0x18_0000;
    private const ulong Second = 0x1A_0000;
    private const ulong Across = Page + 0xFFD;
    private const ulong NoRam = 0x2000_0000;
    private const ulong Handler = 0x10_4000;
    private const ulong RingStack = 0x15_0000;
    private const ulong InterruptStack = 0x16_0008; // misaligned on purpose

    /// <summary>What happens, and what has to be there before.</summary>
    private sealed record Case(Action<GuestMachine> Arrange, Action<Assembler>? Code, bool DataAccess = false)
    {
        public GuestEvent Event { get; init; }
    }

    private static Case Emulated(Action<Assembler> code, Action<GuestMachine>? arrange = null) =>
        new(arrange ?? (_ => { }), code);

    private static Case Data(Action<Assembler> code, Action<GuestMachine>? arrange = null) =>
        new(arrange ?? (_ => { }), code, DataAccess: true);

    private static Case Delivered(GuestEvent guestEvent, Action<GuestMachine>? arrange = null) =>
        new(arrange ?? (_ => { }), null) { Event = guestEvent };

    private static readonly Dictionary<string, Case> Cases = new()
    {
        // data accesses
        ["mov [m], rax"] = Data(a => a.mov(__[rdi], rax)),
        ["mov rax, [m]"] = Data(a => a.mov(rax, __[rdi])),
        ["movsx rax, word [m]"] = Data(a => a.movsx(rax, __word_ptr[rdi + 2])),
        ["add [m], rax"] = Data(a => a.add(__[rdi], rax)),
        ["cmp [m], rax"] = Data(a => a.cmp(__[rdi], rax)),
        ["movups [m], xmm1"] = Data(a => a.movups(__[rdi], xmm1)),
        ["movups xmm1, [m]"] = Data(a => a.movups(xmm1, __[rdi])),
        ["rep movsb"] = Data(a => a.rep.movsb(), Repeat(6)),
        ["std; rep movsq"] = Data(
            a => a.rep.movsq(),
            m =>
            {
                Repeat(3)(m);
                m.Cpu.Rflags |= Rflags.Df;
            }
        ),
        ["movsb from nothing"] = Data(a => a.rep.movsb(), Repeat(5, source: NoRam)),
        ["rep stosq"] = Data(a => a.rep.stosq(), Repeat(3)),
        ["rep lodsw"] = Data(a => a.rep.lodsw(), Repeat(4)),
        ["movsb to a page that is not writable"] = Data(
            a => a.rep.movsb(),
            m =>
            {
                Repeat(6)(m);
                _ = m.Map(Page + 0x1000, Second, Pte.Present);
            }
        ),

        // ports
        ["in al, dx"] = Emulated(a => a.@in(al, dx), Port),
        ["out dx, eax"] = Emulated(a => a.@out(dx, eax), Port),
        ["insd"] = Emulated(a => a.insd(), Port),
        ["rep insd"] = Emulated(a => a.rep.insd(), Repeat(3)),
        ["rep insb to a page that is not writable"] = Emulated(
            a => a.rep.insb(),
            m =>
            {
                Repeat(6)(m);
                _ = m.Map(Page + 0x1000, Second, Pte.Present);
            }
        ),
        ["outsw"] = Emulated(a => a.outsw(), Repeat(1)),
        ["rep outsb"] = Emulated(a => a.rep.outsb(), Repeat(6)),

        // flags
        ["cli"] = Emulated(a => a.cli()),
        ["sti"] = Emulated(a => a.sti(), m => m.Cpu.Rflags &= ~Rflags.If),
        ["sti, single-stepped"] = Emulated(a => a.sti(), m => m.Cpu.Rflags |= Rflags.Tf),
        ["hlt"] = Emulated(a => a.hlt()),
        ["pushfq"] = Emulated(a => a.pushfq(), StackAcross),
        ["popfq"] = Emulated(a => a.popfq(), Popped(0x8D5)),

        // registers
        ["mov cr3, rax"] = Emulated(a => a.mov(cr3, rax), m => m.Cpu.Rax = m.Cpu.Cr3),
        ["mov cr0, rax"] = Emulated(a => a.mov(cr0, rax), m => m.Cpu.Rax = m.Cpu.Cr0 ^ Cr0.Wp),
        ["mov rax, cr2"] = Emulated(a => a.mov(rax, cr2)),
        ["mov dr0, rax"] = Emulated(a => a.mov(dr0, rax)),
        ["lmsw [m]"] = Emulated(a => a.lmsw(__word_ptr[rdi + 2]), m => m.Memory.Write<byte>(First + 0xFFF, 0xF)),
        ["smsw [m]"] = Emulated(a => a.smsw(__word_ptr[rdi + 2])),
        ["invlpg"] = Emulated(a => a.invlpg(__[rdi])),
        ["rdmsr of FS_BASE"] = Emulated(a => a.rdmsr(), m => m.Cpu[Gpr.Rcx] = Msr.FsBase),
        ["wrmsr of FS_BASE"] = Emulated(
            a => a.wrmsr(),
            m => (m.Cpu[Gpr.Rcx], m.Cpu[Gpr.Rdx], m.Cpu.Rax) = (Msr.FsBase, 0, 0x1234)
        ),
        ["wrmsr of EFER"] = Emulated(
            a => a.wrmsr(),
            m => (m.Cpu[Gpr.Rcx], m.Cpu[Gpr.Rdx], m.Cpu.Rax) = (Msr.Efer, 0, m.Cpu.Efer & ~Efer.Nxe)
        ),
        ["swapgs"] = Emulated(a => a.swapgs(), m => m.Cpu.KernelGsBase = 0x9999),
        ["cpuid"] = Emulated(a => a.cpuid()),
        ["rdtsc"] = Emulated(a => a.rdtsc()),

        // descriptor tables and segments
        ["lgdt"] = Emulated(a => a.lgdt(__[rdi]), m => m.Memory.Write<byte>(First + 0xFFD, 0x57)),
        ["lidt"] = Emulated(a => a.lidt(__[rdi])),
        ["sgdt"] = Emulated(a => a.sgdt(__[rdi])),
        ["sidt"] = Emulated(a => a.sidt(__[rdi])),
        ["sldt [m]"] = Emulated(a => a.sldt(__word_ptr[rdi + 2])),
        ["str [m]"] = Emulated(a => a.str(__word_ptr[rdi + 2])),
        ["lldt [m]"] = Emulated(a => a.lldt(__word_ptr[rdi + 2]), Selector(GuestMachine.Ldt)),
        ["ltr [m]"] = Emulated(a => a.ltr(__word_ptr[rdi + 2]), Selector(GuestMachine.Task)),
        ["mov fs, [m]"] = Emulated(a => a.mov(fs, __word_ptr[rdi + 2]), Selector(GuestMachine.UserData)),
        ["mov ss, ax"] = Emulated(a => a.mov(ss, ax), m => m.Cpu.Rax = GuestMachine.KernelData),
        ["mov es, an absent segment"] = Emulated(a => a.mov(es, ax), m => m.Cpu.Rax = GuestMachine.AbsentData),
        ["mov [m], ds"] = Emulated(a => a.mov(__word_ptr[rdi + 2], ds)),
        ["pop gs"] = Emulated(a => a.pop(gs), Popped(GuestMachine.UserData)),
        ["lss"] = Emulated(a => a.lss(rax, __[rdi]), FarPointer(GuestMachine.KernelData)),
        ["lfs"] = Emulated(a => a.lfs(rax, __[rdi]), FarPointer(GuestMachine.UserData)),

        // transfers
        ["iretq"] = Emulated(
            a => a.iretq(),
            Popped(GuestMachine.Code, GuestMachine.KernelCode, 0x246, Page, GuestMachine.KernelData)
        ),
        ["iretq to ring 3"] = Emulated(
            a => a.iretq(),
            m =>
            {
                m.Cpu.Ds = m.Cpu.Es = Segment.KernelData(GuestMachine.KernelData);
                Popped(GuestMachine.Code, GuestMachine.UserCode, 0x246, Page, GuestMachine.UserData)(m);
            }
        ),
        ["iretq to an absent segment"] = Emulated(
            a => a.iretq(),
            Popped(GuestMachine.Code, GuestMachine.AbsentCode, 0x246, Page, GuestMachine.KernelData)
        ),
        ["iretq whose frame begins where there is no RAM"] = Emulated(
            a => a.iretq(),
            m =>
            {
                _ = m.Map(Page, NoRam);
                m.Memory.Write(Second, (ulong)GuestMachine.KernelCode);
                m.Memory.Write(Second + 24, (ulong)GuestMachine.KernelData);
                m.Cpu.Rsp = Page + 0xFF8;
            }
        ),
        ["retf"] = Emulated(a => a.db(0x48, 0xCB), Popped(GuestMachine.Code, GuestMachine.KernelCode)),
        ["retf to ring 3"] = Emulated(
            a => a.db(0x48, 0xCB),
            Popped(GuestMachine.Code, GuestMachine.UserCode, Page, GuestMachine.UserData)
        ),
        ["jmp far [m]"] = Emulated(a => a.db(0x48, 0xFF, 0x2F), FarPointer(GuestMachine.KernelCode)),
        ["call far [m]"] = Emulated(
            a => a.db(0x48, 0xFF, 0x1F),
            m =>
            {
                FarPointer(GuestMachine.KernelCode)(m);
                StackAcross(m);
            }
        ),
        ["int 0x80"] = Emulated(a => a.@int(0x80)),
        ["int1"] = Emulated(a => a.int1()),
        ["syscall"] = Emulated(
            a => a.syscall(),
            m => (m.Cpu.Efer, m.Cpu.Lstar) = (m.Cpu.Efer | Efer.Sce, GuestMachine.Code)
        ),
        ["sysret"] = Emulated(
            a => a.sysretq(),
            m => (m.Cpu.Efer, m.Cpu[Gpr.Rcx]) = (m.Cpu.Efer | Efer.Sce, GuestMachine.Code)
        ),
        ["an instruction across two pages"] = Emulated(
            a => a.lgdt(__[rdi]),
            m =>
            {
                _ = m.Map(Page + 0x5000, 0x1C_0000);
                _ = m.Map(Page + 0x6000, 0x1E_0000);
                m.Cpu.Rip = Page + 0x5FFE;
            }
        ),
        ["an instruction whose second page faults"] = Emulated(
            a => a.db(0x0F, 0x01),
            m =>
            {
                _ = m.Map(Page + 0x5000, 0x1C_0000);
                m.Cpu.Rip = Page + 0x5FFE;
            }
        ),

        // events
        ["an interrupt"] = Delivered(GuestEvent.Interrupt(0x20), StackAcross),
        ["an exception with an error code"] = Delivered(
            GuestEvent.Exception(Vector.GeneralProtection, 0x18),
            StackAcross
        ),
        ["an interrupt from ring 3"] = Delivered(GuestEvent.Interrupt(0x20), m => m.EnterRing3()),
        ["an interrupt on its own stack"] = Delivered(GuestEvent.Interrupt(0x20), m => m.Gate(0x20, Handler, stack: 3)),
        ["an interrupt from ring 3 on its own stack"] = Delivered(
            GuestEvent.Interrupt(0x20),
            m =>
            {
                m.EnterRing3();
                m.Gate(0x20, Handler, stack: 3);
            }
        ),
        ["an interrupt that ends a HLT"] = Delivered(GuestEvent.Interrupt(0x20), m => m.Cpu.Halted = true),
        ["a software interrupt from ring 3"] = Delivered(
            GuestEvent.SoftwareInterrupt(0x80, 2),
            m =>
            {
                m.EnterRing3();
                m.Gate(0x80, Handler, type: 0xEE);
            }
        ),
        ["a page fault whose stack faults, delivered on another"] = Delivered(
            GuestEvent.Interrupt(0x20),
            m =>
            {
                m.Cpu.Rsp = 0x5000_0000;
                m.Gate(Vector.PageFault, Handler, stack: 3);
            }
        ),
        ["a page fault that becomes a double fault"] = Delivered(
            GuestEvent.PageFault(0x1234, 2),
            m =>
            {
                m.Cpu.Rsp = 0x5000_0000;
                m.Gate(Vector.DoubleFault, Handler, stack: 3);
            }
        ),
        ["a triple fault"] = Delivered(GuestEvent.PageFault(0x1234, 2), m => m.Cpu.Rsp = 0x5000_0000),
    };

    public static TheoryData<string> Names => [.. Cases.Keys];

    [Theory]
    [MemberData(nameof(Names))]
    public void A_fault_of_the_host_at_any_access_changes_nothing(string name)
    {
        Case test = Cases[name];
        Outcome without = Run(test, null);
        var counting = new TransientPager();
        Assert.Equal(without, Run(test, counting));
        Assert.True(counting.Touches > 1, "a walk alone touches more than one frame");
        for (long i = 0; i < counting.Touches; i++)
        {
            var pager = new TransientPager { RefuseAt = i };
            Assert.Equal(without, Run(test, pager));
            Assert.Equal(1, pager.Fetches);
        }
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void A_host_without_any_page_changes_nothing(string name)
    {
        Case test = Cases[name];
        Outcome without = Run(test, null);
        long fetched = 0;
        Assert.Equal(without, Run(test, null, ref fetched, deferred: true));
        Assert.True(fetched > 1);
    }

    [Fact]
    public void The_engine_hears_of_changes_when_they_are_committed_and_never_of_what_was_undone()
    {
        using var machine = new GuestMachine();
        using var transaction = new Transaction(
            machine.Cpu,
            machine.Memory.Attach(new TransientPager()),
            machine.Engine,
            machine.Absent
        );
        machine.Engine.Calls.Clear();
        transaction.Begin();
        transaction.SaveLazyState();
        transaction.LoadLazyState();
        transaction.SaveLazyState(); // the CPU's is the newest now
        transaction.SwitchAddressSpace();
        transaction.InvalidatePage(0x1000);
        Assert.Equal(["save"], machine.Engine.Calls);
        transaction.RollBack();
        transaction.Commit();
        Assert.Equal(["save"], machine.Engine.Calls);

        transaction.Begin();
        transaction.LoadLazyState();
        transaction.SwitchAddressSpace();
        transaction.InvalidatePage(0x1000);
        transaction.CommitRepetition();
        Assert.Equal(["save", "load", "switch", "invalidate 1000"], machine.Engine.Calls);
        transaction.SwitchAddressSpace();
        transaction.RollBack();
        transaction.Commit();
        transaction.Commit();
        Assert.Equal(4, machine.Engine.Calls.Count);
        Assert.Equal(1, transaction.Repetitions);
    }

    private sealed record Outcome(string What, string Cpu, ulong Memory, string Ports, string Engine, long Unclaimed);

    private static Outcome Run(Case test, TransientPager? pager)
    {
        long fetched = 0;
        return Run(test, pager, ref fetched, deferred: false);
    }

    private static Outcome Run(Case test, TransientPager? pager, ref long fetched, bool deferred)
    {
        using GuestMachine machine = Arrange(test);
        GuestMachine? source = null;
        DeferredPager? absent = null;
        if (deferred)
        {
            source = Arrange(test);
            GuestMemory image = source.Memory;
            absent = new DeferredPager(machine.Memory, (frame, page) => image.Read(frame * GuestMemory.PageSize, page));
        }

        IGuestPager? attached = absent as IGuestPager ?? pager;
        using Transaction? transaction = attached is null
            ? null
            : new Transaction(machine.Cpu, machine.Memory.Attach(attached), machine.Engine, machine.Absent);
        machine.Emulator.Transaction = transaction;
        string what = transaction is null ? Act(test, machine) : ActInTransaction(test, machine, transaction);
        fetched = absent?.Fetched ?? 0;
        ulong memory = Hash(machine.Memory);
        source?.Dispose();
        return new Outcome(
            what,
            StateDump.Of(machine.Cpu),
            memory,
            string.Join(',', machine.PortLog),
            string.Join(',', machine.Engine.Calls.Where(call => call != "save")),
            machine.Absent.UnclaimedAccesses
        );
    }

    /// <summary>Of all that lies somewhere: what is between is never touched, and would only be filled with zeros.</summary>
    private static ulong Hash(GuestMemory memory) =>
        Hash(memory, 0, 0x20_0000) ^ ulong.RotateLeft(Hash(memory, 0x30_0000, 0x1_0000), 1);

    private static unsafe ulong Hash(GuestMemory memory, ulong address, int length)
    {
        if (memory.Pager is DeferredPager)
        {
            memory.Read(address, new byte[length]); // fetches it
        }

        // Not by a read that would be counted as a touch.
        ulong hash = 0;
        foreach (ulong word in new ReadOnlySpan<ulong>(memory.Base + address, length / sizeof(ulong)))
        {
            hash = ulong.RotateLeft((hash ^ word) * 0x9E37_79B9_7F4A_7C15, 29);
        }

        return hash;
    }

    private static string Act(Case test, GuestMachine machine)
    {
        if (test.Code is not null)
        {
            EmulationResult result = machine.Step(test.DataAccess);
            return $"{result} {(result == EmulationResult.Event ? machine.Event : default)} {machine.Reason}";
        }

        try
        {
            machine.Delivery.Deliver(test.Event);
            return "delivered";
        }
        catch (GuestFailureException end)
        {
            return end.Message;
        }
    }

    private static string ActInTransaction(Case test, GuestMachine machine, Transaction transaction)
    {
        string before = StateDump.Of(machine.Cpu);
        bool comes = machine.Memory.Pager is DeferredPager; // RAM changes by what is fetched
        ulong memoryBefore = comes ? 0 : Hash(machine.Memory);
        transaction.Begin();
        while (true)
        {
            try
            {
                string what = Act(test, machine);
                transaction.Commit();
                return what;
            }
            catch (HostPageAbsentException absent)
            {
                long asked = machine.Absent.UnclaimedAccesses;
                transaction.RollBack();
                if (test.DataAccess)
                {
                    Assert.Equal(asked, machine.Absent.UnclaimedAccesses); // no device will be asked twice
                }

                if (transaction.Repetitions == 0)
                {
                    Assert.Equal(before, StateDump.Of(machine.Cpu));
                    Assert.Equal(memoryBefore, comes ? 0 : Hash(machine.Memory));
                    Assert.Empty(machine.PortLog);
                    Assert.DoesNotContain(machine.Engine.Calls, call => call != "save");
                }

                machine.Memory.Fetch(absent.Frame);
            }
        }
    }

    private static GuestMachine Arrange(Case test)
    {
        var machine = new GuestMachine();
        VirtualCpu cpu = machine.Cpu;
        machine.Engine.LazyFsBase = 0x7000;
        _ = machine.Map(Page, First, Pte.Present | Pte.Writable | Pte.User);
        _ = machine.Map(Page + 0x1000, Second, Pte.Present | Pte.Writable | Pte.User);
        cpu.Tr = new Segment(GuestMachine.Task, GuestMachine.TaskState, 0x67, 0x8B);
        machine.Memory.Write(GuestMachine.TaskState + 4, RingStack);
        machine.Memory.Write(GuestMachine.TaskState + 36 + 16, InterruptStack);
        machine.Gate(0x20, Handler);
        machine.Gate(Vector.GeneralProtection, Handler);
        cpu.Rip = 0x10_0123;
        cpu.Rax = 0x1122_3344_5566_7788;
        cpu[Gpr.Rdi] = Across;
        cpu[Gpr.Rsi] = GuestMachine.Data + 0xFFD;
        cpu[Gpr.Rdx] = 0x500;
        test.Arrange(machine);
        if (test.Code is not null)
        {
            var assembler = new Assembler(64);
            test.Code(assembler);
            using var stream = new MemoryStream();
            assembler.Assemble(new StreamCodeWriter(stream), cpu.Rip);
            byte[] code = stream.ToArray();
            for (int i = 0; i < code.Length; i++)
            {
                machine.Memory.Write(machine.Physical(cpu.Rip + (ulong)i), code[i]);
            }
        }

        ClearAccessed(machine);
        machine.Engine.Calls.Clear();
        return machine;
    }

    // So that walks have something to undo.
    private static void ClearAccessed(GuestMachine machine)
    {
        for (ulong table = PhysicalLayout.PageTables; table < PhysicalLayout.PageTables + 0x3000; table += 8)
        {
            machine.Memory.Write(table, machine.Memory.Read<ulong>(table) & ~(Pte.Accessed | Pte.Dirty));
        }
    }

    private static void Port(GuestMachine machine) => machine.Cpu[Gpr.Rdx] = 0x500;

    private static Action<GuestMachine> Repeat(ulong count, ulong source = GuestMachine.Data + 0xFFD) =>
        machine =>
        {
            (machine.Cpu[Gpr.Rcx], machine.Cpu[Gpr.Rsi]) = (count, source);
            machine.Memory.Write(GuestMachine.Data + 0xFFD, 0x8877_6655_4433_2211);
        };

    private static void StackAcross(GuestMachine machine) => machine.Cpu.Rsp = Page + 0x1018;

    private static Action<GuestMachine> Popped(params ulong[] words) =>
        machine =>
        {
            machine.Cpu.Rsp = Page + 0xFFC;
            byte[] bytes = [.. words.SelectMany(BitConverter.GetBytes)];
            machine.Memory.Write(First + 0xFFC, bytes.AsSpan(0, 4));
            machine.Memory.Write(Second, bytes.AsSpan(4));
        };

    private static Action<GuestMachine> Selector(ushort selector) =>
        machine =>
        {
            machine.Memory.Write(First + 0xFFF, (byte)selector);
            machine.Memory.Write(Second, (byte)(selector >> 8));
        };

    private static Action<GuestMachine> FarPointer(ushort selector) =>
        machine =>
        {
            byte[] bytes = [.. BitConverter.GetBytes(Handler), .. BitConverter.GetBytes(selector)];
            machine.Memory.Write(First + 0xFFD, bytes.AsSpan(0, 3));
            machine.Memory.Write(Second, bytes.AsSpan(3));
        };
}
