using System.ComponentModel;
using VirtBench.Strategies.Native;
using VirtBench.Strategies.Shadow;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Memory;

namespace VirtBench.Strategies.Carrier;

// What the core says of the guest's page tables, on its way to the shadow page tables; and what they want of the carriers.
internal abstract unsafe partial class CarrierEngine
{
    // Beyond so many it is simpler to say that all of memory was written.
    private const int MaximumForeignWrites = 4096;

    private readonly Lock _foreignGate = new();
    private volatile List<(ulong Address, ulong Length)>? _foreignWrites;
    private ulong _faultAddress;
    private bool _faultWrites;

    /// <inheritdoc/>
    public virtual MapResult Map(in ShadowPage page) =>
        Shadow.Map(page, write: _faultWrites || page.Address != _faultAddress);

    /// <inheritdoc/>
    public void SwitchAddressSpace() => Shadow.SwitchAddressSpace();

    /// <inheritdoc/>
    public void InvalidatePage(ulong address) => Shadow.InvalidatePage(address);

    /// <summary>
    /// The VMM has written guest RAM. What another thread than the vCPU's has written, a device's or an image's loader, counts for the shadow page
    /// tables from the next entry on.
    /// </summary>
    void IMemoryWriteObserver.MemoryWritten(ulong address, ulong length)
    {
        if (_vcpuThread == Environment.CurrentManagedThreadId)
        {
            Shadow.MemoryWritten(address, length);
            return;
        }

        lock (_foreignGate)
        {
            List<(ulong Address, ulong Length)> writes = _foreignWrites ?? [];
            if (writes.Count > 0 && writes[^1].Address + writes[^1].Length == address)
            {
                (address, length) = (writes[^1].Address, writes[^1].Length + length);
                writes.RemoveAt(writes.Count - 1);
            }
            else if (writes.Count >= MaximumForeignWrites)
            {
                writes.Clear();
                (address, length) = (0, Memory.Size);
            }

            writes.Add((address, length));
            _foreignWrites = writes;
        }
    }

    /// <inheritdoc/>
    bool IMemoryWriteObserver.Caches(ulong address, ulong length) => Shadow.Caches(address, length);

    private void ApplyForeignWrites()
    {
        lock (_foreignGate)
        {
            foreach ((ulong address, ulong length) in _foreignWrites ?? [])
            {
                Shadow.MemoryWritten(address, length);
            }

            _foreignWrites = null;
        }
    }

    /// <summary>For <see cref="MappingChanged"/>: nothing is mapped there any more.</summary>
    protected const ulong Unmapped = ulong.MaxValue;

    /// <summary>Called in the middle of a change to the shadow page table of a carrier.</summary>
    /// <param name="slot">The carrier's number.</param>
    /// <param name="start">First linear address.</param>
    /// <param name="end">First one behind.</param>
    /// <param name="physical">What the first address is mapped to from now on, executable; or <see cref="Unmapped"/>.</param>
    protected virtual void MappingChanged(int slot, ulong start, ulong end, ulong physical) { }

    /// <summary>What the guest executes are its own bytes; false where carriers need not map them executable.</summary>
    protected virtual bool ExecutesGuestPages => true;

    private CarrierSink SinkOf(int slot) => new(this, slot);

    private sealed class CarrierSink(CarrierEngine engine, int slot) : IMappingSink
    {
        public void Map(in MappedRun run, bool populate)
        {
            Changed(run);
            bool single = run.Length <= GuestMemory.PageSize;
            Queue(
                Linux.SysMmap,
                run.Address,
                run.Length,
                Protection(run),
                (ulong)(Linux.MapShared | Linux.MapFixed | (populate && single ? Linux.MapPopulate : 0)),
                CarrierLayout.RamFd,
                run.Physical
            );
            if (populate && !single)
            {
                Queue(BatchEntry.Touch, run.Address, run.End);
            }
        }

        public void Protect(in MappedRun run)
        {
            Changed(run);
            Queue(Linux.SysMprotect, run.Address, run.Length, Protection(run));
        }

        public void Unmap(ulong start, ulong end)
        {
            engine.MappingChanged(slot, start, end, Unmapped);
            if (engine.Pool[slot]?.TryExtendUnmap(start, end) != true)
            {
                Queue(Linux.SysMunmap, start, end - start);
            }
        }

        private void Changed(in MappedRun run) =>
            engine.MappingChanged(
                slot,
                run.Address,
                run.End,
                (run.Access & PageAccess.Execute) != 0 ? run.Physical : Unmapped
            );

        private ulong Protection(in MappedRun run) =>
            MappedRuns.Protection(engine.ExecutesGuestPages ? run.Access : run.Access & ~PageAccess.Execute);

        // A carrier makes the calls when it is next told to run. That one which is not started has nothing mapped.
        private void Queue(long number, ulong a0, ulong a1, ulong a2 = 0, ulong a3 = 0, ulong a4 = 0, ulong a5 = 0)
        {
            if (engine.Failure is not null || engine.Pool[slot] is not { } carrier)
            {
                return;
            }

            if (carrier.PendingCalls == CarrierLayout.BatchCapacity && !TryFlush(carrier))
            {
                return;
            }

            carrier.Queue(number, a0, a1, a2, a3, a4, a5);
        }

        // The core calls from the middle of an emulation: what goes wrong here is the next Run's to report.
        private bool TryFlush(CarrierProcess carrier)
        {
            try
            {
                carrier.Flush();
                return true;
            }
            catch (Exception e) when (e is CarrierException or Win32Exception)
            {
                _ = engine.Fail(e);
                return false;
            }
        }
    }
}
