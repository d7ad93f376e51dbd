using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// A workload of one kind of code and no sensitive instruction: what a strategy that changes guest code makes of this kind, its
/// slow-down s. The image is the same for every k. A unit is a number of whole repetitions of the kernel: as many as its
/// instructions have room for in <see cref="WorkloadOptions.FillerInstructions"/>, one at least.
/// </summary>
/// <remarks>
/// <code>
/// repetitions:  the kernel once; dec r15; jnz repetitions; ret; the kernel's functions
/// entry:        push the units; touch every page of data; set up; run the warm-up units
///               rdtsc; out 0xB0; run the measured units; out 0xB8; out 0xB4; rdtsc
///               fold what the kernel has left into the checksum; result block; out 0xF4
/// </code>
/// Registers: r14 the kernel's data, r15 repetitions left; all others belong to the kernel. What is to last from one repetition
/// to the next it keeps in memory, in rbx, rbp, rsi, rdi, r8 to r12 or in XMM registers: the markers use rax and rdx, the
/// checksum r13.
/// </remarks>
public abstract class CodeKernel : Workload
{
    /// <summary>Where code is assembled: identity-mapped, so linear and guest-physical alike.</summary>
    internal const ulong Code = SlottedWorkload.ImageBase;

    /// <summary>Where the kernel's data lie, pages that hold no code.</summary>
    internal const ulong Data = 0x20_0000;

    /// <summary>Value of the checksum before anything is folded into it.</summary>
    internal const ulong ChecksumSeed = 0x9E37_79B9_7F4A_7C15;

    /// <summary>Bits by which <see cref="Fold(Assembler, AssemblerRegister64)"/> rotates.</summary>
    internal const int ChecksumRotation = 17;

    private const int MostDensity = 64;
    private const int PageBytes = 0x1000;

    /// <inheritdoc/>
    public override SensitiveOperation Operation(GuestInterface guestInterface) => SensitiveOperation.None;

    /// <inheritdoc/>
    public override bool NeedsPrivilege => false;

    /// <inheritdoc/>
    public override bool DependsOnDensity => false;

    /// <inheritdoc/>
    public override int MaximumTrapsPerUnit => MostDensity;

    /// <inheritdoc/>
    public override int DefaultFiller => 20_000;

    /// <summary>Instructions that one repetition executes, its loop control included: the same in every repetition.</summary>
    public abstract int InstructionsPerRepetition { get; }

    /// <summary>Repetitions in a unit of so many instructions.</summary>
    public int RepetitionsPerUnit(int instructions) => Math.Max(1, instructions / InstructionsPerRepetition);

    /// <inheritdoc/>
    public sealed override GuestImage Build(WorkloadOptions options)
    {
        if (options.TrapsPerUnit is < 0 or > MostDensity)
        {
            throw new ArgumentOutOfRangeException(
                nameof(options),
                $"{Id} takes 0 to {MostDensity} traps per unit, which change nothing in it, not {options.TrapsPerUnit}"
            );
        }

        if (options.FillerInstructions < 1)
        {
            throw new ArgumentOutOfRangeException(
                nameof(options),
                $"a unit of {Id} has at least 1 instruction, not {options.FillerInstructions}"
            );
        }

        byte[] data = InitialData();
        var a = new Assembler(64);
        Label repetitions = a.CreateLabel("repetitions");
        Label entry = a.CreateLabel("entry");
        int perUnit = RepetitionsPerUnit(options.FillerInstructions);

        Label[] targets = [.. Enumerable.Range(0, Targets).Select(i => a.CreateLabel($"target{i}"))];

        // The kernel comes first: the image's base aligns it.
        a.Label(ref repetitions);
        EmitRepetition(a, targets);
        a.dec(r15);
        a.jnz(repetitions);
        a.ret();
        EmitFunctions(a, targets);

        a.Label(ref entry);
        a.push(__qword_ptr[rdi + BootInformation.ParametersOffset + 8]);
        a.mov(r15, __[rdi + BootInformation.ParametersOffset]);
        a.mov(r14d, (uint)Data);
        TouchData(a, data.Length);
        EmitSetup(a, targets);
        Run(a, repetitions, perUnit);
        a.mov(r15, __[rsp]);
        ReadTimeStamp(a);
        a.push(rax);
        a.mov(eax, MeasuredRegionId);
        a.@out((byte)MeasurementPorts.Begin, eax);
        Run(a, repetitions, perUnit);
        a.mov(rax, __[rsp + 8]);
        a.shr(rax, 32);
        a.@out((byte)MeasurementPorts.UnitsHigh, eax);
        a.mov(eax, __dword_ptr[rsp + 8]);
        a.@out((byte)MeasurementPorts.End, eax);
        ReadTimeStamp(a);
        a.sub(rax, __[rsp]);
        a.mov(__[rsp], rax);
        a.mov(r13, ChecksumSeed);
        EmitFold(a);
        a.mov(eax, (uint)WorkloadResult.Address);
        a.mov(__[rax], r13);
        a.pop(rcx);
        a.mov(__[rax + 8], rcx);
        a.xor(eax, eax);
        a.@out((byte)ExitPort.Port, al);
        a.ud2();

        using var code = new MemoryStream();
        AssemblerResult assembled = a.Assemble(
            new StreamCodeWriter(code),
            Code,
            BlockEncoderOptions.ReturnNewInstructionOffsets
        );
        byte[] content = code.ToArray();
        return new GuestImage(
            $"{Id}, k = {options.TrapsPerUnit}, filler {options.FillerInstructions}",
            assembled.GetLabelRIP(entry),
            [
                new ImageSegment(Code, content, (ulong)content.Length, Executable: true),
                new ImageSegment(Data, data, (ulong)data.Length, Executable: false),
            ]
        );
    }

    /// <summary>The kernel's data at <see cref="Data"/>, as they are when the guest starts.</summary>
    private protected abstract byte[] InitialData();

    /// <summary>Labels that the kernel, its functions and what sets them up have in common.</summary>
    private protected virtual int Targets => 0;

    /// <summary>Runs once before the warm-up. Keeps r14, r15 and the stack.</summary>
    private protected virtual void EmitSetup(Assembler a, Label[] targets) { }

    /// <summary>The kernel, once. Keeps r14, r15 and the stack.</summary>
    private protected abstract void EmitRepetition(Assembler a, Label[] targets);

    /// <summary>What the kernel calls or jumps to, behind its loop.</summary>
    private protected virtual void EmitFunctions(Assembler a, Label[] targets) { }

    /// <summary>After the region: folds all that depends on the kernel's work into r13.</summary>
    private protected abstract void EmitFold(Assembler a);

    /// <summary>r13 = rol(r13 + value, 17). Clobbers flags.</summary>
    private protected static void Fold(Assembler a, AssemblerRegister64 value)
    {
        a.add(r13, value);
        a.rol(r13, ChecksumRotation);
    }

    /// <summary>Folds so many quadwords of the kernel's data, from an offset on. Clobbers rax, rcx and flags.</summary>
    private protected static void FoldMemory(Assembler a, int offset, int quadwords)
    {
        Label next = a.CreateLabel();
        a.xor(ecx, ecx);
        a.Label(ref next);
        a.mov(rax, __[r14 + (rcx * 8) + offset]);
        Fold(a, rax);
        a.inc(ecx);
        a.cmp(ecx, quadwords);
        a.jne(next);
    }

    /// <summary>r15 units' repetitions, none included. Leaves r15 = 0; clobbers flags besides what the kernel clobbers.</summary>
    private static void Run(Assembler a, Label repetitions, int perUnit)
    {
        Label none = a.CreateLabel();
        a.imul(r15, r15, perUnit);
        a.test(r15, r15);
        a.jz(none);
        a.call(repetitions);
        a.Label(ref none);
        a.nop();
    }

    /// <summary>
    /// Writes to every page of data what stands there, so that no hidden page fault of the first touch gets into the region.
    /// Clobbers rax, rcx and flags.
    /// </summary>
    private static void TouchData(Assembler a, int bytes)
    {
        Label next = a.CreateLabel();
        a.xor(ecx, ecx);
        a.Label(ref next);
        a.mov(al, __[r14 + rcx]);
        a.mov(__[r14 + rcx], al);
        a.add(ecx, PageBytes);
        a.cmp(ecx, bytes);
        a.jb(next);
    }

    /// <summary>rax = time-stamp counter. Clobbers rdx and flags.</summary>
    private static void ReadTimeStamp(Assembler a)
    {
        a.rdtsc();
        a.shl(rdx, 32);
        a.or(rax, rdx);
    }
}

/// <summary>Constants that look random and are the same in every build.</summary>
internal struct KernelRandom(ulong seed)
{
    private ulong _state = seed;

    /// <summary>Next 32 bits: the upper half of Knuth's MMIX generator (TAOCP vol. 2, 3.3.4, table 1).</summary>
    public uint Next()
    {
        _state = (_state * 6364136223846793005) + 1442695040888963407;
        return (uint)(_state >> 32);
    }

    /// <summary>Fills with bytes.</summary>
    public void Fill(Span<byte> bytes)
    {
        foreach (ref byte one in bytes)
        {
            one = (byte)(Next() >> 24);
        }
    }
}
