using System.Text;
using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Devices;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>Which of the disk's two front ends a guest drives. Either works under either guest interface.</summary>
public enum DiskFrontEndKind : byte
{
    /// <summary>The ATA channel, by programmed I/O.</summary>
    Ata,

    /// <summary>virtio-blk.</summary>
    Virtio,
}

/// <summary>What a driver's <see cref="DiskDriver.Submit"/> is asked for, with virtio-blk's numbers (virtio 1.2, section 5.2.6).</summary>
internal enum DiskTransfer
{
    /// <summary>From the disk.</summary>
    Read = 0,

    /// <summary>To the disk.</summary>
    Write = 1,

    /// <summary>What has been written is to outlast a power failure. Takes no data.</summary>
    Flush = 4,
}

/// <summary>
/// A guest's disk driver: machine code, emitted into the guest's program. A driver belongs to one program.
/// </summary>
/// <remarks>
/// The routines are called in ring 0 with interrupts held back, clobber rax, rcx, rdx, rsi, rdi, r8 to r11 and flags, and keep every other
/// register. Buffers and the driver's own memory lie below 2 GiB and are mapped one to one. An error of the disk ends the guest: a line
/// on the console and <see cref="FailedStatus"/>.
/// <code>
/// Initialize                                    rax = capacity in sectors of 512 bytes; 0: there is no such disk
/// Submit      rdi sector, rsi buffer,           eax = tag. A request of the tag before is waited for, if need be: at most
///             edx bytes, ecx DiskTransfer       QueueDepth are in flight
/// Notify                                        tells the device of what has been submitted: once for all of it
/// Wait        edi tag                           sleeps until the request of that tag is over
/// Poll        edi tag                           the same without sleeping, for a kernel that has no interrupts yet
/// Service                                       the line has come: from the interrupt handler, or without an exit
/// </code>
/// </remarks>
internal abstract class DiskDriver
{
    /// <summary>Bytes of memory of its own that a driver takes, from a page boundary; zeros when it is initialized.</summary>
    public const ulong MemoryBytes = 0x4000;

    /// <summary>The guest's exit status after an error of the disk: EIO.</summary>
    public const byte FailedStatus = 5;

    /// <summary>The guest's exit status when there is no disk, and it needs one: ENXIO.</summary>
    public const byte MissingStatus = 6;

    private readonly List<(Label Label, string Text, byte Status)> _failures = [];
    private Label _handler;

    /// <summary>For one program.</summary>
    /// <param name="assembler">Where the program is emitted.</param>
    /// <param name="memory">Guest-physical address of <see cref="MemoryBytes"/> bytes.</param>
    protected DiskDriver(GuestAssembler assembler, ulong memory)
    {
        A = assembler;
        Memory = memory;
        Initialize = assembler.CreateLabel("disk-initialize");
        Submit = assembler.CreateLabel("disk-submit");
        Notify = assembler.CreateLabel("disk-notify");
        Wait = assembler.CreateLabel("disk-wait");
        Poll = assembler.CreateLabel("disk-poll");
        Service = assembler.CreateLabel("disk-service");
        _handler = assembler.CreateLabel("disk-interrupt");
    }

    /// <summary>A driver of this kind.</summary>
    /// <param name="kind">Which front end it drives.</param>
    /// <param name="assembler">Where the program is emitted.</param>
    /// <param name="memory">Guest-physical address of <see cref="MemoryBytes"/> bytes.</param>
    /// <param name="pageDirectoryPointers">Where the guest's page-directory-pointer table for the lowest 512 GiB is: the boot tables' by default.</param>
    public static DiskDriver Create(
        DiskFrontEndKind kind,
        GuestAssembler assembler,
        ulong memory,
        ulong pageDirectoryPointers = BootPageDirectoryPointers
    ) =>
        kind == DiskFrontEndKind.Ata
            ? new AtaDriver(assembler, memory)
            : new VirtioBlockDriver(assembler, memory, pageDirectoryPointers);

    private const ulong BootPageDirectoryPointers = PhysicalLayout.PageTables + 0x1000;

    /// <summary>Where the program is emitted.</summary>
    protected GuestAssembler A { get; }

    /// <summary>Start of its own memory.</summary>
    protected ulong Memory { get; }

    /// <summary>Interrupt line.</summary>
    public abstract int Line { get; }

    /// <summary>Most requests in flight, a power of two.</summary>
    public abstract int QueueDepth { get; }

    /// <summary>See the class.</summary>
    public Label Initialize;

    /// <summary>See the class.</summary>
    public Label Submit;

    /// <summary>See the class.</summary>
    public Label Notify;

    /// <summary>See the class.</summary>
    public Label Wait;

    /// <summary>See the class.</summary>
    public Label Poll;

    /// <summary>See the class.</summary>
    public Label Service;

    /// <summary>The gate of the interrupt handler, at the vector that <see cref="InterruptLines"/> gives the line.</summary>
    public InterruptGate Gate => new(InterruptLines.VectorOf(Line), _handler);

    /// <summary>Emits the routines and the interrupt handler, where nothing runs into them, and takes over the line that comes without an exit.
    /// <see cref="EmitFailures"/> has to follow.</summary>
    public void Emit()
    {
        EmitRoutines();
        EmitHandler();
        A.ServeDirectLine(Line, Service);
    }

    /// <summary>Emits the six routines.</summary>
    protected abstract void EmitRoutines();

    /// <summary>
    /// A place to jump to when something has gone wrong, with interrupts held back: prints the text and ends the guest. Emitted behind
    /// the routines.
    /// </summary>
    protected Label Failure(string text) => Failure(text, FailedStatus);

    private Label Failure(string text, byte status)
    {
        Label label = A.CreateLabel();
        _failures.Add((label, text, status));
        return label;
    }

    /// <summary>A place to jump to when a guest that needs a disk has found none.</summary>
    public Label Missing() => Failure("no disk is attached", MissingStatus);

    private void EmitHandler()
    {
        AssemblerRegister64[] clobbered = [rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11];
        A.Label(ref _handler);
        foreach (AssemblerRegister64 register in clobbered)
        {
            A.push(register);
        }

        A.call(Service);
        A.EndOfInterrupt(Line);
        foreach (AssemblerRegister64 register in Enumerable.Reverse(clobbered))
        {
            A.pop(register);
        }

        A.InterruptReturn();
    }

    /// <summary>Emits what failures jump to: once, behind the last of them, where nothing runs into it.</summary>
    public void EmitFailures()
    {
        for (int i = 0; i < _failures.Count; i++)
        {
            (Label label, string text, byte status) = _failures[i];
            byte[] line = Encoding.ASCII.GetBytes($"disk: {text}\n");
            Label characters = A.CreateLabel();
            A.Label(ref label);
            A.lea(rdi, __[characters]);
            A.mov(esi, line.Length);
            A.ConsoleWrite();
            A.mov(eax, (uint)status);
            A.@out((byte)ExitPort.Port, al);
            A.ud2();
            A.Label(ref characters);
            A.db(line);
        }

        _failures.Clear();
    }
}
