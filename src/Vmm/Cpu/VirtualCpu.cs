using System.Runtime.InteropServices;

namespace VirtBench.Vmm.Cpu;

/// <summary>
/// All state of one virtual CPU that a guest can observe. It belongs to the VMM core, never to an engine, so that a VM
/// can stop under one strategy and go on under another.
/// </summary>
/// <remarks>Used by one thread at a time: the one that is in <see cref="Execution.VirtualMachine.Run"/>.</remarks>
public sealed unsafe class VirtualCpu : IDisposable
{
    private GuestRegisters* _registers;

    /// <summary>Creates a CPU in the state of guest-platform.md: long mode, ring 0, interrupts off.</summary>
    public VirtualCpu()
    {
        _registers = (GuestRegisters*)NativeMemory.AlignedAlloc(GuestRegisters.Size, 64);
        Reset();
    }

    /// <summary>The block of hot registers: fixed in memory for the CPU's life.</summary>
    public GuestRegisters* Registers => _registers;

    /// <summary>General register by encoding index 0–15 (<see cref="Gpr"/>).</summary>
    public ref ulong this[int gpr] => ref _registers->Gpr[gpr];

    /// <summary>Instruction pointer.</summary>
    public ref ulong Rip => ref _registers->Rip;

    /// <summary>RFLAGS with the virtual IF and IOPL.</summary>
    public ref ulong Rflags => ref _registers->Rflags;

    /// <summary>RAX.</summary>
    public ref ulong Rax => ref _registers->Gpr[Gpr.Rax];

    /// <summary>RSP.</summary>
    public ref ulong Rsp => ref _registers->Gpr[Gpr.Rsp];

    /// <summary>CR0.</summary>
    public ulong Cr0 { get; set; }

    /// <summary>CR2, the last page-fault address.</summary>
    public ulong Cr2 { get; set; }

    /// <summary>CR3, the page-table base. Changing it needs <see cref="Execution.IExecutionEngine.SwitchAddressSpace"/>.</summary>
    public ulong Cr3 { get; set; }

    /// <summary>CR4.</summary>
    public ulong Cr4 { get; set; }

    /// <summary>CR8, the task priority.</summary>
    public ulong Cr8 { get; set; }

    /// <summary>DR0–DR3.</summary>
    public ulong[] DebugAddresses { get; } = new ulong[4];

    /// <summary>DR6.</summary>
    public ulong Dr6 { get; set; }

    /// <summary>DR7.</summary>
    public ulong Dr7 { get; set; }

    /// <summary>The EFER register.</summary>
    public ulong Efer { get; set; }

    /// <summary>STAR: selectors of SYSCALL and SYSRET.</summary>
    public ulong Star { get; set; }

    /// <summary>LSTAR: 64-bit SYSCALL target.</summary>
    public ulong Lstar { get; set; }

    /// <summary>CSTAR: compatibility-mode SYSCALL target.</summary>
    public ulong Cstar { get; set; }

    /// <summary>FMASK: RFLAGS bits that SYSCALL clears.</summary>
    public ulong Fmask { get; set; }

    /// <summary>KERNEL_GS_BASE: what SWAPGS exchanges GS base with.</summary>
    public ulong KernelGsBase { get; set; }

    /// <summary>TSC_AUX: what RDTSCP returns in ECX.</summary>
    public ulong TscAux { get; set; }

    /// <summary>The page-attribute table.</summary>
    public ulong Pat { get; set; }

    /// <summary>Added to the engine's clock to give the guest's time-stamp counter.</summary>
    public ulong TscOffset { get; set; }

    /// <summary>ES.</summary>
    public Segment Es { get; set; }

    /// <summary>CS; its selector's RPL is the virtual CPL.</summary>
    public Segment Cs { get; set; }

    /// <summary>SS.</summary>
    public Segment Ss { get; set; }

    /// <summary>DS.</summary>
    public Segment Ds { get; set; }

    /// <summary>FS; its base is the FS_BASE MSR.</summary>
    public Segment Fs { get; set; }

    /// <summary>GS; its base is the GS_BASE MSR.</summary>
    public Segment Gs { get; set; }

    /// <summary>LDTR.</summary>
    public Segment Ldtr { get; set; }

    /// <summary>TR.</summary>
    public Segment Tr { get; set; }

    /// <summary>GDTR.</summary>
    public DescriptorTable Gdtr { get; set; }

    /// <summary>IDTR.</summary>
    public DescriptorTable Idtr { get; set; }

    /// <summary>Current privilege level of the guest as the guest believes it, 0–3.</summary>
    public int Cpl => Cs.Selector & 3;

    /// <summary>True while STI or MOV SS hold off interrupts for one instruction.</summary>
    public bool InterruptShadow { get; set; }

    /// <summary>True after HLT until an interrupt arrives.</summary>
    public bool Halted { get; set; }

    /// <summary>An event that must be delivered before the next guest instruction.</summary>
    public GuestEvent PendingEvent { get; set; }

    /// <summary>Back to the state at boot; memory is not touched.</summary>
    public void Reset()
    {
        NativeMemory.Clear(_registers, GuestRegisters.Size);
        Rflags = Cpu.Rflags.AlwaysSet;
        *(ushort*)_registers->Fxsave = 0x37F; // x87 control word after FNINIT
        *(uint*)((byte*)_registers + GuestRegisters.MxcsrOffset) = 0x1F80;
        *(uint*)((byte*)_registers + GuestRegisters.MxcsrOffset + 4) = 0xFFFF; // MXCSR_MASK
        Cr0 = Cpu.Cr0.Pe | Cpu.Cr0.Mp | Cpu.Cr0.Et | Cpu.Cr0.Ne | Cpu.Cr0.Wp | Cpu.Cr0.Pg;
        Cr2 = Cr3 = Cr8 = 0;
        Cr4 = Cpu.Cr4.Pae | Cpu.Cr4.Pge | Cpu.Cr4.Osfxsr | Cpu.Cr4.Osxmmexcpt;
        Array.Clear(DebugAddresses);
        Dr6 = 0xFFFF_0FF0;
        Dr7 = 0x400;
        Efer = Cpu.Efer.Lme | Cpu.Efer.Lma | Cpu.Efer.Nxe;
        Star = Lstar = Cstar = Fmask = KernelGsBase = TscAux = TscOffset = 0;
        Pat = 0x0007_0406_0007_0406; // power-on value, SDM vol. 3A, section 12.12.4
        Cs = Segment.KernelCode(0x08);
        Ss = Ds = Es = Segment.KernelData(0x10);
        Fs = Gs = Segment.Null with { Limit = 0xFFFF_FFFF };
        Ldtr = Segment.Null;
        Tr = new Segment(0, 0, 0x67, 0x8B); // a 64-bit TSS must be loaded at all times: busy, empty
        Gdtr = Idtr = default;
        InterruptShadow = Halted = false;
        PendingEvent = default;
    }

    /// <summary>Takes over everything that the other CPU holds.</summary>
    public void CopyFrom(VirtualCpu other)
    {
        NativeMemory.Copy(other._registers, _registers, GuestRegisters.Size);
        Cr0 = other.Cr0;
        Cr2 = other.Cr2;
        Cr3 = other.Cr3;
        Cr4 = other.Cr4;
        Cr8 = other.Cr8;
        other.DebugAddresses.CopyTo(DebugAddresses, 0);
        Dr6 = other.Dr6;
        Dr7 = other.Dr7;
        Efer = other.Efer;
        Star = other.Star;
        Lstar = other.Lstar;
        Cstar = other.Cstar;
        Fmask = other.Fmask;
        KernelGsBase = other.KernelGsBase;
        TscAux = other.TscAux;
        Pat = other.Pat;
        TscOffset = other.TscOffset;
        Es = other.Es;
        Cs = other.Cs;
        Ss = other.Ss;
        Ds = other.Ds;
        Fs = other.Fs;
        Gs = other.Gs;
        Ldtr = other.Ldtr;
        Tr = other.Tr;
        Gdtr = other.Gdtr;
        Idtr = other.Idtr;
        InterruptShadow = other.InterruptShadow;
        Halted = other.Halted;
        PendingEvent = other.PendingEvent;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        NativeMemory.AlignedFree(_registers);
        _registers = null;
    }
}
