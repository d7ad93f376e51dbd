namespace VirtBench.Vmm.Execution;

/// <summary>Why an engine came back from guest code: the engine's raw view, which the run loop dispatches on.</summary>
public enum VmExitReason : byte
{
    /// <summary>
    /// <see cref="IExecutionEngine.Kick"/> was called, <see cref="IExecutionEngine.Deadline"/> is over, or the engine wants
    /// pending events looked at. The guest is untouched.
    /// </summary>
    Interrupted,

    /// <summary><see cref="IExecutionEngine.Step"/> has executed its one instruction.</summary>
    Stepped,

    /// <summary>
    /// The guest can take an external interrupt now, as <see cref="IExecutionEngine.RequestInterruptWindow"/> asked to be told.
    /// </summary>
    InterruptWindow,

    /// <summary>
    /// The instruction at RIP faulted for lack of privilege (#GP in the deprivileged ring). RIP points at it; nothing of
    /// it has happened. The core decodes and emulates it, or delivers the #GP if the guest is at fault.
    /// </summary>
    PrivilegedInstruction,

    /// <summary>
    /// The engine has no shadow mapping for <see cref="VmExit.Address"/>. The core walks the guest's tables: a hidden fault
    /// is answered by <see cref="IExecutionEngine.Map"/>, a true one by #PF, an address without RAM by emulation.
    /// </summary>
    PageFault,

    /// <summary>
    /// The guest raised the exception in <see cref="VmExit.Vector"/>, which goes to the guest's own IDT. RIP is what the
    /// hardware reports: at the instruction for a fault, behind it for the traps #DB, #BP and #OF.
    /// </summary>
    Exception,

    /// <summary>SYSCALL was executed; RIP points behind the instruction.</summary>
    SystemCall,

    /// <summary>
    /// IN, OUT, INS or OUTS on port <see cref="VmExit.Address"/>, decoded by the hardware, that the guest may execute. The
    /// core writes the <see cref="VmExit.Count"/> items at <see cref="VmExit.Data"/> to the port, or reads the port into
    /// them; the engine completes the instruction at the next entry. Until then RIP stands at the instruction or behind
    /// it, as the hardware has it.
    /// </summary>
    PortIo,

    /// <summary>
    /// A data access to guest-physical <see cref="VmExit.Address"/>, where there is no RAM: <see cref="VmExit.Size"/> bytes
    /// at <see cref="VmExit.Data"/>, as with <see cref="PortIo"/>.
    /// </summary>
    Mmio,

    /// <summary>
    /// RDMSR or WRMSR of an MSR that the platform does not have, its index in <see cref="VmExit.Address"/>. The engine
    /// raises #GP(0) at the next entry; the core only counts it.
    /// </summary>
    ModelSpecificRegister,

    /// <summary>HLT has been executed; RIP points behind it.</summary>
    Halt,

    /// <summary>
    /// The guest has lowered CR8, so that an interrupt held back by it may be deliverable now. The instruction is done.
    /// </summary>
    TaskPriority,

    /// <summary>
    /// The guest has left by an entry of its hypercall page (<see cref="IExecutionEngine.EncodeHypercall"/>): EAX is the number, RIP
    /// stands behind the exit. Guest ring 3 can do so, too. Of the general registers RAX, RDI, RSI and RSP are the guest's; the others are with the next
    /// <see cref="IExecutionEngine.SaveLazyState"/>, and not the core's to change before that. RCX and R11 are anything's.
    /// </summary>
    Hypercall,

    /// <summary>The guest cannot go on under this engine; <see cref="VmExit.Message"/> says why in one line.</summary>
    Failed,
}

/// <summary>One VM exit. Which fields count depends on the reason; the others are zero.</summary>
/// <param name="Reason">Why the engine came back.</param>
/// <param name="Vector">Exception: its vector.</param>
/// <param name="ErrorCode">Exception or page fault: the hardware's error code where it has one.</param>
/// <param name="Address">Page fault: the linear address. Mmio: the guest-physical one. PortIo: the port. MSR: its index.</param>
/// <param name="Access">
/// Page fault, PortIo, Mmio, MSR: what was attempted. The User bit is not set: the core knows the virtual CPL.
/// </param>
/// <param name="Message">Failed: one line for the user.</param>
/// <param name="Size">PortIo: bytes of one item, 1, 2 or 4. Mmio: bytes, 1 to 8.</param>
/// <param name="Count">PortIo: items, one after the other at <paramref name="Data"/>.</param>
/// <param name="Data">PortIo, Mmio: host address of the bytes to write, or of where the core puts what it read.</param>
public readonly record struct VmExit(
    VmExitReason Reason,
    byte Vector = 0,
    uint ErrorCode = 0,
    ulong Address = 0,
    Memory.PageAccess Access = 0,
    string? Message = null,
    byte Size = 0,
    uint Count = 0,
    nint Data = 0
);
