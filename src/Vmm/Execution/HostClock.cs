using System.Diagnostics;
using System.Runtime.InteropServices;
using VirtBench.Vmm.Native;

namespace VirtBench.Vmm.Execution;

/// <summary>
/// The host's time: CLOCK_MONOTONIC_RAW (not slewed by NTP) for durations and RDTSC for ticks. .NET has no intrinsic for
/// RDTSC, so its few bytes lie in an executable page. Off Linux on x86-64 both come from <see cref="Stopwatch"/>.
/// </summary>
public sealed unsafe class HostClock : IEngineClock
{
    private readonly delegate* unmanaged[SuppressGCTransition]<ulong> _readTsc;
    private readonly Lazy<double> _ticksPerSecond;

    private HostClock()
    {
        _readTsc = CreateTscReader();
        _ticksPerSecond = new Lazy<double>(Calibrate);
    }

    /// <summary>The one clock of this host.</summary>
    public static HostClock Instance { get; } = new();

    /// <inheritdoc/>
    public ulong Ticks => _readTsc is null ? (ulong)Stopwatch.GetTimestamp() : _readTsc();

    /// <inheritdoc/>
    public double TicksPerSecond => _ticksPerSecond.Value;

    /// <inheritdoc/>
    public double Nanoseconds
    {
        get
        {
            if (!OperatingSystem.IsLinux())
            {
                return Stopwatch.GetTimestamp() * (1e9 / Stopwatch.Frequency);
            }

            Linux.Timespec now;
            _ = Linux.ClockGettime(Linux.ClockMonotonicRaw, &now);
            return (now.Seconds * 1e9) + now.Nanoseconds;
        }
    }

    /// <inheritdoc/>
    public void ChargeEmulation(TrapReason reason) { }

    private static delegate* unmanaged[SuppressGCTransition]<ulong> CreateTscReader()
    {
        if (!OperatingSystem.IsLinux() || RuntimeInformation.ProcessArchitecture != Architecture.X64)
        {
            return null;
        }

        const nuint page = 4096;
        nint code = Linux.Mmap(0, page, Linux.ProtRead | Linux.ProtWrite, Linux.MapPrivate | Linux.MapAnonymous, -1, 0);
        if (code == -1)
        {
            return null;
        }

        // rdtsc; shl rdx,32; or rax,rdx; ret. No fence: a stamp may be off by what is in flight, some nanoseconds, and a
        // fence before each would cost every trap as much again.
        ReadOnlySpan<byte> instructions = [0x0F, 0x31, 0x48, 0xC1, 0xE2, 0x20, 0x48, 0x09, 0xD0, 0xC3];
        instructions.CopyTo(new Span<byte>((void*)code, (int)page));
        return Linux.Mprotect(code, page, Linux.ProtRead | Linux.ProtExec) == 0
            ? (delegate* unmanaged[SuppressGCTransition]<ulong>)code
            : null;
    }

    // 20 ms against the raw clock: 1 ppm of clock-read noise. Only boot information and stamp conversion need it.
    private double Calibrate()
    {
        if (_readTsc is null)
        {
            return Stopwatch.Frequency;
        }

        double start = Nanoseconds;
        ulong first = Ticks;
        while (Nanoseconds - start < 20e6)
        {
            Thread.SpinWait(100);
        }

        ulong last = Ticks;
        double elapsed = Nanoseconds - start;
        return (last - first) / elapsed * 1e9;
    }
}
