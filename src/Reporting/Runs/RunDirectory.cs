using System.Globalization;
using System.Text.Json;
using System.Text.Json.Nodes;
using VirtBench.Analysis;
using VirtBench.Measurement;

namespace VirtBench.Reporting.Runs;

/// <summary>What a run measured, as its files say.</summary>
/// <param name="Samples">Rows of samples.csv, in the order they were taken.</param>
/// <param name="Exits">Rows of exits.csv that belong to one of the samples.</param>
/// <param name="KernelStatistics">Rows of kernel-statistics.csv that do; none where the run is older than this file.</param>
/// <param name="Translations">Rows of translation-statistics.csv that do; none where the run is older than this file.</param>
/// <param name="Io">Rows of io-statistics.csv that do; none where the run is older than this file.</param>
/// <param name="Notices">What was found wrong with the files and left out, a line each.</param>
public sealed record RunContents(
    IReadOnlyList<Sample> Samples,
    IReadOnlyList<ExitRecord> Exits,
    IReadOnlyList<KernelStatisticRecord> KernelStatistics,
    IReadOnlyList<TranslationRecord> Translations,
    IReadOnlyList<IoRecord> Io,
    IReadOnlyList<string> Notices
);

/// <summary>
/// A folder that holds one run: manifest.json, environment.json, samples.csv, exits.csv, kernel-statistics.csv,
/// translation-statistics.csv and io-statistics.csv as they were measured, and what is derived from them. docs/file-formats.md describes the files.
/// </summary>
public sealed class RunDirectory
{
    /// <summary>File names in the directory.</summary>
    public const string ManifestFile = "manifest.json",
        EnvironmentFile = "environment.json",
        SamplesFile = "samples.csv",
        ExitsFile = "exits.csv",
        KernelStatisticsFile = "kernel-statistics.csv",
        TranslationStatisticsFile = "translation-statistics.csv",
        IoStatisticsFile = "io-statistics.csv",
        FitsFile = "fits.csv",
        FiguresFolder = "figures",
        CostProfileFile = "cost-profile.json",
        HtmlReportFile = "report.html",
        MarkdownReportFile = "report.md";

    private const int LongestHostPart = 40;

    private RunDirectory(string path, Manifest manifest)
    {
        FullPath = path;
        Manifest = manifest;
    }

    /// <summary>Where it is.</summary>
    public string FullPath { get; }

    /// <summary>manifest.json as it is now.</summary>
    public Manifest Manifest { get; private set; }

    /// <summary>Creates the folder <c>UTC time-host</c> in <paramref name="resultsFolder"/> with all but the samples.</summary>
    /// <param name="resultsFolder">Folder of all runs; created when missing.</param>
    /// <param name="host">The host's name as it gives it: what a file name may not have is replaced.</param>
    /// <param name="startedUtc">When the run begins.</param>
    /// <param name="description">What is known about the run.</param>
    /// <param name="environment">What environment.json is to hold; written with <see cref="RunJson.Options"/>.</param>
    /// <exception cref="RunDirectoryException">The folder cannot be created or written to.</exception>
    public static RunDirectory Create(
        string resultsFolder,
        string host,
        DateTimeOffset startedUtc,
        RunDescription description,
        object environment
    )
    {
        var name =
            startedUtc.UtcDateTime.ToString("yyyyMMdd'T'HHmmss'Z'", CultureInfo.InvariantCulture)
            + "-"
            + HostPart(host);
        var path = Path.GetFullPath(Path.Combine(resultsFolder, name));
        // Two runs within a second must not write into one folder.
        for (var i = 2; Directory.Exists(path); i++)
        {
            path = Path.GetFullPath(Path.Combine(resultsFolder, $"{name}-{i}"));
        }
        var run = new RunDirectory(
            path,
            new Manifest
            {
                SchemaVersion = Manifest.CurrentSchemaVersion,
                StartedUtc = startedUtc.ToUniversalTime(),
                Host = host,
                Run = description,
            }
        );
        RunFiles.Writing(path, 0, static (path, _) => Directory.CreateDirectory(path));
        run.WriteManifest();
        run.Write(
            EnvironmentFile,
            JsonSerializer.SerializeToUtf8Bytes(environment, environment.GetType(), RunJson.Options)
        );
        run.Write(SamplesFile, CsvFile.Encode(Array.Empty<SampleRow>(), withHeader: true));
        run.Write(ExitsFile, CsvFile.Encode(Array.Empty<ExitRow>(), withHeader: true));
        run.Write(KernelStatisticsFile, CsvFile.Encode(Array.Empty<KernelStatisticRow>(), withHeader: true));
        run.Write(TranslationStatisticsFile, CsvFile.Encode(Array.Empty<TranslationRow>(), withHeader: true));
        run.Write(IoStatisticsFile, CsvFile.Encode(Array.Empty<IoRow>(), withHeader: true));
        return run;
    }

    /// <summary>Opens a run that is there.</summary>
    /// <exception cref="RunDirectoryException">
    /// The folder is missing or is no run directory, or another version of VirtBench wrote it.
    /// </exception>
    public static RunDirectory Open(string path)
    {
        path = Path.GetFullPath(path);
        if (!Directory.Exists(path))
        {
            throw new RunDirectoryException($"There is no folder {path}.");
        }
        var file = Path.Combine(path, ManifestFile);
        if (!File.Exists(file))
        {
            throw new RunDirectoryException($"{path} is no run directory: it has no {ManifestFile}.");
        }
        var bytes = RunFiles.Read(file);
        try
        {
            // The version first: another version's manifest need not have the shape of this one's.
            var version = JsonNode.Parse(bytes)?["schema_version"]?.GetValue<int>();
            if (version is null)
            {
                throw new RunDirectoryException($"{file} has no schema_version: it is no manifest of a run.");
            }
            if (version != Manifest.CurrentSchemaVersion)
            {
                throw new RunDirectoryException(
                    $"{path} has format version {version}; this build reads version {Manifest.CurrentSchemaVersion}. "
                        + "Use the VirtBench that wrote it."
                );
            }
            var manifest = JsonSerializer.Deserialize<Manifest>(bytes, RunJson.Options);
            return new RunDirectory(path, manifest ?? throw new JsonException("It is null."));
        }
        catch (Exception error) when (error is JsonException or InvalidOperationException or FormatException)
        {
            throw new RunDirectoryException($"{file} is malformed: {Words.OneLine(error.Message)}", error);
        }
    }

    /// <summary>Reads what was measured.</summary>
    /// <exception cref="RunDirectoryException">
    /// A file is missing, malformed (with the line), or not the one whose hash the manifest has.
    /// </exception>
    public RunContents Read()
    {
        CheckHash(SamplesFile);
        CheckHash(ExitsFile);
        var notices = new List<string>();
        var samples = CsvFile.Read<SampleRow, Sample>(At(SamplesFile), row => row.ToSample(), out var notice);
        AddNotice(notice);
        var exits = CsvFile.Read<ExitRow, ExitRecord>(At(ExitsFile), row => row.ToExit(), out notice);
        AddNotice(notice);
        CheckSamples(samples);
        var taken = samples.Select(sample => (sample.Round, sample.Cell)).ToHashSet();
        return new RunContents(
            samples,
            Finished(ExitsFile, exits, exit => (exit.Round, exit.Cell)),
            Finished(
                KernelStatisticsFile,
                ReadLater<KernelStatisticRow, KernelStatisticRecord>(KernelStatisticsFile, row => row.ToRecord()),
                counter => (counter.Round, counter.Cell)
            ),
            Finished(
                TranslationStatisticsFile,
                ReadLater<TranslationRow, TranslationRecord>(TranslationStatisticsFile, row => row.ToRecord()),
                translated => (translated.Round, translated.Cell)
            ),
            Finished(
                IoStatisticsFile,
                ReadLater<IoRow, IoRecord>(IoStatisticsFile, row => row.ToRecord()),
                io => (io.Round, io.Cell)
            ),
            notices
        );

        List<TRecord> Finished<TRecord>(string file, List<TRecord> records, Func<TRecord, (int, Cell)> sampleOf)
        {
            var kept = records.Where(record => taken.Contains(sampleOf(record))).ToList();
            if (kept.Count < records.Count)
            {
                AddNotice(
                    $"{file}: {records.Count - kept.Count} rows belong to a sample that was never finished and are not counted."
                );
            }
            return kept;
        }

        // Of a file that runs have had only since some later version.
        List<TRecord> ReadLater<TRow, TRecord>(string file, Func<TRow, TRecord> convert)
        {
            if (!Has(file))
            {
                return [];
            }
            CheckHash(file);
            var rows = CsvFile.Read(At(file), convert, out var notice);
            AddNotice(notice);
            return rows;
        }

        void AddNotice(string? text)
        {
            if (text is not null)
            {
                notices.Add(text);
            }
        }
    }

    /// <summary>Reads environment.json.</summary>
    /// <exception cref="RunDirectoryException">It is missing, malformed, or not the one whose hash the manifest has.</exception>
    public JsonNode ReadEnvironment()
    {
        CheckHash(EnvironmentFile);
        try
        {
            return JsonNode.Parse(RunFiles.Read(At(EnvironmentFile))) ?? new JsonObject();
        }
        catch (JsonException error)
        {
            throw new RunDirectoryException(
                $"{At(EnvironmentFile)} is malformed: {Words.OneLine(error.Message)}",
                error
            );
        }
    }

    /// <summary>
    /// Starts adding samples, after those that are there already. Whatever a crash left half-written is removed first.
    /// </summary>
    /// <param name="next">Hears everything that the log hears; null for nobody.</param>
    public SampleLog Append(ISweepObserver? next = null)
    {
        var contents = Read();
        // From here on the hashes are void, until Seal.
        Manifest = Manifest with
        {
            Files = new Dictionary<string, string>(),
        };
        WriteManifest();
        DropIncompleteLine();
        if (contents.Notices.Count > 0)
        {
            Write(ExitsFile, CsvFile.Encode(contents.Exits.Select(ExitRow.Of), withHeader: true));
        }
        if (contents.Notices.Count > 0 || !File.Exists(At(KernelStatisticsFile)))
        {
            Write(
                KernelStatisticsFile,
                CsvFile.Encode(contents.KernelStatistics.Select(KernelStatisticRow.Of), withHeader: true)
            );
        }
        if (contents.Notices.Count > 0 || !File.Exists(At(TranslationStatisticsFile)))
        {
            Write(
                TranslationStatisticsFile,
                CsvFile.Encode(contents.Translations.Select(TranslationRow.Of), withHeader: true)
            );
        }
        if (contents.Notices.Count > 0 || !File.Exists(At(IoStatisticsFile)))
        {
            Write(IoStatisticsFile, CsvFile.Encode(contents.Io.Select(IoRow.Of), withHeader: true));
        }
        return new SampleLog(this, contents, next);
    }

    /// <summary>Replaces what the manifest says of the run, for what is known only later (a cell that had to be skipped).</summary>
    public void Describe(RunDescription description)
    {
        Manifest = Manifest with { Run = description };
        WriteManifest();
    }

    /// <summary>
    /// Fills in the outlier column of samples.csv. No other field of any row is touched, and the file is replaced as a whole.
    /// </summary>
    public void LabelOutliers()
    {
        var labels = Tukey.LabelWithinCells(Read().Samples);
        var records = CsvFile.ReadFields(At(SamplesFile));
        var column = Array.IndexOf(records[0], "outlier");
        for (var i = 0; i < labels.Length; i++)
        {
            records[i + 1][column] = Words.Of(labels[i]);
        }
        WriteIfChanged(SamplesFile, CsvFile.EncodeFields(records));
    }

    /// <summary>Writes fits.csv.</summary>
    public void WriteFits(IEnumerable<OverheadFit> fits) =>
        WriteIfChanged(FitsFile, CsvFile.Encode(fits.Select(FitRow.Of), withHeader: true));

    /// <summary>Writes a derived file.</summary>
    /// <param name="relativePath">Path in the directory, with forward slashes.</param>
    /// <param name="contents">All of it.</param>
    public void Write(string relativePath, ReadOnlySpan<byte> contents) => RunFiles.Replace(At(relativePath), contents);

    /// <summary>Records the hash of every other file in manifest.json: the run is complete, or as complete as it will be.</summary>
    public void Seal()
    {
        var files = new SortedDictionary<string, string>(StringComparer.Ordinal);
        foreach (var path in Directory.EnumerateFiles(FullPath, "*", SearchOption.AllDirectories))
        {
            var name = Path.GetRelativePath(FullPath, path).Replace('\\', '/');
            if (name != ManifestFile && !name.EndsWith(RunFiles.TemporaryEnding, StringComparison.Ordinal))
            {
                files[name] = RunFiles.Sha256(RunFiles.Read(path));
            }
        }
        Manifest = Manifest with { Files = files };
        WriteManifest();
    }

    /// <summary>Full path of a file in the directory.</summary>
    public string At(string relativePath) => Path.Combine(FullPath, relativePath);

    /// <summary>The part of a folder's name that stands for the host: letters, digits and hyphens, whatever its name is.</summary>
    internal static string HostPart(string host)
    {
        var letters = host.Take(LongestHostPart).Select(c => char.IsAsciiLetterOrDigit(c) ? c : '-').ToArray();
        var part = new string(letters).Trim('-');
        return part.Length == 0 ? "host" : part;
    }

    private void WriteManifest() => Write(ManifestFile, JsonSerializer.SerializeToUtf8Bytes(Manifest, RunJson.Options));

    private void WriteIfChanged(string name, byte[] contents)
    {
        if (!File.Exists(At(name)) || !RunFiles.Read(At(name)).AsSpan().SequenceEqual(contents))
        {
            Write(name, contents);
            // A sealed run that changes by our own hand stays consistent.
            if (Manifest.Files.ContainsKey(name))
            {
                Manifest = Manifest with
                {
                    Files = new SortedDictionary<string, string>(Manifest.Files.ToDictionary(), StringComparer.Ordinal)
                    {
                        [name] = RunFiles.Sha256(contents),
                    },
                };
                WriteManifest();
            }
        }
    }

    /// <summary>A run that is older than the file has none, and no hash of one.</summary>
    private bool Has(string file)
    {
        var isThere = File.Exists(At(file));
        if (isThere && Manifest.Files.Count > 0 && !Manifest.Files.ContainsKey(file))
        {
            throw new RunDirectoryException(
                $"{At(file)} was not there when the run ended: {ManifestFile} has no hash of it. Remove it."
            );
        }
        return isThere || Manifest.Files.ContainsKey(file);
    }

    private void CheckHash(string name)
    {
        if (Manifest.Files.TryGetValue(name, out var hash) && RunFiles.Sha256(RunFiles.Read(At(name))) != hash)
        {
            throw new RunDirectoryException(
                $"{At(name)} is not the file that was measured: its SHA-256 differs from {ManifestFile}. Restore the original."
            );
        }
    }

    private void CheckSamples(List<Sample> samples)
    {
        var seen = new HashSet<(int Round, Cell Cell)>();
        for (var i = 0; i < samples.Count; i++)
        {
            var sample = samples[i];
            var wrong =
                sample.Round < 0 || sample.Cell.TrapsPerUnit < 0 || sample.Units < 0 || sample.Traps < 0
                    ? "a count below 0"
                : sample.Status != SampleStatus.Failed
                && (!double.IsFinite(sample.ElapsedNanoseconds) || sample.ElapsedNanoseconds < 0)
                    ? "elapsed_ns that is no time"
                : !IsId(sample.Cell.Strategy) || !IsId(sample.Cell.Workload) ? "a strategy or workload that is no id"
                : !seen.Add((sample.Round, sample.Cell)) ? "the same round and cell as an earlier row"
                : null;
            if (wrong is not null)
            {
                // Every record is one line, and the header is line 1.
                throw new RunDirectoryException(
                    $"{At(SamplesFile)}, line {i + 2}: the row has {wrong}. Was the file edited?"
                );
            }
        }
    }

    /// <summary>Ids become file names and parts of a page: lower-case words with hyphens, as interfaces have them, and a plus sign.</summary>
    private static bool IsId(string text) =>
        text.Length is > 0 and <= 64
        && text.All(c => char.IsAsciiLetterLower(c) || char.IsAsciiDigit(c) || c is '-' or '+');

    private void DropIncompleteLine()
    {
        string[] later = [KernelStatisticsFile, TranslationStatisticsFile, IoStatisticsFile];
        foreach (var name in (string[])[SamplesFile, ExitsFile, .. later])
        {
            if (later.Contains(name) && !File.Exists(At(name)))
            {
                continue;
            }
            var bytes = RunFiles.Read(At(name));
            var whole = CsvFile.WholeLength(bytes);
            if (whole < bytes.Length)
            {
                Write(name, bytes.AsSpan(0, whole));
            }
        }
    }
}
