using VirtBench.Strategies.Hardware;

namespace VirtBench.Hardware.Tests;

public sealed class ProbeTests
{
    [Fact]
    public void A_usable_device_says_how_it_executes_ring_zero()
    {
        KvmHost host = KvmHost.Current;
        Assert.SkipWhen(host.Access is KvmAccess.NoDevice or KvmAccess.NoPermission, host.UnavailableReason ?? "");
        Assert.Equal((KvmAccess.Usable, null), (host.Access, host.UnavailableReason));
        Assert.NotNull(host.RingZero);
    }
}
