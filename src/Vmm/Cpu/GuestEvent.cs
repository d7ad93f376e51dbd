namespace VirtBench.Vmm.Cpu;

/// <summary>Exception vectors (Intel SDM vol. 3A, table 6-1).</summary>
public static class Vector
{
    /// <summary>#DE, divide error.</summary>
    public const byte DivideError = 0;

    /// <summary>#DB, debug.</summary>
    public const byte Debug = 1;

    /// <summary>#BP, breakpoint (INT3).</summary>
    public const byte Breakpoint = 3;

    /// <summary>#OF, overflow.</summary>
    public const byte Overflow = 4;

    /// <summary>#UD, invalid opcode.</summary>
    public const byte InvalidOpcode = 6;

    /// <summary>#NM, device not available.</summary>
    public const byte DeviceNotAvailable = 7;

    /// <summary>#DF, double fault; error code 0.</summary>
    public const byte DoubleFault = 8;

    /// <summary>#TS, invalid TSS; with error code.</summary>
    public const byte InvalidTss = 10;

    /// <summary>#NP, segment not present; with error code.</summary>
    public const byte SegmentNotPresent = 11;

    /// <summary>#SS, stack-segment fault; with error code.</summary>
    public const byte StackFault = 12;

    /// <summary>#GP, general protection; with error code.</summary>
    public const byte GeneralProtection = 13;

    /// <summary>#PF, page fault; with error code.</summary>
    public const byte PageFault = 14;

    /// <summary>#MF, x87 floating-point error.</summary>
    public const byte X87 = 16;

    /// <summary>#AC, alignment check; error code 0.</summary>
    public const byte AlignmentCheck = 17;

    /// <summary>#XM, SIMD floating-point.</summary>
    public const byte Simd = 19;

    /// <summary>The architecture's mnemonic, "#GP" for instance, or the vector's number.</summary>
    public static string Name(byte vector) =>
        vector switch
        {
            DivideError => "#DE",
            Debug => "#DB",
            Breakpoint => "#BP",
            Overflow => "#OF",
            InvalidOpcode => "#UD",
            DeviceNotAvailable => "#NM",
            DoubleFault => "#DF",
            InvalidTss => "#TS",
            SegmentNotPresent => "#NP",
            StackFault => "#SS",
            GeneralProtection => "#GP",
            PageFault => "#PF",
            X87 => "#MF",
            AlignmentCheck => "#AC",
            Simd => "#XM",
            _ => $"vector 0x{vector:X}",
        };

    /// <summary>True when delivery pushes an error code.</summary>
    public static bool HasErrorCode(byte vector) =>
        vector
            is DoubleFault
                or InvalidTss
                or SegmentNotPresent
                or StackFault
                or GeneralProtection
                or PageFault
                or AlignmentCheck;
}

/// <summary>What kind of event is delivered through the guest's IDT.</summary>
public enum GuestEventKind : byte
{
    /// <summary>No event.</summary>
    None,

    /// <summary>A fault or trap raised by the processor.</summary>
    Exception,

    /// <summary>An external interrupt: needs RFLAGS.IF and no interrupt shadow.</summary>
    Interrupt,

    /// <summary>
    /// INT n or INT3: the gate's DPL is checked. RIP still points at the instruction, so that a fault of the delivery finds
    /// it there; the frame gets RIP + <see cref="GuestEvent.InstructionLength"/>.
    /// </summary>
    SoftwareInterrupt,
}

/// <summary>One event to deliver through the guest's IDT.</summary>
/// <param name="Kind">Exception, interrupt or software interrupt.</param>
/// <param name="Number">IDT vector.</param>
/// <param name="ErrorCode">Pushed when <see cref="Vector.HasErrorCode"/> says so and the kind is an exception.</param>
/// <param name="FaultAddress">For #PF: what CR2 becomes when the event is delivered.</param>
/// <param name="InstructionLength">For a software interrupt: bytes of the instruction that RIP points at.</param>
public readonly record struct GuestEvent(
    GuestEventKind Kind,
    byte Number,
    uint ErrorCode = 0,
    ulong FaultAddress = 0,
    byte InstructionLength = 0
)
{
    /// <summary>An exception; the error code counts only for vectors that have one.</summary>
    public static GuestEvent Exception(byte vector, uint errorCode = 0) =>
        new(GuestEventKind.Exception, vector, errorCode);

    /// <summary>A page fault at <paramref name="address"/>.</summary>
    public static GuestEvent PageFault(ulong address, uint errorCode) =>
        new(GuestEventKind.Exception, Vector.PageFault, errorCode, address);

    /// <summary>An external interrupt.</summary>
    public static GuestEvent Interrupt(byte vector) => new(GuestEventKind.Interrupt, vector);

    /// <summary>INT n or INT3 of the given length at RIP.</summary>
    public static GuestEvent SoftwareInterrupt(byte vector, int instructionLength) =>
        new(GuestEventKind.SoftwareInterrupt, vector, InstructionLength: (byte)instructionLength);
}
