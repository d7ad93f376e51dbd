using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Simulation;

/// <summary>
/// An interpreter of x86-64-v1 behind the engine contract, with time computed from a cost profile. The guest runs
/// deprivileged as in ring 3 of real hardware: what would fault exits, what would not sees the simulated host. Or it runs as under a
/// translator: then sensitive instructions get the guest's own state, and a block that is decoded costs its translation.
/// </summary>
internal sealed unsafe class SimulatedEngine : IExecutionEngine, IMemoryWriteObserver
{
    public const ulong NoAddress = ulong.MaxValue;

    private readonly VirtualCpu _cpu;
    private readonly GuestMemory _memory;
    private readonly bool _walksTables;
    private readonly bool _translates;
    private readonly int _translationCycles;
    private readonly SimulatedClock _clock;
    private readonly AddressView _kernel = new();
    private readonly AddressView _user = new();
    private readonly BlockDecoder _decoder;
    private readonly object _kickLock = new(); // no Lock: Idle waits on it
    private readonly Op* _single;
    private readonly GCHandle _handle;
    private Machine* _machine;
    private AddressView _view;
    private ulong _lastEpoch;
    private bool _lazyStateIsCpus = true;
    private bool _mapsParts;
    private string? _failure;
    private long _blocks;
    private long _instructions;
    private long _bytes;
    private ulong _ticksTranslating;
    private long _links;
    private long _lookupMisses;
    private long _invalidations;

    /// <summary>Creates an engine.</summary>
    /// <param name="cpu">The CPU it serves.</param>
    /// <param name="memory">Its memory.</param>
    /// <param name="profile">What things cost.</param>
    /// <param name="mode">What stands between the guest and the CPU; translated only with a profile that says what that costs.</param>
    /// <param name="arenaBytes">Room for decoded code.</param>
    public SimulatedEngine(
        VirtualCpu cpu,
        GuestMemory memory,
        CostProfile profile,
        SimulatedMode mode,
        int arenaBytes = BlockCache.DefaultArenaBytes
    )
    {
        _cpu = cpu;
        _memory = memory;
        _walksTables = mode == SimulatedMode.Native;
        _translates = mode == SimulatedMode.Translated;
        _translationCycles = _translates ? profile.Translation!.InstructionCycles : 0;
        _handle = GCHandle.Alloc(this, GCHandleType.Weak);
        _machine = (Machine*)NativeMemory.AlignedAlloc(Machine.Size, 64);
        NativeMemory.Clear(_machine, Machine.Size);
        _machine->EngineHandle = GCHandle.ToIntPtr(_handle);
        _machine->Deadline = ulong.MaxValue;
        _single = (Op*)NativeMemory.AlignedAlloc((nuint)(BlockCache.SingleOps * sizeof(Op)), 64);
        _machine->JumpCache = (JumpEntry*)NativeMemory.AllocZeroed(JumpEntry.Count, (nuint)sizeof(JumpEntry));
        for (int i = 0; i < JumpEntry.Count; i++)
        {
            _machine->JumpCache[i].Epoch = BlockDecoder.NoEpoch;
        }

        _machine->Host = profile.Host.ToSelectors();
        _clock = new SimulatedClock(_machine, profile, mode);
        _decoder = new BlockDecoder(profile, mode);
        Blocks = new BlockCache(this, memory, _decoder, arenaBytes);
        _view = _kernel;
        RenewEpochs();
        memory.WriteObserver = this;
        Capabilities = SimulatedCapabilities.Describe(profile, mode);
    }

    /// <summary>The decoded code.</summary>
    public BlockCache Blocks { get; }

    /// <summary>Epoch of the view in use.</summary>
    public ulong Epoch => _view.Epoch;

    /// <summary>The FXSAVE image whose x87 part no simulated instruction but FXRSTOR changes.</summary>
    public byte* X87 => _cpu.Registers->Fxsave;

    /// <inheritdoc/>
    public EngineCapabilities Capabilities { get; }

    /// <inheritdoc/>
    public IEngineClock Clock => _clock;

    /// <summary>
    /// Blocks as the interpreter decodes them, the same code under another linear address among them. No code is made: 0 bytes of
    /// it. Indirect branches are charged one by one, but how a table would have done is not modelled.
    /// </summary>
    public TranslationStatistics? TranslationStatistics =>
        _translates
            ? new(
                _blocks,
                _instructions,
                _bytes,
                HostBytes: 0,
                _ticksTranslating,
                _links,
                _lookupMisses,
                LookupHits: null,
                _invalidations,
                (long)Blocks.Generation
            )
            : null;

    /// <inheritdoc/>
    public VmExit Run() => Execute(single: false);

    /// <summary>
    /// As the contract says. Of a repeated string instruction it is one iteration, as a single-stepping CPU has it.
    /// </summary>
    public VmExit Step() => Execute(single: true);

    private VmExit Execute(bool single)
    {
        Machine* m = _machine;
        ObjectDisposedException.ThrowIf(m is null, this);
        _clock.ChargeEntry();
        Enter(m);
        ulong entry = m->Rip;
        ulong cycles = m->Cycles - _ticksTranslating;
        m->Exit = default;
        _failure = null;
        if (!SseHandlers.IsModelled(m->Mxcsr))
        {
            Fail(
                m->Rip,
                $"with MXCSR 0x{m->Mxcsr:X}: unmasked exceptions, other rounding, FTZ and DAZ are not modelled"
            );
        }
        else
        {
            do
            {
                m->Exit.Restart = 0;
                if (single || (m->OtherFlags & Rflags.Tf) != 0)
                {
                    ExecuteSingle(m);
                }
                else
                {
                    // Finds the first block, or notes a kick or a fetch fault.
                    Dispatch(m, Start(m));
                }
            } while (m->Exit.Restart != 0);
        }

        m->WindowWanted = 0;
        if (m->Shadow != 0)
        {
            TakeBackSti(m);
        }

        if (m->Rip != entry || m->Cycles - _ticksTranslating != cycles)
        {
            // Here and not only in the core, which sees no more of it than RIP: a loop may have come back there.
            _cpu.InterruptShadow = false;
        }

        Leave(m);
        var reason = (VmExitReason)m->Exit.Reason;
        if (reason == VmExitReason.Interrupted)
        {
            TakeKick();
        }

        _clock.ChargeExit(reason, m->Exit.FreeMarker != 0, m->Exit.Due != 0);
        return new VmExit(
            reason,
            m->Exit.Vector,
            m->Exit.ErrorCode,
            m->Exit.Address,
            (PageAccess)m->Exit.Access,
            reason == VmExitReason.Failed ? _failure : null
        );
    }

    private static Op* Start(Machine* m)
    {
        ulong target = m->Rip;
        JumpEntry* entry = m->JumpCache + ((target ^ (target >> 12)) & (JumpEntry.Count - 1));
        return entry->Rip == target && entry->Epoch == m->LiveEpoch ? entry->Target : SlowPath.Start(m);
    }

    /// <summary>Executes the instruction at RIP, and what a set RFLAGS.TF has follow it: #DB (SDM vol. 3B, section 18.3.1.4).</summary>
    private void ExecuteSingle(Machine* m)
    {
        if (Volatile.Read(ref m->KickRequested) != 0)
        {
            m->Exit.Reason = (byte)VmExitReason.Interrupted;
            return;
        }

        bool traps = (m->OtherFlags & Rflags.Tf) != 0;
        m->Stepping = 1;
        PublishEpoch(m);
        if (Blocks.DecodeSingle(m->Rip, _single))
        {
            Dispatch(m, _single);
        }

        m->Stepping = 0;
        PublishEpoch(m);
        if (m->Exit.Restart != 0)
        {
            m->Exit.Restart = 0; // POPF has set TF: its own end is no trap yet
            m->Exit.Reason = (byte)VmExitReason.Stepped;
        }

        if (traps && (VmExitReason)m->Exit.Reason == VmExitReason.Stepped)
        {
            const ulong singleStep = 1 << 14; // DR6.BS
            _cpu.Dr6 |= singleStep;
            m->Exit.Reason = (byte)VmExitReason.Exception;
            m->Exit.Vector = Vector.Debug;
        }
    }

    // The instruction that an inlined STI shadows has exited or faulted, so that the shadow outlasts guest code: then the STI calls out,
    // for the core to keep it. Nothing has happened since.
    private static void TakeBackSti(Machine* m)
    {
        m->Shadow = 0;
        if ((VmExitReason)m->Exit.Reason == VmExitReason.Failed)
        {
            return;
        }

        m->Rip = m->ShadowRip;
        m->OtherFlags &= ~Rflags.If;
        m->Cycles -= m->ShadowCost;
        m->Exit = default;
        m->Exit.Reason = (byte)VmExitReason.PrivilegedInstruction;
    }

    /// <summary>A block has been decoded: under translation that takes its time.</summary>
    public void Translated(int instructions, int bytes)
    {
        if (!_translates)
        {
            return;
        }

        ulong cycles = (ulong)instructions * (ulong)_translationCycles;
        _machine->Cycles += cycles;
        _ticksTranslating += cycles;
        _blocks++;
        _instructions += instructions;
        _bytes += bytes;
    }

    /// <summary>A block's code has been overwritten.</summary>
    public void Invalidated() => _invalidations++;

    /// <summary>A direct branch has been linked to its target.</summary>
    public void Linked() => _links++;

    /// <summary>The target of an indirect branch was not among those found last.</summary>
    public void MissedLookup() => _lookupMisses++;

    private void TakeKick()
    {
        lock (_kickLock)
        {
            _machine->KickRequested = 0;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Dispatch(Machine* m, Op* op)
    {
        while (op is not null)
        {
            op = op->Handler(m, op);
        }
    }

    private void Enter(Machine* m)
    {
        GuestRegisters* registers = _cpu.Registers;
        Unsafe.CopyBlock(m->Gpr, registers->Gpr, 128);
        m->Rip = registers->Rip;
        m->ArithmeticFlags = registers->Rflags;
        m->OtherFlags = registers->Rflags & ~Rflags.Arithmetic;
        m->TscOffset = _cpu.TscOffset;
        m->TscAux = _cpu.TscAux;
        if (_lazyStateIsCpus)
        {
            _lazyStateIsCpus = false;
            Unsafe.CopyBlock(m->Xmm, (byte*)registers + GuestRegisters.XmmOffset, 256);
            m->Mxcsr = *(uint*)((byte*)registers + GuestRegisters.MxcsrOffset);
            m->FsBase = _cpu.Fs.Base;
            m->GsBase = _cpu.Gs.Base;
        }

        if (_translates)
        {
            EnterTranslated(m);
        }

        _view = _cpu.Cpl == 3 ? _user : _kernel;
        m->ReadTlb = _view.Read;
        m->WriteTlb = _view.Write;
        PublishEpoch(m);
    }

    private void EnterTranslated(Machine* m)
    {
        m->Cpl = _cpu.Cpl;
        m->HidesTimeStampCounter = m->Cpl != 0 && (_cpu.Cr4 & Cr4.Tsd) != 0 ? 1 : 0;
        bool absent = (_cpu.Cr0 & Cr0.Em) != 0;
        bool switched = (_cpu.Cr0 & Cr0.Ts) != 0;
        m->SseVector =
            absent || (_cpu.Cr4 & Cr4.Osfxsr) == 0 ? Vector.InvalidOpcode
            : switched ? Vector.DeviceNotAvailable
            : (byte)0;
        m->FxsaveVector = absent || switched ? Vector.DeviceNotAvailable : (byte)0;
        m->Host = new HostSelectors
        {
            Es = _cpu.Es.Selector,
            Cs = _cpu.Cs.Selector,
            Ss = _cpu.Ss.Selector,
            Ds = _cpu.Ds.Selector,
            Fs = _cpu.Fs.Selector,
            Gs = _cpu.Gs.Selector,
            Ldt = _cpu.Ldtr.Selector,
            Tr = _cpu.Tr.Selector,
            GdtLimit = _cpu.Gdtr.Limit,
            GdtBase = _cpu.Gdtr.Base,
            IdtLimit = _cpu.Idtr.Limit,
            IdtBase = _cpu.Idtr.Base,
            MachineStatus = (uint)_cpu.Cr0,
        };
    }

    private void Leave(Machine* m)
    {
        GuestRegisters* registers = _cpu.Registers;
        Unsafe.CopyBlock(registers->Gpr, m->Gpr, 128);
        registers->Rip = m->Rip;
        registers->Rflags = m->OtherFlags | m->ArithmeticFlags;
    }

    // A kick that comes between the two writes sets the epoch to 0 itself or is seen by the second test.
    private static void PublishEpoch(Machine* m, ulong epoch)
    {
        Volatile.Write(ref m->LiveEpoch, epoch);
        Interlocked.MemoryBarrier();
        if (Volatile.Read(ref m->KickRequested) != 0 || m->Stepping != 0)
        {
            Volatile.Write(ref m->LiveEpoch, 0);
        }
    }

    private void PublishEpoch(Machine* m) => PublishEpoch(m, _view.Epoch);

    /// <inheritdoc/>
    public void RequestInterruptWindow()
    {
        if (!_translates)
        {
            throw new NotSupportedException("the guest's interrupt flag is the core's");
        }

        _machine->WindowWanted = 1;
    }

    /// <inheritdoc/>
    public void Kick()
    {
        lock (_kickLock)
        {
            if (_machine is not null)
            {
                Volatile.Write(ref _machine->KickRequested, 1);
                Interlocked.MemoryBarrier();
                Volatile.Write(ref _machine->LiveEpoch, 0);
                Monitor.PulseAll(_kickLock);
            }
        }
    }

    /// <summary>Notes a failure of the guest, naming the instruction.</summary>
    public void Fail(ulong rip, string why)
    {
        _machine->Exit.Reason = (byte)VmExitReason.Failed;
        _failure = $"the guest executed {Describe(rip)} at RIP 0x{rip:X}, {why}";
    }

    private string Describe(ulong rip)
    {
        Span<byte> bytes = stackalloc byte[15];
        int have = 0;
        while (have < bytes.Length && Translate(rip + (ulong)have, PageAccess.Execute, out ulong physical))
        {
            int part = Math.Min(bytes.Length - have, (int)(GuestMemory.PageSize - (physical & 0xFFF)));
            _memory.Read(physical, bytes.Slice(have, part));
            have += part;
        }

        return _decoder.Describe(rip, bytes[..have]);
    }

    /// <summary>Gives both views epochs that no link has.</summary>
    public void RenewEpochs()
    {
        _kernel.Epoch = ++_lastEpoch;
        _user.Epoch = ++_lastEpoch;
        PublishEpoch(_machine);
    }

    /// <summary>Makes every write look for code again.</summary>
    public void ForgetWriteMappings()
    {
        _kernel.FlushWrites();
        _user.FlushWrites();
    }

    private bool Translate(ulong address, PageAccess access, out ulong physical)
    {
        if (_view == _user)
        {
            access |= PageAccess.User;
        }

        if (_view.TryTranslate(address, access, out physical))
        {
            return _memory.Contains(physical & ~0xFFFUL, GuestMemory.PageSize);
        }

        if (!_walksTables || !PageWalker.IsCanonical(address))
        {
            return false;
        }

        Translation walk = PageWalker.Walk(_cpu, _memory, address, access);
        if (walk.Fault || !_memory.Contains(walk.PhysicalAddress & ~0xFFFUL, GuestMemory.PageSize))
        {
            return false;
        }

        if (!_memory.IsPresent(walk.PhysicalAddress / GuestMemory.PageSize))
        {
            return false; // the core fetches it
        }

        ulong length = 1UL << walk.PageShift;
        ulong offset = address & (length - 1);
        bool writable =
            walk.Dirty
            && ((walk.Permissions & PageAccess.Write) != 0 || (_view == _kernel && (_cpu.Cr0 & Cr0.Wp) == 0));
        var page = new ShadowPage(
            address,
            address - offset,
            walk.PhysicalAddress - offset,
            length,
            (walk.Permissions & ~PageAccess.Write) | (writable ? PageAccess.Write : 0)
        );
        ShadowPage present = page.PresentPart(_memory);
        _mapsParts |= present.Length != length;
        _ = Map(present);
        physical = walk.PhysicalAddress;
        return true;
    }

    private ulong Resolve(ulong address, PageAccess access)
    {
        if (Translate(address, access, out ulong physical))
        {
            return physical;
        }

        _machine->Exit.Reason = (byte)VmExitReason.PageFault;
        _machine->Exit.Address = address;
        _machine->Exit.Access = (byte)access;
        return NoAddress;
    }

    /// <summary>Guest-physical address to fetch from, or <see cref="NoAddress"/> after noting a page fault.</summary>
    public ulong ResolveFetch(ulong address)
    {
        TlbEntry* entry = AddressView.EntryOf(_view.Fetch, address);
        if (entry->Tag == (address & ~0xFFFUL))
        {
            return address + entry->Addend;
        }

        ulong physical = Resolve(address, PageAccess.Execute);
        if (physical != NoAddress)
        {
            entry->Tag = address & ~0xFFFUL;
            entry->Addend = physical - address;
        }

        return physical;
    }

    /// <summary>Host address to read from, the bounce buffer for a page-crossing operand, or null after noting a fault.</summary>
    public byte* ResolveRead(ulong address, int size)
    {
        ulong physical = Resolve(address, PageAccess.Read);
        if (physical == NoAddress)
        {
            return null;
        }

        int first = (int)(GuestMemory.PageSize - (address & 0xFFF));
        if (first >= size)
        {
            TlbEntry* entry = AddressView.EntryOf(_view.Read, address);
            entry->Tag = address & ~0xFFFUL;
            entry->Addend = (ulong)_memory.Base + physical - address;
            return _memory.Base + physical;
        }

        ulong second = Resolve(address + (ulong)first, PageAccess.Read);
        if (second == NoAddress)
        {
            return null;
        }

        byte* bounce = _machine->Bounce;
        Unsafe.CopyBlockUnaligned(bounce, _memory.Base + physical, (uint)first);
        Unsafe.CopyBlockUnaligned(bounce + first, _memory.Base + second, (uint)(size - first));
        return bounce;
    }

    /// <summary>
    /// As <see cref="ResolveRead"/>, for a write that the caller will now make: blocks decoded from these bytes are dropped.
    /// </summary>
    public byte* ResolveWrite(ulong address, int size)
    {
        ulong physical = Resolve(address, PageAccess.Write);
        if (physical == NoAddress)
        {
            return null;
        }

        int first = (int)(GuestMemory.PageSize - (address & 0xFFF));
        if (first >= size)
        {
            if (Blocks.HoldsCode(physical))
            {
                Blocks.Written(physical, (ulong)size);
            }
            else
            {
                TlbEntry* entry = AddressView.EntryOf(_view.Write, address);
                entry->Tag = address & ~0xFFFUL;
                entry->Addend = (ulong)_memory.Base + physical - address;
            }

            return _memory.Base + physical;
        }

        ulong second = Resolve(address + (ulong)first, PageAccess.Write);
        if (second == NoAddress)
        {
            return null;
        }

        Machine* m = _machine;
        Blocks.Written(physical, (ulong)first);
        Blocks.Written(second, (ulong)(size - first));
        m->BounceFirst = _memory.Base + physical;
        m->BounceFirstLength = first;
        m->BounceSecond = _memory.Base + second;
        m->BounceSecondLength = size - first;
        Unsafe.CopyBlockUnaligned(m->Bounce, m->BounceFirst, (uint)first);
        Unsafe.CopyBlockUnaligned(m->Bounce + first, m->BounceSecond, (uint)(size - first));
        return m->Bounce;
    }

    /// <inheritdoc/>
    public MapResult Map(in ShadowPage page)
    {
        // The view in which it faulted; when it was the core that touched the page, the one it will run in.
        AddressView view = _cpu.Cpl == 3 ? _user : _kernel;
        if (view.Enter(page))
        {
            RenewEpochs();
        }

        return MapResult.Mapped;
    }

    /// <inheritdoc/>
    public ulong Deadline
    {
        get => _machine->Deadline;
        set => _machine->Deadline = value;
    }

    /// <inheritdoc/>
    public void Idle()
    {
        lock (_kickLock)
        {
            while (_machine->KickRequested == 0)
            {
                if (_machine->Deadline != ulong.MaxValue)
                {
                    _clock.PassUntil(_machine->Deadline);
                    return;
                }

                Monitor.Wait(_kickLock); // no time passes where nothing is to come
            }

            _machine->KickRequested = 0;
        }
    }

    /// <inheritdoc/>
    public void SwitchAddressSpace()
    {
        _kernel.Flush();
        _user.Flush();
        RenewEpochs();
    }

    /// <inheritdoc/>
    public void InvalidatePage(ulong address)
    {
        if (_mapsParts)
        {
            SwitchAddressSpace(); // the page may be in several
            return;
        }

        _kernel.Invalidate(address);
        _user.Invalidate(address);
        RenewEpochs();
    }

    /// <inheritdoc/>
    public void MemoryWritten(ulong address, ulong length) => Blocks.Written(address, length);

    /// <inheritdoc/>
    public void SaveLazyState()
    {
        if (_lazyStateIsCpus || _machine is null)
        {
            return;
        }

        byte* registers = (byte*)_cpu.Registers;
        Unsafe.CopyBlock(registers + GuestRegisters.XmmOffset, _machine->Xmm, 256);
        *(uint*)(registers + GuestRegisters.MxcsrOffset) = _machine->Mxcsr;
        _cpu.Fs = _cpu.Fs with { Base = _machine->FsBase };
        _cpu.Gs = _cpu.Gs with { Base = _machine->GsBase };
    }

    /// <inheritdoc/>
    public void LoadLazyState() => _lazyStateIsCpus = true;

    /// <inheritdoc/>
    public void Dispose()
    {
        lock (_kickLock)
        {
            if (_machine is null)
            {
                return;
            }

            _clock.Freeze();
            NativeMemory.Free(_machine->JumpCache);
            NativeMemory.AlignedFree(_machine);
            NativeMemory.AlignedFree(_single);
            _machine = null;
        }

        if (_memory.WriteObserver == this)
        {
            _memory.WriteObserver = null;
        }

        Blocks.Dispose();
        _kernel.Dispose();
        _user.Dispose();
        _handle.Free();
    }
}
