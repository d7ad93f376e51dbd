using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Execution;

namespace VirtBench.Strategies.Simulation;

/// <summary>
/// Flags, exits, and the sensitive instructions that ring 3 executes without a trap: they answer with the simulated
/// host's values, not with the guest's.
/// </summary>
internal static unsafe class SystemHandlers
{
    // What POPF can change in ring 3 with IOPL 0: IF and IOPL stay, silently (SDM vol. 2B, POPF, table 4-16).
    private const ulong PopfWritable = Rflags.Arithmetic | Rflags.Tf | Rflags.Df | Rflags.Nt | Rflags.Ac | Rflags.Id;

    public static Op* Nop(Machine* m, Op* op) => op + 1;

    /// <summary>CLFLUSH: nothing to flush, but the address must be readable.</summary>
    public static Op* Touch(Machine* m, Op* op) =>
        Operand.ForRead(m, Operand.Address(m, op), 1) is null ? SlowPath.Fault(m, op) : op + 1;

    /// <summary>PUSH FS and PUSH GS with 64-bit operands: the selector is zero-extended.</summary>
    public static Op* PushSegment(Machine* m, Op* op)
    {
        ulong sp = m->Gpr[Gpr.Rsp] - 8;
        if (!Operand.Store<ulong>(m, sp, Operand.Reg<ushort>(m, op->A)))
        {
            return SlowPath.Fault(m, op);
        }

        m->Gpr[Gpr.Rsp] = sp;
        return op + 1;
    }

    public static Op* Clc(Machine* m, Op* op)
    {
        m->SetCarryAndOverflow(0, m->Of ? 1UL : 0UL);
        return op + 1;
    }

    public static Op* Stc(Machine* m, Op* op)
    {
        m->SetCarryAndOverflow(1, m->Of ? 1UL : 0UL);
        return op + 1;
    }

    public static Op* Cmc(Machine* m, Op* op)
    {
        m->SetCarryAndOverflow(m->CarryIn ^ 1, m->Of ? 1UL : 0UL);
        return op + 1;
    }

    public static Op* Cld(Machine* m, Op* op)
    {
        m->OtherFlags &= ~Rflags.Df;
        return op + 1;
    }

    public static Op* Std(Machine* m, Op* op)
    {
        m->OtherFlags |= Rflags.Df;
        return op + 1;
    }

    public static Op* Lahf(Machine* m, Op* op)
    {
        ((byte*)m)[1] = (byte)(m->ArithmeticFlags | Rflags.AlwaysSet);
        return op + 1;
    }

    public static Op* Sahf(Machine* m, Op* op)
    {
        m->ArithmeticFlags = (m->ArithmeticFlags & Rflags.Of) | (((byte*)m)[1] & (Rflags.Arithmetic & 0xFF));
        return op + 1;
    }

    /// <summary>PUSHF shows the host's ring 3: IF set, IOPL 0, whatever the guest's virtual flags are; RF and VM read 0.</summary>
    public static Op* Pushf<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        ulong flags =
            (m->OtherFlags & (Rflags.Tf | Rflags.Df | Rflags.Nt | Rflags.Ac | Rflags.Id))
            | m->ArithmeticFlags
            | Rflags.AlwaysSet
            | Rflags.If;
        ulong sp = m->Gpr[Gpr.Rsp] - (ulong)sizeof(T);
        if (!Operand.Store<T>(m, sp, flags))
        {
            return SlowPath.Fault(m, op);
        }

        m->Gpr[Gpr.Rsp] = sp;
        return op + 1;
    }

    public static Op* Popf<T>(Machine* m, Op* op)
        where T : unmanaged
    {
        ulong sp = m->Gpr[Gpr.Rsp];
        byte* p = Operand.ForRead(m, sp, sizeof(T));
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        ulong value = Operand.Get<T>(p);
        bool stepped = (m->OtherFlags & Rflags.Tf) != 0;
        ulong writable = PopfWritable & (sizeof(T) == 2 ? 0xFFFFUL : ulong.MaxValue) & ~Rflags.Arithmetic;
        m->OtherFlags = (m->OtherFlags & ~(writable | Rflags.Rf)) | (value & writable);
        m->ArithmeticFlags = value;
        m->Gpr[Gpr.Rsp] = sp + (ulong)sizeof(T);
        return !stepped && (m->OtherFlags & Rflags.Tf) != 0 ? SlowPath.Restart(m, op) : op + 1;
    }

    /// <summary>OUT: an exit like any privileged instruction, but the measurement ports cost nothing.</summary>
    public static Op* Out(Machine* m, Op* op)
    {
        ushort port = op->Immediate == ulong.MaxValue ? (ushort)m->Gpr[Gpr.Rdx] : (ushort)op->Immediate;
        m->Exit.FreeMarker = (byte)(port - MeasurementPorts.Begin < 12 && port >= MeasurementPorts.Begin ? 1 : 0);
        return SlowPath.Privileged(m, op);
    }

    /// <summary>SYSCALL: RIP behind it; the core does the rest.</summary>
    public static Op* Syscall(Machine* m, Op* op) => LeaveBehind(m, op, VmExitReason.SystemCall);

    /// <summary>VMCALL as the gate of the paravirtual interface, likewise.</summary>
    public static Op* Vmcall(Machine* m, Op* op) => LeaveBehind(m, op, VmExitReason.Hypercall);

    private static Op* LeaveBehind(Machine* m, Op* op, VmExitReason reason)
    {
        m->Exit.Reason = (byte)reason;
        m->Rip = op->NextRip;
        m->Cycles += op->Before;
        return null;
    }

    public static Op* Rdtsc(Machine* m, Op* op)
    {
        ulong tsc = m->Cycles + op->Before + m->TscOffset;
        m->Gpr[Gpr.Rax] = (uint)tsc;
        m->Gpr[Gpr.Rdx] = tsc >> 32;
        return op + 1;
    }

    public static Op* Rdtscp(Machine* m, Op* op)
    {
        m->Gpr[Gpr.Rcx] = (uint)m->TscAux;
        return Rdtsc(m, op);
    }

    public static Op* Cpuid(Machine* m, Op* op)
    {
        CpuidResult result = HostCpuid.Query((uint)m->Gpr[Gpr.Rax]);
        m->Gpr[Gpr.Rax] = result.Eax;
        m->Gpr[Gpr.Rbx] = result.Ebx;
        m->Gpr[Gpr.Rcx] = result.Ecx;
        m->Gpr[Gpr.Rdx] = result.Edx;
        return op + 1;
    }

    /// <summary>SGDT and SIDT: B is the offset of the base in the machine, Immediate the offset of the limit.</summary>
    public static Op* StoreTable(Machine* m, Op* op)
    {
        byte* p = Operand.ForWrite(m, Operand.Address(m, op), 10);
        if (p is null)
        {
            return SlowPath.Fault(m, op);
        }

        *(ushort*)p = *(ushort*)((byte*)m + op->Immediate);
        *(ulong*)(p + 2) = *(ulong*)((byte*)m + op->B);
        Operand.Commit(m, p);
        return op + 1;
    }

    /// <summary>MOV Sreg, r: B is the offset of the host selector that is replaced.</summary>
    public static Op* LoadSegmentR(Machine* m, Op* op) => LoadSegment(m, op, (ushort)Operand.Reg<ushort>(m, op->A), 0);

    /// <inheritdoc cref="LoadSegmentR"/>
    public static Op* LoadSegmentM(Machine* m, Op* op)
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), 2);
        return p is null ? SlowPath.Fault(m, op) : LoadSegment(m, op, *(ushort*)p, 0);
    }

    /// <summary>POP FS and POP GS; Immediate is the operand's size.</summary>
    public static Op* PopSegment(Machine* m, Op* op)
    {
        byte* p = Operand.ForRead(m, m->Gpr[Gpr.Rsp], (int)op->Immediate);
        return p is null ? SlowPath.Fault(m, op) : LoadSegment(m, op, *(ushort*)p, op->Immediate);
    }

    // Ring 3 may load null (not into SS) and the host's user segments; anything else is #GP, which the core answers.
    private static Op* LoadSegment(Machine* m, Op* op, ushort selector, ulong popped)
    {
        bool stack = op->B == HostOffset(nameof(HostSelectors.Ss));
        bool loads =
            selector == HostSegments.UserData
            || (!stack && (selector < 4 || selector == HostSegments.UserCode || selector == HostSegments.UserCode32));
        if (!loads)
        {
            return SlowPath.Privileged(m, op);
        }

        *(ushort*)((byte*)m + op->B) = selector;
        if (op->B == HostOffset(nameof(HostSelectors.Fs)))
        {
            m->FsBase = 0;
        }
        else if (op->B == HostOffset(nameof(HostSelectors.Gs)))
        {
            m->GsBase = 0;
        }

        m->Gpr[Gpr.Rsp] += popped;
        return op + 1;
    }

    public static ushort HostOffset(string field) =>
        (ushort)(704 + System.Runtime.InteropServices.Marshal.OffsetOf<HostSelectors>(field));

    public static Op* VerrR(Machine* m, Op* op) => Verify(m, op, (ushort)Operand.Reg<ushort>(m, op->A));

    public static Op* VerrM(Machine* m, Op* op)
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), 2);
        return p is null ? SlowPath.Fault(m, op) : Verify(m, op, *(ushort*)p);
    }

    // Immediate: 1 for VERW
    private static Op* Verify(Machine* m, Op* op, ushort selector)
    {
        bool ok =
            HostSegments.Rights(selector) != 0
            && (op->Immediate == 0 || (selector & ~3) == (HostSegments.UserData & ~3));
        m->ZeroResult = ok ? 0UL : 1UL;
        return op + 1;
    }

    public static Op* LarR(Machine* m, Op* op) => LoadRights(m, op, (ushort)Operand.Reg<ushort>(m, op->B));

    public static Op* LarM(Machine* m, Op* op)
    {
        byte* p = Operand.ForRead(m, Operand.Address(m, op), 2);
        return p is null ? SlowPath.Fault(m, op) : LoadRights(m, op, *(ushort*)p);
    }

    // Immediate: operand size, and 256 for LSL
    private static Op* LoadRights(Machine* m, Op* op, ushort selector)
    {
        uint rights = HostSegments.Rights(selector);
        m->ZeroResult = rights != 0 ? 0UL : 1UL;
        if (rights != 0)
        {
            uint value = (op->Immediate & 256) != 0 ? uint.MaxValue : rights;
            if ((op->Immediate & 255) == 2)
            {
                Operand.SetReg<ushort>(m, op->A, value);
            }
            else
            {
                Operand.SetReg<uint>(m, op->A, value);
            }
        }

        return op + 1;
    }
}

/// <summary>The simulated host's user-mode selectors and their descriptors: those of Linux on x86-64.</summary>
internal static class HostSegments
{
    public const ushort UserCode32 = 0x23;
    public const ushort UserData = 0x2B;
    public const ushort UserCode = 0x33;

    /// <summary>Access rights as LAR returns them; 0 for a selector that ring 3 may not use.</summary>
    public static uint Rights(ushort selector) =>
        (selector | 3) switch
        {
            UserCode32 => 0x00CF_FB00,
            UserData => 0x00CF_F300,
            UserCode => 0x00AF_FB00,
            _ => 0,
        };
}
