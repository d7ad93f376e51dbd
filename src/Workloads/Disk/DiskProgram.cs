using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

/// <summary>
/// A guest that does nothing but read or write its disk, block after block: batches of requests in flight at once, each of which is waited for
/// before the next. Writes carry <see cref="DiskBlock.Pattern"/> and are followed by a flush.
/// </summary>
/// <remarks>
/// Boot parameters: [0] blocks before the region, [1] blocks in it, [2] block to begin with. Behind the disk's last block it goes on with
/// the first. The result's checksum is <see cref="DiskBlock.Fold"/> of all that was read; of writes it is 0.
/// </remarks>
/// <param name="FrontEnd">What it drives.</param>
/// <param name="Interface">What it is built for.</param>
/// <param name="Depth">Requests of a batch, 1 to 32. The ATA driver has one in flight and waits for it when the next is submitted.</param>
/// <param name="Writes">It writes instead of reading.</param>
public sealed record DiskProgram(DiskFrontEndKind FrontEnd, GuestInterface Interface, int Depth, bool Writes = false)
{
    private const ulong Blocks = DiskArea.State; // on the disk
    private const ulong Tags = DiskArea.State + 0x100; // 4 bytes each

    /// <summary>Assembles the program.</summary>
    /// <exception cref="InvalidOperationException">There are no buffers for so many requests.</exception>
    public GuestImage Build()
    {
        if (Depth is < 1 or > DiskArea.MaximumDepth)
        {
            throw new InvalidOperationException($"a batch is of 1 to {DiskArea.MaximumDepth} requests, not of {Depth}");
        }

        var a = new GuestAssembler(Interface);
        var driver = DiskDriver.Create(FrontEnd, a, DiskArea.Driver);
        Label run = a.CreateLabel();
        EmitRun(a, run, driver);
        driver.Emit();
        Label missing = driver.Missing();
        Label entry = a.CreateLabel();
        EmitEntry(a, ref entry, run, driver, missing);
        driver.EmitFailures();
        a.EmitOutOfLine();

        using var code = new MemoryStream();
        AssemblerResult assembled = a.Assemble(
            new StreamCodeWriter(code),
            SlottedWorkload.ImageBase,
            BlockEncoderOptions.ReturnNewInstructionOffsets
        );
        byte[] content = code.ToArray();
        return new GuestImage(
            $"{(Writes ? "writes" : "reads")} by {FrontEnd}, {Depth} at once, {Interface}",
            assembled.GetLabelRIP(entry),
            [
                new ImageSegment(SlottedWorkload.ImageBase, content, (ulong)content.Length, Executable: true),
                SystemArea.InterruptTable([driver.Gate], assembled),
                .. DiskArea.Segments(),
            ]
        );
    }

    // r12 blocks left, r15 blocks to measure, rbx the next block, r14 the checksum.
    private void EmitEntry(GuestAssembler a, ref Label entry, Label run, DiskDriver driver, Label missing)
    {
        a.Label(ref entry);
        a.DisableInterrupts();
        a.mov(r12, __[rdi + BootInformation.ParametersOffset]);
        a.mov(r15, __[rdi + BootInformation.ParametersOffset + 8]);
        a.mov(rbx, __[rdi + BootInformation.ParametersOffset + 16]);
        a.xor(r14d, r14d);
        a.mov(eax, (uint)SystemArea.IdtPointer);
        a.lidt(__[rax]);
        InterruptLines.EmitSetup(a, driver.Line);
        a.call(driver.Initialize);
        a.shr(rax, 3); // sectors of a block
        a.test(rax, rax);
        a.je(missing);
        a.mov(__qword_ptr[Blocks], rax);
        a.call(run);

        a.mov(eax, Workload.MeasuredRegionId);
        a.@out((byte)MeasurementPorts.Begin, eax);
        a.mov(r12, r15);
        a.call(run);
        a.mov(eax, r15d);
        a.@out((byte)MeasurementPorts.End, eax);

        a.mov(__qword_ptr[WorkloadResult.Address], r14);
        a.xor(eax, eax);
        a.@out((byte)ExitPort.Port, al);
        a.ud2();
    }

    private void EmitRun(GuestAssembler a, Label run, DiskDriver driver)
    {
        Label done = a.CreateLabel();
        Label submit = a.CreateLabel();
        Label inside = a.CreateLabel();
        Label wait = a.CreateLabel();
        a.Label(ref run);
        a.test(r12, r12);
        a.je(done);
        a.mov(ebp, Depth);
        a.cmp(r12, rbp);
        a.cmovb(rbp, r12);
        a.sub(r12, rbp);

        a.xor(r13d, r13d);
        a.Label(ref submit);
        EmitBufferAddress(a);
        a.mov(rdi, rbx);
        if (Writes)
        {
            DiskBlock.EmitFill(a);
        }

        a.shl(rdi, 3);
        a.mov(edx, DiskBlock.Bytes);
        a.mov(ecx, (int)(Writes ? DiskTransfer.Write : DiskTransfer.Read));
        a.call(driver.Submit);
        a.mov(__dword_ptr[(r13 * 4) + (long)Tags], eax);
        a.inc(rbx);
        a.cmp(rbx, __qword_ptr[Blocks]);
        a.jb(inside);
        a.xor(ebx, ebx);
        a.Label(ref inside);
        a.inc(r13);
        a.cmp(r13, rbp);
        a.jne(submit);
        a.call(driver.Notify);

        a.xor(r13d, r13d);
        a.Label(ref wait);
        a.mov(edi, __dword_ptr[(r13 * 4) + (long)Tags]);
        a.call(driver.Wait);
        if (!Writes)
        {
            EmitBufferAddress(a);
            a.mov(r10, r14);
            DiskBlock.EmitFold(a);
            a.mov(r14, r10);
        }

        a.inc(r13);
        a.cmp(r13, rbp);
        a.jne(wait);
        a.jmp(run);

        a.Label(ref done);
        if (Writes)
        {
            a.xor(edi, edi);
            a.xor(esi, esi);
            a.xor(edx, edx);
            a.mov(ecx, (int)DiskTransfer.Flush);
            a.call(driver.Submit);
            a.push(rax);
            a.call(driver.Notify);
            a.pop(rdi);
            a.call(driver.Wait);
        }

        a.ret();
    }

    // rsi: of buffer r13. Clobbers flags.
    private static void EmitBufferAddress(Assembler a)
    {
        a.mov(esi, r13d);
        a.shl(esi, 12);
        a.add(esi, (int)DiskArea.Buffers);
    }
}
