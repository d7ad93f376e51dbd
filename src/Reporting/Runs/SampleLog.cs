using VirtBench.Measurement;

namespace VirtBench.Reporting.Runs;

/// <summary>
/// Adds samples to a run directory as they are taken. Each is handed to the operating system before the next is measured, so
/// that neither Ctrl-C nor a crash of the program loses one.
/// </summary>
public sealed class SampleLog : ISweepObserver, IDisposable
{
    private readonly string samplesPath;
    private readonly string exitsPath;
    private readonly FileStream samples;
    private readonly FileStream exits;
    private readonly ISweepObserver? next;
    private readonly HashSet<(int Round, Cell Cell)> done;

    internal SampleLog(string samplesPath, string exitsPath, RunContents contents, ISweepObserver? next)
    {
        this.samplesPath = samplesPath;
        this.exitsPath = exitsPath;
        this.next = next;
        Notices = contents.Notices;
        Earlier = contents.Samples;
        done = [.. contents.Samples.Select(sample => (sample.Round, sample.Cell))];
        samples = OpenAtEnd(samplesPath);
        try
        {
            exits = OpenAtEnd(exitsPath);
        }
        catch
        {
            samples.Dispose();
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
    public void SampleTaken(Sample sample, IReadOnlyList<ExitRecord> exits)
    {
        // The sample's own row last: exits without it are recognised as left over, a sample without its exits would not be.
        Append(this.exits, exitsPath, CsvFile.Encode(exits.Select(ExitRow.Of), withHeader: false));
        Append(samples, samplesPath, CsvFile.Encode([SampleRow.Of(sample)], withHeader: false));
        done.Add((sample.Round, sample.Cell));
        next?.SampleTaken(sample, exits);
    }

    /// <inheritdoc />
    public void Progress(int done, int total, TimeSpan? remaining) => next?.Progress(done, total, remaining);

    /// <inheritdoc />
    public void Dispose()
    {
        samples.Dispose();
        exits.Dispose();
    }

    private static FileStream OpenAtEnd(string path)
    {
        FileStream? stream = null;
        RunFiles.Writing(
            path,
            0,
            // No buffer of its own: a write is one system call, and a row is never split by a full buffer.
            (path, _) => stream = new FileStream(path, FileMode.Append, FileAccess.Write, FileShare.Read, bufferSize: 0)
        );
        return stream!;
    }

    private static void Append(FileStream stream, string path, byte[] rows) =>
        RunFiles.Writing(path, (stream, rows), static (_, to) => to.stream.Write(to.rows));
}
