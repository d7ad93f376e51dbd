using System.Runtime.InteropServices;
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
internal sealed unsafe partial class KvmCalibration : IDisposable
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

    /// <summary>Nanoseconds of one KVM_RUN, over so many in a row.</summary>
    public double ExitNanoseconds(int count)
    {
        int vcpu = _engine!.Machine.VcpuDescriptor;
        double start = HostClock.Instance.Nanoseconds;
        for (int i = 0; i < count; i++)
        {
            _ = BareIoctl(vcpu, Kvm.Run, 0);
        }

        return (HostClock.Instance.Nanoseconds - start) / count;
    }

    /// <summary>Nanoseconds of an ioctl that does nothing (KVM_GET_API_VERSION), as <see cref="Kvm.Ioctl"/> makes it.</summary>
    public double NullIoctlNanoseconds(int count)
    {
        double start = HostClock.Instance.Nanoseconds;
        for (int i = 0; i < count; i++)
        {
            _ = Kvm.Ioctl(_device, Kvm.GetApiVersion, null);
        }

        return (HostClock.Instance.Nanoseconds - start) / count;
    }

    /// <summary>The reason of the last exit, to see that the loop does what it is meant to.</summary>
    public uint LastExitReason => _engine!.Machine.Run->ExitReason;

    /// <inheritdoc/>
    public void Dispose()
    {
        _machine?.Dispose();
        _machine = null;
        _ = Linux.Close(_device);
    }

    [LibraryImport("libc", EntryPoint = "ioctl")]
    private static partial int BareIoctl(int fd, nuint request, nuint argument);

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

        public string? Map(in ShadowPage page) => throw new NotSupportedException();

        public void SwitchAddressSpace() { }

        public void InvalidatePage(ulong address) { }

        public void SaveLazyState() { }

        public void LoadLazyState() { }

        public void Dispose() => Machine.Dispose();
    }
}
