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

    [Theory]
    [InlineData("popf", "popf")]
    [InlineData("mov r,cs", "mov r,cs")]
    [InlineData("mov r, sreg", "mov r,sreg")]
    [InlineData("push fs/gs", "push fs", "push gs")]
    [InlineData("mov sreg / pop fs/gs", "mov sreg", "pop fs", "pop gs")]
    public void A_hole_may_cover_several_instructions(string hole, params string[] names) =>
        Assert.Equal(names, new VirtualizationHole(hole, "").Names);

    [Fact]
    public void Moves_of_segment_registers_are_found_by_register_or_all_at_once()
    {
        GuestImage image = Image(a =>
        {
            a.mov(eax, ds);
            a.mov(ds, eax);
            a.push(fs);
            a.pop(gs);
            a.push(rax);
        });
        VirtualizationHole[] holes =
        [
            new("mov r, sreg", "1"),
            new("mov sreg / pop fs/gs", "2"),
            new("push fs/gs", "3"),
        ];
        Assert.Equal(["1", "2", "3", "2"], HoleScan.Find(image, holes).Select(one => one.Hole.Effect));
    }

    public static TheoryData<string> Strategies() => [.. StrategiesUnderTest.All];

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Every_hole_that_a_strategy_names_is_one_that_the_scan_can_find(string id)
    {
        using var machine = new VirtualMachine(1 << 20, StrategiesUnderTest.Get(id).CreateEngine);
        GuestImage everything = Image(a =>
        {
            a.popfq();
            a.pushfq();
            a.mov(eax, cs);
            a.mov(ds, eax);
            a.push(fs);
            a.push(gs);
            a.pop(fs);
            a.pop(gs);
            a.cpuid();
            a.fnstenv(__[rdi]);
            a.fnsave(__[rdi]);
            a.lar(eax, ecx);
            a.lsl(eax, ecx);
            a.verr(ax);
            a.verw(ax);
            a.sgdt(__[rdi]);
            a.sidt(__[rdi]);
            a.sldt(eax);
            a.str(eax);
            a.smsw(eax);
            a.xgetbv();
            a.rdtsc();
            a.rdtscp();
            a.wrfsbase(rax);
            a.vzeroupper();
            a.vmcall();
            a.vmmcall();
            a.popcnt(eax, ecx);
            a.rdmsr();
            a.wrmsr();
            a.monitor();
            a.mwait();
            a.@int(0x80);
            a.syscall();
            a.sysretq();
        });
        Assert.Equal(
            machine.Capabilities.Holes.Select(hole => hole.Instruction).Order(),
            HoleScan.Find(everything, machine.Capabilities.Holes).Select(one => one.Hole.Instruction).Distinct().Order()
        );
    }

    [Fact]
    public void A_file_full_of_holes_is_listed_up_to_a_limit()
    {
        byte[] code = new byte[HoleScan.MaximumOccurrences + 1];
        Array.Fill(code, (byte)0x9C); // pushf
        var image = new GuestImage(
            "test",
            0x100000,
            [
                new ImageSegment(0x100000, code, (ulong)code.Length, true),
                new ImageSegment(0x200000, code, (ulong)code.Length, true),
            ]
        );
        IReadOnlyList<HoleOccurrence> found = HoleScan.Find(image, Holes);
        Assert.Equal(HoleScan.MaximumOccurrences, found.Count);
        Assert.StartsWith("at least 9995 more are not trapped", HoleScan.Describe(found, "some")[^1]);
    }

    [Fact]
    public void Code_is_searched_up_to_a_limit()
    {
        byte[] code = new byte[HoleScan.MaximumBytes + 1];
        code[^1] = 0x9C; // pushf
        var image = new GuestImage("test", 0x100000, [new ImageSegment(0x100000, code, (ulong)code.Length, true)]);
        Assert.False(HoleScan.SearchesAllOf(image));
        Assert.True(HoleScan.SearchesAllOf(Image(a => a.pushfq())));
        Assert.Empty(HoleScan.Find(image, Holes));
    }

    [Fact]
    public void Nothing_found_says_nothing() => Assert.Empty(HoleScan.Describe([], "some"));
}
