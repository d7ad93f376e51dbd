namespace VirtBench.Vmm.Paravirtual;

/// <summary>
/// The hypercalls: <c>call hypercall_page + 32 · number</c>. Arguments in RDI, RSI, RDX and R10, the result in RAX (negative
/// <see cref="HypercallError"/> on failure); RCX, R11 and the arithmetic flags are clobbered, as by SYSCALL.
/// </summary>
public enum HypercallNumber
{
    /// <summary>Result: a bit for every hypercall number that there is.</summary>
    Features,

    /// <summary>Set the page-table base. RDI: what MOV to CR3 takes.</summary>
    SetPageTableBase,

    /// <summary>
    /// Change page-table entries and drop what was derived from them. RDI: guest-physical address of
    /// <see cref="PageTableUpdate"/> records, RSI: how many, at most <see cref="Hypercalls.MaximumBatch"/>. Result: how many were done.
    /// </summary>
    UpdatePageTables,

    /// <summary>Flush the TLB. RDI: a linear address whose page is dropped, or all ones for everything.</summary>
    Flush,

    /// <summary>
    /// Several hypercalls at once. RDI: guest-physical address of <see cref="MulticallEntry"/> records, RSI: how many, at most
    /// <see cref="Hypercalls.MaximumBatch"/>. Result: 0; each record's result lies in it.
    /// </summary>
    Multicall,

    /// <summary>
    /// Sleep until an interrupt has been delivered: opens mask and RFLAGS.IF first, as STI and HLT do, and leaves the mask set. Returns
    /// at once when a line is pending in <see cref="SharedInformation.DirectLines"/>.
    /// </summary>
    Block,

    /// <summary>
    /// One interrupt on line 0 when the paravirtual clock's system time reaches RDI nanoseconds; 0 for none any more. What was set
    /// before is forgotten.
    /// </summary>
    SetTimer,

    /// <summary>End the interrupt of line RDI at both interrupt controllers.</summary>
    EndOfInterrupt,

    /// <summary>
    /// IRETQ with a new mask: on the stack above the return address, which is dropped, the new value of
    /// <see cref="SharedInformation.InterruptMask"/>, then RIP, CS, RFLAGS, RSP and SS. Keeps every register; does not return. Needs room for three
    /// quadwords below.
    /// </summary>
    InterruptReturn,

    /// <summary>Write to the console. RDI: guest-physical address, RSI: bytes, at most one page. Result: bytes written.</summary>
    ConsoleWrite,

    /// <summary>Let waiting interrupts be delivered, and another VM run.</summary>
    Yield,
}

/// <summary>
/// Errors of hypercalls, with the numbers of Linux (include/uapi/asm-generic/errno-base.h, errno.h); RAX holds their negatives.
/// </summary>
public static class HypercallError
{
    /// <summary>EPERM: not from ring 3.</summary>
    public const int NotPermitted = 1;

    /// <summary>E2BIG: more than fits into one hypercall.</summary>
    public const int TooBig = 7;

    /// <summary>EFAULT: an address that is not RAM.</summary>
    public const int BadAddress = 14;

    /// <summary>EINVAL: an argument that makes no sense.</summary>
    public const int Invalid = 22;

    /// <summary>ENOSYS: there is no such hypercall.</summary>
    public const int Unknown = 38;
}
