using System.Runtime.InteropServices;
using System.Runtime.Versioning;
using VirtBench.Strategies.Native;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;

namespace VirtBench.Strategies.Hardware;

/// <summary>
/// Carries a CPU's state, all but the general registers, between the core and a vCPU of KVM. It happens when a VM is loaded
/// and when it stops, not at exits.
/// </summary>
[SupportedOSPlatform("linux")]
internal static unsafe class KvmState
{
    private static readonly uint[] MsrIndices =
    [
        Msr.Star,
        Msr.Lstar,
        Msr.Cstar,
        Msr.Fmask,
        Msr.KernelGsBase,
        Msr.TscAux,
        Msr.Pat,
    ];

    /// <summary>From the core to KVM.</summary>
    /// <exception cref="System.ComponentModel.Win32Exception">The kernel refuses a value.</exception>
    public static void Load(VirtualCpu cpu, KvmMachine machine)
    {
        // CR4 and EFER are checked against CPUID, segments against the mode: all of them go in one request.
        Kvm.Sregs sregs = default;
        sregs.Cs = ToKvm(cpu.Cs);
        sregs.Ds = ToKvm(cpu.Ds);
        sregs.Es = ToKvm(cpu.Es);
        sregs.Fs = ToKvm(cpu.Fs);
        sregs.Gs = ToKvm(cpu.Gs);
        sregs.Ss = ToKvm(cpu.Ss);
        sregs.Tr = ToKvm(cpu.Tr);
        sregs.Ldt = ToKvm(cpu.Ldtr);
        sregs.Gdt = new Kvm.Dtable { Base = cpu.Gdtr.Base, Limit = cpu.Gdtr.Limit };
        sregs.Idt = new Kvm.Dtable { Base = cpu.Idtr.Base, Limit = cpu.Idtr.Limit };
        sregs.Cr0 = cpu.Cr0;
        sregs.Cr2 = cpu.Cr2;
        sregs.Cr3 = cpu.Cr3;
        sregs.Cr4 = cpu.Cr4;
        sregs.Cr8 = cpu.Cr8;
        sregs.Efer = cpu.Efer;
        sregs.ApicBase = 0; // the platform has no APIC: its bit in CPUID follows this
        machine.Vcpu(Kvm.SetSregs, ref sregs, "KVM_SET_SREGS");
        machine.Run->Cr8 = cpu.Cr8;

        // Not KVM_SET_FPU and KVM_GET_FPU: they leave MXCSR out.
        Kvm.Xsave xsave = default;
        CopyFxsave(cpu.Registers->Fxsave, xsave.Region);
        *(ulong*)(xsave.Region + Kvm.Xsave.HeaderOffset) = Kvm.Xsave.X87 | Kvm.Xsave.Sse;
        machine.Vcpu(Kvm.SetXsave, ref xsave, "KVM_SET_XSAVE");

        Span<Kvm.MsrEntry> msrs = stackalloc Kvm.MsrEntry[MsrIndices.Length];
        ReadOnlySpan<ulong> values = [cpu.Star, cpu.Lstar, cpu.Cstar, cpu.Fmask, cpu.KernelGsBase, cpu.TscAux, cpu.Pat];
        for (int i = 0; i < msrs.Length; i++)
        {
            msrs[i] = new Kvm.MsrEntry { Index = MsrIndices[i], Data = values[i] };
        }

        machine.Msrs(Kvm.SetMsrs, msrs, "KVM_SET_MSRS");
        if (!machine.TrySetTscOffset(cpu.TscOffset))
        {
            Span<Kvm.MsrEntry> counter =
            [
                new() { Index = Msr.TimeStampCounter, Data = HostClock.Instance.Ticks + cpu.TscOffset },
            ];
            machine.Msrs(Kvm.SetMsrs, counter, "KVM_SET_MSRS");
        }

        if (machine.Capabilities.DebugRegisters)
        {
            Kvm.Debugregs debug = default;
            for (int i = 0; i < 4; i++)
            {
                debug.Db[i] = cpu.DebugAddresses[i];
            }

            debug.Dr6 = cpu.Dr6;
            debug.Dr7 = cpu.Dr7;
            machine.Vcpu(Kvm.SetDebugregs, ref debug, "KVM_SET_DEBUGREGS");
        }

        if (machine.Capabilities.VcpuEvents)
        {
            // With IF clear it can only be that of MOV SS; VT-x refuses to enter a guest that claims STI's then.
            byte shadow = (cpu.Rflags & Rflags.If) != 0 ? Kvm.ShadowOfSti : Kvm.ShadowOfMovSs;
            var events = new Kvm.VcpuEvents
            {
                Flags = Kvm.VcpuEventValidShadow,
                InterruptShadow = cpu.InterruptShadow ? shadow : (byte)0,
            };
            machine.Vcpu(Kvm.SetVcpuEvents, ref events, "KVM_SET_VCPU_EVENTS");
        }
    }

    /// <summary>From KVM to the core.</summary>
    /// <exception cref="System.ComponentModel.Win32Exception">The kernel refuses.</exception>
    public static void Save(VirtualCpu cpu, KvmMachine machine)
    {
        // Before the registers: this makes KVM put the address of a page fault that is pending into CR2.
        Kvm.VcpuEvents events = default;
        if (machine.Capabilities.VcpuEvents)
        {
            machine.Vcpu(Kvm.GetVcpuEvents, ref events, "KVM_GET_VCPU_EVENTS");
            cpu.InterruptShadow = events.InterruptShadow != 0;
        }

        Kvm.Sregs sregs = default;
        machine.Vcpu(Kvm.GetSregs, ref sregs, "KVM_GET_SREGS");
        cpu.Cs = FromKvm(sregs.Cs);
        cpu.Ds = FromKvm(sregs.Ds);
        cpu.Es = FromKvm(sregs.Es);
        cpu.Fs = FromKvm(sregs.Fs);
        cpu.Gs = FromKvm(sregs.Gs);
        cpu.Ss = FromKvm(sregs.Ss);
        cpu.Tr = FromKvm(sregs.Tr);
        cpu.Ldtr = FromKvm(sregs.Ldt);
        cpu.Gdtr = new DescriptorTable(sregs.Gdt.Base, sregs.Gdt.Limit);
        cpu.Idtr = new DescriptorTable(sregs.Idt.Base, sregs.Idt.Limit);
        cpu.Cr0 = sregs.Cr0;
        cpu.Cr2 = sregs.Cr2;
        cpu.Cr3 = sregs.Cr3;
        cpu.Cr4 = sregs.Cr4;
        cpu.Cr8 = sregs.Cr8;
        cpu.Efer = sregs.Efer;
        if ((events.ExceptionInjected | events.ExceptionPending) != 0 && !IsSoftware(events.ExceptionNumber))
        {
            cpu.PendingEvent =
                events.ExceptionNumber == Vector.PageFault
                    ? GuestEvent.PageFault(sregs.Cr2, events.ExceptionErrorCode)
                    : GuestEvent.Exception(events.ExceptionNumber, events.ExceptionErrorCode);
        }
        else if (events.InterruptInjected != 0 && events.InterruptSoft == 0)
        {
            // Given to KVM and not yet delivered. Given to it once more it is still one.
            cpu.PendingEvent = GuestEvent.Interrupt(events.InterruptNumber);
        }

        Kvm.Xsave xsave = default;
        machine.Vcpu(Kvm.GetXsave, ref xsave, "KVM_GET_XSAVE");
        CopyFxsave(xsave.Region, cpu.Registers->Fxsave);

        Span<Kvm.MsrEntry> msrs = stackalloc Kvm.MsrEntry[MsrIndices.Length + 1];
        for (int i = 0; i < MsrIndices.Length; i++)
        {
            msrs[i].Index = MsrIndices[i];
        }

        msrs[MsrIndices.Length].Index = Msr.TimeStampCounter;
        machine.Msrs(Kvm.GetMsrs, msrs, "KVM_GET_MSRS");
        cpu.Star = msrs[0].Data;
        cpu.Lstar = msrs[1].Data;
        cpu.Cstar = msrs[2].Data;
        cpu.Fmask = msrs[3].Data;
        cpu.KernelGsBase = msrs[4].Data;
        cpu.TscAux = msrs[5].Data;
        cpu.Pat = msrs[6].Data;
        cpu.TscOffset = machine.TscOffset ?? msrs[7].Data - HostClock.Instance.Ticks;

        if (machine.Capabilities.DebugRegisters)
        {
            Kvm.Debugregs debug = default;
            machine.Vcpu(Kvm.GetDebugregs, ref debug, "KVM_GET_DEBUGREGS");
            for (int i = 0; i < 4; i++)
            {
                cpu.DebugAddresses[i] = debug.Db[i];
            }

            cpu.Dr6 = debug.Dr6;
            cpu.Dr7 = debug.Dr7;
        }
    }

    /// <summary>
    /// Drops what the CPU has derived from the guest's page tables under nested paging. KVM does so when CR3 changes; bit 3, a hint about caches, makes
    /// it another. Shadow page tables of KVM's outlast that: see <see cref="KvmMachine.RenewMemory"/>.
    /// </summary>
    /// <exception cref="System.ComponentModel.Win32Exception">The kernel refuses.</exception>
    public static void DropTranslations(KvmMachine machine)
    {
        const ulong writeThrough = 1 << 3; // CR3.PWT
        Kvm.Sregs sregs = default;
        machine.Vcpu(Kvm.GetSregs, ref sregs, "KVM_GET_SREGS");
        sregs.Cr3 ^= writeThrough;
        machine.Vcpu(Kvm.SetSregs, ref sregs, "KVM_SET_SREGS");
        sregs.Cr3 ^= writeThrough;
        machine.Vcpu(Kvm.SetSregs, ref sregs, "KVM_SET_SREGS");
    }

    /// <summary>Lets KVM keep a paravirtual clock in guest RAM (Linux, Documentation/virt/kvm/x86/msr.rst).</summary>
    /// <param name="address">Where; 0 for nowhere any more.</param>
    /// <param name="machine">The machine.</param>
    /// <exception cref="System.ComponentModel.Win32Exception">The kernel refuses.</exception>
    public static void KeepClock(ulong address, KvmMachine machine)
    {
        const uint systemTime = 0x4B56_4D01; // MSR_KVM_SYSTEM_TIME_NEW
        const ulong enabled = 1;
        Span<Kvm.MsrEntry> msr = [new() { Index = systemTime, Data = address == 0 ? 0 : address | enabled }];
        machine.Msrs(Kvm.SetMsrs, msr, "KVM_SET_MSRS");
    }

    /// <summary>Has an exception delivered at the next entry.</summary>
    /// <exception cref="System.ComponentModel.Win32Exception">The kernel refuses.</exception>
    public static void Inject(in GuestEvent exception, KvmMachine machine)
    {
        if (exception.Number == Vector.PageFault)
        {
            Kvm.Sregs sregs = default;
            machine.Vcpu(Kvm.GetSregs, ref sregs, "KVM_GET_SREGS");
            sregs.Cr2 = exception.FaultAddress;
            machine.Vcpu(Kvm.SetSregs, ref sregs, "KVM_SET_SREGS");
        }

        Kvm.VcpuEvents events = default;
        machine.Vcpu(Kvm.GetVcpuEvents, ref events, "KVM_GET_VCPU_EVENTS");
        events.Flags = 0;
        events.ExceptionInjected = 1;
        events.ExceptionPending = 0;
        events.ExceptionNumber = exception.Number;
        events.ExceptionHasErrorCode = Vector.HasErrorCode(exception.Number) ? (byte)1 : (byte)0;
        events.ExceptionErrorCode = exception.ErrorCode;
        machine.Vcpu(Kvm.SetVcpuEvents, ref events, "KVM_SET_VCPU_EVENTS");
    }

    /// <summary>Has an external interrupt delivered at the next entry, at which the guest must be ready to take it.</summary>
    /// <exception cref="System.ComponentModel.Win32Exception">The kernel refuses.</exception>
    public static void Interrupt(byte vector, KvmMachine machine)
    {
        uint interrupt = vector; // struct kvm_interrupt
        machine.Vcpu(Kvm.Interrupt, ref interrupt, "KVM_INTERRUPT");
    }

    // An INT3 or INTO whose delivery was cut short: RIP is still at it, so it will come again by itself.
    private static bool IsSoftware(byte vector) => vector is Vector.Breakpoint or Vector.Overflow;

    private static Kvm.Segment ToKvm(in Segment segment) =>
        new()
        {
            Base = segment.Base,
            Limit = segment.Limit,
            Selector = segment.Selector,
            Type = (byte)segment.Type,
            S = (byte)((segment.Attributes >> 4) & 1),
            Dpl = (byte)segment.Dpl,
            Present = segment.Present ? (byte)1 : (byte)0,
            Avl = (byte)((segment.Attributes >> 12) & 1),
            L = (byte)((segment.Attributes >> 13) & 1),
            Db = (byte)((segment.Attributes >> 14) & 1),
            G = (byte)((segment.Attributes >> 15) & 1),
            Unusable = segment.Present ? (byte)0 : (byte)1,
        };

    private static Segment FromKvm(in Kvm.Segment segment) =>
        new(
            segment.Selector,
            segment.Base,
            segment.Limit,
            segment.Unusable != 0
                ? (ushort)0
                : (ushort)(
                    segment.Type
                    | (segment.S << 4)
                    | (segment.Dpl << 5)
                    | (segment.Present << 7)
                    | (segment.Avl << 12)
                    | (segment.L << 13)
                    | (segment.Db << 14)
                    | (segment.G << 15)
                )
        );

    // FXSAVE64's layout: Intel SDM vol. 1, table 10-2. Without MXCSR_MASK, which is no state but a property of the CPU.
    private static void CopyFxsave(byte* from, byte* to)
    {
        const int mask = 28;
        const int registers = 32;
        const int end = 416;
        NativeMemory.Copy(from, to, mask);
        NativeMemory.Copy(from + registers, to + registers, end - registers);
    }
}
