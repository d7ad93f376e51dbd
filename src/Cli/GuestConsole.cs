namespace VirtBench.Cli;

/// <summary>
/// A guest's console on standard output: passed on line by line, or when a long line fills the buffer. A guest sends single
/// bytes, and a system call for each would be most of what it costs.
/// </summary>
internal sealed class GuestConsole(Stream output) : IDisposable
{
    private readonly byte[] _buffer = new byte[4096];
    private int _count;

    /// <summary>Takes a byte from the guest.</summary>
    public void Write(byte value)
    {
        _buffer[_count++] = value;
        if (value == (byte)'\n' || _count == _buffer.Length)
        {
            Flush();
        }
    }

    /// <summary>Passes on what the last line has so far.</summary>
    public void Flush()
    {
        int count = _count;
        _count = 0; // first: bytes that could not be written once are not written again
        output.Write(_buffer, 0, count);
        output.Flush();
    }

    public void Dispose() => Flush();
}
