using System.CommandLine;
using System.Globalization;
using System.Text;
using VirtBench.Measurement;
using VirtBench.Strategies;
using VirtBench.Strategies.BinaryTranslation;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Disks;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Interrupts;
using VirtBench.Vmm.Paravirtual;

namespace VirtBench.Cli.Commands;

/// <summary><c>virtbench exec</c>: one guest program under one strategy.</summary>
internal static class ExecCommand
{
    private static readonly Option<string> Guest = CommonOptions.Path(
        "--guest",
        "ELF64 static executable for x86-64",
        "FILE.elf"
    );

    private static readonly Option<string> StrategyId = new("--strategy")
    {
        Description = "Strategy id",
        Required = true,
    };

    private static readonly Option<int> Ram = CommonOptions.Number<int>(
        "--ram",
        "RAM in MiB, 1 to 16384",
        "1 to 16384 MiB"
    );

    private static readonly Option<string[]> Parameters = CommonOptions.List(
        "--param",
        "Parameters for the guest: numbers, decimal or 0x…"
    );

    private static readonly Option<double> Timeout = CommonOptions.Number<double>(
        "--timeout",
        "Seconds until the guest is ended with exit code 124",
        "seconds, more than 0 and at most 86400"
    );

    private static readonly Option<string> DumpTranslation = CommonOptions.Path(
        "--dump-translation",
        "Print every block that is translated, guest and host code side by side, into this file; - for standard output",
        "FILE|-"
    );

    private static readonly Option<string> Delivery = new("--interrupt-delivery")
    {
        Description = "How the disk's interrupts reach the guest: exit (when left out), coalesced or direct",
        HelpName = "WAY",
    };

    private static readonly Option<bool> Offers = new("--paravirtual")
    {
        Description = "Offer the paravirtual interface, to a guest that is built for it",
    };

    private static readonly Option<bool> CountLookups = new("--count-lookups")
    {
        Description = "Count the indirect branches of translated code that find their target inline, which costs time",
    };

    private static readonly Dictionary<string, ulong> NoStatistics = [];

    static ExecCommand()
    {
        Guest.Required = true;
        Ram.DefaultValueFactory = _ => 64;
        Timeout.DefaultValueFactory = _ => 60;
    }

    public static Command Create(Terminal terminal)
    {
        Option<bool> json = CommonOptions.Json();
        Option<string> costs = CommonOptions.CostProfile();
        Option<string> shadow = CommonOptions.Shadow();
        Option<bool> strict = CommonOptions.Strict();
        var command = new Command(
            "exec",
            "Run one guest program. Exit code: the guest's status; 124 on time-out; 125 when it could not run or go on"
        )
        {
            Guest,
            StrategyId,
            Ram,
            Parameters,
            Timeout,
            costs,
            shadow,
            strict,
            DumpTranslation,
            CountLookups,
            Delivery,
            Offers,
            json,
        };
        DiskOptions.AddTo(command);
        command.SetAction(parsed =>
        {
            int ram = parsed.GetValue(Ram);
            if (ram is < 1 or > 16384)
            {
                throw new UsageException($"--ram {ram}: guest RAM is 1 to 16384 MiB");
            }

            double seconds = parsed.GetValue(Timeout);
            if (!(seconds is > 0 and <= 86400))
            {
                throw new UsageException($"--timeout {seconds}: give seconds, more than 0 and at most 86400");
            }

            var options = new GuestRunOptions
            {
                RamBytes = (ulong)ram << 20,
                Parameters = [.. Choice.Split(parsed.GetValue(Parameters)!).Select(ParseNumber)],
                Timeout = TimeSpan.FromSeconds(seconds),
                Strict = parsed.GetValue(strict),
                Disk = DiskOptions.Read(parsed),
                OffersInterface = parsed.GetValue(Offers),
            };
            Strategy strategy = Choice.AvailableStrategy(
                parsed.GetValue(StrategyId)!,
                Choice.Profile(parsed.GetValue(costs)),
                parsed.GetValue(shadow)
            );
            if (parsed.GetValue(Offers) && strategy.Interface != GuestInterface.Paravirtual)
            {
                throw new UsageException(
                    $"--paravirtual: {strategy.Id} has no such interface; use --strategy paravirtual, hardware-paravirtual or simulated-paravirtual"
                );
            }

            if (parsed.GetValue(CountLookups))
            {
                strategy =
                    strategy is BinaryTranslationStrategy
                        ? new BinaryTranslationStrategy { CountsLookups = true }
                        : throw new UsageException(
                            $"--count-lookups: {strategy.Id} looks no branch up; use --strategy binary-translation"
                        );
            }

            if (parsed.GetValue(Delivery) is { } way)
            {
                strategy = Choice.Delivering(strategy, way);
            }

            return Execute(
                terminal,
                parsed.GetValue(Guest)!,
                strategy,
                options,
                parsed.GetValue(json),
                parsed.GetValue(DumpTranslation)
            );
        });
        return command;
    }

    /// <summary>Runs the guest in this file, prints what it came to, and returns the exit code.</summary>
    /// <param name="terminal">Where to.</param>
    /// <param name="file">The guest.</param>
    /// <param name="strategy">One that is available.</param>
    /// <param name="options">RAM, parameters, limits.</param>
    /// <param name="json">One object instead of text.</param>
    /// <param name="dump">File to print translated blocks into, - for standard output; null for none.</param>
    internal static int Execute(
        Terminal terminal,
        string file,
        Strategy strategy,
        GuestRunOptions options,
        bool json,
        string? dump = null
    )
    {
        const string standardOutput = "-";
        if (dump == standardOutput && json)
        {
            throw new UsageException(
                "--dump-translation - and --json both write to standard output: name a file for one of them"
            );
        }

        if (options.Parameters.Count > BootOptions.MaximumParameters)
        {
            throw new UsageException(
                $"--param: at most {BootOptions.MaximumParameters} parameters fit into the boot information"
            );
        }

        using var cancellation = new CancellationTokenSource();
        using IDisposable interrupt = Terminal.CancelOnInterrupt(cancellation);
        GuestRunResult result;
        try
        {
            GuestImage image = ElfImage.Load(file);
            if (dump is not null)
            {
                RefuseWithoutTranslation(strategy);
            }

            using StreamWriter? dumpFile = dump is null or standardOutput ? null : new StreamWriter(dump);
            if (dump is not null)
            {
                options = options with { TranslationObserver = new TranslationListing(dumpFile ?? terminal.Output) };
            }

            using var console = new GuestConsole(terminal.RawOutput);
            result = GuestRun.Execute(strategy, image, options, json ? null : console.Write, cancellation.Token);
        }
        catch (Exception e) when (e is GuestImageException or DiskUnavailableException)
        {
            throw new JobException(e.Message, ExitCode.GuestNotRun);
        }
        catch (Exception e) when (e is System.ComponentModel.Win32Exception or PlatformNotSupportedException)
        {
            throw new JobException($"cannot create the VM: {e.Message}", ExitCode.GuestNotRun);
        }

        if (json)
        {
            terminal.Output.WriteLine(Json.Serialize(AsJson(result)));
        }
        else
        {
            Print(terminal.Output, result);
        }

        if (result.Outcome.Message is { } message)
        {
            terminal.Error.WriteLine($"virtbench: {message}");
        }

        return result.Outcome.End switch
        {
            RunEnd.Exited => result.Outcome.Status,
            RunEnd.TimedOut => ExitCode.TimedOut,
            RunEnd.Cancelled => ExitCode.Interrupted,
            _ => ExitCode.GuestNotRun,
        };
    }

    // Before the file is created, so that a mistake overwrites nothing.
    private static void RefuseWithoutTranslation(Strategy strategy)
    {
        using var machine = new VirtualMachine(1 << 20, strategy.CreateEngine);
        if (!machine.ObserveTranslation(null))
        {
            throw new UsageException(
                $"--dump-translation: {strategy.Id} makes no code of guest code that could be shown; use --strategy binary-translation"
            );
        }
    }

    private static void Print(TextWriter output, GuestRunResult result)
    {
        if (result.Console.Length > 0 && result.Console.Span[^1] != (byte)'\n')
        {
            output.WriteLine();
        }

        output.WriteLine(
            $"-- {result.Strategy}: {Describe(result.Outcome)}, {Nanoseconds(result.ElapsedNanoseconds)} ({result.TimeSource})"
        );
        foreach ((string reason, long count) in result.Exits.OrderByDescending(exit => exit.Value))
        {
            output.WriteLine($"   {count, 12} exits  {reason}");
        }

        foreach ((string statistic, ulong count) in result.KernelStatistics ?? NoStatistics)
        {
            output.WriteLine($"   {count, 12} counted by the kernel  {statistic}");
        }

        if (result.Translation is { } translation)
        {
            output.WriteLine($"   {Describe(translation, result.TicksPerSecond)}");
        }

        if (result.Interrupts is { } interrupts)
        {
            TimerStatistics timer = interrupts.Timer;
            output.WriteLine(
                $"   timer ticks: {timer.Ticks}, of them late {timer.Late}, still owed {timer.Owed}, behind the mask {timer.Masked}; "
                    + $"spurious interrupts: {interrupts.Spurious}"
            );
            foreach (InterruptLineStatistics line in interrupts.Lines)
            {
                output.WriteLine(
                    $"   {line.Taken, 12} interrupts  line {line.Line}, of {line.Requests} requests, {line.Direct} without an exit"
                );
            }
        }

        if (result.Disk is { } disk)
        {
            output.WriteLine($"   {Describe(disk)}");
        }

        foreach (MeasuredRegion region in result.Regions)
        {
            output.WriteLine(
                $"   region {region.Id}: {region.Units} units in {Nanoseconds(region.ElapsedNanoseconds)}, "
                    + $"{GuestRunResult.TrapsIn(region)} traps"
            );
            if (region.KernelStatistics?.Telling() is { } counted)
            {
                output.WriteLine(
                    $"      counted by the kernel: {string.Join(", ", counted.Select(counter => $"{counter.Key} {counter.Value}"))}"
                );
            }

            if (region.Translation is { } made)
            {
                output.WriteLine($"      {Describe(made, result.TicksPerSecond)}");
            }
        }

        foreach (string note in result.Notes)
        {
            output.WriteLine($"   note: {note}");
        }
    }

    private static object AsJson(GuestRunResult result) =>
        new
        {
            result.Strategy,
            Status = result.Outcome.End == RunEnd.Exited ? (int?)result.Outcome.Status : null,
            End = Describe(result.Outcome),
            Error = result.Outcome.Message,
            Console = Encoding.Latin1.GetString(result.Console.Span),
            ElapsedNs = Math.Round(result.ElapsedNanoseconds, 1),
            Regions = result.Regions.Select(region => new
            {
                region.Id,
                region.Units,
                ElapsedNs = Math.Round(region.ElapsedNanoseconds, 1),
                Traps = GuestRunResult.TrapsIn(region),
                KernelStatistics = region.KernelStatistics?.Telling(),
                Translation = AsJson(region.Translation, result.TicksPerSecond),
            }),
            result.Exits,
            result.KernelStatistics,
            Translation = AsJson(result.Translation, result.TicksPerSecond),
            result.Interrupts,
            Disk = AsJson(result.Disk),
            result.Faithful,
            result.Notes,
            result.TimeSource,
        };

    private static object? AsJson(DiskStatistics? disk) =>
        disk is null
            ? null
            : new
            {
                disk.Requests,
                disk.Completions,
                disk.Errors,
                disk.BytesRead,
                disk.BytesWritten,
                disk.Flushes,
                disk.Interrupts,
                LatencyTotalNs = Math.Round(disk.LatencyTotalNanoseconds, 1),
                LatencyMaximumNs = Math.Round(disk.LatencyMaximumNanoseconds, 1),
            };

    private static string Describe(DiskStatistics disk) =>
        $"disk: {disk.Completions} of {disk.Requests} requests, {disk.Errors} errors, {disk.BytesRead} bytes read, "
        + $"{disk.BytesWritten} written, {disk.Flushes} flushes, {disk.Interrupts} interrupts"
        + (
            disk.Completions > 0
                ? $"; latency {Nanoseconds(disk.LatencyTotalNanoseconds / disk.Completions)}, at most "
                    + Nanoseconds(disk.LatencyMaximumNanoseconds)
                : ""
        );

    private static object? AsJson(TranslationStatistics? translation, double ticksPerSecond) =>
        translation is null
            ? null
            : new
            {
                translation.Blocks,
                translation.GuestInstructions,
                translation.GuestBytes,
                translation.HostBytes,
                TranslateNs = Math.Round(translation.Ticks * 1e9 / ticksPerSecond, 1),
                translation.Links,
                translation.LookupMisses,
                translation.LookupHits,
                translation.Invalidations,
                translation.Flushes,
            };

    private static string Describe(TranslationStatistics translation, double ticksPerSecond)
    {
        double nanoseconds = translation.Ticks * 1e9 / ticksPerSecond;
        return $"translated: {translation.Blocks} blocks, {translation.GuestInstructions} instructions in {Nanoseconds(nanoseconds)}"
            + (
                translation.GuestInstructions > 0
                    ? $" ({Nanoseconds(nanoseconds / translation.GuestInstructions)} each)"
                    : ""
            )
            + $", {translation.GuestBytes} bytes into {translation.HostBytes}; links {translation.Links}, look-ups that missed "
            + $"{translation.LookupMisses}{(translation.LookupHits is { } hits ? $" and hit {hits}" : "")}, invalidations "
            + $"{translation.Invalidations}, flushes {translation.Flushes}";
    }

    private static string Describe(RunOutcome outcome) =>
        outcome.End switch
        {
            RunEnd.Exited => $"exited with status {outcome.Status}",
            RunEnd.TimedOut => "timed out",
            RunEnd.Cancelled => "cancelled",
            RunEnd.Abandoned => "abandoned",
            _ => "failed",
        };

    private static string Nanoseconds(double value) =>
        value switch
        {
            >= 1e9 => $"{value / 1e9:F3} s",
            >= 1e6 => $"{value / 1e6:F3} ms",
            >= 1e3 => $"{value / 1e3:F3} µs",
            _ => $"{value:F1} ns",
        };

    private static ulong ParseNumber(string word)
    {
        bool hex = word.StartsWith("0x", StringComparison.OrdinalIgnoreCase);
        return ulong.TryParse(
            hex ? word[2..] : word,
            hex ? NumberStyles.HexNumber : NumberStyles.None,
            CultureInfo.InvariantCulture,
            out ulong value
        )
            ? value
            : throw new UsageException($"--param {word}: give a number of up to 64 bits, decimal or 0x…");
    }
}
