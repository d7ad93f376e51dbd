using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;
using VirtBench.Measurement;

namespace VirtBench.Reporting.Runs;

/// <summary>A strategy of a run, as reports name it.</summary>
/// <param name="Id">Strategy id.</param>
/// <param name="Label">Short label for figures and tables.</param>
/// <param name="IsComputed">True when its times are computed from a cost model instead of taken from a clock.</param>
/// <param name="TimeSource">
/// Where its times come from, in words: the clock's name, or the cost profile's name and file.
/// </param>
/// <param name="Holes">
/// Sensitive instructions that it lets through; null where the strategy is not available, and in runs of earlier versions.
/// </param>
public sealed record StrategyEntry(
    string Id,
    string Label,
    bool IsComputed,
    string TimeSource,
    IReadOnlyList<HoleEntry>? Holes = null
);

/// <summary>A sensitive instruction that a strategy lets through.</summary>
/// <param name="Instruction">Its name, as notes of samples give it.</param>
/// <param name="Effect">What the guest gets, in half a sentence.</param>
public sealed record HoleEntry(string Instruction, string Effect);

/// <summary>A workload of a run, as reports name it.</summary>
/// <param name="Id">Workload id.</param>
/// <param name="SensitiveInstruction">The sensitive instruction as an assembler writes it; null when there is none.</param>
/// <param name="Description">One line.</param>
public sealed record WorkloadEntry(string Id, string? SensitiveInstruction, string Description)
{
    /// <summary>What a guest of the paravirtual interface does in the instruction's place; null also in older runs.</summary>
    public string? ParavirtualOperation { get; init; }

    /// <summary>Stated mean service time of a request, in nanoseconds, where the workload has a disk; null without one.</summary>
    public double? DiskServiceNanoseconds { get; init; }
}

/// <summary>A guest image that a run executed.</summary>
/// <param name="Workload">Workload id.</param>
/// <param name="TrapsPerUnit">k that the image was built for.</param>
/// <param name="Sha256">Hash of the image's bytes, lower-case hexadecimal.</param>
/// <param name="Interface">What it was built for: "native" or "paravirtual".</param>
public sealed record GuestImageEntry(
    string Workload,
    int TrapsPerUnit,
    string Sha256,
    string Interface = GuestImageEntry.Native
)
{
    /// <summary>The word for the native interface, for which all images of older runs were built.</summary>
    public const string Native = "native";
}

/// <summary>What whoever starts a run knows about it before its first sample.</summary>
public sealed record RunDescription
{
    /// <summary>The exact command line that reproduces the run.</summary>
    public required string Command { get; init; }

    /// <summary>Profile name, or null when none was given.</summary>
    public string? Profile { get; init; }

    /// <summary>Seed of the cell order and of the bootstrap.</summary>
    public required ulong Seed { get; init; }

    /// <summary>Planned rounds.</summary>
    public required int Rounds { get; init; }

    /// <summary>Guests that touched what nothing answers were ended.</summary>
    public bool Strict { get; init; }

    /// <summary>Trap-and-emulate's policy of shadow paging, "flush" or "cached"; null where it took no part.</summary>
    public string? Shadow { get; init; }

    /// <summary>Commit of VirtBench, or null when it is not known.</summary>
    public string? Commit { get; init; }

    /// <summary>Version of VirtBench.</summary>
    public required string Version { get; init; }

    /// <summary>The planned order: for each round, its cells.</summary>
    public IReadOnlyList<IReadOnlyList<Cell>> Order { get; init; } = [];

    /// <summary>The strategies that take part.</summary>
    public required IReadOnlyList<StrategyEntry> Strategies { get; init; }

    /// <summary>The workloads that take part.</summary>
    public required IReadOnlyList<WorkloadEntry> Workloads { get; init; }

    /// <summary>What does not take part, and why.</summary>
    public IReadOnlyList<SkippedCell> Skipped { get; init; } = [];

    /// <summary>The guest images.</summary>
    public IReadOnlyList<GuestImageEntry> GuestImages { get; init; } = [];
}

/// <summary>manifest.json: what a run is, and the hashes of everything else in its directory.</summary>
public sealed record Manifest
{
    /// <summary>The version of the directory's formats that this build reads and writes.</summary>
    public const int CurrentSchemaVersion = 1;

    /// <summary>Version of the directory's formats.</summary>
    public required int SchemaVersion { get; init; }

    /// <summary>When the run began, UTC.</summary>
    public required DateTimeOffset StartedUtc { get; init; }

    /// <summary>Name of the host, as the host gives it.</summary>
    public required string Host { get; init; }

    /// <summary>What was known at the start.</summary>
    public required RunDescription Run { get; init; }

    /// <summary>
    /// SHA-256 of every other file by its path with forward slashes, lower-case hexadecimal. Empty while samples are being
    /// taken and after a crash: then nothing vouches for the files yet.
    /// </summary>
    public IReadOnlyDictionary<string, string> Files { get; init; } = new Dictionary<string, string>();
}

/// <summary>How JSON files of a run directory are written: snake_case names, indented, readable text.</summary>
public static class RunJson
{
    /// <summary>The options, also for environment.json and whatever else goes into the directory.</summary>
    public static JsonSerializerOptions Options { get; } =
        new(JsonSerializerDefaults.General)
        {
            PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower,
            WriteIndented = true,
            IndentSize = 2,
            NewLine = "\n",
            // The files are JSON and nothing else; what goes into HTML is escaped there.
            Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
            Converters = { new JsonStringEnumConverter(JsonNamingPolicy.KebabCaseLower), new CellConverter() },
            RespectNullableAnnotations = true,
            RespectRequiredConstructorParameters = true,
        };

    /// <summary>A cell as one word, <c>strategy/workload/k</c>: an order has thousands.</summary>
    private sealed class CellConverter : JsonConverter<Cell>
    {
        public override Cell Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options)
        {
            var parts = reader.GetString()?.Split('/') ?? [];
            return parts.Length == 3 && int.TryParse(parts[2], out var k)
                ? new Cell(parts[0], parts[1], k)
                : throw new JsonException("A cell is strategy/workload/k.");
        }

        public override void Write(Utf8JsonWriter writer, Cell value, JsonSerializerOptions options) =>
            writer.WriteStringValue($"{value.Strategy}/{value.Workload}/{value.TrapsPerUnit}");
    }
}
