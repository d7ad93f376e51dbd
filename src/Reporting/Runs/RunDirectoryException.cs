namespace VirtBench.Reporting.Runs;

/// <summary>
/// A run directory cannot be created, read or continued. The message is one line that says what is wrong and what to do.
/// </summary>
public sealed class RunDirectoryException : Exception
{
    /// <summary>With the line to show.</summary>
    public RunDirectoryException(string message)
        : base(message) { }

    /// <summary>With the line to show and what caused it.</summary>
    public RunDirectoryException(string message, Exception inner)
        : base(message, inner) { }
}
