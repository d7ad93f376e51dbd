using BenchmarkDotNet.Attributes;
using VirtBench.Strategies.Simulation;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>
/// Host time of one guest instruction on the simulated CPU. An operation is an instruction: each kernel's iterations are
/// chosen so that one call executes <see cref="Instructions"/> of them to within one iteration, counted by the CPU's own
/// clock (1 cycle an instruction in the textbook profile).
/// </summary>
[Config(typeof(InProcessConfiguration))]
public class InterpreterBenchmarks : IDisposable
{
    /// <summary>Guest instructions in one call.</summary>
    public const int Instructions = 2_000_000;

    private const ulong RamBytes = 8 << 20;
    private const ulong Tables = 0x1_3000;
    private const ulong Code = 0x10_0000;
    private const ulong Data = 0x20_0000;
    private const ulong StackTop = 0x40_0000;

    private GuestMemory? _memory;
    private VirtualCpu? _cpu;
    private IExecutionEngine? _engine;
    private ulong _iterations;

    /// <summary>The kernel that runs.</summary>
    [ParamsSource(nameof(Kernels))]
    public string Kernel { get; set; } = "";

    /// <summary>All kernels.</summary>
    public static IEnumerable<string> Kernels => InterpreterKernels.Names;

    /// <summary>Builds the guest and finds its number of iterations.</summary>
    [GlobalSetup]
    public void Setup()
    {
        const ulong rights = Pte.Present | Pte.Writable;
        _memory = new GuestMemory(RamBytes);
        _cpu = new VirtualCpu();
        _engine = new SimulatedNativeStrategy().CreateEngine(_cpu, _memory);
        _memory.Write(Tables, (Tables + 0x1000) | rights);
        _memory.Write(Tables + 0x1000, (Tables + 0x2000) | rights);
        for (ulong i = 0; i < RamBytes >> 21; i++)
        {
            _memory.Write(Tables + 0x2000 + (8 * i), (i << 21) | rights | Pte.Large);
        }

        _cpu.Cr3 = Tables;
        _memory.Write(Code, InterpreterKernels.Assemble(Kernel, Code));
        ulong one = Count(1);
        ulong each = (Count(101) - one) / 100;
        _iterations = Math.Max(1, (Instructions - one) / each);
    }

    private ulong Count(ulong iterations)
    {
        ulong before = _engine!.Clock.Ticks;
        Execute(iterations);
        return _engine.Clock.Ticks - before;
    }

    private void Execute(ulong iterations)
    {
        _cpu![15] = iterations;
        _cpu[14] = Data;
        _cpu.Rsp = StackTop;
        _cpu.Rip = Code;
        VmExit exit = _engine!.Run();
        if (exit.Reason != VmExitReason.PrivilegedInstruction)
        {
            throw new InvalidOperationException($"kernel {Kernel} ended with {exit} at RIP 0x{_cpu.Rip:X}");
        }
    }

    /// <summary>One call of a kernel.</summary>
    [Benchmark(OperationsPerInvoke = Instructions)]
    public ulong Instruction()
    {
        Execute(_iterations);
        return _cpu!.Rax;
    }

    /// <summary>Frees the guest.</summary>
    [GlobalCleanup]
    public void Dispose()
    {
        GC.SuppressFinalize(this);
        _engine?.Dispose();
        _cpu?.Dispose();
        _memory?.Dispose();
    }
}
