using VirtBench.Vmm.Execution;

namespace VirtBench.Cli.Tests;

public sealed class TranslationListingFacts
{
    private static HostCode Host(ulong address, string hex) => new(address, Convert.FromHexString(hex));

    private static TranslatedInstruction Guest(ulong address, string hex, HostCode host) =>
        new(address, Convert.FromHexString(hex), host);

    private static string[] List(params TranslatedBlock[] blocks)
    {
        using var text = new StringWriter { NewLine = "\n" };
        var listing = new TranslationListing(text);
        foreach (TranslatedBlock block in blocks)
        {
            listing.Translated(block);
        }

        Assert.Equal(blocks.Length, listing.Count);
        return text.ToString().Split('\n');
    }

    // cli; add rax,[rip+0x10]; jmp 0x100000
    private static readonly TranslatedBlock Example = new(
        0x10_0000,
        Host(0x7000_0000, "F6050010000001"), // test byte [rel 0x70001007],1
        [
            Guest(0x10_0000, "FA", Host(0x7000_0007, "C605F20F000000")), // mov byte [rel …],0
            Guest(0x10_0001, "48030510000000", Host(0x7000_000E, "50" + "58" + "90")),
            Guest(0x10_0008, "EBF6", Host(0x7000_0011, "")),
        ],
        Host(0x7000_0011, "E9EAFFFFFF" + "06")
    );

    [Fact]
    public void A_block_has_one_line_that_says_where_both_sides_are_and_how_long() =>
        Assert.Equal(
            "block 1: guest 0x100000 to 0x10000a, 3 instructions, 10 bytes; host 0x70000000 to 0x70000017, 23 bytes",
            List(Example)[0]
        );

    [Fact]
    public void Guest_code_stands_on_the_left_and_what_became_of_it_on_the_right()
    {
        string[] lines = List(Example);
        (string Left, string Right)[] rows =
        [
            .. lines[1..^2]
                .Select(line => line.Split('|'))
                .Select(part => (part[0].Trim(), part.Length > 1 ? part[1].Trim() : "")),
        ];
        Assert.Equal(
            [
                ("(entry)", "70000000  f6050010000001         test byte [rel 0x70001007], 1"),
                ("100000  fa                     cli", "70000007  c605f20f000000         mov byte [rel 0x70001000], 0"),
                ("100001  48030510000000         add rax, [rel 0x100018]", "7000000e  50                     push rax"),
                ("", "7000000f  58                     pop rax"),
                ("", "70000010  90                     nop"),
                ("100008  ebf6                   jmp 0x100000", ""), // nothing was left to do
                ("(exits)", "70000011  e9eaffffff             jmp 0x70000000"),
                ("", "70000016  06                     db 0x6"), // no instruction in 64-bit mode: data
            ],
            rows
        );
        Assert.Equal(["", ""], lines[^2..]);
    }

    [Fact]
    public void The_columns_of_a_block_stand_below_each_other()
    {
        string[] rows = [.. List(Example)[1..^2].Where(line => line.Contains('|'))];
        Assert.Single(rows.Select(line => line.IndexOf('|', StringComparison.Ordinal)).Distinct());
    }

    [Fact]
    public void Blocks_are_numbered()
    {
        string[] lines = List(Example, Example with { GuestAddress = 0x20_0000 });
        Assert.StartsWith(
            "block 2: guest 0x200000 to ",
            lines.Last(line => line.StartsWith("block", StringComparison.Ordinal))
        );
    }

    [Fact]
    public void A_block_without_instructions_or_exits_is_listed_too()
    {
        var nothing = new TranslatedBlock(0x1000, Host(0x2000, ""), [], Host(0, ""));
        Assert.Equal(
            ["block 1: guest 0x1000 to 0x1000, 0 instructions, 0 bytes; host 0x2000 to 0x2000, 0 bytes", "", ""],
            List(nothing)
        );
    }

    [Fact]
    public void Bytes_that_are_cut_off_are_data() =>
        Assert.Contains(
            List(new TranslatedBlock(0, Host(0x10, "48"), [], Host(0, ""))),
            line => line.EndsWith("48                     db 0x48", StringComparison.Ordinal)
        );
}
