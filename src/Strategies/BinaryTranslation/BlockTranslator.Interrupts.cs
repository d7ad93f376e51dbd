using VirtBench.Strategies.Carrier;
using VirtBench.Vmm.Cpu;

namespace VirtBench.Strategies.BinaryTranslation;

// Interrupts that ring-0 code finds and delivers by itself, see docs/strategies.md. It looks at the end of every loop, at indirect branches and
// returns, and where the interrupt flag is set. What it finds is delivered by a routine that each cache has at its beginning.
internal sealed unsafe partial class BlockTranslator
{
    private const int Rsp = 4;

    private readonly List<(int Jump, ulong Rip)> _polls = [];

    /// <summary>Ring-0 code looks for interrupts.</summary>
    public bool Polls { get; init; }

    private bool MayPoll => Polls && !_mode.User && _use != BlockUse.Step && !_inShadow;

    private bool PollsBefore(ulong target, ulong rip) => MayPoll && target <= rip;

    /// <summary>Looks for an interrupt between two instructions. RCX is the guest's, before and behind.</summary>
    /// <param name="rip">The instruction behind.</param>
    /// <param name="length">Bytes between this and <see cref="EmitPollHit"/>.</param>
    private void EmitInterruptPoll(ulong rip, int length)
    {
        Mark(rip);
        _w.Store(SavedRcx, Gpr.Rcx);
        Mark(rip, Repairs.Rcx);
        _w.LoadByteIntoRcx(NothingWanted);
        const int loadLength = 7;
        _w.JumpIfRcxIsZero(loadLength + length);
        _w.Load(Gpr.Rcx, SavedRcx);
        Mark(rip);
    }

    /// <summary>A link to the beginning of a loop, with a look for an interrupt on the way.</summary>
    private void EmitPollingLink(ulong target)
    {
        const int linkLength = 5;
        EmitInterruptPoll(target, linkLength);
        EmitLink(target);
        EmitPollHit(target);
    }

    /// <summary>Looks for an interrupt where the guest goes straight on.</summary>
    private void EmitPollInLine(ulong rip)
    {
        const int jumpLength = 2;
        const int hitLength = 5;
        EmitInterruptPoll(rip, jumpLength);
        _w.Bytes(0xEB, hitLength);
        EmitPollHit(rip);
        Mark(rip);
    }

    private void EmitPollHit(ulong rip)
    {
        Mark(rip, Repairs.Rcx);
        _polls.Add((_w.Jump(CarrierLayout.CodeCache), rip));
    }

    /// <summary>The same before an indirect branch, where the guest's RCX is saved already and nothing of the branch is done yet.</summary>
    private void EmitPollWithRcxFree(ulong rip)
    {
        const int jumpLength = 2;
        const int hitLength = 5;
        _w.LoadByteIntoRcx(NothingWanted);
        _w.JumpIfRcxIsZero(jumpLength);
        _w.Bytes(0xEB, hitLength);
        _polls.Add((_w.Jump(CarrierLayout.CodeCache), rip));
    }

    private void EmitPollHits()
    {
        foreach ((int jump, ulong rip) in _polls)
        {
            _w.PatchToHere(jump);
            Mark(rip, Repairs.Rcx);
            _w.MoveImmediate(Gpr.Rcx, rip);
            _w.Store(LookupTarget, Gpr.Rcx);
            _ = _w.Jump(CarrierLayout.CodeCache + (ulong)_cache.Delivery);
        }

        _polls.Clear();
    }

    /// <summary>
    /// The routine of a cache: the guest is before the instruction at <see cref="ControlPage.LookupTarget"/>, its RCX is saved. Delivers the interrupt
    /// as 64-bit mode does without a change of privilege (Intel SDM vol. 3A, section 6.14), with stores below the guest's stack pointer first: up to
    /// the store to <see cref="ControlPage.InlineTaken"/> everything can be given up, from there on everything is in the control page.
    /// </summary>
    private void EmitDelivery(TranslationCache cache)
    {
        const Repairs both = Repairs.Rcx | Repairs.R11;
        const byte interruptFlag = (byte)(Rflags.If >> 8);
        _cache = cache;
        _use = BlockUse.Linked;
        _w = new CodeWriter(cache.Code, cache.Next);
        _block = new Block { Start = 0 };
        IndirectBranch branch = AddBranch(0, 0, 0);
        cache.Delivery = _w.Offset;

        MarkComputed(RipSource.LookupTarget, Repairs.Rcx);
        _w.Store(SavedRax, Gpr.Rax);
        _w.Store(SavedOther, Rsp);
        _w.MoveImmediate(Rsp, CarrierLayout.Control + CarrierLayout.ScratchOffset + CarrierLayout.ScratchSize);
        _cache.Recovery.Add(new RecoveryPoint(_w.Offset, RipSource.LookupTarget, Repairs.Rcx | Repairs.Other, Rsp, 0));
        _w.Byte(0x9C); // PUSHFQ
        _w.Pop(Flags);

        MarkComputed(RipSource.Delivery, Repairs.None); // from here on flags are free
        _w.LoadByteIntoRcx(VirtualFlags + 1);
        _w.Bytes(0xF6, 0xC1, interruptFlag); // TEST cl, IF
        int off = _w.JumpIf(4, CarrierLayout.CodeCache);
        _w.Load(Gpr.Rax, GateAddress);
        _w.Bytes(0x48, 0x8B, 0x08); // MOV rcx, [rax]
        _w.CompareRcx(GateLow);
        int changed = _w.JumpIf(5, CarrierLayout.CodeCache);
        _w.Bytes(0x48, 0x8B, 0x48, 0x08); // MOV rcx, [rax + 8]
        _w.CompareRcx(GateHigh);
        int changedToo = _w.JumpIf(5, CarrierLayout.CodeCache);

        _w.Load(Gpr.Rax, SavedOther);
        _w.Bytes(0x48, 0x83, 0xE0, 0xF0); // AND rax, −16
        StoreInFrame(-8, State(nameof(VirtualState.Selectors)) + (2 * sizeof(ulong)));
        StoreInFrame(-16, SavedOther);
        _w.Load(Gpr.Rcx, Flags);
        _w.Bytes(0x81, 0xE1); // AND ecx, imm32
        _w.Int32((int)TranslationMode.HostFlags);
        _w.Bytes(0x48, 0x83, 0xC9, (byte)Rflags.AlwaysSet); // OR rcx, imm8
        _w.OrIntoRcx(VirtualFlags);
        _w.Bytes(0x48, 0x89, 0x48, unchecked((byte)-24)); // MOV [rax − 24], rcx
        StoreInFrame(-32, State(nameof(VirtualState.Selectors)) + sizeof(ulong));
        StoreInFrame(-40, LookupTarget);
        _w.Lea(Gpr.Rax, Gpr.Rax, -40);
        _w.Store(HandlerStack, Gpr.Rax);
        _w.Load32(Gpr.Rax, InlineLine);
        _w.Store32(InlineTaken, Gpr.Rax);

        MarkComputed(RipSource.Delivered, Repairs.None);
        _w.AndByte(VirtualFlags + 1, unchecked((byte)~interruptFlag));
        _w.StoreByte(NothingWanted, 1);
        RestoreFlags();
        _w.Load(Rsp, HandlerStack);
        _w.Load(Gpr.Rax, SavedRax);
        _w.Store(SavedR11, R11);
        _w.Load(Gpr.Rcx, Handler);
        MarkComputed(RipSource.Rcx, both);
        EmitTableJump(ref _w, branch);

        // Interrupts are off: the guest goes on, and leaves where it sets the flag. It must not look again before that, since a look that stands
        // before a branch would find the same and never come to the branch.
        _w.PatchToHere(off);
        MarkComputed(RipSource.Delivery, Repairs.None);
        _w.StoreByte(WindowWanted, 1);
        _w.StoreByte(NothingWanted, 1);
        RestoreFlags();
        _w.Load(Rsp, SavedOther);
        _w.Load(Gpr.Rax, SavedRax);
        _w.Store(SavedR11, R11);
        _w.Load(Gpr.Rcx, LookupTarget);
        MarkComputed(RipSource.Rcx, both);
        EmitTableJump(ref _w, branch);

        // The gate is another by now: the core's to deliver.
        _w.PatchToHere(changed);
        _w.PatchToHere(changedToo);
        MarkComputed(RipSource.Delivery, Repairs.None);
        _w.StoreByte(NothingWanted, 1);
        RestoreFlags();
        _w.Load(Rsp, SavedOther);
        _w.Load(Gpr.Rax, SavedRax);
        _w.Load(Gpr.Rcx, SavedRcx);
        MarkComputed(RipSource.LookupTarget, Repairs.None);
        EmitExit(SiteKind.Undelivered, 0);
        HostBytes += _w.Offset - cache.Next;
        cache.Next = _w.Offset;
    }

    private void RestoreFlags()
    {
        _w.Push(Flags);
        _w.Byte(0x9D); // POPFQ
    }

    // MOV rcx, [field]; MOV [rax + offset], rcx.
    private void StoreInFrame(int offset, int field)
    {
        _w.Load(Gpr.Rcx, field);
        _w.Bytes(0x48, 0x89, 0x48, unchecked((byte)offset));
    }

    private static readonly int NothingWanted = CodeWriter.Field(nameof(ControlPage.NothingWanted)),
        Flags = CodeWriter.Field(nameof(ControlPage.Flags)),
        GateAddress = CodeWriter.Field(nameof(ControlPage.GateAddress)),
        GateLow = CodeWriter.Field(nameof(ControlPage.GateLow)),
        GateHigh = CodeWriter.Field(nameof(ControlPage.GateHigh)),
        Handler = CodeWriter.Field(nameof(ControlPage.Handler)),
        HandlerStack = CodeWriter.Field(nameof(ControlPage.HandlerStack)),
        InlineLine = CodeWriter.Field(nameof(ControlPage.InlineLine)),
        InlineTaken = CodeWriter.Field(nameof(ControlPage.InlineTaken));
}
