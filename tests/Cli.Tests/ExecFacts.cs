using System.Globalization;
using System.Text.Json;
using Iced.Intel;
using VirtBench.Cli.Commands;
using VirtBench.Measurement;
using VirtBench.Strategies;
using VirtBench.Tests;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Cli.Tests;

public sealed class ExecFacts
{
    private const string Simulated = "simulated-trap-and-emulate";

    public static TheoryData<string> Strategies => [.. StrategyCatalog.All.Select(strategy => strategy.Id)];

    private static void SkipUnavailable(string strategyId)
    {
        string? reason = StrategyCatalog.Find(strategyId)!.UnavailableReason();
        Assert.SkipWhen(reason is not null, reason ?? "");
    }

    private static Call Exec(byte[] file, string strategy, params string[] more)
    {
        using var folder = new TemporaryFolder();
        return Call.Of(["exec", "--guest", folder.Write("guest.elf", file), "--strategy", strategy, .. more]);
    }

    private static void Exit(Assembler a, byte status)
    {
        a.mov(al, status);
        a.@out(0xF4, al);
    }

    private static void Print(Assembler a, string text)
    {
        a.mov(dx, 0x3F8);
        foreach (char c in text)
        {
            a.mov(al, (byte)c);
            a.@out(dx, al);
        }
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void The_exit_code_is_the_guests_status(string strategy)
    {
        SkipUnavailable(strategy);
        foreach (byte status in (byte[])[0, 1, 2, 42, 124, 125, 127, 128, 255])
        {
            Call call = Exec(GuestFile.Of(a => Exit(a, status)), strategy);
            Assert.Equal((status, ""), (call.ExitCode, call.Error));
            Assert.Contains($"exited with status {status},", call.Output);
        }
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Json_has_the_fields_that_scripts_rely_on(string strategy)
    {
        SkipUnavailable(strategy);
        byte[] file = GuestFile.Of(a =>
        {
            a.mov(eax, 7);
            a.@out(0xB0, eax);
            a.nop();
            a.mov(eax, 1);
            a.@out(0xB8, eax);
            a.mov(eax, 5);
            a.@out(0xB4, eax);
            Print(a, "a\n\u00e9\"");
            Exit(a, 3);
        });

        Call call = Exec(file, strategy, "--json");

        Assert.Equal((3, ""), (call.ExitCode, call.Error));
        using var json = JsonDocument.Parse(call.Output);
        JsonElement root = json.RootElement;
        Assert.Equal(
            [
                "strategy",
                "status",
                "end",
                "error",
                "console",
                "elapsed_ns",
                "regions",
                "exits",
                "kernel_statistics",
                "translation",
                "interrupts",
                "disk",
                "faithful",
                "notes",
                "time_source",
            ],
            root.EnumerateObject().Select(field => field.Name)
        );
        Assert.Equal(strategy, root.GetProperty("strategy").GetString());
        Assert.Equal(3, root.GetProperty("status").GetInt32());
        Assert.Equal("a\n\u00e9\"", root.GetProperty("console").GetString());
        Assert.True(root.GetProperty("elapsed_ns").GetDouble() > 0);
        Assert.True(root.GetProperty("faithful").GetBoolean());
        Assert.Empty(root.GetProperty("notes").EnumerateArray());
        JsonElement region = Assert.Single(root.GetProperty("regions").EnumerateArray());
        Assert.Equal(
            ["id", "units", "elapsed_ns", "traps", "kernel_statistics", "translation"],
            region.EnumerateObject().Select(field => field.Name)
        );
        Assert.Equal(7, region.GetProperty("id").GetInt32());
        Assert.Equal(0x1_0000_0005, region.GetProperty("units").GetInt64());
        Assert.True(region.GetProperty("elapsed_ns").GetDouble() >= 0);
        Assert.Equal(0, region.GetProperty("traps").GetInt64());
        Assert.Equal(5, root.GetProperty("exits").GetProperty("port-io").GetInt64()); // four bytes and the exit port
        Assert.Equal(3, root.GetProperty("exits").GetProperty("region-marker").GetInt64());
    }

    // FLUSH CACHE, and the status until it is done; AL holds it then.
    private static void FlushDisk(Assembler a)
    {
        Label busy = a.CreateLabel();
        a.mov(edx, 0x1F6);
        a.mov(al, 0xE0);
        a.@out(dx, al);
        a.inc(edx);
        a.mov(al, 0xE7);
        a.@out(dx, al);
        a.Label(ref busy);
        a.@in(al, dx);
        a.test(al, 0x80);
        a.jnz(busy);
        a.@out(0xF4, al);
    }

    [Fact]
    public void A_guest_with_a_disk_gets_an_account_of_it()
    {
        string[] options = ["--disk-ram", "1", "--disk-service-time-us", "50", "--disk-queue-depth", "1"];
        Call call = Exec(GuestFile.Of(FlushDisk), Simulated, [.. options, "--json"]);
        Assert.Equal((0x50, ""), (call.ExitCode, call.Error));
        using var json = JsonDocument.Parse(call.Output);
        JsonElement disk = json.RootElement.GetProperty("disk");
        Assert.Equal(
            [
                "requests",
                "completions",
                "errors",
                "bytes_read",
                "bytes_written",
                "flushes",
                "interrupts",
                "latency_total_ns",
                "latency_maximum_ns",
            ],
            disk.EnumerateObject().Select(field => field.Name)
        );
        Assert.Equal(1, disk.GetProperty("flushes").GetInt32());
        Assert.Equal(50_000, disk.GetProperty("latency_maximum_ns").GetDouble(), 1.0);
        Assert.Contains(
            "disk: 1 of 1 requests, 0 errors",
            Exec(GuestFile.Of(FlushDisk), Simulated, options).Output,
            StringComparison.Ordinal
        );
    }

    [Fact]
    public void A_file_that_cannot_be_a_disk_is_refused_before_the_guest_runs()
    {
        using var folder = new TemporaryFolder();
        byte[] guest = GuestFile.Of(FlushDisk);
        Exec(guest, Simulated, "--disk", folder.At("missing"))
            .AssertFails(ExitCode.GuestNotRun, "missing does not exist");
        Exec(guest, Simulated, "--disk", folder.FullPath).AssertFails(ExitCode.GuestNotRun, "is a directory");
        Exec(guest, Simulated, "--disk", folder.Write("small", new byte[511]))
            .AssertFails(ExitCode.GuestNotRun, "at least one sector");
        Exec(guest, Simulated, "--disk", "/dev/zero", "--disk-read-only")
            .AssertFails(ExitCode.GuestNotRun, "not a regular file");
        string good = folder.Write("good", new byte[1024]);
        Assert.Equal(0x50, Exec(guest, Simulated, "--disk", good).ExitCode);
        Assert.Equal(0x50, Exec(guest, Simulated, "--disk", good, "--disk-read-only").ExitCode);
        Exec(guest, Simulated, "--disk", good, "--ram", "4096")
            .AssertFails(ExitCode.GuestNotRun, "at most 3328 MiB of RAM");
    }

    [Theory]
    [InlineData("flush")]
    [InlineData("cached")]
    public void The_policy_of_shadow_paging_is_named_with_the_times(string policy)
    {
        SkipUnavailable("trap-and-emulate");
        Call call = Exec(GuestFile.Of(a => Exit(a, 0)), "trap-and-emulate", "--shadow", policy, "--json");
        using var json = JsonDocument.Parse(call.Output);
        Assert.EndsWith($"shadow page tables {policy}", json.RootElement.GetProperty("time_source").GetString());
    }

    [Theory]
    [InlineData(
        Simulated,
        "flush",
        "--shadow flush: only trap-and-emulate has these policies, and the strategy is simulated-"
    )]
    [InlineData(
        "native",
        "cached",
        "--shadow cached: only trap-and-emulate has these policies, and the strategy is native"
    )]
    [InlineData("trap-and-emulate", "sometimes", "--shadow sometimes: give flush or cached")]
    public void A_policy_of_shadow_paging_that_makes_no_sense_is_bad_usage(
        string strategy,
        string policy,
        string says
    ) => Exec(GuestFile.Of(a => Exit(a, 0)), strategy, "--shadow", policy).AssertFails(ExitCode.Usage, says);

    private static Call Exec(Strategy strategy, GuestRunOptions options, bool json)
    {
        using var folder = new TemporaryFolder();
        string file = folder.Write("guest.elf", GuestFile.Of(a => Exit(a, 0)));
        return Call.Of(terminal => ExecCommand.Execute(terminal, file, strategy, options, json));
    }

    [Fact]
    public void A_guest_that_does_not_come_back_is_one_line_and_its_own_exit_code()
    {
        var strategy = new StuckStrategy();
        Call call = Exec(
            strategy,
            new GuestRunOptions { Timeout = TimeSpan.FromMilliseconds(1), Grace = TimeSpan.Zero },
            json: false
        );
        call.AssertFails(125, "the vCPU thread did not come back from guest code");
        Assert.Contains("-- stuck: abandoned,", call.Output);
        strategy.LetGo.Set();
    }

    [Fact]
    public void What_the_kernel_counted_is_printed_in_all_and_by_region()
    {
        string text = Exec(CountedStrategy.Create(), new GuestRunOptions(), json: false).Output;
        Assert.Contains("          44 counted by the kernel  exits", text);
        Assert.Contains("       40002 counted by the kernel  insn_emulation", text);
        Assert.Contains("counted by the kernel: exits 42, insn_emulation 40002", text);
        Assert.DoesNotContain("halt_exits", text);

        Call call = Exec(CountedStrategy.Create(), new GuestRunOptions(), json: true);
        using var json = JsonDocument.Parse(call.Output);
        Assert.Equal(44, json.RootElement.GetProperty("kernel_statistics").GetProperty("exits").GetInt64());
        JsonElement region = Assert.Single(json.RootElement.GetProperty("regions").EnumerateArray());
        Assert.Equal(42, region.GetProperty("kernel_statistics").GetProperty("exits").GetInt64());
        Assert.Equal(40_002, region.GetProperty("kernel_statistics").GetProperty("insn_emulation").GetInt64());
    }

    [Fact]
    public void A_strategy_without_account_of_the_kernel_has_none()
    {
        using var json = JsonDocument.Parse(Exec(GuestFile.Of(a => Exit(a, 0)), Simulated, "--json").Output);
        Assert.Equal(JsonValueKind.Null, json.RootElement.GetProperty("kernel_statistics").ValueKind);
    }

    [Fact]
    public void What_was_translated_is_told_in_all_and_by_region()
    {
        byte[] guest = GuestFile.Of(a =>
        {
            a.@out(0xB0, eax);
            a.nop();
            a.@out(0xB4, eax);
            Exit(a, 0);
        });
        using var json = JsonDocument.Parse(Exec(guest, "simulated-binary-translation", "--json").Output);
        JsonElement all = json.RootElement.GetProperty("translation");
        Assert.Equal(
            [
                "blocks",
                "guest_instructions",
                "guest_bytes",
                "host_bytes",
                "translate_ns",
                "links",
                "lookup_misses",
                "lookup_hits",
                "invalidations",
                "flushes",
            ],
            all.EnumerateObject().Select(field => field.Name)
        );
        Assert.Equal(3, all.GetProperty("blocks").GetInt64());
        Assert.Equal(5, all.GetProperty("guest_instructions").GetInt64());
        Assert.Equal(JsonValueKind.Null, all.GetProperty("lookup_hits").ValueKind);
        JsonElement region = json.RootElement.GetProperty("regions")[0].GetProperty("translation");
        Assert.Equal(2, region.GetProperty("guest_instructions").GetInt64()); // nop and the OUT that ends the block
        Assert.Equal(588.2, region.GetProperty("translate_ns").GetDouble()); // 2000 cycles at 3.4 GHz

        string text = Exec(guest, "simulated-binary-translation").Output;
        Assert.Contains("   translated: 3 blocks, 5 instructions in 1.471 µs (294.1 ns each), ", text);
        Assert.Contains("      translated: 1 blocks, 2 instructions in ", text);
        using var none = JsonDocument.Parse(Exec(guest, Simulated, "--json").Output);
        Assert.Equal(JsonValueKind.Null, none.RootElement.GetProperty("translation").ValueKind);
        Assert.DoesNotContain("translated", Exec(guest, Simulated).Output);
    }

    [Theory]
    [InlineData("simulated-trap-and-emulate")]
    [InlineData("simulated-binary-translation")]
    [InlineData("native")]
    public void Translation_can_be_shown_only_where_code_is_made(string strategy)
    {
        SkipUnavailable(strategy);
        using var folder = new TemporaryFolder();
        string file = folder.Write("kept.txt", "kept"u8.ToArray());
        Call call = Exec(GuestFile.Of(a => Exit(a, 0)), strategy, "--dump-translation", file);
        call.AssertFails(ExitCode.Usage, $"--dump-translation: {strategy} makes no code of guest code");
        Assert.Equal("kept", File.ReadAllText(file));
    }

    [Fact]
    public void Shown_translation_and_json_do_not_share_standard_output() =>
        Exec(GuestFile.Of(a => Exit(a, 0)), Simulated, "--dump-translation", "-", "--json")
            .AssertFails(ExitCode.Usage, "both write to standard output");

    [Fact]
    public void Lookups_are_counted_only_where_code_is_made()
    {
        Exec(GuestFile.Of(a => Exit(a, 0)), Simulated, "--count-lookups")
            .AssertFails(ExitCode.Usage, $"--count-lookups: {Simulated} looks no branch up");
        SkipUnavailable("binary-translation");
        Call call = Exec(GuestFile.Of(a => Exit(a, 0)), "binary-translation", "--count-lookups");
        Assert.Contains("look-ups that missed 0 and hit 0", call.Succeeded().Output, StringComparison.Ordinal);
    }

    /// <summary>An engine that shows a block at its first entry and exits.</summary>
    private static StuckStrategy Shows(Action<ITranslationObserver>? show = null)
    {
        StuckStrategy strategy = null!;
        strategy = new StuckStrategy
        {
            ShowsTranslation = true,
            After = () =>
            {
                show?.Invoke(strategy.Observer!);
                return strategy.Out(0xF4, 0, size: 1);
            },
        };
        strategy.LetGo.Set();
        return strategy;
    }

    private static void ShowNop(ITranslationObserver observer) =>
        observer.Translated(
            new TranslatedBlock(
                0x10_0000,
                default,
                [new TranslatedInstruction(0x10_0000, new byte[] { 0x90 }, new HostCode(0x7000, new byte[] { 0x90 }))],
                default
            )
        );

    [Fact]
    public void Blocks_are_shown_as_they_are_translated()
    {
        using var folder = new TemporaryFolder();
        string guest = folder.Write("guest.elf", GuestFile.Of(a => Exit(a, 0)));
        string file = folder.At("dump.txt");
        Call to(string dump) =>
            Call.Of(terminal =>
                ExecCommand.Execute(terminal, guest, Shows(ShowNop), new GuestRunOptions(), json: false, dump)
            );
        Assert.StartsWith("block 1: guest 0x100000 to 0x100001, 1 instruction, 1 bytes; ", to("-").Succeeded().Output);
        Assert.DoesNotContain("block 1", to(file).Succeeded().Output);
        Assert.StartsWith("block 1: ", File.ReadAllText(file));
    }

    [Fact]
    public void A_file_that_cannot_be_written_is_an_error()
    {
        using var folder = new TemporaryFolder();
        string guest = folder.Write("guest.elf", GuestFile.Of(a => Exit(a, 0)));
        // The command line makes one line of it, as of every error of input or output.
        Assert.ThrowsAny<IOException>(() =>
            Call.Of(terminal =>
                ExecCommand.Execute(
                    terminal,
                    guest,
                    Shows(),
                    new GuestRunOptions(),
                    json: false,
                    folder.At("nowhere/dump.txt")
                )
            )
        );
    }

    // One tick of the timer in mode 0, for which the guest halts.
    private static void SleepForATick(Assembler a)
    {
        const ulong idt = 0x20_0000;
        Label handler = a.CreateLabel();
        Label start = a.CreateLabel();
        a.jmp(start);
        a.Label(ref handler);
        a.iretq();
        a.Label(ref start);
        a.lea(rax, __[handler]);
        a.mov(__word_ptr[idt + 0x200], ax);
        a.mov(__dword_ptr[idt + 0x202], 0x8E00_0008);
        a.shr(rax, 16);
        a.mov(__word_ptr[idt + 0x206], ax);
        a.mov(__word_ptr[idt - 16], 0x20F);
        a.mov(rax, idt);
        a.mov(__qword_ptr[idt - 14], rax);
        a.lidt(__[idt - 16]);
        foreach (
            (byte port, byte value) in ((byte, byte)[])
                [(0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01), (0x43, 0x30), (0x40, 0x10), (0x40, 0x00)]
        )
        {
            a.mov(al, value);
            a.@out(port, al);
        }

        a.sti();
        a.hlt();
        Exit(a, 0);
    }

    [Fact]
    public void A_guest_that_uses_the_interrupt_controller_gets_an_account_of_it()
    {
        Call call = Exec(GuestFile.Of(SleepForATick), Simulated, "--json");
        Assert.Equal((0, ""), (call.ExitCode, call.Error));
        using var json = JsonDocument.Parse(call.Output);
        Assert.Equal(
            """{"lines":[{"line":0,"requests":1,"taken":1,"direct":0}],"spurious":0,"timer":{"ticks":1,"late":0,"owed":0,"masked":0}}""",
            System.Text.RegularExpressions.Regex.Replace(
                json.RootElement.GetProperty("interrupts").GetRawText(),
                @"\s",
                ""
            )
        );
        string text = Exec(GuestFile.Of(SleepForATick), Simulated).Output;
        Assert.Contains("1 interrupts  line 0, of 1 requests", text, StringComparison.Ordinal);
        Assert.Contains("timer ticks: 1, of them late 0", text, StringComparison.Ordinal);
    }

    [Fact]
    public void A_guest_that_does_not_has_none()
    {
        using var json = JsonDocument.Parse(Exec(GuestFile.Of(a => Exit(a, 0)), Simulated, "--json").Output);
        Assert.Equal(JsonValueKind.Null, json.RootElement.GetProperty("interrupts").ValueKind);
    }

    [Fact]
    public void Json_of_a_guest_that_failed_says_so()
    {
        Call call = Exec(GuestFile.Of(a => a.ud2()), Simulated, "--json");
        using var json = JsonDocument.Parse(call.Output);
        Assert.Equal(JsonValueKind.Null, json.RootElement.GetProperty("status").ValueKind);
        Assert.Contains("triple fault", json.RootElement.GetProperty("error").GetString());
        Assert.Equal(ExitCode.GuestNotRun, call.ExitCode);
        Assert.StartsWith("virtbench: triple fault", call.Error);
    }

    [Fact]
    public void An_instruction_that_does_not_trap_makes_the_run_unfaithful()
    {
        Call call = Exec(
            GuestFile.Of(a =>
            {
                a.cpuid();
                Exit(a, 0);
            }),
            Simulated,
            "--json"
        );
        using var json = JsonDocument.Parse(call.Output);
        Assert.False(json.RootElement.GetProperty("faithful").GetBoolean());
        JsonElement notes = json.RootElement.GetProperty("notes");
        Assert.Equal("not faithful: cpuid", notes[0].GetString());
        Assert.StartsWith("cpuid at 0x100000 is not trapped", notes[1].GetString());
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Ram_and_parameters_reach_the_guest(string strategy)
    {
        SkipUnavailable(strategy);
        // Boot information: RAM bytes at 8, parameter count at 48, parameters behind it. Status: RAM in MiB plus their sum.
        byte[] file = GuestFile.Of(a =>
        {
            a.mov(rax, __qword_ptr[rdi + 8]);
            a.shr(rax, 20);
            a.mov(rcx, __qword_ptr[rdi + 48]);
            Label next = a.CreateLabel();
            a.Label(ref next);
            a.add(rax, __qword_ptr[rdi + (rcx * 8) + 48]);
            a.dec(rcx);
            a.jnz(next);
            a.@out(0xF4, al);
        });

        Call call = Exec(file, strategy, "--ram", "32", "--param", "0x10,20", "--param", "30", "40");

        Assert.Equal((32 + 16 + 20 + 30 + 40, ""), (call.ExitCode, call.Error));
    }

    [Fact]
    public void The_least_and_the_most_of_everything_is_accepted()
    {
        byte[] exits = GuestFile.Of(a => Exit(a, 9));
        string[] most = [.. Enumerable.Range(0, 505).Select(i => i.ToString(CultureInfo.InvariantCulture))];
        Assert.Equal(9, Exec(exits, Simulated, "--ram", "16384").ExitCode);
        Assert.Equal(9, Exec(exits, Simulated, "--ram", "2", "--timeout", "86400").ExitCode);
        Assert.Equal(9, Exec(exits, Simulated, ["--param", .. most]).ExitCode);
        Assert.Equal(9, Exec(exits, Simulated, "--param", "0xFFFFFFFFFFFFFFFF", "18446744073709551615").ExitCode);
        Exec(exits, Simulated, ["--param", "1", .. most]).AssertFails(ExitCode.Usage, "at most 505 parameters");
    }

    [Theory]
    [InlineData("--ram 0", "--ram 0: guest RAM is 1 to 16384 MiB")]
    [InlineData("--ram 16385", "--ram 16385: guest RAM is 1 to 16384 MiB")]
    [InlineData("--ram -1", "--ram -1: guest RAM is 1 to 16384 MiB")]
    [InlineData("--ram much", "--ram much: give 1 to 16384 MiB")]
    [InlineData("--ram 99999999999", "--ram 99999999999: give 1 to 16384 MiB")]
    [InlineData("--timeout 0", "--timeout 0: give seconds")]
    [InlineData("--timeout -1", "--timeout -1: give seconds")]
    [InlineData("--timeout NaN", "--timeout NaN: give seconds")]
    [InlineData("--timeout 86401", "--timeout 86401: give seconds")]
    [InlineData("--timeout soon", "--timeout soon: give seconds")]
    [InlineData("--param -5", "--param -5: give a number")]
    [InlineData("--param 1.5", "--param 1.5: give a number")]
    [InlineData("--param 0x", "--param 0x: give a number")]
    [InlineData("--param 0x10000000000000000", "--param 0x10000000000000000: give a number")]
    [InlineData("--param 18446744073709551616", "--param 18446744073709551616: give a number")]
    [InlineData("--disk a --disk-ram 1", "--disk and --disk-ram: a guest has one disk")]
    [InlineData("--disk-read-only", "--disk-read-only says something of a disk: give --disk or --disk-ram as well")]
    [InlineData("--disk-jitter 0.5", "--disk-jitter says something of a disk")]
    [InlineData("--disk-ram 1 --disk-read-only", "--disk-read-only is for --disk")]
    [InlineData("--disk-ram 0", "--disk-ram 0: give 1 to 16384 MiB")]
    [InlineData("--disk-ram lots", "--disk-ram lots: give 1 to 16384 MiB")]
    [InlineData("--disk-ram 1 --disk-service-time-us -1", "--disk-service-time-us -1: give 0 to 10000000 µs")]
    [InlineData("--disk-ram 1 --disk-service-time-us NaN", "--disk-service-time-us NaN: give 0 to 10000000 µs")]
    [InlineData("--disk-ram 1 --disk-jitter 1.1", "--disk-jitter 1.1: give a fraction, 0 to 1")]
    [InlineData("--disk-ram 1 --disk-queue-depth 0", "--disk-queue-depth 0: give 1 to 1024")]
    [InlineData("--nonsense", "there is no '--nonsense' here")]
    [InlineData("--ram", "--ram")]
    public void A_senseless_option_is_bad_usage(string options, string says) =>
        Exec(GuestFile.Of(a => Exit(a, 0)), Simulated, options.Split(' ')).AssertFails(ExitCode.Usage, says);

    [Theory]
    [InlineData("unheard-of", "there is no strategy 'unheard-of'; the strategies are native, trap-and-emulate")]
    [InlineData("", "the strategies are native, trap-and-emulate")]
    [InlineData("simulated-native,simulated-trap-and-emulate", "give one strategy")]
    [InlineData("all", "give one strategy")]
    public void A_guest_runs_under_one_known_strategy(string strategy, string says) =>
        Exec(GuestFile.Of(a => Exit(a, 0)), strategy).AssertFails(ExitCode.Usage, says);

    [Fact]
    public void What_is_no_file_is_refused()
    {
        using var folder = new TemporaryFolder();
        AssertRefused(folder.At("missing.elf"), ExitCode.GuestNotRun, "missing.elf does not exist");
        AssertRefused(folder.At("missing/guest.elf"), ExitCode.GuestNotRun, "does not exist");
        AssertRefused(folder.FullPath, ExitCode.GuestNotRun, "is a directory");
        AssertRefused(folder.Write("empty.elf", []), ExitCode.GuestNotRun, "empty");
        AssertRefused("/dev/zero", ExitCode.GuestNotRun, "not a regular file");
        AssertRefused(folder.Write("script.elf", "#!/bin/sh\n"u8.ToArray()), ExitCode.GuestNotRun, "not an ELF file");
        AssertRefused("", ExitCode.Usage, "--guest is empty");
        Call.Of("exec", "--strategy", Simulated).AssertFails(ExitCode.Usage, "--guest");
        Call.Of("exec", "--guest", "x.elf").AssertFails(ExitCode.Usage, "--strategy");

        static void AssertRefused(string path, int code, string says) =>
            Call.Of("exec", "--guest", path, "--strategy", Simulated).AssertFails(code, says);
    }

    private static GuestSegment Code(ulong address = GuestFile.CodeStart, ulong? memory = null) =>
        new(address, GuestFile.Assemble(a => Exit(a, 0)), memory ?? 0x1000);

    /// <summary>Each way a file can be bad, beside what the tool must say.</summary>
    private static readonly Dictionary<string, (byte[] File, string Says)> BadFiles = new()
    {
        ["32-bit"] = (With(file => file[GuestFile.Class] = 1), "32-bit"),
        ["big-endian"] = (With(file => file[GuestFile.ByteOrder] = 2), "big-endian"),
        ["position-independent"] = (With(file => GuestFile.Put16(file, GuestFile.Type, 3)), "position-independent"),
        ["object file"] = (With(file => GuestFile.Put16(file, GuestFile.Type, 1)), "not an executable"),
        ["another machine"] = (With(file => GuestFile.Put16(file, GuestFile.Machine, 183)), "another machine"),
        ["entry before the code"] = (GuestFile.Of(0xF_FFFF, Code()), "lies in no executable segment"),
        ["entry behind the code"] = (GuestFile.Of(0x10_1000, Code()), "lies in no executable segment"),
        ["entry 0"] = (GuestFile.Of(0, Code()), "lies in no executable segment"),
        ["entry in data"] = (
            GuestFile.Of(0x20_0000, Code(), new GuestSegment(0x20_0000, [0xF4], 0x1000, Executable: false)),
            "lies in no executable segment"
        ),
        ["segment at 0"] = (GuestFile.Of(0, Code(0)), "boot area"),
        ["segment over the boot information"] = (GuestFile.Of(0x1_0000, Code(0x1_0000)), "boot area"),
        ["segment over the stack's end"] = (GuestFile.Of(0x2_FFFF, Code(0x2_FFFF)), "boot area"),
        ["segment behind RAM"] = (GuestFile.Of(0x400_0000, Code(0x400_0000)), "does not fit into 64 MiB"),
        ["segment across the end of RAM"] = (GuestFile.Of(0x3FF_F800, Code(0x3FF_F800)), "does not fit into 64 MiB"),
        ["segment in the upper half"] = (
            GuestFile.Of(0xFFFF_FFFF_8000_0000, Code(0xFFFF_FFFF_8000_0000)),
            "does not fit into 64 MiB"
        ),
        ["segment across the end of everything"] = (
            GuestFile.Of(0xFFFF_FFFF_FFFF_F800, Code(0xFFFF_FFFF_FFFF_F800)),
            "beyond the address space"
        ),
        ["segment of 32 GiB"] = (GuestFile.Of(GuestFile.CodeStart, Code(memory: 32UL << 30)), "a guest has at most"),
        ["segment of 8 EiB"] = (GuestFile.Of(GuestFile.CodeStart, Code(memory: 1UL << 63)), "a guest has at most"),
        ["segments that overlap"] = (GuestFile.Of(GuestFile.CodeStart, Code(), Code(0x10_0800)), "overlaps"),
        ["segments in one place"] = (GuestFile.Of(GuestFile.CodeStart, Code(), Code()), "overlaps"),
        ["file size of 8 EiB"] = (
            GuestFile.Of(GuestFile.CodeStart, Code(memory: 0x1000) with { FileSize = 1UL << 63 }),
            "more bytes in the file"
        ),
        ["offset behind the file"] = (
            GuestFile.Of(GuestFile.CodeStart, Code() with { FileOffset = 1 << 20 }),
            "truncated"
        ),
        ["offset that wraps"] = (
            GuestFile.Of(GuestFile.CodeStart, Code() with { FileOffset = ulong.MaxValue }),
            "truncated"
        ),
        ["no segments"] = (With(file => GuestFile.Put16(file, GuestFile.ProgramHeaderCount, 0)), "no program headers"),
        ["65535 program headers"] = (
            With(file => GuestFile.Put16(file, GuestFile.ProgramHeaderCount, ushort.MaxValue)),
            "truncated"
        ),
    };

    private static byte[] With(Action<byte[]> change)
    {
        byte[] file = GuestFile.Of(a => Exit(a, 0));
        change(file);
        return file;
    }

    public static TheoryData<string> BadFileNames => [.. BadFiles.Keys];

    [Theory]
    [MemberData(nameof(BadFileNames))]
    public void A_bad_file_gives_one_clear_line(string name) =>
        Exec(BadFiles[name].File, Simulated).AssertFails(ExitCode.GuestNotRun, BadFiles[name].Says);

    [Fact]
    public void A_truncated_file_is_refused_whatever_its_length()
    {
        byte[] file = GuestFile.Of(a => Exit(a, 0));
        using var folder = new TemporaryFolder();
        for (int length = 1; length < file.Length; length++)
        {
            string path = folder.Write("guest.elf", file[..length]);
            Call.Of("exec", "--guest", path, "--strategy", Simulated)
                .AssertFails(ExitCode.GuestNotRun, length < 4 ? "not an ELF file" : "truncated");
        }
    }

    [Fact]
    public void A_guest_at_the_very_end_of_RAM_runs() =>
        Assert.Equal(0, Exec(GuestFile.Of(0x3FF_F000, Code(0x3FF_F000)), Simulated).ExitCode);

    [Theory]
    [MemberData(nameof(Strategies))]
    public void A_flood_on_the_console_passes_through_and_a_part_is_kept(string strategy)
    {
        SkipUnavailable(strategy);
        const int bytes = (1 << 20) + 4096; // an exit each where hardware assist serves REP OUTSB
        byte[] file = GuestFile.Of(a =>
        {
            a.mov(esi, 0x20_0000);
            a.mov(ecx, bytes);
            a.mov(dx, 0x3F8);
            a.rep.outsb();
            Exit(a, 0);
        });

        Call call = Exec(file, strategy);
        Assert.Equal((0, ""), (call.ExitCode, call.Error));
        Assert.Equal(bytes, call.Output.Count(c => c == '\0'));
        Assert.Contains($"first {1 << 20} of {bytes} bytes were kept", call.Output);

        using var json = JsonDocument.Parse(Exec(file, strategy, "--json").Output);
        Assert.Equal(1 << 20, json.RootElement.GetProperty("console").GetString()!.Length);
    }
}
