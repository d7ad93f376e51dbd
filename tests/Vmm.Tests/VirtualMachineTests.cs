using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Execution;

namespace VirtBench.Vmm.Tests;

/// <summary>The run loop, driven by a scripted engine; instructions are emulated by the core one by one.</summary>
public sealed class VirtualMachineTests : IDisposable
{
    private const ulong Code = 0x10_0000;

    private ScriptedEngine _engine = null!;
    private VirtualMachine? _vm;

    public void Dispose() => _vm?.Dispose();

    [Fact]
    public void A_guest_of_sensitive_instructions_runs_to_its_exit_port()
    {
        // cli; sti; rdtsc; mov rax,cr3; mov cr3,rax; mov al,0x41 is left out: al holds what cr3 gave; out 0xF4, al
        VirtualMachine vm = Boot([0xFA, 0xFB, 0x0F, 0x31, 0x0F, 0x20, 0xD8, 0x0F, 0x22, 0xD8, 0xE6, 0xF4]);

        RunOutcome outcome = Run(vm);

        Assert.Equal(new RunOutcome(RunEnd.Exited, unchecked((byte)PhysicalLayout.PageTables), null), outcome);
        Assert.Equal(2, vm.Ledger.Count(TrapReason.InterruptFlag));
        Assert.Equal(1, vm.Ledger.Count(TrapReason.TimeStampCounter));
        Assert.Equal(1, vm.Ledger.Count(TrapReason.ControlRegister));
        Assert.Equal(1, vm.Ledger.Count(TrapReason.AddressSpaceSwitch));
        Assert.Equal(1, vm.Ledger.Count(TrapReason.PortIo));
        Assert.Contains("switch", _engine.Calls);
    }

    private static RunOutcome Run(VirtualMachine vm, TimeSpan? timeout = null) =>
        vm.Run(timeout, TestContext.Current.CancellationToken);

    private VirtualMachine Boot(byte[] code, bool strict = false)
    {
        _vm = new VirtualMachine(4 << 20, (cpu, _) => _engine = new ScriptedEngine(cpu), strict);
        _vm.Load(new GuestImage("test", Code, [new ImageSegment(Code, code, 0x1000, true)]), new BootOptions());
        return _vm;
    }
}
