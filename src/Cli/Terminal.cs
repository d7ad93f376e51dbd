using System.Runtime.InteropServices;
using System.Text;

namespace VirtBench.Cli;

/// <summary>Where a command writes and how it is interrupted; a test gives its own.</summary>
/// <param name="Output">Standard output as text.</param>
/// <param name="Error">Standard error as text.</param>
/// <param name="RawOutput">Standard output as bytes, for a guest's console.</param>
/// <param name="IsInteractive">Standard error is a terminal: progress may redraw its line.</param>
/// <param name="Width">Columns of that terminal.</param>
internal sealed record Terminal(
    TextWriter Output,
    TextWriter Error,
    Stream RawOutput,
    bool IsInteractive,
    int Width = 100
)
{
    /// <summary>The process's own streams. A reader that goes away (a pipe into head) is no error.</summary>
    public static Terminal OfProcess()
    {
        var utf8 = new UTF8Encoding(encoderShouldEmitUTF8Identifier: false);
        Stream output = Console.OpenStandardOutput();
        bool interactive = !Console.IsErrorRedirected;
        return new Terminal(
            new StreamWriter(output, utf8) { AutoFlush = true },
            new StreamWriter(Console.OpenStandardError(), utf8) { AutoFlush = true },
            output,
            interactive,
            interactive && Console.WindowWidth > 20 ? Console.WindowWidth : 100
        );
    }

    /// <summary>
    /// Cancels the token on the first Ctrl-C or SIGTERM, so that what was measured is kept; the second one ends the process.
    /// </summary>
    public static IDisposable CancelOnInterrupt(CancellationTokenSource cancellation)
    {
        void OnSignal(PosixSignalContext context)
        {
            context.Cancel = !cancellation.IsCancellationRequested;
            cancellation.Cancel();
        }

        return new Registrations(
            PosixSignalRegistration.Create(PosixSignal.SIGINT, OnSignal),
            PosixSignalRegistration.Create(PosixSignal.SIGTERM, OnSignal)
        );
    }

    private sealed class Registrations(params IDisposable[] all) : IDisposable
    {
        public void Dispose()
        {
            foreach (IDisposable one in all)
            {
                one.Dispose();
            }
        }
    }
}
