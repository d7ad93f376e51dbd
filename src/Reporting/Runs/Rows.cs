using System.Text.Json;
using CsvHelper;
using VirtBench.Analysis;
using VirtBench.Measurement;
using VirtBench.Vmm.Disks;
using VirtBench.Vmm.Execution;

namespace VirtBench.Reporting.Runs;

/// <summary>A row of samples.csv.</summary>
[CsvRecord]
internal sealed partial class SampleRow
{
    [CsvColumn("round")]
    public int Round { get; set; }

    [CsvColumn("strategy")]
    public string Strategy { get; set; } = "";

    [CsvColumn("workload")]
    public string Workload { get; set; } = "";

    [CsvColumn("traps_per_unit")]
    public int TrapsPerUnit { get; set; }

    [CsvColumn("units")]
    public long Units { get; set; }

    [CsvColumn("traps")]
    public long Traps { get; set; }

    [CsvColumn("elapsed_ns")]
    public double ElapsedNanoseconds { get; set; }

    [CsvColumn("guest_tsc")]
    public ulong GuestTscTicks { get; set; }

    [CsvColumn("steal_ns")]
    public double StealNanoseconds { get; set; }

    [CsvColumn("involuntary_switches")]
    public long InvoluntarySwitches { get; set; }

    [CsvColumn("outlier")]
    public string Outlier { get; set; } = "";

    [CsvColumn("status")]
    public string Status { get; set; } = "";

    [CsvColumn("note")]
    public string Note { get; set; } = "";

    public static SampleRow Of(Sample sample) =>
        new()
        {
            Round = sample.Round,
            Strategy = sample.Cell.Strategy,
            Workload = sample.Cell.Workload,
            TrapsPerUnit = sample.Cell.TrapsPerUnit,
            Units = sample.Units,
            Traps = sample.Traps,
            ElapsedNanoseconds = sample.ElapsedNanoseconds,
            GuestTscTicks = sample.GuestTscTicks,
            StealNanoseconds = sample.StealNanoseconds,
            InvoluntarySwitches = sample.InvoluntarySwitches,
            Outlier = Words.Of(sample.Outlier),
            Status = Words.Of(sample.Status),
            // One row, one line: that is what lets a cut-off last row be recognised.
            Note = Words.OneLine(sample.Note),
        };

    public Sample ToSample() =>
        new(
            Round,
            new Cell(Strategy, Workload, TrapsPerUnit),
            Units,
            Traps,
            ElapsedNanoseconds,
            GuestTscTicks,
            StealNanoseconds,
            InvoluntarySwitches,
            Words.Outlier(Outlier),
            Words.Status(Status),
            Note
        );
}

/// <summary>A row of exits.csv.</summary>
[CsvRecord]
internal sealed partial class ExitRow
{
    [CsvColumn("round")]
    public int Round { get; set; }

    [CsvColumn("strategy")]
    public string Strategy { get; set; } = "";

    [CsvColumn("workload")]
    public string Workload { get; set; } = "";

    [CsvColumn("traps_per_unit")]
    public int TrapsPerUnit { get; set; }

    [CsvColumn("reason")]
    public string Reason { get; set; } = "";

    [CsvColumn("count")]
    public long Count { get; set; }

    [CsvColumn("switch_out_ns")]
    public double? SwitchOutNanoseconds { get; set; }

    [CsvColumn("dispatch_ns")]
    public double DispatchNanoseconds { get; set; }

    [CsvColumn("emulate_ns")]
    public double EmulateNanoseconds { get; set; }

    [CsvColumn("switch_in_ns")]
    public double? SwitchInNanoseconds { get; set; }

    public static ExitRow Of(ExitRecord exit) =>
        new()
        {
            Round = exit.Round,
            Strategy = exit.Cell.Strategy,
            Workload = exit.Cell.Workload,
            TrapsPerUnit = exit.Cell.TrapsPerUnit,
            Reason = exit.Reason,
            Count = exit.Count,
            SwitchOutNanoseconds = exit.SwitchOutNanoseconds,
            DispatchNanoseconds = exit.DispatchNanoseconds,
            EmulateNanoseconds = exit.EmulateNanoseconds,
            SwitchInNanoseconds = exit.SwitchInNanoseconds,
        };

    public ExitRecord ToExit() =>
        new(
            Round,
            new Cell(Strategy, Workload, TrapsPerUnit),
            Reason,
            Count,
            SwitchOutNanoseconds,
            DispatchNanoseconds,
            EmulateNanoseconds,
            SwitchInNanoseconds
        );
}

/// <summary>A row of kernel-statistics.csv.</summary>
[CsvRecord]
internal sealed partial class KernelStatisticRow
{
    [CsvColumn("round")]
    public int Round { get; set; }

    [CsvColumn("strategy")]
    public string Strategy { get; set; } = "";

    [CsvColumn("workload")]
    public string Workload { get; set; } = "";

    [CsvColumn("traps_per_unit")]
    public int TrapsPerUnit { get; set; }

    [CsvColumn("statistic")]
    public string Statistic { get; set; } = "";

    [CsvColumn("count")]
    public ulong Count { get; set; }

    public static KernelStatisticRow Of(KernelStatisticRecord counter) =>
        new()
        {
            Round = counter.Round,
            Strategy = counter.Cell.Strategy,
            Workload = counter.Cell.Workload,
            TrapsPerUnit = counter.Cell.TrapsPerUnit,
            Statistic = counter.Statistic,
            Count = counter.Count,
        };

    public KernelStatisticRecord ToRecord() => new(Round, new Cell(Strategy, Workload, TrapsPerUnit), Statistic, Count);
}

/// <summary>A row of translation-statistics.csv.</summary>
[CsvRecord]
internal sealed partial class TranslationRow
{
    [CsvColumn("round")]
    public int Round { get; set; }

    [CsvColumn("strategy")]
    public string Strategy { get; set; } = "";

    [CsvColumn("workload")]
    public string Workload { get; set; } = "";

    [CsvColumn("traps_per_unit")]
    public int TrapsPerUnit { get; set; }

    [CsvColumn("scope")]
    public string Scope { get; set; } = "";

    [CsvColumn("blocks")]
    public long Blocks { get; set; }

    [CsvColumn("guest_instructions")]
    public long GuestInstructions { get; set; }

    [CsvColumn("guest_bytes")]
    public long GuestBytes { get; set; }

    [CsvColumn("host_bytes")]
    public long HostBytes { get; set; }

    [CsvColumn("translate_ticks")]
    public ulong TranslateTicks { get; set; }

    [CsvColumn("translate_ns")]
    public double TranslateNanoseconds { get; set; }

    [CsvColumn("links")]
    public long Links { get; set; }

    [CsvColumn("lookup_misses")]
    public long LookupMisses { get; set; }

    [CsvColumn("lookup_hits")]
    public long? LookupHits { get; set; }

    [CsvColumn("invalidations")]
    public long Invalidations { get; set; }

    [CsvColumn("flushes")]
    public long Flushes { get; set; }

    public static TranslationRow Of(TranslationRecord record) =>
        new()
        {
            Round = record.Round,
            Strategy = record.Cell.Strategy,
            Workload = record.Cell.Workload,
            TrapsPerUnit = record.Cell.TrapsPerUnit,
            Scope = Words.Of(record.Scope),
            Blocks = record.Statistics.Blocks,
            GuestInstructions = record.Statistics.GuestInstructions,
            GuestBytes = record.Statistics.GuestBytes,
            HostBytes = record.Statistics.HostBytes,
            TranslateTicks = record.Statistics.Ticks,
            TranslateNanoseconds = record.TranslateNanoseconds,
            Links = record.Statistics.Links,
            LookupMisses = record.Statistics.LookupMisses,
            LookupHits = record.Statistics.LookupHits,
            Invalidations = record.Statistics.Invalidations,
            Flushes = record.Statistics.Flushes,
        };

    public TranslationRecord ToRecord() =>
        new(
            Round,
            new Cell(Strategy, Workload, TrapsPerUnit),
            Words.Scope(Scope),
            new TranslationStatistics(
                Blocks,
                GuestInstructions,
                GuestBytes,
                HostBytes,
                TranslateTicks,
                Links,
                LookupMisses,
                LookupHits,
                Invalidations,
                Flushes
            ),
            TranslateNanoseconds
        );
}

/// <summary>A row of io-statistics.csv.</summary>
[CsvRecord]
internal sealed partial class IoRow
{
    [CsvColumn("round")]
    public int Round { get; set; }

    [CsvColumn("strategy")]
    public string Strategy { get; set; } = "";

    [CsvColumn("workload")]
    public string Workload { get; set; } = "";

    [CsvColumn("traps_per_unit")]
    public int TrapsPerUnit { get; set; }

    [CsvColumn("waiting_ns")]
    public double WaitingNanoseconds { get; set; }

    [CsvColumn("requests")]
    public long? Requests { get; set; }

    [CsvColumn("completions")]
    public long? Completions { get; set; }

    [CsvColumn("errors")]
    public long? Errors { get; set; }

    [CsvColumn("bytes_read")]
    public long? BytesRead { get; set; }

    [CsvColumn("bytes_written")]
    public long? BytesWritten { get; set; }

    [CsvColumn("flushes")]
    public long? Flushes { get; set; }

    [CsvColumn("interrupts")]
    public long? Interrupts { get; set; }

    [CsvColumn("latency_ns")]
    public double? LatencyNanoseconds { get; set; }

    [CsvColumn("latency_max_ns")]
    public double? LatencyMaximumNanoseconds { get; set; }

    public static IoRow Of(IoRecord record)
    {
        DiskStatistics? disk = record.Statistics.Disk;
        return new()
        {
            Round = record.Round,
            Strategy = record.Cell.Strategy,
            Workload = record.Cell.Workload,
            TrapsPerUnit = record.Cell.TrapsPerUnit,
            WaitingNanoseconds = record.Statistics.WaitingNanoseconds,
            Requests = disk?.Requests,
            Completions = disk?.Completions,
            Errors = disk?.Errors,
            BytesRead = disk?.BytesRead,
            BytesWritten = disk?.BytesWritten,
            Flushes = disk?.Flushes,
            Interrupts = disk?.Interrupts,
            LatencyNanoseconds = disk?.LatencyTotalNanoseconds,
            LatencyMaximumNanoseconds = disk?.LatencyMaximumNanoseconds,
        };
    }

    public IoRecord ToRecord() =>
        new(
            Round,
            new Cell(Strategy, Workload, TrapsPerUnit),
            new IoStatistics(
                WaitingNanoseconds,
                Requests is { } requests
                    ? new DiskStatistics(
                        requests,
                        Completions ?? 0,
                        Errors ?? 0,
                        BytesRead ?? 0,
                        BytesWritten ?? 0,
                        Flushes ?? 0,
                        Interrupts ?? 0,
                        LatencyNanoseconds ?? 0,
                        LatencyMaximumNanoseconds ?? 0
                    )
                    : null
            )
        );
}

/// <summary>A row of fits.csv.</summary>
[CsvRecord]
internal sealed partial class FitRow
{
    [CsvColumn("strategy")]
    public string Strategy { get; set; } = "";

    [CsvColumn("workload")]
    public string Workload { get; set; } = "";

    [CsvColumn("t0_ns")]
    public double? T0 { get; set; }

    [CsvColumn("t0_ci_low_ns")]
    public double? T0Low { get; set; }

    [CsvColumn("t0_ci_high_ns")]
    public double? T0High { get; set; }

    [CsvColumn("dt_ns")]
    public double? Dt { get; set; }

    [CsvColumn("dt_ci_low_ns")]
    public double? DtLow { get; set; }

    [CsvColumn("dt_ci_high_ns")]
    public double? DtHigh { get; set; }

    [CsvColumn("theil_sen_dt_ns")]
    public double? TheilSenDt { get; set; }

    [CsvColumn("r2")]
    public double? RSquared { get; set; }

    [CsvColumn("lack_of_fit_p")]
    public double? LackOfFitP { get; set; }

    [CsvColumn("verdict")]
    public string Verdict { get; set; } = "";

    [CsvColumn("points")]
    public int Points { get; set; }

    public static FitRow Of(OverheadFit fit) =>
        new()
        {
            Strategy = fit.Strategy,
            Workload = fit.Workload,
            T0 = fit.UntrappedUnitNanoseconds?.Value,
            T0Low = fit.UntrappedUnitNanoseconds?.Low,
            T0High = fit.UntrappedUnitNanoseconds?.High,
            Dt = fit.TrapNanoseconds?.Value,
            DtLow = fit.TrapNanoseconds?.Low,
            DtHigh = fit.TrapNanoseconds?.High,
            TheilSenDt = fit.TheilSenTrapNanoseconds,
            RSquared = fit.RSquared,
            LackOfFitP = fit.LackOfFitP,
            Verdict = fit.VerdictText,
            Points = fit.Points,
        };
}

/// <summary>The words that stand for enumerations in CSV files.</summary>
internal static class Words
{
    public static string Of(OutlierLabel label) => label == OutlierLabel.None ? "" : Lower(label.ToString());

    public static string Of(SampleStatus status) => Lower(status.ToString());

    public static OutlierLabel Outlier(string word) =>
        word switch
        {
            "" => OutlierLabel.None,
            "mild" => OutlierLabel.Mild,
            "extreme" => OutlierLabel.Extreme,
            _ => throw new FormatException($"'{word}' is no outlier label"),
        };

    public static SampleStatus Status(string word) =>
        Array.Find(Enum.GetValues<SampleStatus>(), status => Of(status) == word) is var status && Of(status) == word
            ? status
            : throw new FormatException($"'{word}' is no status");

    public static string Of(TranslationScope scope) => Lower(scope.ToString());

    public static TranslationScope Scope(string word) =>
        word switch
        {
            "region" => TranslationScope.Region,
            "run" => TranslationScope.Run,
            _ => throw new FormatException($"'{word}' is no scope of translation"),
        };

    public static string OneLine(string text) => text.ReplaceLineEndings(" ");

    private static string Lower(string name) => JsonNamingPolicy.KebabCaseLower.ConvertName(name);
}
