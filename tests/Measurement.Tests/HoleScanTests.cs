using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Measurement.Tests;

public sealed class HoleScanTests
{
    private static readonly VirtualizationHole[] Holes =
    [
        new("popf", "leaves the interrupt flag"),
        new("pushf", "shows the host's interrupt flag"),
        new("cpuid", "answers for the host's CPU"),
        new("mov r,cs", "shows the host's selector"),
        new("sgdt", "shows the host's table"),
    ];

    private static GuestImage Image(Action<Assembler> write, bool executable = true)
    {
        var a = new Assembler(64);
        write(a);
        using var code = new MemoryStream();
        a.Assemble(new StreamCodeWriter(code), 0x100000);
        byte[] content = code.ToArray();
        return new GuestImage(
            "test",
            0x100000,
            [new ImageSegment(0x100000, content, (ulong)content.Length, executable)]
        );
    }

    private static (ulong, string)[] Find(GuestImage image) =>
        [.. HoleScan.Find(image, Holes).Select(one => (one.Address, one.Hole.Instruction))];

    [Fact]
    public void Instructions_that_fall_through_a_hole_are_found_with_their_addresses() =>
        Assert.Equal(
            [
                (0x100001UL, "cpuid"),
                (0x100003UL, "popf"),
                (0x100004UL, "pushf"),
                (0x100005UL, "mov r,cs"),
                (0x10000CUL, "sgdt"),
            ],
            Find(
                Image(a =>
                {
                    a.nop();
                    a.cpuid();
                    a.popfq();
                    a.pushfq();
                    a.mov(eax, cs);
                    a.mov(ecx, 0x9C9DA20F); // popf, pushf and cpuid as an immediate
                    a.sgdt(__[rdi]);
                })
            )
        );

    [Fact]
    public void What_traps_is_no_finding() =>
        Assert.Empty(
            Find(
                Image(a =>
                {
                    a.cli();
                    a.rdtsc();
                    a.mov(eax, ds);
                    a.mov(cr3, rax);
                    a.@out(0xF4, al);
                })
            )
        );

    [Fact]
    public void Bytes_that_are_no_instruction_are_stepped_over() =>
        Assert.Equal(
            [(0x100003UL, "cpuid")],
            Find(
                Image(a =>
                {
                    a.db(0x06, 0x06, 0x06); // PUSH ES, invalid in 64-bit mode
                    a.cpuid();
                })
            )
        );

    [Fact]
    public void Segments_without_code_are_not_looked_at() =>
        Assert.Empty(Find(Image(a => a.cpuid(), executable: false)));

    [Fact]
    public void An_engine_without_holes_is_faithful() => Assert.Empty(HoleScan.Find(Image(a => a.cpuid()), []));

    [Fact]
    public void The_first_ones_are_described_and_the_others_counted()
    {
        IReadOnlyList<HoleOccurrence> found = HoleScan.Find(
            Image(a =>
            {
                for (int i = 0; i < 4; i++)
                {
                    a.cpuid();
                    a.popfq();
                }
            }),
            Holes
        );
        Assert.Equal(
            [
                "cpuid at 0x100000 is not trapped under some: answers for the host's CPU",
                "popf at 0x100002 is not trapped under some: leaves the interrupt flag",
                "6 more are not trapped under some: cpuid 3, popf 3",
            ],
            HoleScan.Describe(found, "some", most: 2)
        );
    }

    [Fact]
    public void Nothing_found_says_nothing() => Assert.Empty(HoleScan.Describe([], "some"));
}
