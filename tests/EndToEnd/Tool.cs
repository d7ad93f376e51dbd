using System.Diagnostics;
using System.Globalization;
using System.Text;

namespace VirtBench.EndToEnd;

/// <summary>What a call of the tool came to.</summary>
internal sealed record ToolResult(int ExitCode, string Output, string Error)
{
    /// <summary>Asserts one clear line on stderr: no stack trace, no second line.</summary>
    public void AssertOneErrorLine(string fragment)
    {
        string line = Assert.Single(Error.Split('\n', StringSplitOptions.RemoveEmptyEntries));
        Assert.StartsWith("virtbench: ", line);
        Assert.Contains(fragment, line);
    }
}

/// <summary>Calls the built tool as a process of a session of its own, so that what it leaves behind can be told.</summary>
internal static class Tool
{
    /// <summary>Far more than anything here takes: it ends a test that hangs.</summary>
    private static readonly TimeSpan Patience = TimeSpan.FromMinutes(3);

    public static string Path { get; } = System.IO.Path.Combine(AppContext.BaseDirectory, "virtbench.dll");

    /// <summary>The runtime that runs the tests runs the tool.</summary>
    public static string Dotnet { get; } =
        Environment.GetEnvironmentVariable("DOTNET_HOST_PATH")
        ?? System.IO.Path.GetFullPath(
            System.IO.Path.Combine(
                System.Runtime.InteropServices.RuntimeEnvironment.GetRuntimeDirectory(),
                "../../../dotnet"
            )
        );

    public static string? Setsid { get; } = OnPath("setsid");

    public static string? OnPath(string program) =>
        (Environment.GetEnvironmentVariable("PATH") ?? "")
            .Split(System.IO.Path.PathSeparator)
            .Select(folder => System.IO.Path.Combine(folder, program))
            .FirstOrDefault(File.Exists);

    /// <summary>Runs it to its end and asserts that it left no process behind.</summary>
    public static ToolResult Run(params string[] arguments) => RunIn(Repository.Root, arguments);

    public static ToolResult RunIn(string folder, params string[] arguments)
    {
        using ToolProcess process = Start(folder, arguments);
        ToolResult result = process.Finish();
        process.AssertNothingLeft();
        return result;
    }

    public static ToolProcess Start(string folder, params string[] arguments)
    {
        string[] command = [Dotnet, Path, .. arguments];
        return StartCommand(folder, Setsid is { } setsid ? [setsid, .. command] : command);
    }

    public static ToolProcess StartCommand(string folder, params string[] command)
    {
        var start = new ProcessStartInfo(command[0], command[1..])
        {
            UseShellExecute = false,
            WorkingDirectory = folder,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
            RedirectStandardInput = true,
            StandardOutputEncoding = Encoding.Latin1,
        };
        return new ToolProcess(Process.Start(start)!, Patience);
    }
}

/// <summary>A call under way.</summary>
internal sealed class ToolProcess : IDisposable
{
    private readonly Process _process;
    private readonly CancellationTokenSource _patience;
    private readonly StringBuilder _output = new();
    private readonly Task _outputRead;
    private readonly TaskCompletionSource _outputBegun = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly List<string> _errors = [];
    private readonly Task _errorsRead;
    private readonly TaskCompletionSource _ended = new();
    private readonly List<(Func<string, bool> Predicate, TaskCompletionSource Seen)> _awaited = [];

    public ToolProcess(Process process, TimeSpan patience)
    {
        _process = process;
        _patience = new CancellationTokenSource(patience);
        process.StandardInput.Close();
        _outputRead = ReadOutput();
        _errorsRead = ReadErrors();
    }

    /// <summary>Process id, and session id where there is setsid.</summary>
    public int Id => _process.Id;

    /// <summary>Waits for the first byte on stdout.</summary>
    public async Task OutputBegins()
    {
        Task first = await Task.WhenAny(_outputBegun.Task, _ended.Task).WaitAsync(_patience.Token);
        Assert.True(first == _outputBegun.Task, $"the tool ended first: {string.Join('\n', _errors)}");
    }

    /// <summary>Waits until stderr has had such a line.</summary>
    public async Task ErrorLine(Func<string, bool> predicate)
    {
        var seen = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        lock (_errors)
        {
            if (_errors.Exists(line => predicate(line)))
            {
                return;
            }

            _awaited.Add((predicate, seen));
        }

        Task first = await Task.WhenAny(seen.Task, _ended.Task).WaitAsync(_patience.Token);
        Assert.True(first == seen.Task, $"the tool ended first: {string.Join('\n', _errors)}");
    }

    public void Signal(int signal) => Assert.Equal(0, Linux.Kill(_process.Id, signal));

    public ToolResult Finish()
    {
        try
        {
            Task.WhenAll(_process.WaitForExitAsync(_patience.Token), _outputRead, _errorsRead)
                .WaitAsync(_patience.Token)
                .GetAwaiter()
                .GetResult();
        }
        catch (OperationCanceledException)
        {
            _process.Kill(entireProcessTree: true);
            Assert.Fail($"the tool did not end; stderr: {string.Join('\n', _errors)}");
        }

        return new ToolResult(_process.ExitCode, _output.ToString(), string.Join('\n', _errors));
    }

    /// <summary>Carriers end with the tool, and none is left as a zombie.</summary>
    public void AssertNothingLeft()
    {
        if (Tool.Setsid is not null)
        {
            Assert.Empty(ProcessesOfSession(Id));
        }
    }

    /// <summary>
    /// Carriers die with a tool that was killed: the kernel tells them. Who reaps them then is not the tool's doing.
    /// </summary>
    public void AssertNothingRuns()
    {
        if (Tool.Setsid is not null)
        {
            Assert.True(
                SpinWait.SpinUntil(
                    () => ProcessesOfSession(Id).All(process => process.State is 'Z' or 'X'),
                    TimeSpan.FromSeconds(30)
                )
            );
        }
    }

    /// <summary>Processes of a session by id, name and state, zombies among them: /proc/PID/stat, proc(5).</summary>
    public static IReadOnlyList<(int Pid, string Name, char State)> ProcessesOfSession(int session)
    {
        var found = new List<(int, string, char)>();
        foreach (string folder in Directory.EnumerateDirectories("/proc"))
        {
            if (!int.TryParse(Path.GetFileName(folder), out int pid))
            {
                continue;
            }

            try
            {
                // pid (comm) state ppid pgrp session …; comm may hold blanks and parentheses.
                string stat = File.ReadAllText(Path.Combine(folder, "stat"));
                int close = stat.LastIndexOf(')');
                string[] fields = stat[(close + 2)..].Split(' ');
                if (int.Parse(fields[3], CultureInfo.InvariantCulture) == session)
                {
                    found.Add((pid, stat[(stat.IndexOf('(', StringComparison.Ordinal) + 1)..close], fields[0][0]));
                }
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException)
            {
                // It has ended between the two looks.
            }
        }

        return found;
    }

    public void Dispose()
    {
        if (!_process.HasExited)
        {
            _process.Kill(entireProcessTree: true);
        }

        _process.Dispose();
        _patience.Dispose();
    }

    private async Task ReadOutput()
    {
        char[] buffer = new char[4096];
        while (await _process.StandardOutput.ReadAsync(buffer) is > 0 and var count)
        {
            _output.Append(buffer, 0, count);
            _outputBegun.TrySetResult();
        }
    }

    private async Task ReadErrors()
    {
        while (await _process.StandardError.ReadLineAsync() is { } line)
        {
            lock (_errors)
            {
                _errors.Add(line);
                foreach ((_, TaskCompletionSource seen) in _awaited.Where(one => one.Predicate(line)))
                {
                    seen.TrySetResult();
                }
            }
        }

        _ended.TrySetResult();
    }
}
