using System.Runtime.CompilerServices;
using System.Runtime.Versioning;
using VirtBench.Strategies.Native;
using VirtBench.Vmm.Cpu;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Hardware;

/// <summary>
/// The floor under an exit of the hardware strategy: a loop of nothing but KVM_RUN in this process, which neither looks why
/// the guest came back nor asks for its registers. What it adds is what the VMM costs.
/// </summary>
[SupportedOSPlatform("linux")]
internal sealed unsafe class KvmCalibration : IDisposable
{
    private readonly int _device = KvmMachine.OpenDevice();
    private VirtualMachine? _machine;
    private BareEngine? _engine;

    /// <summary>A VM that <paramref name="load"/> fills with a guest of endless exits.</summary>
    public KvmCalibration(Action<VirtualMachine>? load = null)
    {
        if (load is not null)
        {
            _machine = new VirtualMachine(64 << 20, (cpu, memory) => _engine = new BareEngine(cpu, memory));
            load(_machine);
            KvmState.Load(_machine.Cpu, _engine!.Machine);
            _engine.EnterRegisters();
        }
    }

    /// <summary>Enters the guest so many times, and does nothing else.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public void Exits(int count)
    {
        KvmMachine machine = _engine!.Machine;
        for (int i = 0; i < count; i++)
        {
            _ = machine.Enter();
        }
    }

    /// <summary>So many ioctls that do nothing (KVM_GET_API_VERSION), made as <see cref="Kvm.Ioctl"/> makes them.</summary>
    public void NullIoctls(int count)
    {
        for (int i = 0; i < count; i++)
        {
            _ = Kvm.Ioctl(_device, Kvm.GetApiVersion, null);
        }
    }

    /// <summary>The same as <see cref="KvmMachine.Enter"/> makes it, without the C library.</summary>
    public void BareNullIoctls(int count)
    {
        for (int i = 0; i < count; i++)
        {
            _ = KvmMachine.BareIoctl(_device, Kvm.GetApiVersion);
        }
    }

    /// <summary>Whether KVM copies the general registers at each exit, as it does for the strategy.</summary>
    public bool CopyRegisters
    {
        set => _engine!.Machine.Run->ValidRegs = value ? Kvm.SyncX86Regs : 0;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _machine?.Dispose();
        _machine = null;
        _ = Linux.Close(_device);
    }

    /// <summary>Holds the KVM machine of a VM that the core only loads, never runs.</summary>
    private sealed class BareEngine(VirtualCpu cpu, GuestMemory memory) : IExecutionEngine
    {
        public KvmMachine Machine { get; } = new(memory, offered => offered with { SyncRegs = false });

        public EngineCapabilities Capabilities { get; } = new() { TimeSource = "measured" };

        public IEngineClock Clock => HostClock.Instance;

        public void EnterRegisters()
        {
            GuestRegisters* r = cpu.Registers;
            var regs = new Kvm.Regs { Rdi = r->Gpr[Gpr.Rdi], Rsp = r->Gpr[Gpr.Rsp] };
            new ReadOnlySpan<ulong>(&r->Gpr[Gpr.R8], 10).CopyTo(regs.R8ToRflags);
            Machine.Vcpu(Kvm.SetRegs, ref regs, "KVM_SET_REGS");
        }

        public VmExit Run() => throw new NotSupportedException();

        public void Kick() { }

        public ulong Deadline { get; set; }

        public void Idle() => throw new NotSupportedException();

        public MapResult Map(in ShadowPage page) => throw new NotSupportedException();

        public void SwitchAddressSpace() { }

        public void InvalidatePage(ulong address) { }

        public void SaveLazyState() { }

        public void LoadLazyState() { }

        public void Dispose() => Machine.Dispose();
    }
}
