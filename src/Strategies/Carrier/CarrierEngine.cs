using System.ComponentModel;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using System.Runtime.Versioning;
using VirtBench.Strategies.Native;
using VirtBench.Strategies.Shadow;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Carrier;

/// <summary>
/// What every engine has that runs its guest in carriers: the carriers themselves, their shadow page tables, the vCPU thread with its kicks
/// and deadlines, the exchange of registers with a signal frame or the control page, and what the signals mean.
/// </summary>
/// <remarks>
/// Between two entries the guest's registers are in one of two places: in a signal's frame, or, after a callout, in the control page and, as
/// regards x87 and SSE, still in the carrier's CPU.
/// </remarks>
[SupportedOSPlatform("linux")]
internal abstract unsafe partial class CarrierEngine : IExecutionEngine, IMemoryWriteObserver
{
    private bool _loadLazyState = true;

    /// <summary>Nothing is started yet.</summary>
    /// <param name="cpu">The CPU.</param>
    /// <param name="memory">Guest RAM.</param>
    /// <param name="capabilities">What to say of the engine; says where guests may map memory.</param>
    /// <param name="carriers">How carriers are set up.</param>
    /// <param name="policy">How the shadow page tables follow the guest's.</param>
    /// <param name="maximumCarriers">Policy cached: how many carriers there may be.</param>
    /// <param name="codeCacheSize">Bytes of a code cache for each carrier; 0 where nothing is translated.</param>
    protected CarrierEngine(
        VirtualCpu cpu,
        GuestMemory memory,
        EngineCapabilities capabilities,
        CarrierOptions carriers,
        ShadowPaging policy,
        int maximumCarriers,
        int codeCacheSize = 0
    )
    {
        Cpu = cpu;
        Memory = memory;
        Space = new GuestAddressSpace(cpu, memory);
        Capabilities = capabilities;
        Pool = new CarrierPool(memory.FileDescriptor, carriers, codeCacheSize);
        ulong lowest = capabilities.LowestAddress;
        ulong limit = capabilities.AddressLimit;
        if (policy == ShadowPaging.Cached)
        {
            Shadow = new CachedShadow(cpu, memory, lowest, limit, SinkOf, maximumCarriers);
            memory.WriteObserver = this;
        }
        else
        {
            Shadow = new FlushedShadow(cpu, memory, lowest, limit, SinkOf);
        }
    }

    /// <inheritdoc/>
    public EngineCapabilities Capabilities { get; }

    /// <inheritdoc/>
    public IEngineClock Clock => HostClock.Instance;

    /// <summary>All carriers.</summary>
    internal CarrierPool Pool { get; }

    /// <summary>The carrier that runs the guest, once it has run; for tests.</summary>
    internal CarrierProcess? Carrier => Pool.Current;

    /// <summary>What is mapped in the carrier that runs the guest; for tests.</summary>
    internal IReadOnlyList<MappedRun> Mapped => Shadow.Current?.All ?? [];

    /// <summary>The shadow page tables.</summary>
    internal ShadowPageTable Shadow { get; }

    /// <summary>The CPU.</summary>
    protected VirtualCpu Cpu { get; }

    /// <summary>Guest RAM.</summary>
    protected GuestMemory Memory { get; }

    /// <summary>The guest's linear addresses.</summary>
    protected GuestAddressSpace Space { get; }

    /// <summary>What ended the engine; null while it can go on.</summary>
    protected VmExit? Failure { get; private set; }

    /// <inheritdoc/>
    public abstract VmExit Run();

    /// <inheritdoc/>
    public abstract VmExit Step();

    /// <inheritdoc/>
    public abstract void AllowInStep(in ShadowPage page);

    /// <inheritdoc/>
    public virtual void RequestInterruptWindow() =>
        throw new NotSupportedException("this engine leaves events to the core");

    /// <inheritdoc/>
    public virtual IInlineInterrupts? InlineInterrupts => null;

    /// <inheritdoc/>
    public virtual bool ObserveTranslation(ITranslationObserver? observer) => false;

    /// <inheritdoc/>
    public virtual TranslationStatistics? TranslationStatistics => null;

    // ------------------------------------------------------------------------------------------------ failure

    /// <summary>The guest cannot go on: this and every later run says so.</summary>
    protected VmExit Fail(Exception e) =>
        Fail(e is CarrierException ? $"{e.Message}; RIP was last seen at 0x{Cpu.Rip:X}" : e.Message);

    /// <inheritdoc cref="Fail(Exception)"/>
    protected VmExit Fail(string message)
    {
        var exit = new VmExit(VmExitReason.Failed, Message: message);
        Failure = exit;
        return exit;
    }

    /// <summary>What the carrier says of an exit makes no sense.</summary>
    protected VmExit Corrupted() =>
        Fail(
            "the guest overwrote the carrier's control memory in the monitor window at "
                + $"0x{CarrierLayout.Window:X}; RIP was last seen at 0x{Cpu.Rip:X}"
        );

    // ------------------------------------------------------------------------------------------------ entry and exit

    /// <summary>
    /// The guest has left by a callout and not been entered by a frame since: general registers and flags are the VMM's to know, x87 and SSE state and FS
    /// and GS base are in the carrier's CPU.
    /// </summary>
    protected bool InCallout { get; set; }

    /// <summary>
    /// Brings the view that the guest runs in next into its carrier. What a callout has left in the CPU of the one before becomes a frame
    /// where the next entry has to lead through one.
    /// </summary>
    /// <param name="byFrame">It has to for reasons of the engine's own.</param>
    /// <returns>False when a kick has come meanwhile, which may have gone to the carrier before.</returns>
    /// <exception cref="CarrierException">The carrier is gone.</exception>
    protected bool SelectCarrier(bool byFrame = false)
    {
        if (_foreignWrites is not null)
        {
            ApplyForeignWrites();
        }

        if (InCallout && (byFrame || _loadLazyState || !Shadow.IsSelected))
        {
            MakeFrame();
        }

        if (Shadow.IsSelected && Pool.Current is not null)
        {
            return true;
        }

        _ = Pool.Select(Shadow.Select());
        return !TakeKick();
    }

    /// <summary>Lets the carrier run the guest until it exits or the deadline is over.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    protected void ResumeAndWait(CarrierProcess carrier)
    {
        Pool.Resume();
        if (Deadline == ulong.MaxValue)
        {
            carrier.WaitForExit();
        }
        else
        {
            WaitUntilDeadline(carrier);
        }
    }

    /// <summary>Puts the guest's general registers into a frame, and whatever else the core has changed.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    protected void StoreRegisters(CarrierProcess carrier, SignalContext* frame)
    {
        if (_loadLazyState)
        {
            StoreLazyState(carrier, frame);
        }

        GuestRegisters* r = Cpu.Registers;
        frame->Rax = r->Gpr[Gpr.Rax];
        frame->Rcx = r->Gpr[Gpr.Rcx];
        frame->Rdx = r->Gpr[Gpr.Rdx];
        frame->Rbx = r->Gpr[Gpr.Rbx];
        frame->Rsp = r->Gpr[Gpr.Rsp];
        frame->Rbp = r->Gpr[Gpr.Rbp];
        frame->Rsi = r->Gpr[Gpr.Rsi];
        frame->Rdi = r->Gpr[Gpr.Rdi];
        frame->R8 = r->Gpr[Gpr.R8];
        frame->R9 = r->Gpr[Gpr.R8 + 1];
        frame->R10 = r->Gpr[Gpr.R8 + 2];
        frame->R11 = r->Gpr[Gpr.R8 + 3];
        frame->R12 = r->Gpr[Gpr.R8 + 4];
        frame->R13 = r->Gpr[Gpr.R8 + 5];
        frame->R14 = r->Gpr[Gpr.R8 + 6];
        frame->R15 = r->Gpr[Gpr.R8 + 7];
    }

    /// <summary>Takes the guest's general registers from a frame.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    protected void TakeRegisters(SignalContext* frame)
    {
        GuestRegisters* r = Cpu.Registers;
        r->Gpr[Gpr.Rax] = frame->Rax;
        r->Gpr[Gpr.Rcx] = frame->Rcx;
        r->Gpr[Gpr.Rdx] = frame->Rdx;
        r->Gpr[Gpr.Rbx] = frame->Rbx;
        r->Gpr[Gpr.Rsp] = frame->Rsp;
        r->Gpr[Gpr.Rbp] = frame->Rbp;
        r->Gpr[Gpr.Rsi] = frame->Rsi;
        r->Gpr[Gpr.Rdi] = frame->Rdi;
        r->Gpr[Gpr.R8] = frame->R8;
        r->Gpr[Gpr.R8 + 1] = frame->R9;
        r->Gpr[Gpr.R8 + 2] = frame->R10;
        r->Gpr[Gpr.R8 + 3] = frame->R11;
        r->Gpr[Gpr.R8 + 4] = frame->R12;
        r->Gpr[Gpr.R8 + 5] = frame->R13;
        r->Gpr[Gpr.R8 + 6] = frame->R14;
        r->Gpr[Gpr.R8 + 7] = frame->R15;
    }

    private void MakeFrame()
    {
        FetchRegisters();
        Pool.MakeFrame();
        InCallout = false;
    }

    /// <summary>After a callout: brings the registers into the CPU that the engine has left in the carrier.</summary>
    protected virtual void FetchRegisters() { }

    /// <summary>Has the next entry load the guest's general registers from the control page, after a callout.</summary>
    /// <remarks>
    /// The page's lines travel between the cores: one that holds already what it should is left where it is. A guest that has written to the page
    /// meanwhile is found out by the comparison as well as it would be overwritten.
    /// </remarks>
    /// <param name="carrier">The carrier that the callout came from.</param>
    /// <param name="flags">What to load into RFLAGS.</param>
    /// <param name="target">Where to go on.</param>
    /// <param name="serialize">Code there has been changed that the CPU may have executed before.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    protected void EnterByRegisters(CarrierProcess carrier, ulong flags, ulong target, bool serialize)
    {
        const int perLine = 8;
        ControlPage* control = carrier.Control;
        ulong* ours = Cpu.Registers->Gpr;
        ulong* shared = control->Registers;
        for (int first = 0; first < 16; first += perLine)
        {
            Vector256<ulong> low = Vector256.Load(ours + first);
            Vector256<ulong> high = Vector256.Load(ours + first + 4);
            if (low != Vector256.Load(shared + first) || high != Vector256.Load(shared + first + 4))
            {
                Vector256.Store(low, shared + first);
                Vector256.Store(high, shared + first + 4);
            }
        }

        uint serializes = serialize ? 1u : 0;
        if (
            control->Flags != flags
            || control->Target != target
            || control->ByRegisters != EntryBy.Registers
            || control->Serialize != serializes
        )
        {
            control->Flags = flags;
            control->Target = target;
            control->ByRegisters = EntryBy.Registers;
            control->Serialize = serializes;
        }
    }

    /// <summary>Has the next entry lead through the frame.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    protected static void EnterByFrame(CarrierProcess carrier)
    {
        if (carrier.Control->ByRegisters != EntryBy.Frame)
        {
            carrier.Control->ByRegisters = EntryBy.Frame;
        }
    }

    /// <summary>The guest has left by a callout: takes its general registers from the control page.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    protected void LeaveByCallout(CarrierProcess carrier)
    {
        InCallout = true;
        GuestRan(carrier);
        Unsafe.CopyBlockUnaligned(Cpu.Registers->Gpr, carrier.Control->Registers, 16 * sizeof(ulong));
    }

    /// <summary>The guest has run with the FS and GS base that it was given.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    protected static void GuestRan(CarrierProcess carrier)
    {
        if (carrier.Control->LoadBases != 0)
        {
            carrier.Control->LoadBases = 0;
        }
    }

    /// <summary>
    /// Asks for the frame's cache lines, which come from the other core. The kernel puts each frame where the last one was, so that is done
    /// before the control page has said where it is: one trip between the cores instead of two.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    protected static void Prefetch(SignalContext* frame)
    {
        const int line = 64;
        for (int offset = 0; offset < sizeof(SignalContext); offset += line)
        {
            Sse.Prefetch0((byte*)frame + offset);
        }
    }

    /// <summary>A kick has brought the guest back, or kept it from being entered.</summary>
    protected VmExit Kicked(CarrierProcess carrier)
    {
        carrier.KickAnswered();
        _ = TakeKick();
        return new VmExit(VmExitReason.Interrupted);
    }

    /// <summary>
    /// What a fault means that every engine sees alike; RIP in the CPU is at the guest's instruction. The kernel's trapno is the CPU's vector.
    /// It is stale where the kernel raises a signal without an exception.
    /// </summary>
    protected VmExit ClassifyFault(int signal, SignalContext* frame)
    {
        if (signal == Linux.SigIll)
        {
            return new VmExit(VmExitReason.Exception, Vector.InvalidOpcode);
        }

        ulong error = frame->ErrorCode;
        ulong vector = frame->TrapNumber;
        switch (vector)
        {
            case Vector.GeneralProtection:
                return new VmExit(VmExitReason.PrivilegedInstruction, Vector.GeneralProtection, (uint)error);

            case Vector.PageFault when signal == Linux.SigBus:
                return Fail($"the host has no memory for the guest's page at 0x{frame->Cr2:X} (SIGBUS)");

            case Vector.PageFault:
                // The P bit speaks of the host's mapping, not of the guest's tables: the core walks those itself.
                return PageFaultAt(
                    frame->Cr2,
                    (error & PageFaultError.Fetch) != 0 ? PageAccess.Execute
                        : (error & PageFaultError.Write) != 0 ? PageAccess.Write
                        : PageAccess.Read
                );

            case Vector.AlignmentCheck when Cpu.Cpl != 3 || (Cpu.Cr0 & Cr0.Am) == 0:
                return new VmExit(VmExitReason.Interrupted); // the next entry clears AC

            case < 32:
                return new VmExit(
                    VmExitReason.Exception,
                    (byte)vector,
                    Vector.HasErrorCode((byte)vector) ? (uint)error : 0
                );

            default:
                return Corrupted();
        }
    }

    /// <summary>The exit for an address without a mapping.</summary>
    protected VmExit PageFaultAt(ulong address, PageAccess access)
    {
        _faultAddress = address;
        _faultWrites = access == PageAccess.Write;
        return new VmExit(VmExitReason.PageFault, Address: address, Access: access);
    }

    // ------------------------------------------------------------------------------------------------ lazy state

    /// <inheritdoc/>
    public void SaveLazyState()
    {
        if (InCallout && Failure is null)
        {
            try
            {
                MakeFrame();
            }
            catch (Exception e) when (e is CarrierException or Win32Exception)
            {
                _ = Fail(e);
            }
        }

        // Nothing newer than the core's own copy: the guest has not run since, or its carrier is beyond asking.
        if (_loadLazyState || Failure is not null || Pool.Current is not { } carrier)
        {
            return;
        }

        if (!TryFindFpu(Pool.Frame, out byte* fpu))
        {
            return;
        }

        new ReadOnlySpan<byte>(fpu, FpuFrame.RegistersEnd).CopyTo(
            new Span<byte>(Cpu.Registers->Fxsave, FpuFrame.RegistersEnd)
        );
        Cpu.Fs = Cpu.Fs with { Base = carrier.Control->FsBase };
        Cpu.Gs = Cpu.Gs with { Base = carrier.Control->GsBase };
    }

    /// <inheritdoc/>
    public void LoadLazyState() => _loadLazyState = true;

    // Into the frame: the return path loads it from there, whichever it is.
    private void StoreLazyState(CarrierProcess carrier, SignalContext* frame)
    {
        _loadLazyState = false;
        carrier.Control->FsBase = Cpu.Fs.Base;
        carrier.Control->GsBase = Cpu.Gs.Base;
        carrier.Control->LoadBases = 1;
        if (TryFindFpu(frame, out byte* fpu))
        {
            new ReadOnlySpan<byte>(Cpu.Registers->Fxsave, FpuFrame.RegistersEnd).CopyTo(
                new Span<byte>(fpu, FpuFrame.RegistersEnd)
            );
            *(uint*)(fpu + FpuFrame.Mxcsr) &= FpuFrame.MxcsrDefined; // a guest could have forged the image it came from
            *(ulong*)(fpu + FpuFrame.LegacySize) |= FpuFrame.X87AndSse; // XSTATE_BV: these two are not in their initial state
        }
    }

    private bool TryFindFpu(SignalContext* frame, out byte* fpu)
    {
        fpu = Pool.Find(frame->FpuState, FpuFrame.HeaderEnd);
        return fpu is not null;
    }

    /// <summary>Ends the carriers.</summary>
    public void Dispose()
    {
        if (Memory.WriteObserver == this)
        {
            Memory.WriteObserver = null;
        }

        Pool.Dispose();
    }
}
