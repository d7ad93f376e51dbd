#pragma warning disable CA1416 // SkipUnlessAvailable has asked for Linux
using Iced.Intel;
using VirtBench.Strategies.Shadow;
using VirtBench.Strategies.TrapAndEmulate;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Strategies.Tests.DirectExecution;

/// <summary>Carriers share two CPUs and the tests count processes and descriptors: one test at a time, and alone.</summary>
[CollectionDefinition(Name, DisableParallelization = true)]
public sealed class CarrierCollection
{
    public const string Name = "carrier";
}

/// <summary>A small guest program under direct execution, from Iced to the outcome.</summary>
internal sealed class DirectGuest : IDisposable
{
    public const ulong Code = 0x10_0000;
    public const ulong Data = 0x20_0000;
    public const ulong Results = 0x21_0000;
    public const uint RamBytes = 16 << 20;

    /// <summary>For guests that end by themselves; never reached.</summary>
    public static readonly TimeSpan Ample = TimeSpan.FromSeconds(60);

    private DirectExecutionEngine? _engine;

    public DirectGuest(
        Action<Assembler> program,
        bool returnByIret = true,
        bool trapTimeStampCounter = true,
        TimeSpan? kickGrace = null,
        ShadowPaging shadow = ShadowPaging.Cached,
        int maximumCarriers = 16
    )
    {
        SkipUnlessAvailable();
        Machine = new VirtualMachine(
            RamBytes,
            (cpu, memory) =>
                _engine = new DirectExecutionEngine(
                    cpu,
                    memory,
                    new DirectExecutionOptions
                    {
                        ReturnByIret = returnByIret,
                        TrapTimeStampCounter = trapTimeStampCounter,
                        TimeSource = "test",
                        KickGrace = kickGrace,
                        Shadow = shadow,
                        MaximumCarriers = maximumCarriers,
                    }
                )
        );
        var a = new Assembler(64);
        program(a);
        byte[] code = Strategies.MachineCode.Assemble(a, Code);
        Machine.Load(
            new GuestImage("test", Code, [new ImageSegment(Code, code, (ulong)code.Length, Executable: true)]),
            new BootOptions()
        );
    }

    public VirtualMachine Machine { get; }

    public DirectExecutionEngine Engine => _engine!;

    public GuestMemory Memory => Machine.Memory;

    /// <summary>Skips where the host lacks something; an engine that fails its self-check fails the test.</summary>
    public static void SkipUnlessAvailable()
    {
        string? reason = DirectExecutionProbe.UnavailableReason;
        bool lacking =
            reason is not null
            && (
                reason.StartsWith("needs ", StringComparison.Ordinal)
                || reason.StartsWith("the host ", StringComparison.Ordinal)
            );
        Assert.SkipWhen(lacking, reason ?? "");
        Assert.Null(reason);
    }

    public RunOutcome Run(TimeSpan? timeout = null) => Machine.Run(timeout ?? Ample, CancellationToken.None);

    public RunOutcome RunUntil(CancellationToken cancelled) => Machine.Run(Ample, cancelled);

    /// <summary>Runs to the exit port and returns the status.</summary>
    public byte RunToExit()
    {
        RunOutcome outcome = Run();
        Assert.Equal((RunEnd.Exited, null), (outcome.End, outcome.Message));
        return outcome.Status;
    }

    /// <summary>Runs a guest that cannot go on; returns the one line that says why.</summary>
    public string RunToFailure(TimeSpan? timeout = null)
    {
        RunOutcome outcome = Run(timeout);
        Assert.Equal(RunEnd.Failed, outcome.End);
        Assert.NotNull(outcome.Message);
        Assert.DoesNotContain('\n', outcome.Message);
        return outcome.Message;
    }

    public ulong Result(int index) => Memory.Read<ulong>(Results + (8 * (ulong)index));

    public static AssemblerMemoryOperand ResultSlot(int index) => __qword_ptr[Results + (8 * (ulong)index)];

    public void Dispose() => Machine.Dispose();
}

internal static class GuestAssembly
{
    public static void Exit(this Assembler a, byte status = 0)
    {
        a.mov(al, status);
        a.@out(0xF4, al);
    }

    public static void WriteMsr(this Assembler a, uint msr, ulong value)
    {
        a.mov(ecx, msr);
        a.mov(eax, (uint)value);
        a.mov(edx, (uint)(value >> 32));
        a.wrmsr();
    }

    public static void JumpTo(this Assembler a, ulong address)
    {
        a.mov(rax, address);
        a.jmp(rax);
    }
}
