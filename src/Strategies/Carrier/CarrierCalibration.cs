using System.Runtime.Versioning;
using Iced.Intel;
using VirtBench.Strategies.Native;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Carrier;

/// <summary>
/// The two floors under a trap, each measured alone: the hand-off between the VMM's core and the carrier's, and the host's
/// delivery of a fault to a handler in the carrier that only skips the instruction. A trap through the VMM cannot cost
/// less than their sum. On a cloud VM the hand-off drifts by a factor of four within minutes, so it is measured beside
/// every result.
/// </summary>
[SupportedOSPlatform("linux")]
internal sealed unsafe class CarrierCalibration : IDisposable
{
    private const ulong CodeAddress = 0x8_0000;
    private const int CliLength = 1;

    private readonly GuestMemory _memory = new(GuestMemory.MinimumSize);
    private readonly CarrierProcess _skipping;
    private readonly byte[] _callerMask;

    /// <summary>Starts a carrier whose handler skips CLI.</summary>
    /// <param name="returnByIret">Which way the handler returns to the guest.</param>
    public CarrierCalibration(bool returnByIret)
    {
        _callerMask = CarrierPlacement.CurrentThreadMask();
        if (CarrierPlacement.VmmCpu >= 0)
        {
            CarrierPlacement.Pin(0, CarrierPlacement.VmmCpu);
        }

        _memory.Write(CodeAddress, MachineCode.Assemble(TrapLoop(), CodeAddress));
        _skipping = new CarrierProcess(
            _memory.FileDescriptor,
            new CarrierOptions
            {
                TrapTimeStampCounter = false,
                ReturnByIret = returnByIret,
                SkipInstructionLength = CliLength,
            }
        );
        _skipping.Queue(
            Linux.SysMmap,
            CodeAddress,
            GuestMemory.PageSize,
            Linux.ProtRead | Linux.ProtExec,
            Linux.MapShared | Linux.MapFixed | Linux.MapPopulate,
            CarrierLayout.RamFd,
            CodeAddress
        );
        _skipping.Flush();
    }

    /// <summary>Nanoseconds of one hand-off to the carrier and back, over so many in a row.</summary>
    public double HandOffNanoseconds(int count)
    {
        double start = HostClock.Instance.Nanoseconds;
        for (int i = 0; i < count; i++)
        {
            _skipping.Flush(); // an empty batch: the stub reads the word, finds nothing to do, writes it back
        }

        return (HostClock.Instance.Nanoseconds - start) / count;
    }

    /// <summary>Nanoseconds of one trapped CLI that a handler in the carrier skips, over so many in a row.</summary>
    public double SkippedTrapNanoseconds(int count)
    {
        var frame = (SignalContext*)(
            _skipping.RegisterFile + (_skipping.Control->Ucontext - CarrierLayout.RegisterFile)
        );
        frame->Rip = CodeAddress;
        frame->R15 = (ulong)count;
        double start = HostClock.Instance.Nanoseconds;
        _skipping.Resume();
        _skipping.WaitForExit();
        double elapsed = HostClock.Instance.Nanoseconds - start;
        return _skipping.Control->Signal == Linux.SigIll
            ? elapsed / count
            : throw new CarrierException(
                $"the calibration loop ended with signal {_skipping.Control->Signal}, not at its UD2"
            );
    }

    // R15 traps, then UD2, whose SIGILL goes to the VMM.
    private static Assembler TrapLoop()
    {
        var a = new Assembler(64);
        Label again = a.CreateLabel();
        a.Label(ref again);
        a.cli();
        a.dec(r15);
        a.jne(again);
        a.ud2();
        return a;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _skipping.Dispose();
        _memory.Dispose();
        CarrierPlacement.RestoreCurrentThread(_callerMask);
    }
}
