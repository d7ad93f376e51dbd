using System.Runtime.Versioning;
using Iced.Intel;
using VirtBench.Strategies.Carrier;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.BinaryTranslation;

/// <summary>Where the translator reads guest code.</summary>
internal unsafe interface ICodeSource
{
    /// <summary>Finds the page that holds a linear address, if the guest may execute it and the VMM knows so.</summary>
    /// <param name="address">Linear address.</param>
    /// <param name="page">The page's first byte.</param>
    /// <param name="frame">The page of RAM.</param>
    bool TryFetch(ulong address, out byte* page, out CodeFrame frame);
}

/// <summary>What kind of block is wanted.</summary>
internal enum BlockUse : byte
{
    /// <summary>Entered by the VMM and by links.</summary>
    Linked,

    /// <summary>Entered by lookups too.</summary>
    LookedUp,

    /// <summary>One instruction, executed once.</summary>
    Step,
}

/// <summary>
/// Translates blocks: decodes guest instructions from an address on and writes what becomes of them into a cache. Registers are mapped one to one; what
/// is inserted changes no flag, unless the guest's own instruction sets all of them.
/// </summary>
/// <remarks>
/// A block goes on behind conditional branches that are not taken, and ends at any other branch, at an instruction that the core emulates, at the end of a page, and at
/// <see cref="MaximumInstructions"/>. So it is one stretch of guest code.
/// </remarks>
[SupportedOSPlatform("linux")]
internal sealed unsafe partial class BlockTranslator
{
    private const int MaximumInstructions = 64;
    private const int Alignment = 16; // of blocks: what the host fetches at once
    private const int MaximumTail = 48; // bytes of guest code
    private const int MaximumSelfCheckingInstructions = 8;
    private const int LongestInstruction = 15;
    private const int R11 = 11;

    /// <summary>A decoded instruction, and where its bytes are.</summary>
    private struct Decoded
    {
        public Instruction Instruction;
        public byte* Bytes;
        public InstructionClass Class;
        public int Host; // offset in the cache of what it became
        public byte Displacement; // of a RIP-relative operand: offset in the instruction
    }

    private readonly ICodeSource _source;
    private readonly InstructionClasses _classes = new();
    private readonly CodeBytes _reader = new();
    private readonly Decoder _decoder;
    private readonly EncodedBytes _encoded = new();
    private readonly Encoder _encoder;
    private readonly Decoded[] _decoded = new Decoded[MaximumInstructions];
    private readonly byte[] _crossing = GC.AllocateArray<byte>(32, pinned: true);
    private readonly List<(int Jump, ulong Rip, SiteKind Kind, Repairs Repairs)> _deferred = [];
    private readonly List<IndirectBranch> _indirect = []; // of the block
    private TranslationCache _cache = null!;
    private TranslationMode _mode;
    private Block _block = null!;
    private CodeWriter _w;
    private BlockUse _use;
    private bool _inShadow;
    private ulong _shadowed; // the instruction behind the STI

    /// <summary>Nothing is translated yet.</summary>
    /// <param name="source">Where guest code comes from.</param>
    public BlockTranslator(ICodeSource source)
    {
        _source = source;
        _decoder = Decoder.Create(64, _reader);
        _encoder = Encoder.Create(64, _encoded);
    }

    /// <summary>Count the indirect branches that find their target inline, at the cost of three instructions each.</summary>
    public bool CountsLookups { get; init; }

    /// <summary>
    /// How many targets an indirect branch compares with before it looks its target up; see docs/benchmarks.md for what the choice rests on. Where hits
    /// are counted there is room for one less within the reach of JRCXZ.
    /// </summary>
    private int ChainLength => CountsLookups ? 3 : 4;

    /// <summary>Is shown every block but those of steps; null for nobody.</summary>
    public ITranslationObserver? Observer { get; set; }

    /// <summary>Guest instructions translated so far.</summary>
    public long Instructions { get; private set; }

    /// <summary>Blocks so far.</summary>
    public long Blocks { get; private set; }

    /// <summary>Bytes of guest code so far.</summary>
    public long GuestBytes { get; private set; }

    /// <summary>Bytes of host code so far, exits included.</summary>
    public long HostBytes { get; private set; }

    /// <summary>Translates the block at a linear address and links it with what there is.</summary>
    /// <param name="cache">Where to; has room.</param>
    /// <param name="rip">Linear address.</param>
    /// <param name="use">What for.</param>
    /// <param name="fault">When null is returned: the linear address at which the guest's code has to be fetched first.</param>
    public Block? Translate(TranslationCache cache, ulong rip, BlockUse use, out ulong fault)
    {
        fault = rip;
        if (!_source.TryFetch(rip, out byte* page, out CodeFrame frame))
        {
            return null;
        }

        if (Polls && cache.Delivery == 0 && use != BlockUse.Step && !cache.Mode.User)
        {
            EmitDelivery(cache);
        }

        _cache = cache;
        _mode = cache.Mode;
        _use = use;
        bool checks = frame.ChecksItself && use != BlockUse.Step;
        int limit =
            use == BlockUse.Step ? 1
            : checks ? MaximumSelfCheckingInstructions
            : MaximumInstructions;
        int count = Decode(page, rip, limit, checks, out CodeFrame? second, out int tail, ref fault);
        if (count == 0)
        {
            return null;
        }

        checks |= second?.ChecksItself == true && use != BlockUse.Step;
        int first = use != BlockUse.Linked ? cache.Next : (cache.Next + (Alignment - 1)) & -Alignment;
        int firstSite = cache.Sites.Count;
        _w = new CodeWriter(cache.Code, first);
        ref Decoded last = ref _decoded[count - 1];
        ulong end = last.Instruction.NextIP;
        _block = new Block
        {
            Start = rip,
            ChecksItself = checks,
            EndsIndirectly =
                last.Class is InstructionClass.IndirectJump or InstructionClass.IndirectCall or InstructionClass.Return,
        };
        if (tail == 0)
        {
            _block.Length = (int)(end - rip);
        }
        else
        {
            _block.Length = (int)(_decoded[tail - 1].Instruction.NextIP - rip);
            _block.TailStart = _decoded[tail].Instruction.IP;
            _block.TailLength = (int)(end - _block.TailStart);
        }

        _block.Instructions = count;
        _inShadow = false;
        if (use == BlockUse.LookedUp)
        {
            EmitLookupEntry(_block);
        }

        _block.Entry = _w.Offset;
        if (checks)
        {
            EmitSelfCheck(rip, _block.Length);
        }

        for (int i = 0; i < count; i++)
        {
            _decoded[i].Host = _w.Offset;
            EmitAt(i, count);
        }

        int behind = _w.Offset;

        if (last.Class < InstructionClass.Jump)
        {
            Mark(end);
            EmitLink(end);
        }

        EmitDeferred();
        _block.End = _w.Offset;
        cache.Next = _w.Offset;
        if (use != BlockUse.Step)
        {
            cache.Add(_block, cache.PageOf(rip, frame), second is null ? null : cache.PageOf(end - 1, second));
            LinkSites(firstSite);
            if (use == BlockUse.LookedUp)
            {
                cache.EnterIntoLookup(_block);
            }

            Blocks++;
            Instructions += count;
            GuestBytes += _block.Length + _block.TailLength;
            if (Observer is not null)
            {
                Show(count, behind);
            }

            HostBytes += _w.Offset - first + ((cache.Sites.Count - firstSite) * (long)TranslationCache.StubSize);
        }

        return _block;
    }

    /// <summary>Lets lookups find a block that has been made for links.</summary>
    public void AddLookupEntry(TranslationCache cache, Block block)
    {
        if (block.LookupEntry < 0)
        {
            _cache = cache;
            _w = new CodeWriter(cache.Code, cache.Next);
            EmitLookupEntry(block);
            _ = _w.Jump(block.Address);
            HostBytes += _w.Offset - cache.Next;
            cache.Next = _w.Offset;
        }

        cache.EnterIntoLookup(block);
    }

    private void LinkSites(int first)
    {
        for (int site = first; site < _cache.Sites.Count; site++)
        {
            ExitSite exit = _cache.Sites[site];
            if (
                exit.Kind == SiteKind.Link
                && (_cache.TryFind(exit.Rip, out Block? target) || (target = _cache.FindInside(exit.Rip)) is not null)
            )
            {
                _cache.Link(site, target);
            }
        }
    }

    private void Show(int count, int behind)
    {
        var instructions = new TranslatedInstruction[count];
        for (int i = 0; i < count; i++)
        {
            ref Decoded decoded = ref _decoded[i];
            int end = i + 1 < count ? _decoded[i + 1].Host : behind;
            instructions[i] = new TranslatedInstruction(
                decoded.Instruction.IP,
                new ReadOnlySpan<byte>(decoded.Bytes, decoded.Instruction.Length).ToArray(),
                Host(decoded.Host, end)
            );
        }

        int start = _block.LookupEntry >= 0 ? _block.LookupEntry : _block.Entry;
        Observer!.Translated(
            new TranslatedBlock(_block.Start, Host(start, _decoded[0].Host), instructions, Host(behind, _block.End))
        );
    }

    private HostCode Host(int start, int end) =>
        new(CarrierLayout.CodeCache + (ulong)start, new ReadOnlySpan<byte>(_cache.Code + start, end - start).ToArray());

    // ------------------------------------------------------------------------------------------------ decoding

    /// <summary>Fills the list of decoded instructions.</summary>
    /// <param name="page">First byte of the page.</param>
    /// <param name="rip">Linear address of the first instruction.</param>
    /// <param name="limit">Most instructions.</param>
    /// <param name="checks">A block that checks itself ends behind everything that may write memory.</param>
    /// <param name="second">The page that the last instruction reaches into, if it does.</param>
    /// <param name="tail">Index of the first instruction behind a jump that the block goes on behind; 0 when it does not.</param>
    /// <param name="fault">When 0 is returned: the address that cannot be fetched.</param>
    private int Decode(
        byte* page,
        ulong rip,
        int limit,
        bool checks,
        out CodeFrame? second,
        out int tail,
        ref ulong fault
    )
    {
        second = null;
        tail = 0;
        byte* at = page + (rip & (GuestMemory.PageSize - 1));
        byte* end = page + GuestMemory.PageSize;
        ulong start = rip;
        int count = 0;
        while (count < limit && at < end)
        {
            ref Decoded decoded = ref _decoded[count];
            _reader.Set(at, end);
            _decoder.IP = rip;
            _decoder.Decode(out decoded.Instruction);
            decoded.Bytes = at;
            if (decoded.Instruction.IsInvalid && end - at < LongestInstruction)
            {
                // It may reach into the next page; then it is a block of its own.
                if (count > 0)
                {
                    break;
                }

                DecodeCrossing(ref decoded, rip, (int)(end - at), out second, ref fault);
                if (fault != rip)
                {
                    return 0;
                }

                limit = 1;
            }

            if (decoded.Instruction.IsIPRelativeMemoryOperand)
            {
                decoded.Displacement = (byte)_decoder.GetConstantOffsets(decoded.Instruction).DisplacementOffset;
            }

            decoded.Class = _classes[decoded.Instruction];
            count++;
            if (
                decoded.Class == InstructionClass.Jump
                && tail == 0
                && !checks
                && second is null
                && IsTail(decoded.Instruction.NearBranchTarget, start, decoded.Instruction.NextIP)
            )
            {
                decoded.Class = InstructionClass.Followed;
                tail = count;
                rip = decoded.Instruction.NearBranchTarget;
                at = page + (rip & (GuestMemory.PageSize - 1));
                continue;
            }

            if (decoded.Class >= InstructionClass.Jump)
            {
                break;
            }

            at += decoded.Instruction.Length;
            rip = decoded.Instruction.NextIP;
            if (checks && MayWrite(decoded.Instruction))
            {
                break;
            }

            // What is there already need not be there twice.
            if (tail == 0 && _cache.TryFind(rip, out _))
            {
                break;
            }
        }

        if (tail == count && tail > 0)
        {
            // There is no room for what follows, or it is no longer what it was.
            _decoded[count - 1].Class = InstructionClass.Jump;
            tail = 0;
        }

        return count;
    }

    // Apart from the block so far, which is the stretch from start to end.
    private bool IsTail(ulong target, ulong start, ulong end)
    {
        if (((target ^ start) & ~(GuestMemory.PageSize - 1)) != 0)
        {
            return false;
        }

        Block? block = _cache.TryFind(target, out Block known) ? known : _cache.FindInside(target);
        return block is { EndsIndirectly: true, ChecksItself: false, TailLength: 0, Length: <= MaximumTail }
            && ((target + (ulong)block.Length - 1) ^ start) < GuestMemory.PageSize
            && (target >= end || target + (ulong)block.Length <= start);
    }

    // Bytes that are missing have to be fetched only if the instruction really has them.
    private void DecodeCrossing(ref Decoded decoded, ulong rip, int available, out CodeFrame? second, ref ulong fault)
    {
        second = null;
        byte* buffer = (byte*)System.Runtime.CompilerServices.Unsafe.AsPointer(ref _crossing[0]);
        new ReadOnlySpan<byte>(decoded.Bytes, available).CopyTo(_crossing);
        if (_decoder.LastError != DecoderError.NoMoreBytes)
        {
            return;
        }

        ulong next = rip + (ulong)available;
        if (!_source.TryFetch(next, out byte* page, out second))
        {
            fault = next;
            return;
        }

        new ReadOnlySpan<byte>(page, LongestInstruction).CopyTo(_crossing.AsSpan(available));
        _reader.Set(buffer, buffer + available + LongestInstruction);
        _decoder.IP = rip;
        _decoder.Decode(out decoded.Instruction);
        decoded.Bytes = buffer;
        if (decoded.Instruction.Length <= available)
        {
            second = null; // undefined, whatever comes there
        }
    }

    private static bool MayWrite(in Instruction instruction) =>
        instruction.IsStackInstruction
        || instruction.IsStringInstruction
        || (instruction.OpCount > 0 && instruction.Op0Kind >= OpKind.MemorySegSI)
        || instruction.Op0Kind == OpKind.Memory
        || instruction.Op1Kind == OpKind.Memory;

    private sealed class CodeBytes : CodeReader
    {
        private byte* _at;
        private byte* _end;

        public void Set(byte* at, byte* end)
        {
            _at = at;
            _end = end;
        }

        public override int ReadByte() => _at < _end ? *_at++ : -1;
    }

    private sealed class EncodedBytes : Iced.Intel.CodeWriter
    {
        public readonly byte[] Buffer = GC.AllocateArray<byte>(32, pinned: true);

        public int Length { get; set; }

        public override void WriteByte(byte value) => Buffer[Length++] = value;
    }

    // ------------------------------------------------------------------------------------------------ bookkeeping

    /// <summary>From here on the guest is at an address, with so much to put right.</summary>
    private void Mark(ulong rip, Repairs repairs = Repairs.None, byte other = 0) =>
        _cache.Recovery.Add(
            new RecoveryPoint(
                _w.Offset,
                RipSource.Constant,
                _inShadow && rip == _shadowed ? repairs | Repairs.InShadow : repairs,
                other,
                rip
            )
        );

    /// <summary>An instruction's translation begins.</summary>
    private void MarkEntry(ulong rip) =>
        _cache.Recovery.Add(
            new RecoveryPoint(
                _w.Offset,
                RipSource.Constant,
                _inShadow ? Repairs.InShadow : Repairs.None,
                0,
                rip,
                IsEntry: !_inShadow && !_block.ChecksItself
            )
        );

    private void MarkComputed(RipSource source, Repairs repairs, ulong constant = 0) =>
        _cache.Recovery.Add(new RecoveryPoint(_w.Offset, source, repairs, 0, constant));

    /// <summary>Leaves the block for good.</summary>
    private void EmitExit(SiteKind kind, ulong rip) =>
        _ = _w.Jump(_cache.StubAddress(_cache.AddSite(new ExitSite(kind, _block, rip, 0))));

    /// <summary>Goes on at a guest address, whose block may be found later.</summary>
    private void EmitLink(ulong rip)
    {
        if (_use == BlockUse.Step)
        {
            EmitExit(SiteKind.Stepped, rip);
            return;
        }

        int jump = _w.Jump(CarrierLayout.CodeCache);
        PointToStub(rip, jump);
    }

    private void PointToStub(ulong rip, int jump)
    {
        SiteKind kind = _use == BlockUse.Step ? SiteKind.Stepped : SiteKind.Link;
        int site = _cache.AddSite(new ExitSite(kind, _block, rip, jump));
        CodeWriter.Patch(_cache.Code, jump, _cache.StubAddress(site));
    }

    /// <summary>A rare way out of the middle of an instruction's sequence, written behind the block.</summary>
    /// <param name="jump">Offset of the displacement of the jump to it.</param>
    /// <param name="rip">Where the guest is.</param>
    /// <param name="kind">What for.</param>
    /// <param name="repairs">What it has to restore.</param>
    private void Defer(int jump, ulong rip, SiteKind kind, Repairs repairs) =>
        _deferred.Add((jump, rip, kind, repairs));

    private void EmitDeferred()
    {
        _inShadow = false;
        foreach ((int jump, ulong rip, SiteKind kind, Repairs repairs) in _deferred)
        {
            _w.PatchToHere(jump);
            Mark(rip, repairs, Gpr.Rdx);
            if ((repairs & Repairs.Rcx) != 0)
            {
                _w.Load(Gpr.Rcx, SavedRcx);
            }

            if ((repairs & Repairs.R11) != 0)
            {
                _w.Load(R11, SavedR11);
            }

            if ((repairs & Repairs.Other) != 0)
            {
                _w.Load(Gpr.Rdx, SavedOther);
            }

            Mark(rip);
            EmitExit(kind, rip);
        }

        _deferred.Clear();
        foreach (IndirectBranch branch in _indirect)
        {
            EmitUnknownTarget(branch);
        }

        _indirect.Clear();
        EmitPollHits();
    }

    private static readonly int SavedRcx = CodeWriter.Field(nameof(ControlPage.SavedRcx)),
        SavedRax = CodeWriter.Field(nameof(ControlPage.SavedRax)),
        SavedR11 = CodeWriter.Field(nameof(ControlPage.SavedR11)),
        SavedOther = CodeWriter.Field(nameof(ControlPage.SavedOther)),
        LookupHits = CodeWriter.Field(nameof(ControlPage.LookupHits)),
        BranchNumber = CodeWriter.Field(nameof(ControlPage.Branch)),
        LookupTarget = CodeWriter.Field(nameof(ControlPage.LookupTarget)),
        WindowWanted = CodeWriter.Field(nameof(ControlPage.WindowWanted)),
        VirtualFlags = CodeWriter.Field(nameof(ControlPage.VirtualFlags)),
        Scratch = CodeWriter.Field(nameof(ControlPage.Scratch));
}
