using System.Buffers.Binary;
using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Disks;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// Reads of a block of 4 KiB from the disk, one after the other: by the ATA driver where the guest is built for the native interface, by virtio-blk
/// where it is built for the paravirtual one. What was read goes into a checksum of its own, in the order of the blocks, which is added to the
/// unit's in the end: the same for both, whenever the data came.
/// </summary>
public abstract class DiskWorkload : SlottedWorkload
{
    /// <summary>
    /// Exits by port accesses that a read by the ATA driver takes where the core emulates them: six registers, the status, REP INSW, and an end
    /// of interrupt at both controllers.
    /// </summary>
    private const int AtaPortAccesses = 10;

    private const ulong Seed = 0x0D15_C0DE;
    private const ulong Capacity = 1 << 20;

    // In DiskArea.State.
    private const ulong Ready = DiskArea.State;
    private const ulong InFlight = DiskArea.State + 0x04; // requests of the batch that have not been looked at
    private const ulong Oldest = DiskArea.State + 0x08; // of them, which is the first
    private const ulong BatchOffset = 0x0C;
    private const ulong Batch = DiskArea.State + BatchOffset; // requests of a batch
    private const ulong Next = DiskArea.State + 0x10; // block
    private const ulong Blocks = DiskArea.State + 0x18; // on the disk
    internal const ulong Checksum = DiskArea.State + 0x20;
    private const ulong Tags = DiskArea.State + 0x100;

    /// <summary>Requests of a unit that are in flight at once, when driver and unit have so many.</summary>
    private protected abstract int Depth { get; }

    /// <summary>Bytes of each block that get into the checksum, from its start.</summary>
    private protected abstract int BytesLookedAt { get; }

    /// <summary>Mean service time of a request in nanoseconds.</summary>
    private protected abstract double ServiceNanoseconds { get; }

    /// <summary>Service times are uniform in mean ± this fraction of it.</summary>
    private protected abstract double Jitter { get; }

    /// <inheritdoc/>
    public sealed override DiskRequirement Disk =>
        new(Capacity, Seed, ServiceNanoseconds, Jitter, DiskArea.MaximumDepth);

    /// <inheritdoc/>
    public sealed override SensitiveOperation Operation(GuestInterface guestInterface) =>
        guestInterface == GuestInterface.Native
            ? new("out ×6; hlt; in; rep insw", TrapReason.PortIo)
            {
                Exits = null,
                Names = ["hlt", "sti", "cli", "iretq"],
            }
            : new("virtio-blk; hypercalls: block, end of interrupt, iret", TrapReason.Mmio) { Exits = null };

    /// <summary>
    /// Predicted for the ATA driver where the core emulates port accesses. KVM takes REP INSW in several exits, and may serve the
    /// interrupt controllers itself; and how often virtio-blk notifies and interrupts is a matter of who is faster.
    /// </summary>
    public sealed override int? ExitsUnder(GuestInterface guestInterface, EngineCapabilities capabilities) =>
        guestInterface == GuestInterface.Native && !capabilities.DeliversEvents ? AtaPortAccesses : null;

    /// <inheritdoc/>
    public sealed override bool NeedsPrivilege => true;

    /// <inheritdoc/>
    public sealed override bool UsesDeviceInterrupts => true;

    private static DiskFrontEndKind FrontEnd(GuestInterface guestInterface) =>
        guestInterface == GuestInterface.Native ? DiskFrontEndKind.Ata : DiskFrontEndKind.Virtio;

    /// <summary>The routine that the units call, first: when called for the first time, it only sets the disk up. Then the driver.</summary>
    internal sealed override IReadOnlyList<InterruptGate> EmitSystemCode(GuestAssembler a)
    {
        var driver = DiskDriver.Create(FrontEnd(a.Interface), a, DiskArea.Driver);
        Label setUp = a.CreateLabel();
        Label submit = a.CreateLabel();
        Label inside = a.CreateLabel();
        Label look = a.CreateLabel();
        a.cmp(__dword_ptr[Ready], 0);
        a.je(setUp);
        a.cmp(__dword_ptr[InFlight], 0);
        a.jne(look);

        a.push(r12);
        a.xor(r12d, r12d);
        a.Label(ref submit);
        EmitBufferAddress(a, r12d);
        a.mov(rdi, __qword_ptr[Next]);
        a.shl(rdi, 3); // sectors of a block
        a.mov(edx, DiskBlock.Bytes);
        a.mov(ecx, (int)DiskTransfer.Read);
        a.call(driver.Submit);
        a.mov(__dword_ptr[(r12 * 4) + (long)Tags], eax);
        a.mov(rax, __qword_ptr[Next]);
        a.inc(rax);
        a.cmp(rax, __qword_ptr[Blocks]);
        a.jb(inside);
        a.xor(eax, eax);
        a.Label(ref inside);
        a.mov(__qword_ptr[Next], rax);
        a.inc(r12d);
        a.cmp(r12d, __dword_ptr[Batch]);
        a.jne(submit);
        a.mov(__dword_ptr[InFlight], r12d);
        a.mov(__dword_ptr[Oldest], 0);
        a.pop(r12);
        a.call(driver.Notify);

        a.Label(ref look);
        a.mov(eax, __dword_ptr[Oldest]);
        a.mov(edi, __dword_ptr[(rax * 4) + (long)Tags]);
        a.call(driver.Wait);
        a.mov(eax, __dword_ptr[Oldest]);
        EmitBufferAddress(a, eax);
        a.mov(r10, __qword_ptr[Checksum]);
        DiskBlock.EmitFold(a, BytesLookedAt);
        a.mov(__qword_ptr[Checksum], r10);
        a.inc(__dword_ptr[Oldest]);
        a.dec(__dword_ptr[InFlight]);
        a.ret();

        a.Label(ref setUp);
        InterruptLines.EmitSetup(a, driver.Line);
        a.call(driver.Initialize);
        a.shr(rax, 3);
        a.je(driver.Missing());
        a.mov(__qword_ptr[Blocks], rax);
        a.mov(__dword_ptr[Ready], 1);
        a.ret();
        driver.Emit();
        driver.EmitFailures();
        return [driver.Gate];
    }

    // rsi: of a buffer by its number. Clobbers flags.
    private static void EmitBufferAddress(GuestAssembler a, AssemblerRegister32 number)
    {
        a.mov(esi, number);
        a.shl(esi, 12);
        a.add(esi, (int)DiskArea.Buffers);
    }

    /// <summary>Clobbers rax, rcx, rdx, rsi, rdi, rbp, r8 to r11 and flags.</summary>
    protected sealed override void EmitSetup(GuestAssembler a)
    {
        LoadOperands(a);
        a.call(rbp);
    }

    /// <summary>Clobbers rbp.</summary>
    protected sealed override void LoadOperands(GuestAssembler a) => a.mov(ebp, (uint)SystemArea.Code);

    /// <summary>Clobbers rax, rcx, rdx, rsi, rdi, r8 to r11 and flags.</summary>
    protected sealed override void EmitSensitive(GuestAssembler a, int index) => a.call(rbp);

    /// <summary>Clobbers flags.</summary>
    protected sealed override void FoldIntoChecksum(GuestAssembler a, bool afterSensitive) =>
        a.add(r14, __qword_ptr[Checksum]);

    /// <inheritdoc/>
    private protected sealed override IEnumerable<ImageSegment> DataSegments(WorkloadOptions options)
    {
        byte[] state = new byte[BatchOffset + sizeof(int)];
        int batch = options.Interface == GuestInterface.Native ? 1 : Math.Clamp(options.TrapsPerUnit, 1, Depth);
        BinaryPrimitives.WriteInt32LittleEndian(state.AsSpan((int)BatchOffset), batch);
        return DiskArea.Segments(state);
    }
}
