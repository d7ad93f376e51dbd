using VirtBench.Vmm.Disks;
using VirtBench.Vmm.Interrupts;

namespace VirtBench.Vmm.Execution;

// The disk of a VM. Without one its ports and addresses are like any others that nothing answers.
public sealed partial class VirtualMachine
{
    private DiskService? _disk;

    /// <summary>
    /// Attaches a disk, which the guest sees through two front ends: an ATA device on the primary channel
    /// (<see cref="AtaChannel"/>) and virtio-blk (<see cref="VirtioBlock"/>). It is disposed with the VM. When this throws, the disk is
    /// still the caller's.
    /// </summary>
    /// <param name="disk">The disk.</param>
    /// <param name="delivery">How its interrupts reach the guest.</param>
    /// <param name="directLine">
    /// Direct only: what delivers a line's interrupts, by the line's number; null for the VM's own way, which is one without an exit where engine
    /// and guest have one.
    /// </param>
    /// <exception cref="InvalidOperationException">The guest has run, or there is a disk.</exception>
    /// <exception cref="DiskUnavailableException">The guest has RAM where virtio-blk lies.</exception>
    public void AttachDisk(
        Disk disk,
        InterruptDelivery delivery = InterruptDelivery.Exit,
        Func<int, IInterruptLine>? directLine = null
    )
    {
        if (_hasRun || _disk is not null)
        {
            throw new InvalidOperationException("one disk is attached, before the guest runs");
        }

        if (Memory.Size > VirtioBlock.Address)
        {
            throw new DiskUnavailableException(
                $"a guest with a disk has at most {VirtioBlock.Address >> 20} MiB of RAM: virtio-blk lies behind them"
            );
        }

        var service = new DiskService(disk, _engine.Clock, _engine.Capabilities.ComputedTime, delivery, Kick);
        IInterruptLine LineOf(int line) =>
            delivery == InterruptDelivery.Direct
                ? (directLine ?? DirectLine)(line)
                : new ControllerLine(Interrupts, line);
        var ata = new AtaChannel(service, LineOf(AtaChannel.InterruptLine));
        var virtio = new VirtioBlock(service, Memory, LineOf(VirtioBlock.InterruptLine));
        Ports.Attach(ata, AtaChannel.FirstPort, AtaChannel.PortCount);
        Ports.Attach(ata, AtaChannel.ControlPort, 1);
        AbsentMemory.Attach(virtio, VirtioBlock.Address, VirtioBlock.Length);
        _disk = service;
    }

    /// <summary>What the disk has done so far; null when there is none.</summary>
    public DiskStatistics? DiskStatistics() => _disk?.Statistics();

    /// <summary>What went wrong on the host's side of the disk, in one line; null when nothing did.</summary>
    public string? DiskHostError => _disk?.HostError;

    /// <summary>The disk's service; for tests.</summary>
    internal DiskService? DiskService => _disk;

    private void DrainDisk()
    {
        if (_disk!.HasPosted)
        {
            _disk.Drain();
        }
    }

    // Returns when the disk is to be asked again.
    private ulong PassDiskTime(ulong now)
    {
        if (now >= _disk!.NextEvent)
        {
            _disk.Advance(now);
        }

        DrainDisk();
        return _disk.NextEvent;
    }

    private bool DiskMayWake()
    {
        // What has been completed since the last look is posted before the service settles: so it is asked in this order.
        if (_disk is null || (!_disk.MayYetComplete() && !_disk.HasPosted))
        {
            return false;
        }

        foreach (DiskFrontEnd frontEnd in _disk.FrontEnds)
        {
            if (!Interrupts.IsMasked(frontEnd.Line) || _disk.Delivery == InterruptDelivery.Direct)
            {
                return true;
            }
        }

        return false;
    }

    private sealed class ControllerLine(InterruptController controller, int line) : IInterruptLine
    {
        public void Set(bool active) => controller.SetLine(line, active);
    }
}
