namespace VirtBench.Vmm.Interrupts;

/// <summary>
/// A line of a VM that a thread outside drives (<see cref="Execution.VirtualMachine.ConnectInterrupt"/>). As long as it is connected, a guest may sleep with
/// nothing else to wake it.
/// </summary>
public sealed class InterruptSource : IDisposable
{
    private readonly PostedInterrupts _posted;
    private int _disposed;

    internal InterruptSource(PostedInterrupts posted, int line)
    {
        _posted = posted;
        Line = line;
        posted.Connect();
    }

    /// <summary>0–15.</summary>
    public int Line { get; }

    /// <summary>From any thread: a rising edge and a falling one. Of one that comes while the one before has not been seen, nothing is seen.</summary>
    public void Pulse() => _posted.Pulse(Line);

    /// <summary>Nothing more comes of it.</summary>
    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) == 0)
        {
            _posted.Disconnect();
        }
    }
}
