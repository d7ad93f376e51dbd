using System.CommandLine;
using System.CommandLine.Parsing;
using VirtBench.Measurement;
using VirtBench.Vmm.Disks;

namespace VirtBench.Cli;

/// <summary>The options that give a guest a disk.</summary>
internal static class DiskOptions
{
    private const int MaximumMebibytes = (int)(RamStorage.MaximumBytes >> 20);
    private const double MaximumMicroseconds = 10_000_000;

    private static readonly Option<string> File = CommonOptions.Path(
        "--disk",
        "Disk image: an existing file of whole 512-byte sectors, which the guest may write",
        "FILE"
    );

    private static readonly Option<bool> ReadOnly = new("--disk-read-only")
    {
        Description = "The guest may not write the disk image",
    };

    private static readonly Option<int> Ram = CommonOptions.Number<int>(
        "--disk-ram",
        "A disk in memory instead, full of zeros, in MiB",
        $"1 to {MaximumMebibytes} MiB"
    );

    private static readonly Option<double> ServiceTime = CommonOptions.Number<double>(
        "--disk-service-time-us",
        "Mean time that the disk takes for a request, in µs; as fast as the host when left out",
        "microseconds, 0 to 10 s"
    );

    private static readonly Option<double> Jitter = CommonOptions.Number<double>(
        "--disk-jitter",
        "Service times are spread evenly over the mean ± this fraction of it",
        "a fraction, 0 to 1"
    );

    private static readonly Option<int> QueueDepth = CommonOptions.Number<int>(
        "--disk-queue-depth",
        "How many requests are in service at once; 32 when left out",
        $"1 to {DiskTiming.MaximumQueueDepth}"
    );

    /// <summary>Adds them to a command.</summary>
    public static void AddTo(Command command)
    {
        foreach (Option option in (Option[])[File, ReadOnly, Ram, ServiceTime, Jitter, QueueDepth])
        {
            command.Options.Add(option);
        }
    }

    /// <summary>The disk asked for; null for none.</summary>
    /// <exception cref="UsageException">The options do not go together, or a value is out of range.</exception>
    public static GuestDisk? Read(ParseResult parsed)
    {
        bool hasFile = IsGiven(parsed, File);
        bool hasRam = IsGiven(parsed, Ram);
        if (hasFile && hasRam)
        {
            throw new UsageException("--disk and --disk-ram: a guest has one disk; give one of them");
        }

        if (!hasFile && !hasRam)
        {
            Option? alone = ((Option[])[ReadOnly, ServiceTime, Jitter, QueueDepth]).FirstOrDefault(option =>
                IsGiven(parsed, option)
            );
            return alone is null
                ? null
                : throw new UsageException($"{alone.Name} says something of a disk: give --disk or --disk-ram as well");
        }

        if (hasRam && parsed.GetValue(ReadOnly))
        {
            throw new UsageException("--disk-read-only is for --disk: a disk in memory would hold zeros for ever");
        }

        int ram = parsed.GetValue(Ram);
        if (hasRam && ram is < 1 or > MaximumMebibytes)
        {
            throw new UsageException($"--disk-ram {ram}: give 1 to {MaximumMebibytes} MiB");
        }

        double service = parsed.GetValue(ServiceTime);
        if (!(service is >= 0 and <= MaximumMicroseconds))
        {
            throw new UsageException($"--disk-service-time-us {service}: give 0 to {MaximumMicroseconds} µs");
        }

        double jitter = parsed.GetValue(Jitter);
        if (!(jitter is >= 0 and <= 1))
        {
            throw new UsageException($"--disk-jitter {jitter}: give a fraction, 0 to 1");
        }

        var timing = new DiskTiming { MeanNanoseconds = service * 1000, Jitter = jitter };
        if (IsGiven(parsed, QueueDepth))
        {
            int depth = parsed.GetValue(QueueDepth);
            timing = depth is >= 1 and <= DiskTiming.MaximumQueueDepth
                ? timing with
                {
                    QueueDepth = depth,
                }
                : throw new UsageException($"--disk-queue-depth {depth}: give 1 to {DiskTiming.MaximumQueueDepth}");
        }

        return new GuestDisk
        {
            Path = parsed.GetValue(File),
            IsReadOnly = parsed.GetValue(ReadOnly),
            RamBytes = (ulong)ram << 20,
            Timing = timing,
        };
    }

    private static bool IsGiven(ParseResult parsed, Option option) =>
        parsed.GetResult(option) is OptionResult { Implicit: false };
}
