using Iced.Intel;
using VirtBench.Vmm.Boot;

namespace VirtBench.Workloads.Tests;

/// <summary>The image of mini-os; what it does when it runs is tested with the strategies.</summary>
public sealed class MiniOsTests
{
    private const ulong Program = 0x23_0000;

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(5)]
    [InlineData(16)]
    public void A_unit_executes_exactly_the_filler_and_k_system_calls(int k)
    {
        foreach (int filler in (int[])[MiniOs.MinimumFiller, MiniOs.MinimumFiller + 1, 1_000, 4_001, 80_000])
        {
            (long instructions, long calls) = Count(new MiniOs().Build(new WorkloadOptions(k, filler)));
            Assert.Equal((filler + k, k), (instructions, calls));
        }
    }

    [Fact]
    public void Loops_have_the_same_addresses_for_every_k()
    {
        List<ulong> control = Branches(0);
        Assert.True(control.Count >= 16);
        for (int k = 1; k <= 16; k++)
        {
            Assert.Equal(control, Branches(k));
        }
    }

    [Fact]
    public void The_unit_fits_the_first_level_instruction_cache()
    {
        GuestImage image = new MiniOs().Build(new WorkloadOptions(16, 80_000));
        Assert.InRange(Segment(image).Content.Length, 1, 16 << 10);
    }

    private static ImageSegment Segment(GuestImage image) =>
        image.Segments.Single(segment => segment.PhysicalAddress == Program);

    /// <summary>The units loop: from the target of the last long backward jump to that jump.</summary>
    private static List<Instruction> Unit(GuestImage image)
    {
        var decoder = Decoder.Create(64, Segment(image).Content.ToArray(), 0x4000_0000);
        List<Instruction> all = [.. decoder];
        int ret = all.FindIndex(instruction => instruction.Mnemonic == Mnemonic.Ret);
        ulong start = all[ret - 1].NearBranchTarget;
        return [.. all.Take(ret).Where(instruction => instruction.IP >= start)];
    }

    // Loops in a unit are MOV ECX, n … DEC ECX, JNZ; each other instruction is executed once.
    private static (long Instructions, long Calls) Count(GuestImage image)
    {
        List<Instruction> unit = Unit(image);
        long instructions = unit.Count;
        foreach (Instruction branch in unit.Where(instruction => instruction.Mnemonic == Mnemonic.Jne).SkipLast(1))
        {
            List<Instruction> body =
            [
                .. unit.Where(instruction => instruction.IP >= branch.NearBranchTarget && instruction.IP <= branch.IP),
            ];
            Instruction count = unit[unit.FindIndex(instruction => instruction.IP == body[0].IP) - 1];
            Assert.Equal(Code.Mov_r32_imm32, count.Code);
            instructions += (count.Immediate32 - 1) * body.Count;
        }

        return (instructions, unit.Count(instruction => instruction.Mnemonic == Mnemonic.Syscall));
    }

    private static List<ulong> Branches(int k) =>
        [
            .. Unit(new MiniOs().Build(new WorkloadOptions(k, 4_000)))
                .Where(instruction => instruction.IsJccShortOrNear)
                .SelectMany(instruction => (ulong[])[instruction.IP, instruction.NearBranchTarget]),
        ];
}
