using VirtBench.Measurement;

namespace VirtBench.Reporting.Runs;

/// <summary>
/// Adds samples to a run directory as they are taken. Each is handed to the operating system before the next is measured, so
/// that neither Ctrl-C nor a crash of the program loses one.
/// </summary>
public sealed class SampleLog : ISweepObserver, IDisposable
{
    private readonly AppendedFile samples;
    private readonly AppendedFile exits;
    private readonly AppendedFile kernelStatistics;
    private readonly AppendedFile translations;
    private readonly AppendedFile io;
    private readonly ISweepObserver? next;
    private readonly HashSet<(int Round, Cell Cell)> done;

    internal SampleLog(RunDirectory run, RunContents contents, ISweepObserver? next)
    {
        this.next = next;
        Notices = contents.Notices;
        Earlier = contents.Samples;
        done = [.. contents.Samples.Select(sample => (sample.Round, sample.Cell))];
        samples = new AppendedFile(run.At(RunDirectory.SamplesFile));
        try
        {
            exits = new AppendedFile(run.At(RunDirectory.ExitsFile));
            kernelStatistics = new AppendedFile(run.At(RunDirectory.KernelStatisticsFile));
            translations = new AppendedFile(run.At(RunDirectory.TranslationStatisticsFile));
            io = new AppendedFile(run.At(RunDirectory.IoStatisticsFile));
        }
        catch
        {
            samples.Dispose();
            exits?.Dispose();
            kernelStatistics?.Dispose();
            translations?.Dispose();
            throw;
        }
    }

    /// <summary>What a crash had left half-written and was removed, a line each.</summary>
    public IReadOnlyList<string> Notices { get; }

    /// <summary>The samples that were in the directory when the log was opened: what a resumed sweep does not take again.</summary>
    public IReadOnlyList<Sample> Earlier { get; }

    /// <summary>Samples in the directory.</summary>
    public int Count => done.Count;

    /// <summary>Whether this sample is in the directory already: a resumed sweep goes on with the others.</summary>
    public bool IsDone(int round, Cell cell) => done.Contains((round, cell));

    /// <inheritdoc />
    public void SampleTaken(Sample sample, SampleRecords records)
    {
        // The sample's own row last: exits without it are recognised as left over, a sample without its exits would not be.
        exits.Append(CsvFile.Encode(records.Exits.Select(ExitRow.Of), withHeader: false));
        kernelStatistics.Append(
            CsvFile.Encode(records.KernelStatistics.Select(KernelStatisticRow.Of), withHeader: false)
        );
        translations.Append(CsvFile.Encode(records.Translations.Select(TranslationRow.Of), withHeader: false));
        if (records.Io is { } done)
        {
            io.Append(CsvFile.Encode([IoRow.Of(done)], withHeader: false));
        }

        samples.Append(CsvFile.Encode([SampleRow.Of(sample)], withHeader: false));
        this.done.Add((sample.Round, sample.Cell));
        next?.SampleTaken(sample, records);
    }

    /// <inheritdoc />
    public void Progress(int done, int total, TimeSpan? remaining) => next?.Progress(done, total, remaining);

    /// <inheritdoc />
    public void Dispose()
    {
        samples.Dispose();
        exits.Dispose();
        kernelStatistics.Dispose();
        translations.Dispose();
        io.Dispose();
    }

    /// <summary>A file that only ever grows.</summary>
    private sealed class AppendedFile : IDisposable
    {
        private readonly string path;
        private readonly FileStream stream;

        public AppendedFile(string path)
        {
            this.path = path;
            FileStream? opened = null;
            RunFiles.Writing(
                path,
                0,
                // No buffer of its own: a write is one system call, and a row is never split by a full buffer.
                (path, _) =>
                    opened = new FileStream(path, FileMode.Append, FileAccess.Write, FileShare.Read, bufferSize: 0)
            );
            stream = opened!;
        }

        public void Append(byte[] rows) =>
            RunFiles.Writing(path, (stream, rows), static (_, to) => to.stream.Write(to.rows));

        public void Dispose() => stream.Dispose();
    }
}
