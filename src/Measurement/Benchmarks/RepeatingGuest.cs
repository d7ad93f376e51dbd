using System.Runtime.Versioning;
using Iced.Intel;
using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using VirtBench.Vmm.Paravirtual;
using VirtBench.Workloads;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>
/// A guest that does the same thing so many times and then halts; halting gives control back, and the next run goes on.
/// </summary>
[SupportedOSPlatform("linux")]
internal sealed class RepeatingGuest : IDisposable
{
    private const ulong Entry = 0x10_0000;

    private readonly VirtualMachine _machine;

    /// <summary>
    /// A guest that repeats what <paramref name="body"/> assembles, after <paramref name="first"/> once; R15 is the loop's.
    /// </summary>
    /// <exception cref="PlatformNotSupportedException">This host cannot run the strategy; the message says why.</exception>
    public RepeatingGuest(
        Strategy strategy,
        int count,
        Action<GuestAssembler> body,
        Action<GuestAssembler>? first = null
    )
    {
        if (strategy.UnavailableReason() is { } reason)
        {
            throw new PlatformNotSupportedException(reason);
        }

        _machine = new VirtualMachine(64 << 20, strategy.CreateEngine);
        Load(_machine, count, body, first, strategy.Interface);
    }

    public GuestMemory Memory => _machine.Memory;

    /// <summary>The account of its exits.</summary>
    public TrapLedger Ledger => _machine.Ledger;

    /// <summary>Puts the guest into a machine.</summary>
    public static void Load(
        VirtualMachine machine,
        int count,
        Action<GuestAssembler> body,
        Action<GuestAssembler>? first = null,
        GuestInterface guestInterface = GuestInterface.Native
    )
    {
        var a = new GuestAssembler(guestInterface);
        Label forever = a.CreateLabel();
        Label again = a.CreateLabel();
        first?.Invoke(a);
        a.Label(ref forever);
        a.mov(r15d, count);
        a.Label(ref again);
        body(a);
        a.dec(r15d);
        a.jne(again);
        a.hlt();
        a.jmp(forever);
        a.EmitOutOfLine();
        byte[] code = MachineCode.Assemble(a, Entry);
        var segment = new ImageSegment(Entry, code, (ulong)code.Length, Executable: true);
        machine.Load(
            new GuestImage("benchmark", Entry, [segment]),
            new BootOptions { Paravirtual = guestInterface == GuestInterface.Paravirtual }
        );
    }

    public void Run()
    {
        RunOutcome outcome = _machine.Run();
        if (!_machine.Cpu.Halted)
        {
            throw new InvalidOperationException(outcome.Message);
        }

        _machine.Cpu.Halted = false;
    }

    public void Dispose() => _machine.Dispose();
}
