using VirtBench.Vmm.Execution;

namespace VirtBench.Vmm.Devices;

/// <summary>
/// Guest-physical addresses without RAM: devices, and what nothing answers. The latter reads all ones; writes are dropped and
/// counted, or, when strict, end the guest with an error naming address and RIP.
/// </summary>
public sealed class PhysicalBus
{
    private readonly List<(ulong Start, ulong Length, IMmioDevice Device)> _devices = [];

    /// <summary>End the guest when it touches an address that nothing answers.</summary>
    public bool Strict { get; init; }

    /// <summary>Reads and writes that nothing answered so far.</summary>
    public long UnclaimedAccesses { get; internal set; }

    /// <summary>Puts a device at guest-physical addresses. An access that is not wholly inside them does not reach it.</summary>
    /// <exception cref="InvalidOperationException">Another device is there.</exception>
    public void Attach(IMmioDevice device, ulong start, ulong length)
    {
        foreach ((ulong otherStart, ulong otherLength, _) in _devices)
        {
            if (start < otherStart + otherLength && otherStart < start + length)
            {
                throw new InvalidOperationException($"guest-physical 0x{start:X} has a device already");
            }
        }

        _devices.Add((start, length, device));
    }

    private IMmioDevice? Find(ulong address, int length, out ulong offset)
    {
        foreach ((ulong start, ulong size, IMmioDevice device) in _devices)
        {
            offset = address - start;
            if (offset < size && (ulong)length <= size - offset)
            {
                return device;
            }
        }

        offset = 0;
        return null;
    }

    /// <summary>A read of at most one page.</summary>
    /// <exception cref="GuestFailureException">Strict, and nothing is there.</exception>
    public void Read(ulong address, Span<byte> destination, ulong rip)
    {
        if (Find(address, destination.Length, out ulong offset) is { } device)
        {
            device.Read(offset, destination);
            return;
        }

        Unclaimed("read of", address, rip);
        destination.Fill(0xFF);
    }

    /// <summary>A write of at most one page.</summary>
    /// <exception cref="GuestFailureException">Strict, and nothing is there.</exception>
    public void Write(ulong address, ReadOnlySpan<byte> source, ulong rip)
    {
        if (Find(address, source.Length, out ulong offset) is { } device)
        {
            device.Write(offset, source);
            return;
        }

        Unclaimed("write to", address, rip);
    }

    private void Unclaimed(string what, ulong address, ulong rip)
    {
        UnclaimedAccesses++;
        if (Strict)
        {
            throw new GuestFailureException(
                $"{what} guest-physical 0x{address:X}, where there is neither RAM nor a device, at RIP 0x{rip:X} (--strict)"
            );
        }
    }
}
