using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// The program that every workload with a fixed work unit shares. A unit is cut into <see cref="Workload.MaximumTrapsPerUnit"/>
/// slots, the same for every k; k of the slots, spread evenly, hold one sensitive operation each. So k = 16 executes the
/// filler of k = 0, with the same loops at the same addresses, and nothing but the sensitive operations differs. In a slot
/// without one, redundant prefixes of the next instructions take its place in the code: loops that moved by two bytes have cost
/// 5 % of a unit, more than 16 untrapped RDTSCs.
/// </summary>
/// <remarks>
/// <code>
/// units:  slot 0 … slot S−1          each: before, [sensitive], after, filler
///         dec r12; jnz units; ret
/// entry:  read parameters; load the IDT; set up; run the warm-up units
///         rdtsc; out 0xB0; run the measured units; out 0xB8; out 0xB4; rdtsc
///         fold what is left into the checksum; result block; out 0xF4
///         out of line: paths of the operations that are hardly ever taken
/// system code, a segment of its own: handlers and routines that the operations lead to
/// </code>
/// Both interfaces have the same units but for the operation, so that the checksum is the same for both.
/// <para>
/// Registers: r14 and rbx the checksum's two halves, r12 units left, r15 units to measure, r13 the TSC at the start, rcx the
/// filler's inner loops. rax, rdx, rsi, rdi and r8–r11 belong to the workload; rbp is free.
/// </para>
/// </remarks>
public abstract class SlottedWorkload : Workload
{
    /// <summary>Where images are assembled: identity-mapped, so linear and guest-physical alike.</summary>
    public const ulong ImageBase = 0x10_0000;

    /// <summary>Instructions of the inner filler loop's body, DEC and JNZ not counted.</summary>
    private const int LoopBody = 14;

    /// <summary>Instructions that one turn of the inner filler loop executes.</summary>
    private const int LoopTurn = LoopBody + 2;

    /// <summary>DEC and JNZ of the units loop.</summary>
    private const int UnitControl = 2;

    /// <summary>Prefixes that the filler's first instruction has room for: an instruction has 15 bytes at most.</summary>
    private const int FirstPrefixes = 10;

    /// <summary>Prefixes that any other instruction of the filler has room for.</summary>
    private const int OtherPrefixes = 8;

    /// <summary>Longest operation: what the instructions of a turn, straight, have room for.</summary>
    private const int MaximumLength = FirstPrefixes + (LoopBody * OtherPrefixes);

    // Odd, so that no half starts with the zero that rotations and shifts keep.
    private const ulong ChecksumSeed = 0x9E37_79B9_7F4A_7C15;

    /// <summary>Instructions other than the sensitive ones and the filler that each slot executes.</summary>
    protected virtual int SlotInstructions => 0;

    /// <summary>Instructions of one sensitive operation that stand in the slot; those of system code not counted.</summary>
    internal int OperationInstructions(GuestInterface guestInterface, int index)
    {
        var a = new GuestAssembler(guestInterface);
        EmitSensitive(a, index);
        return a.Instructions.Count;
    }

    /// <summary>Least value of <see cref="WorkloadOptions.FillerInstructions"/>.</summary>
    public int MinimumFiller => UnitControl + (MaximumTrapsPerUnit * SlotInstructions);

    /// <inheritdoc/>
    public sealed override GuestImage Build(WorkloadOptions options)
    {
        if (options.TrapsPerUnit < 0 || options.TrapsPerUnit > MaximumTrapsPerUnit)
        {
            throw new ArgumentOutOfRangeException(
                nameof(options),
                $"{Id} has room for 0 to {MaximumTrapsPerUnit} traps per unit, not {options.TrapsPerUnit}"
            );
        }

        if (options.FillerInstructions < MinimumFiller)
        {
            throw new ArgumentOutOfRangeException(
                nameof(options),
                $"a unit of {Id} has at least {MinimumFiller} instructions besides the sensitive ones, not {options.FillerInstructions}"
            );
        }

        var a = new GuestAssembler(options.Interface);
        Label units = a.CreateLabel("units");
        Label entry = a.CreateLabel("entry");

        var system = new GuestAssembler(options.Interface);
        IReadOnlyList<InterruptGate> gates = EmitSystemCode(system);
        system.EmitOutOfLine();

        // The units loop comes first: the image's base aligns it, whatever is set up behind it.
        a.Label(ref units);
        EmitUnit(a, options);
        a.dec(r12);
        a.jnz(units);
        a.ret();

        a.Label(ref entry);
        ReadParameters(a);
        if (gates.Count > 0)
        {
            a.mov(eax, (uint)SystemArea.IdtPointer);
            a.lidt(__[rax]);
        }

        EmitSetup(a);
        RunUnits(a, units);
        a.mov(r12, r15);
        BeginRegion(a);
        RunUnits(a, units);
        EndRegion(a);
        FoldIntoChecksum(a, options.TrapsPerUnit > 0);
        LeaveResult(a);
        a.EmitOutOfLine();

        AssemblerResult assembled = Assemble(a, ImageBase, out ImageSegment code);
        var segments = new List<ImageSegment> { code };
        if (system.Instructions.Count > 0)
        {
            AssemblerResult handlers = Assemble(system, SystemArea.Code, out ImageSegment systemCode);
            segments.Add(systemCode);
            if (gates.Count > 0)
            {
                segments.Add(SystemArea.InterruptTable(gates, handlers));
            }
        }

        segments.AddRange(DataSegments(options));
        return new GuestImage(
            $"{Id}, k = {options.TrapsPerUnit}, filler {options.FillerInstructions}",
            assembled.GetLabelRIP(entry),
            segments
        )
        {
            Disk = Disk,
        };
    }

    private static AssemblerResult Assemble(Assembler a, ulong address, out ImageSegment segment)
    {
        using var code = new MemoryStream();
        AssemblerResult result = a.Assemble(
            new StreamCodeWriter(code),
            address,
            BlockEncoderOptions.ReturnNewInstructionOffsets
        );
        byte[] content = code.ToArray();
        segment = new ImageSegment(address, content, (ulong)content.Length, Executable: true);
        return result;
    }

    /// <summary>
    /// Code at <see cref="SystemArea.Code"/>, apart from the units: interrupt and system-call handlers, routines that an
    /// operation calls. What it executes counts to the operation.
    /// </summary>
    /// <returns>The gates of the IDT, which is loaded before <see cref="EmitSetup"/> when there is one.</returns>
    internal virtual IReadOnlyList<InterruptGate> EmitSystemCode(GuestAssembler a) => [];

    /// <summary>Runs once before the warm-up. May clobber the workload's registers; must keep r12–r15 and rbx.</summary>
    protected virtual void EmitSetup(GuestAssembler a) { }

    /// <summary>Calls the units, with RSP kept: in another ring where the workload's units belong there.</summary>
    protected virtual void EmitCall(GuestAssembler a, Label units) => a.call(units);

    /// <summary>
    /// Sets the sensitive instruction's operands, before the warm-up and again between the begin marker and the units loop,
    /// as the markers use rax and rdx. Clobbers the workload's registers only.
    /// </summary>
    protected virtual void LoadOperands(GuestAssembler a) { }

    /// <summary>In every slot, whatever k: what comes before the sensitive instruction.</summary>
    protected virtual void EmitBefore(GuestAssembler a) { }

    /// <summary>
    /// One sensitive operation, whose instructions are executed once each; what is out of line is not. It keeps r14 and rbx.
    /// </summary>
    /// <param name="a">Where to.</param>
    /// <param name="index">How many of the unit's sensitive operations come before this one.</param>
    protected abstract void EmitSensitive(GuestAssembler a, int index);

    /// <summary>In every slot, whatever k: what follows the sensitive instruction's place.</summary>
    protected virtual void EmitAfter(GuestAssembler a) { }

    /// <summary>After the region: adds what the sensitive operations have left somewhere to r14.</summary>
    /// <param name="a">Where to.</param>
    /// <param name="afterSensitive">k is at least 1; the control executes no sensitive instruction here either.</param>
    protected virtual void FoldIntoChecksum(GuestAssembler a, bool afterSensitive) { }

    /// <summary>Segments besides the code.</summary>
    protected virtual IEnumerable<ImageSegment> DataSegments(GuestInterface guestInterface) => [];

    /// <summary>The same, where they depend on more.</summary>
    private protected virtual IEnumerable<ImageSegment> DataSegments(WorkloadOptions options) =>
        DataSegments(options.Interface);

    /// <summary>True for the k of the slots that hold the sensitive instruction: the first, and the others evenly spread.</summary>
    internal static bool HoldsSensitive(int slot, int slots, int trapsPerUnit) =>
        (long)slot * trapsPerUnit % slots < trapsPerUnit;

    private void EmitUnit(GuestAssembler a, WorkloadOptions options)
    {
        int slots = MaximumTrapsPerUnit;
        int filler = options.FillerInstructions - MinimumFiller;
        int[] lengths = [.. Enumerable.Range(0, options.TrapsPerUnit + 2).Select(i => OperationLength(options, i))];
        int longest = lengths.Max(); // of both kinds, where two take turns: the same for every k
        int index = 0;
        for (int slot = 0; slot < slots; slot++)
        {
            EmitBefore(a);
            int padding = longest;
            if (HoldsSensitive(slot, slots, options.TrapsPerUnit))
            {
                padding -= lengths[index];
                EmitSensitive(a, index++);
            }

            EmitAfter(a);
            int instructions = (int)(((slot + 1L) * filler / slots) - ((long)slot * filler / slots));
            EmitFiller(a, instructions, padding, longest);
        }
    }

    /// <summary>Bytes of the sensitive operation in the slot; 0 when there is none.</summary>
    private int OperationLength(WorkloadOptions options, int index)
    {
        var a = new GuestAssembler(options.Interface);
        Label end = a.CreateLabel("end");
        EmitSensitive(a, index);
        a.Label(ref end);
        a.nop();
        a.EmitOutOfLine();
        int length = (int)(Assemble(a, ImageBase, out _).GetLabelRIP(end) - ImageBase);
        return length <= MaximumLength
            ? length
            : throw new InvalidOperationException(
                $"an operation of {Id} has {length} bytes, and a slot without one room for {MaximumLength}"
            );
    }

    /// <summary>
    /// Executes exactly <paramref name="instructions"/> instructions, the first of them with so many redundant prefixes in all. Where the
    /// operation is too long for those of one instruction, the loop's first turn stands straight before it, with the loop's
    /// own control; the loop then begins at the same address whatever the prefixes. Clobbers rcx and flags; mixes r14 and rbx.
    /// </summary>
    private static void EmitFiller(GuestAssembler a, int instructions, int prefixes, int longest)
    {
        int turns = (instructions - 1) / LoopTurn;
        if (turns >= 2)
        {
            Label loop = a.CreateLabel();
            Pad(a, ref prefixes, FirstPrefixes);
            a.mov(ecx, turns);
            if (longest > FirstPrefixes)
            {
                for (int i = 0; i < LoopBody; i++)
                {
                    Pad(a, ref prefixes, OtherPrefixes);
                    EmitMixing(a, i);
                }

                a.dec(ecx);
                a.jz(loop); // never: there are two turns at least
            }

            a.Label(ref loop);
            for (int i = 0; i < LoopBody; i++)
            {
                EmitMixing(a, i);
            }

            a.dec(ecx);
            a.jnz(loop);
            instructions -= 1 + (turns * LoopTurn);
        }

        for (int i = 0; i < instructions; i++)
        {
            Pad(a, ref prefixes, i == 0 ? FirstPrefixes : OtherPrefixes);
            EmitMixing(a, i);
        }
    }

    private static void Pad(GuestAssembler a, ref int prefixes, int most)
    {
        const byte dataSegment = 0x3E; // means nothing in 64-bit mode
        for (int i = Math.Min(prefixes, most); i > 0; i--, prefixes--)
        {
            a.db(dataSegment);
        }
    }

    // One dependency chain, so that its time hardly depends on where a trap cuts it. Each step is a bijection of (r14, rbx):
    // no work done is ever forgotten, and no input collapses to zero. Clobbers flags.
    private static void EmitMixing(GuestAssembler a, int step)
    {
        switch (step % LoopBody)
        {
            case 0:
                a.add(r14, rbx);
                break;
            case 1:
                a.rol(r14, 13);
                break;
            case 2:
                a.xor(rbx, r14);
                break;
            case 3:
                a.lea(rbx, __[rbx + (rbx * 4) + 1]);
                break;
            case 4:
                a.sub(r14, rbx);
                break;
            case 5:
                a.ror(r14, 7);
                break;
            case 6:
                a.add(rbx, r14);
                break;
            case 7:
                a.not(rbx);
                break;
            case 8:
                a.xor(r14, rbx);
                break;
            case 9:
                a.add(r14, 0x1234567);
                break;
            case 10:
                a.rol(r14, 29);
                break;
            case 11:
                a.sub(rbx, r14);
                break;
            case 12:
                a.neg(rbx);
                break;
            default:
                a.xor(r14, rbx);
                break;
        }
    }

    /// <summary>RDI is the boot information's address. r12 = warm-up units, r15 = units to measure; seeds the checksum.</summary>
    private static void ReadParameters(GuestAssembler a)
    {
        a.mov(r12, __[rdi + BootInformation.ParametersOffset]);
        a.mov(r15, __[rdi + BootInformation.ParametersOffset + 8]);
        a.mov(r14, ChecksumSeed);
        a.mov(rbx, ~ChecksumSeed);
    }

    /// <summary>Runs r12 units, none included. Clobbers rcx, flags and what the slots clobber; leaves r12 = 0.</summary>
    private void RunUnits(GuestAssembler a, Label units)
    {
        Label none = a.CreateLabel();
        LoadOperands(a);
        a.test(r12, r12);
        a.jz(none);
        EmitCall(a, units);
        a.Label(ref none);
        a.nop();
    }

    /// <summary>r13 = TSC; then the begin marker. Clobbers rax, rdx and flags.</summary>
    private static void BeginRegion(GuestAssembler a)
    {
        ReadTimeStamp(a);
        a.mov(r13, rax);
        a.mov(eax, MeasuredRegionId);
        a.@out((byte)MeasurementPorts.Begin, eax);
    }

    /// <summary>The end marker with r15 units; then r13 = TSC ticks since the start. Clobbers rax, rdx and flags.</summary>
    private static void EndRegion(GuestAssembler a)
    {
        a.mov(rax, r15);
        a.shr(rax, 32);
        a.@out((byte)MeasurementPorts.UnitsHigh, eax);
        a.mov(eax, r15d);
        a.@out((byte)MeasurementPorts.End, eax);
        ReadTimeStamp(a);
        a.sub(rax, r13);
        a.mov(r13, rax);
    }

    /// <summary>rax = time-stamp counter. Clobbers rdx and flags.</summary>
    private static void ReadTimeStamp(GuestAssembler a)
    {
        a.rdtsc();
        a.shl(rdx, 32);
        a.or(rax, rdx);
    }

    /// <summary>Writes the result block and ends the guest with status 0. Clobbers rax and flags.</summary>
    private static void LeaveResult(GuestAssembler a)
    {
        a.rol(rbx, 32);
        a.xor(r14, rbx);
        a.mov(eax, (uint)WorkloadResult.Address);
        a.mov(__[rax], r14);
        a.mov(__[rax + 8], r13);
        a.xor(eax, eax);
        a.@out((byte)ExitPort.Port, al);
        a.ud2();
    }
}
