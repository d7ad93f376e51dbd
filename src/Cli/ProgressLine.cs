using System.Diagnostics;
using VirtBench.Measurement;

namespace VirtBench.Cli;

/// <summary>Progress of a sweep: one line that is redrawn on a terminal, a line every ten percent elsewhere.</summary>
internal sealed class ProgressLine(Terminal terminal) : ISweepObserver, IDisposable
{
    private static readonly TimeSpan RedrawInterval = TimeSpan.FromMilliseconds(200);

    private long _lastDrawn;
    private int _lastDecile = -1;
    private bool _drawn;

    public void SampleTaken(Sample sample, SampleRecords records)
    {
        if (sample.Status != SampleStatus.Ok)
        {
            Clear();
            Cell cell = sample.Cell;
            terminal.Error.WriteLine(
                $"round {sample.Round}, {cell.Strategy}/{cell.Workload}, k = {cell.TrapsPerUnit}: {sample.Note}"
            );
        }
    }

    public void Progress(int done, int total, TimeSpan? remaining)
    {
        string left = remaining is { } time ? $", about {Describe(time)} left" : "";
        if (!terminal.IsInteractive)
        {
            int decile = total == 0 ? 10 : 10 * done / total;
            if (decile != _lastDecile)
            {
                _lastDecile = decile;
                terminal.Error.WriteLine($"{done} of {total} samples{left}");
            }

            return;
        }

        if (_drawn && done < total && Stopwatch.GetElapsedTime(_lastDrawn) < RedrawInterval)
        {
            return;
        }

        _lastDrawn = Stopwatch.GetTimestamp();
        const int cells = 30;
        int filled = total == 0 ? cells : (int)((long)cells * done / total);
        string line = $"[{new string('#', filled)}{new string('.', cells - filled)}] {done}/{total} samples{left}";
        terminal.Error.Write($"\r{line.PadRight(terminal.Width - 1)[..(terminal.Width - 1)]}");
        _drawn = true;
    }

    public void Dispose() => Clear();

    private void Clear()
    {
        if (_drawn)
        {
            terminal.Error.Write($"\r{new string(' ', terminal.Width - 1)}\r");
            _drawn = false;
        }
    }

    private static string Describe(TimeSpan time) =>
        time.TotalSeconds < 90
            ? $"{Math.Ceiling(time.TotalSeconds):F0} s"
            : $"{Math.Ceiling(time.TotalMinutes):F0} min";
}
