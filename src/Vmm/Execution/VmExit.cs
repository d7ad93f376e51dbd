namespace VirtBench.Vmm.Execution;

/// <summary>Why an engine came back from guest code: the engine's raw view, which the run loop dispatches on.</summary>
public enum VmExitReason : byte
{
    /// <summary>
    /// <see cref="IExecutionEngine.Kick"/> was called, or the engine wants pending events looked at. The guest is
    /// untouched.
    /// </summary>
    Interrupted,

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

    /// <summary>The guest cannot go on under this engine; <see cref="VmExit.Message"/> says why in one line.</summary>
    Failed,
}

/// <summary>One VM exit. Which fields count depends on the reason; the others are zero.</summary>
/// <param name="Reason">Why the engine came back.</param>
/// <param name="Vector">Exception: its vector.</param>
/// <param name="ErrorCode">Exception or page fault: the hardware's error code where it has one.</param>
/// <param name="Address">Page fault: the linear address.</param>
/// <param name="Access">Page fault: what was attempted. The User bit is not set: the core knows the virtual CPL.</param>
/// <param name="Message">Failed: one line for the user.</param>
public readonly record struct VmExit(
    VmExitReason Reason,
    byte Vector = 0,
    uint ErrorCode = 0,
    ulong Address = 0,
    Memory.PageAccess Access = 0,
    string? Message = null
);
