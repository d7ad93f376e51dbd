using System.Diagnostics;
using System.Text.Json;
using Iced.Intel;
using VirtBench.Strategies;
using VirtBench.Tests;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.EndToEnd;

/// <summary><c>exec</c> as its users see it: a process with streams, an exit code and nothing left behind.</summary>
public sealed class ExecProcesses
{
    private static IEnumerable<string> Available =>
        StrategyCatalog.All.Where(strategy => strategy.UnavailableReason() is null).Select(strategy => strategy.Id);

    private static void RequireDirectExecution()
    {
        string? reason = StrategyCatalog.Find("trap-and-emulate")!.UnavailableReason();
        Assert.SkipWhen(reason is not null, reason ?? "");
    }

    private static byte[] ExitsWith(byte status) =>
        GuestFile.Of(a =>
        {
            a.mov(al, status);
            a.@out(0xF4, al);
        });

    private static byte[] PrintsThenLoops() =>
        GuestFile.Of(a =>
        {
            Label again = a.CreateLabel();
            a.mov(dx, 0x3F8);
            a.mov(al, (byte)'\n');
            a.@out(dx, al);
            a.Label(ref again);
            a.jmp(again);
        });

    [Fact]
    public void A_guest_compiled_from_C_prints_the_same_on_every_strategy()
    {
        string? gcc = Tool.OnPath("gcc");
        Assert.SkipWhen(gcc is null, "gcc is not on PATH");
        using var folder = new TemporaryFolder();
        string elf = folder.At("primes.elf");
        string source = Path.Combine(Repository.Root, "docs", "examples", "primes.c");
        // The command line is the one that the example's head comment gives.
        string options = File.ReadLines(source)
            .SkipWhile(line => !line.Contains("gcc ", StringComparison.Ordinal))
            .Take(2)
            .Aggregate("", (all, line) => all + line.Trim(' ', '*', '\\') + " ");
        string[] words = options.Split(' ', StringSplitOptions.RemoveEmptyEntries)[1..];
        Assert.Equal(["-o", "primes.elf", "primes.c"], words[^3..]);
        using (Process compiler = Process.Start(gcc!, [.. words[..^3], "-o", elf, source]))
        {
            compiler.WaitForExit();
            Assert.Equal(0, compiler.ExitCode);
        }

        foreach (string strategy in Available)
        {
            ToolResult result = Tool.Run("exec", "--guest", elf, "--strategy", strategy, "--param", "20000", "--json");
            Assert.Equal((0, ""), (result.ExitCode, result.Error));
            using var json = JsonDocument.Parse(result.Output);
            Assert.Equal("primes below 20000: 2262\n", json.RootElement.GetProperty("console").GetString());
            Assert.Equal(20000, json.RootElement.GetProperty("regions")[0].GetProperty("units").GetInt64());
        }
    }

    [Theory]
    [InlineData("trap-and-emulate")]
    [InlineData("simulated-trap-and-emulate")]
    public async Task Ctrl_C_ends_a_guest_and_keeps_what_it_printed(string strategyId)
    {
        Assert.SkipWhen(!Available.Contains(strategyId), $"{strategyId} is not available here");
        using var folder = new TemporaryFolder();
        string file = folder.Write("guest.elf", PrintsThenLoops());
        using ToolProcess tool = Tool.Start(folder.FullPath, "exec", "--guest", file, "--strategy", strategyId);
        await tool.OutputBegins();

        tool.Signal(Linux.Interrupt);

        ToolResult result = tool.Finish();
        Assert.Equal(130, result.ExitCode);
        result.AssertOneErrorLine("cancelled");
        tool.AssertNothingLeft();
    }

    [Fact]
    public async Task A_killed_VMM_takes_its_carrier_with_it()
    {
        RequireDirectExecution();
        Assert.SkipWhen(Tool.Setsid is null, "setsid is not on PATH");
        using var folder = new TemporaryFolder();
        string file = folder.Write("guest.elf", PrintsThenLoops());
        using ToolProcess tool = Tool.Start(folder.FullPath, "exec", "--guest", file, "--strategy", "trap-and-emulate");
        await tool.OutputBegins();
        Assert.Equal(2, ToolProcess.ProcessesOfSession(tool.Id).Count); // the VMM and its carrier

        tool.Signal(Linux.KillNow);

        tool.Finish();
        tool.AssertNothingRuns();
    }

    [Fact]
    public async Task A_killed_carrier_is_one_clear_line()
    {
        RequireDirectExecution();
        Assert.SkipWhen(Tool.Setsid is null, "setsid is not on PATH");
        using var folder = new TemporaryFolder();
        string file = folder.Write("guest.elf", PrintsThenLoops());
        using ToolProcess tool = Tool.Start(folder.FullPath, "exec", "--guest", file, "--strategy", "trap-and-emulate");
        await tool.OutputBegins();
        (int carrier, _, _) = Assert.Single(ToolProcess.ProcessesOfSession(tool.Id), process => process.Pid != tool.Id);

        Assert.Equal(0, Linux.Kill(carrier, Linux.KillNow));

        ToolResult result = tool.Finish();
        Assert.Equal(125, result.ExitCode);
        result.AssertOneErrorLine("killed by signal 9");
        tool.AssertNothingLeft();
    }

    [Fact]
    public void A_reader_that_goes_away_is_no_error()
    {
        string? shell = Tool.OnPath("sh");
        Assert.SkipWhen(shell is null, "sh is not on PATH");
        using var folder = new TemporaryFolder();
        string guest = folder.Write(
            "guest.elf",
            GuestFile.Of(a =>
            {
                a.mov(esi, 0x10_0000);
                a.mov(ecx, 300_000); // more than a pipe holds
                a.mov(dx, 0x3F8);
                a.rep.outsb();
                a.xor(eax, eax);
                a.@out(0xF4, al);
            })
        );
        foreach (string command in (string[])["list", $"exec --guest '{guest}' --strategy simulated-trap-and-emulate"])
        {
            using ToolProcess process = Tool.StartCommand(
                folder.FullPath,
                shell!,
                "-c",
                $"{{ '{Tool.Dotnet}' '{Tool.Path}' {command}; echo code $? >&2; }} | head -c 1"
            );
            Assert.Equal("code 0", process.Finish().Error);
        }
    }

    [Fact]
    public void Output_that_cannot_be_written_is_one_clear_line()
    {
        Assert.SkipWhen(!File.Exists("/dev/full") || Tool.OnPath("sh") is null, "there is no /dev/full or no sh");
        using var folder = new TemporaryFolder();
        string guest = folder.Write("guest.elf", ExitsWith(0));
        using ToolProcess process = Tool.StartCommand(
            folder.FullPath,
            Tool.OnPath("sh")!,
            "-c",
            $"'{Tool.Dotnet}' '{Tool.Path}' exec --guest '{guest}' --strategy simulated-native > /dev/full"
        );
        ToolResult result = process.Finish();
        Assert.Equal(125, result.ExitCode);
        result.AssertOneErrorLine("No space left");
    }

    [Fact]
    public void An_ordinary_user_needs_no_privilege()
    {
        if (!OperatingSystem.IsLinux() || Linux.EffectiveUser() != 0)
        {
            Assert.Skip("the tests run as an ordinary user already");
            return;
        }

        string? setpriv = Tool.OnPath("setpriv");
        Assert.SkipWhen(setpriv is null, "setpriv is not on PATH");
        string[] nobody = [setpriv!, "--reuid=65534", "--regid=65534", "--clear-groups"];
        using (ToolProcess probe = Tool.StartCommand("/", [.. nobody, Tool.OnPath("test")!, "-r", Tool.Path]))
        {
            Assert.SkipWhen(probe.Finish().ExitCode != 0, $"{Tool.Path} is not readable for every user");
        }

        using var folder = new TemporaryFolder();
        string guest = folder.Write("guest.elf", ExitsWith(77));
        File.SetUnixFileMode(folder.FullPath, (UnixFileMode)0b111_111_111);
        var usable = new List<string>();
        foreach (string strategy in Available)
        {
            ToolResult result = AsNobody("exec", "--guest", guest, "--strategy", strategy);
            if (strategy.StartsWith("hardware", StringComparison.Ordinal) && result.ExitCode == 125)
            {
                // Most distributions give /dev/kvm to a group only.
                result.AssertOneErrorLine("sudo usermod -aG kvm $USER");
                Assert.Contains("\"kvm-permission\"", AsNobody("doctor", "--json").Output);
                continue;
            }

            usable.Add(strategy);
            Assert.Equal((77, ""), (result.ExitCode, result.Error));
        }

        string[] run = ["run", "--rounds", "1", "--workload", "rdtsc", "--traps-per-unit", "0,1", "--strategy"];
        ToolResult measured = AsNobody([.. run, string.Join(',', usable), "--out", folder.At("results")]);
        Assert.Contains("report.html", measured.Output);
        Assert.All(RunFolder.In(folder.At("results")).Samples, row => Assert.Equal("ok", row[11]));

        File.SetUnixFileMode(folder.FullPath, (UnixFileMode)0b111_101_101);
        ToolResult refused = AsNobody([.. run, "simulated-native", "--out", folder.At("elsewhere")]);
        Assert.Equal(1, refused.ExitCode);
        refused.AssertOneErrorLine("--out");

        ToolResult AsNobody(params string[] arguments)
        {
            using ToolProcess process = Tool.StartCommand("/", [.. nobody, Tool.Dotnet, Tool.Path, .. arguments]);
            return process.Finish();
        }
    }
}
