using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// Drives device 0 of the primary ATA channel by programmed I/O and interrupts (ATA/ATAPI-6, clauses 7 to 9): READ MULTIPLE, WRITE MULTIPLE
/// and FLUSH CACHE with 28-bit addresses, so the first 128 GiB, and up to 128 KiB a request. One at a time.
/// </summary>
/// <remarks>
/// <code>
/// a read    six OUT · sleep · for each DRQ block: interrupt, IN of the status, REP INSW
/// a write   six OUT · IN of the status until DRQ · REP OUTSW · sleep · for each further block: interrupt, IN, REP OUTSW; interrupt, IN
/// </code>
/// A DRQ block has as many sectors as the device takes, 16 on this platform: 4 KiB come in one.
/// </remarks>
internal sealed class AtaDriver(GuestAssembler assembler, ulong memory) : DiskDriver(assembler, memory)
{
    // Ports, the primary channel's on a PC.
    private const uint Data = 0x1F0;
    private const uint SectorCount = 0x1F2;
    private const uint Device = 0x1F6;
    private const uint Command = 0x1F7; // status, when read: that takes the interrupt back
    private const uint DeviceControl = 0x3F6;

    private const sbyte Busy = unchecked((sbyte)0x80);
    private const sbyte DataRequest = 0x08;
    private const sbyte FaultOrError = 0x21;
    private const uint DeviceZeroLba = 0xE0; // with the two bits that were fixed in older standards
    private const uint NoInterrupt = 0x02; // nIEN

    private const uint Identify = 0xEC;
    private const uint SetMultiple = 0xC6;
    private const uint ReadMultiple = 0xC4;
    private const uint WriteMultiple = 0xC5;
    private const uint FlushCache = 0xE7;

    // Words of IDENTIFY DEVICE (clause 8.15) that are looked at, in bytes.
    private const ulong MaximumMultiple = 2 * 47;
    private const ulong Capabilities = 2 * 49;
    private const ulong Capacity28 = 2 * 60;
    private const int CapabilityLba = 1 << 9;

    private const int SectorShift = 9;

    private AssemblerMemoryOperand IsBusy => __dword_ptr[Memory];

    private AssemblerMemoryOperand Transfer => __dword_ptr[Memory + 0x04];

    private AssemblerMemoryOperand Left => __dword_ptr[Memory + 0x08]; // bytes not moved yet

    private AssemblerMemoryOperand Block => __dword_ptr[Memory + 0x0C]; // bytes in a DRQ block

    private AssemblerMemoryOperand Buffer => __qword_ptr[Memory + 0x10];

    private ulong Identification => Memory + 0x1000;

    /// <inheritdoc/>
    public override int Line => 14;

    /// <inheritdoc/>
    public override int QueueDepth => 1;

    /// <inheritdoc/>
    protected override void EmitRoutines()
    {
        Label failed = Failure("the ATA device reports an error");
        Label writeBlock = A.CreateLabel();
        EmitInitialize();
        EmitSubmit(failed, writeBlock);
        EmitWait();
        EmitService(failed, writeBlock);
        EmitWriteBlock(writeBlock);
        A.Label(ref Notify);
        A.ret(); // each command has told the device already
    }

    private void EmitInitialize()
    {
        Label absent = A.CreateLabel();
        Label identified = A.CreateLabel();
        Label set = A.CreateLabel();
        Label unsuitable = Failure("the ATA device has no LBA or no READ MULTIPLE");

        A.Label(ref Initialize);
        Out(DeviceControl, NoInterrupt);
        Out(Device, DeviceZeroLba);
        A.mov(edx, Command);
        A.@in(al, dx);
        A.cmp(al, 0xFF); // nothing there, or, where 0, a channel without a device 0
        A.je(absent);
        A.test(al, al);
        A.je(absent);

        A.mov(eax, Identify);
        A.@out(dx, al);
        A.Label(ref identified);
        A.@in(al, dx);
        A.test(al, Busy);
        A.jne(identified);
        A.test(al, DataRequest);
        A.je(absent);
        A.mov(edi, (uint)Identification);
        A.mov(ecx, 256);
        A.mov(edx, Data);
        A.rep.insw();
        A.test(__word_ptr[Identification + Capabilities], CapabilityLba);
        A.je(unsuitable);
        A.movzx(eax, __byte_ptr[Identification + MaximumMultiple]);
        A.test(eax, eax);
        A.je(unsuitable);

        A.mov(ecx, eax);
        A.shl(ecx, SectorShift);
        A.mov(Block, ecx);
        A.mov(edx, SectorCount);
        A.@out(dx, al);
        Out(Command, SetMultiple);
        A.Label(ref set);
        A.@in(al, dx);
        A.test(al, Busy);
        A.jne(set);
        A.test(al, FaultOrError);
        A.jne(unsuitable);

        Out(DeviceControl, 0);
        A.mov(IsBusy, 0);
        A.mov(eax, __dword_ptr[Identification + Capacity28]);
        A.ret();

        A.Label(ref absent);
        A.xor(eax, eax);
        A.ret();
    }

    private void EmitSubmit(Label failed, Label writeBlock)
    {
        Label free = A.CreateLabel();
        Label write = A.CreateLabel();
        Label flush = A.CreateLabel();
        Label ready = A.CreateLabel();

        A.Label(ref Submit);
        A.cmp(IsBusy, 0);
        A.je(free);
        foreach (AssemblerRegister64 argument in (AssemblerRegister64[])[rdi, rsi, rdx, rcx])
        {
            A.push(argument);
        }

        A.call(Wait);
        foreach (AssemblerRegister64 argument in (AssemblerRegister64[])[rcx, rdx, rsi, rdi])
        {
            A.pop(argument);
        }

        A.Label(ref free);
        A.mov(IsBusy, 1);
        A.mov(Transfer, ecx);
        A.mov(Left, edx);
        A.mov(Buffer, rsi);
        A.cmp(ecx, (int)DiskTransfer.Flush);
        A.je(flush);

        // Count, the address's three low bytes, device with its high four bits: ports one after the other.
        A.mov(eax, edx);
        A.shr(eax, SectorShift);
        A.mov(edx, SectorCount);
        A.@out(dx, al);
        A.mov(eax, edi);
        for (int i = 0; i < 3; i++)
        {
            A.inc(edx);
            A.@out(dx, al);
            A.shr(eax, 8);
        }

        A.and(eax, 0x0F);
        A.or(eax, (int)DeviceZeroLba);
        A.inc(edx);
        A.@out(dx, al);
        A.inc(edx);
        A.cmp(ecx, (int)DiskTransfer.Read);
        A.jne(write);
        A.mov(eax, ReadMultiple);
        A.@out(dx, al);
        A.xor(eax, eax);
        A.ret();

        // The first block is asked for without an interrupt (clause 9.6).
        A.Label(ref write);
        A.mov(eax, WriteMultiple);
        A.@out(dx, al);
        A.Label(ref ready);
        A.@in(al, dx);
        A.test(al, Busy);
        A.jne(ready);
        A.test(al, FaultOrError);
        A.jne(failed);
        A.test(al, DataRequest);
        A.je(ready);
        A.call(writeBlock);
        A.xor(eax, eax);
        A.ret();

        A.Label(ref flush);
        Out(Command, FlushCache);
        A.xor(eax, eax);
        A.ret();
    }

    private void EmitWait()
    {
        Label over = A.CreateLabel();
        A.Label(ref Wait);
        A.cmp(IsBusy, 0);
        A.je(over);
        A.WaitForInterrupt();
        A.jmp(Wait);
        A.Label(ref Poll);
        A.cmp(IsBusy, 0);
        A.je(over);
        A.call(Service); // which asks the device
        A.jmp(Poll);
        A.Label(ref over);
        A.ret();
    }

    private void EmitService(Label failed, Label writeBlock)
    {
        Label nothing = A.CreateLabel();
        Label whole = A.CreateLabel();
        Label write = A.CreateLabel();
        Label over = A.CreateLabel();

        A.Label(ref Service);
        A.mov(edx, Command);
        A.@in(al, dx);
        A.cmp(IsBusy, 0);
        A.je(nothing);
        A.test(al, Busy);
        A.jne(nothing);
        A.test(al, FaultOrError);
        A.jne(failed);
        A.cmp(Transfer, (int)DiskTransfer.Write);
        A.je(write);
        A.ja(over);
        A.test(al, DataRequest);
        A.je(nothing);

        A.mov(eax, Left);
        A.cmp(eax, Block);
        A.jbe(whole);
        A.mov(eax, Block);
        A.Label(ref whole);
        A.sub(Left, eax);
        A.mov(ecx, eax);
        A.shr(ecx, 1);
        A.mov(rdi, Buffer);
        A.mov(edx, Data);
        A.rep.insw();
        A.mov(Buffer, rdi);
        A.cmp(Left, 0);
        A.jne(nothing);
        A.Label(ref over);
        A.mov(IsBusy, 0);
        A.Label(ref nothing);
        A.ret();

        A.Label(ref write);
        A.cmp(Left, 0);
        A.je(over);
        A.jmp(writeBlock);
    }

    private void EmitWriteBlock(Label writeBlock)
    {
        Label whole = A.CreateLabel();
        A.Label(ref writeBlock);
        A.mov(eax, Left);
        A.cmp(eax, Block);
        A.jbe(whole);
        A.mov(eax, Block);
        A.Label(ref whole);
        A.sub(Left, eax);
        A.mov(ecx, eax);
        A.shr(ecx, 1);
        A.mov(rsi, Buffer);
        A.mov(edx, Data);
        A.rep.outsw();
        A.mov(Buffer, rsi);
        A.ret();
    }

    // Leaves the port in edx. Clobbers eax.
    private void Out(uint port, uint value)
    {
        A.mov(edx, port);
        A.mov(eax, value);
        A.@out(dx, al);
    }
}
