using Iced.Intel;
using VirtBench.Vmm.Disks;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// Drives virtio-blk over virtio-mmio (virtio 1.2, sections 2.7, 4.2 and 5.2): one split queue of 32 descriptors, each of which is a request by
/// an indirect table, so that tags are descriptors. With the event index a batch takes one notification, and an interrupt comes only while
/// the driver sleeps for it.
/// </summary>
/// <remarks>
/// Requests are submitted to the descriptors in turns; ring entry i is descriptor i for good. The driver follows the used ring by itself, in
/// <see cref="DiskDriver.Wait"/> as well as in its service routine, and wants an interrupt for the next completion from the moment at which it goes
/// to sleep until it has looked.
/// </remarks>
internal sealed class VirtioBlockDriver(GuestAssembler assembler, ulong memory, ulong pageDirectoryPointers)
    : DiskDriver(assembler, memory)
{
    private const uint Registers = 0xD000_0000;
    private const int QueueSize = 32;
    private const int TableSize = 64; // of an indirect table of three descriptors, of 48 bytes

    // Offsets in the driver's memory.
    private const ulong SubmittedOffset = 0x00; // available index, as far as submitted
    private const ulong PublishedOffset = 0x02; // the same, as far as the device knows
    private const ulong LastUsedOffset = 0x04;
    private const ulong InFlightOffset = 0x40; // a byte for each tag
    private const ulong DescriptorsOffset = 0x1000;
    private const ulong AvailableOffset = 0x1400;
    private const ulong UsedOffset = 0x1800;
    private const ulong HeadersOffset = 0x2000;
    private const ulong StatusOffset = 0x2400; // a byte for each tag
    private const ulong TablesOffset = 0x2800;
    private const ulong PageDirectoryOffset = 0x3000;

    // Device status (section 2.1): as the driver goes on.
    private const uint Acknowledged = 1;
    private const uint Driver = 2;

    private const byte NoStatus = 0xFF; // what the device does not write

    private AssemblerMemoryOperand Submitted => __word_ptr[Memory + SubmittedOffset];

    private AssemblerMemoryOperand Published => __word_ptr[Memory + PublishedOffset];

    private AssemblerMemoryOperand LastUsed => __word_ptr[Memory + LastUsedOffset];

    private AssemblerMemoryOperand AvailableIndex => __word_ptr[Memory + AvailableOffset + 2];

    // Behind the elements of either ring: the index at which the other side wants to hear.
    private AssemblerMemoryOperand UsedEvent =>
        __word_ptr[Memory + AvailableOffset + VirtioLayout.RingHeader + (2 * QueueSize)];

    private AssemblerMemoryOperand UsedIndex => __word_ptr[Memory + UsedOffset + 2];

    private AssemblerMemoryOperand AvailableEvent =>
        __word_ptr[Memory + UsedOffset + VirtioLayout.RingHeader + (VirtioLayout.UsedElementSize * QueueSize)];

    /// <inheritdoc/>
    public override int Line => 11;

    /// <inheritdoc/>
    public override int QueueDepth => QueueSize;

    /// <inheritdoc/>
    protected override void EmitRoutines()
    {
        Label collect = A.CreateLabel();
        Label failed = Failure("the virtio device reports an error");
        EmitInitialize();
        EmitSubmit();
        EmitNotify();
        EmitCollect(collect, failed);
        EmitWait(collect);
        EmitService(collect, Failure("the virtio device needs a reset"));
    }

    // ------------------------------------------------------------------------------------------------ initialization

    private void EmitInitialize()
    {
        Label absent = A.CreateLabel();
        Label unsuitable = Failure("the virtio device lacks version 1, indirect descriptors or the event index");
        A.Label(ref Initialize);
        EmitMapping();
        A.mov(r8d, Registers);
        foreach (
            (int register, uint value) in ((int, uint)[])
                [
                    (VirtioLayout.MagicValue, VirtioLayout.Magic),
                    (VirtioLayout.Version, 2),
                    (VirtioLayout.DeviceId, VirtioLayout.BlockDevice),
                ]
        )
        {
            A.mov(eax, __dword_ptr[r8 + register]);
            A.cmp(eax, (int)value);
            A.jne(absent);
        }

        Write(VirtioLayout.Status, 0);
        Write(VirtioLayout.Status, Acknowledged);
        Write(VirtioLayout.Status, Acknowledged | Driver);
        EmitNegotiation(unsuitable);
        EmitRings();

        Write(VirtioLayout.QueueSelect, 0);
        A.mov(eax, __dword_ptr[r8 + VirtioLayout.QueueSizeMaximum]);
        A.cmp(eax, QueueSize);
        A.jb(unsuitable);
        Write(VirtioLayout.QueueSize, QueueSize);
        Write(VirtioLayout.DescriptorsLow, (uint)(Memory + DescriptorsOffset));
        Write(VirtioLayout.DescriptorsHigh, 0);
        Write(VirtioLayout.AvailableLow, (uint)(Memory + AvailableOffset));
        Write(VirtioLayout.AvailableHigh, 0);
        Write(VirtioLayout.UsedLow, (uint)(Memory + UsedOffset));
        Write(VirtioLayout.UsedHigh, 0);
        Write(VirtioLayout.QueueReady, 1);
        Write(VirtioLayout.Status, Acknowledged | Driver | VirtioLayout.StatusFeaturesOk | VirtioLayout.StatusDriverOk);

        A.mov(edx, __dword_ptr[r8 + VirtioLayout.Configuration + 4]);
        A.mov(eax, __dword_ptr[r8 + VirtioLayout.Configuration]);
        A.shl(rdx, 32);
        A.or(rax, rdx);
        A.ret();

        A.Label(ref absent);
        A.xor(eax, eax);
        A.ret();
    }

    // The registers lie behind the first GiB: a large page of the fourth, not cached. What was not present needs no flush.
    private void EmitMapping()
    {
        const ulong gibibyte = 1 << 30;
        const ulong largePage = 2 << 20;
        const ulong notCached = 0x18; // PCD, PWT
        ulong directory = Memory + PageDirectoryOffset;
        A.mov(eax, (uint)(Registers | Pte.Present | Pte.Writable | Pte.Large | notCached));
        A.mov(__qword_ptr[directory + (Registers % gibibyte / largePage * 8)], rax);
        A.mov(eax, (uint)(directory | Pte.Present | Pte.Writable));
        A.mov(__qword_ptr[pageDirectoryPointers + (Registers / gibibyte * 8)], rax);
    }

    private void EmitNegotiation(Label unsuitable)
    {
        const uint wanted = (uint)(VirtioLayout.FeatureIndirect | VirtioLayout.FeatureEventIndex);
        const uint version = (uint)(VirtioLayout.FeatureVersion1 >> 32);
        Write(VirtioLayout.DeviceFeaturesSelect, 1);
        A.mov(eax, __dword_ptr[r8 + VirtioLayout.DeviceFeatures]);
        A.test(al, (sbyte)version);
        A.je(unsuitable);
        Write(VirtioLayout.DriverFeaturesSelect, 1);
        Write(VirtioLayout.DriverFeatures, version);

        Write(VirtioLayout.DeviceFeaturesSelect, 0);
        A.mov(ecx, __dword_ptr[r8 + VirtioLayout.DeviceFeatures]);
        A.mov(eax, ecx);
        A.and(eax, (int)wanted);
        A.cmp(eax, (int)wanted);
        A.jne(unsuitable);
        Write(VirtioLayout.DriverFeaturesSelect, 0);
        A.and(ecx, (int)(wanted | (uint)VirtioLayout.FeatureFlush));
        A.mov(__dword_ptr[r8 + VirtioLayout.DriverFeatures], ecx);

        Write(VirtioLayout.Status, Acknowledged | Driver | VirtioLayout.StatusFeaturesOk);
        A.mov(eax, __dword_ptr[r8 + VirtioLayout.Status]);
        A.test(al, (sbyte)VirtioLayout.StatusFeaturesOk);
        A.je(unsuitable);
    }

    // All that does not change from request to request.
    private void EmitRings()
    {
        Label next = A.CreateLabel();
        A.xor(ecx, ecx);
        A.Label(ref next);
        A.mov(eax, ecx);
        A.shl(eax, 6); // 64 bytes, the distance of the tables
        A.mov(r9d, ecx);
        A.shl(r9d, 4); // 16: of descriptors and headers

        // The ring entry, and the descriptor that is the request.
        A.mov(__word_ptr[(rcx * 2) + (long)(Memory + AvailableOffset + VirtioLayout.RingHeader)], cx);
        A.lea(edx, __[rax + (long)(Memory + TablesOffset)]);
        A.mov(__qword_ptr[r9 + (long)(Memory + DescriptorsOffset)], rdx);
        A.mov(__dword_ptr[r9 + (long)(Memory + DescriptorsOffset + 8)], 3 * VirtioLayout.DescriptorSize);
        A.mov(__dword_ptr[r9 + (long)(Memory + DescriptorsOffset + 12)], VirtioLayout.DescriptorIndirect);

        // Its table: header, data, status.
        A.lea(r10d, __[r9 + (long)(Memory + HeadersOffset)]);
        A.mov(__qword_ptr[rdx], r10);
        A.mov(__dword_ptr[rdx + 8], VirtioLayout.RequestHeader);
        A.mov(__word_ptr[rdx + 12], VirtioLayout.DescriptorNext);
        A.lea(r10d, __[rcx + (long)(Memory + StatusOffset)]);
        A.mov(__qword_ptr[rdx + 32], r10);
        A.mov(__dword_ptr[rdx + 40], 1);
        A.mov(__dword_ptr[rdx + 44], VirtioLayout.DescriptorWrite);
        A.inc(ecx);
        A.cmp(ecx, QueueSize);
        A.jne(next);
        A.mov(UsedEvent, ushort.MaxValue); // behind the index: no interrupt for now
    }

    // Clobbers eax; r8 is the registers' address.
    private void Write(int register, uint value)
    {
        A.mov(eax, value);
        A.mov(__dword_ptr[r8 + register], eax);
    }

    // ------------------------------------------------------------------------------------------------ requests

    private void EmitSubmit()
    {
        Label free = A.CreateLabel();
        Label withData = A.CreateLabel();
        A.Label(ref Submit);
        A.movzx(eax, Submitted);
        A.and(eax, QueueSize - 1);
        A.cmp(__byte_ptr[rax + (long)(Memory + InFlightOffset)], 0);
        A.je(free);

        // The device may not know of it yet.
        foreach (AssemblerRegister64 register in (AssemblerRegister64[])[rdi, rsi, rdx, rcx, rax])
        {
            A.push(register);
        }

        A.call(Notify);
        A.mov(edi, __dword_ptr[rsp]);
        A.call(Wait);
        foreach (AssemblerRegister64 register in (AssemblerRegister64[])[rax, rcx, rdx, rsi, rdi])
        {
            A.pop(register);
        }

        A.Label(ref free);
        A.mov(__byte_ptr[rax + (long)(Memory + InFlightOffset)], 1);
        A.mov(__byte_ptr[rax + (long)(Memory + StatusOffset)], NoStatus);
        A.mov(r8d, eax);
        A.shl(r8d, 4);
        A.mov(__dword_ptr[r8 + (long)(Memory + HeadersOffset)], ecx);
        A.mov(__qword_ptr[r8 + (long)(Memory + HeadersOffset + 8)], rdi);

        A.shl(r8d, 2);
        A.add(r8, (int)(Memory + TablesOffset));
        A.mov(__qword_ptr[r8 + 16], rsi);
        A.mov(__dword_ptr[r8 + 24], edx);
        A.mov(r9d, (uint)(VirtioLayout.DescriptorNext | VirtioLayout.DescriptorWrite | (2 << 16)));
        A.mov(r10d, (uint)(VirtioLayout.DescriptorNext | (2 << 16)));
        A.test(ecx, ecx);
        A.cmovne(r9d, r10d); // read by the device
        A.mov(__dword_ptr[r8 + 28], r9d);
        A.mov(r9d, 1);
        A.mov(r10d, 2);
        A.test(edx, edx);
        A.cmove(r9d, r10d); // no data: from the header to the status
        A.mov(__word_ptr[r8 + 14], r9w);
        A.inc(Submitted);
        A.ret();
    }

    private void EmitNotify()
    {
        Label nothing = A.CreateLabel();
        A.Label(ref Notify);
        A.movzx(eax, Submitted);
        A.movzx(ecx, Published);
        A.cmp(eax, ecx);
        A.je(nothing);
        A.mov(Published, ax);
        A.mov(edx, eax);
        A.xchg(AvailableIndex, dx); // a full barrier: the index first, then the look at what the device waits for

        // vring_need_event (section 2.7.10.1): (new − event − 1) < (new − old), modulo 65536.
        A.movzx(edx, AvailableEvent);
        A.not(edx);
        A.add(edx, eax);
        A.movzx(edx, dx);
        A.sub(eax, ecx);
        A.movzx(eax, ax);
        A.cmp(edx, eax);
        A.jae(nothing);
        A.mov(edx, Registers);
        A.xor(eax, eax);
        A.mov(__dword_ptr[rdx + VirtioLayout.QueueNotify], eax);
        A.Label(ref nothing);
        A.ret();
    }

    // Takes what the device has given back, and wants no interrupt for more. Clobbers rax, rcx and rdx only.
    private void EmitCollect(Label collect, Label failed)
    {
        Label none = A.CreateLabel();
        A.Label(ref collect);
        A.movzx(eax, LastUsed);
        A.cmp(ax, UsedIndex);
        A.je(none);
        A.and(eax, QueueSize - 1);
        A.mov(edx, __dword_ptr[(rax * 8) + (long)(Memory + UsedOffset + VirtioLayout.RingHeader)]);
        A.cmp(edx, QueueSize);
        A.jae(failed);
        A.cmp(__byte_ptr[rdx + (long)(Memory + StatusOffset)], VirtioLayout.StatusOk);
        A.jne(failed);
        A.mov(__byte_ptr[rdx + (long)(Memory + InFlightOffset)], 0);
        A.inc(LastUsed);
        A.jmp(collect);
        A.Label(ref none);
        A.dec(eax);
        A.mov(UsedEvent, ax);
        A.ret();
    }

    private void EmitWait(Label collect)
    {
        Label look = A.CreateLabel();
        Label over = A.CreateLabel();
        Label poll = A.CreateLabel();
        A.Label(ref Wait);
        A.mov(edi, edi);
        A.Label(ref look);
        A.call(collect);
        A.cmp(__byte_ptr[rdi + (long)(Memory + InFlightOffset)], 0);
        A.je(over);
        A.movzx(eax, LastUsed);
        A.mov(ecx, eax);
        A.xchg(UsedEvent, ax); // a full barrier: the wish first, then another look
        A.cmp(cx, UsedIndex);
        A.jne(look);
        A.WaitForInterrupt();
        A.jmp(look);
        A.Label(ref over);
        A.ret();

        A.Label(ref Poll);
        A.mov(edi, edi);
        A.Label(ref poll);
        A.call(collect);
        A.cmp(__byte_ptr[rdi + (long)(Memory + InFlightOffset)], 0);
        A.jne(poll);
        A.ret();
    }

    private void EmitService(Label collect, Label needsReset)
    {
        Label nothing = A.CreateLabel();
        Label used = A.CreateLabel();
        A.Label(ref Service);
        A.mov(r8d, Registers);
        A.mov(eax, __dword_ptr[r8 + VirtioLayout.InterruptStatus]);
        A.test(eax, eax);
        A.je(nothing);
        A.mov(__dword_ptr[r8 + VirtioLayout.InterruptAcknowledge], eax);
        A.test(al, (sbyte)VirtioLayout.InterruptConfiguration);
        A.je(used);
        A.mov(eax, __dword_ptr[r8 + VirtioLayout.Status]);
        A.test(al, (sbyte)VirtioLayout.StatusNeedsReset);
        A.jne(needsReset);
        A.Label(ref used);
        A.jmp(collect);
        A.Label(ref nothing);
        A.ret();
    }
}
