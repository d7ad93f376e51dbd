using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Execution;

// One VM under one engine after the other.
public sealed partial class VirtualMachine
{
    private string? _engineFailure;

    /// <summary>
    /// Lets the VM go on under another engine from where it stands; the one that it has is disposed of. To be called between two
    /// calls of <see cref="Run"/>, at whatever point the guest was stopped.
    /// </summary>
    /// <remarks>
    /// <para>
    /// Registers, memory, devices, an event that is pending, an interrupt shadow and the sleep of HLT are the core's, and go on. Time
    /// does too: the guest's TSC and the timer continue from where they are on the new engine's clock, whose rate may be
    /// another than the one that the guest was told at boot. A measured region that is open gets the sum of its times.
    /// </para>
    /// <para>Address translations are the engine's: the new one has none, as after a TLB flush, which a guest may expect at any time.</para>
    /// </remarks>
    /// <param name="createEngine">The other strategy's engine.</param>
    /// <exception cref="InvalidOperationException">
    /// The guest is running, has been given up, or its engine has failed; or it has run with its interrupt controllers in the host's kernel, or
    /// would have them there from now on. In this last case it still has its old engine.
    /// </exception>
    /// <exception cref="PlatformNotSupportedException">
    /// Not with a pager under this engine on this host; one line says why. As after any other exception of
    /// <paramref name="createEngine"/>, the VM still has its old engine.
    /// </exception>
    public void SwitchEngine(EngineFactory createEngine)
    {
        if (_running || _abandoned)
        {
            throw new InvalidOperationException("an engine is exchanged while the guest is stopped");
        }

        if (_engineFailure is { } failure)
        {
            throw new InvalidOperationException($"the guest has no state to go on from: {failure}");
        }

        IExecutionEngine old = _engine;
        IMemoryWriteObserver? observer = Memory.WriteObserver;
        IExecutionEngine? created = null;
        UserFaults? userFaults = null;
        try
        {
            created = createEngine(Cpu, Memory);
            RefuseToSwitchKernelInterrupts(old, created, _hasRun);
            if (Memory.Pager is { } pager && _userFaults is null && ReachesThroughHost(created))
            {
                userFaults = UserFaults.Start(Memory, pager, Kick);
            }
        }
        catch
        {
            created?.Dispose();
            Memory.WriteObserver = observer;
            throw;
        }

        _waitingNanoseconds += KernelHalts();

        // Run has had it saved; somebody may have driven the engine without.
        old.SaveLazyState();
        _userFaults ??= userFaults;
        Cpu.TscOffset += old.Clock.Ticks - created.Clock.Ticks;
        _measurement.SwitchEngine(created);
        Timer.SwitchClock(created.Clock);
        _disk?.SwitchClock(created.Clock, created.Capabilities.ComputedTime);
        _emulator.SwitchEngine(created);
        _hypercalls?.SwitchEngine(created);
        _posted?.Reconnect(created, _hypercalls);
        _transaction?.SwitchEngine(created);
        _engine = created;
        _deadline = ulong.MaxValue; // the new one has been told of none
        _step = false; // a step is asked for anew where it is still needed
        old.Dispose();
        created.LoadLazyState();
        created.SwitchAddressSpace();
    }
}
