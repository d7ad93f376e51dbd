using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// The kernel's code, a part a file: set-up, entries, scheduler, memory, system calls, console, the end.
/// </summary>
/// <remarks>
/// It runs with interrupts off but for the sleep of the idle loop, and keeps nothing on its stack between two entries: every
/// entry from ring 3 saves the registers in the block of the process, takes the kernel stack from its top, and ends in
/// <c>resume</c> (the same process), <c>schedule</c> (the next one that is ready) or <c>panic</c>. So one kernel stack serves
/// all processes.
/// <para>
/// Built for the paravirtual interface it differs in what <see cref="GuestAssembler"/> makes of its operations, and in nothing else. The tick comes
/// from the 8254 under both: programmed once, it takes no operation a tick but the end of the interrupt.
/// </para>
/// <para>
/// RBX is the process that the entry came from; what is called, not jumped to, keeps it and says what it clobbers.
/// </para>
/// <para>
/// Instructions that a deprivileged kernel would get a wrong answer from are not in it: the ring of an event is read from the
/// pushed CS, not by MOV from CS; the interrupt flag is set by STI and IRETQ, never by POPF; no segment register is loaded.
/// It returns to ring 3 by IRETQ from system calls too: SYSRETQ would do for most, but one of the kernel modules behind
/// /dev/kvm ends the guest there.
/// </para>
/// </remarks>
internal sealed partial class MiniOsKernel
{
    private readonly GuestAssembler _a;
    private readonly KernelText _text = new();
    private readonly int _processes;

    private MiniOsKernel(int processes, GuestInterface guestInterface)
    {
        _a = new GuestAssembler(guestInterface);
        _processes = processes;
        _tableOf = _a.CreateLabel();
        _takeFrame = _a.CreateLabel();
        _giveFrame = _a.CreateLabel();
        _discardPages = _a.CreateLabel();
        _resume = _a.CreateLabel();
        _schedule = _a.CreateLabel();
        _panic = _a.CreateLabel();
        _tick = _a.CreateLabel();
        _pageFault = _a.CreateLabel();
        _timerInUserMode = _a.CreateLabel();
        _rendezvous = _a.CreateLabel();
        _finish = _a.CreateLabel();
        _print = _a.CreateLabel();
        _printHexadecimal = _a.CreateLabel();
        _printDecimal = _a.CreateLabel();
        _systemCall = _a.CreateLabel();
        _save = _a.CreateLabel();
        _countSpurious = _a.CreateLabel();
        _enteredInRing3 = _a.CreateLabel();
        _refuse = _a.CreateLabel();
        _answer = _a.CreateLabel();
        _transfer = _a.CreateLabel();
        _readBlocks = _a.CreateLabel();
        _disk = DiskDriver.Create(
            guestInterface == GuestInterface.Native ? DiskFrontEndKind.Ata : DiskFrontEndKind.Virtio,
            _a,
            MiniOsLayout.DiskDriver,
            MiniOsLayout.KernelPointers
        );
        for (int call = 0; call < _calls.Length; call++)
        {
            _calls[call] = _a.CreateLabel();
        }
    }

    /// <summary>Assembles the kernel.</summary>
    /// <param name="processes">How many processes it makes.</param>
    /// <param name="guestInterface">What its operations on the machine are lowered to.</param>
    public static MiniOsKernelImage Assemble(int processes, GuestInterface guestInterface)
    {
        var kernel = new MiniOsKernel(processes, guestInterface);
        GuestAssembler a = kernel._a;
        Label entry = a.CreateLabel("entry");
        a.Label(ref entry);
        kernel.EmitSetUp();
        Label[] stubs = kernel.EmitEntries();
        kernel.EmitScheduler();
        kernel.EmitMemory();
        kernel.EmitSystemCalls();
        kernel.EmitRendezvous();
        kernel.EmitFinish();
        kernel.EmitConsole();
        kernel.EmitDisk();
        a.EmitOutOfLine();

        using var code = new MemoryStream();
        AssemblerResult assembled = a.Assemble(
            new StreamCodeWriter(code),
            MiniOsLayout.KernelCode,
            BlockEncoderOptions.ReturnNewInstructionOffsets
        );
        return new MiniOsKernelImage(
            assembled.GetLabelRIP(entry),
            code.ToArray(),
            kernel._text.Content,
            [.. stubs.Select(stub => assembled.GetLabelRIP(stub))]
        );
    }

    private static AssemblerMemoryOperand At(KernelVariable variable) =>
        __qword_ptr[MiniOsLayout.Variables + (ulong)variable];

    private static AssemblerMemoryOperand At(MiniOsStatistics.Field field) =>
        __qword_ptr[MiniOsStatistics.AddressOf(field)];

    /// <summary>A boot parameter; RDI is the boot information.</summary>
    private static AssemblerMemoryOperand Parameter(MiniOsParameter parameter) =>
        __qword_ptr[rdi + BootInformation.ParametersOffset + ((int)parameter * 8)];

    /// <summary>Prints a string. Clobbers rax, rcx, rdx, rsi, rdi and r11.</summary>
    private void Say(string text)
    {
        _a.mov(esi, (uint)_text.Add(text));
        _a.call(_print);
    }
}

/// <summary>The assembled kernel.</summary>
/// <param name="Entry">Where it starts.</param>
/// <param name="Code">Bytes at <see cref="MiniOsLayout.KernelCode"/>.</param>
/// <param name="Text">Bytes at <see cref="MiniOsLayout.KernelText"/>.</param>
/// <param name="Stubs">The entries by vector.</param>
internal sealed record MiniOsKernelImage(ulong Entry, byte[] Code, byte[] Text, ulong[] Stubs);
