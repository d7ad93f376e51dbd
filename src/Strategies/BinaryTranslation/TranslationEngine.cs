using System.ComponentModel;
using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Runtime.Versioning;
using VirtBench.Strategies.Carrier;
using VirtBench.Strategies.Native;
using VirtBench.Strategies.Shadow;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.BinaryTranslation;

/// <summary>How translation is set up.</summary>
internal sealed record TranslationOptions
{
    /// <summary>Bytes of each carrier's code cache, the shortest that works to 64 MiB; in whole pages.</summary>
    public int CodeCacheSize { get; init; } = 16 << 20;

    /// <summary>See <see cref="BlockTranslator.CountsLookups"/>.</summary>
    public bool CountLookups { get; init; }

    /// <summary>Ring-0 code looks for interrupts and delivers them.</summary>
    public bool DeliverInline { get; init; }

    /// <summary>Return to the guest by XRSTOR and IRETQ instead of rt_sigreturn.</summary>
    public required bool ReturnByIret { get; init; }

    /// <summary>See <see cref="EngineCapabilities.TimeSource"/>.</summary>
    public required string TimeSource { get; init; }

    /// <summary>See <see cref="CarrierOptions.KickGrace"/>; null for its default.</summary>
    public TimeSpan? KickGrace { get; init; }
}

/// <summary>
/// Dynamic binary translation: all guest code, of every ring, is translated and runs in a carrier; the guest's own bytes are only read. What is
/// sensitive is done inline or by a call to the VMM, through shared memory and without a signal.
/// </summary>
/// <remarks>
/// Between two entries the guest's registers are in one of two places: in a signal's frame, or, after a callout, in the control page and, as
/// regards x87 and SSE, still in the carrier's CPU.
/// </remarks>
[SupportedOSPlatform("linux")]
internal sealed unsafe partial class TranslationEngine : CarrierEngine
{
    private readonly TranslationCache?[] _caches = new TranslationCache?[CarrierLayout.MaximumCarriers];
    private readonly BlockTranslator _translator;
    private bool _windowWanted;
    private bool _stepping;

    /// <summary>Nothing is started or translated yet.</summary>
    public TranslationEngine(VirtualCpu cpu, GuestMemory memory, TranslationOptions options)
        : base(
            cpu,
            memory,
            new EngineCapabilities
            {
                Holes = TranslationCapabilities.Holes,
                Inlined = TranslationCapabilities.Inlined,
                InlinesInterruptFlag = true,
                TrapsPrivilegedInstructions = true,
                LowestAddress = HostLimits.LowestAddress,
                AddressLimit = CarrierLayout.GuestLimit,
                TimeSource = options.TimeSource,
            },
            new CarrierOptions
            {
                TrapTimeStampCounter = false,
                ReturnByIret = options.ReturnByIret,
                KickGrace = options.KickGrace ?? CarrierOptions.DefaultKickGrace,
            },
            ShadowPaging.Cached,
            CarrierLayout.MaximumCarriers,
            options.CodeCacheSize
        )
    {
        _translator = new BlockTranslator(this) { CountsLookups = options.CountLookups, Polls = options.DeliverInline };
        _deliversInline = options.DeliverInline;
        _shadow = (CachedShadow)Shadow;
        _shadow.CodeWritten = CodeWritten;
    }

    /// <inheritdoc/>
    public override void RequestInterruptWindow() => _windowWanted = true;

    /// <inheritdoc/>
    public override bool ObserveTranslation(ITranslationObserver? observer)
    {
        _translator.Observer = observer;
        return true;
    }

    // ------------------------------------------------------------------------------------------------ run and step

    /// <inheritdoc/>
    public override VmExit Run()
    {
        EndSteps();
        if ((Cpu.Rflags & Rflags.Tf) == 0)
        {
            return Execute();
        }

        // The guest single-steps itself.
        _stepping = true;
        VmExit exit = Execute();
        _stepping = false;
        if (exit.Reason != VmExitReason.Stepped)
        {
            return exit;
        }

        Cpu.Dr6 |= 1 << 14; // BS
        return new VmExit(VmExitReason.Exception, Vector.Debug);
    }

    /// <inheritdoc/>
    public override VmExit Step()
    {
        bool guests = (Cpu.Rflags & Rflags.Tf) != 0;
        _stepping = true;
        VmExit exit = Execute();
        _stepping = false;
        if (exit.Reason == VmExitReason.PageFault && _pagesOpen)
        {
            _shadow.EndStep(again: true); // perhaps the next page of the same instruction
            return exit;
        }

        EndSteps();
        if (guests && exit.Reason == VmExitReason.Stepped)
        {
            Cpu.Dr6 |= 1 << 14;
            return new VmExit(VmExitReason.Exception, Vector.Debug);
        }

        return exit;
    }

    /// <inheritdoc/>
    public override void AllowInStep(in ShadowPage page)
    {
        _pagesOpen = true;
        _shadow.AllowInStep(page);
    }

    private bool _pagesOpen;

    private void EndSteps()
    {
        if (_pagesOpen)
        {
            _pagesOpen = false;
            _shadow.EndStep(again: false);
        }
    }

    // Until there is something for the core. The rest, a branch without a link or a lookup without a result, is between the code cache and
    // this loop.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private VmExit Execute()
    {
        bool windowWanted = _windowWanted;
        _windowWanted = false;
        _arrival = default;
        _faultedInShadow = false;
        try
        {
            for (bool first = true; ; first = false)
            {
                if (TakeKick())
                {
                    return new VmExit(VmExitReason.Interrupted);
                }

                if (!SelectCarrier())
                {
                    return new VmExit(VmExitReason.Interrupted);
                }

                if (Failure is { } failure)
                {
                    return failure;
                }

                CarrierProcess carrier = Pool.Current!;
                TranslationCache cache = _caches[carrier.Slot] ??= new TranslationCache(carrier.Slot, Pool.Memory!);
                if (PrepareCache(cache))
                {
                    _arrival = default; // the cache was emptied: where the guest came from is gone
                }

                if (!TryFindBlock(cache, out Block? block, out VmExit fetch))
                {
                    return fetch;
                }

                Connect(cache, block);
                if (!first && !_stepping && HostClock.Instance.Ticks >= Deadline)
                {
                    // Only now: a guest whose deadlines are always over would otherwise come the same way each time.
                    return new VmExit(VmExitReason.Interrupted);
                }

                Enter(carrier, cache, block, windowWanted);
                if (_deliversInline)
                {
                    BeginInline(carrier.Control);
                }

                ResumeAndWait(carrier);
                if (_deliversInline)
                {
                    EndInline(carrier.Control);
                }

                VmExit? exit = Leave(carrier, cache);
                if (_stepping)
                {
                    DiscardStep(cache);
                }

                if (exit is { } result)
                {
                    return result;
                }
            }
        }
        catch (Exception e) when (e is CarrierException or Win32Exception)
        {
            return Fail(e);
        }
    }

    private (int Next, int Sites, int Branches, int Points, ulong Rip) _beforeStep;

    private void DiscardStep(TranslationCache cache)
    {
        cache.Next = _beforeStep.Next;
        cache.Sites.RemoveRange(_beforeStep.Sites, cache.Sites.Count - _beforeStep.Sites);
        cache.IndirectBranches.RemoveRange(_beforeStep.Branches, cache.IndirectBranches.Count - _beforeStep.Branches);
        cache.Recovery.Truncate(_beforeStep.Points);
        cache.Changed = true;
    }

    private bool TryFindBlock(
        TranslationCache cache,
        [System.Diagnostics.CodeAnalysis.NotNullWhen(true)] out Block? block,
        out VmExit fetch
    )
    {
        fetch = default;
        ulong rip = Cpu.Rip;
        ulong before = HostClock.Instance.Ticks;
        ulong fault;
        if (_stepping)
        {
            _beforeStep = (cache.Next, cache.Sites.Count, cache.IndirectBranches.Count, cache.Recovery.Count, rip);
            block = _translator.Translate(cache, rip, BlockUse.Step, out fault);
        }
        else if (cache.TryFind(rip, out block))
        {
            return true;
        }
        else if ((block = cache.FindInside(rip)) is not null)
        {
            fault = 0;
        }
        else
        {
            block = _translator.Translate(
                cache,
                rip,
                _arrival is { LookedUp: false, Branch: null or { Pops: > 0 } } ? BlockUse.Linked : BlockUse.LookedUp,
                out fault
            );
        }

        _ticks += HostClock.Instance.Ticks - before;
        if (block is null)
        {
            fetch = PageFaultAt(fault, PageAccess.Execute);
            return false;
        }

        return true;
    }

    /// <summary>How the guest has left translated code for the block that it is to be entered at next.</summary>
    /// <param name="Site">The link plus 1; 0 for none.</param>
    /// <param name="LookedUp">By a lookup without a result.</param>
    /// <param name="Branch">By this branch.</param>
    private readonly record struct Arrival(int Site, bool LookedUp, IndirectBranch? Branch);

    private Arrival _arrival;

    // The next time the guest goes the same way it does not come here.
    private void Connect(TranslationCache cache, Block block)
    {
        Arrival arrival = _arrival;
        _arrival = default;
        if (arrival == default || _stepping)
        {
            return;
        }

        ulong before = HostClock.Instance.Ticks;
        if (arrival.Site > 0)
        {
            cache.Link(arrival.Site - 1, block);
        }
        else if (arrival.LookedUp)
        {
            _translator.AddLookupEntry(cache, block);
        }
        else if (arrival.Branch is { Owner.IsValid: true } branch)
        {
            _translator.ExtendChain(cache, branch, block.Start);
        }

        cache.Changed = true;
        _ticks += HostClock.Instance.Ticks - before;
    }

    // ------------------------------------------------------------------------------------------------ entry and exit

    private void Enter(CarrierProcess carrier, TranslationCache cache, Block block, bool windowWanted)
    {
        ControlPage* control = carrier.Control;
        ulong flags = (Cpu.Rflags & TranslationMode.HostFlags) | Rflags.AlwaysSet | Rflags.If;
        StoreVirtualState(control, windowWanted);
        if (InCallout)
        {
            EnterByRegisters(carrier, flags, block.Address, cache.Changed);
        }
        else
        {
            SignalContext* frame = Pool.Frame;
            StoreRegisters(carrier, frame);
            frame->Rip = block.Address;
            frame->Eflags = flags;
            EnterByFrame(carrier);
        }

        cache.Changed = false;
    }

    private void StoreVirtualState(ControlPage* control, bool windowWanted)
    {
        control->VirtualFlags = Cpu.Rflags & TranslationMode.VirtualFlags;
        control->WindowWanted = windowWanted ? 1u : 0;
        VirtualState* state = &control->Virtual;
        state->GdtLimit = Cpu.Gdtr.Limit;
        state->GdtBase = Cpu.Gdtr.Base;
        state->IdtLimit = Cpu.Idtr.Limit;
        state->IdtBase = Cpu.Idtr.Base;
        state->Ldtr = Cpu.Ldtr.Selector;
        state->Tr = Cpu.Tr.Selector;
        state->Cr0 = Cpu.Cr0;
        state->Cr2 = Cpu.Cr2;
        state->Cr3 = Cpu.Cr3;
        state->Cr4 = Cpu.Cr4;
        state->TscAux = Cpu.TscAux;
        state->TscOffset = Cpu.TscOffset;
        state->Selectors[0] = Cpu.Es.Selector;
        state->Selectors[1] = Cpu.Cs.Selector;
        state->Selectors[2] = Cpu.Ss.Selector;
        state->Selectors[3] = Cpu.Ds.Selector;
        state->Selectors[4] = Cpu.Fs.Selector;
        state->Selectors[5] = Cpu.Gs.Selector;
    }

    /// <summary>What the carrier has come back with; null when the guest only needs another block.</summary>
    private VmExit? Leave(CarrierProcess carrier, TranslationCache cache)
    {
        ControlPage* control = carrier.Control;
        int signal = Volatile.Read(ref control->Signal);
        if (control->Magic != ControlPage.MagicValue)
        {
            return Corrupted();
        }

        switch (signal)
        {
            case CarrierReport.Callout:
                LeaveByCallout(carrier);
                return LeaveBySite(control, cache);
            case CarrierReport.NotEntered:
                return Kicked(carrier);
            case CarrierReport.BatchFailed:
                throw carrier.BatchFailure();
            case CarrierReport.Ready:
                return Fail($"the guest jumped into the monitor window at 0x{CarrierLayout.Window:X}");
        }

        InCallout = false;
        GuestRan(carrier);
        if (!Pool.TryTakeFrame())
        {
            return Corrupted();
        }

        SignalContext* frame = Pool.Frame;
        ulong host = frame->Rip;
        TakeRegisters(frame);
        TakeFlags(frame->Eflags, control->VirtualFlags);
        if (!TryRecover(control, cache, host, signal == Linux.SigUsr1, out bool stepped, out bool readsCode))
        {
            return Fail($"the guest left the code cache: it was at 0x{host:X}; its RIP was last seen at 0x{Cpu.Rip:X}");
        }

        if (signal == Linux.SigUsr1)
        {
            if (!stepped)
            {
                return Kicked(carrier);
            }

            carrier.KickAnswered(); // by the carrier; the next entry answers the kicker
            return new VmExit(VmExitReason.Stepped);
        }

        VmExit exit = ClassifyFault(signal, frame);
        if (_inDelivery && exit.Reason != VmExitReason.Failed)
        {
            return UndeliveredBy(exit);
        }

        return readsCode && exit.Reason == VmExitReason.PageFault
            ? PageFaultAt(exit.Address, PageAccess.Execute)
            : exit;
    }

    private VmExit? LeaveBySite(ControlPage* control, TranslationCache cache)
    {
        TakeFlags(control->Flags, control->VirtualFlags);
        uint number = control->Site;
        if (number == CarrierStub.LookupSite)
        {
            uint lookedUp = control->Branch;
            if (lookedUp >= (uint)cache.IndirectBranches.Count)
            {
                return Corrupted();
            }

            _arrival = new Arrival(0, LookedUp: true, null);
            _lookupMisses++;
            return BranchTo(control->LookupTarget, cache.IndirectBranches[(int)lookedUp]);
        }

        if (number >= (uint)cache.Sites.Count)
        {
            return Corrupted();
        }

        ExitSite site = cache.Sites[(int)number];
        Cpu.Rip = site.Rip;
        switch (site.Kind)
        {
            case SiteKind.Link:
                _links++;
                _arrival = site.Owner.IsValid ? new Arrival((int)number + 1, false, null) : default;
                return null;
            case SiteKind.Indirect:
                IndirectBranch branch = cache.IndirectBranches[(int)site.Rip];
                Cpu.Rsp += (ulong)branch.Pops;
                _arrival = new Arrival(0, false, branch);
                _lookupMisses++;
                return BranchTo(control->LookupTarget, branch);
            case SiteKind.CodeChanged:
                GiveUp(cache, site.Owner);
                return null;
            case SiteKind.Instruction:
                return new VmExit(VmExitReason.PrivilegedInstruction, Vector.GeneralProtection);
            case SiteKind.Undefined:
                return new VmExit(VmExitReason.Exception, Vector.InvalidOpcode);
            case SiteKind.Window:
                return new VmExit(VmExitReason.InterruptWindow);
            case SiteKind.Undelivered:
                Cpu.Rip = control->LookupTarget;
                return new VmExit(VmExitReason.Interrupted);
            case SiteKind.SteppedIndirectly:
                return BranchTo(control->LookupTarget, cache.IndirectBranches[(int)site.Rip])
                    ?? new VmExit(VmExitReason.Stepped);
            case SiteKind.Stepped:
                return new VmExit(VmExitReason.Stepped);
            default:
                throw new UnreachableException($"{site.Kind}");
        }
    }

    private VmExit? BranchTo(ulong target, IndirectBranch branch)
    {
        if (PageWalker.IsCanonical(target))
        {
            Cpu.Rip = target;
            return null;
        }

        // The instruction's own fault, with the stack as it was (Intel SDM vol. 2, CALL, JMP and RET).
        _arrival = default;
        Cpu.Rip = branch.Rip;
        Cpu.Rsp += (ulong)(branch.Pushes - branch.Pops);
        return new VmExit(VmExitReason.Exception, Vector.GeneralProtection);
    }

    // Of what the guest could have written into the control page only its own interrupt flag is believed.
    private void TakeFlags(ulong host, ulong virtualFlags) =>
        Cpu.Rflags =
            (Cpu.Rflags & ~(TranslationMode.HostFlags | Rflags.If))
            | (host & TranslationMode.HostFlags)
            | (virtualFlags & Rflags.If)
            | Rflags.AlwaysSet;

    /// <summary>From a place in the code cache, at which a signal has come, to the state of the guest.</summary>
    /// <param name="control">The carrier's control page.</param>
    /// <param name="cache">Its cache.</param>
    /// <param name="host">The place.</param>
    /// <param name="kick">The signal is a kick, not a fault.</param>
    /// <param name="stepped">The one instruction of a step is done already.</param>
    /// <param name="readsCode">A fault there is one of the fetch.</param>
    /// <returns>False when the place is not in translated code.</returns>
    private bool TryRecover(
        ControlPage* control,
        TranslationCache cache,
        ulong host,
        bool kick,
        out bool stepped,
        out bool readsCode
    )
    {
        stepped = false;
        readsCode = false;
        _inDelivery = false;
        ulong distance = host - CarrierLayout.CodeCache;
        if (distance >= CarrierLayout.MaximumCodeCacheSize)
        {
            return false;
        }

        int offset = (int)distance;
        if (offset >= cache.Next)
        {
            if (!cache.TryFindSite(offset, out ExitSite site))
            {
                return false;
            }

            Cpu.Rip = site.Kind switch
            {
                SiteKind.SteppedIndirectly or SiteKind.Undelivered => control->LookupTarget,
                SiteKind.Indirect when cache.IndirectBranches[(int)site.Rip] is { Pops: > 0 } branch => branch.Rip,
                SiteKind.Indirect => control->LookupTarget,
                _ => site.Rip,
            };
            stepped = site.Kind is SiteKind.Stepped or SiteKind.SteppedIndirectly;
            return true;
        }

        if (!cache.Recovery.TryFind(offset, out RecoveryPoint point))
        {
            return false;
        }

        if (point.Source is RipSource.Delivery or RipSource.Delivered)
        {
            RecoverDelivery(control, point.Source);
            return true;
        }

        ulong rcx = Cpu[Gpr.Rcx];
        Cpu.Rip = point.Source switch
        {
            RipSource.Constant => point.Rip,
            RipSource.Rcx => rcx,
            RipSource.RcxAndConstant => rcx + point.Rip,
            RipSource.Chain => cache.IndirectBranches[(int)point.Rip].Target(point.Other),
            RipSource.RcxAndChain => rcx + cache.IndirectBranches[(int)point.Rip].Target(point.Other),
            RipSource.Repeated => point.Rip,
            RipSource.RepeatedWhileEqual when (Cpu.Rflags & Rflags.Zf) != 0 => point.Rip,
            RipSource.RepeatedWhileDifferent when (Cpu.Rflags & Rflags.Zf) == 0 => point.Rip,
            RipSource.RepeatedWhileEqual or RipSource.RepeatedWhileDifferent => point.Rip + point.Other,
            _ => control->LookupTarget,
        };
        stepped = _stepping && (point.Source != RipSource.Constant || point.Rip != _beforeStep.Rip);
        Repairs repairs = point.Repairs;
        if ((repairs & Repairs.FlagsInCh) != 0)
        {
            Cpu.Rflags = (Cpu.Rflags & ~Rflags.If) | (rcx & Rflags.If);
        }

        if ((repairs & Repairs.Rcx) != 0)
        {
            Cpu[Gpr.Rcx] = control->SavedRcx;
        }

        if ((repairs & Repairs.Rax) != 0)
        {
            Cpu[Gpr.Rax] = control->SavedRax;
        }

        if ((repairs & Repairs.R11) != 0)
        {
            Cpu[11] = control->SavedR11;
        }

        if ((repairs & Repairs.Other) != 0)
        {
            Cpu[point.Other] = control->SavedOther;
        }

        if ((repairs & Repairs.Push) != 0)
        {
            Cpu.Rsp += sizeof(ulong);
        }

        bool inShadow = (repairs & Repairs.InShadow) != 0;
        _faultedInShadow = inShadow && !kick;
        if (inShadow && kick)
        {
            Cpu.Rip--; // back to the STI
            Cpu.Rflags &= ~Rflags.If;
        }

        readsCode = (repairs & Repairs.ReadsCode) != 0;
        return true;
    }

    private bool _faultedInShadow;
}
