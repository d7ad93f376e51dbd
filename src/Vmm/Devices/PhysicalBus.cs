using VirtBench.Vmm.Execution;

namespace VirtBench.Vmm.Devices;

/// <summary>
/// Guest-physical addresses without RAM. They read all ones; writes are dropped and counted, or, when strict, end the guest
/// with an error naming address and RIP.
/// </summary>
public sealed class PhysicalBus
{
    /// <summary>End the guest when it touches an address that nothing answers.</summary>
    public bool Strict { get; init; }

    /// <summary>Reads and writes that nothing answered so far.</summary>
    public long UnclaimedAccesses { get; internal set; }

    /// <summary>A read of at most one page.</summary>
    /// <exception cref="GuestFailureException">Strict, and nothing is there.</exception>
    public void Read(ulong address, Span<byte> destination, ulong rip)
    {
        Unclaimed("read of", address, rip);
        destination.Fill(0xFF);
    }

    /// <summary>A write of at most one page.</summary>
    /// <exception cref="GuestFailureException">Strict, and nothing is there.</exception>
    public void Write(ulong address, ReadOnlySpan<byte> source, ulong rip)
    {
        _ = source;
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
