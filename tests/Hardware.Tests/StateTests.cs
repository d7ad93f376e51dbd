using Iced.Intel;
using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Workloads;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Hardware.Tests;

/// <summary>All state that a guest can observe goes into the kernel's vCPU and comes back.</summary>
public sealed class StateTests
{
    private static readonly (string Name, Func<VirtualCpu, object> Get, Action<VirtualCpu> Set)[] Registers =
    [
        ("CR2", cpu => cpu.Cr2, cpu => cpu.Cr2 = 0xFFFF_8123_4567_89AB),
        ("CR8", cpu => cpu.Cr8, cpu => cpu.Cr8 = 7),
        ("CR4", cpu => cpu.Cr4, cpu => cpu.Cr4 |= Cr4.Tsd | Cr4.De),
        ("CR0", cpu => cpu.Cr0, cpu => cpu.Cr0 &= ~Cr0.Wp),
        ("EFER", cpu => cpu.Efer, cpu => cpu.Efer |= Efer.Sce),
        ("STAR", cpu => cpu.Star, cpu => cpu.Star = 0x0023_0010_1234_5678),
        ("LSTAR", cpu => cpu.Lstar, cpu => cpu.Lstar = 0xFFFF_8000_0000_1000),
        ("CSTAR", cpu => cpu.Cstar, cpu => cpu.Cstar = 0xFFFF_8000_0000_2000),
        ("FMASK", cpu => cpu.Fmask, cpu => cpu.Fmask = 0x4_7700),
        ("KERNEL_GS_BASE", cpu => cpu.KernelGsBase, cpu => cpu.KernelGsBase = 0xFFFF_8000_0000_3000),
        ("PAT", cpu => cpu.Pat, cpu => cpu.Pat = 0x0105_0600_0007_0406),
        ("FS", cpu => cpu.Fs, cpu => cpu.Fs = new Segment(0x10, 0xFFFF_8000_1234_5678, uint.MaxValue, 0xC093)),
        ("GS", cpu => cpu.Gs, cpu => cpu.Gs = new Segment(0x10, 0x7FFF_1234_5678, uint.MaxValue, 0xC093)),
        ("ES", cpu => cpu.Es, cpu => cpu.Es = new Segment(0x10, 0, uint.MaxValue, 0xC093)),
        ("DS", cpu => cpu.Ds, cpu => cpu.Ds = Segment.Null),
        ("CS", cpu => cpu.Cs, cpu => cpu.Cs = Segment.KernelCode(0x08)),
        ("SS", cpu => cpu.Ss, cpu => cpu.Ss = Segment.KernelData(0x10)),
        ("LDTR", cpu => cpu.Ldtr, cpu => cpu.Ldtr = new Segment(0x38, 0x35_0000, 0xFFF, 0x82)),
        ("TR", cpu => cpu.Tr, cpu => cpu.Tr = new Segment(0x28, 0x33_0000, 0x1FFF, 0x8B)),
        ("GDTR", cpu => cpu.Gdtr, cpu => cpu.Gdtr = new DescriptorTable(0x34_0000, 0x7F)),
        ("IDTR", cpu => cpu.Idtr, cpu => cpu.Idtr = new DescriptorTable(0xFFFF_8000_0030_0000, 0xFFF)),
        ("DR0", cpu => cpu.DebugAddresses[0], cpu => cpu.DebugAddresses[0] = 0x1111_0000),
        ("DR1", cpu => cpu.DebugAddresses[1], cpu => cpu.DebugAddresses[1] = 0x1_2222_0000),
        ("DR2", cpu => cpu.DebugAddresses[2], cpu => cpu.DebugAddresses[2] = 0x3333_0000),
        ("DR3", cpu => cpu.DebugAddresses[3], cpu => cpu.DebugAddresses[3] = 0x4444_0000),
        ("DR6", cpu => cpu.Dr6, cpu => cpu.Dr6 = 0xFFFF_0FF1),
        ("DR7", cpu => cpu.Dr7, cpu => cpu.Dr7 = 0x700),
    ];

    private const ulong Flags =
        Rflags.AlwaysSet
        | Rflags.Cf
        | Rflags.Of
        | Rflags.Df
        | Rflags.If
        | Rflags.Iopl
        | Rflags.Ac
        | Rflags.Id
        | Rflags.Nt;

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Every_register_survives_a_way_through_the_kernel(bool withoutSyncRegs)
    {
        using var guest = new HardwareGuest(
            a =>
            {
                a.@out(0x80, al);
                a.Exit();
            },
            without: withoutSyncRegs ? offered => offered with { SyncRegs = false } : null
        );
        VirtualCpu cpu = guest.Cpu;
        byte[] floating = SetDistinctive(cpu);
        Dictionary<string, object> before = Registers.ToDictionary(one => one.Name, one => one.Get(cpu));
        ulong[] general = [.. Enumerable.Range(0, 16).Select(i => cpu[i])];

        HardwareEngineDriver drive = new(guest);
        VmExit exit = drive.Run(VmExitReason.PortIo);
        Assert.Equal((0x80UL, (byte)1, 1U), (exit.Address, exit.Size, exit.Count));
        guest.Engine.SaveLazyState();

        Assert.Equal(general, Enumerable.Range(0, 16).Select(i => cpu[i]));
        Assert.Equal((HardwareGuest.Code + 2, Flags), (cpu.Rip, cpu.Rflags));
        Assert.Equal(before, Registers.ToDictionary(one => one.Name, one => one.Get(cpu)));
        Assert.Equal(floating, Floating(cpu));
        Assert.Equal(GuestEventKind.None, cpu.PendingEvent.Kind);
        Assert.False(cpu.InterruptShadow);

        // And once more, from what has been saved
        guest.Engine.LoadLazyState();
        cpu.Rip = HardwareGuest.Code;
        drive.Run(VmExitReason.PortIo);
        guest.Engine.SaveLazyState();
        Assert.Equal(before, Registers.ToDictionary(one => one.Name, one => one.Get(cpu)));
        Assert.Equal(floating, Floating(cpu));
    }

    private static unsafe byte[] SetDistinctive(VirtualCpu cpu)
    {
        foreach ((_, _, Action<VirtualCpu> set) in Registers)
        {
            set(cpu);
        }

        for (int i = 0; i < 16; i++)
        {
            cpu[i] = 0x0101_0101_0101_0101UL * (ulong)(i + 1);
        }

        cpu.Rflags = Flags;
        byte* image = cpu.Registers->Fxsave;
        *(ushort*)image = 0x27F; // x87 control word: double precision
        image[4] = 0xFF; // all of x87's registers in use
        *(uint*)(image + 24) = 0x7F80; // MXCSR: round to zero
        for (int i = 0; i < 8; i++)
        {
            for (int j = 0; j < 10; j++)
            {
                image[32 + (16 * i) + j] = (byte)((i << 4) + j + 1);
            }
        }

        for (int i = 0; i < 256; i++)
        {
            image[160 + i] = (byte)(i ^ 0xA5);
        }

        return Floating(cpu);
    }

    // Without the last instruction's addresses, which AMD's processors keep for exceptions only, and what FXSAVE leaves alone.
    private static unsafe byte[] Floating(VirtualCpu cpu)
    {
        var image = new ReadOnlySpan<byte>(cpu.Registers->Fxsave, 416);
        var parts = new List<byte>();
        parts.AddRange(image[..5]);
        parts.AddRange(image[24..28]);
        for (int i = 0; i < 8; i++)
        {
            parts.AddRange(image.Slice(32 + (16 * i), 10));
        }

        parts.AddRange(image[160..]);
        return [.. parts];
    }

    [Fact]
    public void Tsc_aux_survives_too()
    {
        HardwareGuest.SkipUnderPvm("has no TSC_AUX");
        using var guest = new HardwareGuest(a => a.@out(0x80, al));
        guest.Cpu.TscAux = 0x89AB_CDEF;
        new HardwareEngineDriver(guest).Run(VmExitReason.PortIo);
        guest.Cpu.TscAux = 0;
        guest.Engine.SaveLazyState();
        Assert.Equal(0x89AB_CDEFUL, guest.Cpu.TscAux);
    }

    [Fact]
    public void Ring_three_state_survives()
    {
        using var guest = new HardwareGuest(a => a.LoopForEver());
        guest.EnterInRingThree();
        guest.Cpu.Rflags |= Rflags.If;
        (Segment, Segment, Segment) before = (guest.Cpu.Cs, guest.Cpu.Ss, guest.Cpu.Tr);
        Assert.Equal(RunEnd.TimedOut, guest.Run(TimeSpan.FromMilliseconds(20)).End);
        Assert.Equal(before, (guest.Cpu.Cs, guest.Cpu.Ss, guest.Cpu.Tr));
        Assert.Equal(3, guest.Cpu.Cpl);
    }

    // A shadow with IF clear can come from MOV SS only; VT-x checks that at the entry.
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void A_guest_in_an_interrupt_shadow_can_be_entered(bool interruptsOn)
    {
        using var guest = new HardwareGuest(a =>
        {
            a.nop();
            a.Exit(4);
        });
        guest.Cpu.InterruptShadow = true;
        guest.Cpu.Rflags |= interruptsOn ? Rflags.If : 0;
        Assert.Equal(RunEnd.Cancelled, guest.RunUntil(new CancellationToken(canceled: true)).End);
        Assert.True(guest.Cpu.InterruptShadow);
        Assert.Equal(4, guest.RunToExit());
        Assert.False(guest.Cpu.InterruptShadow);
    }

    [Fact]
    public void A_shadow_that_a_guest_is_entered_in_lasts_for_one_instruction()
    {
        HardwareGuest.SkipUnderPvm("looks for interrupts only now and then");
        InterruptShadow.SkipWhereEntriesLoseIt();
        Assert.Equal(HardwareGuest.Code + 1, InterruptShadow.OpensAt);
    }

    [Theory]
    [InlineData(Vector.InvalidOpcode)]
    [InlineData(Vector.GeneralProtection)]
    [InlineData(Vector.PageFault)]
    public void A_pending_exception_is_delivered_at_the_entry(byte vector)
    {
        using var guest = new HardwareGuest(a => a.ud2()).InstallHandlers();
        guest.Cpu.Idtr = new DescriptorTable(0x30_0000, 0xFFF);
        guest.Cpu.PendingEvent =
            vector == Vector.PageFault
                ? GuestEvent.PageFault(0x7777_0000, 2)
                : GuestEvent.Exception(vector, vector == Vector.GeneralProtection ? 0x18U : 0);
        CaughtException expected = vector switch
        {
            Vector.PageFault => new(vector, 2, HardwareGuest.Code, 0x7777_0000),
            Vector.GeneralProtection => new(vector, 0x18, HardwareGuest.Code, 0),
            _ => new(vector, null, HardwareGuest.Code, 0),
        };
        Assert.Equal(expected, guest.RunToException());
    }

    [Fact]
    public void A_pending_software_interrupt_is_made_by_the_instruction_itself()
    {
        HardwareGuest.SkipUnderPvm("does not have INT n in ring 0");
        using var guest = new HardwareGuest(a => a.@int(0x80)).InstallHandlers();
        guest.Cpu.Idtr = new DescriptorTable(0x30_0000, 0xFFF);
        guest.Cpu.PendingEvent = GuestEvent.SoftwareInterrupt(0x80, 2);
        Assert.Equal(new CaughtException(0x80, null, HardwareGuest.Code + 2, 0), guest.RunToException());
    }

    // The #GP of an MSR that is not there is KVM's to raise at the next entry: stopped before it, it is the CPU's.
    [Fact]
    public void An_exception_that_is_still_to_come_moves_with_the_cpu()
    {
        using var guest = new HardwareGuest(a =>
        {
            a.mov(ecx, 0x1B);
            a.rdmsr();
            a.Exit(99);
        }).InstallHandlers();
        guest.Cpu.Idtr = new DescriptorTable(0x30_0000, 0xFFF);
        new HardwareEngineDriver(guest).Run(VmExitReason.ModelSpecificRegister);
        guest.Engine.SaveLazyState();
        Assert.Equal(GuestEvent.Exception(Vector.GeneralProtection), guest.Cpu.PendingEvent);
        Assert.Equal(HardwareGuest.Code + 5, guest.Cpu.Rip);

        using HardwareGuest other = MoveTo(HardwareGuest.Simulated, guest);
        Assert.Equal(
            new CaughtException(Vector.GeneralProtection, 0, HardwareGuest.Code + 5, 0),
            other.RunToException()
        );
        Assert.Equal(
            new CaughtException(Vector.GeneralProtection, 0, HardwareGuest.Code + 5, 0),
            guest.RunToException()
        );
    }

    public static TheoryData<string, string> Moves
    {
        get
        {
            var moves = new TheoryData<string, string>();
            foreach (string id in (string[])["port-io", "cr3-switch", "rdtsc"])
            {
                moves.Add(id, HardwareGuest.Simulated);
                moves.Add(id, HardwareGuest.TrapAndEmulate);
                moves.Add(id, HardwareGuest.Hardware);
            }

            return moves;
        }
    }

    [Theory]
    [MemberData(nameof(Moves))]
    public void A_guest_begun_under_hardware_goes_on_under_another_strategy(string id, string strategy)
    {
        const int kicksBetween = 3;
        HardwareGuest.SkipUnlessAvailable(strategy);
        Workload workload = WorkloadCatalog.Find(id)!;
        GuestImage image = workload.Build(
            new WorkloadOptions(workload.MaximumTrapsPerUnit, Math.Max(2000, ((SlottedWorkload)workload).MinimumFiller))
        );
        var options = new BootOptions { Parameters = [2, 4] };
        using var straight = new HardwareGuest(image, HardwareGuest.Simulated, options: options);
        straight.RunToExit();
        ulong expected = WorkloadResult.Read(straight.Memory).Checksum;

        // Hardware … hardware, stopped wherever it is … and the rest under the other.
        HardwareGuest guest = new(image, options: options);
        for (int i = 0; i < kicksBetween && guest.Run(TimeSpan.FromMilliseconds(1)).End == RunEnd.TimedOut; i++)
        {
            HardwareGuest next = MoveTo(HardwareGuest.Hardware, guest);
            guest.Dispose();
            guest = next;
        }

        if (guest.Run(TimeSpan.FromMilliseconds(1)).End == RunEnd.TimedOut)
        {
            using HardwareGuest other = MoveTo(strategy, guest);
            other.RunToExit();
            Assert.Equal(expected, WorkloadResult.Read(other.Memory).Checksum);
        }

        // Its own way goes on as well.
        guest.Run();
        Assert.Equal(expected, WorkloadResult.Read(guest.Memory).Checksum);
        guest.Dispose();
    }

    [Fact]
    public void A_guest_moves_in_the_middle_of_its_work()
    {
        using var guest = new HardwareGuest(a =>
        {
            Label first = a.CreateLabel();
            Label second = a.CreateLabel();
            a.mov(ecx, 100);
            a.xor(r15d, r15d);
            a.Label(ref first);
            a.add(r15, rcx);
            a.dec(ecx);
            a.jnz(first);
            a.WriteMsr(Msr.KernelGsBase, 0x1234_5678);
            a.mov(eax, 0x55);
            a.mov(dx, 0x3FF);
            a.@out(dx, al);
            a.@out(0x80, al);
            a.mov(ecx, 100);
            a.Label(ref second);
            a.add(r15, rcx);
            a.dec(ecx);
            a.jnz(second);
            a.ReadMsr(Msr.KernelGsBase);
            a.add(rax, r15);
            a.Store(0, rax);
            a.Exit();
        });
        HardwareEngineDriver drive = new(guest);
        Assert.Equal(0x3FFUL, drive.Run(VmExitReason.PortIo).Address);
        Assert.Equal(0x80UL, drive.Run(VmExitReason.PortIo).Address);
        guest.Engine.SaveLazyState();
        Assert.Equal(5050UL, guest.Cpu[15]);
        foreach (
            string strategy in (string[])[HardwareGuest.Simulated, HardwareGuest.TrapAndEmulate, HardwareGuest.Hardware]
        )
        {
            if (StrategyCatalog.Find(strategy)!.UnavailableReason() is null)
            {
                using HardwareGuest other = MoveTo(strategy, guest);
                other.RunToExit();
                Assert.Equal(0x1234_5678UL + 10100, other.Result(0));
            }
        }
    }

    private static unsafe HardwareGuest MoveTo(string strategy, HardwareGuest from)
    {
        var to = new HardwareGuest(HardwareGuest.Assemble(a => a.ud2()), strategy, from.Memory.Size);
        to.Memory.Write(0, new ReadOnlySpan<byte>(from.Memory.Base, (int)from.Memory.Size));

        // Devices: the serial port's scratch register, and a region that is open.
        to.Machine.Ports.Write(0x3FF, 1, from.Machine.Ports.Read(0x3FF, 1, 0), 0);
        to.RegionWasBegun = from.RegionWasBegun || from.Exits(TrapReason.RegionMarker) > 0;
        if (to.RegionWasBegun && from.Machine.Regions.Count == 0)
        {
            to.Machine.Ports.Write(0xB0, 4, 1, 0);
        }

        VirtualCpu source = from.Cpu;
        VirtualCpu cpu = to.Cpu;
        *cpu.Registers = *source.Registers;
        (cpu.Cr0, cpu.Cr2, cpu.Cr3, cpu.Cr4, cpu.Cr8) = (source.Cr0, source.Cr2, source.Cr3, source.Cr4, source.Cr8);
        (cpu.Cs, cpu.Ss, cpu.Ds, cpu.Es, cpu.Fs, cpu.Gs) = (
            source.Cs,
            source.Ss,
            source.Ds,
            source.Es,
            source.Fs,
            source.Gs
        );
        (cpu.Tr, cpu.Ldtr, cpu.Gdtr, cpu.Idtr) = (source.Tr, source.Ldtr, source.Gdtr, source.Idtr);
        (cpu.Efer, cpu.Star, cpu.Lstar, cpu.Cstar) = (source.Efer, source.Star, source.Lstar, source.Cstar);
        (cpu.Fmask, cpu.KernelGsBase, cpu.TscAux, cpu.Pat) = (
            source.Fmask,
            source.KernelGsBase,
            source.TscAux,
            source.Pat
        );
        (cpu.TscOffset, cpu.Dr6, cpu.Dr7) = (source.TscOffset, source.Dr6, source.Dr7);
        source.DebugAddresses.CopyTo(cpu.DebugAddresses, 0);
        (cpu.InterruptShadow, cpu.Halted, cpu.PendingEvent) = (
            source.InterruptShadow,
            source.Halted,
            source.PendingEvent
        );
        return to;
    }
}
