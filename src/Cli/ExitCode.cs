namespace VirtBench.Cli;

/// <summary>Exit codes of the tool; <c>exec</c> otherwise returns the guest's own status.</summary>
internal static class ExitCode
{
    /// <summary>Done.</summary>
    public const int Success = 0;

    /// <summary>The job failed.</summary>
    public const int Failed = 1;

    /// <summary>The command line makes no sense.</summary>
    public const int Usage = 2;

    /// <summary>exec: the guest ran out of time.</summary>
    public const int TimedOut = 124;

    /// <summary>exec: VirtBench could not run the guest, or the guest could not go on.</summary>
    public const int GuestNotRun = 125;

    /// <summary>Interrupted by Ctrl-C, as shells report it.</summary>
    public const int Interrupted = 130;
}

/// <summary>The command line makes no sense: one line, exit code 2.</summary>
internal sealed class UsageException(string message) : Exception(message);

/// <summary>The job cannot be done: one line, exit code 1.</summary>
internal sealed class JobException(string message, int exitCode = ExitCode.Failed) : Exception(message)
{
    public int ExitCode { get; } = exitCode;
}
