using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Execution;

/// <summary>
/// What executes guest code: to a guest what KVM_RUN is to a vCPU. One engine serves one <see cref="VirtualCpu"/> and one
/// <see cref="GuestMemory"/>, given at its creation. Except for <see cref="Kick"/>, members are called by one thread at a
/// time.
/// </summary>
/// <remarks>
/// An engine may serve anything without leaving guest code, as long as the state that the core sees afterwards is what
/// the core's own emulation would have left.
/// </remarks>
public interface IExecutionEngine : IDisposable
{
    /// <summary>What traps under this engine, what does not, and where guests may map memory. Constant for its life.</summary>
    EngineCapabilities Capabilities { get; }

    /// <summary>The time that the guest's TSC and every measurement are taken from.</summary>
    IEngineClock Clock { get; }

    /// <summary>
    /// The calling thread becomes the vCPU thread until <see cref="DetachThread"/>: an engine whose exits are hand-offs
    /// between cores pins it here.
    /// </summary>
    void AttachThread() { }

    /// <summary>Undoes <see cref="AttachThread"/>, on the same thread.</summary>
    void DetachThread() { }

    /// <summary>
    /// VM entry … VM exit. On entry the general registers, RIP and RFLAGS of the CPU block are the guest's; on return
    /// they are again (RFLAGS keeps the core's virtual <see cref="Rflags.Privileged"/> bits). There is no pending event on
    /// entry: the core has delivered or injected it. The interrupt shadow is the core's to keep, unless the engine delivers
    /// events, and holds for an entry only as long as RIP stays.
    /// </summary>
    /// <returns>
    /// Never a reason of which the guest has seen half: every exit leaves the guest between two instructions, but for
    /// <see cref="VmExitReason.PortIo"/> and <see cref="VmExitReason.Mmio"/>, which the next entry or
    /// <see cref="SaveLazyState"/> completes.
    /// </returns>
    VmExit Run();

    /// <summary>
    /// Executes one guest instruction: as <see cref="Run"/>, but comes back with <see cref="VmExitReason.Stepped"/> when the
    /// instruction is done. One that exits does so with its own reason, and then nothing of it has happened. A guest that
    /// single-steps itself (RFLAGS.TF) gets its #DB as an <see cref="VmExitReason.Exception"/> as ever. Not called where
    /// <see cref="EngineCapabilities.DeliversEvents"/> is true.
    /// </summary>
    VmExit Step() => throw new NotSupportedException("this engine leaves the interrupt shadow to the hardware");

    /// <summary>
    /// Clock ticks at which a <see cref="Run"/> comes back with <see cref="VmExitReason.Interrupted"/> though nobody has
    /// kicked it; <see cref="ulong.MaxValue"/> for never. Set by the vCPU thread between runs: the next event of a timer. A
    /// computed clock keeps to it as exactly as its engine can look, the host's as soon as a thread can be woken.
    /// </summary>
    ulong Deadline { get; set; }

    /// <summary>
    /// The CPU is halted: waits until <see cref="Deadline"/> or a kick, which it takes as <see cref="Run"/> does. On a
    /// computed clock the time in between passes at once.
    /// </summary>
    void Idle();

    /// <summary>
    /// Whether an external interrupt given to <see cref="Inject"/> now would be delivered at the next entry: RFLAGS.IF is set
    /// and no interrupt shadow holds. Asked only where <see cref="EngineCapabilities.DeliversEvents"/> is true.
    /// </summary>
    bool AcceptsInterrupt => throw new NotSupportedException("this engine leaves events to the core");

    /// <summary>
    /// Makes the next <see cref="Run"/> come back with <see cref="VmExitReason.InterruptWindow"/> as soon as
    /// <see cref="AcceptsInterrupt"/> is true: that is where <see cref="EngineCapabilities.DeliversEvents"/> is true. Where
    /// <see cref="EngineCapabilities.InlinesInterruptFlag"/> is: as soon as RFLAGS.IF is set and no interrupt shadow holds.
    /// Called in these two cases only.
    /// </summary>
    void RequestInterruptWindow() => throw new NotSupportedException("this engine leaves events to the core");

    /// <summary>
    /// From any thread: makes a <see cref="Run"/> that is under way, or else the next one, return soon with
    /// <see cref="VmExitReason.Interrupted"/>. Kicks do not add up. Safe after disposal, when it does nothing.
    /// </summary>
    void Kick();

    /// <summary>
    /// Answers a <see cref="VmExitReason.PageFault"/>: enters one mapping into the shadow page table before the next
    /// <see cref="Run"/>. An engine may map less than the page, as long as it covers the faulting address, but never more
    /// rights than stated.
    /// </summary>
    MapResult Map(in ShadowPage page);

    /// <summary>
    /// Lets the next <see cref="Step"/> write a page that <see cref="Map"/> has answered with <see cref="MapOutcome.Emulate"/>,
    /// because the core has no emulation of the instruction. The engine protects the page again once the step is done, and
    /// drops every mapping that the write has changed. An instruction that reaches into several such pages is stepped again
    /// with each of them.
    /// </summary>
    void AllowInStep(in ShadowPage page) => throw new NotSupportedException("this engine protects no page");

    /// <summary>
    /// CR3 was written, or a bit of CR0, CR4 or EFER that governs paging: mappings derived from the guest's tables are no
    /// longer valid (global ones too: the platform lets an engine drop them).
    /// </summary>
    void SwitchAddressSpace();

    /// <summary>INVLPG: the mapping of the page that holds this linear address is no longer valid.</summary>
    void InvalidatePage(ulong address);

    /// <summary>
    /// Delivers an event at the next entry; an external interrupt only when <see cref="AcceptsInterrupt"/> is true. Called only where <see cref="EngineCapabilities.DeliversEvents"/> is true.
    /// </summary>
    void Inject(in GuestEvent guestEvent) => throw new NotSupportedException("this engine leaves events to the core");

    /// <summary>
    /// Brings state that the engine holds lazily into the CPU: x87, MXCSR and XMM, FS and GS base; where hardware runs the
    /// guest's ring 0, everything but the general registers; after a hypercall those that it neither takes nor gives.
    /// </summary>
    void SaveLazyState();

    /// <summary>The core has changed state that the engine holds lazily: take it from the CPU at the next entry.</summary>
    void LoadLazyState();

    /// <summary>
    /// Reads the counters named by <see cref="EngineCapabilities.KernelStatistics"/>, each counting from the engine's
    /// creation.
    /// </summary>
    /// <param name="values">As long as the list of names.</param>
    void ReadKernelStatistics(Span<ulong> values) { }

    /// <summary>
    /// Writes the instructions by which an entry of the hypercall page leaves the guest with its number in EAX. They may clobber RCX, R11 and
    /// the arithmetic flags, and are started over when the guest was stopped in the middle of them. The engine then comes back with
    /// <see cref="VmExitReason.Hypercall"/>, or lets the core decode an instruction that is VMCALL, as here.
    /// </summary>
    /// <param name="code">Room for <see cref="Paravirtual.HypercallPage.MaximumExitLength"/> bytes.</param>
    /// <param name="end">Linear address behind them, where the guest goes on.</param>
    /// <returns>How many bytes.</returns>
    int EncodeHypercall(Span<byte> code, ulong end)
    {
        ReadOnlySpan<byte> vmcall = [0x0F, 0x01, 0xC1];
        vmcall.CopyTo(code);
        return vmcall.Length;
    }

    /// <summary>Lets whoever keeps a paravirtual clock for the engine, the host's kernel, do so from now on.</summary>
    /// <param name="address">
    /// Guest-physical address of a <see cref="Paravirtual.ParavirtualClock"/>; 0 when a guest is loaded that is not offered the interface, after
    /// one that was.
    /// </param>
    /// <returns>False when nobody does: then the core writes it.</returns>
    bool ProvideParavirtualClock(ulong address) => false;

    /// <summary>The interrupt controllers and the timer, where the host's kernel has them; null where the core has. Constant for its life.</summary>
    Interrupts.IKernelInterrupts? KernelInterrupts => null;

    /// <summary>How interrupts are delivered by the guest's own code; null where they are not. Constant for its life.</summary>
    Interrupts.IInlineInterrupts? InlineInterrupts => null;

    /// <summary>What the engine has translated since its creation; null for one that does not translate.</summary>
    TranslationStatistics? TranslationStatistics => null;

    /// <summary>
    /// Shows every block that is translated from now on to an observer: before the first <see cref="Run"/>, or between two.
    /// </summary>
    /// <param name="observer">Who looks; null for nobody any more.</param>
    /// <returns>False when the engine makes no host code of guest code, so that there is nothing to show.</returns>
    bool ObserveTranslation(ITranslationObserver? observer) => false;
}

/// <summary>Convenience over the contract.</summary>
public static class ExecutionEngineExtensions
{
    /// <summary>Reads the kernel's counters; null where there are none.</summary>
    public static KernelStatistics? KernelStatistics(this IExecutionEngine engine)
    {
        IReadOnlyList<string> names = engine.Capabilities.KernelStatistics;
        if (names.Count == 0)
        {
            return null;
        }

        ulong[] values = new ulong[names.Count];
        engine.ReadKernelStatistics(values);
        return new KernelStatistics(names, values);
    }
}

/// <summary>What an engine has made of a mapping.</summary>
public enum MapOutcome : byte
{
    /// <summary>It is there.</summary>
    Mapped,

    /// <summary>
    /// The page holds page tables of the guest that mappings were derived from: writes to it have to be emulated, by the core
    /// or by <see cref="IExecutionEngine.AllowInStep"/>.
    /// </summary>
    Emulate,

    /// <summary>The same for a page that holds code which the engine has translated: a write makes the translation untrue.</summary>
    EmulateCodeWrite,

    /// <summary>It is there; until now the page was protected because of code translated from it, which has been given up.</summary>
    MappedAfterCodeWrite,

    /// <summary>The engine cannot map this address; <see cref="MapResult.Message"/> says why.</summary>
    Refused,
}

/// <summary>The answer to <see cref="IExecutionEngine.Map"/>.</summary>
/// <param name="Outcome">What became of the mapping.</param>
/// <param name="Message">Refused: one line for the user.</param>
public readonly record struct MapResult(MapOutcome Outcome, string? Message = null)
{
    /// <summary>The mapping is there.</summary>
    public static MapResult Mapped => default;

    /// <summary>Writes have to be emulated.</summary>
    public static MapResult Emulate => new(MapOutcome.Emulate);

    /// <summary>Writes have to be emulated, since the page's code is translated.</summary>
    public static MapResult EmulateCodeWrite => new(MapOutcome.EmulateCodeWrite);

    /// <summary>The mapping is there, and what was translated of the page is not any more.</summary>
    public static MapResult MappedAfterCodeWrite => new(MapOutcome.MappedAfterCodeWrite);

    /// <summary>A guest cannot have this mapping under this engine.</summary>
    public static MapResult Refused(string message) => new(MapOutcome.Refused, message);
}

/// <summary>One mapping that the guest's page tables grant.</summary>
/// <param name="Address">Linear address that faulted.</param>
/// <param name="PageStart">Linear address of the first byte of the guest's page.</param>
/// <param name="PhysicalStart">Guest-physical address of the page's first byte.</param>
/// <param name="Length">Bytes in the guest's page: 4 KiB, 2 MiB or 1 GiB. Part of it may lie outside RAM.</param>
/// <param name="Access">Rights at this moment: Write is left out while the leaf's Dirty bit is clear.</param>
public readonly record struct ShadowPage(
    ulong Address,
    ulong PageStart,
    ulong PhysicalStart,
    ulong Length,
    PageAccess Access
)
{
    /// <summary>
    /// The largest part around <see cref="Address"/>, of the size of a page, whose frames are all present on this host: the
    /// page itself, when all of its RAM is. The frame that holds <see cref="Address"/> is taken to be present.
    /// </summary>
    /// <param name="memory">RAM.</param>
    public ShadowPage PresentPart(GuestMemory memory)
    {
        ShadowPage part = this;
        while (part.Length > GuestMemory.PageSize && !memory.ArePresent(part.PhysicalStart, part.Length))
        {
            ulong length = part.Length >> 9;
            ulong offset = (Address - part.PageStart) & ~(length - 1);
            part = part with
            {
                PageStart = part.PageStart + offset,
                PhysicalStart = part.PhysicalStart + offset,
                Length = length,
            };
        }

        return part;
    }
}
